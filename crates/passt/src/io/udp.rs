//! UDP sockets of the host.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use engine::host::{
    Errno, ErrorQueue, OutboundDatagram, QueuedError, Received, Report, SocketError,
    UdpSocket as EngineSocket,
};
use rustix::{
    event::epoll,
    io,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};
use sys::{
    address::RawAddress,
    cmsg::{Control, Origin, ReceiveInfo, SendInfo},
    iov::Source,
    mmsg,
    sockopt::{IpVersion, Metadata, dont_fragment, only_groups_joined, request_metadata, udp_gro},
};

use wire::icmp;

use super::outbound::Outbound;
use crate::budgets::ledger::Permit;
use crate::errno::{datagram_error, retry, take_pending, to_engine};
use crate::memory::{Payload, Room, Vectored};

/// Events of datagram and ping sockets. The events are level-triggered: a single datagram then needs only one receive
/// call, without a second call that finds an empty queue. Errors are always reported.
pub const EVENTS: epoll::EventFlags = epoll::EventFlags::IN;

/// Maximum length of a payload, in bytes, that never needs fragmentation. The don't-fragment option is not changed for
/// such a datagram.
pub(super) const FITS_EVERY_PATH: usize = 500;
/// The error number in the error queue for a datagram that the host itself refuses to send.
const EMSGSIZE: u32 = io::Errno::MSGSIZE.raw_os_error().cast_unsigned();
/// Timeout of an idle flow if the host has no connection tracking (behaviour §7.2).
const IDLE: Duration = Duration::from_secs(30);
/// Timeout of a flow that has carried more than one request and one response.
const IDLE_STREAM: Duration = Duration::from_secs(120);

/// The timeouts of idle flows: first of ordinary flows, then of flows that have carried more than one request and one
/// response. The values are the timeouts of the host's own connection tracking (behaviour §7.2).
#[must_use]
pub fn timeouts() -> (Duration, Duration) {
    (
        conntrack_timeout("nf_conntrack_udp_timeout").unwrap_or(IDLE),
        conntrack_timeout("nf_conntrack_udp_timeout_stream").unwrap_or(IDLE_STREAM),
    )
}

/// A timeout of the host's connection tracking. `None` if connection tracking is not loaded.
fn conntrack_timeout(name: &str) -> Option<Duration> {
    parse_timeout(&fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    text.trim().parse().ok().filter(|&seconds| seconds > 0).map(Duration::from_secs)
}

/// An unconnected UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    /// Whether this is an IPv6 socket. An IPv6 socket may carry IPv4, too.
    v6: bool,
    binding: Binding,
    /// The don't-fragment option, for IPv6 and IPv4. `None`: the option was not set, so the kernel's default applies.
    dont_fragment: [Option<bool>; 2],
    outbound: Arc<Outbound>,
    /// The permit of a listener. The engine itself counts the sockets of flows.
    _permit: Option<Permit>,
}

