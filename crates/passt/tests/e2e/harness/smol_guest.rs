//! A guest without a kernel and without a namespace: smoltcp's TCP over a vhost-user front-end.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpProtocol, Ipv4Packet, TcpPacket};

use super::front_end::{FrontEnd, HEADER};

/// The guest's hardware address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// The front-end as a network interface, with one pair of queues.
pub(crate) struct Port {
    pub(crate) front_end: FrontEnd,
    mtu: usize,
    /// Number of super-frames (GSO) to the guest.
    pub(crate) super_frames: usize,
    /// Whether to mark the last byte of each segment from the guest as urgent.
    pub(crate) marks: bool,
    /// Number of segments to the guest with an urgent pointer.
    pub(crate) urgent_segments: usize,
}

pub(crate) struct Arrived(Vec<u8>);
pub(crate) struct Departing<'a>(&'a mut Port);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Departing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        if self.0.marks {
            mark(&mut frame);
        }
        assert!(self.0.front_end.queues[1].send([0; HEADER], &frame));
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Departing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Departing<'_>)> {
        if !self.front_end.queues[1].has_room() {
            return None;
        }
        let frame = self.front_end.queues[0].receive()?;
        self.super_frames += usize::from(frame.header[1] != 0);
        self.urgent_segments += usize::from(is_urgent(&frame.bytes));
        Some((Arrived(frame.bytes), Departing(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departing<'_>> {
        self.front_end.queues[1].has_room().then_some(Departing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        let mut checksum = ChecksumCapabilities::default();
        // Frames to the guest may have partial checksums, which smoltcp could not verify.
        checksum.tcp = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// Marks the last byte of a segment as urgent.
fn mark(frame: &mut [u8]) {
    let Ok(ip) = Ipv4Packet::new_checked(&frame[14..]) else { return };
    let (from, to, len) = (ip.src_addr().into(), ip.dst_addr().into(), ip.payload().len());
    if ip.next_header() != IpProtocol::Tcp {
        return;
    }
    let at = 14 + usize::from(ip.header_len());
    let mut segment = TcpPacket::new_unchecked(&mut frame[at..at + len]);
    let pointer = segment.payload_mut().len() as u16;
    if pointer > 0 {
        segment.set_urg(true);
        segment.set_urgent_at(pointer);
        segment.fill_checksum(&from, &to);
    }
}

/// Whether a frame is a TCP segment with an urgent pointer.
fn is_urgent(frame: &[u8]) -> bool {
    let Some(Ok(ip)) = frame.get(14..).map(Ipv4Packet::new_checked) else { return false };
    ip.next_header() == IpProtocol::Tcp
        && TcpPacket::new_checked(ip.payload()).is_ok_and(|segment| segment.urg())
}

/// A guest with an address.
pub(crate) struct SmolGuest {
    pub(crate) port: Port,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: std::time::Instant,
}

impl SmolGuest {
    pub(crate) fn new(front_end: FrontEnd, mtu: usize, address: IpAddr, gateway: IpAddr) -> Self {
        let mut port = Port { front_end, mtu, super_frames: 0, marks: false, urgent_segments: 0 };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        let mut interface = Interface::new(config, &mut port, Instant::from_micros(0));
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address.into(), 24)).unwrap());
        let IpAddr::V4(gateway) = gateway else { panic!("IPv4 only") };
        interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        Self { port, interface, sockets: SocketSet::new(Vec::new()), start: std::time::Instant::now() }
    }

    fn socket() -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 20]);
        tcp::Socket::new(buffer(), buffer())
    }

    pub(crate) fn connect(&mut self, to: (IpAddr, u16)) -> SocketHandle {
        let mut socket = Self::socket();
        socket.connect(self.interface.context(), to, 49152).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = Self::socket();
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// Runs the guest until `done`.
    pub(crate) fn run(
        &mut self,
        what: &str,
        socket: SocketHandle,
        mut done: impl FnMut(&mut tcp::Socket<'_>) -> bool,
    ) {
        let end = std::time::Instant::now() + super::PATIENCE;
        loop {
            let now = Instant::from_micros(self.start.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.port, &mut self.sockets);
            if done(self.sockets.get_mut(socket)) {
                // The last poll sends the data or the end of the stream that `done` may have queued.
                self.interface.poll(now, &mut self.port, &mut self.sockets);
                return;
            }
            assert!(std::time::Instant::now() < end, "timed out waiting for: {what}");
            let delay = self.interface.poll_delay(now, &self.sockets).map(Duration::from);
            self.port.front_end.queues[0]
                .wait(delay.unwrap_or(super::PATIENCE).min(Duration::from_millis(50)));
        }
    }
}

/// The guest's address in tests, which is also the host's address.
pub(crate) const fn address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2))
}
