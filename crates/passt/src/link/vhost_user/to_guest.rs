//! Frames to the guest's receive queues.
//!
//! If the guest accepts super-frames and has one queue, a receive call on a socket writes directly to the guest's
//! buffers, and only the head is copied. Otherwise the frame is made in our own buffer.

use engine::link::{Full, Layout, Slot};
use sys::iov::{MAX_PIECES, Pieces};
use wire::ethernet::{self, MIN_FRAME_LEN, ethertype};
use wire::offload::{Offload, VIRTIO_NET_HEADER_LEN as HEADER_LEN};
use wire::segment::{Segments, complete_checksum};

use super::device::Device;
use super::features::Features;
use super::memory::{Memory, Piece};
use super::ring::{Broken, Chain, Direction, Ring};
use crate::link::segmentation;
use crate::link::watcher::Watcher;
use crate::memory::{Room, Vectored};

/// Maximum length of the headers of a segment, in bytes.
const HEADERS: usize = 14 + 60 + 60;
/// Offset of `num_buffers` in the header.
const NUM_BUFFERS_AT: usize = 10;

/// Sends frames to the guest by its receive queues.
#[derive(Debug)]
pub(super) struct ToGuest {
    /// Room for a header and a frame.
    slot: Vec<u8>,
    pieces: Vec<Piece>,
    chains: Vec<Chain>,
    /// The room in the guest's buffers.
    room: Pieces,
    /// The prepared slot, if the slot's room is in the guest's buffers.
    direct: Option<Direct>,
    /// Maximum length of a frame that need not be segmented, in bytes.
    longest: usize,
}

/// A slot in the guest's own buffers.
#[derive(Debug, Clone, Copy)]
struct Direct {
    queue: usize,
    head: usize,
}

/// Whether a frame fits the available buffers.
enum Delivery {
    Done,
    /// The buffers are too few: only this number is available.
    Short(u16),
    /// All buffers of the ring together are too short.
    TooLong,
}

impl ToGuest {
    /// Creates a sender for frames of up to `mtu` bytes after the Ethernet header.
    pub(super) fn new(mtu: u16) -> Self {
        Self {
            slot: vec![0; super::from_guest::BUFFER_LEN],
            pieces: Vec::new(),
            chains: Vec::new(),
            room: Pieces::default(),
            direct: None,
            longest: usize::from(mtu) + ethernet::HEADER_LEN,
        }
    }

    /// Finds room for a frame: in our own buffer if `plain`, else in the guest's buffers if they are suitable. Returns
    /// false if the guest has no buffers at all.
    pub(super) fn prepare(&mut self, device: &mut Device, layout: Layout, plain: bool) -> bool {
        if !device.has_buffers() || !self.prepare_own(layout) {
            return false;
        }
        if !plain && layout.room > 0 {
            self.direct = self.aim(device, layout);
        }
        true
    }

    /// Finds room for a frame in our own buffer.
    pub(super) fn prepare_own(&mut self, layout: Layout) -> bool {
        self.direct = None;
        HEADER_LEN + layout.len() <= self.slot.len()
    }

    /// The slot that was prepared.
    pub(super) fn slot<'a>(&'a mut self, device: &'a Device, layout: Layout) -> Slot<'a, Vectored> {
        let buffer = self.slot.get_mut(HEADER_LEN..).unwrap_or_default();
        if self.direct.is_none() {
            return Slot::in_buffer(buffer, layout);
        }
        let mut skip = HEADER_LEN + layout.head;
        let memory = &device.memory;
        let after_head = self.pieces.iter().filter_map(|&piece| {
            let slice = memory.slice(piece)?;
            let skipped = skip.min(slice.len());
            skip -= skipped;
            slice.offset(skipped).ok()
        });
        let head = buffer.get_mut(..layout.head).unwrap_or_default();
        // The number of pieces is small enough: `aim` has checked it.
        let room = self.room.room(after_head).map_or_else(|| (&mut [][..]).into(), Room);
        Slot { head, room }
    }