/// The address to which a socket is bound.
#[derive(Clone, Copy, Debug)]
enum Binding {
    /// The address of `--outbound`, and the requested port. If the kernel refused this port, another port is bound.
    Endpoint { refused_port: Option<io::Errno> },
    /// No local address: `--outbound` is applied to each datagram.
    Wildcard,
    /// The address of a forwarding rule. It is the source of all datagrams: if the source were another address, the
    /// peer's responses would not arrive at this socket.
    Address,
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl UdpSocket {
    /// Opens a socket of `address`'s family. The socket is bound to `port` if the port is free, else to any port (Q7,
    /// Q8; see [`UdpSocket::refused_port`]).
    ///
    /// # Errors
    /// No socket can be made or bound.
    pub fn open(outbound: &Arc<Outbound>, address: IpAddr, port: u16) -> io::Result<Self> {
        let (fd, refused_port) = bound(outbound, address, port)?;
        outbound.share_port(&fd);
        Ok(Self::of_flow(fd, address, outbound, refused_port))
    }

    /// Opens a socket that only sends, to `group` from `port`. Other programs hold and share this port.
    ///
    /// The socket is bound to the group without being a member, so it never receives a datagram. If it were bound to
    /// all addresses, it would take unicast datagrams from the other programs: of several sockets that share a port,
    /// the last bound socket receives these datagrams.
    ///
    /// # Errors
    /// No socket can be made, or the port is not shared.
    pub fn share(outbound: &Arc<Outbound>, group: SocketAddr, port: u16) -> io::Result<Self> {
        let v6 = group.is_ipv6();
        let fd = new(v6)?;
        let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
        only_groups_joined(&fd, version)?;
        let mut address = group;
        address.set_port(port);
        sockopt::set_socket_reuseaddr(&fd, true)?;
        if let Err(io::Errno::ADDRINUSE) = bind(&fd, &address) {
            // The other program shares its port by SO_REUSEPORT alone. SO_REUSEPORT is set here only if necessary: with
            // this option, the kernel may deliver a datagram for the group to a socket that is not a member.
            sockopt::set_socket_reuseport(&fd, true)?;
            bind(&fd, &address)?;
        }
        let (dont_fragment, binding) = ([None; 2], Binding::Wildcard);
        Ok(Self { fd, v6, binding, dont_fragment, outbound: outbound.clone(), _permit: None })
    }

    /// Opens a socket that receives datagrams for the group and port `at` on `interface`.
    ///
    /// The socket shares the port with other programs. It is bound to the group, so it does not take unicast datagrams
    /// from these programs.
    ///
    /// # Errors
    /// No socket can be made, the port is not shared, or the group can't be joined.
    pub fn join(outbound: &Arc<Outbound>, at: SocketAddr, interface: u32) -> io::Result<Self> {
        let socket = Self::share(outbound, scoped(at, interface), at.port())?;
        let (version, fd) = (if socket.v6 { IpVersion::V6 } else { IpVersion::V4 }, &socket.fd);
        let what = Metadata::DESTINATION | Metadata::HOP_LIMIT | Metadata::TRAFFIC_CLASS | Metadata::ERRORS;
        request_metadata(fd, version, what)?;
        match at.ip() {
            IpAddr::V4(group) => {
                sockopt::set_ip_add_membership_with_ifindex(fd, &group, &Ipv4Addr::UNSPECIFIED, interface)?;
            }
            IpAddr::V6(group) => sockopt::set_ipv6_add_membership(fd, &group, interface)?,
        }
        Ok(socket)
    }

    /// The error with which the kernel refused the requested port. `None`: the kernel accepted the port.
    #[must_use]
    pub const fn refused_port(&self) -> Option<io::Errno> {
        match self.binding {
            Binding::Endpoint { refused_port } => refused_port,
            Binding::Wildcard | Binding::Address => None,
        }
    }

    /// Takes over a socket that was opened for a flow, of the family of `address`. `refused_port` is the error with
    /// which the kernel refused the requested port, if any.
    #[must_use]
    pub fn of_flow(
        fd: OwnedFd,
        address: IpAddr,
        outbound: &Arc<Outbound>,
        refused_port: Option<io::Errno>,
    ) -> Self {
        let (v6, binding) = (address.is_ipv6(), Binding::Endpoint { refused_port });
        Self { fd, v6, binding, dont_fragment: [None; 2], outbound: outbound.clone(), _permit: None }
    }

    /// Takes over the bound socket of a listener. [`prepare_listener`] has prepared the socket. `address` is the
    /// address on which the socket listens.
    #[must_use]
    pub fn from_listener(
        fd: OwnedFd,
        address: Option<IpAddr>,
        outbound: &Arc<Outbound>,
        permit: Permit,
    ) -> Self {
        let v6 = !matches!(address, Some(IpAddr::V4(_)));
        let wildcard = address.is_none_or(|address| address.is_unspecified());
        outbound.share_port(&fd);
        let binding = if wildcard { Binding::Wildcard } else { Binding::Address };
        let permit = Some(permit);
        Self { fd, v6, binding, dont_fragment: [None; 2], outbound: outbound.clone(), _permit: permit }
    }

    fn send_info<P>(&self, datagram: &OutboundDatagram<P>) -> SendInfo {
        let to = datagram.destination;
        let egress = self.outbound.egress(to.ip());
        let wildcard = matches!(self.binding, Binding::Wildcard);
        let own_choice = if wildcard { egress.source } else { None };
        SendInfo {
            source: datagram.source.or(own_choice),
            interface: if datagram.source.is_some() { 0 } else { egress.interface_index(to) },
            hop_limit: Some(datagram.hop_limit).filter(|&limit| limit != egress.hop_limit(to.ip())),
            traffic_class: Some(datagram.traffic_class).filter(|&class| class != 0),
            segment_size: datagram.segment_size,
        }
    }
}

/// The address `at`, with its scope if the address needs a scope.
fn scoped(at: SocketAddr, interface: u32) -> SocketAddr {
    match at {
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, interface).into(),
        SocketAddr::V4(_) => at,
    }
}

