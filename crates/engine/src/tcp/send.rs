//! The direction from the socket to the guest: sequence numbers in flight, the guest's window, acknowledgments.
//!
//! Bytes stay in the socket until the guest has acknowledged them, so this half stores only sequence numbers.

use core::{num::NonZeroU32, time::Duration};

use wire::{
    payload::Payload,
    tcp::{DEFAULT_MSS, Options, Segment, Seq},
};

use super::{marks::Mark, recovery::Recovery, rto::RetransmissionTimeout};
use crate::{allocation::Boxed, timer::Instant};

/// Maximum number of bytes of the guest's window that are used (behaviour §12).
const MAX_WINDOW: u32 = 16 << 20;
/// After a timeout, the number of segments that are sent before the next acknowledgment.
const RESTART_SEGMENTS: u32 = 4;
/// Maximum length of the payload of one super-frame, in bytes: the maximum IP length without the longest headers.
const MAX_PAYLOAD: u32 = 65535 - 60 - 40;

/// A part of the host's stream that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The first sequence number.
    pub(super) seq: Seq,
    /// The length in sequence space: at most this many bytes, or one for the FIN.
    pub(super) len: u32,
    /// Whether the part is the FIN alone, without data.
    pub(super) fin: bool,
}

/// The data that an acknowledgment of the guest covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Ack {
    /// Data that was sent.
    OfSent,
    /// Data that was never sent.
    OfUnsent,
}

/// The socket-to-guest half of a connection.
#[derive(Debug)]
pub(super) struct Sender {
    /// Oldest sequence number that the guest has not acknowledged.
    una: Seq,
    /// Next sequence number to send. After a timeout, it moves back to `una`.
    next: Seq,
    /// The sequence number after the highest one that was sent.
    max: Seq,
    /// Sequence number of the oldest byte in the socket.
    base: Seq,
    /// Sequence number of the first byte of the stream.
    start: Seq,
    /// The guest's window in bytes, and the sequence number of the segment that advertised it.
    window: u32,
    window_seq: Seq,
    scale: u8,
    /// The guest's maximum segment size, in bytes of payload.
    mss: u16,
    /// Whether the guest understands SACK.
    sack: bool,
    /// The end of the host's stream: the sequence number of the FIN.
    fin: Mark,
    /// Sequence number of the peer's urgent byte, while this byte is in the socket.
    urgent: Mark,
    /// The state of loss recovery, if there is loss.
    recovery: Option<Boxed<Recovery>>,
    rto: RetransmissionTimeout,
    /// When to retransmit, or to probe a closed window.
    retransmit_at: Option<Instant>,
    /// Number of timeouts since the guest last answered.
    unanswered: u8,
    /// The time at which a segment was sent whose round trip is being timed, and the sequence number after that segment.
    timed_at: Option<Instant>,
    timed_end: Seq,
    /// After a timeout, the maximum number of bytes in flight. It grows until the guest's window is smaller.
    restart: Option<NonZeroU32>,
}

impl Sender {
    /// The state of a stream that starts with a SYN at `iss`.
    pub(super) fn new(iss: Seq) -> Self {
        Self {
            una: iss,
            next: iss,
            max: iss,
            base: iss + 1,
            start: iss + 1,
            window: 0,
            window_seq: Seq(0),
            scale: 0,
            mss: DEFAULT_MSS,
            sack: false,
            fin: Mark::NONE,
            urgent: Mark::NONE,
            recovery: None,
            rto: RetransmissionTimeout::default(),
            retransmit_at: None,
            unanswered: 0,
            timed_at: None,
            timed_end: iss,
            restart: None,
        }
    }

    /// Applies the options and window of the guest's SYN. `largest` is the maximum payload of a segment within the
    /// link's MTU, in bytes.
    pub(super) fn on_syn(&mut self, segment: &Segment<'_, impl Payload>, options: &Options, largest: u16) {
        self.mss = options.mss.unwrap_or(DEFAULT_MSS).clamp(64, largest.max(64));
        self.scale = options.window_scale.unwrap_or(0);
        self.sack = options.sack_permitted;
        self.window = u32::from(segment.window()); // not scaled in a SYN
        self.window_seq = segment.seq();
    }

