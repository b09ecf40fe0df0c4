//! Frames from the guest's transmit queues.

use wire::ethernet;
use wire::frame::MAX_LEN;
use wire::offload::{Offload, VIRTIO_NET_HEADER_LEN as HEADER_LEN};

use super::device::{Device, QUEUES};
use super::memory::Piece;
use super::ring::{Broken, Direction};

/// Room for one frame with its header.
pub(crate) const BUFFER_LEN: usize = HEADER_LEN + MAX_LEN;
/// Chains given back before the driver is shown them.
const BATCH: u16 = 32;

/// Takes frames from the transmit queues in turn.
#[derive(Debug, Default)]
pub(super) struct Transmitted {
    /// The queue whose turn it is.
    queue: usize,
    pieces: Vec<Piece>,
    /// Frames that were none, or that the guest has no leave to send.
    pub(super) dropped: u64,
}

impl Transmitted {
    /// Copies the next frame to `buffer`, which has [`BUFFER_LEN`] bytes: where it ends, and what was left undone in it.
    /// It starts behind the header.
    pub(super) fn next(&mut self, device: &mut Device, buffer: &mut [u8]) -> Option<(usize, Offload)> {
        for _ in 0..QUEUES / 2 {
            let index = 2 * self.queue + 1;
            if device.queues[index].pending {
                match self.next_of(device, index, buffer) {
                    Ok(Some(frame)) => return Some(frame),
                    Ok(None) => {}
                    Err(broken) => device.queues[index].give_up(index, broken),
                }
            }
            self.queue = (self.queue + 1) % (QUEUES / 2);
        }
        None
    }

    fn next_of(
        &mut self,
        device: &mut Device,
        index: usize,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, Offload)>, Broken> {
        let enabled = device.is_enabled(index);
        let Device { queues, memory, .. } = device;
        let queue = &mut queues[index];
        let Some(ring) = &mut queue.ring else {
            queue.pending = false;
            return Ok(None);
        };
        loop {
            if ring.waiting()? == 0 && ring.ask_for_kicks(memory, 0)? == 0 {
                queue.pending = false;
                return Ok(None);
            }
            self.pieces.clear();
            let chain = ring.peek(memory, 0, Direction::FromDriver, &mut self.pieces)?;
            let mut end = 0;
            if chain.len <= buffer.len() as u64 {
                for &piece in &self.pieces {
                    let part = buffer.get_mut(end..end + piece.len as usize).unwrap_or_default();
                    end += memory.slice(piece).ok_or(Broken::Buffer)?.copy_to(part);
                }
            }
            ring.advance(1);
            ring.give_back(memory, chain.head, 0)?;
            let offload = buffer.first_chunk().and_then(Offload::from_virtio);
            let whole = end >= HEADER_LEN + ethernet::HEADER_LEN;
            if let (true, true, Some(offload)) = (enabled, whole, offload) {
                if ring.unpublished() >= BATCH {
                    queue.publish(index, memory);
                }
                return Ok(Some((end, offload)));
            }
            self.dropped += 1;
        }
    }
}
