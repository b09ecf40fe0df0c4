//! Frames to the guest's receive queues.

use engine::link::Full;
use wire::ethernet::{self, MIN_FRAME_LEN, ethertype};
use wire::offload::{Offload, VIRTIO_NET_HEADER_LEN as HEADER_LEN};
use wire::segment::{Segments, complete_checksum};

use super::device::Device;
use super::features::Features;
use super::memory::{Memory, Piece};
use super::ring::{Broken, Chain, Direction, Ring};

/// Chains given back before the driver is shown them.
const BATCH: u16 = 32;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS_AT: usize = 10;

/// Puts frames into the receive queues.
#[derive(Debug)]
pub(super) struct Receiver {
    /// A header and a frame.
    slot: Vec<u8>,
    /// One segment with its header, where the guest wants no super-frames.
    segment: Vec<u8>,
    pieces: Vec<Piece>,
    chains: Vec<Chain>,
    /// Frames that no buffer of the guest can hold.
    pub(super) dropped: u64,
}

/// What became of a frame.
enum Delivery {
    Done,
    /// The buffers there are, so many, are not enough.
    Short(u16),
    /// The driver's buffers can't hold it.
    TooLong,
}

impl Receiver {
    pub(super) fn new() -> Self {
        let (slot, segment) = (vec![0; super::from_guest::BUFFER_LEN], Vec::new());
        Self { slot, segment, pieces: Vec::new(), chains: Vec::new(), dropped: 0 }
    }

    /// A slot for a frame of `len` bytes. None if the guest has no buffers at all.
    pub(super) fn reserve(&mut self, device: &mut Device, len: usize) -> Option<&mut [u8]> {
        if device.has_buffers() { self.slot(len) } else { None }
    }

    /// A slot for a frame of `len` bytes.
    pub(super) fn slot(&mut self, len: usize) -> Option<&mut [u8]> {
        self.slot.get_mut(HEADER_LEN..HEADER_LEN + len)
    }

    /// The frame of `len` bytes in the slot.
    pub(super) fn frame(&self, len: usize) -> &[u8] {
        self.slot.get(HEADER_LEN..HEADER_LEN + len).unwrap_or_default()
    }

    /// Sends the first `len` bytes of the slot.
    pub(super) fn commit(&mut self, device: &mut Device, len: usize, offload: &Offload) -> Result<(), Full> {
        let mut frame = std::mem::take(&mut self.slot);
        let bytes = frame.get_mut(..HEADER_LEN + len).unwrap_or_default();
        let result = self.send(device, bytes, offload);
        self.slot = frame;
        result
    }

    /// Sends a frame that has room for a header in front.
    fn send(&mut self, device: &mut Device, bytes: &mut [u8], offload: &Offload) -> Result<(), Full> {
        let Some((header, frame)) = bytes.split_at_mut_checked(HEADER_LEN) else { return Ok(()) };
        let queue = queue_for(device, frame).ok_or(Full)?;
        if device.features.takes(offload, is_ipv6(frame)) {
            header.copy_from_slice(&offload.to_virtio());
            return self.deliver(device, queue, bytes);
        }
        let Some(mut segments) = Segments::new(frame, offload) else {
            complete_checksum(frame, offload);
            header.copy_from_slice(&Offload::default().to_virtio());
            return self.deliver(device, queue, bytes);
        };
        let mut segment = std::mem::take(&mut self.segment);
        segment.resize(super::from_guest::BUFFER_LEN, 0);
        let mut sent = false;
        let mut result = Ok(());
        while let Some(len) = segments.write_next(&mut segment[HEADER_LEN..]) {
            segment[..HEADER_LEN].copy_from_slice(&Offload::default().to_virtio());
            result = self.deliver(device, queue, &mut segment[..HEADER_LEN + len]);
            if result.is_err() {
                break;
            }
            sent = true;
        }
        self.segment = segment;
        // What is missing will be retransmitted, or was a datagram.
        if sent { Ok(()) } else { result }
    }

