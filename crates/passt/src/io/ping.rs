//! Ping sockets of the host (behaviour §4.5).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use engine::host::{
    EchoRequest, Errno, ErrorQueue, PingSocket as EngineSocket, QueuedError, Received, SocketError,
};
use rustix::{
    io,
    net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};
use sys::{
    address::RawAddress,
    cmsg::Control,
    mmsg,
    sockopt::{IpVersion, Metadata, bind_to_device, dont_fragment, request_metadata},
};
use zerocopy::IntoBytes;

use super::{
    outbound::Outbound,
    udp::{FITS_EVERY_PATH, queued_error, received},
};
use crate::errno::{datagram_error, retry, take_pending};
use crate::memory::{Payload, Vectored};

/// Opens ping sockets.
#[derive(Debug)]
pub struct Pings {
    outbound: Arc<Outbound>,
    /// Whether the warning that the kernel allows no ping sockets was logged.
    warned: bool,
}

impl Pings {
    /// Creates the opener of ping sockets. Packets leave by `outbound`.
    #[must_use]
    pub const fn new(outbound: Arc<Outbound>) -> Self {
        Self { outbound, warned: false }
    }

    /// Opens a socket for `destination`. The socket has the echo identifier `id` if this identifier is free, else any
    /// identifier. Its source is the address of `--outbound`, else `source` if the host has this address.
    ///
    /// # Errors
    /// No socket can be opened or bound. If the kernel allows no ping sockets, a warning is logged once.
    pub fn open(&mut self, source: Option<IpAddr>, destination: IpAddr, id: u16) -> io::Result<PingSocket> {
        let result = PingSocket::open(&self.outbound, source, destination, id);
        if let Err(error @ (io::Errno::ACCESS | io::Errno::PERM | io::Errno::PROTONOSUPPORT)) = result
            && !self.warned
        {
            self.warned = true;
            log::warn!(
                "Can't open ping sockets ({error}): echo requests of the guest get no answer. \
                 To allow them: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\""
            );
        }
        result
    }
}

/// An unconnected ping socket of one family.
#[derive(Debug)]
pub struct PingSocket {
    fd: OwnedFd,
    v6: bool,
    /// The hop limits that are set, for unicast and multicast.
    hop_limit: [Option<u8>; 2],
    traffic_class: u8,
    /// The don't-fragment option. `None`: not set.
    dont_fragment: Option<bool>,
}

impl AsFd for PingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PingSocket {
    fn open(outbound: &Outbound, source: Option<IpAddr>, destination: IpAddr, id: u16) -> io::Result<Self> {
        let v6 = destination.is_ipv6();
        let (family, protocol, version, unspecified) = if v6 {
            (AddressFamily::INET6, ipproto::ICMPV6, IpVersion::V6, IpAddr::from(Ipv6Addr::UNSPECIFIED))
        } else {
            (AddressFamily::INET, ipproto::ICMP, IpVersion::V4, IpAddr::from(Ipv4Addr::UNSPECIFIED))
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        // By default, ping sockets can share an identifier. Then only one of these sockets receives the replies.
        sockopt::set_socket_reuseaddr(&fd, false)?;
        let metadata = Metadata::HOP_LIMIT | Metadata::TRAFFIC_CLASS | Metadata::ERRORS;
        request_metadata(&fd, version, metadata)?;
        if outbound.freebind {
            sockopt::set_ip_freebind(&fd, true)?;
        }
        if !v6 {
            sockopt::set_socket_broadcast(&fd, true)?;
        }
        let egress = outbound.egress(destination);
        let source = egress.source.or(source).unwrap_or(unspecified);
        if let Some((interface, _)) = &egress.interface {
            bind_to_device(&fd, interface)?;
        }
        let bind = |source, id| {
            bind(&fd, &SocketAddr::new(source, id)).or_else(|_| bind(&fd, &SocketAddr::new(source, 0)))
        };
        match bind(source, id) {
            // The host does not have the address any more.
            Err(io::Errno::ADDRNOTAVAIL) if egress.source.is_none() => bind(unspecified, id)?,
            bound => bound?,
        }
        Ok(Self { fd, v6, hop_limit: [None; 2], traffic_class: 0, dont_fragment: None })
    }

    /// Sets the socket's options for the header fields of the request. (With IPv6, control messages support this only
    /// since Linux 5.18.) If the kernel refuses an option, the request is sent without the option.
    fn set_header<P>(&mut self, request: &EchoRequest<'_, P>, payload_len: usize) {
        let limit = request.hop_limit;
        let group = request.destination.ip().is_multicast();
        let set = &mut self.hop_limit[usize::from(group)];
        if *set != Some(limit) {
            let _refused = match (self.v6, group) {
                (false, false) => sockopt::set_ip_ttl(&self.fd, limit.into()),
                (false, true) => sockopt::set_ip_multicast_ttl(&self.fd, limit.into()),
                (true, false) => sockopt::set_ipv6_unicast_hops(&self.fd, Some(limit)),
                (true, true) => sockopt::set_ipv6_multicast_hops(&self.fd, limit.into()),
            };
            *set = Some(limit);
        }
        if self.traffic_class != request.traffic_class {
            let class = request.traffic_class;
            let _refused = if self.v6 {
                sockopt::set_ipv6_tclass(&self.fd, class.into())
            } else {
                sockopt::set_ip_tos(&self.fd, class)
            };
            self.traffic_class = class;
        }
        if payload_len > FITS_EVERY_PATH && self.dont_fragment != Some(request.dont_fragment) {
            let version = if self.v6 { IpVersion::V6 } else { IpVersion::V4 };
            let _refused = dont_fragment(&self.fd, version, request.dont_fragment);
            self.dont_fragment = Some(request.dont_fragment);
        }
    }
}

impl ErrorQueue for PingSocket {
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        queued_error(&self.fd, quote)
    }

    fn take_error(&mut self) -> Option<Errno> {
        take_pending(&self.fd)
    }
}

impl EngineSocket for PingSocket {
    type Memory = Vectored;

    fn send(&mut self, request: &EchoRequest<'_, Payload<'_>>) -> Result<(), SocketError> {
        self.set_header(request, request.payload.0.len());
        let address = RawAddress::new(request.destination, self.v6);
        let pieces = [request.header.as_bytes().into(), request.payload.0];
        retry(|| mmsg::send(&self.fd, &address, &pieces, &Control::default())).map_err(datagram_error)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        received(retry(|| mmsg::receive(&self.fd, (&mut *buffer).into())).map_err(datagram_error)?)
    }
}

#[cfg(test)]
mod tests;
