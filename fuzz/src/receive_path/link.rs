//! The guest's end of the link. It checks every frame, and keeps the state of a guest.

use std::collections::BTreeMap;

use engine::{flow::Endpoints, link::Full};
use std::net::SocketAddr;
use testkit::{link::Receiver, streams::DOWNWARD};
use wire::{
    assembly::OriginalHeader,
    checksum::Sum,
    fragment::Fragment,
    frame::{self, Body, Packet, Transport},
    offload::Offload,
    protocol,
    tcp::{Flags, Segment},
};

/// Maximum number of frames that one step may cause: more than a turn of each connection.
const MOST_FRAMES: usize = 200;

/// The guest's state of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Sequence number of the host's SYN.
    pub(super) iss: Option<u32>,
    /// The next sequence number that the guest expects from the host.
    pub(super) next: u32,
    /// The last acknowledgment number from the host.
    pub(super) ack: u32,
}

/// The receiving half of the guest.
#[derive(Debug, Default)]
pub(super) struct GuestSide {
    /// Whether the link accepts no frame.
    pub(super) full: bool,
    /// Whether sending a frame fails even if a slot was reserved.
    pub(super) refuses: bool,
    /// Frames since the last call of [`GuestSide::next_step`].
    frames: usize,
    heard: BTreeMap<(SocketAddr, SocketAddr), Heard>,
    /// A datagram that arrives in fragments: its identification, and the bytes so far.
    large: Option<(u32, Vec<u8>)>,
}

impl GuestSide {
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
        DOWNWARD.check(first, segment.payload);
        if heard.next == seq {
            heard.next = heard.next.wrapping_add(segment.sequence_len());
        }
    }

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
            let header = OriginalHeader::new(packet, fragment);
            match header.packet(bytes, &bytes[..]).map(|packet| packet.transport) {
                Ok(Transport::Udp(_) | Transport::Icmp(_)) => {}
                other => panic!("{other:?} in fragments"),
            }
        }
    }
}

impl Receiver for GuestSide {
    fn has_room(&mut self) -> bool {
        !self.full
    }

    /// Accepts a frame, after checks that the virtual link does not make.
    fn frame(&mut self, bytes: &mut [u8], offload: &Offload) -> Result<(), Full> {
        self.frames += 1;
        assert!(self.frames < MOST_FRAMES, "too many frames in one step");
        if self.refuses {
            return Err(Full);
        }
        let Ok(Body::Ip(packet)) = frame::parse(bytes).map(|frame| frame.body) else { return Ok(()) };
        match packet.transport {
            Transport::Tcp(segment) => {
                let ends = Endpoints {
                    guest: SocketAddr::new(packet.destination, segment.header.destination_port.get()),
                    remote: SocketAddr::new(packet.source, segment.header.source_port.get()),
                };
                self.hear(ends, &segment);
            }
            Transport::Udp(_) | Transport::Icmp(_) => {}
            Transport::Fragment(fragment) => {
                // A datagram counts as one frame, even if it arrives in several fragments.
                self.frames -= usize::from(fragment.offset > 0);
                self.reassemble(&packet, &fragment);
            }
            Transport::Other(protocol::IGMP, query) => {
                assert_eq!((*offload, packet.hop_limit), (Offload::default(), 1));
                let sum = Sum::new().bytes(query).finish();
                assert_eq!((query.first(), sum), (Some(&0x11), 0), "{query:02x?}");
            }
            Transport::Other(protocol, _) => panic!("protocol {protocol} to the guest"),
        }
        Ok(())
    }
}
