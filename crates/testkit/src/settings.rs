//! Default addressing and limits of tests.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
    vec::Vec,
};

use engine::{
    addr::{Guest, Services, Settings, V4, V6},
    dns,
    neighbours::Neighbours,
    reassembly,
    share::{Bound, Share},
    stack::Limits,
    timer::Instant,
    udp,
};
use wire::ethernet::Mac;

/// Our hardware address.
pub const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
/// The guest's hardware address.
pub const GUEST_MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x55]);
/// The virtual time at which tests begin.
pub const START: Instant = Instant::from_micros(1_000_000);

/// Settings with both families, all mappings, and all services. Everything except multicast is forwarded.
pub fn settings() -> Settings {
    Settings {
        our_mac: OUR_MAC,
        mtu: 65520,
        v4: Some(V4 {
            assigned: Ipv4Addr::new(198, 51, 100, 2),
            prefix_len: 24,
            our_address: Some(Ipv4Addr::new(198, 51, 100, 1)),
            map_host_loopback: Some(Ipv4Addr::new(198, 51, 100, 1)),
            map_guest_address: Some(Ipv4Addr::new(198, 51, 100, 77)),
            dns_forward: Some(Ipv4Addr::new(198, 51, 100, 53)),
            dns_servers: Vec::from([IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53))]),
            pinned: false,
            dns: Vec::from([Ipv4Addr::new(198, 51, 100, 53), Ipv4Addr::new(192, 0, 2, 53)]),
        }),
        v6: Some(V6 {
            assigned: Some(v6("2001:db8:1::2")),
            our_link_local: v6("fe80::1"),
            map_host_loopback: Some(v6("fe80::1")),
            map_guest_address: Some(v6("2001:db8:1::77")),
            dns_forward: Some(v6("2001:db8::53")),
            dns_servers: Vec::from([IpAddr::V6(v6("2001:db8:9::53"))]),
            outbound_scope: 7,
            pinned: false,
            dns: Vec::from([v6("2001:db8::53")]),
        }),
        neighbours: Neighbours::default(),
        virtual_hosts: Vec::new(),
        services: Services {
            tcp: true,
            udp: true,
            icmp: true,
            multicast: false,
            dhcp: true,
            dhcpv6: true,
            ndp: true,
            ra: true,
            advertise_dns: true,
            advertise_search: true,
            search: Vec::from(["example.test".into(), "corp.test".into()]),
            hostname: Some("guest".into()),
            fqdn: Some("guest.example.test".into()),
            start_since_2000: 0x0102_0304,
        },
    }
}

/// The state of a guest whose addresses differ from the assigned addresses.
pub fn guest(settings: &Settings) -> Guest {
    let mut guest = Guest::new(settings, Some(GUEST_MAC));
    for address in ["198.51.100.55", "2001:db8:1::55", "fe80::55"] {
        guest.shows(settings, address.parse().unwrap(), Some(GUEST_MAC));
    }
    guest
}

/// Limits that allow ten flows of each kind.
pub const fn limits() -> Limits {
    let (share, idle) = (Share { most: 10, bound: Bound::Files }, Duration::from_secs(30));
    let idle_stream = Duration::from_secs(120);
    Limits {
        connections: 10,
        queue_memory: 1 << 20,
        udp: udp::Limits {
            flows: share,
            inbound: share,
            endpoints: share,
            bypass: share,
            checks: udp::CheckLimits::DEFAULT,
            idle,
            idle_stream,
        },
        dns: dns::Limits { files: share, bytes: 10_000, idle, idle_stream },
        pings: share,
        fragments: reassembly::Limits::DEFAULT,
    }
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}
