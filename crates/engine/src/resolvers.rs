//! The host's resolvers: the servers for a query, and their order (docs/design/dns.md).

use alloc::{collections::BTreeMap, vec::Vec};
use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use crate::{addr::Settings, nat::is_link_scope, timer::Instant};

/// Port of DNS over UDP and TCP (RFC 1035).
pub const DNS: u16 = 53;
/// Port of DNS over TLS (RFC 7858), DTLS (RFC 8094) and QUIC (RFC 9250).
pub const DNS_OVER_TLS: u16 = 853;
/// Maximum number of servers to which one query is sent.
const MAX_SERVERS: usize = 4;
/// Time after a failure for which a server comes last in the order.
const PENALTY: Duration = Duration::from_secs(30);
/// Maximum number of failed servers that are remembered. It is greater than the number of resolvers in a list.
const MOST_REMEMBERED: usize = 128;

/// The servers for one query, in order. There is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Servers {
    addresses: [SocketAddr; MAX_SERVERS],
    len: usize,
}

impl Servers {
    /// Number of servers.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// All servers, in order.
    pub(crate) fn all(&self) -> &[SocketAddr] {
        self.addresses.get(..self.len).unwrap_or_default()
    }
}

/// The servers that have failed recently.
#[derive(Debug, Default)]
pub struct Health {
    failed_until: BTreeMap<IpAddr, Instant>,
}

impl Health {
    /// Notes that a server could not be reached, or was silent although another server has answered.
    pub(crate) fn failed(&mut self, server: IpAddr, now: Instant) {
        self.failed_until.retain(|_, until| *until > now);
        if self.failed_until.len() < MOST_REMEMBERED {
            self.failed_until.insert(server, now + PENALTY);
        }
    }

    /// Notes that a server has answered.
    pub(crate) fn answered(&mut self, server: IpAddr) {
        self.failed_until.remove(&server);
    }

    fn is_healthy(&self, server: IpAddr, now: Instant) -> bool {
        self.failed_until.get(&server).is_none_or(|until| *until <= now)
    }
}

impl Settings {
    /// Whether datagrams and connections of the guest to `destination` go to the host's resolvers (behaviour §5.2).
    #[must_use]
    pub fn is_dns(&self, destination: SocketAddr) -> bool {
        self.resolvers_at(destination).is_some()
    }

    /// Whether the guest's `destination` is a name server that was advertised to it. `translated` is this destination
    /// on the host's side.
    pub(crate) fn is_resolver(&self, destination: SocketAddr, translated: IpAddr) -> bool {
        let lists =
            (self.v4.iter().map(|v4| &v4.dns_servers)).chain(self.v6.iter().map(|v6| &v6.dns_servers));
        let advertised4 = self.v4.iter().flat_map(|v4| v4.dns.iter().copied().map(IpAddr::V4));
        let advertised6 = self.v6.iter().flat_map(|v6| v6.dns.iter().copied().map(IpAddr::V6));
        destination.port() == DNS
            && (self.is_dns(destination)
                || lists.flatten().any(|server| *server == translated)
                || advertised4.chain(advertised6).any(|server| server == destination.ip()))
    }

    /// The host's resolvers for `destination`, in the order of the list, but with recently failed resolvers last. If
    /// the host has no resolver, the result is the host itself. None if `destination` is not the guest's DNS address.
    #[must_use]
    pub fn resolvers(&self, destination: SocketAddr, health: &Health, now: Instant) -> Option<Servers> {
        self.resolvers_at(destination).map(|list| self.in_order(list, destination, health, now))
    }

    /// The host's resolvers for a query that the guest has sent to `destination`, which may be any address. The order
    /// is that of [`Settings::resolvers`].
    pub(crate) fn any_resolvers(&self, destination: SocketAddr, health: &Health, now: Instant) -> Servers {
        let list = match destination {
            SocketAddr::V4(_) => self.v4.as_ref().map(|v4| &v4.dns_servers),
            SocketAddr::V6(_) => self.v6.as_ref().map(|v6| &v6.dns_servers),
        };
        self.in_order(list.map_or(&[], Vec::as_slice), destination, health, now)
    }

