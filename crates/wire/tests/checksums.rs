//! Tests every function that computes a checksum, over all 65,536 values of a sum.
//!
//! The complement of the sum 0xffff is zero. For this sum, TCP, ICMP and the IPv4 header must contain zero, and some
//! receivers accept nothing else. UDP must contain 0xffff, since zero means "no checksum" in UDP.
// Miri would take too long for so many sums.
#![cfg(not(miri))]
#![expect(clippy::unwrap_used, reason = "this is all test code, helpers included")]

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{
    ethernet::Mac,
    frame::{Body, Outgoing, Written, parse},
    icmp, ipv4,
    offload::Offload,
    protocol,
    segment::{Segments, complete_checksum},
    tcp::{self, Flags, Seq},
    train::Train,
    udp, verify,
};

const PORTS: (u16, u16) = (7, 9);

/// The one's-complement sum of 16-bit words, computed word by word as in RFC 1071 §4.1.
fn sum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// The checksum in a frame without IP options, and the correct checksum.
fn carried_and_right(frame: &[u8]) -> (u16, u16) {
    let (addresses, protocol, start, end) = match frame[14] >> 4 {
        4 => (26..34, frame[23], 34, 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))),
        _ => (22..54, frame[20], 54, 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))),
    };
    let at = start
        + match protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => 2,
        };
    let mut packet = frame[start..end].to_vec();
    let carried = u16::from_be_bytes([frame[at], frame[at + 1]]);
    packet[at - start..at - start + 2].fill(0);
    let len = ((end - start) as u32).to_be_bytes();
    let pseudo_header = [&frame[addresses], &[0, protocol], &len];
    let sum = match protocol {
        protocol::ICMP => sum(&[&packet]),
        _ => sum(&[&pseudo_header.concat(), &packet]),
    };
    match (protocol, !sum) {
        (protocol::UDP, 0) => (carried, 0xffff),
        (_, checksum) => (carried, checksum),
    }
}

/// Builds frames for each value of a 16-bit word with `frames`. All checksums must be right, and every possible value
/// of a checksum must occur.
fn over_all_sums(what: &str, frames: impl Fn(&Outgoing, [u8; 2]) -> Vec<Vec<u8>>) {
    for v6 in [false, true] {
        let outgoing = Outgoing {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::new(192, 0, 2, 1).into() },
            destination: if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::new(192, 0, 2, 2).into() },
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let mut seen = vec![false; 0x10000];
        for word in 0..=u16::MAX {
            for frame in frames(&outgoing, word.to_be_bytes()) {
                let (carried, right) = carried_and_right(&frame);
                assert_eq!(carried, right, "{what}, IPv6: {v6}, word {word:#06x}");
                let Ok(Body::Ip(packet)) = parse(&frame).map(|frame| frame.body) else {
                    panic!("{frame:x?}")
                };
                assert!(verify::network(&frame) && verify::transport(&packet), "{frame:x?}");
                seen[usize::from(carried)] = true;
            }
        }
        // Either 0x0000 or 0xffff never occurs (see the top of this file).
        assert_eq!(seen.iter().filter(|&&seen| seen).count(), 0xffff, "{what}");
    }
}

fn tcp(outgoing: &Outgoing, payload: &[u8], segment_size: Option<u16>) -> (Vec<u8>, Offload) {
    let start = outgoing.headroom(tcp::HEADER_LEN);
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    let header = tcp::Header::new(PORTS, Seq(1), Seq(2), Flags::ACK, 100, 0);
    let Written { offload, .. } = outgoing.tcp(&mut frame, header, &[], payload.len(), segment_size).unwrap();
    (frame, offload)
}

fn udp(outgoing: &Outgoing, payload: &[u8], segment_size: Option<u16>) -> (Vec<u8>, Offload) {
    let start = outgoing.headroom(udp::HEADER_LEN);
    let mut frame = vec![0; start + payload.len()];
    frame[start..].copy_from_slice(payload);
    let Written { offload, .. } = outgoing.udp(&mut frame, PORTS, payload.len(), segment_size).unwrap();
    (frame, offload)
}