    /// Finds buffers of the guest for a frame, if the frame can be made in these buffers.
    fn aim(&mut self, device: &mut Device, layout: Layout) -> Option<Direct> {
        let segments = Features::GUEST_CSUM | Features::GUEST_TSO4 | Features::GUEST_TSO6;
        let wanted = if layout.len() > self.longest { segments } else { Features::GUEST_CSUM };
        let mut open = device.open_queues();
        let (Some((queue, _)), None, true) = (open.next(), open.next(), device.features.contains(wanted))
        else {
            return None;
        };
        drop(open);
        let merges = device.features.contains(Features::MRG_RXBUF);
        let Device { queues, memory, .. } = device;
        let ring = queues.get(queue)?.ring.as_ref()?;
        // If the ring has an error, the error is found again and reported when the frame is sent.
        match self.gather(ring, memory, merges, HEADER_LEN + layout.len()) {
            Ok(Delivery::Done) if self.pieces.len() <= MAX_PIECES => {
                Some(Direct { queue, head: layout.head })
            }
            _ => None,
        }
    }

    /// Sends the first `len` bytes of the slot.
    pub(super) fn commit(
        &mut self,
        device: &mut Device,
        watcher: &mut Watcher,
        len: usize,
        offload: &Offload,
    ) -> Result<(), Full> {
        if let Some(direct) = self.direct.take()
            && self.commit_direct(device, watcher, direct, len, offload)
        {
            return Ok(());
        }
        let mut frame = std::mem::take(&mut self.slot);
        let bytes = frame.get_mut(..HEADER_LEN + len).unwrap_or_default();
        let result = self.send(device, watcher, bytes, offload);
        self.slot = frame;
        result
    }

    /// Sends the first `len` bytes of a slot whose room is in the guest's buffers. Returns false if the guest does not
    /// accept such a frame: the whole frame is then in our own buffer, and nothing was sent.
    ///
    /// The socket's bytes are in the guest's buffers already, so only header and head are copied. The chains stay
    /// available to the device until they are given back: no other code takes chains of the ring between
    /// [`ToGuest::prepare`] and this call.
    fn commit_direct(
        &mut self,
        device: &mut Device,
        watcher: &mut Watcher,
        direct: Direct,
        len: usize,
        offload: &Offload,
    ) -> bool {
        let Device { queues, memory, features, .. } = device;
        let Some(queue) = queues.get_mut(direct.queue) else { return true };
        let Some(ring) = &mut queue.ring else { return true };
        let (end, needed) = (HEADER_LEN + direct.head, HEADER_LEN + len);
        if !features.takes(offload, is_ipv6(self.slot.get(HEADER_LEN..end).unwrap_or_default())) {
            self.take_back(memory, end, needed);
            return false;
        }
        // The slot was made for a frame of maximum length. Chains after the last byte are not taken.
        let mut room = 0;
        let used = self.chains.iter().take_while(|chain| {
            let wanted = room < needed as u64;
            room += chain.len;
            wanted
        });
        let used = used.count();
        self.chains.truncate(used);
        let mut header = offload.to_virtio();
        header[NUM_BUFFERS_AT..].copy_from_slice(&(used as u16).to_le_bytes());
        if let Some(place) = self.slot.get_mut(..HEADER_LEN) {
            place.copy_from_slice(&header);
        }
        let head = self.slot.get(..end).unwrap_or_default();
        let done = scatter(memory, &self.pieces, [head, &[]], end).and_then(|()| {
            mark(memory, &self.pieces, needed);
            give_back(ring, memory, &self.chains, needed)
        });
        match done {
            Ok(()) => {
                // If a capture or trace needs the bytes, slots are never in the guest's buffers: see `prepare`.
                watcher.sent(&[]);
                queue.publish_batch(direct.queue, memory);
            }
            Err(broken) => {
                watcher.dropped(1);
                queue.fail(direct.queue, broken);
            }
        }
        true
    }

    /// Copies the bytes that a socket has written to the guest's buffers, from `start` on, to our own buffer.
    fn take_back(&mut self, memory: &Memory, start: usize, end: usize) {
        let mut at = 0;
        for slice in self.pieces.iter().filter_map(|&piece| memory.slice(piece)) {
            let skip = start.saturating_sub(at).min(slice.len());
            let place = self.slot.get_mut(at + skip..end).unwrap_or_default();
            if let Ok(slice) = slice.offset(skip) {
                slice.copy_to(place);
            }
            at += slice.len();
        }
    }

