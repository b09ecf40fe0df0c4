//! Tests of names in Initial packets of QUIC clients.

use alloc::vec;
use core::time::Duration;

use super::*;
use crate::first_bytes::quic_keys::{Keys, Version};
use crate::testkit::hello::{ENCRYPTED_CLIENT_HELLO, SERVER_NAME, client_hello, server_name};
use crate::testkit::quic::{Initial, V1, V2, crypto, hex, varint};
use crate::testkit::settings::START;

const ID: &[u8] = b"connection";

impl FirstDatagrams {
    fn feed(&mut self, datagram: &[u8]) -> Found {
        self.feed_datagram(datagram, START)
    }
}

fn feed_all<D: AsRef<[u8]>>(datagrams: impl IntoIterator<Item = D>) -> Found {
    let mut first = FirstDatagrams::new(Ech::OuterName);
    datagrams.into_iter().fold(Found::More, |_, datagram| first.feed(datagram.as_ref()))
}

fn initial(frames: &[u8]) -> Vec<u8> {
    Initial::first(V1, ID).seal(frames)
}

/// The answer to one Initial packet with the frames `frames`.
fn of(frames: &[u8]) -> Found {
    feed_all([initial(frames)])
}

fn hello(name: &str) -> Vec<u8> {
    client_hello(&[(SERVER_NAME, &server_name(name.as_bytes()))])
}

/// A CRYPTO frame with a ClientHello for [`NAME`].
fn whole_hello() -> Vec<u8> {
    crypto(0, &hello(NAME))
}

/// The ClientHello of RFC 9001 §A.2, in a CRYPTO frame. RFC 9369 §A.2 has the same frame.
fn rfc_frame() -> Vec<u8> {
    hex("060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004130113\
         02010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018001000070005\
         04616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce1\
         5d43e994ec74d748002b0003020304000d0010000e0403050306030203080408050806002d00020101001c0002400100\
         3900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806\
         048000ffff")
}

#[test]
fn keys_are_those_of_the_rfcs() {
    let keys = |version| {
        let keys = Keys::of_client(version, &hex("8394c8f03e515708")).unwrap();
        (keys.key.to_vec(), keys.iv.to_vec(), keys.header.to_vec())
    };
    // The keys of RFC 9001 §A.1.
    let v1 =
        ("1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c", "9f50449e04a0e810283a1e9933adedd2");
    assert_eq!(keys(Version::V1), (hex(v1.0), hex(v1.1), hex(v1.2)));
    // The keys of RFC 9369 §A.1.
    let v2 =
        ("8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f", "45b95e15235d6f45a6b19cbcb0294ba9");
    assert_eq!(keys(Version::V2), (hex(v2.0), hex(v2.1), hex(v2.2)));
}

/// The packets of RFC 9001 §A.2 and RFC 9369 §A.2. The packets' tags cover the bytes between the start and the end.
#[test]
fn packets_of_the_rfcs_are_opened() {
    let packets = [
        (
            V1,
            "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11",
            "7e78bfe706ca4cf5e9c5453e9f7cfd2b8b4c8d169a44e55c88d4a9a7f9474241e221af44860018ab0856972e194cd934",
        ),
        (
            V2,
            "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485",
            "6f4c4938ae79324dc402894b44faf8afbab35282ab659d13c93f70412e85cb199a37ddec600545473cfb5a05e08d0b20\
             9973b2172b4d21fb69745a262ccde96ba18b2faa745b6fe189cf772a9f84cbfc",
        ),
    ];
    let mut frames = rfc_frame();
    frames.resize(1162, 0);
    let id = hex("8394c8f03e515708");
    for (version, start, end) in packets {
        let packet = Initial { number: 2, ..Initial::first(version, &id) }.seal(&frames);
        assert_eq!(packet.len(), 1200);
        assert!(packet.starts_with(&hex(start)) && packet.ends_with(&hex(end)));
        assert_eq!(feed_all([packet]), found("example.com"));
    }
}

#[test]
fn a_real_client_is_understood() {
    assert_eq!(feed_all([&include_bytes!("samples/quinn.udp")[..]]), found(NAME));
}

