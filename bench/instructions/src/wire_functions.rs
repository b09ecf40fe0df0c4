//! Functions of `wire`.

use std::hint::black_box;
use std::net::IpAddr;

use wire::checksum::Sum;
use wire::ethernet::Mac;
use wire::frame::{self, Body, Outgoing};
use wire::offload::Offload;
use wire::segment::{self, Segments};
use wire::tcp::{self, Flags, Header, Options, Seq};
use wire::train::Train;
use wire::{udp, verify};

use crate::repeat;

/// Payload of a segment at an MTU of 1500 bytes.
const PAYLOAD: usize = 1460;
/// Payload of a super-frame: 44 segments.
const SUPER: usize = 64_000;

fn outgoing(v6: bool) -> Outgoing {
    let address = |last: u8| -> IpAddr {
        if v6 {
            [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last].into()
        } else {
            [192, 0, 2, last].into()
        }
    };
    Outgoing {
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        destination_mac: Mac([2, 0, 0, 0, 0, 2]),
        source: address(1),
        destination: address(2),
        hop_limit: 64,
        traffic_class: 0,
        flow_label: 0,
    }
}

fn header(seq: u32) -> Header {
    Header::new((49152, 443), Seq(seq), Seq(7), Flags::ACK, 512, 0)
}

/// A frame with a TCP segment and right checksums.
fn tcp_frame(v6: bool, seq: u32) -> Vec<u8> {
    let outgoing = outgoing(v6);
    let mut frame = vec![0x5a; outgoing.headroom(tcp::HEADER_LEN) + PAYLOAD];
    if let Some(written) = outgoing.tcp(&mut frame, header(seq), &[], PAYLOAD, None) {
        segment::complete_checksum(&mut frame, &written.offload);
    }
    frame
}

fn parse(count: u32, frame: &[u8]) {
    repeat(count, || frame::parse(black_box(frame)).map(drop));
}

pub(crate) fn parse_tcp4(count: u32) {
    parse(count, &tcp_frame(false, 1));
}

pub(crate) fn parse_tcp6(count: u32) {
    parse(count, &tcp_frame(true, 1));
}

pub(crate) fn parse_udp4(count: u32) {
    let outgoing = outgoing(false);
    let mut frame = vec![0x5a; outgoing.headroom(udp::HEADER_LEN) + 512];
    black_box(outgoing.udp(&mut frame, (53, 1234), 512, None));
    parse(count, &frame);
}

pub(crate) fn parse_sack(count: u32) {
    let mut options = Options::default();
    for block in 0..3 {
        options.sack.push(Seq(block * 3000), Seq(block * 3000 + 1460));
    }
    let mut bytes = [0; tcp::MAX_OPTIONS_LEN];
    let len = options.emit(&mut bytes);
    repeat(count, || Options::parse(black_box(&bytes[..len])));
}

fn checksum(count: u32, len: usize) {
    let bytes = vec![0x5a; len];
    repeat(count, || Sum::new().bytes(black_box(&bytes)).finish());
}

pub(crate) fn checksum_1460(count: u32) {
    checksum(count, PAYLOAD);
}

pub(crate) fn checksum_65000(count: u32) {
    checksum(count, 65_000);
}

pub(crate) fn verify_tcp(count: u32) {
    let frame = tcp_frame(false, 1);
    let Ok(Body::Ip(packet)) = frame::parse(&frame).map(|frame| frame.body) else { return };
    repeat(count, || verify::transport(black_box(&packet)));
}

fn write_tcp(count: u32, v6: bool) {
    let (outgoing, header) = (outgoing(v6), header(1));
    let mut buffer = vec![0; outgoing.headroom(tcp::HEADER_LEN) + PAYLOAD];
    repeat(count, || black_box(&outgoing).tcp(black_box(&mut buffer), black_box(header), &[], PAYLOAD, None));
}

pub(crate) fn write_tcp4(count: u32) {
    write_tcp(count, false);
}

pub(crate) fn write_tcp6(count: u32) {
    write_tcp(count, true);
}

pub(crate) fn write_udp4(count: u32) {
    let outgoing = outgoing(false);
    let mut buffer = vec![0; outgoing.headroom(udp::HEADER_LEN) + 512];
    repeat(count, || black_box(&outgoing).udp(black_box(&mut buffer), black_box((53, 1234)), 512, None));
}

/// With partial checksums, as for vhost-user.
pub(crate) fn cut_segments(count: u32) {
    let outgoing = outgoing(false);
    let mut frame = vec![0x5a; outgoing.headroom(tcp::HEADER_LEN) + SUPER];
    let Some(written) = outgoing.tcp(&mut frame, header(1), &[], SUPER, Some(PAYLOAD as u16)) else {
        return;
    };
    let mut headers = [0; 128];
    repeat(count, || {
        let mut cut = 0;
        if let Some(segments) = Segments::new(black_box(&frame), black_box(&written.offload)) {
            let mut segments = segments.with_partial_checksums();
            while let Some((_, payload)) = segments.write_next_header(black_box(&mut headers)) {
                cut += payload.len();
            }
        }
        cut
    });
}

/// Verifies and joins a segment. A copy puts it back each time, since joining moves its payload.
pub(crate) fn join_segment(count: u32) {
    let (first, second) = (tcp_frame(false, 1), tcp_frame(false, 1 + PAYLOAD as u32));
    let (first_len, len) = (first.len(), first.len() + second.len());
    let mut buffer = [&first[..], &second[..]].concat();
    let Some(train) = Train::begin(&first, &first[..], &Offload::default()) else { return };
    repeat(count, || {
        buffer[first_len..].copy_from_slice(black_box(&second));
        let (mut train, mut range) = (black_box(train), 0..first_len);
        train.join_in(black_box(&mut buffer), &mut range, first_len..len)
    });
}
