//! A guest in user space, in one file. It uses passt's socket like a virtual machine monitor.
//!
//! ```text
//! $ passt --foreground --socket /tmp/guest.socket &
//! $ cargo run -p passt --example user_space_guest -- /tmp/guest.socket 192.0.2.1:80
//! ```
//!
//! passt's socket is a UNIX stream. Before each Ethernet frame, there is its length, 32 bits in network byte order
//! (docs/behaviour/09-links.md, §9.2). The protocol has no other parts, and [`Port`] implements it. smoltcp is the
//! guest's network stack. The guest gets a lease over DHCP, like any other guest, opens one TCP connection, and
//! requests a page over HTTP.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// The guest's MAC address. It may be any locally administered unicast address.
const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0x00, 0x12, 0x34, 0x56]);
const MTU: usize = 1500;
const ETHERNET_HEADER: usize = 14;
/// Length of the length field before a frame, in bytes.
const PREFIX: usize = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, server] = &arguments[..] else {
        return Err("usage: user_space_guest SOCKET ADDRESS:PORT".into());
    };
    let page = fetch(Port::connect(path)?, server.parse()?)?;
    println!("{}", String::from_utf8_lossy(&page));
    Ok(())
}

/// Gets a lease, connects, and requests `/`. Returns all bytes that the server sends before it closes the connection.
fn fetch(mut port: Port, server: SocketAddr) -> Result<Vec<u8>, Box<dyn Error>> {
    let start = std::time::Instant::now();
    let now = || Instant::from_micros(start.elapsed().as_micros() as i64);
    let mut interface = Interface::new(Config::new(MAC.into()), &mut port, now());
    let mut sockets = SocketSet::new(Vec::new());
    let dhcp = sockets.add(dhcpv4::Socket::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 65536]);
    let client = sockets.add(tcp::Socket::new(buffer(), buffer()));
    let (mut page, mut connecting, mut asked) = (Vec::new(), false, false);
    loop {
        interface.poll(now(), &mut port, &mut sockets);
        if let Some(dhcpv4::Event::Configured(lease)) = sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            eprintln!("lease: {}, router {:?}", lease.address, lease.router);
            let mut added = Ok(());
            interface.update_ip_addrs(|addresses| added = addresses.push(IpCidr::Ipv4(lease.address)));
            added.map_err(|address| format!("no room for {address}"))?;
            if let Some(router) = lease.router {
                interface.routes_mut().add_default_ipv4_route(router)?;
            }
            let source_port = 49_152;
            let socket = sockets.get_mut::<tcp::Socket<'_>>(client);
            socket.connect(interface.context(), (server.ip(), server.port()), source_port)?;
            connecting = true;
        }
        let socket = sockets.get_mut::<tcp::Socket<'_>>(client);
        if connecting && !socket.is_open() && page.is_empty() {
            return Err("the server refuses the connection, or has reset it".into());
        }
        if socket.can_send() && !asked {
            let host = match server.ip() {
                IpAddr::V4(address) => address.to_string(),
                IpAddr::V6(address) => format!("[{address}]"),
            };
            socket.send_slice(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
            asked = true;
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), page.extend_from_slice(bytes)))?;
        }
        if asked && !socket.may_recv() {
            socket.close();
            interface.poll(now(), &mut port, &mut sockets);
            port.flush()?;
            return if page.is_empty() { Err("the server did not answer".into()) } else { Ok(page) };
        }
        port.flush()?;
        port.wait(interface.poll_delay(now(), &sockets).map(|delay| delay.total_micros()))?;
    }
}

/// passt's socket as a network interface, which receives and sends frames.
struct Port {
    socket: UnixStream,
    /// The received bytes: whole frames, and a part of the next frame.
    received: Vec<u8>,
    arrived: VecDeque<Vec<u8>>,
    /// Bytes that the socket has not accepted yet.
    departing: Vec<u8>,
}

impl Port {
    fn connect(path: &str) -> std::io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: Vec::new(), arrived: VecDeque::new(), departing: Vec::new() })
    }

    /// Waits until frames arrive, or for `timeout` microseconds.
    fn wait(&mut self, timeout: Option<u64>) -> std::io::Result<()> {
        if !self.arrived.is_empty() {
            return Ok(());
        }
        let mut events = PollFlags::IN;
        events.set(PollFlags::OUT, !self.departing.is_empty());
        let timeout = timeout.map(|micros| Timespec {
            tv_sec: (micros / 1_000_000) as i64,
            tv_nsec: (micros % 1_000_000 * 1000) as i64,
        });
        poll(&mut [PollFd::new(&self.socket.as_fd(), events)], timeout.as_ref())?;
        self.flush()?;
        self.fill()
    }

    /// Reads the bytes that have arrived, and splits them into frames.
    fn fill(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 65536];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(std::io::Error::new(ErrorKind::ConnectionAborted, "passt has gone")),
            Ok(len) => self.received.extend_from_slice(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some((prefix, rest)) = self.received.split_first_chunk::<PREFIX>() {
            let len = u32::from_be_bytes(*prefix) as usize;
            let Some(frame) = rest.get(..len) else { break };
            self.arrived.push_back(frame.to_vec());
            self.received.drain(..PREFIX + len);
        }
        Ok(())
    }

    /// Writes the bytes that wait to be sent.
    fn flush(&mut self) -> std::io::Result<()> {
        while !self.departing.is_empty() {
            match self.socket.write(&self.departing) {
                Ok(len) => drop(self.departing.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Arrived(Vec<u8>);
struct Departing<'a>(&'a mut Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Departing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.0.extend_from_slice(&(len as u32).to_be_bytes());
        let start = self.0.len();
        self.0.resize(start + len, 0);
        write(&mut self.0[start..])
    }
}

impl Device for Port {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Departing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Departing<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((Arrived(frame), Departing(&mut self.departing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Departing<'_>> {
        // The number of waiting bytes is limited, since the socket may be slow.
        (self.departing.len() < 1 << 20).then_some(Departing(&mut self.departing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET_HEADER + MTU;
        capabilities
    }
}
