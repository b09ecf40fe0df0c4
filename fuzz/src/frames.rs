//! Frames. The result of parsing any bytes is a set of views into them, or the reason of a refusal. After the guest has
//! sent the frame, no state remains at the end.

use wire::frame::{self, Body, HEAD_LEN, Transport, Unusable};

use crate::receive_path;

/// Input: a frame. The target parses it, and then the guest sends it.
pub fn target(data: &[u8]) {
    parse(data);
    receive_path::one_frame(data);
}

fn parse(data: &[u8]) {
    let Ok(frame) = frame::parse(data) else { return };
    let Body::Ip(packet) = frame.body else { return };
    assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
    let payload = match packet.transport {
        Transport::Tcp(segment) => {
            assert_eq!(segment.options.len(), segment.header.header_len() - wire::tcp::HEADER_LEN);
            segment.payload
        }
        Transport::Udp(datagram) => datagram.payload,
        Transport::Icmp(message) => message.payload,
        Transport::Fragment(fragment) => fragment.payload,
        Transport::Other(_, payload) => payload,
    };
    assert!(payload.len() < data.len());
    // Parsing the head alone gives the same result, unless the headers are longer than the head.
    match frame::parse_head(frame::head(data), data) {
        Ok(again) => assert_eq!(format!("{again:?}"), format!("{frame:?}")),
        Err(reason) => assert!(reason == Unusable::Malformed && data.len() - payload.len() > HEAD_LEN),
    }
}
