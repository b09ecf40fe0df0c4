//! One query to a server over TCP (RFC 7766). Each query has its own connection. A length field comes before each
//! message.

use alloc::vec::Vec;

use wire::payload::Payload;

use crate::{
    host::{Errno, Readiness, SocketError, TcpSocket},
    quota::Part,
};

/// Length of the length field, in bytes.
const LEN_LEN: usize = 2;

/// A query over TCP.
pub(super) struct OverTcp<T> {
    io: T,
    connected: bool,
    /// The bytes to be sent: length field and query.
    query: Vec<u8>,
    sent: usize,
    /// The received bytes: length field and answer.
    answer: Vec<u8>,
    /// The memory of query and answer.
    memory: Part,
}

/// The state of a query over TCP.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The answer is not complete.
    Pending,
    /// The answer, without its length field.
    Answer(Vec<u8>),
    /// The server has refused the connection, or has closed it early.
    Failed(Errno),
}

impl<T: TcpSocket> OverTcp<T> {
    /// A query over a socket that is connecting.
    pub(super) const fn new(io: T, memory: Part) -> Self {
        Self { io, connected: false, query: Vec::new(), sent: 0, answer: Vec::new(), memory }
    }

    /// Stores `query`. It is sent when the socket is connected. Returns false if there is no memory.
    pub(super) fn ask(&mut self, query: impl Payload) -> bool {
        if !self.memory.resize(LEN_LEN + query.len()) {
            return false;
        }
        self.query = (query.len() as u16).to_be_bytes().to_vec();
        self.query.resize(LEN_LEN + query.len(), 0);
        query.copy_to(&mut self.query[LEN_LEN..]);
        (self.sent, self.answer) = (0, Vec::new());
        true
    }

    /// Sends and receives as much as possible. Must be called when any socket of the exchange is ready. `buffer` is
    /// scratch space for received bytes.
    pub(super) fn on_ready(&mut self, readiness: Readiness, buffer: &mut [u8]) -> Progress {
        let progress = self.advance(readiness, buffer);
        if let Progress::Failed(_) = progress {
            (self.query, self.answer) = (Vec::new(), Vec::new());
            // It returns memory, so there is enough.
            let _ = self.memory.resize(0);
        }
        progress
    }

    fn advance(&mut self, readiness: Readiness, buffer: &mut [u8]) -> Progress {
        if readiness.error
            && let Some(errno) = self.io.take_error()
        {
            return Progress::Failed(errno);
        }
        self.connected |= readiness.writable;
        if !self.connected {
            return Progress::Pending;
        }
        match self.send().and_then(|()| self.receive(buffer)) {
            Ok(progress) => progress,
            Err(SocketError::WouldBlock) => Progress::Pending,
            Err(SocketError::Failed(errno)) => Progress::Failed(self.io.take_error().unwrap_or(errno)),
        }
    }

    fn send(&mut self) -> Result<(), SocketError> {
        while let Some(rest) = self.query.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += self.io.send(rest.into())?;
        }
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Progress, SocketError> {
        loop {
            let len = self.io.peek(0, (&mut *buffer).into())?;
            if len == 0 {
                return Err(SocketError::Failed(Errno::ECONNRESET));
            }
            let gone = self.io.discard(len as u32)? as usize;
            // A list that grows may be twice as long as needed.
            if !self.memory.resize(self.query.len() + 2 * (self.answer.len() + gone)) {
                return Err(SocketError::Failed(Errno::ENOBUFS));
            }
            self.answer.extend_from_slice(buffer.get(..gone).unwrap_or_default());
            let (Some(expected), Some(message)) = (self.answer.first_chunk(), self.answer.get(LEN_LEN..))
            else {
                continue;
            };
            if let Some(message) = message.get(..u16::from_be_bytes(*expected).into()) {
                return Ok(Progress::Answer(message.into()));
            }
        }
    }
}
