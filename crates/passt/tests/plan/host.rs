//! A builder of facts about imaginary hosts.

use std::{net::IpAddr, time::SystemTime};

use passt::host::{
    Address, AddressFlags, AddressScope, Facts, Link, LinkFlags, NextHop, Resolver, Route, RouteProtocol,
    RouteScope,
};
use wire::ethernet::Mac;

use super::p;

/// A host under construction.
#[derive(Clone)]
pub(crate) struct Host(pub(crate) Facts);

impl Host {
    /// A host that has only lo.
    pub(crate) fn bare() -> Self {
        Self(Facts {
            links: vec![Link {
                index: 1,
                name: "lo".into(),
                mac: Some(Mac([0; 6])),
                flags: LinkFlags::Up | LinkFlags::Loopback,
                mtu: 65536,
            }],
            addresses: Vec::new(),
            routes: Vec::new(),
            resolver: Resolver::default(),
            ipv6: true,
            time: SystemTime::UNIX_EPOCH,
        })
        .address(1, "127.0.0.1/8")
        .address(1, "::1/128")
    }

    /// A host with one more interface, `eth0` with index 2, and with addresses and a gateway in both families.
    pub(crate) fn usual() -> Self {
        Self::bare()
            .link(2, "eth0")
            .address(2, "198.51.100.2/24")
            .address(2, "2001:db8:1::2/64")
            .address(2, "fe80::2/64")
            .route("0.0.0.0/0", &[(2, "198.51.100.1")])
            .on_link("198.51.100.0/24", 2)
            .on_link("2001:db8:1::/64", 2)
            .on_link("fe80::/64", 2)
            .route("::/0", &[(2, "2001:db8:1::1")])
    }

    pub(crate) fn link(mut self, index: u32, name: &str) -> Self {
        let mac = Some(Mac([2, 0, 0, 0, 0, index.to_le_bytes()[0]]));
        self.0.links.push(Link { index, name: name.into(), mac, flags: LinkFlags::Up, mtu: 1500 });
        self
    }

    /// Adds an address, with the scope that the kernel gives it.
    pub(crate) fn address(mut self, interface: u32, address: &str) -> Self {
        let (local, prefix_len) = address.split_once('/').unwrap();
        let local: IpAddr = p(local);
        let link_local = matches!(local, IpAddr::V6(local) if local.is_unicast_link_local());
        self.0.addresses.push(Address {
            interface,
            local,
            peer: None,
            prefix_len: p(prefix_len),
            broadcast: None,
            route_priority: None,
            scope: match (local.is_loopback(), link_local) {
                (true, _) => AddressScope::Host,
                (_, true) => AddressScope::Link,
                _ => AddressScope::Universe,
            },
            flags: AddressFlags::Permanent,
        });
        self
    }

    /// Changes the last address.
    pub(crate) fn but(mut self, change: impl FnOnce(&mut Address)) -> Self {
        change(self.0.addresses.last_mut().unwrap());
        self
    }

    /// Adds flags to the last address.
    pub(crate) fn flag(self, flags: AddressFlags) -> Self {
        self.but(|address| address.flags |= flags)
    }

    /// Adds a route through hops. Each hop is an interface and a gateway. An empty text means no gateway.
    pub(crate) fn route(mut self, destination: &str, hops: &[(u32, &str)]) -> Self {
        let hop = |(interface, gateway): &(u32, &str)| NextHop {
            interface: *interface,
            gateway: gateway.parse().ok(),
            weight: 1,
            onlink: false,
        };
        self.0.routes.push(Route {
            destination: p(destination),
            source: None,
            tos: 0,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            priority: None,
            preferred_source: None,
            preference: None,
            metrics: Vec::new(),
            next_hops: hops.iter().map(hop).collect(),
            encapsulates: false,
        });
        self
    }

    /// Adds the route that the kernel would make for an address.
    pub(crate) fn on_link(self, destination: &str, interface: u32) -> Self {
        self.route(destination, &[(interface, "")]).route_but(|route| {
            route.protocol = RouteProtocol::Kernel;
            if route.destination.addr().is_ipv6() {
                route.priority = Some(256);
            } else {
                route.scope = RouteScope::Link;
            }
        })
    }

    /// Changes the last route.
    pub(crate) fn route_but(mut self, change: impl FnOnce(&mut Route)) -> Self {
        change(self.0.routes.last_mut().unwrap());
        self
    }

    /// Sets the contents of resolv.conf.
    pub(crate) fn resolv_conf(mut self, text: &str) -> Self {
        self.0.resolver = Resolver::parse(text.as_bytes());
        self
    }

    pub(crate) fn without_ipv6(mut self) -> Self {
        self.0.ipv6 = false;
        self
    }
}
