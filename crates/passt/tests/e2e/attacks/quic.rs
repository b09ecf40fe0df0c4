//! Attacks by QUIC: Initial packets that ask for another name, or hide it.

use testkit::hello::{SERVER_NAME, client_hello, server_name};
use testkit::quic::{Initial, V1, V2, crypto};

use super::fort::{Attempt, Outcome::*, attempt};

const WWW: &str = "203.0.113.2:443";
const OTHER: &[&str] = &["udp", "-> 203.0.113.2:443: asked for other.test", "(default deny)"];
/// Length of the content of an Initial packet that fills a datagram, in bytes.
const CONTENT: usize = 1162;
const ID: &[u8] = b"exfil-id";

fn hello(name: &[u8]) -> Vec<u8> {
    client_hello(&[(SERVER_NAME, &server_name(name))])
}

/// A datagram with the first Initial packet of a connection.
fn initial(version: u32, id: &[u8], frames: &[u8]) -> Vec<u8> {
    numbered(version, id, 0, frames)
}

fn numbered(version: u32, id: &[u8], number: u32, frames: &[u8]) -> Vec<u8> {
    let mut content = frames.to_vec();
    content.resize(CONTENT, 0);
    Initial { number, ..Initial::first(version, id) }.seal(&content)
}

pub(super) const INITIALS: &[Attempt] = &[
    attempt("another name", Prohibited, OTHER, |f| {
        f.send_all(WWW, &[initial(V1, ID, &crypto(0, &hello(b"other.test")))])
    }),
    attempt("in version 2", Prohibited, OTHER, |f| {
        f.send_all(WWW, &[initial(V2, ID, &crypto(0, &hello(b"other.test")))])
    }),
    attempt("no name", Prohibited, &["203.0.113.2:443: no server name"], |f| {
        f.send_all(WWW, &[initial(V1, ID, &crypto(0, &client_hello(&[])))])
    }),
    attempt(
        "a name that is not of this address",
        Prohibited,
        &["203.0.113.2:443: asked for a.files.test"],
        |f| f.send_all(WWW, &[initial(V1, ID, &crypto(0, &hello(b"a.files.test")))]),
    ),
    attempt("in pieces, the last one first", Prohibited, OTHER, |f| {
        let hello = hello(b"other.test");
        let frames: Vec<u8> = (0..hello.len()).rev().flat_map(|at| crypto(at, &hello[at..at + 1])).collect();
        f.send_all(WWW, &[initial(V1, ID, &frames)])
    }),
    attempt("over two datagrams", Prohibited, OTHER, |f| {
        let hello = hello(b"other.test");
        let (start, end) = (crypto(0, &hello[..70]), crypto(70, &hello[70..]));
        f.send_all(WWW, &[numbered(V1, ID, 1, &end), initial(V1, ID, &start)])
    }),
    attempt("two packets in a datagram", Prohibited, OTHER, |f| {
        let hello = hello(b"other.test");
        let first = Initial::first(V1, ID).seal(&crypto(0, &hello[..70]));
        f.send_all(WWW, &[[first, numbered(V1, ID, 1, &crypto(70, &hello[70..]))].concat()])
    }),
    attempt("pieces that contradict", Prohibited, &["203.0.113.2:443: contradictory server names"], |f| {
        let [allowed, other] = [hello(b"www.allowed.test"), hello(b"www.exfilxx.test")];
        let frames = [crypto(0, &allowed[..100]), crypto(0, &other)].concat();
        f.send_all(WWW, &[initial(V1, ID, &frames)])
    }),
    attempt("another connection after an allowed one", Prohibited, OTHER, |f| {
        let allowed = initial(V1, b"first-id", &crypto(0, &hello(b"www.allowed.test")));
        let other = initial(V1, ID, &crypto(0, &hello(b"other.test")));
        let outcome = f.send_all(WWW, &[allowed.clone(), other]);
        let got = f.sinks.collect();
        assert!(matches!(&got[..], [(_, bytes)] if *bytes == allowed), "only the allowed one: {got:?}");
        outcome
    }),
    attempt(
        "another connection behind an allowed one, in a datagram",
        Prohibited,
        &["203.0.113.2:443: malformed first message"],
        |f| {
            let allowed = Initial::first(V1, b"first-id").seal(&crypto(0, &hello(b"www.allowed.test")));
            let other = initial(V1, ID, &crypto(0, &hello(b"other.test")));
            f.send_all(WWW, &[[allowed, other].concat()])
        },
    ),
    attempt(
        "what is no Initial",
        Prohibited,
        &["udp", "-> 203.0.113.2:443", "allow www.allowed.test:443"],
        |f| f.send_all(WWW, &[[&b"\xe0\0\0\0\x01\x08exfil-id\0\x05"[..], &[0; 1200]].concat()]),
    ),
];
