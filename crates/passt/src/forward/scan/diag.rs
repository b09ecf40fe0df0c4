//! Socket diagnosis over netlink: sock_diag(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use engine::forward::Protocol;
use engine::forward::scan::PortSet;
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian, big_endian::U16, native_endian,
};

use super::filter;

/// `SOCK_DIAG_BY_FAMILY`: the message type of a request, and of each socket in the answer.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `INET_DIAG_REQ_BYTECODE`: the attribute that contains the filter of a request.
const BYTECODE: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_ROOT | NLM_F_MATCH`.
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// State of a listening TCP socket.
const TCP_LISTEN: u32 = 10;
/// State of a UDP socket that is bound and has no peer.
const TCP_CLOSE: u32 = 7;
/// Size of the receive buffer, in octets. No datagram of a list is longer.
const ROOM: usize = 32 << 10;
/// Maximum number of datagrams of one list. A list has fewer datagrams, even if each port has its own.
const MAX_DATAGRAMS: usize = 1 << 16;

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    len: native_endian::U32,
    kind: native_endian::U16,
    flags: native_endian::U16,
    sequence: native_endian::U32,
    port_id: native_endian::U32,
}

/// `struct inet_diag_sockid`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SocketId {
    source_port: big_endian::U16,
    destination_port: big_endian::U16,
    source: [u8; 16],
    destination: [u8; 16],
    interface: native_endian::U32,
    cookie: [u8; 8],
}

impl SocketId {
    /// No port and no address. The cookie is `INET_DIAG_NOCOOKIE`, which matches any socket.
    const ANY: Self = Self {
        source_port: U16::ZERO,
        destination_port: U16::ZERO,
        source: [0; 16],
        destination: [0; 16],
        interface: native_endian::U32::ZERO,
        cookie: [0xff; 8],
    };
}

/// A netlink header and `struct inet_diag_req_v2`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    /// If bit n is set, sockets in state n are included.
    states: native_endian::U32,
    id: SocketId,
}

/// A netlink header and the start of `struct inet_diag_msg`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Listed {
    header: Header,
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    id: SocketId,
}

/// `struct nlattr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Attribute {
    len: native_endian::U16,
    kind: native_endian::U16,
}

/// Whether an answer is complete after a datagram.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// More datagrams follow.
    More,
    /// The answer is complete.
    Done,
}

/// A netlink socket that lists the sockets in use in its namespace.
#[derive(Debug)]
pub(super) struct Diag {
    socket: Socket,
    protocol: u8,
    states: u32,
    sequence: u32,
    /// The kernel's filter, see [`filter::only`]. If empty, all sockets are listed.
    filter: Vec<u8>,
    request: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Diag {
    /// Opens a socket in the namespace of the calling thread. It needs no privilege.
    ///
    /// # Errors
    /// As socket(2).
    pub(super) fn open(protocol: Protocol) -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        // The kernel answers while it handles the request, so there is nothing to wait for.
        socket.set_non_blocking(true)?;
        let (protocol, state) = match protocol {
            Protocol::Tcp => (TCP, TCP_LISTEN),
            Protocol::Udp => (UDP, TCP_CLOSE),
        };
        Ok(Self {
            socket,
            protocol,
            states: 1 << state,
            sequence: 0,
            filter: Vec::new(),
            request: Vec::new(),
            buffer: vec![0; ROOM].into_boxed_slice(),
        })
    }

    /// Makes the kernel list only these ports from now on. If the filter would be too long, the kernel still lists some
    /// other ports.
    pub(super) fn look_for(&mut self, ports: &PortSet) {
        self.filter = filter::only(ports);
    }

    /// Whether the port is in use at `address`: by a socket that is bound to this address or to the wildcard address.
    /// `scratch` is a buffer. Only its bit for the port is changed.
    ///
    /// # Errors
    /// As send(2) and recv(2), or the kernel's error for the request.
    pub(super) fn is_in_use(
        &mut self,
        address: IpAddr,
        port: u16,
        scratch: &mut PortSet,
    ) -> io::Result<bool> {
        let family = if address.is_ipv4() { AF_INET } else { AF_INET6 };
        let mut octets = [0; 16];
        match address {
            IpAddr::V4(address) => octets[..4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => octets = address.octets(),
        }
        // For UDP, the kernel swaps source and destination of a request.
        let id = if self.protocol == UDP {
            SocketId { destination_port: port.into(), destination: octets, ..SocketId::ANY }
        } else {
            SocketId { source_port: port.into(), source: octets, ..SocketId::ANY }
        };
        self.sequence = self.sequence.wrapping_add(1);
        let request = self.request_for(family, NLM_F_REQUEST, id, 0);
        send(self.socket.as_fd(), request.as_bytes(), SendFlags::empty())?;
        scratch.remove(port);
        for _ in 0..MAX_DATAGRAMS {
            match self.receive(scratch) {
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
                Ok(_) if scratch.contains(port) => return Ok(true),
                // The datagram belongs to an earlier list that ended with an error.
                Ok(_) => {}
            }
        }
        Err(io::Error::other("the kernel doesn't answer"))
    }

    fn request_for(&self, family: u8, flags: u16, id: SocketId, attributes: usize) -> Request {
        Request {
            header: Header {
                len: ((size_of::<Request>() + attributes) as u32).into(),
                kind: SOCK_DIAG_BY_FAMILY.into(),
                flags: flags.into(),
                sequence: self.sequence.into(),
                port_id: 0.into(),
            },
            family,
            protocol: self.protocol,
            extensions: 0,
            padding: 0,
            states: self.states.into(),
            id,
        }
    }

    /// Adds the ports in use, of both families, to `ports`.
    ///
    /// # Errors
    /// As send(2) and recv(2), or the kernel's error for the request.
    pub(super) fn read(&mut self, ports: &mut PortSet) -> io::Result<()> {
        self.family(AF_INET, ports)?;
        match self.family(AF_INET6, ports) {
            // The host has no IPv6.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) => Ok(()),
            result => result,
        }
    }

    fn family(&mut self, family: u8, ports: &mut PortSet) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let filter = match self.filter.len() {
            0 => 0,
            length => size_of::<Attribute>() + length,
        };
        let request = self.request_for(family, NLM_F_REQUEST | NLM_F_DUMP, SocketId::default(), filter);
        self.request.clear();
        self.request.extend_from_slice(request.as_bytes());
        if filter != 0 {
            let attribute = Attribute { len: (filter as u16).into(), kind: BYTECODE.into() };
            self.request.extend_from_slice(attribute.as_bytes());
            self.request.extend_from_slice(&self.filter);
        }
        // Datagrams of an earlier list that ended with an error may come first. `parse` skips them by sequence number.
        send(self.socket.as_fd(), &self.request, SendFlags::empty())?;
        for _ in 0..MAX_DATAGRAMS {
            if self.receive(ports)? == Progress::Done {
                return Ok(());
            }
        }
        Err(io::Error::other("the kernel's list is too long"))
    }

