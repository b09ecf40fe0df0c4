//! One connection: a guest endpoint on one side, a socket on the other.

use alloc::boxed::Box;
use core::time::Duration;

use wire::{
    payload::Payload,
    tcp::{Flags, Options, SackBlocks, Segment, Seq},
};

use super::{
    dial::Dial,
    emit::{self, Fields},
    queue::SlotPool,
    receive::{AckDue, Receiver},
    send::{MAX_UNANSWERED, Sender, syn_timeout},
};
use crate::{
    context::Context,
    flow::{Endpoints, FlowId, Keyed},
    host::{Errno, Host, Readiness, SocketError, TcpSocket},
    link::{Full, Link},
    memory::PayloadOf,
    timer::{Deadline, Instant},
};

/// Super-frames sent for one connection before the others get their turn.
const BUDGET: usize = 8;
/// How long an acknowledgment may wait for data to carry it.
const ACK_DELAY: Duration = Duration::from_millis(4);
/// A connection that was silent for one to two of these is probed (behaviour §6.9).
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection without any activity for one to two of these is given up (behaviour §6.9).
const INACTIVITY: Duration = Duration::from_secs(7200);
/// Most payload of one super-frame: what 16 bits of IP length leave behind the longest headers.
const MAX_PAYLOAD: u32 = 65535 - 60 - 40;

/// How far the handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest's SYN is here, the socket connects.
    Connecting,
    /// The socket is connected, the guest was sent SYN,ACK.
    SynReceived,
    /// The socket was accepted, the guest was sent SYN.
    SynSent,
    /// Both sides are connected, until both streams have ended.
    Established,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both streams have ended in order.
    Finished,
    /// We give up: both sides are reset.
    Abort,
    /// The guest reset it: the socket is reset.
    GuestReset,
    /// The socket has failed: the guest is told.
    SocketFailed(Errno),
}

/// What is left to do for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing until something happens.
    Nothing,
    /// More can be sent at once; the others come first.
    More,
    /// The link is full.
    LinkFull,
}

#[derive(Debug)]
pub(super) struct Connection<S> {
    pub(super) ends: Endpoints,
    pub(super) socket: S,
    pub(super) phase: Phase,
    pub(super) send: Sender,
    pub(super) receive: Receiver,
    /// The socket may have bytes that were not peeked.
    readable: bool,
    /// The end of the stream is near: a short read may be followed by it without another event.
    read_closed: bool,
    /// The socket's error; what it still holds goes to the guest first.
    error: Option<Errno>,
    /// The traffic class of the guest's segments, as the socket has it, and of ours. Both without ECN bits.
    pub(super) class: u8,
    pub(super) peer_class: u8,
    /// Kernel keep-alive was asked for.
    keep_alive: bool,
    /// On the table's list of connections to finish after this batch.
    pub(super) touched: bool,
    /// On the table's list of connections with more to send.
    pub(super) runnable: bool,
    ack_at: Option<Instant>,
    active: Instant,
    probed: Option<Instant>,
    pub(super) deadline: Deadline,
    /// Other servers to connect to, while this is a connection to a resolver and not there yet.
    pub(super) dial: Option<Box<Dial>>,
}

impl<S> Keyed for Connection<S> {
    type Key = Endpoints;
    fn key(&self) -> Endpoints {
        self.ends
    }
}

impl<S: TcpSocket> Connection<S> {
    pub(super) fn new(
        ends: Endpoints,
        socket: S,
        phase: Phase,
        send: Sender,
        receive: Receiver,
        now: Instant,
    ) -> Self {
        Self {
            ends,
            socket,
            phase,
            send,
            receive,
            readable: false,
            read_closed: false,
            error: None,
            class: 0,
            peer_class: 0,
            keep_alive: false,
            touched: false,
            runnable: false,
            ack_at: None,
            active: now,
            probed: None,
            deadline: Deadline::default(),
            dial: None,
        }
    }

    /// A segment of the guest that belongs to this connection.
    pub(super) fn on_segment<H: Host<Tcp = S>, L: Link>(
        &mut self,
        segment: &Segment<'_, PayloadOf<'_, S::Memory>>,
        pool: &mut SlotPool,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        self.active = ctx.now;
        match self.phase {
            Phase::Connecting => self.while_connecting(segment),
            Phase::SynSent => self.while_syn_sent(segment, ctx),
            Phase::SynReceived => {
                if self.while_syn_received(segment, ctx)? {
                    self.while_established(segment, pool, ctx)?;
                }
                Ok(())
            }
            Phase::Established => self.while_established(segment, pool, ctx),
        }
    }