    /// Notes that the SYN was acknowledged.
    pub(super) fn on_handshake_done(&mut self, now: Instant) {
        let retried = self.unanswered > 0;
        self.una = self.max;
        self.next = self.max;
        self.unanswered = 0;
        self.rto.progress();
        if let Some(sent) = self.timed_at.take()
            && !retried
        {
            self.rto.measured(sent, now);
        }
        self.retransmit_at = None;
    }

    /// Applies the window of the segment that ends the handshake. It is the first scaled window.
    pub(super) fn take_window(&mut self, segment: &Segment<'_, impl Payload>) {
        self.window = self.window_of(segment);
        self.window_seq = segment.seq();
    }

    /// The right edge of the window that may be used.
    pub(super) fn edge(&self) -> Seq {
        let window = self.restart.map_or(self.window, |restart| restart.get().min(self.window));
        self.una + window
    }

    /// A sequence number for a segment without data. The guest accepts it even if its window has shrunk.
    pub(super) fn acceptable_seq(&self) -> Seq {
        self.max.min(self.una + self.window.max(1))
    }

    /// The sequence number of a keep-alive probe. The guest has already acknowledged it (RFC 9293 §3.8.4).
    pub(super) fn keep_alive_seq(&self) -> Seq {
        self.una - 1
    }

    /// The sequence number of the SYN, while it is unacknowledged.
    pub(super) fn syn_seq(&self) -> Seq {
        self.una
    }

    /// Whether `ack` acknowledges all that was sent.
    pub(super) fn is_all(&self, ack: Seq) -> bool {
        ack == self.max
    }

    /// Whether the guest's window is closed.
    pub(super) fn window_closed(&self) -> bool {
        self.window == 0
    }

    /// Whether the guest understands SACK.
    pub(super) fn guest_has_sack(&self) -> bool {
        self.sack
    }

    /// The distance of a byte from the oldest byte in the socket.
    pub(super) fn offset(&self, seq: Seq) -> u32 {
        seq - self.base
    }

    /// Whether data or a FIN is unacknowledged.
    pub(super) fn in_flight(&self) -> bool {
        self.una != self.max
    }

    /// Whether the guest must answer: with an acknowledgment, or by opening its window if the socket is `readable`.
    /// After the FIN is acknowledged, there is nothing to send and nothing to probe for.
    pub(super) fn awaits(&self, readable: bool) -> bool {
        self.in_flight() || self.window_closed() && readable && !self.finished()
    }

    /// Notes that the host's stream ends at `seq`, which is the sequence number of the FIN.
    pub(super) fn ends_at(&mut self, seq: Seq) {
        self.fin = seq.into();
    }

    /// Whether the end of the host's stream is known.
    pub(super) fn has_end(&self) -> bool {
        self.fin != Mark::NONE
    }

    /// Whether the stream has ended, and the guest has acknowledged all its bytes.
    pub(super) fn delivered(&self) -> bool {
        self.fin.get().is_some_and(|fin| !self.una.before(fin))
    }

    /// Whether everything including the FIN is acknowledged.
    pub(super) fn finished(&self) -> bool {
        self.fin.get().is_some_and(|fin| self.una.after(fin))
    }

    /// Sets the end of the stream to `len` bytes after `base`.
    pub(super) fn ends_after(&mut self, len: u32) {
        self.fin = (self.base + len).into();
    }

    /// Notes that data or a FIN up to `end` was sent.
    pub(super) fn sent(&mut self, end: Seq, now: Instant) {
        if end.after(self.max) {
            self.max = end;
            if self.timed_at.is_none() {
                (self.timed_at, self.timed_end) = (Some(now), end);
            }
        }
        self.next = self.next.max(end);
        if self.retransmit_at.is_none() {
            self.retransmit_at = Some(now + self.rto.duration());
        }
    }

    /// Notes that a probe of a closed window, up to `end`, was sent. The guest may accept or drop the probe's byte.
    pub(super) fn probed(&mut self, end: Seq) {
        self.max = self.max.max(end);
    }

