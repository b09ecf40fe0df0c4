//! The host's source address for packets of the guest (behaviour §5.2.1).
//!
//! A guest with several of the host's addresses chooses one of them by its copy of the host's routes, or because a
//! program is bound to it. The host uses the same address if the packet leaves by the interface that has this address.
//! On other interfaces (for example that of a VPN) the kernel chooses: the guest does not know the routes of these
//! interfaces.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, connect, connect_unspec, getsockname, socket_with, sockopt,
};

use crate::host::{Facts, OwnAddresses};

/// The host's own addresses, and sockets that show which address the kernel chooses.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The host's addresses. Each has the index of its interface. The list is sorted by address.
    own: Vec<(IpAddr, u32)>,
    /// Sockets for IPv4 and IPv6. These sockets never send anything.
    probes: [Option<OwnedFd>; 2],
    /// All addresses that the host has at present. `None` if no rule depends on them.
    pub(super) followed: Option<OwnAddresses>,
}

impl Sources {
    /// The addresses that the host has at present. With `followed`, later changes are noticed, too.
    pub(crate) fn of(facts: &Facts, followed: Option<OwnAddresses>) -> Self {
        let mut own: Vec<_> =
            facts.addresses.iter().map(|address| (address.local, address.interface)).collect();
        own.retain(|(address, _)| !address.is_loopback());
        own.sort_unstable();
        Self { own, probes: [None, None], followed }
    }

    /// Returns the address `guest`, if the host must use this address as the source of packets from the guest to
    /// `destination`.
    pub(crate) fn choose(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr> {
        let interface = self.interface(guest)?;
        if destination.ip().is_loopback() || guest.is_ipv4() != destination.is_ipv4() {
            return None;
        }
        let usual = self.probe(destination).ok()?;
        (self.interface(usual)? == interface).then_some(guest)
    }

    /// Whether the host has this address at present. False if the host's addresses are not followed.
    pub(crate) fn is_own(&mut self, address: IpAddr) -> bool {
        self.followed.as_mut().is_some_and(|own| own.contains(address))
    }

    /// The source address that the kernel chooses for `destination`, if it has a route.
    pub(super) fn usual(&mut self, destination: SocketAddr) -> Option<IpAddr> {
        // With port 0, connect(2) fails.
        let port = destination.port().max(1);
        self.probe(SocketAddr::new(destination.ip(), port)).ok()
    }

    fn interface(&self, address: IpAddr) -> Option<u32> {
        let place = self.own.binary_search_by_key(&address, |(own, _)| *own).ok()?;
        Some(self.own.get(place)?.1)
    }

    /// The source address that the kernel chooses for `destination`.
    fn probe(&mut self, destination: SocketAddr) -> io::Result<IpAddr> {
        let v6 = destination.is_ipv6();
        let probe = &mut self.probes[usize::from(v6)];
        let socket = match probe.take() {
            Some(socket) => socket,
            None => {
                let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
                let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
                sockopt::set_socket_broadcast(&socket, true)?;
                socket
            }
        };
        connect(&socket, &destination)?;
        let local = SocketAddr::try_from(getsockname(&socket)?)?.ip();
        // The socket is disconnected, so that the kernel chooses again at the next call.
        connect_unspec(&socket)?;
        *probe = Some(socket);
        Ok(local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolated::{add_link, ip, isolated};

    #[test]
    fn a_source_is_kept_on_the_interface_that_has_it() {
        isolated(|| {
            add_link("eth0", "192.0.2.10/24");
            ip("address add 192.0.2.20/24 dev eth0");
            add_link("vpn0", "10.8.0.5/24");
            ip("route add default via 192.0.2.1");
            let mut sources = Sources::of(&Facts::gather().unwrap(), None);
            let mut choose = |guest: &str, destination: &str| {
                sources.choose(guest.parse().unwrap(), destination.parse().unwrap())
            };
            for second in ["192.0.2.10", "192.0.2.20"] {
                // The two loops repeat each request: an earlier answer must not affect a later one.
                for destination in ["198.51.100.7:80", "192.0.2.1:80", "255.255.255.255:9", "239.1.2.3:9"] {
                    assert_eq!(choose(second, destination), second.parse().ok(), "{destination}");
                    assert_eq!(choose(second, "10.8.0.1:80"), None);
                }
                assert_eq!(choose(second, "127.0.0.1:80"), None);
            }
            assert_eq!(choose("10.8.0.5", "10.8.0.1:80"), "10.8.0.5".parse().ok());
            assert_eq!(choose("172.17.0.2", "198.51.100.7:80"), None);
            assert_eq!(choose("2001:db8::1", "198.51.100.7:80"), None);
        });
    }
}