#[test]
fn a_hello_may_need_two_datagrams_in_any_order() {
    let message = long_client_hello(NAME, 1800);
    let (start, end) = message.split_at(1100);
    let header = Initial::first(V1, ID);
    let datagrams =
        [header.seal(&crypto(0, start)), Initial { number: 1, ..header }.seal(&crypto(1100, end))];
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&datagrams[0]), Found::More);
    assert_eq!(first.feed(&datagrams[1]), found(NAME));
    assert_eq!(feed_all(datagrams.iter().rev()), found(NAME));
    assert_eq!(feed_all([&datagrams[1], &datagrams[1]]), Found::More);
}

#[test]
fn frames_of_one_byte_become_a_hello() {
    let message = hello(NAME);
    let byte = |(at, &byte): (usize, &u8)| crypto(at, &[byte]);
    let backwards: Vec<u8> = message.iter().enumerate().rev().flat_map(byte).collect();
    assert_eq!(of(&backwards), found(NAME));
    let last = crypto(message.len() - 1, b"x").len();
    assert_eq!(of(&backwards[last..]), Found::More);
}

#[test]
fn other_frames_are_skipped() {
    let ack = [&[2][..], &varint(20_000), &varint(7), &[1, 2, 3, 4]].concat();
    let ack_ecn = [&[3][..], &varint(9), &varint(100), &[0, 3, 1, 2], &varint(300)].concat();
    let close = [&[0x1c][..], &varint(300), &[6, 3], b"bye"].concat();
    let (hello, ping, padding) = (whole_hello(), vec![1], vec![0; 30]);
    let frames = [&ping, &ack, &padding, &ack_ecn, &hello, &close, &ping].map(|frame| &frame[..]);
    assert_eq!(of(&frames.concat()), found(NAME));
    let mut backwards = frames;
    backwards.reverse();
    assert_eq!(of(&backwards.concat()), found(NAME));
    assert_eq!(of(&[ping, padding].concat()), Found::More);
}

#[test]
fn malformed_frames_are_refused() {
    let frames: [&[u8]; 8] = [
        b"\x08\0\0",         // STREAM
        b"\x1d\0\0",         // CONNECTION_CLOSE of an application
        b"\x06\0\x3f\x01",   // longer than the packet
        b"\x02\0\0\x3f\0\0", // more ranges than the packet has
        b"\x03\0\0\0\0\0",
        b"\x1c\0\0\x3f",
        b"\x06\0\x04\x02\0\0\0", // a ServerHello
        b"\x40",
    ];
    for frames in frames {
        assert_eq!(of(&[&[0; 30], frames].concat()), Found::NoName(Why::Malformed), "{frames:?}");
    }
}

#[test]
fn overlaps_have_to_agree_also_after_the_verdict() {
    let message = long_client_hello(NAME, 1000);
    let other = long_client_hello("evil1.example.org", 1000);
    let frames = [crypto(0, &message[..800]), crypto(500, &message[500..])].concat();
    assert_eq!(of(&frames), found(NAME));
    let frames = [crypto(0, &message[..990]), crypto(980, &other[980..])].concat();
    assert_eq!(of(&frames), Found::NoName(Why::Contradiction));
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&crypto(0, &message))), found(NAME));
    let again = Initial { number: 1, ..Initial::first(V1, ID) };
    assert_eq!(first.feed(&again.seal(&crypto(900, &message[900..]))), found(NAME));
    let changed = again.seal(&crypto(900, &other[900..]));
    assert_eq!(first.feed(&changed), Found::NoName(Why::Contradiction));
    assert_eq!(first.feed(&initial(&crypto(0, &message))), Found::NoName(Why::Contradiction));
}

#[test]
fn a_second_hello_after_a_retry_request_is_not_read() {
    let frames = [whole_hello(), crypto(hello(NAME).len(), &hello("b.example"))].concat();
    assert_eq!(of(&frames), found(NAME));
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    assert_eq!(first.feed(&initial(&crypto(MAX_LEN, &hello("b.example")))), found(NAME));
}

/// A packet that is not an Initial packet, with a long header.
fn long_header(kind: u8, version: u32, payload: &[u8]) -> Vec<u8> {
    let len = varint(payload.len());
    [&[0xc0 | kind << 4][..], &version.to_be_bytes(), &[10], ID, &[0], &len, payload].concat()
}

