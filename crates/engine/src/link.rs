//! The interface of the link to the guest that the engine needs.

use wire::{ethernet::MIN_FRAME_LEN, offload::Offload};

use crate::memory::{Memory, Room};

/// Hop limit of the packets to the guest that the engine creates itself: services on the link, errors, TCP segments
/// (behaviour §4).
pub(crate) const HOP_LIMIT: u8 = 255;

/// The link can't take a frame now: the frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The size of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of the head, in bytes.
    pub head: usize,
    /// Minimum length of the room after the head, in bytes.
    pub room: usize,
}

impl Layout {
    /// Length of head and room together, in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.head + self.room
    }

    /// Whether both head and room are empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The buffer in which a frame to the guest is built: its head, and after the head its payload. The initial content is
/// undefined.
#[derive(Debug)]
pub struct Slot<'a, M: Memory> {
    /// The frame's first bytes: headers, or a whole frame that the engine writes itself.
    pub head: &'a mut [u8],
    /// The rest of the frame, which a socket can fill.
    pub room: M::Room<'a>,
}

impl<'a, M: Memory> Slot<'a, M> {
    /// The slot at the start of `buffer`. The slot is empty if `buffer` is shorter than `layout`.
    #[must_use]
    pub fn in_buffer(buffer: &'a mut [u8], layout: Layout) -> Self {
        let (head, room) = buffer
            .get_mut(..layout.len())
            .and_then(|slot| slot.split_at_mut_checked(layout.head))
            .unwrap_or_default();
        Self { head, room: room.into() }
    }
}

impl<M: Memory> Slot<'_, M> {
    /// Pads the room with zeros after `len` bytes of payload, up to the minimum length of a frame.
    pub fn pad(&mut self, len: usize) {
        let padding = MIN_FRAME_LEN.saturating_sub(self.head.len() + len);
        if padding > 0 {
            self.room.put(len, &[0; MIN_FRAME_LEN][..padding]);
        }
    }
}

/// A slot of a link, reserved for one frame. If it is dropped, no frame is sent, and there is no cost.
#[derive(Debug)]
#[must_use]
pub struct Reserved<'a, L: Link + ?Sized> {
    link: &'a mut L,
    layout: Layout,
}

impl<L: Link + ?Sized> Reserved<'_, L> {
    /// Returns head and room. Must be called at most once per frame, since some links have to gather the room from
    /// many pieces.
    pub fn slot(&mut self) -> Slot<'_, L::Memory> {
        self.link.slot(self.layout)
    }

    /// Returns the head alone.
    pub fn head(&mut self) -> &mut [u8] {
        self.slot().head
    }

    /// Sends the first `len` bytes of the slot, head and room.
    ///
    /// # Errors
    /// [`Full`] if the frame was not sent. If some segments of a super-frame were sent, the super-frame counts as
    /// sent.
    pub fn commit(self, len: usize, offload: &Offload) -> Result<(), Full> {
        self.link.send(self.layout, len, offload)
    }
}

/// The default of [`Link::largest_segment`], in bytes. If the guest's kernel receives super-frames as a whole, several
/// such segments in one super-frame cost less than one segment of the maximum length.
pub const LARGEST_SEGMENT: u16 = 32_000;

/// The link that takes frames to the guest.
///
/// A frame is built in place: [`Link::reserve`] returns a slot, the caller fills the slot, and [`Reserved::commit`]
/// sends the frame. On every link, frames may be super-frames and have a partial checksum ([`Offload`]). If the guest
/// can't receive such frames, the link cuts the frame into segments and computes the checksums itself.
///
/// A link implements `prepare`, `slot` and `send`, which a [`Reserved`] calls in this order, with the same layout.
pub trait Link {
    /// The memory that holds the payload of frames.
    type Memory: Memory;

    /// Finds room for a frame: a head of exactly `layout.head` bytes and a room of at least `layout.room` bytes. The
    /// engine requests at most [`wire::frame::MAX_LEN`] bytes in total. Returns false while the link is full.
    fn prepare(&mut self, layout: Layout) -> bool;

    /// The slot that was prepared. The slot's content is undefined.
    fn slot(&mut self, layout: Layout) -> Slot<'_, Self::Memory>;

    /// Sends the first `len` bytes of the slot that was prepared, head and room.
    ///
    /// # Errors
    /// The errors are the errors of [`Reserved::commit`].
    fn send(&mut self, layout: Layout, len: usize, offload: &Offload) -> Result<(), Full>;

    /// Maximum length of the payload of each segment of a super-frame, in bytes. The guest may accept longer segments.
    fn largest_segment(&self) -> u16 {
        LARGEST_SEGMENT
    }

    /// Reserves a slot with a head of exactly `head` bytes and a room of at least `room` bytes, together at most
    /// [`wire::frame::MAX_LEN`] bytes. Returns none while the link is full.
    fn reserve(&mut self, head: usize, room: usize) -> Option<Reserved<'_, Self>> {
        let layout = Layout { head, room };
        self.prepare(layout).then_some(Reserved { link: self, layout })
    }

    /// Reserves a slot of `len` bytes that has only a head, for a frame that the engine writes itself.
    fn reserve_head(&mut self, len: usize) -> Option<Reserved<'_, Self>> {
        self.reserve(len, 0)
    }
}
