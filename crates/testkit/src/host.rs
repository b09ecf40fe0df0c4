//! A host in memory. It opens sockets, and keeps the test's handles of these sockets.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    vec::Vec,
};

use engine::{
    flow::{Endpoints, FlowId},
    forward::spec::Direction,
    host::{Errno, Host, Readiness},
    memory::Plain,
};

use super::{
    datagram::{Datagrams, Mailbox, NETWORK_UNREACHABLE, Opened},
    exempt::Exempt,
    random::Random,
    stream::{CONNECTION_REFUSED, Chance, Peer, State, Stream, Wakeups},
};

/// `EMFILE`.
const TOO_MANY_FILES: Errno = Errno(24);
/// `EADDRINUSE`.
const ADDRESS_IN_USE: Errno = Errno(98);

/// A datagram socket has a datagram to read.
pub const READABLE: Readiness =
    Readiness { readable: true, writable: false, read_closed: false, error: false, urgent: false };
/// A datagram socket has an error.
pub const ERROR: Readiness = Readiness { readable: false, error: true, ..READABLE };

/// The host.
#[derive(Debug, Default)]
pub struct VirtualHost {
    /// Stream sockets, in the order in which they were opened.
    pub peers: Vec<Peer>,
    /// Datagram and ping sockets, in the order in which they were opened.
    pub opened: Vec<Opened>,
    /// Sockets that share a port. For each: the group, the port, and the socket.
    pub shared: Vec<(SocketAddr, u16, Datagrams)>,
    /// Listeners that were watched.
    pub watched: Vec<FlowId>,
    /// The source addresses of ping sockets, in the order in which they were opened.
    pub sources: Vec<Option<IpAddr>>,
    /// Whether no socket can be opened.
    pub no_sockets: bool,
    /// Limit of open datagram and ping sockets.
    pub files: Option<usize>,
    /// The errors of the next attempts to open a socket. Later attempts succeed.
    pub refusals: VecDeque<Errno>,
    /// The error that `connect` returns at once.
    pub connect_error: Option<Errno>,
    /// Ports that are in use, but can be shared.
    pub taken: Vec<u16>,
    /// The host's addresses.
    pub own: Vec<IpAddr>,
    /// Send buffer of new stream sockets, in bytes; 1 MiB if none is given.
    pub send_capacity: Option<u64>,
    /// Whether new stream sockets return the urgent byte only after the bytes before it were discarded.
    pub strict: bool,
    /// The traffic class of clients.
    pub peer_class: Option<u8>,
    /// The connection of the segment that the guest sends now, and the position of its sequence number in the stream.
    /// If the segment opens a connection, the stream of the new socket begins at this position. None: streams begin at
    /// position 0.
    pub segment: Option<(Endpoints, u32)>,
    /// The ICMP errors for clients of the bypass: the client, and the IP packet.
    pub client_reports: Vec<(IpAddr, Vec<u8>)>,
    wakeups: Wakeups,
    chance: Option<Chance>,
}

impl VirtualHost {
    /// A host whose sockets have random results, from `seed`. The sockets accept and return any number of bytes, and
    /// sometimes fail. No port is free.
    pub fn random(seed: u64) -> Self {
        Self { chance: Some(Rc::new(RefCell::new(Random::new(seed)))), ..Self::default() }
    }

    /// A connection that a client has made to the host.
    pub fn accepted(&mut self) -> Stream {
        self.stream(None, None)
    }

    /// The next stream socket that became ready, and its readiness.
    pub fn next_ready(&mut self) -> Option<(FlowId, Readiness)> {
        loop {
            let flow = self.wakeups.borrow_mut().pop_front()?;
            let open = |peer: &&Peer| peer.state().flow == Some(flow) && peer.closed().is_none();
            if let Some(peer) = self.peers.iter().find(open) {
                return Some((flow, peer.state().take_readiness()));
            }
        }
    }

    /// How many datagram and ping sockets are open.
    pub fn open_files(&self) -> usize {
        self.opened.iter().filter(|opened| !opened.closed()).count()
    }

    /// Removes the sockets that the engine has closed.
    pub fn forget_closed(&mut self) {
        self.peers.retain(|peer| peer.closed().is_none());
        self.opened.retain(|opened| !opened.closed());
        self.shared.clear();
    }

    fn stream(&mut self, flow: Option<FlowId>, destination: Option<SocketAddr>) -> Stream {
        let (ends, start) = self.segment.filter(|_| destination.is_some()).unzip();
        let state = State {
            flow,
            destination,
            ends,
            starts: Vec::from([start.map_or(0, |seq| seq.wrapping_add(1))]),
            connected: destination.is_none(),
            send_capacity: self.send_capacity.unwrap_or(1 << 20),
            strict: self.strict,
            peer_class: self.peer_class,
            wakeups: self.wakeups.clone(),
            chance: self.chance.clone(),
            ..State::default()
        };
        let state = Rc::new(RefCell::new(state));
        self.peers.push(Peer(state.clone()));
        Stream(state)
    }