#[test]
fn coalesced_packets_are_read() {
    let message = hello(NAME);
    let (start, end) = message.split_at(40);
    let initials = [
        initial(&crypto(40, end)),
        Initial { number: 1, ..Initial::first(V1, ID) }.seal(&[&crypto(0, start)[..], &[0; 20]].concat()),
    ];
    let others = [long_header(1, V1, &[7; 50]), long_header(2, V1, &[7; 50]), vec![0x40; 50]];
    let datagram = [&initials[0], &others[0], &others[1], &initials[1], &others[2]].map(|packet| &packet[..]);
    assert_eq!(feed_all([datagram.concat()]), found(NAME));
    // Early data arrives before the Initial packet, since the order of the datagrams has changed.
    assert_eq!(feed_all([&others[0]]), Found::More);
    assert_eq!(feed_all([&others[0], &initials[1], &initials[0]]), found(NAME));
    assert_eq!(feed_all([&initials[1], &others[0], &initials[0], &others[2]]), found(NAME));
}

#[test]
fn packets_of_two_connections_in_a_datagram_are_refused() {
    let frames = whole_hello();
    let other = Initial::first(V1, b"another id").seal(&frames);
    assert_eq!(feed_all([[initial(&frames), other].concat()]), Found::NoName(Why::Malformed));
    // The packet has the ID and the keys of a known connection.
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&frames)), found(NAME));
    let evil = Initial::first(V1, b"another id").seal(&crypto(0, &hello("b.example")));
    let disguised = Initial { id: b"another id", number: 1, ..Initial::first(V1, ID) }.seal(&frames);
    assert_eq!(first.feed(&[evil, disguised].concat()), Found::NoName(Why::Malformed));
}

#[test]
fn after_a_retry_packet_the_keys_are_new() {
    let message = long_client_hello(NAME, 1000);
    let (start, end) = message.split_at(500);
    let retried = Initial { token: &[9; 80], number: 1, ..Initial::first(V1, b"by server") };
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&crypto(0, start))), Found::More);
    assert_eq!(first.feed(&retried.seal(&crypto(0, start))), Found::More);
    let rest = Initial { number: 2, ..retried }.seal(&crypto(500, end));
    assert_eq!(first.feed(&rest), found(NAME));
}

#[test]
fn later_initial_packets_have_the_id_of_the_server() {
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    let later = Initial { id: b"of server", number: 1, ..Initial::first(V1, ID) };
    assert_eq!(first.feed(&later.seal(&[2, 0, 0, 0, 0])), found(NAME));
    // The server may have changed the version.
    let changed = Initial { version: V2, number: 2, ..later };
    assert_eq!(first.feed(&changed.seal(&[2, 0, 0, 0, 0])), found(NAME));
}

#[test]
fn another_connection_of_the_flow_has_its_own_name() {
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    let second = hello("b.example");
    let header = Initial::first(V1, b"another id");
    assert_eq!(first.feed(&header.seal(&crypto(0, &second[..50]))), Found::More);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    let rest = Initial { number: 1, ..header }.seal(&crypto(50, &second[50..]));
    assert_eq!(first.feed(&rest), found("b.example"));
    // A packet with a short header may belong to any of the connections.
    assert_eq!(first.feed(&[0x40; 30]), found("b.example"));
    assert!(!FirstDatagrams::may_begin_connection(&[0x40; 30]));
    assert!(FirstDatagrams::may_begin_connection(&rest));
}

#[test]
fn what_no_keys_open_is_refused() {
    let mut damaged = initial(&whole_hello());
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(feed_all([&damaged]), Found::NoName(Why::Malformed));
    // The server may have dropped the second packet. Then the server reads the third packet's number as 1, but the
    // engine reads it as 2^32 + 1.
    let header = Initial::first(V1, ID);
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    assert_eq!(first.feed(&Initial { number: 0x7fff_ffff, ..header }.seal(&[0; 30])), found(NAME));
    assert_eq!(first.feed(&Initial { number: 0x9000_0000, ..header }.seal(&[0; 30])), found(NAME));
    let third = Initial { number: 1, ..header }.seal(&[0; 30]);
    assert_eq!(first.feed(&third), Found::NoName(Why::Malformed));
}

