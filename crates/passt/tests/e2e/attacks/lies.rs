//! A resolver's answers that give an allowed name an address that the guest must not reach.

use std::net::IpAddr;

use testkit::message::{Data::Bytes, Data::Name, Message, param};
use wire::dns::{Section, Type};

use super::fort::{Attempt, Fort, Outcome, Outcome::*, question};
use crate::harness::*;

/// Addresses that are not public, in many forms. The resolver gives them to a name below `files.test`.
pub(super) const ADDRESSES: [&str; 31] = [
    // The host: its loopback address, the gateway, its own addresses, the mapped address.
    "127.0.0.1",
    "127.255.0.9",
    "::1",
    "0.0.0.0",
    "::",
    "198.51.100.1",
    "2001:db8:1::1",
    "198.51.100.2",
    "2001:db8:1::2",
    "198.51.100.99",
    // Private networks.
    "10.0.0.1",
    "172.31.255.254",
    "192.168.0.1",
    "100.64.0.1",
    "fc00::1",
    "fec0::1",
    "198.18.0.1",
    "240.0.0.1",
    // Link-local addresses, multicast addresses, metadata services.
    "169.254.0.1",
    "fe80::1",
    "224.0.0.251",
    "255.255.255.255",
    "169.254.169.254",
    "fd00:ec2::254",
    "100.100.100.200",
    // IPv6 addresses that contain an IPv4 address: mapped, compatible, 6to4, Teredo, NAT64.
    "::ffff:127.0.0.1",
    "::10.0.0.1",
    "2002:a00:1::1",
    "2001:0:cb00:7101::f5ff:fffe",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a9fe:a9fe",
];

/// Asserts for each of [`ADDRESSES`] that the guest does not get it in an answer, and can't connect to it.
pub(super) fn withstand_addresses(fort: &mut Fort<'_>) {
    for (number, address) in ADDRESSES.into_iter().enumerate() {
        fort.pace();
        let name = format!("lie{number}.files.test");
        let address: IpAddr = address.parse().unwrap();
        fort.script.set(&name, address);
        let kind = if address.is_ipv4() { Type::A } else { Type::AAAA };
        assert_eq!(fort.ask(&question(&name, kind)), NoData, "{address}");
        let parts = [&format!("for {name} "), &*format!("its address {address} is not public")];
        wait_until(&format!("a line of the log with {parts:?}"), || fort.count(&parts) == 1);
        assert!(fort.net.guest.connect((address, 443)).is_err(), "{address}");
        fort.assert_nothing_left(&name);
    }
}

const NOT_PUBLIC: &[&str] = &["was answered for", "is not public, and no rule allows it"];
const NAME: &str = "a.files.test";
const PRIVATE: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [198, 51, 100, 3];

const fn lie(
    name: &'static str,
    outcome: Outcome,
    log: &'static [&'static str],
    run: fn(&mut Fort<'_>) -> Outcome,
) -> Attempt {
    Attempt { name, outcome, log, asks: true, run }
}

fn answered(fort: &Fort<'_>, kind: Type, message: Message) -> Outcome {
    fort.script.say(NAME, kind, &message);
    fort.ask(&question(NAME, kind))
}

/// Asks for a name, whose answer the guest gets, and connects to an address in the answer that does not belong to the
/// name.
fn unlearned(fort: &Fort<'_>, kind: Type, message: Message) -> Outcome {
    assert_eq!(answered(fort, kind, message), Answered);
    fort.tell("198.51.100.3:443", &[b"exfil"])
}

pub(super) const RECORDS: &[Attempt] = &[
    lie("another address at the second time, TTL 0", NoData, NOT_PUBLIC, |f| {
        let message = |address| {
            Message::response(NAME, Type::A).record(Section::Answer, NAME, Type::A, 0, &[Bytes(address)])
        };
        assert_eq!(answered(f, Type::A, message(&[198, 51, 100, 4])), Answered);
        answered(f, Type::A, message(&PRIVATE))
    }),
    lie("a private address after a public one", NoData, NOT_PUBLIC, |f| {
        let message = Message::response(NAME, Type::A);
        let message = message.answer(NAME, Type::A, &[Bytes(&OTHER)]);
        answered(f, Type::A, message.answer(NAME, Type::A, &[Bytes(&PRIVATE)]))
    }),
    lie("an alias of a private name", NoData, NOT_PUBLIC, |f| {
        let message = Message::response(NAME, Type::A).answer(NAME, Type::CNAME, &[Name("nas.local")]);
        answered(f, Type::A, message.answer("nas.local", Type::A, &[Bytes(&PRIVATE)]))
    }),
    lie("a chain of aliases", NoData, NOT_PUBLIC, |f| {
        let message = Message::response(NAME, Type::A)
            .answer("two.test", Type::A, &[Bytes(&PRIVATE)])
            .answer("one.test", Type::CNAME, &[Name("two.test")]);
        answered(f, Type::A, message.answer(NAME, Type::CNAME, &[Name("one.test")]))
    }),
    lie("a hint of HTTPS", NoData, NOT_PUBLIC, |f| {
        let hint = param(4, &PRIVATE);
        let data = [Bytes(&[0, 1, 0]), Bytes(&hint)];
        answered(f, Type::HTTPS, Message::response(NAME, Type::HTTPS).answer(NAME, Type::HTTPS, &data))
    }),
    lie("a hint of HTTPS with IPv6", NoData, NOT_PUBLIC, |f| {
        let hint = param(6, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]);
        let data = [Bytes(&[0, 1, 0]), Bytes(&hint)];
        answered(f, Type::HTTPS, Message::response(NAME, Type::HTTPS).answer(NAME, Type::HTTPS, &data))
    }),
    lie("the address of a service", NoData, NOT_PUBLIC, |f| {
        let message = Message::response(NAME, Type::SRV)
            .answer(NAME, Type::SRV, &[Bytes(&[0, 0, 0, 0, 1, 187]), Name("nas.local")])
            .record(Section::Additional, "nas.local", Type::A, 60, &[Bytes(&PRIVATE)]);
        answered(f, Type::SRV, message)
    }),
    lie("an address of another name beside the answer", Refused, &["198.51.100.3:443 (default deny)"], |f| {
        let message = Message::response(NAME, Type::A)
            .answer(NAME, Type::A, &[Bytes(&[198, 51, 100, 4])])
            .record(Section::Additional, "www.allowed.test", Type::A, 60, &[Bytes(&OTHER)]);
        unlearned(f, Type::A, message)
    }),
    lie("an address in the authority", Refused, &["198.51.100.3:443 (default deny)"], |f| {
        let message = Message::response(NAME, Type::A)
            .answer(NAME, Type::A, &[Bytes(&[198, 51, 100, 4])])
            .record(Section::Authority, NAME, Type::A, 60, &[Bytes(&OTHER)]);
        unlearned(f, Type::A, message)
    }),
    lie("an answer that is cut off", Failed, &[], |f| {
        answered(f, Type::A, Message::response(NAME, Type::A).answer(NAME, Type::A, &[Bytes(&OTHER[..3])]))
    }),
];
