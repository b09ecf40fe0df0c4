//! Sockets of the host that exist in memory only, with the peer's kernel behind them.

use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use engine::{
    flow::FlowId,
    forward::spec::Direction,
    host::{Errno, Host, NoSocket, Readiness, SocketError, TcpSocket},
    memory::Plain,
};

use crate::pattern::Pattern;

/// `EAFNOSUPPORT`, of all protocols but TCP.
const NOT_SUPPORTED: Errno = Errno(97);
/// `EPIPE`.
const BROKEN_PIPE: Errno = Errno(32);
/// `ECONNRESET`.
pub(crate) const CONNECTION_RESET: Errno = Errno(104);
/// `ECONNREFUSED`.
pub(crate) const CONNECTION_REFUSED: Errno = Errno(111);

/// Flows whose sockets woke up, in order, each once.
type Wakeups = Rc<RefCell<VecDeque<FlowId>>>;

/// How a connection was closed on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    /// In order.
    Orderly,
    /// By a reset that was asked for.
    Reset,
    /// With received bytes left unread: the kernel makes that a reset.
    Unread,
}

/// One socket: counters into the two streams, and the state of either half.
#[derive(Debug)]
pub(crate) struct State {
    flow: Option<FlowId>,
    wakeups: Wakeups,
    /// Where it connects to; none if it was accepted.
    pub(crate) destination: Option<SocketAddr>,
    pub(crate) connected: bool,
    /// What the guest sends, and what the peer sends.
    upward: Pattern,
    downward: Pattern,
    /// Bytes of send buffer.
    pub(crate) send_capacity: u64,
    /// Bytes taken for sending so far, and those of them that the peer has acknowledged.
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    /// A write was refused, in whole or in part.
    refused: bool,
    pub(crate) shut: bool,
    fin_acknowledged: bool,
    /// Bytes received from the peer so far, those copied out at least once, those discarded.
    pub(crate) received: u64,
    peeked: u64,
    pub(crate) discarded: u64,
    pub(crate) ended: bool,
    /// Where in the peer's stream the urgent byte is, until it is discarded.
    urgent: Option<u64>,
    /// The urgent byte and later ones can be copied out only when the bytes before are discarded: a socket without
    /// `SO_PEEK_OFF`.
    strict: bool,
    /// Where in the guest's stream urgent bytes were sent.
    pub(crate) urgent_sent: Vec<u64>,
    /// The traffic classes it was given, and that of the peer.
    pub(crate) classes: Vec<u8>,
    pub(crate) peer_class: Option<u8>,
    error: Option<Errno>,
    failed: bool,
    pub(crate) keep_alive: bool,
    reset_on_close: bool,
    pub(crate) closed: Option<Closed>,
    /// Calls made on the socket, to notice loops.
    pub(crate) calls: u64,
}

impl State {
    fn wake(&mut self) {
        let Some(flow) = self.flow else { return };
        let mut wakeups = self.wakeups.borrow_mut();
        if self.closed.is_none() && !wakeups.contains(&flow) {
            wakeups.push_back(flow);
        }
    }

    fn room(&self) -> u64 {
        self.send_capacity.saturating_sub(self.sent - self.acknowledged)
    }

    /// As Linux has it: writable when a third is free.
    fn writable(&self) -> bool {
        self.failed || (self.connected && (self.shut || self.room() * 3 >= self.send_capacity))
    }

    fn readiness(&self) -> Readiness {
        Readiness {
            readable: self.received > self.discarded || self.ended || self.failed,
            writable: self.writable(),
            read_closed: self.ended || self.failed,
            error: self.error.is_some() || (self.ended && self.fin_acknowledged),
            urgent: self.urgent.is_some_and(|urgent| urgent < self.received),
        }
    }

    fn taken_error(&mut self) -> Result<(), SocketError> {
        self.error.take().map_or(Ok(()), |errno| Err(SocketError::Failed(errno)))
    }
}

/// The engine's end of a virtual socket.
#[derive(Debug)]
pub(crate) struct Socket(Rc<RefCell<State>>);

/// The test's end of a virtual socket: what the peer and its kernel do.
#[derive(Clone, Debug)]
pub(crate) struct Peer(Rc<RefCell<State>>);

impl Peer {
    pub(crate) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// The connection is made.
    pub(crate) fn connect(&self) {
        let mut state = self.state();
        state.connected = true;
        state.wake();
    }

    /// The connection fails: not made, or reset.
    pub(crate) fn fail(&self, errno: Errno) {
        let mut state = self.state();
        state.error = Some(errno);
        state.failed = true;
        state.ended = true;
        state.wake();
    }

