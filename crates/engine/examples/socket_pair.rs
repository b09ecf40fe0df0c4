//! The engine between a socket pair and UDP sockets of the host: a starting point for the author of a virtual machine
//! monitor.
//!
//! ```text
//! $ cargo run -p engine --example socket_pair
//! ```
//!
//! One end of a pair of UNIX datagram sockets is the guest's network card: each datagram is an Ethernet frame. The
//! other end is the engine's [`Link`]. The [`Host`] of this example forwards UDP with the standard library's sockets,
//! and refuses TCP and ping. A complete host implements [`engine::host::TcpSocket`] and [`engine::host::PingSocket`] in
//! the same way.
//!
//! The guest is a function at the end of this file. The guest writes one frame, which it builds by hand: "hello", to
//! an echo server of the host.

use std::collections::HashMap;
use std::error::Error;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use engine::addr::{Guest, Services, Settings, V4};
use engine::context::World;
use engine::flow::FlowId;
use engine::forward::spec::Direction;
use engine::host::{
    Errno, ErrorQueue, Host, NoSocket, OutboundDatagram, QueuedError, Readiness, Received, SocketError,
    UdpSocket,
};
use engine::link::{Full, Layout, Link, Slot};
use engine::memory::Plain;
use engine::neighbours::Neighbours;
use engine::share::{Bound, Share};
use engine::stack::{Limits, Seeds, Stack};
use engine::timer::Instant;
use engine::{dns, reassembly, udp};
use wire::ethernet::Mac;
use wire::frame::{self, Body, Outgoing, Transport};
use wire::offload::Offload;
use wire::segment::complete_checksum;

type Failure = Box<dyn Error + Send + Sync>;

const GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The guest's router. Packets that the guest sends to this address reach the host's loopback.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 2]);
const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
/// `EAFNOSUPPORT`: the error for protocols that this host does not carry.
const NOT_SUPPORTED: Errno = Errno(97);

/// Memory, host and link of this program.
enum Example {}

impl World for Example {
    type Memory = Plain;
    type Host = Sockets;
    type Link = Pair;
}

/// The engine's end of the pair.
struct Pair {
    socket: UnixDatagram,
    buffer: Vec<u8>,
}

impl Link for Pair {
    type Memory = Plain;

