//! The guest's end of the link: checks every frame, and keeps the state that a guest would.

use std::collections::BTreeMap;

use engine::{
    flow::Endpoints,
    link::{Full, Layout, Link, Slot},
    memory::Plain,
};
use std::net::SocketAddr;
use wire::{
    assembly::Whole,
    checksum::Sum,
    fragment::Fragment,
    frame::{self, Body, MAX_LEN, Packet, Transport},
    offload::{Offload, SegmentKind},
    protocol,
    tcp::{Flags, Segment},
};

use super::world::pattern;

/// Maximum number of frames that one step may cause: more than a turn of each connection.
const MOST_FRAMES: usize = 200;

/// The guest's state of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Sequence number of the host's SYN.
    pub(super) iss: Option<u32>,
    /// The next sequence number that the guest expects from the host.
    pub(super) next: u32,
    /// What the host has acknowledged.
    pub(super) ack: u32,
}

/// A link that checks every frame.
#[derive(Debug)]
pub(super) struct GuestLink {
    slot: Vec<u8>,
    /// It accepts no frame.
    pub(super) full: bool,
    /// Sending a frame fails, although a slot was reserved.
    pub(super) refuses: bool,
    /// Frames since the last call of [`GuestLink::next_step`].
    frames: usize,
    heard: BTreeMap<(SocketAddr, SocketAddr), Heard>,
    /// A datagram that arrives in fragments: its identification, and the bytes so far.
    large: Option<(u32, Vec<u8>)>,
}

impl GuestLink {
    pub(super) fn new() -> Self {
        Self {
            slot: vec![0xa5; MAX_LEN],
            full: false,
            refuses: false,
            frames: 0,
            heard: BTreeMap::new(),
            large: None,
        }
    }

    /// Resets the count of frames, and returns it.
    pub(super) fn next_step(&mut self) -> usize {
        std::mem::take(&mut self.frames)
    }

    /// The guest's state of a connection, if it has received a segment.
    pub(super) fn heard(&self, ends: &Endpoints) -> Heard {
        self.heard.get(&(ends.guest, ends.remote)).copied().unwrap_or_default()
    }

    fn hear(&mut self, ends: Endpoints, segment: &Segment<'_>) {
        let heard = self.heard.entry((ends.guest, ends.remote)).or_default();
        let (seq, flags) = (segment.seq().0, segment.flags());
        if flags.contains(Flags::RST) {
            return;
        }
        if flags.contains(Flags::SYN) {
            *heard = Heard { iss: Some(seq), next: seq.wrapping_add(1), ack: segment.ack().0 };
            return;
        }
        heard.ack = segment.ack().0;
        let Some(iss) = heard.iss else {
            assert!(segment.payload.is_empty(), "data before the handshake");
            return;
        };
        let first = seq.wrapping_sub(iss).wrapping_sub(1);
        for (&byte, position) in segment.payload.iter().zip(0..) {
            assert_eq!(byte, pattern(first.wrapping_add(position)), "the host's stream at {first}");
        }
        if heard.next == seq {
            heard.next = heard.next.wrapping_add(segment.sequence_len());
        }
    }
}

impl GuestLink {
    /// Reassembles fragments. They arrive in order, unless some were lost.
    fn reassemble(&mut self, packet: &Packet<'_>, fragment: &Fragment<&[u8]>) {
        let same = self
            .large
            .as_ref()
            .is_some_and(|(id, bytes)| *id == fragment.id && bytes.len() == usize::from(fragment.offset));
        if fragment.offset == 0 {
            self.large = Some((fragment.id, Vec::new()));
        } else if !same {
            // The first fragments were lost because the link was full.
            self.large = None;
        }
        let Some((_, bytes)) = &mut self.large else { return };
        bytes.extend_from_slice(fragment.payload);
        if !fragment.more {
            let whole = Whole {
                source: packet.source,
                destination: packet.destination,
                hop_limit: packet.hop_limit,
                traffic_class: packet.traffic_class,
                flow_label: packet.flow_label,
                protocol: fragment.protocol,
            };
            match whole.packet(bytes, &bytes[..]).map(|packet| packet.transport) {
                Ok(Transport::Udp(_) | Transport::Icmp(_)) => {}
                other => panic!("{other:?} in fragments"),
            }
        }
    }
}

impl Link for GuestLink {
    type Memory = Plain;

    fn prepare(&mut self, layout: Layout) -> bool {
        let len = layout.len();
        assert!(len <= MAX_LEN, "a slot of {len} bytes");
        let stale = len.min(200);
        self.slot[..stale].fill(0xa5);
        !self.full
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.slot, layout)
    }

    fn send(&mut self, layout: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        assert!(len <= layout.len(), "{len} bytes of a slot of {}", layout.len());
        self.frames += 1;
        assert!(self.frames < MOST_FRAMES, "too many frames in one step");
        if self.refuses {
            return Err(Full);
        }
        let slot = std::mem::take(&mut self.slot);
        check(&slot[..len], offload, self);
        self.slot = slot;
        Ok(())
    }
}

/// Checks a frame to the guest, and that its offload matches it.
fn check(bytes: &[u8], offload: &Offload, link: &mut GuestLink) {
    let frame = match frame::parse(bytes) {
        Ok(frame) => frame,
        Err(reason) => panic!("{reason:?}: {bytes:02x?}"),
    };
    assert_eq!(Offload::from_virtio(&offload.to_virtio()), Some(*offload));
    if let Some(checksum) = offload.checksum {
        let at = usize::from(checksum.start) + usize::from(checksum.offset);
        assert!(at + 2 <= bytes.len(), "{offload:?} in {} bytes", bytes.len());
    }
    let Body::Ip(packet) = frame.body else { return };
    assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
    assert!(!packet.source.is_multicast(), "from {}", packet.source);
    let kind = offload.segmentation.map(|segmentation| segmentation.kind);
    match packet.transport {
        Transport::Tcp(segment) => {
            let expected = if packet.source.is_ipv4() { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
            assert!(kind.is_none_or(|kind| kind == expected), "{offload:?}");
            let ends = Endpoints {
                guest: SocketAddr::new(packet.destination, segment.header.destination_port.get()),
                remote: SocketAddr::new(packet.source, segment.header.source_port.get()),
            };
            link.hear(ends, &segment);
        }
        Transport::Udp(_) => assert!(kind.is_none_or(|kind| kind == SegmentKind::Udp), "{offload:?}"),
        Transport::Icmp(_) => assert_eq!(kind, None),
        Transport::Fragment(fragment) => {
            assert_eq!(*offload, Offload::default(), "a fragment has no offload");
            // A datagram counts once, however many its fragments are.
            link.frames -= usize::from(fragment.offset > 0);
            link.reassemble(&packet, &fragment);
        }
        Transport::Other(protocol::IGMP, query) => {
            assert_eq!((*offload, packet.hop_limit), (Offload::default(), 1));
            assert_eq!((query.first(), Sum::new().bytes(query).finish()), (Some(&0x11), 0), "{query:02x?}");
        }
        Transport::Other(protocol, _) => panic!("protocol {protocol} to the guest"),
    }
}
