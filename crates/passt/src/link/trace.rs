//! A line for each frame, for `--trace` (behaviour §1.7.3).

use std::fmt;

use wire::frame::{Body, Packet, Transport, parse};

/// The direction of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    /// The frame comes from the guest.
    FromGuest,
    /// The frame goes to the guest.
    ToGuest,
}

/// Whether frames are logged.
pub(super) fn is_enabled() -> bool {
    log::log_enabled!(log::Level::Trace)
}

/// Logs an Ethernet frame. The frame consists of `parts`.
pub(super) fn frame(direction: Direction, parts: &[&[u8]]) {
    let direction = match direction {
        Direction::FromGuest => "guest >",
        Direction::ToGuest => "guest <",
    };
    log::trace!("{direction} {}", Line(&parts.concat()));
}

/// A frame in one line of text.
struct Line<'a>(&'a [u8]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match parse(self.0).map(|frame| frame.body) {
            Ok(Body::Arp(_)) => write!(f, "ARP")?,
            Ok(Body::Ip(packet)) => write_packet(f, &packet)?,
            Err(reason) => write!(f, "{reason:?}")?,
        }
        write!(f, ", frame of {} bytes", self.0.len())
    }
}

fn write_packet(f: &mut fmt::Formatter<'_>, packet: &Packet<'_>) -> fmt::Result {
    let Packet { source, destination, .. } = packet;
    match packet.transport {
        Transport::Tcp(segment) => {
            let (from, to) = (segment.header.source_port, segment.header.destination_port);
            let (flags, len) = (segment.flags(), segment.payload.len());
            let (seq, ack, window) = (segment.seq().0, segment.ack().0, segment.header.window);
            write!(f, "TCP {source}:{from} -> {destination}:{to} {flags:?}")?;
            write!(f, " seq {seq} ack {ack} window {window} len {len}")
        }
        Transport::Udp(datagram) => {
            let (from, to) = (datagram.header.source_port, datagram.header.destination_port);
            write!(f, "UDP {source}:{from} -> {destination}:{to} len {}", datagram.payload.len())
        }
        Transport::Icmp(message) => {
            let (kind, code) = (message.header.kind, message.header.code);
            write!(f, "ICMP {source} -> {destination} type {kind} code {code}")
        }
        Transport::Fragment(fragment) => write!(
            f,
            "IP {source} -> {destination} fragment {:#x} at {}, {} bytes{}",
            fragment.id,
            fragment.offset,
            fragment.payload.len(),
            if fragment.more { "" } else { ", the last" }
        ),
        Transport::Other(protocol, _) => write!(f, "IP {source} -> {destination} protocol {protocol}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_frame_have_a_line() {
        assert_eq!(Line(&[]).to_string(), "Malformed, frame of 0 bytes");
        let mut frame = [0; 14];
        frame[12..].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(Line(&frame).to_string(), "UnknownEthertype(35020), frame of 14 bytes");
    }
}
