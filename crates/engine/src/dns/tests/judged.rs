//! Tests of queries and answers with rules by name.

use alloc::string::String;

use wire::dns::{Section, Type};

use super::*;
use crate::{
    guard::{Guard, Mode},
    policy::{Policy, spec},
    testkit::message::{
        Data::{self, Bytes, Name},
        Message, param,
    },
};

const A: &[Data<'_>] = &[Bytes(&[203, 0, 113, 1])];
const PRIVATE: &[Data<'_>] = &[Bytes(&[10, 0, 0, 1])];
/// A server that the guest has chosen. With rules by name, its choice has no effect.
const ANY: &str = "203.0.113.53:53";
const ANY6: &str = "[2001:db8:5::53]:53";

fn guarded(rules: &str, audit: bool) -> Test {
    let file = spec::parse_file(rules).unwrap();
    let policy = Policy::new(file.rules, file.default).unwrap();
    let mut test = Test::new();
    test.world.guard = Guard::new(policy, Mode { audit, ..Mode::default() }, [1; 16]);
    test
}

/// A query whose OPT record has a size, the flag DO and a cookie.
fn question(id: u16, name: &str, kind: Type) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1]);
    message.extend(crate::testkit::message::name(name));
    message.extend([kind.0.to_be_bytes(), [0, 1]].concat());
    message.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\x0c\0\x0a\0\x08datadata");
    message
}

/// The ID and the name, in dotted form, of the query that a server received.
fn sent(test: &Test, index: usize) -> (u16, String) {
    let sent = test.opened(index).socket.sent().pop().unwrap();
    assert_eq!(sent.traffic_class, 0, "not the guest's");
    let question = Question::parse(&sent.payload).unwrap();
    assert!(!sent.payload.windows(8).any(|bytes| bytes == b"datadata"));
    (question.id, format!("{}", question.name().unwrap()))
}

/// The server of a socket answers with `message`, with the ID `id`.
fn answers(test: &mut Test, index: usize, id: u16, message: &Message) {
    let mut bytes = message.bytes();
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    let socket = test.opened(index);
    test.server_sends(&socket, &format!("{}", SocketAddr::new(socket.address, 53)), &bytes);
}

/// The message that the guest received. Its source must be the address to which the guest wrote.
fn got(test: &mut Test, remote: &str) -> Vec<u8> {
    let frame = test.world.frame().0;
    let (from, _, payload) = datagram(&frame);
    assert_eq!(from, remote.parse().unwrap());
    payload.to_vec()
}

const fn code(message: &[u8]) -> u8 {
    message[3] & 0xf
}

fn names(test: &mut Test, address: &str) -> Vec<String> {
    let now = test.world.now;
    let names = test.world.guard.names_mut().unwrap();
    names.lookup(address.parse().unwrap(), now).map(String::from).collect()
}

#[test]
fn the_hosts_resolver_is_asked_in_other_words_whatever_server_the_guest_wrote_to() {
    for (guest, remote) in [(GUEST, ANY), (GUEST6, ANY6), (GUEST, DNS4), (GUEST6, DNS6)] {
        let mut test = guarded("allow files.example", false);
        test.guest_sends(guest, remote, &question(7, "Files.EXAMPLE", Type::A));
        assert_eq!(test.asked(), SERVERS[..1]);
        let (id, name) = sent(&test, 0);
        assert_ne!(id, 7, "one of our own");
        assert_eq!(name, "files.example");
        let message = Message::response("files.example", Type::A).answer("files.example", Type::A, A);
        answers(&mut test, 0, id, &message);
        let answer = got(&mut test, remote);
        let question = question(7, "Files.EXAMPLE", Type::A);
        let question = Question::parse(&question).unwrap();
        assert_eq!(question.answered_by(&answer).unwrap().0, 0);
        assert_eq!(&answer[12..12 + question.section().len()], question.section(), "its own letters");
        assert_eq!(names(&mut test, "203.0.113.1"), ["files.example"]);
        test.assert_over();
    }
}