    /// Has the socket send by the traffic class of the guest's segments, from now on.
    pub(super) fn set_class(&mut self, class: u8) {
        if core::mem::replace(&mut self.class, class) != class {
            self.socket.set_traffic_class(class);
        }
    }

    fn while_established<H: Host<Tcp = S>, L: Link>(
        &mut self,
        segment: &Segment<'_, PayloadOf<'_, S::Memory>>,
        pool: &mut SlotPool,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        let flags = segment.flags();
        let (seq, len) = (segment.seq(), segment.sequence_len());
        if !self.receive.acceptable(seq, len) {
            self.on_outside(segment, ctx.now);
            return Ok(());
        }
        if flags.contains(Flags::RST) {
            return Err(End::GuestReset);
        }
        if flags.contains(Flags::SYN) {
            self.receive.ack = AckDue::Now; // RFC 5961 §4: challenge
            return Ok(());
        }
        if !flags.contains(Flags::ACK) {
            return Ok(());
        }
        if !self.on_ack(segment, ctx.now) {
            return Ok(());
        }
        if let Some(urgent) = segment.urgent() {
            self.receive.note_urgent(urgent);
        }
        let fin = flags.contains(Flags::FIN);
        if !segment.payload.is_empty() || fin {
            if let Some(errno) = self.error
                && !segment.payload.is_empty()
            {
                return Err(End::SocketFailed(errno));
            }
            let in_order = seq == self.receive.next;
            self.receive
                .accept(seq, segment.payload, fin, &mut self.socket, pool)
                .or_else(|errno| self.fail(errno))?;
            if !in_order && self.receive.ack == AckDue::Now && !segment.payload.is_empty() {
                // One acknowledgment per out-of-order segment: the guest counts them.
                self.send_ack(ctx).ok();
            }
        }
        Ok(())
    }

    /// A segment outside the window: keep-alives, old duplicates, window probes (RFC 9293 §3.10.7.4).
    fn on_outside(&mut self, segment: &Segment<'_, impl Payload>, now: Instant) {
        let flags = segment.flags();
        if flags.contains(Flags::RST) {
            return;
        }
        self.receive.ack = AckDue::Now;
        let ends_before = !(segment.seq() + segment.sequence_len()).after(self.receive.next);
        if ends_before && flags.contains(Flags::ACK) && !flags.contains(Flags::SYN) {
            if segment.payload.len() <= 1 && !self.keep_alive && segment.seq() + 1 == self.receive.next {
                self.keep_alive = true; // the guest cares whether the peer lives
                self.socket.keep_alive();
            }
            self.on_ack(segment, now); // its acknowledgment and window count
        }
    }

    /// Takes in a segment's acknowledgment; false if the segment is to be left at that.
    fn on_ack(&mut self, segment: &Segment<'_, impl Payload>, now: Instant) -> bool {
        let options =
            if segment.options.is_empty() { Options::default() } else { Options::parse(segment.options) };
        let of_something_sent = self.send.on_ack(segment, &options, now);
        if !of_something_sent {
            self.receive.ack = AckDue::Now;
        }
        of_something_sent
    }

    /// Retransmits what the guest has told to be missing.
    fn fill_holes<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<Rest, End> {
        let mss = u32::from(self.send.mss);
        for _ in 0..BUDGET {
            let hole =
                self.send.recovery.as_ref().and_then(|recovery| recovery.next_hole(self.send.una, mss));
            let Some((start, end)) = hole else { return Ok(Rest::Nothing) };
            let fin = self.send.fin;
            let end = end.min(self.send.max).min(self.send.edge());
            if !start.before(end) {
                return Ok(Rest::Nothing);
            }
            let sent = if fin.is_some_and(|fin| !start.before(fin)) {
                self.send_control(start, Flags::FIN | Flags::ACK, ctx).map(|()| Ok(1))
            } else {
                let data_end = fin.map_or(end, |fin| fin.min(end));
                self.send_data(start, (data_end - start).min(self.largest_run(start, ctx.link)), ctx)
            };
            let len = match sent {
                Err(Full) => return Ok(Rest::LinkFull),
                Ok(Ok(0)) | Ok(Err(SocketError::WouldBlock)) => return Ok(Rest::Nothing),
                Ok(Ok(len)) => len,
                Ok(Err(SocketError::Failed(errno))) => {
                    self.fail(errno)?;
                    return Ok(Rest::Nothing);
                }
            };
            if let Some(recovery) = &mut self.send.recovery {
                recovery.repaired_to(start + len);
            }
        }
        Ok(Rest::More)
    }