#[test]
fn other_versions_and_protocols_are_refused() {
    for version in [0, 0xff00_001d, 0x1a2a_3a4a] {
        let packet = Initial::first(version, ID).seal(&whole_hello());
        assert_eq!(feed_all([packet]), Found::NoName(Why::QuicVersion(version)));
    }
    let datagrams: [&[u8]; 4] = [b"", b"\x16\xfe\xff\0\0", &[0x40; 40], b"\0\x01\0\0\x21\x12\xa4\x42"];
    for datagram in datagrams {
        assert_eq!(feed_all([datagram]), Found::NoName(Why::UnknownProtocol), "{datagram:?}");
    }
    // A flow that continues with DTLS is refused, since DTLS may send another name.
    let dtls = b"\x16\xfe\xfd\0\0\0\0\0\0\0\0\0\x40";
    assert!(FirstDatagrams::may_begin_connection(dtls));
    assert_eq!(feed_all([&initial(&whole_hello())[..], dtls]), Found::NoName(Why::UnknownProtocol));
    // A client sends no Retry packets.
    assert_eq!(feed_all([long_header(3, V1, &[7; 50])]), Found::NoName(Why::Malformed));
    assert_eq!(feed_all([long_header(0, V2, &[7; 50])]), Found::NoName(Why::Malformed));
}

#[test]
fn packets_that_are_cut_off_are_refused() {
    let packet = initial(&whole_hello());
    for len in 1..packet.len() {
        assert_eq!(feed_all([&packet[..len]]), Found::NoName(Why::Malformed), "{len}");
    }
    let id = [7; 21];
    assert_eq!(feed_all([Initial::first(V1, &id).seal(&whole_hello())]), Found::NoName(Why::Malformed));
    assert_eq!(feed_all([Initial::first(V1, &id[..20]).seal(&whole_hello())]), found(NAME));
}

#[test]
fn a_stream_is_bounded() {
    let too_far = [crypto(MAX_LEN - 1, b"x"), crypto(MAX_LEN - 1, b"xx")];
    assert_eq!(of(&[&too_far[0][..], &[0; 20]].concat()), Found::More);
    assert_eq!(of(&[&too_far[1][..], &[0; 20]].concat()), Found::NoName(Why::TooLong));
    let hole = |piece: usize| crypto(2 * piece, b"x");
    assert_eq!(of(&(1..=256).flat_map(hole).collect::<Vec<u8>>()), Found::More);
    assert_eq!(of(&(1..=257).flat_map(hole).collect::<Vec<u8>>()), Found::NoName(Why::TooLong));
    assert_eq!(of(&[&crypto(0, b"\x01\0\x40\0")[..], &[0; 20]].concat()), Found::NoName(Why::TooLong));
}

#[test]
fn connections_share_the_bound() {
    let begin = |id: u8, len: usize| {
        let frames = [&crypto(len - 1, b"x")[..], &[0; 20]].concat();
        Initial::first(V1, &[id; 8]).seal(&frames)
    };
    assert_eq!(feed_all((1..=8).map(|id| begin(id, 100))), Found::More);
    assert_eq!(feed_all((1..=9).map(|id| begin(id, 100))), Found::NoName(Why::TooManyConnections));
    assert_eq!(feed_all([begin(1, MAX_LEN - 100), begin(2, 100)]), Found::More);
    assert_eq!(feed_all([begin(1, MAX_LEN - 100), begin(2, 101)]), Found::NoName(Why::TooLong));
}

/// A client may use one socket for many successive connections.
#[test]
fn quiet_connections_are_forgotten_when_there_is_no_room() {
    let mut first = FirstDatagrams::new(Ech::OuterName);
    let mut feed = |id: u8, second: u64| {
        let packet = Initial::first(V1, &[id; 8]).seal(&whole_hello());
        first.feed_datagram(&packet, START + Duration::from_secs(second))
    };
    for id in 1..=8 {
        assert_eq!(feed(id, id.into()), found(NAME));
    }
    assert_eq!(feed(9, 9), Found::NoName(Why::TooManyConnections));
    assert_eq!(feed(1, 100), found(NAME), "the refusal is not final");
    assert_eq!(feed(9, 120), Found::NoName(Why::TooManyConnections));
    // At this time, the second connection has been quiet long enough.
    assert_eq!(feed(9, 122), found(NAME));
    assert_eq!(feed(10, 122), Found::NoName(Why::TooManyConnections));
    assert_eq!(feed(10, 200), found(NAME));
    let ids: Vec<u8> = first.connections().map(|(id, _)| id[0]).collect();
    assert_eq!(ids, [1, 9, 10]);
}

