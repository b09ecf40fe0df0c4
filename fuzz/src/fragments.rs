//! Fragments in any order, of any length, some with false contents. A reassembled datagram consists of bytes that were
//! sent, memory is bounded, and no state remains at the end.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use engine::reassembly::{MAX_BYTES, MAX_DATAGRAMS, Outcome, Reassembly};
use engine::timer::Instant;
use wire::fragment::Fragment;
use wire::frame::{Packet, Transport};

use crate::input::Input;

/// Number of bytes of the input that describe a fragment.
const RECORD: usize = 8;
/// What identifies a datagram here: the IP version, the identification, and for IPv4 the protocol.
type Key = (bool, u32, u8);

/// Input: descriptions of fragments, of [`RECORD`] bytes each.
pub fn target(data: &[u8]) {
    let mut reassembly = Reassembly::default();
    // For each datagram, the bytes that were sent at each offset since its first fragment.
    let mut sent: HashMap<Key, Vec<Vec<u8>>> = HashMap::new();
    let mut now = Instant::from_micros(1);
    for record in data.chunks(RECORD) {
        let mut input = Input::new(record);
        if input.one_in(32) {
            now = now + Duration::from_secs(input.byte().into());
            while reassembly.expire(now).is_some() {}
            continue;
        }
        add(&mut input, &mut reassembly, &mut sent, now);
        assert!(reassembly.len() <= MAX_DATAGRAMS && reassembly.bytes() <= MAX_BYTES);
        assert!(reassembly.next().is_none_or(|due| due > now));
    }
    while let Some(due) = reassembly.next() {
        assert!(reassembly.expire(due).is_some(), "a deadline without a datagram");
    }
    assert_eq!((reassembly.len(), reassembly.bytes()), (0, 0));
}

fn add(
    input: &mut Input<'_>,
    reassembly: &mut Reassembly,
    sent: &mut HashMap<Key, Vec<Vec<u8>>>,
    now: Instant,
) {
    let switches = input.byte();
    let (v4, more, honest) = (switches & 1 == 0, switches & 2 == 0, switches & 0x1c != 0);
    let id = u32::from(input.byte() % 5);
    let offset =
        u16::from_be_bytes([input.byte() & 0x0f, input.byte()]) << if switches & 0x20 == 0 { 3 } else { 4 };
    let len = usize::from(input.byte()) << (switches >> 6);
    let bytes: Vec<u8> = (0..len).map(|at| pattern(id, usize::from(offset) + at, honest)).collect();
    let fragment = Fragment {
        id,
        protocol: if switches & 0x10 == 0 { 17 } else { 6 },
        offset,
        more,
        unfragmentable: if v4 { 20 } else { u16::from(input.byte()) * 8 },
        payload: &bytes[..],
    };
    let (source, destination): (IpAddr, IpAddr) = if v4 {
        (Ipv4Addr::new(198, 51, 100, 2).into(), Ipv4Addr::new(192, 0, 2, 1).into())
    } else {
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())
    };
    let packet = Packet {
        source,
        destination,
        hop_limit: 64,
        traffic_class: switches,
        flow_label: 0,
        dont_fragment: false,
        transport: Transport::Fragment(fragment),
    };
    let key = (v4, id, if v4 { fragment.protocol } else { 0 });
    let all = sent.entry(key).or_default();
    let end = usize::from(offset) + len;
    if all.len() < end {
        all.resize(end, Vec::new());
    }
    for (place, byte) in all[usize::from(offset)..].iter_mut().zip(&bytes) {
        if !place.contains(byte) {
            place.push(*byte);
        }
    }
    if let Outcome::Complete(whole, bytes) = reassembly.add(&packet, &fragment, now) {
        assert!(!bytes.is_empty() && bytes.len() <= 65_535 - usize::from(v4) * 20);
        assert_eq!((whole.source, whole.destination), (source, destination));
        assert!(
            bytes.iter().zip(all.iter()).all(|(byte, sent)| sent.contains(byte)),
            "bytes that nobody sent"
        );
        // A packet is delivered only once.
        let last = all.len();
        all.clear();
        assert!(bytes.len() <= last);
        reassembly.recycle(bytes);
    }
}

/// The byte at an offset of a datagram. A wrong byte if not `honest`.
fn pattern(id: u32, at: usize, honest: bool) -> u8 {
    (at as u8) ^ ((at >> 8) as u8) ^ (id as u8) ^ if honest { 0 } else { 0x80 }
}

/// Seeds of the corpus.
#[must_use]
pub fn seeds() -> Vec<crate::seeds::Seed> {
    // `offset` and `len` are in units of eight bytes.
    let piece = |switches: u8, id: u8, offset: u16, len: u8| {
        let [high, low] = offset.to_be_bytes();
        [0, switches, id, high, low, len, 0, 0]
    };
    const FIRST: u8 = 0xc4;
    const LAST: u8 = 0xc6;
    const FIRST6: u8 = 0xc5;
    const LAST6: u8 = 0xc7;
    let later = [31, 61, 0, 0, 0, 0, 0, 0];
    let seed = |name, pieces: &[[u8; RECORD]]| ("fragments", name, pieces.concat());
    vec![
        seed("in-order", &[piece(FIRST, 1, 0, 185), piece(FIRST, 1, 185, 185), piece(LAST, 1, 370, 9)]),
        seed("reverse", &[piece(LAST6, 1, 20, 5), piece(FIRST6, 1, 10, 10), piece(FIRST6, 1, 0, 10)]),
        seed("duplicate", &[piece(FIRST, 1, 0, 2), piece(FIRST, 1, 0, 2), piece(LAST, 1, 2, 1)]),
        seed("overlap", &[piece(FIRST, 1, 0, 3), piece(FIRST, 1, 2, 3), piece(LAST, 1, 5, 1)]),
        seed("other-bytes", &[piece(FIRST, 1, 0, 3), piece(0xc0, 1, 0, 3), piece(LAST, 1, 3, 1)]),
        seed("two-ends", &[piece(LAST, 1, 9, 1), piece(LAST, 1, 7, 1), piece(FIRST, 1, 0, 9)]),
        seed("far-end", &[piece(LAST6, 2, 0xfff, 1), piece(0xe7, 2, 0xfff, 1), piece(FIRST, 3, 0xffe, 1)]),
        seed("too-late", &[piece(FIRST, 1, 0, 2), later, piece(LAST, 1, 2, 1), later]),
        seed(
            "two-at-once",
            &[piece(FIRST, 1, 0, 2), piece(FIRST, 2, 0, 2), piece(LAST, 2, 2, 1), piece(LAST, 1, 2, 1)],
        ),
    ]
}