fn completed((mut frame, offload): (Vec<u8>, Offload)) -> Vec<Vec<u8>> {
    assert!(complete_checksum(&mut frame, &offload));
    vec![frame]
}

#[test]
fn of_frames_with_a_partial_checksum() {
    over_all_sums("TCP", |outgoing, word| completed(tcp(outgoing, &word, None)));
    over_all_sums("UDP", |outgoing, word| completed(udp(outgoing, &word, None)));
}

/// The segments of a super-frame: each is written twice, once as a whole frame, and once by its headers alone.
fn cut((frame, offload): (Vec<u8>, Offload)) -> Vec<Vec<u8>> {
    let mut whole = Segments::new(&frame, &offload).unwrap();
    let mut headers = Segments::new(&frame, &offload).unwrap();
    let (mut all, mut buffer) = (Vec::new(), [0; 100]);
    while let Some(len) = whole.write_next(&mut buffer) {
        all.push(buffer[..len].to_vec());
        let (len, payload) = headers.write_next_header(&mut buffer).unwrap();
        all.push([&buffer[..len], &frame[payload]].concat());
    }
    assert_eq!(all.len(), 4);
    all
}

#[test]
fn of_segments_cut_from_a_super_frame() {
    let twice = |word: [u8; 2]| [word, word].concat();
    over_all_sums("TCP", |outgoing, word| cut(tcp(outgoing, &twice(word), Some(2))));
    over_all_sums("UDP", |outgoing, word| cut(udp(outgoing, &twice(word), Some(2))));
}

#[test]
fn of_icmp() {
    over_all_sums("ICMP", |outgoing, word| {
        let start = outgoing.headroom(icmp::HEADER_LEN);
        let mut frame = vec![0; start + 2];
        frame[start..].copy_from_slice(&word);
        assert!(outgoing.icmp(&mut frame, icmp::Header::new(8, 0, 0x1234_5678), 2).is_some());
        vec![frame]
    });
}

/// The IPv4 checksums of new headers, of the headers of segments, and of the headers of trains.
#[test]
fn of_ipv4_headers() {
    let header_of = |frame: &[u8]| (u16::from_be_bytes([frame[24], frame[25]]), frame[14..34].to_vec());
    for word in 0..=u16::MAX {
        let [high, low] = word.to_be_bytes();
        let outgoing = Outgoing {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: Ipv4Addr::new(192, 0, high, low).into(),
            destination: Ipv4Addr::new(192, 0, 2, 2).into(),
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let new = ipv4::Header::new(Ipv4Addr::new(10, 0, high, low), Ipv4Addr::LOCALHOST, 17, 64, 0, 8);
        let new = [&[0; 14], zerocopy::IntoBytes::as_bytes(&new)].concat();
        let cut = cut(tcp(&outgoing, &[0; 4], Some(2)));
        let (open, offload) = tcp(&outgoing, &[0; 3], None);
        let mut next = open.clone();
        next[41] += 3; // the sequence number
        let [first, second] = [open, next].map(|frame| completed((frame, offload)).remove(0));
        let mut buffer = [&first[..], &second[..]].concat();
        let (mut range, len) = (0..first.len(), first.len());
        let mut train = Train::begin(&first, &first[..], &Offload::default()).unwrap();
        assert!(train.join_in(&mut buffer, &mut range, len..2 * len));
        train.finish(&mut buffer[range.clone()]);
        for frame in [&new, &cut[0], &cut[2], &first, &buffer[range].to_vec()] {
            let (carried, mut header) = header_of(frame);
            header[10..12].fill(0);
            assert_eq!(carried, !sum(&[&header]), "word {word:#06x}");
        }
    }
}
