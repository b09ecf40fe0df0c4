//! Stream sockets in memory, with the peer and its kernel at the other end.

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    vec::Vec,
};

use engine::{
    flow::{Endpoints, FlowId},
    host::{Errno, Info, Readiness, SocketError, TcpSocket, Totals},
    memory::Plain,
};

use super::{
    exempt::Exempt,
    random::Random,
    streams::{DOWNWARD, UPWARD},
};

/// `EPIPE`.
const BROKEN_PIPE: Errno = Errno(32);
/// `ECONNRESET`.
pub const CONNECTION_RESET: Errno = Errno(104);
/// `ECONNREFUSED`.
pub const CONNECTION_REFUSED: Errno = Errno(111);

/// Flows whose sockets became ready, without duplicates, in the order of the events.
pub(super) type Wakeups = Rc<RefCell<VecDeque<FlowId>>>;
/// A source of randomness that sockets share.
pub(super) type Chance = Rc<RefCell<Random>>;

/// How the engine closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// With a FIN.
    Orderly,
    /// With a reset that the engine requested.
    Reset,
    /// With unread bytes in the socket: the kernel sends a reset.
    Unread,
}

/// The state of a socket: positions in the two streams, in bytes from their start, and the state of both halves.
#[derive(Debug, Default)]
pub struct State {
    /// The ID with which the socket reports readiness.
    pub flow: Option<FlowId>,
    pub(super) wakeups: Wakeups,
    pub(super) woken: bool,
    /// If given, the socket accepts and returns a random number of bytes, and sometimes fails.
    pub(super) chance: Option<Chance>,
    /// The address to which the socket connects. None if the connection was accepted.
    pub destination: Option<SocketAddr>,
    /// The guest's connection, if the test has set it ([`super::host::VirtualHost::segment`]).
    pub ends: Option<Endpoints>,
    /// Positions in [`UPWARD`] at which the guest's stream may begin. The sent bytes must match the bytes from one of
    /// these positions.
    pub starts: Vec<u32>,
    /// If given, the guest's bytes are stored here, and are not compared.
    pub kept: Option<Vec<u8>>,
    /// If given, the peer sends these bytes instead of [`DOWNWARD`].
    pub said: Option<Vec<u8>>,
    /// The connection is established.
    pub connected: bool,
    /// Size of the send buffer, in bytes.
    pub send_capacity: u64,
    /// Number of bytes that the send buffer has accepted so far.
    pub sent: u64,
    /// Number of sent bytes that the peer has acknowledged.
    pub acknowledged: u64,
    /// Whether the last write was refused, at least in part.
    pub(super) refused: bool,
    /// Whether the engine has ended the guest's stream.
    pub shut: bool,
    pub(super) fin_acknowledged: bool,
    /// Number of bytes received from the peer so far.
    pub received: u64,
    pub(super) peeked: u64,
    /// Number of received bytes that were discarded.
    pub discarded: u64,
    /// Whether the peer has ended its stream.
    pub ended: bool,
    /// Position of the urgent byte in the peer's stream, until it is discarded.
    pub urgent: Option<u64>,
    /// Whether the urgent byte and later bytes can be copied out only after the bytes before it were discarded, as
    /// without `SO_PEEK_OFF`.
    pub strict: bool,
    /// Positions of the urgent bytes in the guest's stream.
    pub urgent_sent: Vec<u64>,
    /// The traffic classes that were set, in order.
    pub classes: Vec<u8>,
    /// The peer's traffic class.
    pub peer_class: Option<u8>,
    /// The pending error.
    pub error: Option<Errno>,
    /// Whether the connection has failed.
    pub failed: bool,
    /// Whether the engine has requested keep-alive probes.
    pub keep_alive: bool,
    pub(super) reset_on_close: bool,
    /// How the engine closed the connection. None if it is not closed.
    pub closed: Option<Closed>,
    /// Number of calls, to detect loops.
    pub calls: u64,
}

impl State {
    pub(super) fn wake(&mut self) {
        let Some(flow) = self.flow.filter(|_| self.closed.is_none() && !self.woken) else { return };
        self.woken = true;
        self.wakeups.borrow_mut().push_back(flow);
    }

    /// Returns the readiness that an event reports.
    pub(super) fn take_readiness(&mut self) -> Readiness {
        self.woken = false;
        Readiness {
            readable: self.received > self.discarded || self.ended || self.failed,
            writable: self.writable(),
            read_closed: self.ended || self.failed,
            error: self.error.is_some() || (self.ended && self.fin_acknowledged),
            urgent: self.urgent.is_some_and(|urgent| urgent < self.received),
        }
    }

    /// A random number below `bound`, for sockets with random results.
    pub fn roll(&self, bound: usize) -> Option<usize> {
        self.chance.as_ref().map(|chance| chance.borrow_mut().below(bound))
    }

