//! Datagram sockets, a host and a link for tests, which keep what goes through them.

use alloc::{
    collections::VecDeque,
    rc::{Rc, Weak},
    vec,
    vec::Vec,
};
use core::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
};

use wire::{
    frame::{self, Body, Frame, Packet, Transport},
    offload::Offload,
};

use crate::{
    addr::{Guest, Settings, test},
    context::{Context, World},
    flow::FlowId,
    forward::spec::Direction,
    host::{
        Errno, ErrorQueue, Host, NoSocket, Outbound, PingSocket, QueuedError, Received, Request, SocketError,
        UdpSocket,
    },
    link::{Full, Layout, Link, Slot},
    memory::Plain,
    timer::{Instant, Timers},
};

/// What a test's socket was told to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) destination: SocketAddr,
    pub(crate) source: Option<IpAddr>,
    pub(crate) hop_limit: u8,
    pub(crate) traffic_class: u8,
    pub(crate) dont_fragment: bool,
    pub(crate) payload: Vec<u8>,
    pub(crate) segment_size: Option<u16>,
}

/// The test's end of a socket.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) sent: Vec<Sent>,
    /// Results of the next calls to send; then all succeed.
    pub(crate) refusals: VecDeque<SocketError>,
    pub(crate) arriving: VecDeque<(Received, Vec<u8>)>,
    pub(crate) errors: VecDeque<(QueuedError, Vec<u8>)>,
    pub(crate) pending: Option<Errno>,
    /// Calls to receive, also vain ones.
    pub(crate) receives: usize,
    /// It was not opened on the port that was asked for.
    pub(crate) port_replaced: bool,
}

/// A datagram or ping socket: the test's view of it, or the engine's, which has a life to lose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Socket(
    pub(crate) Rc<RefCell<Peer>>,
    #[expect(dead_code, reason = "it is dropped with the engine's socket")] Option<Rc<()>>,
);

impl Socket {
    /// The socket as the engine has it, and its life.
    pub(crate) fn open(&self) -> (Self, Weak<()>) {
        let life = Rc::new(());
        let weak = Rc::downgrade(&life);
        (Self(self.0.clone(), Some(life)), weak)
    }

    fn push(&self, sent: Sent) -> Result<(), SocketError> {
        let mut peer = self.0.borrow_mut();
        match peer.refusals.pop_front() {
            Some(refusal) => Err(refusal),
            None => {
                peer.sent.push(sent);
                Ok(())
            }
        }
    }

    fn pull(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let mut peer = self.0.borrow_mut();
        peer.receives += 1;
        let (mut received, payload) = peer.arriving.pop_front().ok_or(SocketError::WouldBlock)?;
        received.len = payload.len().min(buffer.len());
        received.truncated = payload.len() > buffer.len();
        buffer[..received.len].copy_from_slice(&payload[..received.len]);
        Ok(received)
    }

    fn pull_error(&self, quote: &mut [u8]) -> Option<QueuedError> {
        let (mut error, payload) = self.0.borrow_mut().errors.pop_front()?;
        error.quoted = payload.len().min(quote.len());
        quote[..error.quoted].copy_from_slice(&payload[..error.quoted]);
        Some(error)
    }

    /// Lets a datagram arrive.
    pub(crate) fn arrive(&self, from: &str, payload: &[u8]) {
        self.arrive_as(received(from), payload);
    }

    /// Lets a datagram with these properties arrive.
    pub(crate) fn arrive_as(&self, received: Received, payload: &[u8]) {
        self.0.borrow_mut().arriving.push_back((received, payload.to_vec()));
    }

    /// Lets an error come in.
    pub(crate) fn error(&self, error: QueuedError, quote: &[u8]) {
        self.0.borrow_mut().errors.push_back((error, quote.to_vec()));
    }

    /// What was sent since the last call.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        core::mem::take(&mut self.0.borrow_mut().sent)
    }
}

/// A datagram of `from` with nothing special about it.
pub(crate) fn received(from: &str) -> Received {
    Received {
        len: 0,
        truncated: false,
        segment_size: None,
        from: from.parse().unwrap(),
        destination: None,
        local: None,
        hop_limit: Some(64),
        traffic_class: 0,
    }
}

