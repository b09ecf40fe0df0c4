//! From the socket to the guest: sequence numbers in flight, the guest's window, acknowledgments.
//!
//! Bytes stay in the socket until the guest has acknowledged them, so this half keeps numbers only.

use alloc::boxed::Box;
use core::time::Duration;

use wire::{
    payload::Payload,
    tcp::{DEFAULT_MSS, Options, Segment, Seq},
};

use super::{recovery::Recovery, rto::RetransmissionTimeout};
use crate::timer::Instant;

/// Largest window of the guest that we make use of, in bytes (behaviour §12).
const MAX_WINDOW: u32 = 16 << 20;
/// After a timeout, what is sent before the next acknowledgment, in segments.
const RESTART_SEGMENTS: u32 = 4;
/// The socket-to-guest half of a connection.
#[derive(Debug)]
pub(super) struct Sender {
    /// Oldest sequence number not acknowledged by the guest.
    pub(super) una: Seq,
    /// Next sequence number to send; moves back to `una` after a timeout.
    pub(super) next: Seq,
    /// The one behind the highest ever sent.
    pub(super) max: Seq,
    /// Sequence number of the oldest byte in the socket.
    pub(super) base: Seq,
    /// The guest's window, scaled up, and the segment that told it.
    window: u32,
    window_seq: Seq,
    window_ack: Seq,
    scale: u8,
    /// The guest's maximum segment size, in bytes of payload.
    pub(super) mss: u16,
    /// The guest understands SACK.
    pub(super) sack: bool,
    /// Where the host's stream ends: the sequence number of our FIN.
    pub(super) fin: Option<Seq>,
    /// The peer's urgent byte, while it is in the socket.
    urgent: Option<Seq>,
    /// Loss, while there is some.
    pub(super) recovery: Option<Box<Recovery>>,
    pub(super) rto: RetransmissionTimeout,
    /// When to retransmit, or probe a closed window.
    pub(super) retransmit_at: Option<Instant>,
    /// Timeouts since the guest was last heard of.
    pub(super) unanswered: u8,
    /// A segment whose round trip is being timed.
    timed: Option<(Seq, Instant)>,
    /// After a timeout: bytes that may be in flight, growing until it does not matter.
    restart: Option<u32>,
}

impl Sender {
    /// A stream that starts with a SYN at `iss`.
    pub(super) fn new(iss: Seq) -> Self {
        Self {
            una: iss,
            next: iss,
            max: iss,
            base: iss + 1,
            window: 0,
            window_seq: Seq(0),
            window_ack: iss,
            scale: 0,
            mss: DEFAULT_MSS,
            sack: false,
            fin: None,
            urgent: None,
            recovery: None,
            rto: RetransmissionTimeout::default(),
            retransmit_at: None,
            unanswered: 0,
            timed: None,
            restart: None,
        }
    }

    /// Takes over what the guest's SYN says. `largest` is what fits a frame of the link's MTU.
    pub(super) fn on_syn(&mut self, segment: &Segment<'_, impl Payload>, options: &Options, largest: u16) {
        self.mss = options.mss.unwrap_or(DEFAULT_MSS).clamp(64, largest.max(64));
        self.scale = options.window_scale.unwrap_or(0);
        self.sack = options.sack_permitted;
        self.window = u32::from(segment.window()); // not scaled in a SYN
        self.window_seq = segment.seq();
    }

    /// Our SYN was acknowledged.
    pub(super) fn on_handshake_done(&mut self, now: Instant) {
        let retried = self.unanswered > 0;
        self.una = self.max;
        self.next = self.max;
        self.unanswered = 0;
        self.rto.progress();
        if let Some((_, sent)) = self.timed.take()
            && !retried
        {
            self.rto.measured(sent, now);
        }
        self.retransmit_at = None;
    }

    /// Takes the first scaled window, from the segment that ends the handshake.
    pub(super) fn take_window(&mut self, segment: &Segment<'_, impl Payload>) {
        self.window = (u32::from(segment.window()) << self.scale).min(MAX_WINDOW);
        self.window_seq = segment.seq();
        self.window_ack = segment.ack();
    }