    /// The window that a segment other than a SYN advertises, in bytes, limited to [`MAX_WINDOW`].
    fn window_of(&self, segment: &Segment<'_, impl Payload>) -> u32 {
        (u32::from(segment.window()) << self.scale).min(MAX_WINDOW)
    }

    /// Handles the acknowledgment and window of a segment, unless it acknowledges data that was never sent.
    pub(super) fn on_ack(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        options: &Options,
        now: Instant,
    ) -> Ack {
        let ack = segment.ack();
        if ack.after(self.max) {
            return Ack::OfUnsent;
        }
        self.unanswered = 0;
        if ack.before(self.una) {
            return Ack::OfSent; // an old segment
        }
        let advanced = ack - self.una;
        let window = self.window_of(segment);
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
        Ack::OfSent
    }

    fn advance(&mut self, ack: Seq, advanced: u32, now: Instant) {
        self.una = ack;
        self.next = self.next.max(ack);
        self.rto.progress();
        if let Some(sent) = self.timed_at
            && !ack.before(self.timed_end)
        {
            self.rto.measured(sent, now);
            self.timed_at = None;
        }
        let grown = self.restart.map(|bytes| bytes.saturating_add(2 * advanced));
        self.restart = grown.filter(|bytes| bytes.get() < MAX_WINDOW);
        self.retransmit_at = self.in_flight().then(|| now + self.rto.duration());
    }

    /// Applies the window of a segment, unless a newer segment was seen (RFC 9293 §3.10.7.4).
    ///
    /// Segments can overtake each other, and an old window must not replace a newer one. A guest may also shrink its
    /// window. Then it silently drops data that was sent beyond the window. Such data is sent again when the window
    /// opens, and no acknowledgment is expected until then.
    fn update_window(&mut self, segment: &Segment<'_, impl Payload>, window: u32, advanced: u32) {
        let seq = segment.seq();
        // A segment that acknowledges new data has the newest window, even if its sequence number is old, since it may
        // be a retransmission. Of two segments with the same sequence number, this one is not older, since its
        // acknowledgment is not (see `on_ack`). The sequence number of a keep-alive is one too low.
        let newer = advanced > 0
            || self.window_seq.before(seq)
            || self.window_seq == seq
            || (self.window_seq == seq + 1 && window > self.window);
        if !newer {
            return;
        }
        if self.window == 0 && window > 0 {
            // The window is open again. The next segment is not a probe, and must not wait for the probe's timer.
            self.rto.progress();
            self.retransmit_at = None;
        }
        self.window = window;
        self.window_seq = self.window_seq.max(seq);
        // The guest has shrunk its window: data outside the window counts as not sent. Differences due to
        // rounding by the window scale are ignored.
        let rounding = 1 << self.scale;
        if self.next.after(self.una + self.window + (rounding - 1)) || self.window == 0 {
            self.next = self.next.min(self.una + self.window);
            self.timed_at = None;
        }
    }

    /// Checks for signs of loss: SACK blocks, or duplicate acknowledgments of a guest without SACK.
    ///
    /// A connection without loss has no [`Recovery`], and this function does nothing. When recovery begins, the segment
    /// whose round trip is being timed may be retransmitted, and then its acknowledgment would be ambiguous (Karn's
    /// algorithm).
    fn note_loss(&mut self, options: &Options, duplicate: bool) {
        // With SACK, a duplicate acknowledgment without blocks only shows that a segment arrived twice.
        let duplicate = duplicate && !self.sack;
        if self.recovery.is_none() && !duplicate && options.sack.as_slice().is_empty() {
            return;
        }
        if self.recovery.is_none() {
            self.recovery = Boxed::new(Recovery::default());
        }
        // Without memory, the timer finds the loss.
        let Some(recovery) = &mut self.recovery else { return };
        recovery.on_ack(self.una, self.max, &options.sack, duplicate);
        if recovery.begin_if_lost(self.una, self.max, u32::from(self.mss)) {
            self.timed_at = None; // Karn's algorithm
        } else if recovery.is_over() || self.una == self.max {
            self.recovery = None;
        }
    }

