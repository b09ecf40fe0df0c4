//! The binding of outbound sockets (`--outbound`, `--outbound-if4`, `--outbound-if6`, `--freebind`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use engine::forward::IfName;
use rustix::{
    io,
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with, sockopt},
};

use crate::plan;

/// The kernel's default hop limit for packets to multicast groups.
const GROUP_HOP_LIMIT: u8 = 1;

/// The kernel's default hop limit for other packets.
const USUAL_HOP_LIMIT: u8 = 64;

/// The settings of all outbound sockets.
#[derive(Clone, Debug)]
pub struct Outbound {
    v4: Egress,
    v6: Egress,
    /// Settings for loopback, without source and interface, for IPv4 and IPv6.
    loopback: [Egress; 2],
    /// Whether packets to `127.0.0.1` and `::1` have the source of other packets.
    with_localhost: bool,
    /// Whether addresses that the host does not have (yet) may be bound.
    pub freebind: bool,
    /// Whether sockets of multicast groups may share the ports of this program (`--multicast`).
    shared: bool,
}

/// How packets of one family leave the host.
#[derive(Clone, Debug)]
pub struct Egress {
    /// Source address. `None`: the kernel chooses the address.
    pub source: Option<IpAddr>,
    /// Name and index of the interface. `None`: the route determines the interface.
    pub interface: Option<(IfName, u32)>,
    /// The kernel's default hop limit.
    hop_limit: u8,
}

impl Outbound {
    /// Creates the settings. Finds the index of each interface.
    ///
    /// # Errors
    /// An interface does not exist (any more).
    pub fn new(
        v4: &plan::Outbound<Ipv4Addr>,
        v6: &plan::Outbound<Ipv6Addr>,
        freebind: bool,
    ) -> io::Result<Self> {
        let v4 = Egress::new(v4.address.map(IpAddr::V4), v4.interface.as_ref(), AddressFamily::INET)?;
        let v6 = Egress::new(v6.address.map(IpAddr::V6), v6.interface.as_ref(), AddressFamily::INET6)?;
        Ok(Self {
            loopback: [v4.plain(), v6.plain()],
            with_localhost: false,
            v4,
            v6,
            freebind,
            shared: false,
        })
    }

    /// Sets whether sockets of multicast groups may share the ports of other sockets of this program.
    #[must_use]
    pub const fn sharing(mut self, shared: bool) -> Self {
        self.shared = shared;
        self
    }

    /// Sets whether packets to `127.0.0.1` and `::1` have the source of other packets. Packets to other loopback
    /// addresses do not: resolvers that listen there refuse other sources.
    #[must_use]
    pub const fn with_localhost(mut self, with_localhost: bool) -> Self {
        self.with_localhost = with_localhost;
        self
    }

    /// Lets sockets of multicast groups share the port of this socket, if sharing is enabled. Must be called after
    /// bind(2): otherwise other programs could share the port.
    pub(super) fn share_port(&self, fd: impl AsFd) {
        if self.shared {
            // If this fails, datagrams to multicast groups are not received on this port.
            let _refused = sockopt::set_socket_reuseaddr(fd, true);
        }
    }

    /// Creates the settings with the kernel's defaults.
    #[must_use]
    pub const fn plain() -> Self {
        const EGRESS: Egress = Egress { source: None, interface: None, hop_limit: USUAL_HOP_LIMIT };
        Self {
            v4: EGRESS,
            v6: EGRESS,
            loopback: [EGRESS, EGRESS],
            with_localhost: false,
            freebind: false,
            shared: false,
        }
    }

    /// Returns the settings for packets to `destination`. For loopback, the kernel chooses source and interface, unless
    /// [`Outbound::with_localhost`] applies.
    #[must_use]
    pub fn egress(&self, destination: IpAddr) -> &Egress {
        let [loopback4, loopback6] = &self.loopback;
        let is_localhost =
            [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].contains(&destination);
        let as_other = self.with_localhost && is_localhost;
        match (destination.is_ipv4(), destination.is_loopback() && !as_other) {
            (true, false) => &self.v4,
            (true, true) => loopback4,
            (false, false) => &self.v6,
            (false, true) => loopback6,
        }
    }
}

impl Egress {
    fn new(source: Option<IpAddr>, interface: Option<&IfName>, family: AddressFamily) -> io::Result<Self> {
        let probe = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let hop_limit = probe.as_ref().ok().and_then(|probe| {
            if family == AddressFamily::INET {
                sockopt::ip_ttl(probe).ok().and_then(|ttl| u8::try_from(ttl).ok())
            } else {
                sockopt::ipv6_unicast_hops(probe).ok()
            }
        });
        let interface = match interface {
            None => None,
            Some(name) => Some((name.clone(), name_to_index(probe?, name)?)),
        };
        Ok(Self { source, interface, hop_limit: hop_limit.unwrap_or(USUAL_HOP_LIMIT) })
    }

    /// Returns settings with this hop limit. The kernel chooses source and interface.
    const fn plain(&self) -> Self {
        Self { source: None, interface: None, hop_limit: self.hop_limit }
    }

    /// Index of the interface for packets to `destination`. 0: the route determines the interface.
    #[must_use]
    pub fn interface_index(&self, destination: SocketAddr) -> u32 {
        let scoped = matches!(destination, SocketAddr::V6(v6) if v6.scope_id() != 0);
        match &self.interface {
            Some((_, index)) if !scoped => *index,
            _ => 0,
        }
    }

    /// The kernel's default hop limit for packets to `destination`.
    #[must_use]
    pub fn hop_limit(&self, destination: IpAddr) -> u8 {
        if destination.is_multicast() { GROUP_HOP_LIMIT } else { self.hop_limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_neither_source_nor_interface() {
        let v4 = plan::Outbound { address: Some(Ipv4Addr::new(192, 0, 2, 1)), interface: "lo".parse().ok() };
        let v6 = plan::Outbound { address: "2001:db8::1".parse().ok(), interface: None };
        let outbound = Outbound::new(&v4, &v6, false).unwrap();
        let egress = |destination: &str| outbound.egress(destination.parse().unwrap());
        for (local, remote) in [("127.0.0.2", "192.0.2.7"), ("::1", "2001:db8::7")] {
            assert!(egress(local).source.is_none() && egress(local).interface.is_none());
            assert!(egress(remote).source.is_some());
            // A hop limit is compared with the kernel's default, for loopback, too.
            assert_eq!(egress(local).hop_limit, egress(remote).hop_limit);
        }
        assert!(egress("192.0.2.7").interface.is_some());
    }

    #[test]
    fn localhost_has_a_source_on_request_and_other_loopback_addresses_do_not() {
        let v4 = plan::Outbound { address: Some(Ipv4Addr::new(192, 0, 2, 1)), interface: None };
        let v6 = plan::Outbound { address: "2001:db8::1".parse().ok(), interface: None };
        let outbound = Outbound::new(&v4, &v6, false).unwrap().with_localhost(true);
        let has_source = |to: &str| outbound.egress(to.parse().unwrap()).source.is_some();
        assert!(has_source("127.0.0.1") && has_source("::1") && !has_source("127.0.0.53"));
    }
}
