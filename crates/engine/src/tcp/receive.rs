//! The direction from the guest to the socket: the window, the order of bytes, and the end of the stream.

use wire::{
    payload::Payload,
    tcp::{SackBlocks, Seq},
};

use super::{
    marks::Mark,
    queue::{self, ChunkPool, ReceiveQueue},
};
use crate::{
    allocation::Boxed,
    host::{Errno, SocketError, TcpSocket},
    memory::PayloadOf,
};

/// Maximum advertised window, in bytes. So it is also the maximum number of bytes that one connection can have queued.
pub(super) const WINDOW: u32 = queue::MAX_LEN as u32;
/// The advertised window scale (RFC 7323): enough for [`WINDOW`] in 16 bits.
pub(super) const WINDOW_SCALE: u8 = 5;
const _: () = assert!(WINDOW >> WINDOW_SCALE <= 0xffff);
/// The smallest window of a connection that sends in turns: that of the SYN, in bytes.
const MIN_WINDOW: u32 = 1 << 16;
/// The unit in which [`Receiver::most`] is stored, in bytes.
const MOST_UNIT: u32 = 1 << 13;
const _: () = assert!(WINDOW / MOST_UNIT <= u8::MAX as u32);
/// Maximum number of pieces in one call of send: half of a full queue.
const PIECES: usize = 32;

/// How soon the guest gets an acknowledgment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AckDue {
    /// No acknowledgment is due.
    #[default]
    No,
    /// An acknowledgment is due soon. A segment with data may carry it.
    Delayed,
    /// An acknowledgment is due at the end of this round.
    Now,
}

/// The guest-to-socket half of a connection.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The next expected sequence number. All bytes before it are in the socket or ready in the queue.
    pub(super) next: Seq,
    /// Sequence number of the first byte of the stream.
    start: Seq,
    /// Right edge of the advertised window; it never moves left.
    edge: Seq,
    /// The acknowledgment number that was sent last.
    acked: Seq,
    /// Scale of the advertised windows; zero if the guest did not offer the option.
    pub(super) scale: u8,
    /// Bytes that the socket did not accept, and bytes after a hole.
    queue: Option<Boxed<ReceiveQueue>>,
    /// Whether the socket gets bytes at once when they arrive.
    gate: Gate,
    /// Maximum number of ready bytes in the queue, in units of [`MOST_UNIT`].
    most: u8,
    /// Sequence number of the guest's urgent byte, until the socket has accepted this byte.
    urgent: Mark,
    /// The end of the guest's stream: the sequence number of the FIN, if a FIN has arrived.
    fin: Mark,
    /// How far the end of the guest's stream was passed on.
    end: Ending,
    /// How soon to acknowledge.
    pub(super) ack: AckDue,
}

impl Receiver {
    /// The state after the guest's SYN. `next` is the sequence number after the SYN.
    pub(super) fn new(next: Seq, scale: u8) -> Self {
        Self {
            next,
            start: next,
            edge: next + 0xffff,
            acked: next,
            scale,
            queue: None,
            gate: Gate::Open,
            most: (WINDOW / MOST_UNIT) as u8,
            urgent: Mark::NONE,
            fin: Mark::NONE,
            end: Ending::Open,
            ack: AckDue::No,
        }
    }

    /// This receiver, but its socket gets bytes only in turns (`Receiver::take_turn`). The guest's stream can be at
    /// most `ahead` bytes ahead of its turns. If `ahead` is none, nothing changes.
    pub(super) fn in_turns(self, ahead: Option<u64>) -> Self {
        match ahead {
            Some(ahead) => {
                let most = u32::try_from(ahead).unwrap_or(WINDOW).clamp(MIN_WINDOW, WINDOW);
                Self { gate: Gate::Turns { full: false }, most: (most / MOST_UNIT) as u8, ..self }
            }
            None => self,
        }
    }

