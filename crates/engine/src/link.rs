//! The link to the guest, as the engine needs it.

use wire::{ethernet::MIN_FRAME_LEN, offload::Offload};

use crate::memory::{Memory, Room};

/// The link can't take a frame now: the frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where a frame to the guest is built: its head, and behind that its payload. What it holds is undefined.
#[derive(Debug)]
pub struct Slot<'a, M: Memory> {
    /// The frame's first bytes: headers, or all of a frame that is of our own making.
    pub head: &'a mut [u8],
    /// The rest, which a socket can fill.
    pub room: M::Room<'a>,
}

impl<M: Memory> Slot<'_, M> {
    /// Puts zeros behind `len` bytes of payload in the room, up to the least length of a frame.
    pub fn pad(&mut self, len: usize) {
        let padding = MIN_FRAME_LEN.saturating_sub(self.head.len() + len);
        if padding > 0 {
            self.room.put(len, &[0; MIN_FRAME_LEN][..padding]);
        }
    }
}

/// Where a kernel gets super-frames as they are, it handles a train of segments at less cost than one huge one.
pub const LARGEST_SEGMENT: u16 = 32_000;

/// Where frames to the guest go.
///
/// A frame is built in place: [`Link::reserve`] hands out a slot, the caller fills it, [`Link::commit`] sends it.
/// A slot that is not committed costs nothing. Frames may be super-frames and leave their checksum
/// open ([`Offload`]) on every link; one that can't carry them segments and sums by itself.
pub trait Link {
    /// Where the payload of frames lies.
    type Memory: Memory;

    /// A slot with a head of exactly `head` bytes and room for at least `room` more, together up to
    /// [`wire::frame::MAX_LEN`] and [`MIN_FRAME_LEN`]; none while the link is full.
    fn reserve(&mut self, head: usize, room: usize) -> Option<Slot<'_, Self::Memory>>;

    /// A slot of `len` bytes that is all head, for a frame of our own making.
    fn reserve_head(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reserve(len, 0).map(|slot| slot.head)
    }

    /// Most payload, in bytes, that the segments of a super-frame should have, even if the guest takes more.
    fn largest_segment(&self) -> u16 {
        LARGEST_SEGMENT
    }

    /// Sends the first `len` bytes of the slot reserved last, head and room.
    ///
    /// # Errors
    /// [`Full`], if the frame was not sent. A super-frame of which some segments were sent counts as
    /// sent.
    fn commit(&mut self, len: usize, offload: &Offload) -> Result<(), Full>;
}
