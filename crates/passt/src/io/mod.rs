//! The engine's socket traits over real sockets of the host.

pub(crate) mod client_errors;
pub mod outbound;
pub mod ping;
mod ports;
mod source;
pub(crate) mod splice;
mod tcp;
pub mod udp;
pub(crate) mod unix_socket;
pub(crate) mod world;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use engine::flow::FlowId;
use engine::forward::spec::Direction;
use engine::host::{Errno, Host, Readiness, TcpSocket};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io;

use self::client_errors::ClientErrors;
use self::outbound::Outbound;
use self::ping::{PingSocket, Pings};
use self::ports::ReplacedPorts;
pub(crate) use self::source::Sources;
use self::tcp::PeekMethod;
pub(crate) use self::tcp::{Stream, stream_socket};
use self::udp::UdpSocket;
use crate::budgets::ledger::{Class, Ledger, Permit};
use crate::errno::to_engine;
use crate::host::OwnAddresses;
use crate::memory::Vectored;
use crate::pasta::netns::Opener;

/// Opens sockets of the host, and makes an epoll set watch them.
#[derive(Debug)]
pub(crate) struct Sockets {
    epoll: Rc<OwnedFd>,
    outbound: Arc<Outbound>,
    /// Settings of sockets whose packets stay on this machine.
    plain: Arc<Outbound>,
    /// Opens sockets in the guest's namespace.
    opener: Option<Opener>,
    pings: Pings,
    replaced_ports: ReplacedPorts,
    /// What the TCP sockets share.
    streams: Rc<tcp::Shared>,
    sources: Sources,
    ledger: Rc<Ledger>,
    /// Indices of the interfaces at which multicast groups are joined, for IPv6 and IPv4.
    groups: [Option<u32>; 2],
    /// Send errors to clients in the guest's namespace.
    client_errors: ClientErrors,
}

impl Sockets {
    /// Creates the opener of sockets. Packets leave by `outbound` from addresses of `sources`. `epoll` watches the
    /// sockets.
    pub(crate) fn new(epoll: Rc<OwnedFd>, outbound: Outbound, sources: Sources, ledger: Rc<Ledger>) -> Self {
        let outbound = Arc::new(outbound);
        Self {
            epoll,
            pings: Pings::new(outbound.clone()),
            outbound,
            replaced_ports: ReplacedPorts::default(),
            plain: Arc::new(Outbound::plain()),
            opener: None,
            streams: tcp::Shared::new(PeekMethod::probe()),
            sources,
            ledger,
            groups: [None; 2],
            client_errors: ClientErrors::default(),
        }
    }

    /// Sets the sockets that send errors to clients in the guest's namespace.
    pub(crate) fn report_by(&mut self, errors: ClientErrors) {
        self.client_errors = errors;
    }

    /// Sets the interfaces, by index, at which multicast groups are joined, for IPv6 and IPv4.
    pub(crate) fn join_at(&mut self, interfaces: [Option<u32>; 2]) {
        self.groups = interfaces;
    }

    /// Makes `opener` open sockets in the guest's namespace from now on.
    pub(crate) fn start(&mut self, opener: Opener) {
        self.opener = Some(opener);
    }