/// Opens a socket that is connected to `target` in this thread's namespace. The socket is bound to `port` if the port
/// is free, else to any port (behaviour §7.6).
///
/// # Errors
/// No socket can be made, bound or connected.
pub fn connected(plain: &Outbound, target: SocketAddr, port: u16) -> io::Result<OwnedFd> {
    let (fd, _) = bound(plain, target.ip(), port)?;
    connect(&fd, &target)?;
    Ok(fd)
}

/// Opens a socket of `address`'s family. It is bound to `port` if the port is free, else to any port. In the second
/// case, also returns the error with which the kernel refused `port`.
fn bound(outbound: &Outbound, address: IpAddr, port: u16) -> io::Result<(OwnedFd, Option<io::Errno>)> {
    let v6 = address.is_ipv6();
    let unspecified = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv4Addr::UNSPECIFIED) };
    let source = outbound.egress(address).source.unwrap_or(unspecified);
    let fd = new(v6)?;
    if v6 {
        sockopt::set_ipv6_v6only(&fd, true)?;
    }
    let version = if v6 { IpVersion::V6 } else { IpVersion::V4 };
    set_options(&fd, &[version], outbound.freebind, Metadata::empty())?;
    let refused_port = bind(&fd, &SocketAddr::new(source, port)).err();
    if refused_port.is_some() {
        bind(&fd, &SocketAddr::new(source, 0))?;
    }
    Ok((fd, refused_port))
}

fn new(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Makes a socket to listen on `address`. The socket is not bound yet: metadata must be enabled before the first
/// datagram arrives.
///
/// # Errors
/// The errors of socket(2) and setsockopt(2).
pub fn prepare_listener(address: Option<IpAddr>, freebind: bool) -> io::Result<OwnedFd> {
    let versions = versions(address);
    let v6 = versions.contains(&IpVersion::V6);
    let fd = new(v6)?;
    if v6 {
        sockopt::set_ipv6_v6only(&fd, address.is_some())?;
    }
    set_options(&fd, versions, freebind, Metadata::DESTINATION)?;
    Ok(fd)
}

/// Sets the options of a socket that another process has bound to `address`. `None`: it carries both IP versions.
///
/// # Errors
/// As setsockopt(2).
pub fn prepare_bound(fd: &OwnedFd, address: Option<IpAddr>) -> io::Result<()> {
    set_options(fd, versions(address), false, Metadata::DESTINATION)
}

const fn versions(address: Option<IpAddr>) -> &'static [IpVersion] {
    match address {
        Some(IpAddr::V4(_)) => &[IpVersion::V4],
        Some(IpAddr::V6(_)) => &[IpVersion::V6],
        None => &[IpVersion::V6, IpVersion::V4],
    }
}

/// Sets the options of a socket that carries these IP versions.
fn set_options(fd: &OwnedFd, versions: &[IpVersion], freebind: bool, more: Metadata) -> io::Result<()> {
    let what = Metadata::HOP_LIMIT | Metadata::TRAFFIC_CLASS | Metadata::ERRORS | more;
    for version in versions {
        request_metadata(fd, *version, what)?;
    }
    if versions.contains(&IpVersion::V4) {
        sockopt::set_socket_broadcast(fd, true)?;
    }
    if freebind {
        // Despite its name, the option applies to IPv6, too.
        sockopt::set_ip_freebind(fd, true)?;
    }
    // A kernel before 5.0 has no GRO for UDP: it delivers datagrams one by one.
    let _refused = udp_gro(fd);
    Ok(())
}

impl ErrorQueue for UdpSocket {
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        queued_error(&self.fd, quote)
    }

    fn take_error(&mut self) -> Option<Errno> {
        take_pending(&self.fd)
    }
}

impl EngineSocket for UdpSocket {
    type Memory = Vectored;

    fn send(&mut self, datagram: &OutboundDatagram<Payload<'_>>) -> Result<(), SocketError> {
        let address = RawAddress::new(datagram.destination, self.v6);
        let v4 = datagram.destination.is_ipv4();
        self.set_dont_fragment(v4, datagram);
        let info = self.send_info(datagram);
        let control = Control::to_send(&info, v4);
        let result = retry(|| mmsg::send(&self.fd, &address, &[datagram.payload.0], &control));
        match (result, datagram.segment_size) {
            (Ok(()), _) => Ok(()),
            (Err(errno), Some(size)) if segmentation_refused(errno) => {
                let control = Control::to_send(&SendInfo { segment_size: None, ..info }, v4);
                self.send_pieces(&address, datagram.payload.0, usize::from(size).max(1), &control)
            }
            (Err(errno), _) => Err(datagram_error(errno)),
        }
    }

