//! A link in memory. The link checks every frame, and passes the frame to a [`Receiver`].

use std::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    vec::Vec,
};

use engine::{
    context::World,
    link::{Full, Layout, Link, Slot},
    memory::Plain,
};
use wire::{
    ethernet::{MIN_FRAME_LEN, Mac},
    frame::{self, Body, Frame, MAX_LEN, Packet, Transport},
    offload::{Offload, SegmentKind},
    segment::complete_checksum,
};

use super::{exempt::Exempt, host::VirtualHost, settings::OUR_MAC};

/// Memory, host and link of this crate, with the link's receiver.
#[derive(Debug)]
pub struct Virtual<R>(PhantomData<R>);

impl<R: Receiver> World for Virtual<R> {
    type Memory = Plain;
    type Host = VirtualHost;
    type Link = VirtualLink<R>;
}

/// Takes the frames from the link.
pub trait Receiver {
    /// Whether the receiver accepts a frame now.
    fn has_room(&mut self) -> bool {
        true
    }

    /// Accepts a frame. The receiver may change the frame.
    ///
    /// # Errors
    /// There is no room, although [`Receiver::has_room`] returned true.
    fn frame(&mut self, frame: &mut [u8], offload: &Offload) -> Result<(), Full>;
}

/// The content of a new slot, which the engine must not depend on. A copy of it is quick without optimisation, too.
static UNDEFINED: [u8; MAX_LEN] = [0xa5; MAX_LEN];

/// The link. It dereferences to its receiver.
#[derive(Debug, Default)]
pub struct VirtualLink<R> {
    receiver: R,
    slot: Vec<u8>,
}

impl<R> VirtualLink<R> {
    /// A link to this receiver.
    pub const fn to(receiver: R) -> Self {
        Self { receiver, slot: Vec::new() }
    }
}

impl<R> Deref for VirtualLink<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.receiver
    }
}

impl<R> DerefMut for VirtualLink<R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.receiver
    }
}

impl<R: Receiver> Link for VirtualLink<R> {
    type Memory = Plain;

    fn prepare(&mut self, layout: Layout) -> bool {
        let _exempt = Exempt::begin();
        assert!(layout.len() <= MAX_LEN, "a slot of {} bytes", layout.len());
        self.slot.clear();
        self.slot.extend_from_slice(&UNDEFINED[..layout.len()]);
        self.receiver.has_room()
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.slot, layout)
    }

    fn send(&mut self, layout: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        let _exempt = Exempt::begin();
        assert!(len <= layout.len(), "{len} bytes of a slot of {}", layout.len());
        check(&self.slot[..len], offload);
        self.receiver.frame(&mut self.slot[..len], offload)
    }
}

/// Checks that a frame is well-formed, and that its offload metadata matches.
#[track_caller]
fn check(bytes: &[u8], offload: &Offload) {
    assert!(bytes.len() >= MIN_FRAME_LEN, "{} bytes (R-50)", bytes.len());
    let Frame { body, .. } = frame::parse(bytes).unwrap_or_else(|reason| panic!("{reason:?}: {bytes:02x?}"));
    assert_eq!(Offload::from_virtio(&offload.to_virtio()), Some(*offload));
    if offload.segmentation.is_none() && offload.checksum.is_some() {
        assert!(complete_checksum(&mut bytes.to_vec(), offload), "{offload:?} in {} bytes", bytes.len());
    }
    let Body::Ip(packet) = body else { return };
    assert_eq!(packet.source.is_ipv4(), packet.destination.is_ipv4());
    assert!(!packet.source.is_multicast(), "from {}", packet.source);
    let kind = offload.segmentation.map(|segmentation| segmentation.kind);
    let expected = match packet.transport {
        Transport::Tcp(_) if packet.source.is_ipv4() => Some(SegmentKind::Tcp4),
        Transport::Tcp(_) => Some(SegmentKind::Tcp6),
        Transport::Udp(_) => Some(SegmentKind::Udp),
        Transport::Icmp(_) => None,
        Transport::Fragment(_) | Transport::Other(..) => {
            assert_eq!(*offload, Offload::default(), "it has no offload");
            None
        }
    };
    assert!(kind.is_none() || kind == expected, "{offload:?} for {:?}", packet.transport);
}

/// A link that keeps the frames.
pub type Capture = VirtualLink<Kept>;

/// A receiver that keeps the frames.
#[derive(Debug, Default)]
pub struct Kept {
    /// The frames, in order, each with its offload metadata.
    pub frames: Vec<(Vec<u8>, Offload)>,
    /// Whether there is no room for frames.
    pub full: bool,
    /// Maximum number of frames that the receiver keeps. Later frames get a slot, but are not sent.
    pub most: Option<usize>,
}

impl Kept {
    /// The frames sent since the last call.
    pub fn take(&mut self) -> Vec<(Vec<u8>, Offload)> {
        std::mem::take(&mut self.frames)
    }

    /// The one frame that was sent.
    #[track_caller]
    pub fn frame(&self) -> Frame<'_> {
        let [(frame, _)] = self.frames.as_slice() else { panic!("{} frames", self.frames.len()) };
        frame::parse(frame).unwrap()
    }

    /// The one packet that a local service sent, and its destination MAC address. Checks that the packet has our MAC
    /// address as source, hop limit 255 and the don't-fragment flag (behaviour §4, R-57).
    #[track_caller]
    pub fn packet(&self) -> (Packet<'_>, Mac) {
        let frame = self.frame();
        let Body::Ip(packet) = frame.body else { panic!("{frame:?}") };
        assert_eq!((frame.source_mac, packet.hop_limit, packet.traffic_class), (OUR_MAC, 255, 0));
        if packet.source.is_ipv4() {
            assert_eq!(self.frames[0].0[20..22], [0x40, 0]);
        }
        (packet, frame.destination_mac)
    }
}

impl Receiver for Kept {
    fn has_room(&mut self) -> bool {
        !self.full
    }

    fn frame(&mut self, frame: &mut [u8], offload: &Offload) -> Result<(), Full> {
        if self.most.is_some_and(|most| self.frames.len() >= most) {
            return Err(Full);
        }
        self.frames.push((frame.to_vec(), *offload));
        Ok(())
    }
}
