use alloc::{format, string::String};

use wire::ethernet::Mac;

use super::*;
use crate::testkit::settings as test;

const LOCAL: &str = "127.0.0.1:999";
const LOCAL6: &str = "[::1]:999";
const PEER: &str = "203.0.113.9:999";
const PEER6: &str = "[2001:db8:7::9]:999";

/// The decision about a flow from `peer` to `hit`, as text.
fn onward(bypass: Bypass, keeps: bool, direction: Direction, target: &str, peer: &str, hit: &str) -> String {
    let settings = test::settings();
    let guest = test::guest(&settings);
    let listener = Listener {
        direction,
        rule: 0,
        port: 80,
        address: None,
        on_interface: false,
        target_address: target.parse().ok(),
        target_port: 8080,
    };
    let policy = Policy { bypass, keeps_loopback: keeps, scope: 3 };
    match policy.onward(&listener, &settings, &guest, peer.parse().unwrap(), hit.parse().ok()) {
        Onward::Link(ends) => format!("{} as {}", ends.guest, ends.remote),
        Onward::Bypass(to) => format!("bypass {to}"),
        Onward::Refuse => "refuse".into(),
    }
}

/// One row for each case of behaviour §5.3.3, §5.4, §5.5. The table is valid for connections and for datagrams.
#[test]
fn decisions_r88_r89_r106() {
    use Bypass::{Local, Never, Only};
    use Direction::{Inbound, Outbound};
    let guest = "198.51.100.55:8080";
    let shown = format!("{guest} as {PEER}");
    // The guest sees a loopback address as the address that maps to loopback (behaviour §5.2).
    let loopback = format!("{guest} as 198.51.100.1:999");
    let past = format!("bypass {guest}");
    for (bypass, keeps, direction, target, peer, hit, expected) in [
        // Flows from loopback bypass the link, and go to the guest's address.
        (Local, false, Inbound, "", LOCAL, "127.0.0.1", past.as_str()),
        (Local, false, Inbound, "", LOCAL, "", &past),
        (Local, false, Inbound, "", LOCAL6, "::1", "bypass [2001:db8:1::55]:8080"),
        (Only, false, Inbound, "", LOCAL, "127.0.0.1", &past),
        (Never, false, Inbound, "", LOCAL, "127.0.0.1", &loopback),
        // Dual-stack sockets report IPv4-mapped addresses.
        (Local, false, Inbound, "", "[::ffff:127.0.0.1]:999", "::ffff:127.0.0.1", &past),
        (Local, false, Inbound, "", "[::ffff:203.0.113.9]:999", "::ffff:192.0.2.1", &shown),
        // --host-lo-to-ns-lo
        (Local, true, Inbound, "", LOCAL, "127.0.0.53", "bypass 127.0.0.53:8080"),
        (Local, true, Inbound, "", LOCAL, "192.0.2.1", &past),
        (Never, true, Inbound, "", LOCAL, "127.0.0.53", &loopback),
        // Flows to a target address and to a group go through the link.
        (Local, false, Inbound, "198.51.100.7", LOCAL, "127.0.0.1", "198.51.100.7:8080 as 198.51.100.1:999"),
        (Only, false, Inbound, "198.51.100.7", LOCAL, "127.0.0.1", "refuse"),
        (Local, false, Inbound, "", LOCAL, "224.0.0.251", &loopback),
        (Only, false, Inbound, "", LOCAL, "224.0.0.251", "refuse"),
        // Flows from other hosts go through the link.
        (Local, false, Inbound, "", PEER, "192.0.2.1", &shown),
        (Local, true, Inbound, "", PEER, "", &shown),
        (Never, false, Inbound, "", PEER, "192.0.2.1", &shown),
        (Only, false, Inbound, "", PEER, "192.0.2.1", "refuse"),
        (Local, false, Inbound, "", PEER6, "2001:db8:8::1", "[2001:db8:1::55]:8080 as [2001:db8:7::9]:999"),
        (Local, false, Inbound, "2001:db8:1::7", PEER, "192.0.2.1", "refuse"),
        // Flows from the namespace are allowed between loopback addresses only, even with --no-splice.
        (Local, false, Outbound, "", LOCAL, "127.0.0.53", "bypass 127.0.0.53:8080"),
        (Never, false, Outbound, "", LOCAL6, "::1", "bypass [::1]:8080"),
        (Local, false, Outbound, "", PEER, "127.0.0.1", "refuse"),
        (Local, false, Outbound, "", LOCAL, "198.51.100.55", "refuse"),
        (Local, false, Outbound, "", LOCAL, "", "refuse"),
    ] {
        let got = onward(bypass, keeps, direction, target, peer, hit);
        assert_eq!(got, expected, "{bypass:?} {keeps} {direction:?} {target} {peer} -> {hit}");
    }
}

/// A link-local address of the guest needs the scope of its interface.
#[test]
fn a_link_local_guest_is_reached_in_its_scope() {
    let mut settings = test::settings();
    settings.v6.as_mut().unwrap().assigned = None;
    let mac = Mac([2, 0, 0, 0, 0, 0x55]);
    let mut guest = Guest::new(&settings, Some(mac));
    guest.shows(&settings, "fe80::55".parse().unwrap(), Some(mac));
    let listener = Listener {
        direction: Direction::Inbound,
        rule: 0,
        port: 80,
        address: None,
        on_interface: false,
        target_address: None,
        target_port: 80,
    };
    let policy = Policy { scope: 3, ..Policy::default() };
    let to = policy.onward(&listener, &settings, &guest, LOCAL6.parse().unwrap(), None);
    let expected = SocketAddrV6::new("fe80::55".parse().unwrap(), 80, 0, 3);
    assert_eq!(to, Onward::Bypass(expected.into()));
}

/// The system call is made only if the decision depends on its result.
#[test]
fn the_address_written_to_is_needed_for_some_listeners() {
    let settings = test::settings();
    let mut guest = Guest::new(&settings, None);
    let peer: IpAddr = "203.0.113.9".parse().unwrap();
    let listener = |direction, target: &str| Listener {
        direction,
        rule: 0,
        port: 80,
        address: None,
        on_interface: false,
        target_address: target.parse().ok(),
        target_port: 80,
    };
    let (policy, keeps) = (Policy::default(), Policy { keeps_loopback: true, ..Policy::default() });
    let inbound = listener(Direction::Inbound, "");
    assert!(policy.depends_on_written_to(&listener(Direction::Outbound, ""), &guest, peer));
    assert!(!policy.depends_on_written_to(&inbound, &guest, peer));
    assert!(keeps.depends_on_written_to(&inbound, &guest, peer));
    assert!(!keeps.depends_on_written_to(&listener(Direction::Inbound, "198.51.100.7"), &guest, peer));
    for address in ["198.51.100.55", "198.51.100.56"] {
        guest.give(address.parse().unwrap());
    }
    assert!(policy.depends_on_written_to(&inbound, &guest, peer));
    assert!(policy.depends_on_written_to(&inbound, &guest, "::ffff:203.0.113.9".parse().unwrap()));
    assert!(!policy.depends_on_written_to(&inbound, &guest, "2001:db8::1".parse().unwrap()));
}
