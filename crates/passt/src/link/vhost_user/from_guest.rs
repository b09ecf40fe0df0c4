//! Frames from the guest's transmit queues.
//!
//! The header and the head of a frame are copied once, and only the copy is read. The payload is sent from the guest's
//! memory to a socket. Then the chain is given back to the driver.

use std::sync::Arc;

use sys::iov::{MAX_PIECES, Pieces};
use wire::frame::{HEAD_LEN, MAX_LEN};
use wire::offload::{Offload, VIRTIO_NET_HEADER_LEN as HEADER_LEN};

use super::device::{Device, QUEUES};
use super::memory::{Piece, Regions};
use super::ring::{Broken, Direction};
use crate::memory::Payload;

/// Maximum length of a frame with its header, in bytes.
pub(crate) const BUFFER_LEN: usize = HEADER_LEN + MAX_LEN;

/// A frame of the guest, while it is handled.
#[derive(Debug, Default)]
pub struct Frame {
    /// Header and head, or the whole frame.
    copied: Vec<u8>,
    /// Number of bytes in `copied`.
    len: usize,
    /// The location of the whole frame if only its head is copied: the table of regions, and places in these regions.
    regions: Arc<Regions>,
    places: Vec<Piece>,
    pieces: Pieces,
    /// The offload work that is not done yet.
    offload: Offload,
}

impl Frame {
    /// Creates room for a frame.
    pub(super) fn new() -> Self {
        Self { copied: vec![0; BUFFER_LEN], ..Self::default() }
    }

    /// The frame's head, the whole frame, and the offload work that is not done yet.
    pub fn parts(&mut self) -> (&[u8], Payload<'_>, Offload) {
        let copy = self.copied.get(HEADER_LEN..self.len).unwrap_or_default();
        let head = &copy[..copy.len().min(HEAD_LEN)];
        if self.places.is_empty() {
            return (head, copy.into(), self.offload);
        }
        let mut skip = HEADER_LEN;
        let slices = self.places.iter().filter_map(|&piece| {
            let slice = self.regions.slice(piece)?;
            let skipped = skip.min(slice.len());
            skip -= skipped;
            slice.offset(skipped).ok()
        });
        match self.pieces.source(slices) {
            Some(source) => (head, Payload(source), self.offload),
            None => (&[], (&[][..]).into(), self.offload),
        }
    }

    /// The whole frame, if all of it is copied.
    pub(super) fn bytes(&self) -> &[u8] {
        self.copied.get(HEADER_LEN..self.len).unwrap_or_default()
    }
}

/// Receives frames from the transmit queues in turn.
#[derive(Debug, Default)]
pub(super) struct FromGuest {
    /// The queue to serve next.
    queue: usize,
    /// The queue and chain of the frame that is being handled.
    held: Option<(usize, u16)>,
}

impl FromGuest {
    /// Puts the next frame into `frame`. If `whole`, all bytes are copied. Returns whether there was a frame.
    pub(super) fn next(&mut self, device: &mut Device, frame: &mut Frame, whole: bool) -> bool {
        self.release(device);
        for _ in 0..QUEUES / 2 {
            let index = 2 * self.queue + 1;
            if device.queues[index].pending {
                match self.next_of(device, index, frame, whole) {
                    Ok(true) => return true,
                    Ok(false) => {}
                    Err(broken) => device.queues[index].fail(index, broken),
                }
            }
            self.queue = (self.queue + 1) % (QUEUES / 2);
        }
        false
    }

    /// Gives the chain of the handled frame back.
    pub(super) fn release(&mut self, device: &mut Device) {
        let Some((index, head)) = self.held.take() else { return };
        let Device { queues, memory, .. } = device;
        let Some(queue) = queues.get_mut(index) else { return };
        let Some(ring) = &mut queue.ring else { return };
        match ring.give_back(memory, head, 0) {
            Ok(()) => queue.publish_batch(index, memory),
            Err(broken) => queue.fail(index, broken),
        }
    }

    /// Returns the next frame of a queue. A frame that is too long, has no valid header, or is on a disabled queue
    /// becomes an empty frame. The engine drops and counts an empty frame. If a loop skipped such frames here, the
    /// guest could make the loop arbitrarily long.
    fn next_of(
        &mut self,
        device: &mut Device,
        index: usize,
        frame: &mut Frame,
        whole: bool,
    ) -> Result<bool, Broken> {
        let enabled = device.is_enabled(index);
        let Device { queues, memory, .. } = device;
        let queue = &mut queues[index];
        let Some(ring) = &mut queue.ring else {
            queue.pending = false;
            return Ok(false);
        };
        if ring.waiting()? == 0 && ring.request_kicks(memory, 0)? == 0 {
            queue.pending = false;
            return Ok(false);
        }
        frame.places.clear();
        let chain = ring.peek(memory, 0, Direction::FromDriver, &mut frame.places)?;
        let len = usize::try_from(chain.len).unwrap_or(usize::MAX);
        let fits = len <= BUFFER_LEN;
        let whole = whole || len <= HEADER_LEN + HEAD_LEN || frame.places.len() > MAX_PIECES;
        let wanted = if whole { BUFFER_LEN } else { HEADER_LEN + HEAD_LEN };
        frame.len = 0;
        for &piece in frame.places.iter().filter(|_| fits) {
            let place = frame.copied.get_mut(frame.len..wanted).unwrap_or_default();
            frame.len += memory.slice(piece).ok_or(Broken::Buffer)?.copy_to(place);
        }
        ring.advance(1);
        self.held = Some((index, chain.head));
        let header = frame.copied.first_chunk().filter(|_| enabled && frame.len >= HEADER_LEN);
        let Some(offload) = header.and_then(Offload::from_virtio) else {
            frame.len = 0;
            frame.places.clear();
            frame.offload = Offload::default();
            return Ok(true);
        };
        if whole {
            frame.places.clear();
        } else if !Arc::ptr_eq(&frame.regions, memory.regions()) {
            frame.regions = Arc::clone(memory.regions());
        }
        frame.offload = offload;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