    /// True with a probability of 1 / `times`. Always false for a socket without random results.
    fn is_one_in(&self, times: usize) -> bool {
        self.roll(times) == Some(0)
    }

    fn room(&self) -> u64 {
        self.send_capacity.saturating_sub(self.sent - self.acknowledged)
    }

    /// As in Linux, a socket is writable if a third of the send buffer is free.
    fn writable(&self) -> bool {
        self.failed || (self.connected && (self.shut || self.room() * 3 >= self.send_capacity))
    }

    fn taken_error(&mut self) -> Result<(), SocketError> {
        self.error.take().map_or(Ok(()), |errno| Err(SocketError::Failed(errno)))
    }

    /// How many of `len` bytes the socket accepts.
    fn taken(&mut self, len: usize) -> Result<usize, SocketError> {
        match self.roll(20) {
            None => {
                let taken = len.min(self.room() as usize);
                self.refused |= taken < len;
                if taken == 0 { Err(SocketError::WouldBlock) } else { Ok(taken) }
            }
            Some(10..15) => Ok(1 + self.roll(len).unwrap_or(0)),
            Some(15..19) => Err(SocketError::WouldBlock),
            Some(19) if self.is_one_in(8) => {
                self.failed = true;
                Err(SocketError::Failed(BROKEN_PIPE))
            }
            Some(_) => Ok(len),
        }
    }

    /// Accepts bytes of the guest, and checks that they are the next bytes of the guest's stream.
    fn take(&mut self, bytes: &[u8]) {
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(bytes);
            self.sent += bytes.len() as u64;
            return;
        }
        let sent = self.sent as u32;
        self.starts.retain(|start| UPWARD.has(start.wrapping_add(sent), bytes));
        assert!(
            !self.starts.is_empty(),
            "byte {sent} of the guest's stream, or a later one, is not the next"
        );
        self.sent += bytes.len() as u64;
    }
}

/// The engine's handle of a virtual connection.
#[derive(Debug)]
pub struct Stream(pub(super) Rc<RefCell<State>>);

/// The test's handle of a virtual connection: the test acts as the peer and its kernel.
#[derive(Clone, Debug)]
pub struct Peer(pub(super) Rc<RefCell<State>>);

impl Peer {
    /// The state of the socket.
    pub fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Changes the state, and reports readiness.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.wake();
    }

    /// The connection is established.
    pub fn connect(&self) {
        self.change(|state| state.connected = true);
    }

    /// The connection is refused or reset, with the error `errno`.
    pub fn fail(&self, errno: Errno) {
        self.change(|state| (state.error, state.failed, state.ended) = (Some(errno), true, true));
    }

    /// `len` more bytes of the peer have arrived.
    pub fn arrive(&self, len: u64) {
        self.change(|state| state.received += len);
    }

    /// The bytes `bytes` of the peer have arrived.
    pub fn say(&self, bytes: &[u8]) {
        self.change(|state| {
            state.said.get_or_insert_default().extend_from_slice(bytes);
            state.received += bytes.len() as u64;
        });
    }

    /// `len` more bytes of the peer have arrived. The last one is urgent.
    pub fn arrive_urgent(&self, len: u64) {
        self.change(|state| {
            state.received += len;
            state.urgent = Some(state.received - 1);
        });
    }

    /// Like [`Peer::arrive`], unless the peer has ended its half.
    pub fn arrive_unless_ended(&self, len: u64) {
        let ended = self.state().ended;
        if !ended && len > 0 {
            self.arrive(len);
        }
    }

    /// The peer has ended its half.
    pub fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// The peer acknowledges the sent bytes before position `until` of the stream.
    pub fn acknowledge(&self, until: u64) {
        let mut state = self.state();
        let was_writable = state.writable();
        assert!(until <= state.sent && until >= state.acknowledged);
        state.acknowledged = until;
        if state.refused && !was_writable && state.writable() {
            state.refused = false;
            state.wake();
        }
    }

    /// The peer acknowledges all sent bytes. If the end of the stream was sent, the peer acknowledges it, too.
    pub fn acknowledge_all(&self) {
        let sent = self.state().sent;
        self.acknowledge(sent);
        let mut state = self.state();
        if state.shut && !state.fin_acknowledged {
            state.fin_acknowledged = true;
            state.wake(); // epoll reports the change of state
        }
    }

    /// Number of received bytes that are still in the socket.
    pub fn unread(&self) -> u64 {
        let state = self.state();
        state.received - state.discarded
    }

    /// Whether the peer has acknowledged the end of the guest's stream.
    pub fn has_seen_end(&self) -> bool {
        self.state().fin_acknowledged
    }

    /// How the engine closed the connection. None if it is not closed.
    pub fn closed(&self) -> Option<Closed> {
        self.state().closed
    }
}