#[test]
fn the_caller_knows_which_connections_it_has_forwarded() {
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed(&initial(&whole_hello())), found(NAME));
    first.mark_forwarded();
    let other = Initial::first(V1, b"another id").seal(&whole_hello());
    assert_eq!(first.feed(&other), found(NAME));
    let known: Vec<_> = first.connections().collect();
    assert_eq!(known, [(ID, true), (&b"another id"[..], false)]);
    assert_eq!(first.len(), 2 * hello(NAME).len());
}

#[test]
fn a_hello_without_a_usable_name_is_refused() {
    assert_eq!(of(&crypto(0, &client_hello(&[(43, b"\x02\x03\x04")]))), Found::NoName(Why::NoServerName));
    assert_eq!(of(&crypto(0, &hello("192.0.2.1"))), Found::NoName(Why::NotAHostName));
    let name = server_name(NAME.as_bytes());
    let message = client_hello(&[(ENCRYPTED_CLIENT_HELLO, b"\0"), (SERVER_NAME, &name)]);
    for (ech, expected) in [(Ech::OuterName, found(NAME)), (Ech::Refuse, Found::NoName(Why::Ech))] {
        let mut first = FirstDatagrams::new(ech);
        assert_eq!(first.feed(&initial(&crypto(0, &message))), expected);
        assert!(first.has_ech());
    }
}

/// A ClientHello in pieces that overlap, in any order.
fn pieces() -> impl Strategy<Value = (Vec<u8>, Vec<Vec<u8>>)> {
    let cuts = proptest::collection::vec((0..1500usize, 0..200usize), 0..30);
    (200..1500usize, cuts).prop_flat_map(|(len, cuts)| {
        let message = long_client_hello(NAME, len);
        let mut starts: Vec<usize> = cuts.iter().map(|&(start, _)| start % len).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let ends: Vec<usize> = starts[1..].iter().copied().chain([len]).collect();
        let overlap = |piece: usize| cuts.get(piece).map_or(0, |&(_, overlap)| overlap);
        let frames: Vec<Vec<u8>> = (0..starts.len())
            .map(|piece| {
                crypto(starts[piece], &message[starts[piece]..(ends[piece] + overlap(piece)).min(len)])
            })
            .collect();
        (Just(message), Just(frames).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn any_order_of_any_frames_gives_the_same_answer((_, frames) in pieces(), in_a_packet in 1..8usize) {
        let datagrams = frames.chunks(in_a_packet).enumerate().map(|(number, frames)| {
            let header = Initial { number: number as u32, ..Initial::first(V2, ID) };
            header.seal(&[&frames.concat()[..], &[0; 20]].concat())
        });
        prop_assert_eq!(feed_all(datagrams), found(NAME));
    }

    #[test]
    fn any_frames_are_harmless(
        packets in proptest::collection::vec((0..3u8, proptest::collection::vec(any::<u8>(), 0..200)), 0..10),
    ) {
        let mut first = FirstDatagrams::new(Ech::OuterName);
        for (id, frames) in packets {
            let answer = first.feed(&Initial::first(V1, &[id; 8]).seal(&frames));
            prop_assert!(!matches!(answer, Found::Name(_)), "random bytes are no ClientHello");
        }
    }

    #[test]
    fn any_datagrams_are_harmless(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10),
    ) {
        let starts = [&b"\xc0\0\0\0\x01"[..], b"\xd0\x6b\x33\x43\xcf\x08", b"\xd0\0\0\0\x01\x08", b""];
        let mut first = FirstDatagrams::new(Ech::OuterName);
        for (at, datagram) in datagrams.iter().enumerate() {
            let answer = first.feed(&[starts[at % starts.len()], datagram].concat());
            prop_assert!(!matches!(answer, Found::Name(_)));
        }
    }
}