    /// Whether a segment at `seq` with `len` sequence numbers overlaps the window (RFC 9293 §3.10.7.4). An empty
    /// segment may also be at the window's right edge: a guest that has filled the window sends its acknowledgments
    /// with this sequence number.
    pub(super) fn acceptable(&self, seq: Seq, len: u32) -> bool {
        let edge = self.edge.max(self.next + 1);
        if len == 0 {
            !seq.before(self.next) && !seq.after(edge)
        } else {
            seq.before(edge) && (seq + len).after(self.next)
        }
    }

    /// Handles the payload of an acceptable segment at `seq`, and its FIN.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) fn accept<S: TcpSocket>(
        &mut self,
        seq: Seq,
        payload: PayloadOf<'_, S::Memory>,
        fin: bool,
        socket: &mut S,
        pool: &mut ChunkPool,
    ) -> Result<(), Errno> {
        let end = seq + payload.len() as u32;
        if fin && self.fin == Mark::NONE && !end.before(self.next) {
            self.fin = end.into();
        }
        // Data after the guest's FIN is not part of its stream.
        let limit = self.fin.get().map_or(self.edge, |fin| fin.min(self.edge));
        let end = end.min(limit);
        let start = seq.max(self.next);
        if !payload.is_empty() && start.before(end) {
            let data = payload.slice((start - seq) as usize..(end - seq) as usize);
            self.store(start, data, socket, pool)?;
        } else if !payload.is_empty() {
            self.ack = AckDue::Now; // no new bytes: the last acknowledgment may be lost
        }
        if fin {
            self.ack = AckDue::Now;
        }
        self.pass_fin(socket)
    }

    /// Holds all bytes back from the socket until [`Receiver::resume`] is called.
    pub(super) fn hold(&mut self) {
        let turns = matches!(self.gate, Gate::Turns { .. } | Gate::Held { turns: true });
        self.gate = Gate::Held { turns };
    }

    /// Sends bytes to the socket again after [`Receiver::hold`].
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) fn resume(&mut self, socket: &mut impl TcpSocket, pool: &mut ChunkPool) -> Result<(), Errno> {
        if let Gate::Held { turns } = self.gate {
            self.gate = if turns { Gate::Turns { full: false } } else { Gate::Full };
        }
        self.on_writable(socket, pool)
    }

    /// Undoes [`Receiver::hold`] before any bytes have arrived.
    pub(super) fn stop_holding(&mut self) {
        if let Gate::Held { turns } = self.gate {
            self.gate = if turns { Gate::Turns { full: false } } else { Gate::Open };
        }
    }

    /// Calls `read` with the ready bytes after the first `skip` bytes, in order.
    pub(super) fn ready_after(&self, mut skip: usize, mut read: impl FnMut(&[u8])) {
        let Some(queue) = &self.queue else { return };
        let mut pieces = [&[][..]; PIECES];
        let count = queue.ready_pieces(usize::MAX, &mut pieces);
        for piece in &pieces[..count] {
            let (skipped, rest) = piece.split_at(skip.min(piece.len()));
            skip -= skipped.len();
            if !rest.is_empty() {
                read(rest);
            }
        }
    }

    /// Whether the guest has announced an urgent byte that the socket has not accepted yet.
    pub(super) fn is_urgent(&self) -> bool {
        self.urgent != Mark::NONE
    }

    /// Whether the FIN was acknowledged to the guest. Then the peer has acknowledged all bytes.
    pub(super) fn finished(&self) -> bool {
        self.end == Ending::Finished
    }

    /// Whether the guest has sent everything up to its FIN.
    pub(super) fn at_end(&self) -> bool {
        self.fin.is_at(self.next)
    }

    /// Discards the queued bytes and the FIN, since the peer will not get them.
    pub(super) fn discard(&mut self, pool: &mut ChunkPool) {
        self.release(pool);
        let at_end = self.at_end();
        self.skip(self.next, at_end);
    }

    /// Discards bytes of the guest up to `end`. `fin`: a FIN follows them.
    pub(super) fn skip(&mut self, end: Seq, fin: bool) {
        if self.finished() {
            self.ack = AckDue::Now;
            return;
        }
        if end.after(self.next) {
            self.next = end;
            self.ack = AckDue::Now;
        }
        if fin {
            self.next = self.next.max(end + 1);
            (self.end, self.ack) = (Ending::Finished, AckDue::Now);
        }
    }

    /// Notes that the guest's urgent byte is at `urgent`. As in every receiver, a later urgent byte replaces an earlier
    /// one.
    pub(super) fn note_urgent(&mut self, urgent: Seq) {
        if !urgent.before(self.next) && self.urgent.get().is_none_or(|known| urgent.after(known)) {
            self.urgent = urgent.into();
        }
    }

    fn store<S: TcpSocket>(
        &mut self,
        seq: Seq,
        data: PayloadOf<'_, S::Memory>,
        socket: &mut S,
        pool: &mut ChunkPool,
    ) -> Result<(), Errno> {
        let in_order = seq == self.next;
        let mut sent = 0;
        if in_order && self.gate == Gate::Open {
            sent = self.send(seq, data, socket)?;
            self.next += sent as u32;
            if let Some(queue) = &mut self.queue {
                queue.advance(self.next, pool);
            }
        }
        if sent < data.len() {
            let base = self.next;
            if self.queue.is_none() {
                self.queue = Boxed::new(ReceiveQueue::new(base));
            }
            if let Some(queue) = &mut self.queue {
                queue.insert(seq + sent as u32, data.slice(sent..data.len()), pool);
            }
        }
        if self.queue.is_some() {
            // If the data has filled a hole, the bytes after the hole are ready now.
            self.flush(u32::MAX, socket, pool)?;
        }
        self.ack = match self.next - self.acked {
            // Data is out of order: acknowledge at once, so that the guest fills the hole (RFC 5681 §4.2).
            _ if !in_order || self.queue.is_some() => AckDue::Now,
            // For a small amount of data, the peer's answer can carry the acknowledgment.
            unacknowledged if unacknowledged < SMALL => self.ack.max(AckDue::Delayed),
            _ => AckDue::Now,
        };
        Ok(())
    }

    /// Sends `data` to the socket. `data` starts at `seq`, the next sequence number for the socket. Returns how many
    /// bytes the socket accepted.
    fn send<S: TcpSocket>(
        &mut self,
        seq: Seq,
        data: PayloadOf<'_, S::Memory>,
        socket: &mut S,
    ) -> Result<usize, Errno> {
        if self.urgent == Mark::NONE {
            return self.sent(socket.send(data), data.len());
        }
        let mut sent = 0;
        while sent < data.len() && self.gate == Gate::Open {
            let rest = data.slice(sent..data.len());
            sent += match self.next_part(seq + sent as u32, rest.len()) {
                Part::Plain(len) => self.sent(socket.send(rest.slice(0..len)), len)?,
                Part::Urgent => {
                    let mut byte = [0];
                    rest.slice(0..1).copy_to(&mut byte);
                    self.send_urgent(byte[0], socket)?
                }
            };
        }
        Ok(sent)
    }

    /// The part of the `len` bytes from `seq` on that one call can send.
    fn next_part(&self, seq: Seq, len: usize) -> Part {
        match self.urgent.get() {
            Some(urgent) if urgent == seq => Part::Urgent,
            Some(urgent) if urgent.after(seq) => Part::Plain(len.min((urgent - seq) as usize)),
            _ => Part::Plain(len),
        }
    }

    /// Sends the urgent byte. Returns how many bytes the socket accepted.
    fn send_urgent(&mut self, byte: u8, socket: &mut impl TcpSocket) -> Result<usize, Errno> {
        let sent = self.sent(socket.send_urgent(byte).map(|()| 1), 1)?;
        if sent > 0 {
            self.urgent = Mark::NONE;
        }
        Ok(sent)
    }

    /// Sends at most `at_most` ready bytes to the socket. Returns how many bytes the socket accepted.
    fn flush<S: TcpSocket>(
        &mut self,
        at_most: u32,
        socket: &mut S,
        pool: &mut ChunkPool,
    ) -> Result<u32, Errno> {
        let mut left = at_most;
        while self.gate == Gate::Open && left > 0 && self.ready_len() > 0 {
            let Some(queue) = self.queue.take() else { break };
            let mut pieces = [&[][..]; PIECES];
            // One call must accept all pieces. Otherwise the socket would look full after the call, although no event
            // will report that it is writable.
            let pieces = &mut pieces[..PIECES.min(S::MAX_PIECES)];
            let sent = match self.next_part(queue.base(), queue.ready_len().min(left) as usize) {
                Part::Plain(len) => {
                    let count = queue.ready_pieces(len, pieces);
                    let len = pieces[..count].iter().map(|piece| piece.len()).sum();
                    self.sent(socket.send_pieces(&pieces[..count]), len)
                }
                Part::Urgent => {
                    queue.ready_pieces(1, pieces);
                    pieces
                        .first()
                        .and_then(|piece| piece.first())
                        .map_or(Ok(0), |byte| self.send_urgent(*byte, socket))
                }
            };
            let queue = self.queue.insert(queue);
            let sent = sent? as u32;
            let base = queue.base() + sent;
            queue.advance(base, pool);
            left -= sent;
        }
        if let Some(queue) = &self.queue {
            self.next = queue.base() + queue.ready_len();
            if queue.is_empty() {
                self.queue = None;
            }
        }
        Ok(at_most - left)
    }

    /// Whether bytes wait only for a turn.
    pub(super) fn wants_turn(&self) -> bool {
        self.gate == (Gate::Turns { full: false }) && self.ready_len() > 0
    }

    /// Sends at most `at_most` ready bytes to the socket in a turn. Returns how many bytes the socket accepted.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) fn take_turn(
        &mut self,
        at_most: u32,
        socket: &mut impl TcpSocket,
        pool: &mut ChunkPool,
    ) -> Result<u32, Errno> {
        self.gate = Gate::Open;
        let sent = self.flush(at_most, socket, pool);
        self.gate = Gate::Turns { full: self.gate == Gate::Full };
        self.note_room();
        let sent = sent?;
        self.pass_fin(socket)?;
        Ok(sent)
    }

    /// How many of `len` bytes the socket accepted. Notes whether it accepted all.
    fn sent(&mut self, result: Result<usize, SocketError>, len: usize) -> Result<usize, Errno> {
        let sent = match result {
            Ok(sent) => sent,
            Err(SocketError::WouldBlock) => 0,
            Err(SocketError::Failed(errno)) => return Err(errno),
        };
        self.gate = if sent < len { Gate::Full } else { Gate::Open };
        Ok(sent)
    }

    /// Handles a socket that is writable again.
    ///
    /// # Errors
    /// The socket has failed.
    pub(super) fn on_writable(
        &mut self,
        socket: &mut impl TcpSocket,
        pool: &mut ChunkPool,
    ) -> Result<(), Errno> {
        match &mut self.gate {
            Gate::Open | Gate::Held { .. } => {}
            Gate::Turns { full } => *full = false,
            Gate::Full => {
                self.gate = Gate::Open;
                self.flush(u32::MAX, socket, pool)?;
                self.note_room();
            }
        }
        self.pass_fin(socket)
    }

    /// Requests an acknowledgment that advertises a larger window, if the advertised window is small and the queue has
    /// much room again (RFC 9293 §3.8.6.2.2).
    fn note_room(&mut self) {
        if self.edge - self.next < self.most() / 2 && self.room() >= self.most() / 2 {
            self.ack = AckDue::Now;
        }
    }

    /// Shuts down the socket when it has accepted all bytes before the guest's FIN. Acknowledges the FIN when the peer
    /// has acknowledged all bytes.
    fn pass_fin(&mut self, socket: &mut impl TcpSocket) -> Result<(), Errno> {
        if self.finished() || !self.at_end() || !self.is_drained() {
            return Ok(());
        }
        if self.end == Ending::Open {
            match socket.shutdown_write() {
                Ok(()) => self.end = Ending::Shut,
                Err(SocketError::WouldBlock) => return Ok(()),
                Err(SocketError::Failed(errno)) => return Err(errno),
            }
        }
        if socket.unacknowledged() == 0 {
            self.end = Ending::Finished;
            self.next += 1;
            self.ack = AckDue::Now;
        }
        Ok(())
    }

    /// Whether the socket has all bytes before a hole.
    fn is_drained(&self) -> bool {
        match self.gate {
            Gate::Open => true,
            Gate::Turns { .. } => self.ready_len() == 0,
            Gate::Full | Gate::Held { .. } => false,
        }
    }

    /// Number of bytes that the socket has accepted, modulo 2^32.
    pub(super) fn accepted(&self) -> u32 {
        (self.next - self.start).wrapping_sub(self.ready_len()).wrapping_sub(self.finished().into())
    }

    fn ready_len(&self) -> u32 {
        self.queue.as_ref().map_or(0, |queue| queue.ready_len())
    }

    /// Maximum number of ready bytes in the queue.
    const fn most(&self) -> u32 {
        self.most as u32 * MOST_UNIT
    }

    /// Number of bytes for which the queue has room.
    fn room(&self) -> u32 {
        self.most().saturating_sub(self.ready_len())
    }

    /// The window to advertise in the segment that is about to be sent, scaled as in the header.
    pub(super) fn advertise_window(&mut self) -> u16 {
        let edge = self.next + self.room();
        // Avoids the silly window syndrome: the edge moves by a large step, or does not move (RFC 9293 §3.8.6.2.2).
        if edge.after(self.edge) && (edge - self.edge >= self.most() / 8 || edge - self.next == self.most()) {
            self.edge = edge;
        }
        let window = if self.edge.after(self.next) { self.edge - self.next } else { 0 };
        u16::try_from(window >> self.scale).unwrap_or(u16::MAX)
    }

    /// Notes that a segment with an acknowledgment was sent.
    pub(super) fn ack_sent(&mut self) {
        self.acked = self.next;
        self.ack = AckDue::No;
    }

    /// The ranges of queued bytes after a hole.
    pub(super) fn sack_blocks(&self) -> SackBlocks {
        self.queue.as_ref().map_or_else(SackBlocks::default, |queue| queue.sack_blocks())
    }

    /// Returns the queue's memory.
    pub(super) fn release(&mut self, pool: &mut ChunkPool) {
        if let Some(mut queue) = self.queue.take() {
            queue.release(pool);
        }
    }
}

/// How far the end of the guest's stream was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The guest has not sent a FIN, or bytes before it are missing.
    Open,
    /// The socket has been shut down, as the FIN requests.
    Shut,
    /// The FIN was acknowledged to the guest.
    Finished,
}

/// Whether the socket gets the guest's bytes at once when they arrive. If not, they wait in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Yes.
    Open,
    /// No: the socket is full, and will report when it is writable again.
    Full,
    /// No: the check of the first bytes is not complete. `turns`: afterwards, the socket gets bytes only in turns.
    Held { turns: bool },
    /// No: the socket gets bytes only in turns, and none while it is `full`.
    Turns { full: bool },
}

/// The bytes that one call can send: bytes up to the urgent byte, or the urgent byte alone.
enum Part {
    /// This many bytes.
    Plain(usize),
    /// The urgent byte.
    Urgent,
}

/// With at most this many unacknowledged bytes, an acknowledgment may wait for data that carries it.
const SMALL: u32 = 2048;
