//! The guest's DNS over TCP (RFC 7766), with rules by name. The engine terminates the connection, and the guard judges
//! each question.

use alloc::vec::Vec;
use core::{marker::PhantomData, net::SocketAddr};

use wire::payload::Payload;

use crate::{
    host::{Errno, Info, SocketError, TcpSocket, Totals},
    memory::{Memory, PayloadOf, Room as _, RoomOf},
    quota::Part,
};

/// Maximum length of a query, in bytes: the same as over UDP.
const MAX_QUERY: usize = 4096;
/// Length of the length field before a message, in bytes.
const LEN_LEN: usize = 2;
/// Maximum number of bytes of questions that are stored until [`Questions::next`] returns them.
const MAX_INPUT: usize = LEN_LEN + MAX_QUERY;
/// While more bytes of answers than this wait for the guest, no further question is handled.
const MAX_OUTPUT: usize = 1 << 16;
/// Maximum number of questions without an answer.
const MOST_ASKED: usize = 8;

/// The replacement of the host's socket in a connection over which the guest asks questions.
#[derive(Debug)]
pub(super) struct Questions<M> {
    input: Vec<u8>,
    /// Whether the guest's stream has ended.
    ended: bool,
    output: Vec<u8>,
    /// Number of questions without an answer.
    asked: usize,
    /// Whether [`Questions::is_over`] has returned true.
    over: bool,
    /// Numbers of bytes that were received from the guest and sent to the guest. Segments are not counted.
    totals: Totals,
    /// The memory of `output`.
    used: Part,
    memory: PhantomData<M>,
}

/// The next message of the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A message.
    Query(Vec<u8>),
    /// No message is complete, or too many questions wait for answers.
    None,
    /// The message is longer than a query may be.
    TooLong,
}

impl<M> Questions<M> {
    pub(super) const fn new(memory: Part) -> Self {
        Self {
            input: Vec::new(),
            ended: false,
            output: Vec::new(),
            asked: 0,
            over: false,
            totals: Totals::bytes(0, 0),
            used: memory,
            memory: PhantomData,
        }
    }

    /// Removes and returns the next message of the guest. After that, there is room for more bytes of the guest.
    pub(super) fn next(&mut self) -> Next {
        let Some(len) = self.input.first_chunk().map(|len| usize::from(u16::from_be_bytes(*len))) else {
            return Next::None;
        };
        if len > MAX_QUERY {
            return Next::TooLong;
        }
        let Some(query) = self.input.get(LEN_LEN..LEN_LEN + len) else { return Next::None };
        if self.asked >= MOST_ASKED || self.output.len() > MAX_OUTPUT {
            return Next::None;
        }
        let query = query.to_vec();
        self.input.drain(..LEN_LEN + len);
        self.asked += 1;
        Next::Query(query)
    }

    /// Whether the guest's stream has ended and the guest has all answers. Returns true only once.
    pub(super) fn is_over(&mut self) -> bool {
        let before = self.over;
        self.over = self.ended && self.asked == 0;
        self.over && !before
    }

    /// Whether a message of the guest is incomplete.
    pub(super) const fn has_rest(&self) -> bool {
        !self.input.is_empty()
    }

    /// Stores an answer for the guest. Returns false if there is no memory.
    pub(super) fn answer(&mut self, answer: &[u8]) -> bool {
        self.asked = self.asked.saturating_sub(1);
        let Ok(len) = u16::try_from(answer.len()) else { return true };
        let needed = self.output.len() + LEN_LEN + answer.len();
        if needed > self.output.capacity() {
            // It grows in steps that are wide enough, so that few answers are copied. The old bytes are still there meanwhile.
            let capacity = needed + needed / 2;
            let old = self.output.capacity();
            if !self.used.resize(old + capacity)
                || self.output.try_reserve_exact(capacity - self.output.len()).is_err()
            {
                return false;
            }
        }
        self.output.extend_from_slice(&len.to_be_bytes());
        self.output.extend_from_slice(answer);
        self.used.resize(self.output.capacity())
    }

    fn take(&mut self, len: usize, copy: impl FnOnce(&mut [u8])) -> Result<usize, SocketError> {
        let start = self.input.len();
        let len = len.min(MAX_INPUT.saturating_sub(start));
        if len == 0 {
            return Err(SocketError::WouldBlock);
        }
        self.input.resize(start + len, 0);
        copy(self.input.get_mut(start..).unwrap_or_default());
        self.totals.sent.bytes += len as u64;
        Ok(len)
    }
}

impl<M: Memory> TcpSocket for Questions<M> {
    type Memory = M;
    const MAX_PIECES: usize = 1;

    fn send(&mut self, payload: PayloadOf<'_, M>) -> Result<usize, SocketError> {
        self.take(payload.len(), |room| {
            payload.copy_to(room);
        })
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        let mut taken = 0;
        for piece in pieces {
            match self.take(piece.len(), |room| room.copy_from_slice(&piece[..room.len()])) {
                Ok(len) => taken += len,
                Err(error) if taken == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(taken)
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        self.send_pieces(&[&[byte]]).map(|_| ())
    }

    fn peek(&mut self, offset: u32, mut room: RoomOf<'_, M>) -> Result<usize, SocketError> {
        let bytes = self.output.get(offset as usize..).unwrap_or_default();
        if bytes.is_empty() {
            return if self.over { Ok(0) } else { Err(SocketError::WouldBlock) };
        }
        Ok(room.put(0, bytes))
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        None
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let len = self.output.len().min(len as usize);
        self.output.drain(..len);
        if self.output.is_empty() {
            self.output = Vec::new();
            // It returns memory, so there is enough.
            let _ = self.used.resize(0);
        }
        self.totals.received.bytes += len as u64;
        Ok(len as u32)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        self.ended = true;
        Ok(())
    }

    fn unacknowledged(&mut self) -> u32 {
        0
    }

    fn take_error(&mut self) -> Option<Errno> {
        None
    }

    fn keep_alive(&mut self) {}

    fn reset_on_close(&mut self) {}

    fn set_traffic_class(&mut self, _: u8) {}

    fn peer_traffic_class(&mut self) -> Option<u8> {
        None
    }

    fn local(&self) -> Option<SocketAddr> {
        None
    }

    fn info(&mut self) -> Option<Info> {
        Some(Info { totals: self.totals, path: None })
    }
}
