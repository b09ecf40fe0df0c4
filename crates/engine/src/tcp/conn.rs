//! One connection: a guest endpoint on one side, a socket on the other.

use core::time::Duration;

use wire::{
    payload::Payload,
    tcp::{Flags, Options, SackBlocks, Segment, Seq},
};
use zerocopy::Unalign;

use super::{
    emit::{self, Fields, Sent, Size},
    queue::ChunkPool,
    rare::Rare,
    receive::{AckDue, Receiver},
    resets::Reset,
    send::{Ack, MAX_UNANSWERED, Run, Sender},
    socket::Socket,
};
use crate::{
    context::{Context, World},
    events::Abort,
    flow::{Endpoints, Ends, FlowId, Keyed},
    host::{Errno, Readiness, SocketError, TcpSocket},
    link::{Full, Link},
    memory::{PayloadOf, RoomOf},
    timer::{Deadline, Instant, Second},
};

/// Maximum number of super-frames sent for one connection in one turn.
const BUDGET: usize = 8;
/// How long an acknowledgment may wait for data to carry it.
const ACK_DELAY: Duration = Duration::from_millis(4);
/// A connection that was silent for one to two of these periods is probed (behaviour §6.9).
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection without any activity for one to two of these periods is ended (behaviour §6.9).
const INACTIVITY: Duration = Duration::from_secs(7200);

/// How far the handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest has sent a SYN, and the socket connects.
    Connecting,
    /// The socket is connected, and the guest was sent a SYN,ACK.
    SynReceived,
    /// The socket was accepted, and the guest was sent a SYN.
    SynSent,
    /// Both sides are connected. The guest's bytes are held until they contain a name that the rules allow.
    Checking,
    /// Both sides are connected. The phase lasts until both streams have ended.
    Established,
    /// The rules refuse the guest's first bytes. The guest gets a TLS alert or nothing, then a FIN, and the connection
    /// ends.
    Refused,
}

/// Why a connection ends before both of its streams have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The connection is given up. Both sides are reset.
    Abort(Abort),
    /// The rules refuse the guest's first bytes. Both sides are reset.
    Refused,
    /// The rules were replaced, and the new rules deny the connection. Both sides are reset.
    Forbidden,
    /// The program's user has ended the connection. Both sides are reset.
    Requested,
    /// The guest has reset the connection. The socket is reset.
    GuestReset,
    /// The socket has failed. The guest gets a RST or an ICMP error.
    SocketFailed(Errno),
}

/// The result of a connection's turn to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is nothing to do until the next event.
    Idle,
    /// There is more to send now, after the turns of other connections.
    MoreToSend,
    /// There is more to send, but the connection must wait for tokens of the rate limit.
    NeedsTokens,
    /// The link is full.
    LinkFull,
    /// Both streams have ended, and both sides have acknowledged this.
    Finished,
}

/// Whether the guest has acknowledged the SYN,ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Handshake {
    /// This segment acknowledges it.
    Done,
    /// It is not acknowledged yet. The caller drops the rest of the segment.
    Waits,
}

pub(super) struct Connection<W: World> {
    pub(super) ends: Ends,
    pub(super) socket: Socket<W>,
    pub(super) phase: Phase,
    pub(super) send: Sender,
    pub(super) receive: Receiver,
    /// Whether the socket may have bytes that were not peeked yet.
    readable: bool,
    /// Whether the socket has reported the end of the stream. Then the end may follow a short read without another
    /// event.
    read_closed: bool,
    /// Whether the peer's FIN has arrived, so that the socket receives no more bytes.
    peer_closed: bool,
    /// The socket's error, without alignment: five bytes instead of eight. The bytes that the socket still has are sent
    /// to the guest first.
    error: Option<Unalign<Errno>>,
    /// Traffic classes without ECN bits: `class` is that of the guest's segments, and is set on the socket.
    /// `peer_class` is that of the segments to the guest.
    pub(super) class: u8,
    pub(super) peer_class: u8,
    /// Whether keep-alive was enabled on the socket.
    keep_alive: bool,
    /// Whether the connection is on the table's list of connections to handle at the end of the round.
    pub(super) touched: bool,
    /// Whether the connection is on the table's list of connections with more to send.
    pub(super) runnable: bool,
    /// Whether the connection is on the table's list of connections that wait for tokens, for each direction.
    pub(super) awaits_turn_to_host: bool,
    pub(super) awaits_turn_to_guest: bool,
    /// The time of the last segment or bytes of either side.
    pub(super) active: Instant,
    /// The time of the last keep-alive probe.
    probed: Option<Second>,
    pub(super) deadline: Deadline,
    /// Whether the guest began the connection.
    pub(super) is_guests: bool,
    pub(super) rare: Rare,
}