    /// Receives a datagram, and adds the ports in it to `ports`.
    fn receive(&mut self, ports: &mut PortSet) -> io::Result<Progress> {
        let (_, length) = recv(self.socket.as_fd(), &mut *self.buffer, RecvFlags::TRUNC)?;
        match self.buffer.get(..length) {
            Some(datagram) => parse(datagram, self.sequence, ports),
            None => Err(io::Error::other(format!("the kernel sent {length} octets at once"))),
        }
    }
}

/// Adds the ports in a datagram to `ports`. Messages that don't belong to the request `sequence` are skipped.
fn parse(mut datagram: &[u8], sequence: u32, ports: &mut PortSet) -> io::Result<Progress> {
    while let Ok((header, body)) = Header::ref_from_prefix(datagram) {
        let length = usize::try_from(header.len.get()).unwrap_or(usize::MAX);
        let Some(message) = datagram.get(..length).filter(|message| message.len() >= size_of::<Header>())
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if header.sequence.get() == sequence {
            match header.kind.get() {
                NLMSG_DONE => return Ok(Progress::Done),
                NLMSG_ERROR => {
                    let code = native_endian::I32::ref_from_prefix(body).map_or(0, |(code, _)| code.get());
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                SOCK_DIAG_BY_FAMILY => {
                    if let Ok((listed, _)) = Listed::ref_from_prefix(message)
                        && listed.id.source_port.get() != 0
                    {
                        ports.insert(listed.id.source_port.get());
                    }
                }
                _ => {}
            }
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(Progress::More)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(kind: u16, sequence: u32, body: usize) -> Header {
        Header {
            len: ((size_of::<Header>() + body) as u32).into(),
            kind: kind.into(),
            flags: 2.into(),
            sequence: sequence.into(),
            port_id: 0.into(),
        }
    }

    fn listed(port: u16, sequence: u32) -> Vec<u8> {
        let id = SocketId { source_port: port.into(), ..SocketId::default() };
        let message = Listed {
            header: header(SOCK_DIAG_BY_FAMILY, sequence, size_of::<Listed>() - size_of::<Header>() + 6),
            family: AF_INET,
            state: 10,
            timer: 0,
            retransmissions: 0,
            id,
        };
        // An attribute of odd length and its padding follow.
        [message.as_bytes(), &[0; 8]].concat()
    }

    /// Sizes and offsets of linux/inet_diag.h.
    #[test]
    fn layout() {
        assert_eq!((size_of::<Header>(), size_of::<SocketId>(), size_of::<Request>()), (16, 48, 72));
        let request = Request { states: 0x80.into(), ..FromBytes::read_from_bytes(&[0; 72]).unwrap() };
        assert_eq!(request.as_bytes()[20..24], 0x80_u32.to_ne_bytes());
        assert_eq!(listed(0x1234, 1)[20..22], [0x12, 0x34]);
    }

    #[test]
    fn lists() {
        let mut ports = PortSet::default();
        let datagram = [listed(22, 7), listed(80, 6), listed(65535, 7), listed(0, 7)].concat();
        assert_eq!(parse(&datagram, 7, &mut ports).unwrap(), Progress::More);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [22, 65535]);
        let done =
            [listed(23, 7), [header(NLMSG_DONE, 7, 4).as_bytes(), &[0; 4]].concat(), listed(24, 7)].concat();
        assert_eq!(parse(&done, 7, &mut ports).unwrap(), Progress::Done);
        assert_eq!(ports.iter().collect::<Vec<_>>(), [22, 23, 65535]);
        let error = [header(NLMSG_ERROR, 7, 4).as_bytes(), &(-2_i32).to_ne_bytes()].concat();
        assert_eq!(parse(&error, 7, &mut ports).unwrap_err().raw_os_error(), Some(2));
        assert_eq!(parse(&error, 8, &mut ports).unwrap(), Progress::More, "of another request");
    }

    proptest! {
        /// Any input is parsed without a panic or an endless loop.
        #[test]
        fn any_datagram(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            lens in prop::collection::vec(0u8..80, 0..4),
        ) {
            let mut at = 0;
            for len in lens {
                if let Some(length) = bytes.get_mut(at..at + 4) {
                    length.copy_from_slice(&u32::from(len).to_ne_bytes());
                }
                at += usize::from(len).next_multiple_of(4);
            }
            let _outcome = parse(&bytes, 0, &mut PortSet::default());
        }
    }
}