impl TcpSocket for Stream {
    type Memory = Plain;
    const MAX_PIECES: usize = 2;

    fn send(&mut self, payload: &[u8]) -> Result<usize, SocketError> {
        let _exempt = Exempt::begin();
        self.send_pieces(&[payload])
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        let _exempt = Exempt::begin();
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        assert!(pieces.len() <= Self::MAX_PIECES, "{} pieces at once", pieces.len());
        let bytes = pieces.concat();
        assert!(!bytes.is_empty(), "an empty send");
        assert!(!state.shut, "bytes after the end of the stream");
        assert!(state.connected, "bytes before the connection is established");
        state.taken_error()?;
        if state.failed {
            return Err(SocketError::Failed(BROKEN_PIPE));
        }
        let taken = state.taken(bytes.len())?;
        state.take(&bytes[..taken]);
        Ok(taken)
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        let _exempt = Exempt::begin();
        let position = self.0.borrow().sent;
        self.send_pieces(&[&[byte]])?;
        self.0.borrow_mut().urgent_sent.push(position);
        Ok(())
    }

    fn peek(&mut self, offset: u32, buffer: &mut [u8]) -> Result<usize, SocketError> {
        let _exempt = Exempt::begin();
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        let from = state.discarded + u64::from(offset);
        let mut end = state.received;
        assert!(from <= end, "a peek at byte {from}, but only {end} bytes have arrived");
        if let Some(urgent) = state.urgent {
            if from < urgent {
                end = end.min(urgent);
            } else if state.strict && state.discarded < urgent {
                return Err(SocketError::WouldBlock);
            }
        }
        let mut len = (end - from).min(buffer.len() as u64) as usize;
        if len == 0 {
            state.taken_error()?;
            return match state.ended || buffer.is_empty() {
                _ if state.failed && state.chance.is_some() => Err(SocketError::Failed(CONNECTION_REFUSED)),
                true => Ok(0),
                false => Err(SocketError::WouldBlock),
            };
        }
        if state.is_one_in(8) {
            len = 1 + state.roll(len).unwrap_or(0);
        }
        match &state.said {
            Some(said) => buffer[..len].copy_from_slice(&said[from as usize..][..len]),
            None => DOWNWARD.fill(from as u32, &mut buffer[..len]),
        }
        state.peeked = state.peeked.max(from + len as u64);
        Ok(len)
    }

    fn unread(&mut self) -> Option<u32> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        Some((state.received - state.discarded) as u32)
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        state.urgent.filter(|&urgent| urgent < state.received).map(|urgent| (urgent - state.discarded) as u32)
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let _exempt = Exempt::begin();
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        assert!(len > 0, "a discard of no bytes");
        state.discarded += u64::from(len);
        state.urgent = state.urgent.filter(|&urgent| urgent >= state.discarded);
        assert!(state.discarded <= state.peeked, "discarded bytes that were never read");
        Ok(len)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        let _exempt = Exempt::begin();
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        if state.chance.is_none() {
            state.taken_error()?;
        }
        if state.failed {
            return Err(SocketError::Failed(BROKEN_PIPE));
        }
        state.shut = true;
        Ok(())
    }

    fn unacknowledged(&mut self) -> u32 {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        match state.roll(3) {
            None => {
                (state.sent - state.acknowledged) as u32 + u32::from(state.shut && !state.fin_acknowledged)
            }
            Some(choice) => u32::from(choice == 0),
        }
    }

    fn take_error(&mut self) -> Option<Errno> {
        let _exempt = Exempt::begin();
        self.0.borrow_mut().error.take()
    }

    fn keep_alive(&mut self) {
        self.0.borrow_mut().keep_alive = true;
    }

    fn reset_on_close(&mut self) {
        self.0.borrow_mut().reset_on_close = true;
    }

    fn set_traffic_class(&mut self, class: u8) {
        let _exempt = Exempt::begin();
        assert_eq!(class & 3, 0, "the ECN bits are the kernel's");
        self.0.borrow_mut().classes.push(class);
    }

    fn info(&mut self) -> Option<Info> {
        let state = self.0.borrow();
        // As in Linux, the end of the peer's stream counts as a byte.
        let totals = Totals::bytes(state.sent, state.received + u64::from(state.ended));
        Some(Info { totals, path: None })
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        let state = self.0.borrow();
        state.roll(256).map(|class| class as u8).or(state.peer_class)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _exempt = Exempt::begin();
        let state = &mut *self.0.borrow_mut();
        state.closed = Some(if state.reset_on_close {
            Closed::Reset
        } else if state.received > state.discarded {
            Closed::Unread
        } else {
            Closed::Orderly
        });
    }
}