    /// The right edge of what may be sent.
    pub(super) fn edge(&self) -> Seq {
        let window = self.restart.map_or(self.window, |restart| restart.min(self.window));
        self.una + window
    }

    /// The sequence number for a segment without data: one that the guest takes even if its window has shrunk.
    pub(super) fn acceptable_seq(&self) -> Seq {
        self.max.min(self.una + self.window.max(1))
    }

    /// Whether the guest's window is closed.
    pub(super) fn window_closed(&self) -> bool {
        self.window == 0
    }

    /// Whether something waits for the guest's acknowledgment.
    pub(super) fn in_flight(&self) -> bool {
        self.una != self.max
    }

    /// Whether everything including our FIN is acknowledged.
    pub(super) fn finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.una.after(fin))
    }

    /// Something up to `end` was sent.
    pub(super) fn sent(&mut self, end: Seq, now: Instant) {
        if end.after(self.max) {
            self.max = end;
            if self.timed.is_none() {
                self.timed = Some((end, now));
            }
        }
        self.next = self.next.max(end);
        if self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.rto.duration());
        }
    }

    /// A probe of a closed window, up to `end`, was sent: the guest may take it, but is not expected to.
    pub(super) fn probed(&mut self, end: Seq) {
        self.max = self.max.max(end);
    }

    /// Takes in the acknowledgment and window of a segment. False if it acknowledges what was never sent: the
    /// segment is to be answered and otherwise ignored (RFC 9293 §3.10.7.4).
    pub(super) fn on_ack(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        options: &Options,
        now: Instant,
    ) -> bool {
        let ack = segment.ack();
        if ack.after(self.max) {
            return false;
        }
        self.unanswered = 0;
        if ack.before(self.una) {
            return true; // an old segment
        }
        let advanced = ack - self.una;
        let window = (u32::from(segment.window()) << self.scale).min(MAX_WINDOW);
        let duplicate = advanced == 0
            && self.in_flight()
            && segment.payload.is_empty()
            && segment.sequence_len() == 0
            && window == self.window;
        if advanced > 0 {
            self.advance(ack, advanced, now);
        }
        self.update_window(segment, window, advanced);
        self.note_loss(options, duplicate);
        true
    }

    fn advance(&mut self, ack: Seq, advanced: u32, now: Instant) {
        self.una = ack;
        self.next = self.next.max(ack);
        self.rto.progress();
        if let Some((seq, sent)) = self.timed
            && !ack.before(seq)
        {
            self.rto.measured(sent, now);
            self.timed = None;
        }
        self.restart =
            self.restart.map(|bytes| bytes.saturating_add(2 * advanced)).filter(|&bytes| bytes < MAX_WINDOW);
        self.retransmit_at = self.in_flight().then(|| now + self.rto.duration());
    }

    fn update_window(&mut self, segment: &Segment<'_, impl Payload>, window: u32, advanced: u32) {
        let seq = segment.seq();
        // An acknowledgment of something new has the newest window, whatever its sequence number: it may be on
        // a retransmission. A keep-alive comes one byte early.
        let newer = advanced > 0
            || self.window_seq.before(seq)
            || (self.window_seq == seq && !segment.ack().before(self.window_ack))
            || (self.window_seq == seq + 1 && window > self.window);
        if !newer {
            return;
        }
        if self.window == 0 && window > 0 {
            // Open again: what follows is no probe, and no longer waits like one.
            self.rto.progress();
            self.retransmit_at = None;
        }
        self.window = window;
        self.window_seq = self.window_seq.max(seq);
        self.window_ack = segment.ack();
        // The guest took window back: what lies outside is as good as not sent. Not for what its window
        // scale has rounded off, though.
        let rounding = 1 << self.scale;
        if self.next.after(self.una + self.window + (rounding - 1)) || self.window == 0 {
            self.next = self.next.min(self.una + self.window);
            self.timed = None;
        }
    }

    fn note_loss(&mut self, options: &Options, duplicate: bool) {
        // With SACK, a duplicate that tells of no hole only says that something arrived twice.
        let duplicate = duplicate && !self.sack;
        if self.recovery.is_none() && !duplicate && options.sack.as_slice().is_empty() {
            return;
        }
        let recovery = self.recovery.get_or_insert_default();
        recovery.on_ack(self.una, self.max, &options.sack, duplicate);
        if recovery.begin_if_lost(self.una, self.max, u32::from(self.mss)) {
            self.timed = None; // Karn's algorithm
        } else if recovery.is_over() || self.una == self.max {
            self.recovery = None;
        }
    }

    /// The retransmission time has come, with data outstanding: start over from the oldest byte.
    /// Returns how often in a row the guest did not answer.
    pub(super) fn on_timeout(&mut self) -> u8 {
        self.timed = None;
        self.rto.expired();
        self.unanswered = self.unanswered.saturating_add(1);
        if !self.window_closed() {
            // If that does not help, the guest may have thrown away what it told of (RFC 2018 §8).
            let trusted = self.recovery.as_mut().filter(|_| self.unanswered == 1 && self.sack);
            match trusted.and_then(|recovery| recovery.restart(self.una, self.max)) {
                Some(next) => self.next = next,
                None => {
                    self.next = self.una;
                    self.recovery = None;
                }
            }
            self.restart = Some(RESTART_SEGMENTS * u32::from(self.mss).max(1));
        }
        self.unanswered
    }

    /// Keeps the clock running after a timeout.
    pub(super) fn restart_timer(&mut self, now: Instant) {
        self.retransmit_at = Some(now + self.rto.duration());
    }

    /// How many acknowledged bytes the socket still has. They go at once: even a few may hold a large buffer of the
    /// kernel, and with it the peer's window.
    pub(super) fn discardable(&self) -> u32 {
        let end = self.fin.map_or(self.una, |fin| fin.min(self.una));
        if end.after(self.base) { end - self.base } else { 0 }
    }

    /// `len` bytes were discarded. True if the oldest byte in the socket is the urgent one by now: it may not have been
    /// given before (see [`TcpSocket::peek`](crate::host::TcpSocket::peek)).
    pub(super) fn discarded(&mut self, len: u32) -> bool {
        self.base += len;
        self.urgent = self.urgent.filter(|urgent| !urgent.before(self.base));
        self.is_urgent(self.base)
    }

    /// The peer's urgent byte is `offset` bytes after the oldest one in the socket. False if that is known.
    pub(super) fn note_urgent(&mut self, offset: u32) -> bool {
        let urgent = Some(self.base + offset);
        core::mem::replace(&mut self.urgent, urgent) != urgent
    }

    /// Whether the peer's urgent byte is at `seq`.
    pub(super) fn is_urgent(&self, seq: Seq) -> bool {
        self.urgent == Some(seq)
    }

    /// The urgent pointer for a segment at `seq`, in bytes: it points to the byte after the urgent one. Zero if that byte
    /// lies before the segment, or too far ahead for 16 bits.
    pub(super) fn urgent_pointer(&self, seq: Seq) -> u16 {
        let ahead = self.urgent.filter(|urgent| !urgent.before(seq)).map(|urgent| urgent + 1 - seq);
        ahead.and_then(|ahead| u16::try_from(ahead).ok()).unwrap_or(0)
    }
}

/// How often a segment is retransmitted without any answer before the connection is given up; with
/// doubling timeouts that is minutes.
pub(super) const MAX_UNANSWERED: u8 = 10;

/// When to repeat a SYN or SYN,ACK that was sent `tries` times: each second first, then with doubling gaps
/// (behaviour §6.2.2). None after the last.
pub(super) fn syn_timeout(tries: u8) -> Option<Duration> {
    const LINEAR: u8 = 4;
    const TOTAL: u8 = 10;
    (tries <= TOTAL).then(|| Duration::from_secs(1 << tries.saturating_sub(LINEAR)))
}