    /// Handles the expiry of the retransmission timer with unacknowledged data: sending starts again from the oldest
    /// unacknowledged byte. Returns the number of timeouts in a row.
    pub(super) fn on_timeout(&mut self) -> u8 {
        self.timed_at = None;
        self.rto.expired();
        self.unanswered = self.unanswered.saturating_add(1);
        if !self.window_closed() {
            // After a second timeout, the guest may have discarded the data that it reported by SACK (RFC 2018 §8).
            let trusted = self.recovery.as_mut().filter(|_| self.unanswered == 1 && self.sack);
            match trusted.and_then(|recovery| recovery.restart(self.una, self.max)) {
                Some(next) => self.next = next,
                None => {
                    self.next = self.una;
                    self.recovery = None;
                }
            }
            self.restart = NonZeroU32::new(RESTART_SEGMENTS * u32::from(self.mss).max(1));
        }
        self.unanswered
    }

    /// Restarts the timer after a timeout.
    pub(super) fn restart_timer(&mut self, now: Instant) {
        self.retransmit_at = Some(now + self.rto.duration());
    }

    /// Starts the timer if the guest [must answer](Self::awaits) and the timer is not running.
    pub(super) fn start_timer_if_due(&mut self, readable: bool, now: Instant) {
        if self.retransmit_at.is_none() && self.awaits(readable) {
            self.restart_timer(now);
        }
    }

    /// Sets the time at which a SYN or SYN,ACK that was sent `tries` times is repeated. None after the last repetition.
    pub(super) fn schedule_syn(&mut self, tries: u8, now: Instant) -> Option<Instant> {
        self.retransmit_at = syn_timeout(tries).map(|wait| now + wait);
        self.retransmit_at
    }