    /// The socket that reports changes of the host's addresses. `None` if the addresses are not followed.
    pub(crate) fn followed_addresses(&self) -> Option<BorrowedFd<'_>> {
        self.sources.followed.as_ref().map(AsFd::as_fd)
    }

    /// Whether the host's addresses are followed.
    pub(crate) const fn follows_addresses(&self) -> bool {
        self.sources.followed.is_some()
    }

    /// Applies the changes of the host's addresses.
    pub(crate) fn update_addresses(&mut self) {
        self.sources.followed.iter_mut().for_each(OwnAddresses::update);
    }

    /// The source address of packets to `destination` that the kernel or an option chooses, if it is known.
    pub(crate) fn usual_source(&mut self, destination: SocketAddr) -> Option<IpAddr> {
        let egress = self.outbound.egress(destination.ip());
        match (egress.source, &egress.interface) {
            (Some(source), _) => Some(source),
            // The kernel's choice depends on the interface.
            (None, Some(_)) => None,
            (None, None) => self.sources.usual(destination),
        }
    }

    /// The ledger of open files.
    pub(crate) fn ledger(&self) -> &Rc<Ledger> {
        &self.ledger
    }

    /// The epoll set.
    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Takes over an accepted socket. The socket is non-blocking.
    pub(crate) fn stream(&self, fd: OwnedFd, permit: Permit) -> Stream {
        Stream::new(fd, self.streams.clone(), Some(permit))
    }

    /// Takes over the socket of a UDP listener on `address`.
    pub(crate) fn udp_listener(&self, fd: OwnedFd, address: Option<IpAddr>, permit: Permit) -> UdpSocket {
        UdpSocket::from_listener(fd, address, &self.outbound, permit)
    }

    fn watch(&self, fd: impl AsFd, flow: FlowId, events: EventFlags) -> Result<(), Errno> {
        epoll::add(&*self.epoll, fd, EventData::new_u64(flow.to_bits()), events).map_err(to_engine)
    }

    /// The error for a flow whose socket can't be opened. Exhaustion of files or memory is logged.
    fn no_socket(&self, error: io::Errno) -> Errno {
        let reason = to_engine(error);
        if reason.is_exhaustion() {
            self.ledger.report_exhaustion(error);
        }
        reason
    }

    /// Binds a stream socket as `--outbound` and `--outbound-if4`/`-if6` require. Without these options, binds it to
    /// `source`.
    fn bind_stream(&self, fd: &OwnedFd, source: Option<IpAddr>, destination: IpAddr) -> Result<(), Errno> {
        let egress = self.outbound.egress(destination);
        if let Some((interface, _)) = &egress.interface {
            sys::sockopt::bind_to_device(fd, interface).map_err(to_engine)?;
        }
        let Some(address) = egress.source.or(source) else { return Ok(()) };
        // Allows connections to different destinations to share a local port. If this fails, fewer connections are
        // possible.
        let _refused = sys::sockopt::bind_address_no_port(fd);
        match rustix::net::bind(fd, &SocketAddr::new(address, 0)) {
            // The host does not have the address any more.
            Err(io::Errno::ADDRNOTAVAIL) if egress.source.is_none() => Ok(()),
            bound => bound.map_err(to_engine),
        }
    }
}

impl Host for Sockets {
    type Memory = Vectored;
    type Tcp = Stream;
    type Udp = UdpSocket;
    type Ping = PingSocket;

