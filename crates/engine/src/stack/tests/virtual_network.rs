//! Tests of a virtual network, with the whole stack (behaviour §13.1.2).

use alloc::string::ToString;

use super::guard::{ping, syn};
use super::*;

fn on_virtual_network() -> Test {
    let mut test = Test::new();
    test.stack.settings_mut().virtual_hosts =
        ["198.51.100.1", "fe80::1"].map(|address| address.parse().unwrap()).into();
    test
}

#[test]
fn addresses_that_lead_nowhere_are_unreachable_and_open_no_socket() {
    for (guest, to, kind) in [(GUEST, "198.51.100.9:80", 3), (GUEST6, "[2001:db8:1::9]:80", 1)] {
        let mut test = on_virtual_network();
        for frame in [syn(guest, to), datagram(guest, to, b"lost").1] {
            test.receive(&frame, &Offload::default());
            let answers = test.wait(Duration::ZERO);
            assert_eq!(answers.len(), 1, "{to}");
            let Transport::Icmp(message) = ip(&answers[0]).transport else { panic!() };
            assert_eq!((message.header.kind, message.header.code), (kind, 0), "network unreachable");
        }
        assert_eq!(test.host.opened.len(), 0);
    }
}

#[test]
fn the_engine_answers_pings_of_its_own_address_only() {
    let mut test = on_virtual_network();
    test.receive(&ping(GUEST, "198.51.100.1:0"), &Offload::default());
    let answers = test.wait(Duration::ZERO);
    assert_eq!((answers.len(), test.host.opened.len()), (1, 0));
    assert_eq!(ip(&answers[0]).source.to_string(), "198.51.100.1");
    test.receive(&ping(GUEST, PEER), &Offload::default());
    assert_eq!((test.wait(Duration::ZERO).len(), test.host.opened.len()), (0, 1));
}