    /// The socket reported readiness.
    pub(super) fn on_readiness<H: Host<Tcp = S>, L: Link>(
        &mut self,
        readiness: Readiness,
        pool: &mut SlotPool,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        if readiness.readable {
            self.active = ctx.now;
        }
        self.readable |= readiness.readable || readiness.read_closed || readiness.error;
        self.read_closed |= readiness.read_closed || readiness.error;
        if readiness.urgent {
            self.find_urgent_mark();
        }
        if self.phase == Phase::Connecting {
            return self.on_connected(readiness, ctx);
        }
        if readiness.error
            && let Some(errno) = self.socket.take_error()
        {
            return self.fail(errno);
        }
        if self.error.is_none() && (readiness.writable || readiness.error) {
            self.receive.on_writable(&mut self.socket, pool).or_else(|errno| self.fail(errno))?;
        }
        Ok(())
    }

    /// Looks where the peer's urgent byte is, and announces it. Segments before it say where it is, even if the guest's
    /// window lets no data through (RFC 9293 §3.8.5).
    fn find_urgent_mark(&mut self) {
        if let Some(offset) = self.socket.urgent_mark()
            && self.send.note_urgent(offset)
            && self.phase == Phase::Established
        {
            self.receive.ack = AckDue::Now;
        }
    }

    /// The socket has failed. What it received before that still goes to the guest; during the
    /// handshake there is nothing to wait for.
    fn fail(&mut self, errno: Errno) -> Result<(), End> {
        self.readable = true;
        self.error = self.error.or(Some(errno));
        if self.phase == Phase::Established { Ok(()) } else { Err(End::SocketFailed(errno)) }
    }

    /// To be called after each batch of segments or event: everything that is due is sent.
    pub(super) fn finish<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<Rest, End> {
        let mut rest = Rest::Nothing;
        if self.phase == Phase::Established {
            self.discard();
            rest = self.fill_holes(ctx)?;
            if rest == Rest::Nothing {
                rest = self.pump(ctx)?;
            }
        }
        let due = self.receive.ack;
        match due {
            AckDue::Now if self.send_ack(ctx).is_err() => return Ok(Rest::LinkFull),
            AckDue::Delayed if self.ack_at.is_none() => self.ack_at = Some(ctx.now + ACK_DELAY),
            _ => {}
        }
        match self.error {
            // The guest has everything that came before the error.
            Some(errno) if self.send.fin.is_some_and(|fin| !self.send.una.before(fin)) => {
                Err(End::SocketFailed(errno))
            }
            _ if self.is_finished() => Err(End::Finished),
            _ => Ok(rest),
        }
    }

    /// Whether both streams have ended, and both sides know.
    pub(super) fn is_finished(&self) -> bool {
        self.receive.finished && self.send.finished()
    }

    /// Frees the socket of what the guest has acknowledged.
    fn discard(&mut self) {
        let len = self.send.discardable();
        if len > 0 {
            match self.socket.discard(len) {
                Ok(gone) => self.readable |= self.send.discarded(gone),
                // The next peek tells.
                Err(SocketError::Failed(errno)) => self.error = self.error.or(Some(errno)),
                Err(SocketError::WouldBlock) => {}
            }
        }
    }

    /// Sends what the socket has and the guest's window takes.
    fn pump<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<Rest, End> {
        for _ in 0..BUDGET {
            let again = self.send.next.before(self.send.max);
            if self.send.fin.is_none_or(|fin| self.send.next.before(fin)) {
                if !self.readable && !again {
                    return Ok(Rest::Nothing);
                }
                let Some((seq, len)) = self.next_run(ctx.link) else { return Ok(Rest::Nothing) };
                match self.send_data(seq, len, ctx) {
                    Err(Full) => return Ok(Rest::LinkFull),
                    Ok(Ok(0)) => self.send.fin = Some(seq),
                    Ok(Ok(sent)) => {
                        self.send.sent(seq + sent, ctx.now);
                        // Less than asked for: there is no more, unless the end was announced, or the socket
                        // stopped before the urgent byte. If that is not known yet, it is about to be reported.
                        let stopped = self.send.is_urgent(seq + sent);
                        self.readable &= sent == len || self.read_closed || stopped;
                    }
                    Ok(Err(SocketError::WouldBlock)) => {
                        self.readable = false;
                        return Ok(Rest::Nothing);
                    }
                    Ok(Err(SocketError::Failed(errno))) => return Err(End::SocketFailed(errno)),
                }
            } else {
                return self.pump_fin(ctx);
            }
        }
        Ok(Rest::More)
    }

