use alloc::{
    string::{String, ToString},
    vec,
    vec::Vec,
};

use super::*;
use crate::{addr::MAX_CLAIMED, testkit::settings::settings};

const MAIN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

/// The main addresses: IPv4, IPv6 and link-local.
fn main(guest: &Guest) -> [String; 3] {
    let shown = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    [
        shown(guest.v4().map(IpAddr::V4)),
        shown(guest.v6().map(IpAddr::V6)),
        shown(guest.link_local().map(IpAddr::V6)),
    ]
}

/// A frame with an ARP or Neighbour Discovery message that shows `address`.
fn claim(guest: &mut Guest, settings: &Settings, mac: Mac, address: &str, now: Instant) {
    guest.learn(settings, mac, None, now);
    guest.shows(settings, ip(address), Some(mac));
}

/// Runs all checks to their end. `answer` returns whether the guest answers for an address.
fn run_checks(
    guest: &mut Guest,
    settings: &Settings,
    mut now: Instant,
    answer: impl Fn(IpAddr) -> bool,
) -> Vec<IpAddr> {
    let mut asked = Vec::new();
    while let Some(due) = guest.next_question() {
        now = now.max(due);
        while let Some(address) = guest.due_question(now) {
            asked.push(address);
            if answer(address) {
                claim(guest, settings, MAIN, &address.to_string(), now);
            }
        }
        assert!(asked.len() < 1000);
    }
    asked
}

#[test]
fn before_any_frame_the_guest_has_what_was_assigned() {
    let guest = Guest::new(&settings(), None);
    assert_eq!(main(&guest), ["198.51.100.2", "2001:db8:1::2", ""]);
    assert_eq!(guest.mac_of(ip("198.51.100.2")), Mac::BROADCAST);
    assert_eq!(guest.addresses().iter().count(), 0);
}

/// Packets of a network that the guest routes for do not change the main address, but answers to these packets reach
/// the guest.
#[test]
fn sources_of_packets_do_not_change_a_known_main_address() {
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(MAIN));
    for address in ["198.51.100.2", "2001:db8:1::2", "fe80::2"] {
        guest.give(ip(address));
    }
    for source in ["172.17.0.2", "fd77::2", "fe80::77"] {
        guest.learn(&settings, MAIN, Some(ip(source)), at(1));
        assert!(!guest.owns(ip(source)), "{source}");
    }
    assert_eq!(main(&guest), ["198.51.100.2", "2001:db8:1::2", "fe80::2"]);
    assert_eq!(guest.mac_of(ip("172.17.0.2")), MAIN);
    assert_eq!(guest.next_question(), None);
}

/// While no address is known, the source of the last packet is used (behaviour §5.4, R-48).
#[test]
fn sources_of_packets_are_followed_while_nothing_is_known_r48() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    for ignored in
        ["::", "::1", "ff02::1", "0.0.0.0", "127.0.0.1", "255.255.255.255", "224.0.0.1", "198.51.100.1"]
    {
        guest.learn(&settings, MAIN, Some(ip(ignored)), at(0));
    }
    assert_eq!(main(&guest), ["198.51.100.2", "2001:db8:1::2", ""]);
    for source in ["198.51.100.55", "2001:db8:1::55", "fe80::55"] {
        guest.learn(&settings, MAIN, Some(ip(source)), at(0));
    }
    assert_eq!(main(&guest), ["198.51.100.55", "2001:db8:1::55", "fe80::55"]);
    claim(&mut guest, &settings, MAIN, "198.51.100.60", at(1));
    guest.learn(&settings, MAIN, Some(ip("198.51.100.55")), at(2));
    assert_eq!(main(&guest)[0], "198.51.100.60");
}

#[test]
fn the_assigned_address_is_the_main_one_if_the_guest_has_it() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    claim(&mut guest, &settings, MAIN, "198.51.100.55", at(0));
    assert_eq!(main(&guest)[0], "198.51.100.55");
    claim(&mut guest, &settings, MAIN, "198.51.100.2", at(1));
    assert_eq!(main(&guest)[0], "198.51.100.2");
    assert_eq!(guest.addresses().get(ip("198.51.100.2")).unwrap().basis, Basis::Assigned);
    assert!(guest.has_several(ip("192.0.2.1")) && !guest.has_several(ip("2001:db8::1")));
}