    /// When to retransmit, or to probe a closed window.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.retransmit_at
    }

    /// Whether the timer has expired. If so, the timer stops.
    pub(super) fn take_timeout(&mut self, now: Instant) -> bool {
        self.retransmit_at.take_if(|at| *at <= now).is_some()
    }

    /// The part of the stream that can be sent next, if any: data within the guest's window, or the FIN. New data can
    /// be sent only if the socket is `readable`.
    pub(super) fn next_run(&self, readable: bool, largest_segment: u16) -> Option<Run> {
        let (seq, mut end) = (self.next, self.edge());
        if let Some(fin) = self.fin.get() {
            if !seq.before(fin) {
                return (seq == fin && fin.before(end)).then_some(Run { seq, len: 1, fin: true });
            }
            end = end.min(fin);
        }
        let again = seq.before(self.max);
        if !readable && !again || !seq.before(end) {
            return None;
        }
        let size = u32::from(self.segment_size(largest_segment));
        let room = (end - seq).min(self.most_at(seq, largest_segment));
        // Only whole segments are sent, unless the window has room for less than one segment.
        let len = if room > size { room - room % size } else { room };
        // While data is in flight, no small segment is sent into a small window (RFC 9293 §3.8.6.2.1).
        let worth_it = len >= size || !self.in_flight() || again || self.has_end();
        worth_it.then_some(Run { seq, len, fin: false })
    }

    /// The number of bytes of a run that were never sent before. A FIN does not count.
    pub(super) fn new_bytes(&self, run: Run) -> u32 {
        let end = run.seq + run.len;
        let end = self.fin.get().map_or(end, |fin| end.min(fin));
        if end.after(self.max) { end - self.max } else { 0 }
    }

    /// The next part of a reported hole to retransmit.
    pub(super) fn next_hole(&self, largest_segment: u16) -> Option<Run> {
        let (seq, end) = self.recovery.as_ref()?.next_hole(self.una, u32::from(self.mss))?;
        let end = end.min(self.max).min(self.edge());
        if !seq.before(end) {
            return None;
        }
        Some(match self.fin.get() {
            Some(fin) if !seq.before(fin) => Run { seq, len: 1, fin: true },
            fin => {
                let end = fin.map_or(end, |fin| fin.min(end));
                Run { seq, len: (end - seq).min(self.most_at(seq, largest_segment)), fin: false }
            }
        })
    }

    /// Notes that the hole that was returned last was retransmitted up to `end`.
    pub(super) fn repaired(&mut self, end: Seq) {
        if let Some(recovery) = &mut self.recovery {
            recovery.repaired_to(end);
        }
    }

    /// The probe of a closed window: the next byte, or the FIN.
    pub(super) fn probe(&self) -> Run {
        Run { seq: self.una, len: 1, fin: self.fin.is_at(self.una) }
    }

    /// Length of the payload of one segment, in bytes: the guest's maximum, limited to the link's `largest_segment`. A
    /// super-frame is cut into segments of this length. It is not zero.
    pub(super) fn segment_size(&self, largest_segment: u16) -> u16 {
        self.mss.min(largest_segment).max(1)
    }

    /// Maximum length of the payload of one frame at `seq`, in bytes. A frame with an urgent pointer must be a single
    /// segment, since the pointer would be wrong in further segments.
    fn most_at(&self, seq: Seq, largest_segment: u16) -> u32 {
        if self.urgent_pointer(seq) > 0 { self.segment_size(largest_segment).into() } else { MAX_PAYLOAD }
    }

    /// Number of bytes that the guest has acknowledged, modulo 2^32. It is -1 before the guest has acknowledged the
    /// SYN.
    pub(super) fn acknowledged(&self) -> u32 {
        self.fin.get().map_or(self.una, |fin| fin.min(self.una)) - self.start
    }

    /// Number of acknowledged bytes that the socket still has. They are discarded at once: even a few unread bytes may
    /// occupy a large buffer of the kernel, and so make the window that the kernel offers to the peer small.
    pub(super) fn discardable(&self) -> u32 {
        let end = self.fin.get().map_or(self.una, |fin| fin.min(self.una));
        if end.after(self.base) { end - self.base } else { 0 }
    }

    /// Notes that `len` bytes were discarded. Returns true if the urgent byte is now the oldest byte in the socket:
    /// before this, the socket may not have returned it (see [`TcpSocket::peek`](crate::host::TcpSocket::peek)).
    pub(super) fn discarded(&mut self, len: u32) -> bool {
        self.base += len;
        self.urgent = self.urgent.get().filter(|urgent| !urgent.before(self.base)).into();
        self.is_urgent(self.base)
    }

    /// Notes that the peer's urgent byte is `offset` bytes after the oldest byte in the socket. Returns true if this
    /// urgent byte was not known.
    pub(super) fn note_urgent(&mut self, offset: u32) -> bool {
        let urgent = (self.base + offset).into();
        core::mem::replace(&mut self.urgent, urgent) != urgent
    }

    /// Whether the peer's urgent byte is at `seq`.
    pub(super) fn is_urgent(&self, seq: Seq) -> bool {
        self.urgent.is_at(seq)
    }

    /// The urgent pointer for a segment at `seq`, in bytes: it points to the byte after the urgent byte. Zero if the
    /// urgent byte is before `seq`, or the pointer does not fit in 16 bits.
    pub(super) fn urgent_pointer(&self, seq: Seq) -> u16 {
        let ahead = self.urgent.get().filter(|urgent| !urgent.before(seq)).map(|urgent| urgent + 1 - seq);
        ahead.and_then(|ahead| u16::try_from(ahead).ok()).unwrap_or(0)
    }
}

/// How often a segment is retransmitted without any answer before the connection is aborted. Timeouts double, so this
/// takes minutes.
pub(super) const MAX_UNANSWERED: u8 = 10;

/// The time until a SYN or SYN,ACK that was sent `tries` times is repeated: first each second, then with doubling
/// intervals (behaviour §6.2.2). None after the last repetition.
fn syn_timeout(tries: u8) -> Option<Duration> {
    const LINEAR: u8 = 4;
    const TOTAL: u8 = 10;
    (tries <= TOTAL).then(|| Duration::from_secs(1 << tries.saturating_sub(LINEAR)))
}