    /// `len` more bytes of the peer have arrived.
    pub(crate) fn arrive(&self, len: u64) {
        let mut state = self.state();
        state.received += len;
        state.wake();
    }

    /// `len` more bytes of the peer have arrived, of which the last one is urgent.
    pub(crate) fn arrive_urgent(&self, len: u64) {
        let mut state = self.state();
        state.received += len;
        state.urgent = Some(state.received - 1);
        state.wake();
    }

    /// The same, unless the peer has ended its half.
    pub(crate) fn arrive_unless_ended(&self, len: u64) {
        let ended = self.state().ended;
        if !ended && len > 0 {
            self.arrive(len);
        }
    }

    /// The peer has ended its half.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.wake();
    }

    /// The peer acknowledges what was sent up to byte `until` of the stream.
    pub(crate) fn acknowledge(&self, until: u64) {
        let mut state = self.state();
        let was_writable = state.writable();
        assert!(until <= state.sent && until >= state.acknowledged);
        state.acknowledged = until;
        if state.refused && !was_writable && state.writable() {
            state.refused = false;
            state.wake();
        }
    }

    /// The peer acknowledges everything and, if that was sent, the end of the stream.
    pub(crate) fn acknowledge_all(&self) {
        let sent = self.state().sent;
        self.acknowledge(sent);
        let mut state = self.state();
        if state.shut && !state.fin_acknowledged {
            state.fin_acknowledged = true;
            state.wake(); // the change of state wakes pollers
        }
    }

    /// Received bytes that are still in the socket.
    pub(crate) fn unread(&self) -> u64 {
        let state = self.state();
        state.received - state.discarded
    }

    /// Whether the peer has seen the guest's stream to its end.
    pub(crate) fn has_seen_end(&self) -> bool {
        self.state().fin_acknowledged
    }

    /// How our side closed it, once it has.
    pub(crate) fn closed(&self) -> Option<Closed> {
        self.state().closed
    }
}

impl TcpSocket for Socket {
    type Memory = Plain;
    const MAX_PIECES: usize = 3;

    fn send(&mut self, payload: &[u8]) -> Result<usize, SocketError> {
        self.send_pieces(&[payload])
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        state.taken_error()?;
        if state.failed || state.shut {
            return Err(SocketError::Failed(BROKEN_PIPE));
        }
        if !state.connected {
            return Err(SocketError::WouldBlock);
        }
        let mut taken = 0;
        // As the kernel's interface: what comes after these is left alone, and no event follows.
        for piece in pieces.iter().take(Self::MAX_PIECES) {
            let len = piece.len().min(state.room() as usize);
            state.upward.check(state.sent, &piece[..len]);
            state.sent += len as u64;
            taken += len;
            state.refused |= len < piece.len();
        }
        if taken == 0 { Err(SocketError::WouldBlock) } else { Ok(taken) }
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        let position = self.0.borrow().sent;
        self.send_pieces(&[&[byte]])?;
        self.0.borrow_mut().urgent_sent.push(position);
        Ok(())
    }