impl<W: World> Keyed for Connection<W> {
    type Key = Ends;
    fn key(&self) -> Ends {
        self.ends
    }
}

impl<W: World> Connection<W> {
    pub(super) fn new(
        ends: Endpoints,
        socket: Socket<W>,
        phase: Phase,
        send: Sender,
        receive: Receiver,
        now: Instant,
    ) -> Self {
        Self {
            ends: ends.into(),
            socket,
            phase,
            send,
            receive,
            readable: false,
            read_closed: false,
            peer_closed: false,
            error: None,
            class: 0,
            peer_class: 0,
            keep_alive: false,
            touched: false,
            runnable: false,
            awaits_turn_to_host: false,
            awaits_turn_to_guest: false,
            active: now,
            probed: None,
            deadline: Deadline::default(),
            is_guests: false,
            rare: Rare::default(),
        }
    }

    /// Handles a segment of the guest that belongs to this connection.
    pub(super) fn on_segment(
        &mut self,
        segment: &Segment<'_, PayloadOf<'_, W::Memory>>,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        self.active = cx.now;
        match self.phase {
            Phase::Connecting => self.while_connecting(segment),
            Phase::SynSent => self.while_syn_sent(segment, cx),
            Phase::SynReceived => match self.while_syn_received(segment, cx)? {
                Handshake::Done if self.phase == Phase::Checking => self.while_checking(segment, pool, cx),
                Handshake::Done => self.while_established(segment, pool, cx),
                Handshake::Waits => Ok(()),
            },
            Phase::Established => self.while_established(segment, pool, cx),
            Phase::Checking => self.while_checking(segment, pool, cx),
            Phase::Refused => self.while_refused(segment, cx.now),
        }
    }

    /// Sets the socket's traffic class to that of the guest's segments.
    pub(super) fn set_class(&mut self, class: u8) {
        if core::mem::replace(&mut self.class, class) != class {
            self.socket.set_traffic_class(class);
        }
    }