    /// Sends a frame. Room for its header precedes the frame.
    fn send(
        &mut self,
        device: &mut Device,
        watcher: &mut Watcher,
        bytes: &mut [u8],
        offload: &Offload,
    ) -> Result<(), Full> {
        let Some((header, frame)) = bytes.split_at_mut_checked(HEADER_LEN) else { return Ok(()) };
        let queue = queue_for(device, frame).ok_or(Full)?;
        if device.features.takes(offload, is_ipv6(frame)) {
            header.copy_from_slice(&offload.to_virtio());
            return self.deliver(device, watcher, queue, bytes, &[]);
        }
        let Some(mut segments) = Segments::new(frame, offload) else {
            complete_checksum(frame, offload);
            header.copy_from_slice(&Offload::default().to_virtio());
            return self.deliver(device, watcher, queue, bytes, &[]);
        };
        let size = offload.segmentation.map_or(1, |segmentation| usize::from(segmentation.size).max(1));
        self.expect(device, queue, segments.remaining(), HEADER_LEN + HEADERS + size)?;
        // A guest that accepts a frame with an open checksum also accepts segments with an open checksum.
        let mut left = Offload::default();
        if device.features.contains(Features::GUEST_CSUM) {
            segments = segments.with_partial_checksums();
            left.checksum = offload.checksum;
        }
        let mut room = [0; HEADER_LEN + HEADERS];
        room[..HEADER_LEN].copy_from_slice(&left.to_virtio());
        let lost = segmentation::send(segments, &mut room, HEADER_LEN, |room, end, payload| {
            let payload = frame.get(payload).unwrap_or_default();
            self.deliver(device, watcher, queue, &mut room[..end], payload).map(|()| 0)
        })?;
        watcher.dropped(lost);
        Ok(())
    }

    /// Refuses a super-frame if only some of its segments fit. The segments are `count` frames of up to `len` bytes,
    /// header included. If the buffers fill the whole ring, the super-frame is not refused, since there will never be
    /// more room.
    fn expect(&mut self, device: &mut Device, index: usize, count: usize, len: usize) -> Result<(), Full> {
        let Device { queues, memory, .. } = device;
        let Some(queue) = queues.get_mut(index) else { return Err(Full) };
        let Some(ring) = &mut queue.ring else { return Err(Full) };
        self.pieces.clear();
        let waiting = ring.waiting().and_then(|waiting| match waiting {
            0 => Ok((0, 1)),
            _ => Ok((waiting, ring.peek(memory, 0, Direction::ToDriver, &mut self.pieces)?.len)),
        });
        match waiting {
            Ok((waiting, room)) => {
                let needed = count.saturating_mul(len.div_ceil(usize::try_from(room).unwrap_or(len).max(1)));
                if usize::from(waiting) >= needed || ring.is_whole(waiting) {
                    return Ok(());
                }
                queue.short = waiting;
                Err(Full)
            }
            Err(broken) => {
                queue.fail(index, broken);
                Err(Full)
            }
        }
    }

    /// Sends a frame that consists of two parts. A header precedes the first part.
    fn deliver(
        &mut self,
        device: &mut Device,
        watcher: &mut Watcher,
        index: usize,
        first: &mut [u8],
        second: &[u8],
    ) -> Result<(), Full> {
        let merges = device.features.contains(Features::MRG_RXBUF);
        let Device { queues, memory, .. } = device;
        let queue = &mut queues[index];
        let Some(ring) = &mut queue.ring else { return Err(Full) };
        match self.write(ring, memory, merges, first, second) {
            Ok(Delivery::Done) => {
                watcher.sent(&[first.get(HEADER_LEN..).unwrap_or_default(), second]);
                queue.publish_batch(index, memory);
                Ok(())
            }
            Ok(Delivery::Short(waiting)) => {
                queue.short = waiting;
                Err(Full)
            }
            Ok(Delivery::TooLong) => {
                watcher.dropped(1);
                Ok(())
            }
            Err(broken) => {
                queue.fail(index, broken);
                Err(Full)
            }
        }
    }

