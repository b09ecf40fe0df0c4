//! Frames from the guest's transmit queues.
//!
//! The header and the head of a frame are copied once, and only the copy is read. The payload is sent from the guest's
//! memory to a socket. Then the chain is given back to the driver.
//!
//! Adjacent segments of a guest without segmentation offload become a train ([`wire::train`]): the headers are those of
//! the train, in the copy, and the payload is a list of the segments' places. So one system call sends it.

use std::sync::Arc;

use sys::iov::{MAX_PIECES, Pieces};
use wire::frame::{HEAD_LEN, MAX_LEN};
use wire::offload::{Offload, VIRTIO_NET_HEADER_LEN as HEADER_LEN};
use wire::train::Train;

use super::device::{Device, QUEUES};
use super::memory::{Memory, Piece, Regions};
use super::ring::{Broken, Chain, Direction, Ring};
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
    /// Header and head of the segment that may be joined next.
    ahead: Vec<u8>,
    /// The places of that segment.
    places_ahead: Vec<Piece>,
    pieces_ahead: Pieces,
}

impl Frame {
    /// Creates room for a frame.
    pub(super) fn new() -> Self {
        let ahead = vec![0; HEADER_LEN + HEAD_LEN];
        Self { copied: vec![0; BUFFER_LEN], ahead, ..Self::default() }
    }

    /// The frame's head, the whole frame, and the offload work that is not done yet.
    pub fn parts(&mut self) -> (&[u8], Payload<'_>, Offload) {
        let copy = self.copied.get(HEADER_LEN..self.len).unwrap_or_default();
        let head = &copy[..copy.len().min(HEAD_LEN)];
        if self.places.is_empty() {
            return (head, copy.into(), self.offload);
        }
        match source(&mut self.pieces, &self.regions, &self.places) {
            Some(whole) => (head, whole, self.offload),
            None => (&[], (&[][..]).into(), self.offload),
        }
    }

    /// The whole frame, if all of it is copied.
    pub(super) fn bytes(&self) -> &[u8] {
        self.copied.get(HEADER_LEN..self.len).unwrap_or_default()
    }
}

/// The frame at `places`, without its header. None if there are too many pieces, or the places are not in the table.
fn source<'a>(pieces: &'a mut Pieces, regions: &'a Regions, places: &[Piece]) -> Option<Payload<'a>> {
    let mut skip = HEADER_LEN;
    let slices = places.iter().filter_map(|&piece| {
        let slice = regions.slice(piece)?;
        let skipped = skip.min(slice.len());
        skip -= skipped;
        slice.offset(skipped).ok()
    });
    pieces.source(slices).map(Payload)
}

/// Copies the first bytes at `places` to `buffer`, as many as exist and fit. Returns their number.
fn copy(memory: &Memory, places: &[Piece], buffer: &mut [u8]) -> Result<usize, Broken> {
    let mut len = 0;
    for &piece in places {
        len += memory.slice(piece).ok_or(Broken::Buffer)?.copy_to(buffer.get_mut(len..).unwrap_or_default());
    }
    Ok(len)
}

/// Receives frames from the transmit queues in turn.
#[derive(Debug, Default)]
pub(super) struct FromGuest {
    /// The queue to serve next.
    queue: usize,
    /// The queue of the frame that is being handled.
    held_queue: usize,
    /// The chains of that frame: several, if it is a train.
    held: Vec<u16>,
}

impl FromGuest {
    /// Puts the next frame into `frame`. If `whole`, all bytes are copied. Returns the number of frames of the guest that
    /// it consists of: none, one, or those of a train.
    pub(super) fn next(&mut self, device: &mut Device, frame: &mut Frame, whole: bool) -> usize {
        self.release(device);
        for _ in 0..QUEUES / 2 {
            let index = 2 * self.queue + 1;
            if device.queues[index].pending {
                match self.next_of(device, index, frame, whole) {
                    Ok(true) => return self.held.len(),
                    Ok(false) => {}
                    Err(broken) => device.queues[index].fail(index, broken),
                }
            }
            self.queue = (self.queue + 1) % (QUEUES / 2);
        }
        0
    }