/// the guest's claims do not change a pinned address.
#[test]
fn a_pinned_address_does_not_change_r49() {
    let mut settings = settings();
    settings.v4.as_mut().unwrap().pinned = true;
    settings.v6.as_mut().unwrap().pinned = true;
    let mut guest = Guest::new(&settings, None);
    claim(&mut guest, &settings, MAIN, "198.51.100.2", at(0));
    for other in ["198.51.100.60", "2001:db8:1::60"] {
        guest.learn(&settings, OTHER, Some(ip(other)), at(1));
        claim(&mut guest, &settings, OTHER, other, at(1));
    }
    guest.gives_up(ip("198.51.100.2"));
    assert_eq!(main(&guest)[..2], ["198.51.100.2", "2001:db8:1::2"]);
    assert_eq!(guest.next_question(), None);
    assert_eq!(guest.mac_of(ip("198.51.100.2")), MAIN);
}

/// A new address becomes the main one only if the guest no longer has the old one.
#[test]
fn a_lost_main_address_is_replaced() {
    let settings = settings();
    for (old, new, index) in [("198.51.100.2", "203.0.113.7", 0), ("2001:db8:1::2", "2001:db8:7::7", 1)] {
        let mut guest = Guest::new(&settings, Some(MAIN));
        guest.give(ip(old));
        claim(&mut guest, &settings, MAIN, new, at(10));
        assert_eq!(main(&guest)[index], old);
        let asked = run_checks(&mut guest, &settings, at(10), |_| true);
        assert_eq!((asked, &*main(&guest)[index]), (vec![ip(old)], old));

        claim(&mut guest, &settings, MAIN, if index == 0 { "203.0.113.8" } else { "2001:db8:7::8" }, at(20));
        let asked = run_checks(&mut guest, &settings, at(20), |_| false);
        assert_eq!((asked, &*main(&guest)[index]), (vec![ip(old); 3], new));
        assert!(!guest.owns(ip(old)));
        // The guest changes back to the old address.
        claim(&mut guest, &settings, MAIN, old, at(30));
        assert_eq!(main(&guest)[index], old);
    }
}

/// A declined address is not the guest's (RFC 2131 §4.3.3, §4.3.4).
#[test]
fn an_address_that_was_declined_is_not_the_guests() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    guest.learn(&settings, MAIN, None, at(0));
    guest.leases(ip("198.51.100.2"));
    // Another host of the guest's network gets the same lease, and detects the conflict.
    guest.learn(&settings, OTHER, None, at(1));
    guest.gives_up(ip("198.51.100.2"));
    assert_eq!(main(&guest)[0], "198.51.100.2");
    guest.learn(&settings, MAIN, None, at(2));
    guest.gives_up(ip("198.51.100.2"));
    assert_eq!(main(&guest)[0], "");
    assert!(!guest.owns(ip("198.51.100.2")));
    guest.leases(ip("198.51.100.2"));
    assert_eq!(main(&guest)[0], "198.51.100.2");
}

#[test]
fn each_host_has_its_own_hardware_address() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    guest.learn(&settings, OTHER, Some(ip("10.0.0.9")), at(0));
    assert_eq!(guest.mac_of(ip("198.51.100.2")), OTHER, "the host that has the address");
    claim(&mut guest, &settings, MAIN, "198.51.100.2", at(1));
    claim(&mut guest, &settings, OTHER, "198.51.100.60", at(1));
    // The second host routes for one network, the first host for another.
    guest.learn(&settings, OTHER, Some(ip("10.0.0.9")), at(2));
    guest.learn(&settings, MAIN, Some(ip("172.17.0.2")), at(2));
    for (address, mac) in [
        ("198.51.100.2", MAIN),
        ("198.51.100.60", OTHER),
        ("10.0.0.9", OTHER),
        ("172.17.0.2", MAIN),
        ("203.0.113.1", MAIN),
    ] {
        assert_eq!(guest.mac_of(ip(address)), mac, "{address}");
    }
    // The address moves to the other host.
    guest.learn(&settings, MAIN, Some(ip("10.0.0.9")), at(3));
    assert_eq!(guest.mac_of(ip("10.0.0.9")), MAIN);
    // The host with the main address gets another hardware address.
    let new = Mac([2, 0, 0, 0, 0, 9]);
    guest.learn(&settings, new, Some(ip("198.51.100.2")), at(4));
    assert_eq!((guest.mac_of(ip("198.51.100.2")), guest.mac_of(ip("203.0.113.1"))), (new, new));
}