    fn pump_fin<H: Host<Tcp = S>, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) -> Result<Rest, End> {
        let Some(fin) = self.send.fin else { return Ok(Rest::Nothing) };
        if self.send.next != fin || !fin.before(self.send.edge()) || self.error.is_some() {
            return Ok(Rest::Nothing);
        }
        if self.send_control(fin, Flags::FIN | Flags::ACK, ctx).is_err() {
            return Ok(Rest::LinkFull);
        }
        self.send.sent(fin + 1, ctx.now);
        Ok(Rest::Nothing)
    }

    /// Where the next data to send starts and how much the guest's window lets through; none for nothing.
    fn next_run<L: Link>(&mut self, link: &L) -> Option<(Seq, u32)> {
        let (seq, mut end) = (self.send.next, self.send.edge());
        if let Some(fin) = self.send.fin {
            end = end.min(fin);
        }
        if !seq.before(end) {
            return None;
        }
        let size = u32::from(self.segment_size(link));
        let room = (end - seq).min(self.largest_run(seq, link));
        // Whole segments, unless the window has room for less than one.
        let len = if room > size { room - room % size } else { room };
        // A sliver of a window is not worth a segment while others are in flight (RFC 9293 §3.8.6.2.1).
        (len >= size || !self.send.in_flight() || seq.before(self.send.max))
            .then_some((seq, len))
            .or_else(|| self.send.fin.is_some().then_some((seq, len)))
    }

    /// Payload of one segment, in bytes; a super-frame is cut into segments of this.
    fn segment_size<L: Link>(&self, link: &L) -> u16 {
        self.send.mss.min(link.largest_segment())
    }

    /// Most payload of one frame at `seq`, in bytes. Where the frame has an urgent pointer, a single segment: the pointer
    /// would be wrong in the others.
    fn largest_run<L: Link>(&self, seq: Seq, link: &L) -> u32 {
        if self.send.urgent_pointer(seq) > 0 { self.segment_size(link).into() } else { MAX_PAYLOAD }
    }

    /// Sends up to `len` bytes from `seq` on. Returns how many there were; zero is the end of the stream.
    fn send_data<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        seq: Seq,
        len: u32,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<Result<u32, SocketError>, Full> {
        let fields = self.fields(seq, Flags::ACK);
        let offset = seq - self.send.base;
        let size = self.segment_size(ctx.link);
        let socket = &mut self.socket;
        let sent = emit::with_payload(&self.ends, fields, len as usize, size, ctx, |room, fields| {
            match socket.peek(offset, room) {
                Ok(0) => Err(None),
                Ok(peeked) => {
                    if peeked < len as usize {
                        fields.flags |= Flags::PSH;
                    }
                    Ok(peeked)
                }
                Err(error) => Err(Some(error)),
            }
        })?;
        Ok(match sent {
            Ok(len) => {
                self.was_told();
                Ok(len as u32)
            }
            Err(None) => Ok(0),
            Err(Some(error)) => Err(error),
        })
    }

    /// Sends a segment without payload.
    pub(super) fn send_control<H: Host, L: Link>(
        &mut self,
        seq: Seq,
        flags: Flags,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), Full> {
        let fields = self.fields(seq, flags);
        emit::bare(&self.ends, fields, ctx)?;
        self.was_told();
        Ok(())
    }

    /// Tells the guest that the connection is no more.
    pub(super) fn send_reset<H: Host, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) {
        // Before the guest's SYN is here there is nothing to acknowledge.
        let flags = if self.phase == Phase::SynSent { Flags::RST } else { Flags::RST | Flags::ACK };
        self.send_control(self.send.acceptable_seq(), flags, ctx).ok();
    }

    fn send_ack<H: Host, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) -> Result<(), Full> {
        self.send_control(self.send.acceptable_seq(), Flags::ACK, ctx)
    }

    fn fields(&mut self, seq: Seq, flags: Flags) -> Fields {
        let sack = if self.send.sack { self.receive.sack_blocks() } else { SackBlocks::default() };
        let options = Options { sack, ..Options::default() };
        let window = self.receive.tell_window();
        let urgent = self.send.urgent_pointer(seq);
        Fields { seq, ack: self.receive.next, flags, window, urgent, class: self.peer_class, options }
    }

    fn was_told(&mut self) {
        self.receive.was_told();
        self.ack_at = None;
    }

    /// The connection's deadline was reached, one way or another.
    pub(super) fn on_deadline<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        id: FlowId,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        if !self.deadline.reached(ctx.now, ctx.timers, id) {
            return Ok(());
        }
        if self.ack_at.is_some_and(|at| at <= ctx.now) {
            self.ack_at = None;
            self.receive.ack = AckDue::Now;
        }
        if self.send.retransmit_at.is_some_and(|at| at <= ctx.now) {
            self.send.retransmit_at = None;
            self.on_retransmission(ctx)?;
        }
        self.on_idle(ctx)
    }

    fn on_retransmission<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        if !self.send.in_flight() && !self.must_probe() {
            return Ok(());
        }
        let unanswered = self.send.on_timeout();
        match self.phase {
            Phase::Connecting => return Ok(()),
            Phase::SynSent | Phase::SynReceived => {
                let wait = syn_timeout(unanswered).ok_or(End::Abort)?;
                self.send_syn(ctx);
                self.send.retransmit_at = Some(ctx.now + wait);
                return Ok(());
            }
            Phase::Established => {}
        }
        if unanswered > MAX_UNANSWERED {
            return Err(End::Abort);
        }
        if self.send.window_closed() {
            self.probe_window(ctx)?;
        }
        self.send.restart_timer(ctx.now);
        Ok(())
    }

    /// Whether only an open window is missing to send more: not so behind a FIN that is acknowledged.
    fn must_probe(&self) -> bool {
        self.send.window_closed() && self.readable && !self.send.finished()
    }

    /// Sends one byte into a closed window, so that the guest tells when it is open again.
    fn probe_window<H: Host<Tcp = S>, L: Link<Memory = S::Memory>>(
        &mut self,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        let seq = self.send.una;
        if self.send.fin == Some(seq) {
            if self.send_control(seq, Flags::FIN | Flags::ACK, ctx).is_ok() {
                self.send.probed(seq + 1);
            }
            return Ok(());
        }
        match self.send_data(seq, 1, ctx) {
            Ok(Ok(0)) => self.send.fin = Some(seq),
            Ok(Ok(len)) => self.send.probed(seq + len),
            Ok(Err(SocketError::Failed(errno))) => return Err(End::SocketFailed(errno)),
            Ok(Err(SocketError::WouldBlock)) => self.readable = false,
            Err(Full) => {}
        }
        Ok(())
    }

    /// Probes a silent guest, and gives up on a connection that is dead on both sides (behaviour §6.9).
    fn on_idle<H: Host<Tcp = S>, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) -> Result<(), End> {
        if ctx.now >= pass_after(self.active, INACTIVITY) {
            return Err(End::Abort);
        }
        let silent_since = self.probed.map_or(self.active, |probed| probed.max(self.active));
        if self.phase == Phase::Established && ctx.now >= pass_after(silent_since, KEEP_ALIVE) {
            self.probed = Some(ctx.now);
            if !self.send.in_flight() {
                self.send_control(self.send.una - 1, Flags::ACK, ctx).ok();
            }
        }
        Ok(())
    }

    /// Sets the deadline by what is pending; to be called last after each step.
    pub(super) fn arm<H: Host<Tcp = S>, L: Link>(&mut self, id: FlowId, ctx: &mut Context<'_, H, L>) {
        if self.phase == Phase::Established
            && self.send.retransmit_at.is_none()
            && (self.send.in_flight() || self.must_probe())
        {
            self.send.restart_timer(ctx.now);
        }
        let silent_since = self.probed.map_or(self.active, |probed| probed.max(self.active));
        let idle = if self.phase == Phase::Established { KEEP_ALIVE } else { INACTIVITY };
        let dial = self.dial.as_ref().filter(|_| self.phase == Phase::Connecting).and_then(|dial| dial.due);
        let due = [self.ack_at, self.send.retransmit_at, dial, Some(pass_after(silent_since, idle))];
        self.deadline.set(due.into_iter().flatten().min(), ctx.timers, id);
    }
}

/// The second tick of a clock with this period behind `since`, so that one to two periods pass, and all
/// connections come up together.
fn pass_after(since: Instant, period: Duration) -> Instant {
    let period = period.as_micros() as u64;
    Instant::from_micros((since.as_micros() / period + 2) * period)
}