    /// Gives the chains of the handled frame back.
    pub(super) fn release(&mut self, device: &mut Device) {
        let index = self.held_queue;
        let Device { queues, memory, .. } = device;
        let Some(queue) = queues.get_mut(index) else { return };
        for head in self.held.drain(..) {
            // A front-end's message may have stopped the ring.
            let Some(ring) = &mut queue.ring else { continue };
            match ring.give_back(memory, head, 0) {
                Ok(()) => queue.publish_batch(index, memory),
                Err(broken) => queue.fail(index, broken),
            }
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
        let places = if fits { &frame.places[..] } else { &[] };
        frame.len = copy(memory, places, &mut frame.copied[..wanted])?;
        ring.advance(1);
        self.held_queue = index;
        self.held.push(chain.head);
        let header = frame.copied.first_chunk().filter(|_| enabled && frame.len >= HEADER_LEN);
        let Some(offload) = header.and_then(Offload::from_virtio) else {
            frame.len = 0;
            frame.places.clear();
            frame.offload = Offload::default();
            return Ok(true);
        };
        frame.offload = offload;
        if whole {
            frame.places.clear();
            return Ok(true);
        }
        if !Arc::ptr_eq(&frame.regions, memory.regions()) {
            frame.regions = Arc::clone(memory.regions());
        }
        self.join(ring, memory, frame);
        Ok(true)
    }

    /// Joins the segments that follow `frame` to it. A segment that can't be joined, or that is invalid, stays in the
    /// ring: it is the next frame.
    fn join(&mut self, ring: &mut Ring, memory: &Memory, frame: &mut Frame) {
        let Some(head) = frame.copied.get(HEADER_LEN..frame.len) else { return };
        let Some(first) = source(&mut frame.pieces, &frame.regions, &frame.places) else { return };
        let Some(mut train) = Train::begin(head, first, &frame.offload) else { return };
        // The checksums of all segments are verified here.
        frame.offload = Offload::VERIFIED;
        while ring.waiting().is_ok_and(|waiting| waiting > 0)
            && let Ok(Some(chain)) = next_segment(ring, memory, frame, &mut train)
        {
            ring.advance(1);
            self.held.push(chain.head);
        }
        if let Some(head) = frame.copied.get_mut(HEADER_LEN..frame.len) {
            train.finish(head);
        }
    }
}

/// Joins the next chain of the ring to the train in `frame`. None if it can't be joined.
fn next_segment(
    ring: &Ring,
    memory: &Memory,
    frame: &mut Frame,
    train: &mut Train,
) -> Result<Option<Chain>, Broken> {
    let Frame { copied, len, regions, places, ahead, places_ahead, pieces_ahead, .. } = frame;
    places_ahead.clear();
    let chain = ring.peek(memory, 0, Direction::FromDriver, places_ahead)?;
    if places.len() + places_ahead.len() > MAX_PIECES {
        return Ok(None);
    }
    let ahead_len = copy(memory, places_ahead, ahead)?;
    let header = ahead.get(..ahead_len).and_then(<[u8]>::split_first_chunk);
    let (Some(first), Some((header, head))) = (copied.get_mut(HEADER_LEN..*len), header) else {
        return Ok(None);
    };
    let joined = Offload::from_virtio(header).zip(source(pieces_ahead, regions, places_ahead));
    let Some(payload) = joined.and_then(|(offload, whole)| train.join(first, head, whole, &offload)) else {
        return Ok(None);
    };
    Piece::skip(places_ahead, (HEADER_LEN + payload.start) as u32);
    places.append(places_ahead);
    Ok(Some(chain))
}

#[cfg(test)]
mod tests;
