//! Frames as they come: whatever the bytes, views that lie within them or a reason, and nothing left of it in the end.

use wire::frame::{self, Body, Transport};

use crate::receive_path;

/// Any bytes as a frame, parsed and then sent.
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
        Transport::Other(_) => &[],
    };
    assert!(payload.len() < data.len());
}