    pub(super) fn while_established(
        &mut self,
        segment: &Segment<'_, PayloadOf<'_, W::Memory>>,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        let flags = segment.flags();
        let (seq, len) = (segment.seq(), segment.sequence_len());
        if !self.receive.acceptable(seq, len) {
            self.on_outside(segment, cx.now);
            return Ok(());
        }
        if flags.contains(Flags::RST) {
            return Err(End::GuestReset);
        }
        if flags.contains(Flags::SYN) {
            self.receive.ack = AckDue::Now; // RFC 5961 §4: challenge ACK
            return Ok(());
        }
        if !flags.contains(Flags::ACK) {
            return Ok(());
        }
        if self.on_ack(segment, cx.now) == Ack::OfUnsent {
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
                return Err(End::SocketFailed(errno.get()));
            }
            let in_order = seq == self.receive.next;
            self.receive
                .accept(seq, segment.payload, fin, &mut self.socket, pool)
                .or_else(|errno| self.fail(errno))?;
            if !in_order && self.receive.ack == AckDue::Now && !segment.payload.is_empty() {
                // Each out-of-order segment gets its own acknowledgment, since the guest counts duplicate
                // acknowledgments.
                self.send_ack(cx).ok();
            }
        }
        Ok(())
    }

    /// Handles a segment outside the window: a keep-alive, an old duplicate, or a window probe (RFC 9293 §3.10.7.4).
    pub(super) fn on_outside(&mut self, segment: &Segment<'_, impl Payload>, now: Instant) {
        let flags = segment.flags();
        if flags.contains(Flags::RST) {
            return;
        }
        self.receive.ack = AckDue::Now;
        let ends_before = !(segment.seq() + segment.sequence_len()).after(self.receive.next);
        if ends_before && flags.contains(Flags::ACK) && !flags.contains(Flags::SYN) {
            if segment.payload.len() <= 1 && !self.keep_alive && segment.seq() + 1 == self.receive.next {
                self.keep_alive = true; // the guest checks whether the peer is alive
                self.socket.keep_alive();
            }
            let _ = self.on_ack(segment, now); // acknowledgment and window of the segment are valid
        }
    }

    /// Handles a segment's acknowledgment. If it acknowledges data that was never sent, sends an acknowledgment and
    /// drops the segment (RFC 9293 §3.10.7.4).
    pub(super) fn on_ack(&mut self, segment: &Segment<'_, impl Payload>, now: Instant) -> Ack {
        let options =
            if segment.options.is_empty() { Options::default() } else { Options::parse(segment.options) };
        let ack = self.send.on_ack(segment, &options, now);
        if ack == Ack::OfUnsent {
            self.receive.ack = AckDue::Now;
        }
        ack
    }

    /// Handles the readiness of the socket.
    pub(super) fn on_ready(
        &mut self,
        readiness: Readiness,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        if readiness.readable {
            self.active = cx.now;
        }
        self.readable |= readiness.readable || readiness.read_closed || readiness.error;
        self.read_closed |= readiness.read_closed || readiness.error;
        self.peer_closed |= readiness.read_closed && !readiness.error;
        if readiness.urgent {
            self.find_urgent_mark();
        }
        match self.phase {
            Phase::Connecting => return self.on_connected(readiness, cx),
            Phase::Refused => return Ok(()),
            _ => {}
        }
        if readiness.error
            && let Some(errno) = self.socket.take_error()
        {
            return self.fail(errno);
        }
        // If there is a check, the guest's bytes are held, even during the handshake.
        if !self.has_failed() && self.rare.check().is_none() && (readiness.writable || readiness.error) {
            self.receive.on_writable(&mut self.socket, pool).or_else(|errno| self.fail(errno))?;
        }
        Ok(())
    }

    /// Finds the peer's urgent byte, and announces it to the guest. The segments before the urgent byte have its urgent
    /// pointer, even if the guest's window is closed (RFC 9293 §3.8.5).
    fn find_urgent_mark(&mut self) {
        if let Some(offset) = self.socket.urgent_mark()
            && self.send.note_urgent(offset)
            && self.phase == Phase::Established
        {
            self.receive.ack = AckDue::Now;
        }
    }

    /// Handles the failure of the socket. The bytes that it received before the failure are sent to the guest first.
    /// During the handshake, there are none, and the connection ends at once.
    pub(super) fn fail(&mut self, errno: Errno) -> Result<(), End> {
        self.readable = true;
        self.note_error(errno);
        if self.phase == Phase::Established { Ok(()) } else { Err(End::SocketFailed(errno)) }
    }

    fn note_error(&mut self, errno: Errno) {
        self.error = self.error.or(Some(Unalign::new(errno)));
    }

    /// Whether the socket has failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// Sends the segments that are due, and then sets the deadline. With a rate limit, at most `granted` new bytes are
    /// sent to the guest.
    pub(super) fn send_due(
        &mut self,
        id: FlowId,
        granted: u32,
        cx: &mut Context<'_, W>,
    ) -> Result<Turn, End> {
        let turn = self.send_data_and_ack(granted, cx)?;
        if turn != Turn::Finished {
            self.set_deadline(id, cx);
        }
        Ok(turn)
    }

    fn send_data_and_ack(&mut self, granted: u32, cx: &mut Context<'_, W>) -> Result<Turn, End> {
        let mut turn = Turn::Idle;
        if self.carries() {
            self.discard();
            turn = self.fill_holes(cx)?;
            if turn == Turn::Idle {
                turn = self.pump(granted, cx)?;
            }
        } else if self.phase == Phase::Refused {
            turn = self.send_farewell(cx);
        }
        if self.receive.ack == AckDue::Now && self.send_ack(cx).is_err() {
            return Ok(Turn::LinkFull);
        }
        match self.error {
            // The guest has all bytes that were received before the error.
            Some(errno) if self.send.delivered() => Err(End::SocketFailed(errno.get())),
            _ if self.is_finished() => Ok(Turn::Finished),
            _ => Ok(turn),
        }
    }

    /// Whether bytes of the socket may be sent to the guest.
    fn carries(&self) -> bool {
        match self.phase {
            Phase::Established => true,
            Phase::Checking => self.rare.check().is_some_and(|check| check.server_first()),
            _ => false,
        }
    }

    /// Whether both streams have ended, and both sides have acknowledged this.
    pub(super) fn is_finished(&self) -> bool {
        self.receive.finished() && self.send.finished()
    }

    /// Discards from the socket the bytes that the guest has acknowledged.
    fn discard(&mut self) {
        let len = self.send.discardable();
        if len > 0 {
            match self.socket.discard(len) {
                Ok(gone) => self.readable |= self.send.discarded(gone),
                // The next peek returns the error.
                Err(SocketError::Failed(errno)) => self.note_error(errno),
                Err(SocketError::WouldBlock) => {}
            }
        }
    }

    /// Retransmits the segments that the guest has reported as missing.
    fn fill_holes(&mut self, cx: &mut Context<'_, W>) -> Result<Turn, End> {
        for _ in 0..BUDGET {
            let Some(run) = self.send.next_hole(cx.link.largest_segment()) else { return Ok(Turn::Idle) };
            match self.send_run(run, cx) {
                Sent::Bytes(len) => self.send.repaired(run.seq + len),
                Sent::LinkFull => return Ok(Turn::LinkFull),
                Sent::End | Sent::Nothing => return Ok(Turn::Idle),
                Sent::Failed(errno) => {
                    self.fail(errno)?;
                    return Ok(Turn::Idle);
                }
            }
        }
        Ok(Turn::MoreToSend)
    }

    /// Sends the socket's bytes, as far as the guest's window allows. With a rate limit, at most `granted` new bytes.
    fn pump(&mut self, mut granted: u32, cx: &mut Context<'_, W>) -> Result<Turn, End> {
        let limited = self.is_limited_to_guest(cx);
        for _ in 0..BUDGET {
            let next = self.send.next_run(self.readable, cx.link.largest_segment());
            // After an error, the guest gets a reset instead of a FIN.
            let Some(run) = next.filter(|run| !run.fin || !self.has_failed()) else {
                return Ok(Turn::Idle);
            };
            let within = if limited { self.within_grant(run, granted, cx) } else { Some(run) };
            let Some(run) = within else { return Ok(Turn::NeedsTokens) };
            match self.send_run(run, cx) {
                Sent::Bytes(len) => {
                    if limited {
                        granted = self.spend_grant(Run { len, ..run }, granted, cx);
                    }
                    self.send.sent(run.seq + len, cx.now);
                    // A short read means that there are no more bytes. There are three exceptions: the end of the
                    // stream was announced, the socket stopped before the urgent byte, or at an error. If the urgent
                    // byte is not known yet, an event will report it.
                    let stopped = self.send.is_urgent(run.seq + len) || self.socket.has_error();
                    self.readable &= len == run.len || self.read_closed || stopped;
                }
                Sent::End => self.send.ends_at(run.seq),
                Sent::Nothing => {
                    self.readable = false;
                    return Ok(Turn::Idle);
                }
                Sent::LinkFull => return Ok(Turn::LinkFull),
                Sent::Failed(errno) => return Err(End::SocketFailed(errno)),
            }
        }
        Ok(Turn::MoreToSend)
    }

    /// Sends a part of the host's stream. If the socket has fewer bytes, sends those. If they are known to be the last
    /// bytes of the stream and fit in one segment, the segment has the FIN, too.
    pub(super) fn send_run(&mut self, run: Run, cx: &mut Context<'_, W>) -> Sent {
        if run.fin {
            return match self.send_control(run.seq, Flags::FIN | Flags::ACK, cx) {
                Ok(()) => Sent::Bytes(1),
                Err(Full) => Sent::LinkFull,
            };
        }
        let fields = self.fields(run.seq, Flags::ACK);
        let offset = self.send.offset(run.seq);
        let size =
            Size { frame: run.len as usize, segment: self.send.segment_size(cx.link.largest_segment()) };
        // After an error, the guest gets a reset instead of a FIN.
        let may_end = self.peer_closed && !self.has_failed() && !self.send.has_end();
        let socket = &mut self.socket;
        let mut fin = false;
        let peek = |room: RoomOf<'_, W::Memory>, fields: &mut Fields| match socket.peek(offset, room) {
            Ok(0) => Sent::End,
            Ok(peeked) => {
                if peeked < run.len as usize {
                    fields.flags |= Flags::PSH;
                    fin = may_end
                        && peeked <= usize::from(size.segment)
                        && socket.unread() == Some(offset + peeked as u32);
                    fields.flags.set(Flags::FIN, fin);
                }
                Sent::Bytes(peeked as u32)
            }
            Err(SocketError::WouldBlock) => Sent::Nothing,
            Err(SocketError::Failed(errno)) => Sent::Failed(errno),
        };
        let len = match emit::with_payload(&self.ends, fields, size, peek, cx) {
            Sent::Bytes(len) => len,
            not_sent => return not_sent,
        };
        self.ack_sent();
        if fin {
            self.send.ends_at(run.seq + len);
        }
        Sent::Bytes(len + u32::from(fin))
    }

    /// Sends a segment without payload.
    pub(super) fn send_control(
        &mut self,
        seq: Seq,
        flags: Flags,
        cx: &mut Context<'_, W>,
    ) -> Result<(), Full> {
        let fields = self.fields(seq, flags);
        emit::bare(&self.ends, fields, cx)?;
        self.ack_sent();
        Ok(())
    }

    /// The RST to the guest.
    pub(super) fn reset(&self) -> Reset {
        // Before the guest has sent a SYN, there is nothing to acknowledge.
        let (flags, ack) = if self.phase == Phase::SynSent {
            (Flags::RST, Seq(0))
        } else {
            (Flags::RST | Flags::ACK, self.receive.next)
        };
        Reset { ends: self.ends, seq: self.send.acceptable_seq(), ack, flags, class: self.peer_class }
    }

    fn send_ack(&mut self, cx: &mut Context<'_, W>) -> Result<(), Full> {
        self.send_control(self.send.acceptable_seq(), Flags::ACK, cx)
    }

    pub(super) fn fields(&mut self, seq: Seq, flags: Flags) -> Fields {
        let sack =
            if self.send.guest_has_sack() { self.receive.sack_blocks() } else { SackBlocks::default() };
        let options = Options { sack, ..Options::default() };
        let window = self.receive.advertise_window();
        let urgent = self.send.urgent_pointer(seq);
        Fields { seq, ack: self.receive.next, flags, window, urgent, class: self.peer_class, options }
    }

    /// Notes that a segment with an acknowledgment was sent.
    pub(super) fn ack_sent(&mut self) {
        self.receive.ack_sent();
    }

    /// Handles all timers of the connection that have expired.
    pub(super) fn on_deadline(
        &mut self,
        id: FlowId,
        pool: &mut ChunkPool,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        if !self.deadline.reached(cx.now, cx.timers, id) {
            return Ok(());
        }
        if self.receive.ack == AckDue::Delayed {
            self.receive.ack = AckDue::Now;
        }
        if self.send.take_timeout(cx.now) {
            self.on_retransmission(cx)?;
        }
        self.on_check_deadline(pool, cx)?;
        self.on_idle(cx)
    }

    fn on_retransmission(&mut self, cx: &mut Context<'_, W>) -> Result<(), End> {
        if !self.send.awaits(self.readable) {
            return Ok(());
        }
        let unanswered = self.send.on_timeout();
        match self.phase {
            Phase::Connecting => return Ok(()),
            Phase::SynSent | Phase::SynReceived => {
                self.send.schedule_syn(unanswered, cx.now).ok_or(End::Abort(Abort::Silent))?;
                self.send_syn(cx);
                return Ok(());
            }
            Phase::Established | Phase::Checking | Phase::Refused => {}
        }
        if unanswered > MAX_UNANSWERED {
            return Err(End::Abort(Abort::Silent));
        }
        if self.send.window_closed() && self.carries() {
            self.probe_window(cx)?;
        }
        self.send.restart_timer(cx.now);
        Ok(())
    }

    /// Sends a window probe of one byte. The guest's answer shows whether the window is open again.
    fn probe_window(&mut self, cx: &mut Context<'_, W>) -> Result<(), End> {
        let run = self.send.probe();
        match self.send_run(run, cx) {
            Sent::Bytes(len) => self.send.probed(run.seq + len),
            Sent::End => self.send.ends_at(run.seq),
            Sent::Nothing => self.readable = false,
            Sent::LinkFull => {}
            Sent::Failed(errno) => return Err(End::SocketFailed(errno)),
        }
        Ok(())
    }

    /// Probes a silent guest, and ends a connection that is dead on both sides (behaviour §6.9).
    fn on_idle(&mut self, cx: &mut Context<'_, W>) -> Result<(), End> {
        if cx.now >= second_tick(self.active, INACTIVITY) {
            return Err(End::Abort(Abort::Idle));
        }
        if self.phase == Phase::Established && cx.now >= second_tick(self.silent_since(), KEEP_ALIVE) {
            self.probed = Some(Second::of(cx.now));
            if !self.send.in_flight() {
                self.send_control(self.send.keep_alive_seq(), Flags::ACK, cx).ok();
            }
        }
        Ok(())
    }

    /// The time since which the connection has been silent: neither side has sent anything, and the guest was not
    /// probed.
    fn silent_since(&self) -> Instant {
        self.probed.map_or(self.active, |probed| self.active.max(probed.start()))
    }

    /// Sets the deadline to the earliest time at which a timer of the connection expires.
    fn set_deadline(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        if self.carries() {
            self.send.start_timer_if_due(self.readable, cx.now);
        }
        let idle = if self.phase == Phase::Established { KEEP_ALIVE } else { INACTIVITY };
        let of_phase = match self.phase {
            Phase::Connecting => self.rare.dial().and_then(|dial| dial.due),
            Phase::Checking | Phase::Refused => self.rare.check().and_then(|check| check.until),
            _ => None,
        };
        // An acknowledgment that is already delayed is not delayed again.
        let ack_at = (self.receive.ack == AckDue::Delayed).then(|| {
            let latest = cx.now + ACK_DELAY;
            self.deadline.due().map_or(latest, |due| due.min(latest))
        });
        let due = [ack_at, self.send.timeout(), of_phase, Some(second_tick(self.silent_since(), idle))];
        self.deadline.set(due.into_iter().flatten().min(), cx.timers, id);
    }
}

/// The second tick after `since` of a clock with this period: one to two periods after `since`. So the deadlines of all
/// connections expire together, and one wake-up serves all of them. The period is a number of whole [seconds](Second).
fn second_tick(since: Instant, period: Duration) -> Instant {
    let period = period.as_micros() as u64;
    Instant::from_micros((since.as_micros() / period + 2) * period)
}

#[cfg(test)]
mod tests {
    use core::mem::size_of;

    use super::*;
    use crate::testkit::link::{Kept, Virtual};

    /// There may be ten thousands of connections. What few of them need belongs to [`Rare`], or to a box of its own.
    #[test]
    fn a_connection_is_small() {
        type Connected = Connection<Virtual<Kept>>;
        assert!(
            size_of::<Connected>() - size_of::<Socket<Virtual<Kept>>>() <= 216,
            "{}",
            size_of::<Connected>()
        );
    }
}