    fn outbound_source(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr> {
        let egress = self.outbound.egress(destination.ip());
        // With `--outbound` or an outbound interface, the guest's address has no influence.
        let free = egress.source.is_none() && egress.interface.is_none();
        if free { self.sources.choose(guest, destination) } else { None }
    }

    fn is_own(&mut self, destination: SocketAddr) -> bool {
        self.sources.is_own(destination.ip())
    }

    fn tcp_connect(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: SocketAddr,
        class: u8,
    ) -> Result<Stream, Errno> {
        let permit = self.ledger.take(Class::Outgoing).ok_or(to_engine(io::Errno::MFILE))?;
        let fd = stream_socket(destination.is_ipv4()).map_err(|errno| self.no_socket(errno))?;
        self.bind_stream(&fd, source, destination.ip())?;
        let mut stream = self.stream(fd, permit);
        if class != 0 {
            stream.set_traffic_class(class);
        }
        match rustix::net::connect(&stream, &destination) {
            // After a signal, the socket goes on connecting (connect(2)).
            Ok(()) | Err(io::Errno::INPROGRESS | io::Errno::INTR) => {}
            Err(error) => return Err(to_engine(error)),
        }
        self.tcp_watch(flow, &stream)?;
        Ok(stream)
    }

    fn tcp_watch(&mut self, flow: FlowId, socket: &Stream) -> Result<(), Errno> {
        self.watch(
            socket,
            flow,
            EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )
    }

    fn udp_open(&mut self, flow: FlowId, address: IpAddr, port: u16) -> Result<UdpSocket, Errno> {
        let socket = UdpSocket::open(&self.outbound, address, port).map_err(|errno| self.no_socket(errno))?;
        self.udp_watch(flow, &socket)?;
        if let Some(refusal) = socket.refused_port() {
            self.replaced_ports.warn(port, refusal);
        }
        Ok(socket)
    }

    fn udp_open_shared(&mut self, group: SocketAddr, port: u16) -> Result<UdpSocket, Errno> {
        UdpSocket::share(&self.outbound, group, port).map_err(|errno| self.no_socket(errno))
    }

    fn udp_join(&mut self, flow: FlowId, at: SocketAddr) -> Result<UdpSocket, Errno> {
        let interface = self.groups[usize::from(at.is_ipv4())].ok_or(to_engine(io::Errno::NODEV))?;
        let socket = UdpSocket::join(&self.outbound, at, interface).map_err(|errno| self.no_socket(errno))?;
        self.udp_watch(flow, &socket)?;
        Ok(socket)
    }

    fn udp_connect(
        &mut self,
        flow: FlowId,
        direction: Direction,
        target: SocketAddr,
        port: u16,
    ) -> Result<UdpSocket, Errno> {
        const UNREACHABLE: Errno = to_engine(io::Errno::NETUNREACH);
        let plain = self.plain.clone();
        let open = move || udp::connected(&plain, target, port);
        let fd = match direction {
            Direction::Outbound => open(),
            Direction::Inbound => {
                let opener = self.opener.as_ref().ok_or(UNREACHABLE)?;
                opener.call(open).map_err(|_| UNREACHABLE)?
            }
        };
        let fd = fd.map_err(|errno| self.no_socket(errno))?;
        let socket = UdpSocket::of_flow(fd, target.ip(), &self.plain, None);
        self.udp_watch(flow, &socket)?;
        Ok(socket)
    }

    fn udp_watch(&mut self, flow: FlowId, socket: &UdpSocket) -> Result<(), Errno> {
        self.watch(socket, flow, udp::EVENTS)
    }

    fn ping_open(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
    ) -> Result<PingSocket, Errno> {
        let socket = self.pings.open(source, destination, id).map_err(|errno| self.no_socket(errno))?;
        self.watch(&socket, flow, udp::EVENTS)?;
        Ok(socket)
    }

    fn report_to_client(&mut self, client: IpAddr, packet: &[u8]) {
        self.client_errors.send(client, packet);
    }
}

/// The readiness of a socket, from an epoll event.
pub(crate) fn readiness(events: EventFlags) -> Readiness {
    Readiness {
        readable: events.contains(EventFlags::IN),
        writable: events.contains(EventFlags::OUT),
        read_closed: events.intersects(EventFlags::RDHUP | EventFlags::HUP),
        error: events.contains(EventFlags::ERR),
        urgent: events.contains(EventFlags::PRI),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use engine::flow::Kind;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};

    use super::*;
    use crate::isolated::isolated;

    /// buffer sizes are not set. If they were set, the kernel would not adapt them any more.
    #[test]
    fn stream_buffers_are_adapted_by_the_kernel_r80() {
        isolated(|| {
            let sizes = |fd: &OwnedFd| {
                let (sent, received) =
                    (sockopt::socket_send_buffer_size(fd), sockopt::socket_recv_buffer_size(fd));
                (sent.unwrap(), received.unwrap())
            };
            let untouched =
                socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::empty(), None).unwrap();
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            rustix::net::connect(&untouched, &listener.local_addr().unwrap()).unwrap();

            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let (sources, ledger) = (Sources::default(), crate::budgets::ledger::plenty().1);
            let mut sockets = Sockets::new(epoll.into(), Outbound::plain(), sources, ledger);
            let id = FlowId::from_bits(u64::from(Kind::Tcp as u8) << 56).unwrap();
            let stream = sockets.tcp_connect(id, None, listener.local_addr().unwrap(), 0).unwrap();
            assert_eq!(sizes(&stream.as_fd().try_clone_to_owned().unwrap()), sizes(&untouched));
        });
    }
}