    /// Writes a header and frame to buffers of the guest.
    fn write(
        &mut self,
        ring: &mut Ring,
        memory: &Memory,
        merges: bool,
        first: &mut [u8],
        second: &[u8],
    ) -> Result<Delivery, Broken> {
        let needed = (first.len() + second.len()).max(HEADER_LEN + MIN_FRAME_LEN);
        let delivery = self.gather(ring, memory, merges, needed)?;
        if let Delivery::Done = delivery {
            if let Some(at) = first.get_mut(NUM_BUFFERS_AT..HEADER_LEN) {
                at.copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
            }
            scatter(memory, &self.pieces, [first, second], needed)?;
            mark(memory, &self.pieces, needed);
            give_back(ring, memory, &self.chains, needed)?;
        }
        Ok(delivery)
    }

    /// Finds buffers of `needed` bytes in total, including the header.
    fn gather(
        &mut self,
        ring: &Ring,
        memory: &Memory,
        merges: bool,
        needed: usize,
    ) -> Result<Delivery, Broken> {
        let waiting = ring.waiting()?;
        self.pieces.clear();
        self.chains.clear();
        let mut room = 0;
        while room < needed as u64 {
            let taken = self.chains.len() as u16;
            if taken == waiting {
                return Ok(if ring.is_whole(waiting) { Delivery::TooLong } else { Delivery::Short(waiting) });
            }
            let chain = ring.peek(memory, taken, Direction::ToDriver, &mut self.pieces)?;
            room += chain.len;
            self.chains.push(chain);
            if !merges && room < needed as u64 {
                return Ok(Delivery::TooLong);
            }
        }
        Ok(Delivery::Done)
    }
}

/// Gives chains back. `len` bytes were written to all chains together.
fn give_back(ring: &mut Ring, memory: &Memory, chains: &[Chain], len: usize) -> Result<(), Broken> {
    let mut left = len as u64;
    for chain in chains {
        let len = chain.len.min(left);
        ring.give_back(memory, chain.head, len as u32)?;
        left -= len;
    }
    ring.advance(chains.len() as u16);
    Ok(())
}

/// Copies two parts to `pieces`, and fills the rest with zeros up to `len` bytes.
fn scatter(
    memory: &Memory,
    pieces: &[Piece],
    [mut bytes, mut second]: [&[u8]; 2],
    len: usize,
) -> Result<(), Broken> {
    let mut left = len;
    for &piece in pieces {
        let mut place = memory.slice(piece).ok_or(Broken::Buffer)?;
        while left > 0 && !place.is_empty() {
            if bytes.is_empty() {
                bytes = std::mem::take(&mut second);
            }
            let source = if bytes.is_empty() { &[0; MIN_FRAME_LEN] } else { bytes };
            let count = source.len().min(place.len()).min(left);
            place.copy_from(&source[..count]);
            bytes = bytes.get(count..).unwrap_or_default();
            place = place.offset(count).map_err(|_| Broken::Buffer)?;
            left -= count;
        }
    }
    Ok(())
}

/// Logs the first `len` bytes of `pieces` as written (migration).
fn mark(memory: &Memory, pieces: &[Piece], len: usize) {
    if memory.logging {
        let mut left = len;
        for piece in pieces {
            if left == 0 {
                break;
            }
            memory.mark(*piece);
            left = left.saturating_sub(piece.len as usize);
        }
    }
}

/// The queue for a frame. All frames of a flow use the same queue, so that they stay in order.
fn queue_for(device: &Device, frame: &[u8]) -> Option<usize> {
    let turn = match device.open_queues().count() {
        0 => return None,
        1 => 0,
        several => spread(frame) as usize % several,
    };
    device.open_queues().nth(turn).map(|(index, _)| index)
}

/// A hash that is the same for all frames of a flow.
fn spread(frame: &[u8]) -> u32 {
    // The hash covers the addresses. If the packet has no IP options, it also covers the ports.
    let flow = if is_ipv6(frame) { frame.get(22..58) } else { frame.get(26..38) };
    let word = |word: &[u8]| word.iter().fold(0_u32, |sum, &byte| sum << 8 | u32::from(byte));
    let sum = flow.unwrap_or_default().chunks(4).fold(0_u32, |sum, bytes| sum.rotate_left(5) ^ word(bytes));
    // Fibonacci hashing: the highest bits depend on all other bits.
    sum.wrapping_mul(0x9e37_79b9) >> 16
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(ethernet::HEADER_LEN - 2..ethernet::HEADER_LEN) == Some(&ethertype::IPV6.to_be_bytes())
}

#[cfg(test)]
mod tests;
