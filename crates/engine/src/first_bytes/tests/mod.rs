//! Tests of names in the first bytes of clients.
//!
//! `samples` has the first bytes of real clients that ask for [`NAME`]: `openssl s_client` and curl (OpenSSL 3.0),
//! rustls 0.23, and quinn 0.11.

mod http;
mod quic;
mod tls;
mod two_keys;

use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::testkit::hello::{long_client_hello, records};

/// The name in all samples and messages of tests.
const NAME: &str = "files.example.org";

fn found(name: &str) -> Found {
    Found::Name(HostName::parse(name.as_bytes()).unwrap())
}

fn whole(stream: &[u8]) -> Found {
    FirstBytes::new(Ech::OuterName).feed(stream)
}

/// The answer after the last of `pieces`.
fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Found {
    let mut first_bytes = FirstBytes::new(Ech::OuterName);
    pieces.into_iter().fold(Found::More, |_, piece| first_bytes.feed(piece))
}

/// Checks that a stream gives `answer` with its last byte, and not before, wherever the stream is cut.
fn check_at_every_cut(stream: &[u8], answer: &Found) {
    for cut in 1..stream.len() {
        assert_eq!(whole(&stream[..cut]), Found::More, "{cut}");
        let (start, end) = stream.split_at(cut);
        assert_eq!(in_pieces([start, end]), *answer, "{cut}");
    }
    assert_eq!(whole(stream), *answer);
    assert_eq!(in_pieces(stream.chunks(1)), *answer);
}

#[test]
fn other_protocols_are_unknown() {
    let streams: [&[u8]; 10] = [
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"EHLO files.example.org\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x16\x00",
        b"\x80\x2e\x01\x00\x02", // SSL 2
        b"GET /\r\n",            // HTTP/0.9
        b"GET / HTTP/1.1\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"GET\x00",
    ];
    for stream in streams {
        assert_eq!(whole(stream), Found::NoName(Why::UnknownProtocol), "{stream:?}");
        assert_eq!(in_pieces(stream.chunks(1)), Found::NoName(Why::UnknownProtocol), "{stream:?}");
    }
}

#[test]
fn the_protocol_is_known_before_the_name() {
    for (stream, protocol) in [
        (&b"\x16"[..], Some(Protocol::Tls)),
        (b"GET", Some(Protocol::Http)),
        (b"", None),
        (b"\0", None),
        (b"\x16\x02", None),
    ] {
        let mut first_bytes = FirstBytes::new(Ech::OuterName);
        first_bytes.feed(stream);
        assert_eq!(first_bytes.protocol(), protocol, "{stream:?}");
    }
}

#[test]
fn an_answer_is_final() {
    let stream = records(&long_client_hello(NAME, 300), 1000);
    let mut first_bytes = FirstBytes::new(Ech::OuterName);
    for bytes in [&stream[..], b"", &[0; MAX_LEN], b"\x17\x03\x03"] {
        assert_eq!(first_bytes.feed(bytes), found(NAME));
    }
    let mut refused = FirstBytes::new(Ech::OuterName);
    for bytes in [&b"\0"[..], &stream] {
        assert_eq!(refused.feed(bytes), Found::NoName(Why::UnknownProtocol));
    }
}

#[test]
fn nothing_is_read_beyond_the_bound() {
    let fields = "x: y\r\n".repeat(MAX_LEN / 6);
    let stream = ["GET / HTTP/1.1\r\n", &fields].concat().into_bytes();
    let mut first_bytes = FirstBytes::new(Ech::OuterName);
    assert_eq!(first_bytes.feed(&stream[..MAX_LEN - 1]), Found::More);
    assert_eq!(first_bytes.feed(&stream[MAX_LEN - 1..MAX_LEN]), Found::NoName(Why::TooLong));
    assert_eq!(whole(&stream), Found::NoName(Why::TooLong));
    // The last byte that may be read can complete the request.
    let rest = MAX_LEN - "GET / HTTP/1.1\r\nHost: files.example.org\r\nx: \r\n\r\n".len();
    let field = "y".repeat(rest);
    let request = alloc::format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nx: {field}\r\n\r\n");
    assert_eq!((request.len(), whole(request.as_bytes())), (MAX_LEN, found(NAME)));
    assert_eq!(whole([&request[..20], "y", &request[20..]].concat().as_bytes()), Found::NoName(Why::TooLong));
}

/// Streams that are valid, or almost valid.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let hello = (60..2000usize, 1..2000usize)
        .prop_map(|(len, most)| records(&long_client_hello(NAME, len.max(200)), most));
    let request = "(GET|OPTIONS|CONNECT) (/|\\*|http://files.example.org/|files.example.org:443) HTTP/1\\.[01]\r\n\
                   (Host: files.example.org\r\n|Accept: a\r\n|Host: b.example\r\n| x\r\n){0,3}\r\n?\n?";
    let request = proptest::string::string_regex(request).unwrap().prop_map(Into::into);
    let start = prop_oneof![Just(&b""[..]), Just(&b"\x16\x03\x01\x00"[..]), Just(&b"GET / HTTP/1.1\r\n"[..])];
    let noise = (start, proptest::collection::vec(any::<u8>(), 0..300))
        .prop_map(|(start, bytes)| [start, &bytes].concat());
    let changed = |stream: BoxedStrategy<Vec<u8>>| {
        let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
        (stream, changes).prop_map(|(mut stream, changes)| {
            for (at, byte) in changes {
                let at = at.index(stream.len().max(1));
                stream.get_mut(at).into_iter().for_each(|place| *place = byte);
            }
            stream
        })
    };
    prop_oneof![changed(hello.boxed()), changed(request.boxed()), noise]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_answer(
        stream in streams(),
        lens in proptest::collection::vec(0..400usize, 0..20),
    ) {
        let mut rest = &stream[..];
        let mut pieces: Vec<&[u8]> = lens.iter().map(|&len| {
            let (piece, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            piece
        }).collect();
        pieces.push(rest);
        let answer = whole(&stream);
        prop_assert_eq!(in_pieces(pieces), answer.clone());
        prop_assert_eq!(in_pieces(stream.chunks(1)), answer);
    }
}