    fn in_order(&self, list: &[IpAddr], destination: SocketAddr, health: &Health, now: Instant) -> Servers {
        let itself = match destination {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let mut servers =
            Servers { addresses: [SocketAddr::new(itself, destination.port()); MAX_SERVERS], len: 0 };
        let healthy = list.iter().filter(|server| health.is_healthy(**server, now));
        let others = list.iter().filter(|server| !health.is_healthy(**server, now));
        for (place, server) in servers.addresses.iter_mut().zip(healthy.chain(others)) {
            *place = self.server_at(*server, destination.port());
            servers.len += 1;
        }
        servers.len = servers.len.max(1);
        servers
    }

    fn resolvers_at(&self, destination: SocketAddr) -> Option<&[IpAddr]> {
        if !matches!(destination.port(), DNS | DNS_OVER_TLS) {
            return None;
        }
        match destination.ip() {
            IpAddr::V4(address) => {
                let v4 = self.v4.as_ref()?;
                (v4.dns_forward == Some(address)).then_some(&v4.dns_servers)
            }
            IpAddr::V6(address) => {
                let v6 = self.v6.as_ref()?;
                (v6.dns_forward == Some(address)).then_some(&v6.dns_servers)
            }
        }
    }

    /// The socket address of a server. In Linux, the unspecified address means the host itself, and answers come from
    /// the loopback address. So the loopback address replaces it.
    fn server_at(&self, server: IpAddr, port: u16) -> SocketAddr {
        match server {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            IpAddr::V6(address) if is_link_scope(address) => {
                let scope = self.v6.as_ref().map_or(0, |v6| v6.outbound_scope);
                SocketAddrV6::new(address, port, 0, scope).into()
            }
            _ => SocketAddr::new(server, port),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec::Vec};

    use super::*;
    use crate::testkit::settings::settings;

    const START: Instant = Instant::from_micros(1_000_000);

    fn asked(
        settings: &Settings,
        destination: &str,
        health: &Health,
        now: Instant,
    ) -> Vec<alloc::string::String> {
        let servers = settings.resolvers(destination.parse().unwrap(), health, now);
        servers.map(|servers| servers.all().iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    fn list(servers: &[&str]) -> Vec<IpAddr> {
        servers.iter().map(|server| server.parse().unwrap()).collect()
    }

    #[test]
    fn the_dns_address_maps_to_the_resolvers_on_dns_ports_only() {
        // behaviour §5.2 row 1, R-35
        let settings = settings();
        let asked = |destination: &str| asked(&settings, destination, &Health::default(), START);
        for port in [53, 853] {
            assert_eq!(asked(&alloc::format!("198.51.100.53:{port}")), [alloc::format!("127.0.0.53:{port}")]);
            let v6 = asked(&alloc::format!("[2001:db8::53]:{port}"));
            assert_eq!(v6, [alloc::format!("[2001:db8:9::53]:{port}")]);
        }
        for other in ["198.51.100.53:54", "198.51.100.1:53", "[2001:db8::53]:443", "[2001:db8::54]:53"] {
            assert_eq!(asked(other), [""; 0], "{other}");
        }
        let mut off = settings.clone();
        off.v4 = None;
        assert!(!off.is_dns("198.51.100.53:53".parse().unwrap()));
    }

    #[test]
    fn servers_are_asked_in_order_whatever_their_family() {
        let mut settings = settings();
        settings.v4.as_mut().unwrap().dns_servers =
            list(&["2001:db8::1", "192.0.2.1", "fe80::1", "0.0.0.0", "192.0.2.5"]);
        let asked = asked(&settings, "198.51.100.53:53", &Health::default(), START);
        assert_eq!(asked, ["[2001:db8::1]:53", "192.0.2.1:53", "[fe80::1%7]:53", "127.0.0.1:53"]);
    }

    #[test]
    fn without_resolvers_queries_go_to_the_host_itself() {
        // behaviour §5.2
        let mut settings = settings();
        settings.v4.as_mut().unwrap().dns_servers.clear();
        settings.v6.as_mut().unwrap().dns_servers = list(&["::"]);
        assert_eq!(asked(&settings, "198.51.100.53:53", &Health::default(), START), ["127.0.0.1:53"]);
        assert_eq!(asked(&settings, "[2001:db8::53]:53", &Health::default(), START), ["[::1]:53"]);
        settings.v6.as_mut().unwrap().dns_servers.clear();
        assert_eq!(asked(&settings, "[2001:db8::53]:53", &Health::default(), START), ["[::1]:53"]);
    }

    #[test]
    fn failed_servers_come_last_for_a_while() {
        let mut settings = settings();
        let servers = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"];
        settings.v4.as_mut().unwrap().dns_servers = list(&servers);
        let mut health = Health::default();
        let order = |health: &Health, now| {
            let asked = asked(&settings, "198.51.100.53:53", health, now);
            asked.iter().map(|server| server[8..9].to_string()).collect::<Vec<_>>().concat()
        };
        health.failed(list(&servers)[0], START);
        health.failed(list(&servers)[2], START);
        assert_eq!(order(&health, START), "2451");
        health.answered(list(&servers)[0]);
        assert_eq!(order(&health, START), "1245");
        assert_eq!(order(&health, START + Duration::from_secs(29)), "1245");
        assert_eq!(order(&health, START + Duration::from_secs(30)), "1234");
        for server in 0..1000_u32 {
            health.failed(Ipv4Addr::from(server).into(), START);
        }
        assert_eq!(health.failed_until.len(), 128, "bounded");
    }
}