impl ErrorQueue for Socket {
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        self.pull_error(quote)
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.0.borrow_mut().pending.take()
    }
}

impl UdpSocket for Socket {
    type Memory = Plain;

    fn send(&mut self, datagram: &Outbound<&[u8]>) -> Result<(), SocketError> {
        self.push(Sent {
            destination: datagram.destination,
            source: datagram.source,
            hop_limit: datagram.hop_limit,
            traffic_class: datagram.traffic_class,
            dont_fragment: datagram.dont_fragment,
            payload: datagram.payload.to_vec(),
            segment_size: datagram.segment_size,
        })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.pull(buffer)
    }

    fn keeps_port(&self) -> bool {
        !self.0.borrow().port_replaced
    }
}

impl PingSocket for Socket {
    type Memory = Plain;

    fn send(&mut self, request: &Request<'_, &[u8]>) -> Result<(), SocketError> {
        use zerocopy::IntoBytes;
        let mut payload = request.header.as_bytes().to_vec();
        payload.extend_from_slice(request.payload);
        self.push(Sent {
            destination: request.destination,
            source: None,
            hop_limit: request.hop_limit,
            traffic_class: request.traffic_class,
            dont_fragment: request.dont_fragment,
            payload,
            segment_size: None,
        })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.pull(buffer)
    }
}

/// A socket that was opened: under which id, for which address, for which port or echo identifier.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) id: FlowId,
    pub(crate) address: IpAddr,
    pub(crate) number: u16,
    pub(crate) socket: Socket,
    pub(crate) life: Weak<()>,
}

impl Opened {
    /// Whether the engine has closed the socket.
    pub(crate) fn closed(&self) -> bool {
        self.life.strong_count() == 0
    }
}

/// A host that remembers the sockets.
#[derive(Debug, Default)]
pub(crate) struct MockHost {
    pub(crate) opened: Vec<Opened>,
    pub(crate) watched: Vec<FlowId>,
    pub(crate) no_sockets: bool,
    /// Results of the next attempts to open a socket; then all succeed.
    pub(crate) refusals: VecDeque<Errno>,
    /// Ports of the host that are in use, and shared with those who ask for it.
    pub(crate) taken: Vec<u16>,
    /// Sockets at shared ports: the group, the port, and the socket.
    pub(crate) shared: Vec<(SocketAddr, u16, Socket)>,
    /// Its addresses.
    pub(crate) own: Vec<IpAddr>,
    /// What ping sockets were bound to.
    pub(crate) sources: Vec<Option<IpAddr>>,
    /// Files that there are for sockets.
    pub(crate) files: Option<usize>,
}

impl MockHost {
    fn open(&mut self, id: FlowId, address: IpAddr, number: u16) -> Result<Socket, Errno> {
        if self.no_sockets || self.files.is_some_and(|files| self.open_files() >= files) {
            return Err(Errno(24));
        }
        if let Some(refusal) = self.refusals.pop_front() {
            return Err(refusal);
        }
        let socket = Socket::default();
        let (open, life) = socket.open();
        self.opened.push(Opened { id, address, number, socket, life });
        Ok(open)
    }

    /// How many sockets are open.
    pub(crate) fn open_files(&self) -> usize {
        self.opened.iter().filter(|opened| !opened.closed()).count()
    }
}

impl Host for MockHost {
    type Memory = Plain;
    type Tcp = NoSocket<Plain>;
    type Udp = Socket;
    type Ping = Socket;

    fn outbound_source(&mut self, guest: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        Some(guest).filter(|guest| self.own.contains(guest))
    }

    fn tcp_connect(
        &mut self,
        _: FlowId,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: u8,
    ) -> Result<NoSocket<Plain>, Errno> {
        Err(Errno(97))
    }

    fn tcp_watch(&mut self, _: FlowId, _: &NoSocket<Plain>) -> Result<(), Errno> {
        Err(Errno(97))
    }