    fn peek(&mut self, offset: u32, buffer: &mut [u8]) -> Result<usize, SocketError> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        let from = state.discarded + u64::from(offset);
        let mut end = state.received;
        if let Some(urgent) = state.urgent {
            if from < urgent {
                end = end.min(urgent);
            } else if state.strict && state.discarded < urgent {
                return Err(SocketError::WouldBlock);
            }
        }
        let len = end.saturating_sub(from).min(buffer.len() as u64);
        if len == 0 {
            state.taken_error()?;
            return if state.ended { Ok(0) } else { Err(SocketError::WouldBlock) };
        }
        state.downward.fill(from, &mut buffer[..len as usize]);
        state.peeked = state.peeked.max(from + len);
        Ok(len as usize)
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        state.urgent.filter(|&urgent| urgent < state.received).map(|urgent| (urgent - state.discarded) as u32)
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        state.discarded += u64::from(len);
        state.urgent = state.urgent.filter(|&urgent| urgent >= state.discarded);
        assert!(state.discarded <= state.peeked, "discarded bytes that were never read");
        Ok(len)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        state.taken_error()?;
        if state.failed {
            return Err(SocketError::Failed(BROKEN_PIPE));
        }
        state.shut = true;
        Ok(())
    }

    fn unacknowledged(&mut self) -> u32 {
        let state = &mut *self.0.borrow_mut();
        state.calls += 1;
        (state.sent - state.acknowledged) as u32 + u32::from(state.shut && !state.fin_acknowledged)
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.0.borrow_mut().error.take()
    }

    fn keep_alive(&mut self) {
        self.0.borrow_mut().keep_alive = true;
    }

    fn reset_on_close(&mut self) {
        self.0.borrow_mut().reset_on_close = true;
    }

    fn set_traffic_class(&mut self, class: u8) {
        self.0.borrow_mut().classes.push(class);
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        self.0.borrow().peer_class
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
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

/// The host: makes sockets, and tells which are ready.
#[derive(Debug)]
pub(crate) struct VirtualHost {
    wakeups: Wakeups,
    /// All sockets so far, in order.
    pub(crate) peers: Vec<Peer>,
    /// Send buffer of new sockets, in bytes.
    pub(crate) send_capacity: u64,
    /// New sockets give the urgent byte only when the bytes before are discarded.
    pub(crate) strict: bool,
    /// The traffic class of clients.
    pub(crate) peer_class: Option<u8>,
    /// What `connect` returns at once.
    pub(crate) connect_error: Option<Errno>,
    upward: Pattern,
    downward: Pattern,
}

impl VirtualHost {
    /// A host whose sockets carry these streams: `upward` from the guest, `downward` to it.
    pub(crate) fn new(upward: Pattern, downward: Pattern) -> Self {
        let (peers, wakeups) = (Vec::new(), Wakeups::default());
        Self {
            wakeups,
            peers,
            send_capacity: 1 << 20,
            strict: false,
            peer_class: None,
            connect_error: None,
            upward,
            downward,
        }
    }

    fn socket(&mut self, flow: Option<FlowId>, destination: Option<SocketAddr>) -> Socket {
        let state = State {
            flow,
            wakeups: self.wakeups.clone(),
            destination,
            connected: destination.is_none(),
            upward: self.upward.clone(),
            downward: self.downward.clone(),
            send_capacity: self.send_capacity,
            sent: 0,
            acknowledged: 0,
            refused: false,
            shut: false,
            fin_acknowledged: false,
            received: 0,
            peeked: 0,
            discarded: 0,
            ended: false,
            urgent: None,
            strict: self.strict,
            urgent_sent: Vec::new(),
            classes: Vec::new(),
            peer_class: self.peer_class,
            error: None,
            failed: false,
            keep_alive: false,
            reset_on_close: false,
            closed: None,
            calls: 0,
        };
        let state = Rc::new(RefCell::new(state));
        self.peers.push(Peer(state.clone()));
        Socket(state)
    }

    /// A connection that a client of the host has made.
    pub(crate) fn accepted(&mut self) -> Socket {
        self.socket(None, None)
    }

    /// The next socket that woke up, and what it is ready for by now.
    pub(crate) fn next_ready(&mut self) -> Option<(FlowId, Readiness)> {
        loop {
            let flow = self.wakeups.borrow_mut().pop_front()?;
            let open = |peer: &&Peer| peer.state().flow == Some(flow) && peer.closed().is_none();
            if let Some(peer) = self.peers.iter().find(open) {
                return Some((flow, peer.state().readiness()));
            }
        }
    }
}

impl Host for VirtualHost {
    type Memory = Plain;
    type Tcp = Socket;
    type Udp = NoSocket<Plain>;
    type Ping = NoSocket<Plain>;

    fn outbound_source(&mut self, _: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        None
    }

    fn tcp_connect(
        &mut self,
        flow: FlowId,
        _: Option<IpAddr>,
        destination: SocketAddr,
        class: u8,
    ) -> Result<Socket, Errno> {
        match self.connect_error {
            Some(errno) => Err(errno),
            None => {
                let socket = self.socket(Some(flow), Some(destination));
                socket.0.borrow_mut().classes.push(class);
                Ok(socket)
            }
        }
    }

    fn tcp_watch(&mut self, flow: FlowId, socket: &Socket) -> Result<(), Errno> {
        let mut state = socket.0.borrow_mut();
        state.flow = Some(flow);
        state.wake(); // registration reports what is ready already
        Ok(())
    }

    fn udp_open(&mut self, _: FlowId, _: IpAddr, _: u16) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_open_shared(&mut self, _: SocketAddr, _: u16) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_join(&mut self, _: FlowId, _: SocketAddr) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_connect(
        &mut self,
        _: FlowId,
        _: Direction,
        _: SocketAddr,
        _: u16,
    ) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_watch(&mut self, _: FlowId, _: &NoSocket<Plain>) -> Result<(), Errno> {
        Err(NOT_SUPPORTED)
    }

    fn ping_open(
        &mut self,
        _: FlowId,
        _: Option<IpAddr>,
        _: IpAddr,
        _: u16,
    ) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }
}