    fn deliver(&mut self, device: &mut Device, index: usize, bytes: &mut [u8]) -> Result<(), Full> {
        let merges = device.features.contains(Features::MRG_RXBUF);
        let Device { queues, memory, .. } = device;
        let queue = &mut queues[index];
        let Some(ring) = &mut queue.ring else { return Err(Full) };
        match self.write(ring, memory, merges, bytes) {
            Ok(Delivery::Done) => {
                if ring.unpublished() >= BATCH {
                    queue.publish(index, memory);
                }
                Ok(())
            }
            Ok(Delivery::Short(waiting)) => {
                queue.short = waiting;
                Err(Full)
            }
            Ok(Delivery::TooLong) => {
                self.dropped += 1;
                Ok(())
            }
            Err(broken) => {
                queue.give_up(index, broken);
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
        bytes: &mut [u8],
    ) -> Result<Delivery, Broken> {
        let needed = bytes.len().max(HEADER_LEN + MIN_FRAME_LEN) as u64;
        let waiting = ring.waiting()?;
        self.pieces.clear();
        self.chains.clear();
        let mut room = 0;
        while room < needed {
            let taken = self.chains.len() as u16;
            if taken == waiting {
                return Ok(if ring.is_whole(waiting) { Delivery::TooLong } else { Delivery::Short(waiting) });
            }
            let chain = ring.peek(memory, taken, Direction::ToDriver, &mut self.pieces)?;
            room += chain.len;
            self.chains.push(chain);
            if !merges && room < needed {
                return Ok(Delivery::TooLong);
            }
        }
        if let Some(at) = bytes.get_mut(NUM_BUFFERS_AT..HEADER_LEN) {
            at.copy_from_slice(&(self.chains.len() as u16).to_le_bytes());
        }
        scatter(memory, &self.pieces, bytes, needed as usize)?;
        let mut left = needed;
        for chain in &self.chains {
            let len = chain.len.min(left);
            ring.give_back(memory, chain.head, len as u32)?;
            left -= len;
        }
        ring.advance(self.chains.len() as u16);
        Ok(Delivery::Done)
    }
}

/// Copies `bytes` to `pieces`, and zeros behind them up to `len` bytes.
fn scatter(memory: &Memory, pieces: &[Piece], mut bytes: &[u8], len: usize) -> Result<(), Broken> {
    let mut left = len;
    for &piece in pieces {
        let slice = memory.slice(piece).ok_or(Broken::Buffer)?;
        let (now, later) = bytes.split_at(bytes.len().min(slice.len()));
        slice.copy_from(now);
        let zeros = (slice.len() - now.len()).min(left - now.len()).min(MIN_FRAME_LEN);
        if let (true, Ok(rest)) = (zeros > 0, slice.offset(now.len())) {
            rest.copy_from(&[0; MIN_FRAME_LEN][..zeros]);
        }
        memory.mark(piece);
        bytes = later;
        left -= now.len() + zeros;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// The queue that a frame goes to: all of a flow to the same one, so that they stay in order.
fn queue_for(device: &Device, frame: &[u8]) -> Option<usize> {
    let turn = match device.open_queues().count() {
        0 => return None,
        1 => 0,
        several => spread(frame) as usize % several,
    };
    device.open_queues().nth(turn).map(|(index, _)| index)
}

/// A number that all frames of a flow have in common.
fn spread(frame: &[u8]) -> u32 {
    // Addresses, and ports where there are no options.
    let flow = if is_ipv6(frame) { frame.get(22..58) } else { frame.get(26..38) };
    let word = |word: &[u8]| word.iter().fold(0_u32, |sum, &byte| sum << 8 | u32::from(byte));
    let sum = flow.unwrap_or_default().chunks(4).fold(0_u32, |sum, bytes| sum.rotate_left(5) ^ word(bytes));
    // Fibonacci hashing: the highest bits depend on all others.
    sum.wrapping_mul(0x9e37_79b9) >> 16
}

fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(ethernet::HEADER_LEN - 2..ethernet::HEADER_LEN) == Some(&ethertype::IPV6.to_be_bytes())
}