/// A guest that claims thousands of addresses.
#[test]
fn claims_neither_change_the_main_address_nor_exhaust_memory() {
    let settings = settings();
    for lease in [true, false] {
        let mut guest = Guest::new(&settings, Some(MAIN));
        if lease {
            guest.learn(&settings, MAIN, None, at(0));
            guest.leases(ip("198.51.100.2"));
        } else {
            claim(&mut guest, &settings, MAIN, "198.51.100.50", at(0));
        }
        let before = main(&guest);
        for number in 0..10_000_u32 {
            let address = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + number));
            let now = at(u64::from(number));
            guest.learn(&settings, OTHER, Some(address), now);
            guest.shows(&settings, address, None);
            let routed = IpAddr::from(Ipv4Addr::from(0x0b00_0000 + number));
            guest.learn(&settings, OTHER, Some(routed), now);
            while let Some(asked) = guest.due_question(now) {
                claim(&mut guest, &settings, MAIN, &asked.to_string(), now);
            }
        }
        assert_eq!(main(&guest), before);
        assert_eq!(guest.mac_of(ip(&before[0])), MAIN);
        assert!(guest.addresses().iter().count() <= MAX_CLAIMED + 1);
    }
}

#[test]
fn our_own_addresses_can_not_be_claimed() {
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(MAIN));
    for ours in ["198.51.100.1", "198.51.100.77", "fe80::1", "2001:db8:1::77", "127.0.0.1", "224.0.0.1", "::"]
    {
        claim(&mut guest, &settings, MAIN, ours, at(0));
        assert!(!guest.owns(ip(ours)), "{ours}");
    }
}

/// A new client of the link may be another machine. Addresses that were set on the interface are kept.
#[test]
fn a_new_client_of_the_link_starts_anew() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    claim(&mut guest, &settings, MAIN, "198.51.100.60", at(0));
    guest.on_link_up();
    assert_eq!(main(&guest)[0], "198.51.100.2");
    assert_eq!(guest.mac_of(ip("198.51.100.2")), Mac::BROADCAST);

    let mut guest = Guest::new(&settings, Some(MAIN));
    guest.give(ip("198.51.100.2"));
    guest.on_link_up();
    assert_eq!((guest.addresses().iter().count(), guest.mac_of(ip("198.51.100.2"))), (1, MAIN));
}

/// The same guest is back, and its first frame has the source of its last one.
#[test]
fn a_guest_that_comes_back_is_learned_from_its_first_frame() {
    let settings = settings();
    let mut guest = Guest::new(&settings, None);
    for reconnect in [Guest::on_link_up, |guest: &mut Guest| guest.on_link_down()] {
        guest.learn(&settings, MAIN, Some(ip("198.51.100.2")), at(0));
        assert!(!guest.is_away());
        reconnect(&mut guest);
        assert!(guest.is_away());
        guest.learn(&settings, MAIN, Some(ip("198.51.100.2")), at(0));
        assert_eq!((guest.mac_of(ip("198.51.100.2")), guest.is_away()), (MAIN, false));
    }
}

/// A host does not ask for its own address. A host that does so may have lost the address.
#[test]
fn an_address_that_its_holder_asks_for_is_checked() {
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(MAIN));
    guest.give(ip("198.51.100.2"));
    guest.give(ip("198.51.100.3"));
    guest.asks_for_its_own(&settings, ip("198.51.100.3"), Some(OTHER));
    assert_eq!(guest.next_question(), None);
    guest.asks_for_its_own(&settings, ip("198.51.100.3"), Some(MAIN));
    run_checks(&mut guest, &settings, at(0), |_| true);
    assert!(guest.owns(ip("198.51.100.3")));
    guest.asks_for_its_own(&settings, ip("198.51.100.3"), Some(MAIN));
    run_checks(&mut guest, &settings, at(0), |_| false);
    assert!(!guest.owns(ip("198.51.100.3")) && guest.owns(ip("198.51.100.2")));
}