    fn may_open(&mut self) -> Result<(), Errno> {
        if self.no_sockets || self.files.is_some_and(|files| self.open_files() >= files) {
            return Err(TOO_MANY_FILES);
        }
        if let Some(refusal) = self.refusals.pop_front() {
            return Err(refusal);
        }
        match self.chance.as_ref().map(|chance| chance.borrow_mut().below(64)) {
            Some(0) => Err(NETWORK_UNREACHABLE),
            Some(1) => Err(CONNECTION_REFUSED),
            _ => Ok(()),
        }
    }

    fn open(&mut self, id: FlowId, address: IpAddr, number: u16) -> Result<Datagrams, Errno> {
        self.may_open()?;
        let socket = self.socket();
        let (open, life) = socket.open();
        self.opened.push(Opened { id, address, number, socket, life });
        Ok(open)
    }

    fn socket(&self) -> Datagrams {
        let socket = Datagrams::default();
        *socket.mailbox() = Mailbox { chance: self.chance.clone(), ..Mailbox::default() };
        socket
    }

    fn is_taken(&self, port: u16) -> bool {
        self.chance.is_some() || self.taken.contains(&port)
    }
}

impl Host for VirtualHost {
    type Memory = Plain;
    type Tcp = Stream;
    type Udp = Datagrams;
    type Ping = Datagrams;

    fn outbound_source(&mut self, guest: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        Some(guest).filter(|guest| self.own.contains(guest))
    }

    fn is_own(&mut self, destination: SocketAddr) -> bool {
        self.own.contains(&destination.ip())
    }

    fn tcp_connect(
        &mut self,
        flow: FlowId,
        _: Option<IpAddr>,
        destination: SocketAddr,
        class: u8,
    ) -> Result<Stream, Errno> {
        let _exempt = Exempt::begin();
        let ip = destination.ip();
        let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        assert!(!ip.is_unspecified() && !ip.is_multicast() && !mapped, "connection to {destination}");
        assert!(destination.port() > 0, "connection to {destination}");
        self.connect_error.map_or(Ok(()), Err)?;
        self.may_open()?;
        let socket = self.stream(Some(flow), Some(destination));
        socket.0.borrow_mut().classes.push(class);
        Ok(socket)
    }

    fn tcp_watch(&mut self, flow: FlowId, socket: &Stream) -> Result<(), Errno> {
        let _exempt = Exempt::begin();
        self.may_open()?;
        let mut state = socket.0.borrow_mut();
        state.flow = Some(flow);
        state.wake(); // like epoll, if the socket is already ready
        Ok(())
    }

    fn udp_open(&mut self, flow: FlowId, address: IpAddr, port: u16) -> Result<Datagrams, Errno> {
        let _exempt = Exempt::begin();
        let socket = self.open(flow, address, port)?;
        socket.mailbox().port_replaced = self.is_taken(port);
        Ok(socket)
    }

    fn udp_open_shared(&mut self, group: SocketAddr, port: u16) -> Result<Datagrams, Errno> {
        let _exempt = Exempt::begin();
        assert!(group.ip().is_multicast(), "{group}");
        if !self.is_taken(port) {
            return Err(ADDRESS_IN_USE);
        }
        self.may_open()?;
        let socket = self.socket();
        self.shared.push((group, port, socket.clone()));
        Ok(socket)
    }

    fn udp_join(&mut self, flow: FlowId, at: SocketAddr) -> Result<Datagrams, Errno> {
        let _exempt = Exempt::begin();
        assert!(at.ip().is_multicast() && at.port() != 0, "{at}");
        self.open(flow, at.ip(), at.port())
    }

    fn udp_connect(
        &mut self,
        flow: FlowId,
        _: Direction,
        target: SocketAddr,
        port: u16,
    ) -> Result<Datagrams, Errno> {
        let _exempt = Exempt::begin();
        self.udp_open(flow, target.ip(), port)
    }

    fn udp_watch(&mut self, flow: FlowId, _: &Datagrams) -> Result<(), Errno> {
        let _exempt = Exempt::begin();
        self.watched.push(flow);
        Ok(())
    }

    fn ping_open(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
    ) -> Result<Datagrams, Errno> {
        let _exempt = Exempt::begin();
        self.sources.push(source);
        self.open(flow, destination, id)
    }

    fn report_to_client(&mut self, client: IpAddr, packet: &[u8]) {
        let _exempt = Exempt::begin();
        self.client_reports.push((client, packet.to_vec()));
    }
}
