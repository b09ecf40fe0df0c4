//! The first bytes of clients. The answer does not depend on how a stream is split, and a final answer does not change.

use engine::first_bytes::{Ech, FirstBytes, FirstDatagrams, Found, Why};
use testkit::{
    hello::{long_client_hello, records},
    quic::{Initial, V1, V2, crypto},
    settings::START,
};

use crate::{input::Input, seeds::Seed};

/// Input: a byte that selects how to cut the stream, then the stream.
pub fn stream(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let ech = if cut & 1 == 0 { Ech::OuterName } else { Ech::Refuse };
    let answer = FirstBytes::new(ech).feed(stream);
    let mut first = FirstBytes::new(ech);
    let mut rest = stream;
    let mut last = Found::More;
    for piece in 1.. {
        let len = rest.len().min(1 + usize::from(cut) * piece % 701);
        let (bytes, after) = rest.split_at(len);
        let next = first.feed(bytes);
        assert!(last == Found::More || last == next, "an answer has changed");
        (last, rest) = (next, after);
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(last, answer);
}

/// Input: datagrams. Each has a byte that selects its form, and two bytes with its length, before its contents. Forms:
/// the contents of the datagram, or the frames of an Initial packet of one of a few connections. Each datagram is fed
/// twice. The second time must not change the result.
pub fn datagrams(data: &[u8]) {
    const IDS: [&[u8]; 4] = [b"", b"one", b"another id", &[7; 20]];
    let mut input = Input::new(data);
    let mut first = FirstDatagrams::new(Ech::OuterName);
    let mut refused = false;
    while !input.is_empty() {
        let (form, len) = (input.byte(), input.u16());
        let bytes = input.take(len.into());
        let id = |shift: u8| IDS[usize::from(form >> shift & 3)];
        let header = Initial {
            version: if form & 0x40 == 0 { V1 } else { V2 },
            id: id(2),
            key_id: id(4),
            token: &bytes[..bytes.len().min(3)],
            number: u32::from(form),
        };
        let datagram = if form & 3 == 0 { bytes.to_vec() } else { header.seal(bytes) };
        let answer = first.feed_datagram(&datagram, START);
        assert_eq!(first.feed_datagram(&datagram, START), answer, "the same datagram has another answer");
        assert!(!refused || matches!(answer, Found::NoName(_)), "a refusal has changed");
        refused = matches!(answer, Found::NoName(why) if why != Why::TooManyConnections);
    }
}

/// The seeds of both targets.
#[must_use]
pub fn seeds() -> Vec<Seed> {
    const NAME: &str = "files.example.org";
    let message = long_client_hello(NAME, 400);
    let request = b"GET http://files.example.org/ HTTP/1.1\r\nAccept: */*\r\nHost: files.example.org\r\n\r\n";
    let seed = |name, cut: u8, stream: &[u8]| ("first_bytes", name, [&[cut][..], stream].concat());
    let datagram =
        |form: u8, frames: &[u8]| [&[form][..], &(frames.len() as u16).to_be_bytes(), frames].concat();
    let padding = [0; 30];
    let (start, end) = (crypto(0, &message[..250]), crypto(200, &message[200..]));
    let ack = b"\x02\x00\x00\x00\x00\x03\x05\x00\x01\x00\x01\x01\x00\x00\x00\x1c\x0a\x00\x00";
    // All keys are derived from the second ID. The first part goes to the second ID, the second part to the third ID.
    let two =
        [datagram(0x15, &end), datagram(0x19, &[&start[..], &padding].concat()), datagram(0, &[0x40; 9])];
    let ids = [datagram(0x15, &start), datagram(0x29, &start), datagram(0x2a, &end), datagram(0x15, ack)];
    let raw = Initial::first(V1, b"raw packet").seal(&[&start[..], &end, &padding].concat());
    vec![
        seed("hello", 40, &records(&message, 1000)),
        seed("hello-records", 6, &records(&message, 50)),
        seed("request", 10, request),
        seed("connect", 0, b"CONNECT files.example.org:443 HTTP/1.0\r\nX: y\r\n\r\n"),
        seed("http2", 2, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("first_datagrams", "two", two.concat()),
        ("first_datagrams", "two-connections", ids.concat()),
        ("first_datagrams", "version-2", datagram(0x55, &[&ack[..], &start, &end].concat())),
        ("first_datagrams", "raw", datagram(0, &raw)),
    ]
}
