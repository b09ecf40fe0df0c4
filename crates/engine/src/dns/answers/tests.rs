use alloc::{borrow::ToOwned, collections::BTreeSet, format, string::ToString, vec};

use hickory_proto::{op, rr::RData};
use proptest::prelude::*;

use super::*;
use crate::testkit::message::{
    Data::{self, Bytes, Name, Plain},
    Message, param,
};

const A1: &[Data<'_>] = &[Bytes(&[192, 0, 2, 1])];
const A2: &[Data<'_>] = &[Bytes(&[192, 0, 2, 2])];
const AAAA: &[Data<'_>] = &[Bytes(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])];

/// Addresses and targets, with their times to live.
fn read(message: &Message) -> (Vec<String>, Vec<String>) {
    let answers = answers(&message.bytes()).unwrap();
    let addresses = answers.addresses.iter().map(|Address { address, ttl }| format!("{address} {ttl}"));
    let targets = answers.targets.iter().map(|Target { name, ttl }| format!("{name} {ttl}"));
    (addresses.collect(), targets.collect())
}

fn assert_read(message: &Message, addresses: &[&str], targets: &[&str]) {
    let (mut found, mut leads) = read(message);
    found.sort();
    leads.sort();
    assert_eq!(
        (found, leads),
        (
            addresses.iter().map(|&text| text.to_owned()).collect(),
            targets.iter().map(|&text| text.to_owned()).collect(),
        )
    );
}

#[test]
fn addresses_of_the_name_that_was_asked_for() {
    let message = Message::response("Www.example.test", Type::A)
        .answer("www.EXAMPLE.test", Type::A, A1)
        .record(Section::Answer, "www.example.test", Type::AAAA, 5, AAAA)
        .answer("other.example.test", Type::A, A2)
        .record(Section::Authority, "www.example.test", Type::A, 5, A2);
    assert_read(&message, &["192.0.2.1 300", "2001:db8::1 5"], &[]);
    assert_read(&Message::response("www.example.test", Type::A), &[], &[]);
}

#[test]
fn other_classes_and_negative_times_give_nothing() {
    let message = Message::response("a.test", Type::A).answer("a.test", Type::A, A1);
    let mut bytes = message.bytes();
    let class = bytes.len() - 4 - 2 - 4 - 2;
    bytes[class + 1] = 3;
    assert_eq!(answers(&bytes), Ok(Answers::default()));
    let message =
        Message::response("a.test", Type::A).record(Section::Answer, "a.test", Type::A, 1 << 31, A1);
    assert_read(&message, &["192.0.2.1 0"], &[]);
}

#[test]
fn aliases_are_followed_in_any_order() {
    let records: [(&str, Type, u32, &[Data<'_>]); 4] = [
        ("a.test", Type::CNAME, 30, &[Name("B.test")]),
        ("b.test", Type::CNAME, 200, &[Name("c.test")]),
        ("c.test", Type::A, 100, A1),
        ("d.test", Type::A, 100, A2),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1]] {
        let message = order.iter().fold(Message::response("a.test", Type::A), |message, &index| {
            let (owner, kind, ttl, data) = records[index];
            message.record(Section::Answer, owner, kind, ttl, data)
        });
        assert_read(&message, &["192.0.2.1 30"], &["b.test 30", "c.test 30"]);
    }
}

#[test]
fn circles_and_long_chains_end() {
    let circle = Message::response("a.test", Type::A)
        .answer("a.test", Type::CNAME, &[Name("b.test")])
        .answer("b.test", Type::CNAME, &[Name("a.test")])
        .answer("c.test", Type::CNAME, &[Name("c.test")])
        .answer("b.test", Type::A, A1);
    assert_read(&circle, &["192.0.2.1 300"], &["b.test 300"]);
    // The worst order of records: each round finds only one more name.
    let chain = (0..40).rev().fold(Message::response("n0.test", Type::A), |message, number| {
        let target = format!("n{}.test", number + 1);
        message.answer(&format!("n{number}.test"), Type::CNAME, &[Name(&target)])
    });
    assert_eq!(read(&chain).1.len(), MOST_LINKS);
}

/// A server adds a CNAME for a DNAME.
#[test]
fn dname() {
    let message = Message::response("www.old.test", Type::A)
        .answer("old.test", Type::DNAME, &[Plain("new.test")])
        .record(Section::Answer, "www.old.test", Type::CNAME, 0, &[Name("www.new.test")])
        .answer("www.new.test", Type::A, A1)
        .answer("new.test", Type::A, A2);
    assert_read(&message, &["192.0.2.1 0"], &["www.new.test 0"]);
}

#[test]
fn services_lead_to_targets_and_their_addresses() {
    let message = Message::response("_http._tcp.deb.test", Type::SRV)
        .answer("_http._tcp.deb.test", Type::SRV, &[Bytes(&[0, 10, 0, 1, 0, 80]), Plain("cdn.test")])
        .answer("_http._tcp.deb.test", Type::SRV, &[Bytes(&[0, 20, 0, 1, 0, 80]), Name("backup.deb.test")])
        .record(Section::Additional, "cdn.test", Type::A, 60, A1)
        .record(Section::Additional, "stranger.test", Type::A, 60, A2);
    assert_read(&message, &["192.0.2.1 60"], &["backup.deb.test 300", "cdn.test 300"]);
    // The target says that there is no such service.
    let message = Message::response("_http._tcp.deb.test", Type::SRV)
        .answer("_http._tcp.deb.test", Type::SRV, &[Bytes(&[0, 0, 0, 0, 0, 0]), Plain("")])
        .record(Section::Additional, "", Type::A, 60, A2);
    assert_read(&message, &[], &[]);
    let message = Message::response("sip.test", Type::NAPTR)
        .answer(
            "sip.test",
            Type::NAPTR,
            &[Bytes(b"\0\x01\0\x01\x01s\x07SIP+D2U\0"), Plain("_sip._udp.sip.test")],
        )
        .record(
            Section::Additional,
            "_sip._udp.sip.test",
            Type::SRV,
            60,
            &[Bytes(&[0, 0, 0, 0, 0x13, 0xc4]), Plain("gw.test")],
        )
        .record(Section::Additional, "gw.test", Type::AAAA, 50, AAAA);
    assert_read(&message, &["2001:db8::1 50"], &["_sip._udp.sip.test 300", "gw.test 60"]);
}

#[test]
fn hints_count_as_addresses() {
    let hints = [param(1, b"\x02h3"), param(4, &[192, 0, 2, 1, 192, 0, 2, 2]), param(5, b"ech")].concat();
    let six = param(6, &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    let message = Message::response("www.test", Type::HTTPS)
        .answer("www.test", Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&hints)])
        .answer("www.test", Type::HTTPS, &[Bytes(&[0, 2]), Plain("alt.test"), Bytes(&six)])
        .answer("other.test", Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&param(4, &[192, 0, 2, 3]))]);
    assert_read(&message, &["192.0.2.1 300", "192.0.2.2 300", "2001:db8::1 300"], &["alt.test 300"]);
    // An alias of a service.
    let message = Message::response("_dns.test", Type::SVCB)
        .answer("_dns.test", Type::SVCB, &[Bytes(&[0, 0]), Plain("dns.test")])
        .record(Section::Additional, "dns.test", Type::A, 60, A1);
    assert_read(&message, &["192.0.2.1 60"], &["dns.test 300"]);
}

/// A dot within a label does not separate labels, and an asterisk is not a wildcard.
#[test]
fn strange_labels_are_escaped() {
    let message = Message::response("a.test", Type::CNAME).answer(
        "a.test",
        Type::CNAME,
        &[Bytes(b"\x09x.allowed\x01*\x04test\0")],
    );
    assert_read(&message, &[], &["x\\046allowed.\\042.test 300"]);
}

#[test]
fn malformed_messages_are_refused() {
    let with =
        |kind, data: &[Data<'_>]| Message::response("a.test", kind).answer("a.test", kind, data).bytes();
    for message in [
        with(Type::A, &[Bytes(&[192, 0, 2])]),
        with(Type::A, &[]),
        with(Type::AAAA, &[Bytes(&[192, 0, 2, 1])]),
        with(Type::CNAME, &[]),
        with(Type::CNAME, &[Name("b.test"), Bytes(&[0])]),
        with(Type::SRV, &[Bytes(&[0; 6])]),
        with(Type::NAPTR, &[Bytes(&[0, 0, 0, 0, 9]), Plain("b.test")]),
        with(Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&param(4, &[192, 0, 2]))]),
        with(Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&param(6, &[]))]),
        with(Type::HTTPS, &[Bytes(&[0, 1]), Plain(""), Bytes(&[0])]),
        with(Type::HTTPS, &[Bytes(&[0])]),
        vec![],
        vec![0; 11],
    ] {
        assert_eq!(answers(&message), Err(Malformed), "{message:?}");
    }
    // Malformed records of another name are ignored.
    let other = Message::response("a.test", Type::A).answer("b.test", Type::A, &[Bytes(&[1])]);
    assert_eq!(answers(&other.bytes()), Ok(Answers::default()));
    // Messages without a question.
    let mut bytes = Message::response("a.test", Type::A).bytes();
    bytes.truncate(12);
    bytes[5] = 0;
    assert_eq!(answers(&bytes), Ok(Answers::default()));
    bytes[7] = 1;
    bytes.extend(b"\0\0\x01\0\x01\0\0\0\0\0\x04\x01\x02\x03\x04");
    assert_eq!(answers(&bytes), Err(Malformed));
}