#[test]
fn a_refused_name_does_not_leave() {
    let mut test = guarded("allow files.example", false);
    for (name, expected) in [("data.evil.test", NXDOMAIN), ("example", 0)] {
        test.guest_sends(GUEST, ANY, &question(7, name, Type::TXT));
        let answer = got(&mut test, ANY);
        assert_eq!((code(&answer), answer[..2].to_vec()), (expected, [0, 7].into()));
        assert!(answer.windows(12).any(|bytes| bytes == b"default deny"), "the rule, as an extended error");
    }
    assert_eq!((test.asked().len(), test.dns.counters().refused), (0, 2));
    test.assert_over();
}

#[test]
fn what_is_no_query_is_refused() {
    let mut test = guarded("allow all\nallow files.example", false);
    let mut two = question(7, "files.example", Type::A);
    two[5] = 2;
    for payload in [&b"a tunnel"[..], b"", &two] {
        test.guest_sends(GUEST, DNS4, payload);
        assert_eq!(icmp_of(&test.world.frame().0), (3, 13, "198.51.100.1".parse().unwrap()));
    }
    test.guest_sends(GUEST, "224.0.0.1:53", &question(7, "files.example", Type::A));
    assert_eq!((test.asked().len(), test.dns.counters().invalid), (0, 4));
    assert_eq!(test.world.guard.refused(), 4);
    assert_eq!(test.world.frames().len(), 0, "no error about a packet to a group");
    let mut update = question(7, "files.example", Type::A);
    update[2] |= 5 << 3;
    test.guest_sends(GUEST, DNS4, &update);
    assert_eq!((code(&got(&mut test, DNS4)), test.asked().len()), (4, 0));
}

#[test]
fn only_the_server_that_was_asked_can_answer() {
    let mut test = guarded("allow files.example", false);
    test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::A));
    let (id, _) = sent(&test, 0);
    let message = Message::response("files.example", Type::A).answer("files.example", Type::A, A);
    let socket = test.opened(0);
    for (from, id, message) in [
        (ANY, id, message.clone()),
        ("[2001:db8:9::1]:54", id, message.clone()),
        ("[2001:db8:9::1]:53", 7, message.clone()),
        ("[2001:db8:9::1]:53", id, Message::response("other.example", Type::A)),
        ("[2001:db8:9::1]:53", id, Message::response("files.example", Type::AAAA)),
    ] {
        let mut bytes = message.bytes();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        test.server_sends(&socket, from, &bytes);
        assert_eq!(test.world.frames().len(), 0, "{from}");
    }
    assert_eq!(names(&mut test, "203.0.113.1"), [""; 0]);
    answers(&mut test, 0, id, &message);
    got(&mut test, ANY);
}

#[test]
fn ids_differ() {
    let mut test = guarded("allow files.example", false);
    let mut ids: Vec<u16> = (0..5)
        .map(|id| {
            test.guest_sends(GUEST, ANY, &question(id, "files.example", Type::A));
            sent(&test, id.into()).0
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5);
}

#[test]
fn an_answer_that_leads_into_private_networks_is_replaced() {
    let mut test = guarded("allow files.example", false);
    test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::A));
    let (id, _) = sent(&test, 0);
    let message = Message::response("files.example", Type::A).answer("files.example", Type::A, A).answer(
        "files.example",
        Type::A,
        PRIVATE,
    );
    answers(&mut test, 0, id, &message);
    let answer = got(&mut test, ANY);
    assert_eq!((code(&answer), answer[7]), (0, 0), "no record");
    assert_eq!(names(&mut test, "203.0.113.1"), [""; 0]);
    assert_eq!(test.world.guard.refused(), 1);
    test.assert_over();
}

/// The gateway's address leads to the host's loopback.
#[test]
fn an_address_that_leads_to_the_host_counts_as_the_host() {
    let mut test = guarded("allow files.example", false);
    test.world.settings.v4.as_mut().unwrap().map_host_loopback = Some([203, 0, 113, 1].into());
    test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::A));
    let (id, _) = sent(&test, 0);
    let message = Message::response("files.example", Type::A).answer("files.example", Type::A, A);
    answers(&mut test, 0, id, &message);
    assert_eq!(got(&mut test, ANY)[7], 0, "no record");
}