    fn receive(&mut self, mut room: Room<'_>) -> Result<Received, SocketError> {
        let arrival = retry(|| mmsg::receive(&self.fd, room.0.first(usize::MAX)));
        received(arrival.map_err(datagram_error)?)
    }

    fn keeps_port(&self) -> bool {
        self.refused_port().is_none()
    }
}

impl UdpSocket {
    /// Sets the don't-fragment option if the datagram may need fragmentation. If the kernel refuses the option, the
    /// datagram is sent nevertheless, and the next one sets the option.
    fn set_dont_fragment(&mut self, v4: bool, datagram: &OutboundDatagram<Payload<'_>>) {
        let len = datagram.segment_size.map_or(datagram.payload.0.len(), usize::from);
        let Some(state) = self.dont_fragment.get_mut(usize::from(v4)) else { return };
        if len > FITS_EVERY_PATH && *state != Some(datagram.dont_fragment) {
            let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
            let set = dont_fragment(&self.fd, version, datagram.dont_fragment);
            *state = set.ok().map(|()| datagram.dont_fragment);
        }
    }

    /// Sends a train as datagrams of `size` bytes.
    fn send_pieces(
        &self,
        address: &RawAddress,
        train: Source<'_>,
        size: usize,
        control: &Control,
    ) -> Result<(), SocketError> {
        let mut next = 0;
        while next < train.len() {
            let pieces = (next..train.len()).step_by(size).map(|start| train.slice(start..start + size));
            let sent = retry(|| mmsg::send_batch(&self.fd, address, pieces.clone(), control));
            let sent = sent.map_err(datagram_error)?;
            next += size * sent.max(1);
        }
        Ok(())
    }
}

/// Whether the error means that the kernel can't segment a train. Possible reasons: the interface has no checksum
/// offload (`EIO`), the datagrams exceed the path's MTU, there are too many datagrams, or the kernel is older than
/// 4.18.
fn segmentation_refused(errno: io::Errno) -> bool {
    matches!(errno, io::Errno::IO | io::Errno::INVAL | io::Errno::MSGSIZE)
}

/// Converts a received datagram for the engine. A datagram without a source address is an error.
pub(super) fn received(arrival: mmsg::Arrival) -> Result<Received, SocketError> {
    let from = arrival.address.ok_or(SocketError::Failed(to_engine(io::Errno::AFNOSUPPORT)))?;
    let ReceiveInfo { destination, local, hop_limit, traffic_class, segment_size, .. } = arrival.info;
    Ok(Received {
        len: arrival.len,
        truncated: arrival.truncated,
        segment_size: segment_size.filter(|&size| size > 0 && usize::from(size) < arrival.len),
        from,
        destination,
        local: local.or(destination.filter(|address| !address.is_multicast())),
        hop_limit,
        traffic_class: traffic_class.unwrap_or(0),
    })
}

/// Removes and returns an entry of a socket's error queue. Errors that the host itself generates have no ICMP message.
pub(super) fn queued_error(fd: impl AsFd, quote: &mut [u8]) -> Option<QueuedError> {
    let arrival = mmsg::receive_error(fd, quote).ok()?;
    let destination = arrival.address.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
    let error = arrival.info.error;
    let origin = if destination.is_ipv4() { Origin::Icmp } else { Origin::Icmp6 };
    let refusal = error.filter(|error| error.origin == Origin::Local && error.errno == EMSGSIZE);
    let refusal = refusal.map(|error| too_big(destination.is_ipv4(), error.info));
    let report = error.filter(|error| error.origin == origin);
    let report = report.map(|error| Report { kind: error.kind, code: error.code, info: error.info });
    Some(QueuedError {
        destination,
        local: arrival.info.destination,
        report: report.or(refusal),
        refused: refusal.is_some(),
        offender: error.and_then(|error| error.offender),
        quoted: arrival.len,
    })
}

/// The ICMP error that a router sends for a packet that exceeds the next link's MTU, in bytes.
const fn too_big(v4: bool, mtu: u32) -> Report {
    if v4 {
        Report { kind: icmp::v4::UNREACHABLE, code: icmp::v4::FRAGMENTATION_NEEDED, info: mtu }
    } else {
        Report { kind: icmp::v6::PACKET_TOO_BIG, code: 0, info: mtu }
    }
}

#[cfg(test)]
mod tests;