#[test]
fn work_is_bounded() {
    let message = |count: usize| {
        (0..count).fold(Message::response("a.test", Type::SRV), |message, number| {
            let target = format!("n{number}.test");
            message.answer("a.test", Type::SRV, &[Bytes(&[0; 6]), Plain(&target)])
        })
    };
    assert_eq!(read(&message(500)).1.len(), MOST_NAMES - 1);
    assert!(answers(&message(MOST_RECORDS).bytes()).is_ok());
    assert_eq!(answers(&message(MOST_RECORDS + 1).bytes()), Err(Malformed));
}

/// A record of one of a few names: the owner, whether it is an address record, and the address or target.
type Edge = (u8, bool, u8);

/// The expected answer, from another parser. It reads all records repeatedly, until nothing changes.
fn oracle(bytes: &[u8]) -> (BTreeSet<IpAddr>, BTreeSet<String>) {
    let message = op::Message::from_vec(bytes).unwrap();
    let mut known = BTreeSet::from([message.queries[0].name().to_lowercase().to_string()]);
    let mut addresses = BTreeSet::new();
    for _ in 0..100 {
        for record in message.answers.iter().chain(&message.additionals) {
            if !known.contains(&record.name.to_lowercase().to_string()) {
                continue;
            }
            match &record.data {
                RData::A(address) => drop(addresses.insert(address.0.into())),
                RData::CNAME(target) => drop(known.insert(target.0.to_lowercase().to_string())),
                RData::SRV(srv) => drop(known.insert(srv.target.to_lowercase().to_string())),
                _ => {}
            }
        }
    }
    let first = message.queries[0].name().to_lowercase().to_string();
    known.remove(&first);
    (addresses, known.iter().map(|name| name.trim_end_matches('.').to_owned()).collect())
}

proptest! {
    #[test]
    fn any_records_agree_with_another_parser(
        edges in prop::collection::vec((0..6_u8, any::<bool>(), 0..6_u8), 0..20),
        service in any::<bool>(),
    ) {
        let name = |number: u8| if number.is_multiple_of(2) { format!("N{number}.Test") } else { format!("n{number}.sub.test") };
        let message = edges.iter().fold(Message::response("n0.test", Type::A), |message, &(owner, address, to): &Edge| {
            let (owner, target) = (name(owner), name(to));
            if address {
                message.answer(&owner, Type::A, &[Bytes(&[192, 0, 2, to])])
            } else if service {
                message.answer(&owner, Type::SRV, &[Bytes(&[0; 6]), Plain(&target)])
            } else {
                message.answer(&owner, Type::CNAME, &[Name(&target)])
            }
        });
        let bytes = message.bytes();
        let answers = answers(&bytes).unwrap();
        let found = (
            answers.addresses.iter().map(|address| address.address).collect(),
            answers.targets.iter().map(|target| target.name.clone()).collect(),
        );
        prop_assert_eq!(found, oracle(&bytes));
    }

    #[test]
    fn any_bytes_are_answers_or_malformed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = answers(&bytes);
    }
}