    fn prepare(&mut self, layout: Layout) -> bool {
        layout.len() <= self.buffer.len()
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.buffer, layout)
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        // This network card completes no checksums.
        complete_checksum(&mut self.buffer[..len], offload);
        match self.socket.send(&self.buffer[..len]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(Full),
            // A failed write loses the frame, as on a wire.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// The host's sockets, and the flow that each socket serves.
#[derive(Default)]
struct Sockets {
    watched: HashMap<FlowId, std::net::UdpSocket>,
}

/// A UDP socket of the host.
struct Socket {
    socket: std::net::UdpSocket,
    keeps_port: bool,
}

impl ErrorQueue for Socket {
    fn take_queued_error(&mut self, _: &mut [u8]) -> Option<QueuedError> {
        None
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.socket.take_error().ok().flatten().map(errno)
    }
}

impl UdpSocket for Socket {
    type Memory = Plain;

    fn send(&mut self, datagram: &OutboundDatagram<&[u8]>) -> Result<(), SocketError> {
        let Some(size) = datagram.segment_size else {
            return self.socket.send_to(datagram.payload, datagram.destination).map(drop).map_err(failure);
        };
        let mut parts = datagram.payload.chunks(size.into());
        parts.try_for_each(|part| self.socket.send_to(part, datagram.destination).map(drop).map_err(failure))
    }

    fn receive(&mut self, room: &mut [u8]) -> Result<Received, SocketError> {
        let (len, from) = self.socket.recv_from(room).map_err(failure)?;
        Ok(Received {
            len,
            truncated: false,
            segment_size: None,
            from,
            destination: None,
            local: None,
            hop_limit: None,
            traffic_class: 0,
        })
    }

    fn keeps_port(&self) -> bool {
        self.keeps_port
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or_default())
}

fn failure(error: std::io::Error) -> SocketError {
    match error.kind() {
        ErrorKind::WouldBlock => SocketError::WouldBlock,
        _ => SocketError::Failed(errno(error)),
    }
}

impl Host for Sockets {
    type Memory = Plain;
    type Tcp = NoSocket<Plain>;
    type Udp = Socket;
    type Ping = NoSocket<Plain>;

    fn udp_open(&mut self, flow: FlowId, address: IpAddr, port: u16) -> Result<Socket, Errno> {
        let any = |port| match address {
            IpAddr::V4(_) => SocketAddr::from(([0_u8; 4], port)),
            IpAddr::V6(_) => SocketAddr::from(([0_u8; 16], port)),
        };
        let (socket, keeps_port) = match std::net::UdpSocket::bind(any(port)) {
            Ok(socket) => (socket, true),
            Err(_) => (std::net::UdpSocket::bind(any(0)).map_err(errno)?, false),
        };
        socket.set_nonblocking(true).map_err(errno)?;
        self.watched.insert(flow, socket.try_clone().map_err(errno)?);
        Ok(Socket { socket, keeps_port })
    }

    fn outbound_source(&mut self, _: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        None
    }

    fn is_own(&mut self, _: SocketAddr) -> bool {
        false
    }

    fn tcp_connect(
        &mut self,
        _: FlowId,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: u8,
    ) -> Result<Self::Tcp, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn tcp_watch(&mut self, _: FlowId, _: &Self::Tcp) -> Result<(), Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_open_shared(&mut self, _: SocketAddr, _: u16) -> Result<Socket, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_join(&mut self, _: FlowId, _: SocketAddr) -> Result<Socket, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_connect(&mut self, _: FlowId, _: Direction, _: SocketAddr, _: u16) -> Result<Socket, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_watch(&mut self, _: FlowId, _: &Socket) -> Result<(), Errno> {
        Err(NOT_SUPPORTED)
    }

    fn ping_open(&mut self, _: FlowId, _: Option<IpAddr>, _: IpAddr, _: u16) -> Result<Self::Ping, Errno> {
        Err(NOT_SUPPORTED)
    }
}

/// The event loop, until `end`. A real event loop waits by epoll for all sockets at once, until
/// [`Stack::next_deadline`] at the latest.
fn serve(mut link: Pair, end: &AtomicBool) -> Result<(), Failure> {
    let start = Clock::now();
    let now = || Instant::from_micros(start.elapsed().as_micros() as u64);
    let settings = settings();
    let guest = Guest::new(&settings, None);
    let mut stack = Stack::<Example>::new(settings, guest, limits(), seeds(), now());
    let mut host = Sockets::default();
    let mut received = vec![0; frame::MAX_LEN];
    link.socket.set_read_timeout(Some(Duration::from_millis(10)))?;
    while !end.load(Ordering::Relaxed) {
        let len = link.socket.recv(&mut received).unwrap_or(0);
        // The sockets with a datagram to read. Clones of closed sockets remain in the list, but their IDs are no longer
        // valid.
        let ready = host.watched.iter().filter(|(_, socket)| socket.peek(&mut [0]).is_ok());
        let ready: Vec<FlowId> = ready.map(|(id, _)| *id).collect();
        let mut round = stack.round(now(), &mut host, &mut link);
        if let Some(frame) = received.get(..len).filter(|frame| !frame.is_empty()) {
            round.frame(frame::head(frame), frame, &Offload::default());
        }
        for id in ready {
            round.ready(id, Readiness { readable: true, ..Readiness::default() });
        }
        let _pressure = round.finish(); // Ignored, since the next round always comes soon.
    }
    Ok(())
}

fn settings() -> Settings {
    let v4 = V4 {
        assigned: GUEST,
        prefix_len: 24,
        our_address: Some(ROUTER),
        map_host_loopback: Some(ROUTER),
        map_guest_address: None,
        dns_forward: None,
        dns_servers: Vec::new(),
        pinned: false,
        dns: Vec::new(),
    };
    let services = Services {
        tcp: true,
        udp: true,
        icmp: true,
        multicast: false,
        dhcp: true,
        dhcpv6: false,
        ndp: false,
        ra: false,
        advertise_dns: false,
        advertise_search: false,
        search: Vec::new(),
        hostname: None,
        fqdn: None,
        start_since_2000: 0,
    };
    Settings {
        our_mac: OUR_MAC,
        mtu: 1500,
        v4: Some(v4),
        v6: None,
        neighbours: Neighbours::default(),
        virtual_hosts: Vec::new(),
        services,
    }
}

fn limits() -> Limits {
    let share = Share { most: 100, bound: Bound::Fixed };
    let (idle, idle_stream) = (Duration::from_secs(30), Duration::from_secs(120));
    Limits {
        connections: 100,
        queue_memory: 16 << 20,
        pings: share,
        udp: udp::Limits {
            flows: share,
            inbound: share,
            endpoints: share,
            bypass: share,
            checks: udp::CheckLimits::DEFAULT,
            idle,
            idle_stream,
        },
        dns: dns::Limits { files: share, bytes: 1 << 16, idle, idle_stream },
        fragments: reassembly::Limits::DEFAULT,
    }
}

/// In a real program, the seeds come from the kernel, see getrandom(2).
fn seeds() -> Seeds {
    Seeds { hash_key: [1; 16], isn_secret: [2; 16], query_secret: [4; 16], advertisement: 3 }
}

fn main() -> Result<(), Failure> {
    let (card, socket) = UnixDatagram::pair()?;
    let end = AtomicBool::new(false);
    let server = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    let port = server.local_addr()?.port();
    std::thread::scope(|scope| {
        let engine = scope.spawn(|| serve(Pair { socket, buffer: vec![0; frame::MAX_LEN] }, &end));
        scope.spawn(|| -> std::io::Result<()> {
            let mut buffer = [0; 100];
            let (len, from) = server.recv_from(&mut buffer)?;
            server.send_to(&buffer[..len], from).map(drop)
        });
        let answer = ask(&card, port);
        end.store(true, Ordering::Relaxed);
        println!("the server answers: {}", String::from_utf8_lossy(&answer?));
        engine.join().map_err(|_| "the engine's thread failed")?
    })
}

/// The guest: sends "hello" to a port of its router, and returns the payload of the answer.
fn ask(card: &UnixDatagram, port: u16) -> Result<Vec<u8>, Failure> {
    let outgoing = Outgoing {
        source_mac: GUEST_MAC,
        destination_mac: OUR_MAC,
        source: GUEST.into(),
        destination: ROUTER.into(),
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
    };
    let payload = b"hello";
    let mut sent = vec![0; outgoing.headroom(wire::udp::HEADER_LEN)];
    let written =
        outgoing.udp(&mut sent, (40_000, port), payload.len(), None).ok_or("no room for the headers")?;
    sent.extend_from_slice(payload);
    complete_checksum(&mut sent, &written.offload);
    card.send(&sent)?;
    card.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut received = vec![0; frame::MAX_LEN];
    loop {
        let len = card.recv(&mut received)?;
        let bytes = &received[..len];
        if let Ok(parsed) = frame::parse_head(frame::head(bytes), bytes)
            && let Body::Ip(packet) = parsed.body
            && let Transport::Udp(datagram) = packet.transport
        {
            return Ok(datagram.payload.to_vec());
        }
    }
}