    fn udp_open(&mut self, flow: FlowId, address: IpAddr, port: u16) -> Result<Socket, Errno> {
        let socket = self.open(flow, address, port)?;
        socket.0.borrow_mut().port_replaced = self.taken.contains(&port);
        Ok(socket)
    }

    fn udp_open_shared(&mut self, group: SocketAddr, port: u16) -> Result<Socket, Errno> {
        if !self.taken.contains(&port) {
            return Err(Errno(98));
        }
        let socket = Socket::default();
        self.shared.push((group, port, socket.clone()));
        Ok(socket)
    }

    fn udp_join(&mut self, flow: FlowId, at: SocketAddr) -> Result<Socket, Errno> {
        self.open(flow, at.ip(), at.port())
    }

    fn udp_connect(
        &mut self,
        flow: FlowId,
        _: Direction,
        target: SocketAddr,
        port: u16,
    ) -> Result<Socket, Errno> {
        self.open(flow, target.ip(), port)
    }

    fn udp_watch(&mut self, flow: FlowId, _: &Socket) -> Result<(), Errno> {
        self.watched.push(flow);
        Ok(())
    }

    fn ping_open(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
    ) -> Result<Socket, Errno> {
        self.sources.push(source);
        self.open(flow, destination, id)
    }
}

/// A link that keeps the frames.
#[derive(Debug, Default)]
pub(crate) struct MockLink {
    slot: Vec<u8>,
    pub(crate) frames: Vec<(Vec<u8>, Offload)>,
    pub(crate) full: bool,
    /// How many frames it takes before it is full.
    pub(crate) room: Option<usize>,
}

impl Link for MockLink {
    type Memory = Plain;

    fn prepare(&mut self, layout: Layout) -> bool {
        // What is left of earlier frames must not show.
        self.slot = vec![0xa5; layout.len()];
        !self.full
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.slot, layout)
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        if self.room.is_some_and(|room| self.frames.len() >= room) {
            return Err(Full);
        }
        self.frames.push((self.slot[..len].to_vec(), *offload));
        Ok(())
    }
}

/// The kinds of what is in this module.
#[derive(Debug)]
pub(crate) enum Mock {}

impl World for Mock {
    type Memory = Plain;
    type Host = MockHost;
    type Link = MockLink;
}

/// Everything around the tables under test.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) now: Instant,
    pub(crate) settings: Settings,
    pub(crate) guest: Guest,
    pub(crate) host: MockHost,
    pub(crate) link: MockLink,
    pub(crate) timers: Timers<FlowId>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let settings = test::settings();
        let guest = test::guest(&settings);
        Self {
            now: Instant::from_micros(1_000_000),
            settings,
            guest,
            host: MockHost::default(),
            link: MockLink::default(),
            timers: Timers::default(),
        }
    }

    pub(crate) fn context(&mut self) -> Context<'_, Mock> {
        Context {
            now: self.now,
            settings: &self.settings,
            guest: &self.guest,
            host: &mut self.host,
            link: &mut self.link,
            timers: &mut self.timers,
        }
    }

    /// The frames sent to the guest since the last call.
    pub(crate) fn frames(&mut self) -> Vec<(Vec<u8>, Offload)> {
        core::mem::take(&mut self.link.frames)
    }

    /// The one frame sent to the guest since the last call.
    #[track_caller]
    pub(crate) fn frame(&mut self) -> (Vec<u8>, Offload) {
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "{frames:?}");
        frames.remove(0)
    }
}

/// The IP packet in a frame.
#[track_caller]
pub(crate) fn ip(frame: &[u8]) -> Packet<'_> {
    let Frame { body: Body::Ip(packet), .. } = frame::parse(frame).unwrap() else { panic!("no IP") };
    packet
}

/// Source, destination and payload of the UDP datagram in a frame.
#[track_caller]
pub(crate) fn udp(frame: &[u8]) -> (SocketAddr, SocketAddr, &[u8]) {
    let packet = ip(frame);
    let Transport::Udp(datagram) = packet.transport else { panic!("no UDP") };
    let source = SocketAddr::new(packet.source, datagram.header.source_port.get());
    let destination = SocketAddr::new(packet.destination, datagram.header.destination_port.get());
    (source, destination, datagram.payload)
}