#[test]
fn keys_of_encrypted_hellos_are_removed() {
    let params = param(5, &[7; 100]);
    let service = |params| {
        let data = [Bytes(&[0, 1]), Name(""), Bytes(params)];
        Message::response("files.example", Type::HTTPS).answer("files.example", Type::HTTPS, &data)
    };
    for (audit, expected) in [(false, service(&[])), (true, service(&params))] {
        let mut test = guarded("allow files.example", audit);
        test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::HTTPS));
        let (id, _) = sent(&test, 0);
        answers(&mut test, 0, id, &service(&params));
        assert_eq!(got(&mut test, ANY), expected.bytes());
    }
}

#[test]
fn a_truncated_answer_has_no_records_and_a_malformed_one_is_a_failure() {
    let whole = Message::response("files.example", Type::A).answer("files.example", Type::A, A).bytes();
    for (audit, cut, truncated, expected) in
        [(false, 0, true, 0), (false, 2, true, 0), (false, 2, false, SERVFAIL), (true, 2, false, 0)]
    {
        let mut test = guarded("allow files.example", audit);
        test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::A));
        let (id, _) = sent(&test, 0);
        let mut bytes = whole[..whole.len() - cut].to_vec();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes[2] |= if truncated { 2 } else { 0 };
        let socket = test.opened(0);
        test.server_sends(&socket, "[2001:db8:9::1]:53", &bytes);
        let answer = got(&mut test, ANY);
        assert_eq!((code(&answer), answer[2] & 2 != 0), (expected, truncated));
        assert_eq!(answer[7] != 0, audit, "records");
        assert_eq!(names(&mut test, "203.0.113.1"), [""; 0]);
    }
}

/// After SERVFAIL, the engine waits for a better answer. The guard judges the stored answer, too.
#[test]
fn kept_answers_and_repeated_queries() {
    let mut test = guarded("allow files.example", false);
    let query = question(7, "files.example", Type::A);
    test.guest_sends(GUEST, ANY, &query);
    test.guest_sends(GUEST, ANY, &query);
    assert_eq!(test.asked(), SERVERS[..2]);
    let (id, _) = sent(&test, 1);
    let mut failure = Message::response("files.example", Type::A).bytes();
    failure[..2].copy_from_slice(&id.to_be_bytes());
    failure[3] |= SERVFAIL;
    for index in 0..2 {
        let socket = test.opened(index);
        test.server_sends(&socket, &format!("{}", SocketAddr::new(socket.address, 53)), &failure);
    }
    let socket = test.opened(2);
    assert_eq!(Question::parse(&socket.socket.sent()[0].payload).unwrap().id, id);
    test.server_sends(&socket, "192.0.2.3:53", &failure);
    let answer = got(&mut test, ANY);
    assert_eq!((code(&answer), &answer[..2]), (SERVFAIL, &[0, 7][..]));
    test.assert_over();
}

#[test]
fn a_chain_counts_as_the_name_that_was_asked_for() {
    let mut test = guarded("allow files.example", false);
    test.guest_sends(GUEST, ANY, &question(7, "files.example", Type::A));
    let (id, _) = sent(&test, 0);
    let message = Message::response("files.example", Type::A)
        .answer("files.example", Type::CNAME, &[Name("cdn.test")])
        .answer("cdn.test", Type::A, A)
        .record(Section::Additional, "other.test", Type::A, 9, &[Bytes(&[203, 0, 113, 2])]);
    answers(&mut test, 0, id, &message);
    got(&mut test, ANY);
    assert_eq!(names(&mut test, "203.0.113.1"), ["files.example"]);
    assert_eq!(names(&mut test, "203.0.113.2"), [""; 0], "not of the name");
}

#[test]
fn memory_for_queries_is_bounded() {
    let mut test = guarded("allow files.example", false);
    test.dns.limits.bytes = 200;
    for id in 0..10 {
        test.guest_sends(GUEST, ANY, &question(id, "files.example", Type::A));
    }
    assert!(test.dns.bytes <= 200 && !test.dns.is_empty());
    assert_eq!(test.dns.counters().no_room, 10 - test.dns.len() as u64);
}
