//! Bytes from the guest that the socket has not accepted yet: the socket was full, or the bytes come after a hole.
//!
//! Usually, a connection has no queue: bytes that are in order are sent directly from the frame to the socket. A queue
//! is created for the first byte that the socket can't accept now, and removed after its last byte was sent.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};

use wire::{
    payload::Payload,
    tcp::{SackBlocks, Seq},
};

use crate::{
    quota::allocation,
    ranges::{Range, Ranges},
};

/// Maximum number of bytes from the first ready byte to the end of the window, in a queue.
pub(super) const MAX_LEN: usize = 1 << 20;
/// Length of a chunk in bytes.
pub(super) const CHUNK_LEN: usize = 16 * 1024;
/// Maximum number of free chunks that are kept. Other free chunks are returned to the allocator.
const SPARE_CHUNKS: usize = 64;
/// Maximum number of separate ranges in a queue. A segment that would add another range is dropped.
const MAX_RANGES: usize = 128;

/// Memory of a chunk, in bytes, with that of a queue. A queue has at least one chunk. It has a list of chunks for the whole
/// window, and a list of ranges, which may be twice as long as needed and are copied when they grow.
pub(super) const CHUNK_BYTES: usize = allocation(CHUNK_LEN)
    + allocation(size_of::<ReceiveQueue>())
    + 2 * allocation(2 * MAX_CHUNKS * size_of::<Option<Chunk>>())
    + allocation(MAX_RANGES * size_of::<Range>());
/// Maximum number of chunks of a queue: the window that is offered, and a chunk that it does not begin with.
const MAX_CHUNKS: usize = MAX_LEN / CHUNK_LEN + 1;

type Chunk = Box<[u8]>;

/// Chunks shared by all queues, bounded in number.
#[derive(Debug)]
pub(super) struct ChunkPool {
    spare: Vec<Chunk>,
    lent: usize,
    limit: usize,
}

impl ChunkPool {
    /// A pool whose chunks in use have at most `bytes` bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self { spare: Vec::new(), lent: 0, limit: bytes / CHUNK_LEN }
    }

    /// Memory of all chunks in use, in bytes.
    pub(super) fn lent_bytes(&self) -> usize {
        self.lent * CHUNK_LEN
    }

    fn take(&mut self) -> Option<Chunk> {
        if self.lent >= self.limit {
            return None;
        }
        let chunk = self.spare.pop().or_else(new_chunk)?;
        self.lent += 1;
        Some(chunk)
    }

    fn give(&mut self, chunk: Chunk) {
        self.lent -= 1;
        if self.spare.len() < SPARE_CHUNKS && self.spare.try_reserve(1).is_ok() {
            self.spare.push(chunk);
        }
    }
}

/// A chunk from the allocator. None if there is no memory.
fn new_chunk() -> Option<Chunk> {
    let mut chunk = Vec::new();
    chunk.try_reserve_exact(CHUNK_LEN).ok()?;
    chunk.resize(CHUNK_LEN, 0);
    Some(chunk.into_boxed_slice())
}

/// The queued bytes of one connection, by sequence number.
#[derive(Debug)]
pub(super) struct ReceiveQueue {
    /// Sequence number of the next byte for the socket. No byte before it is queued.
    base: Seq,
    /// Offset of `base` in the first chunk.
    head: usize,
    chunks: VecDeque<Option<Chunk>>,
    /// The ranges of queued bytes.
    held: Ranges,
    /// The sequence number of a byte in the range that grew last. This range is reported first (RFC 2018 §4).
    newest: Seq,
}

impl ReceiveQueue {
    pub(super) fn new(base: Seq) -> Self {
        Self { base, head: 0, chunks: VecDeque::new(), held: Ranges::new(MAX_RANGES), newest: base }
    }

    /// Sequence number of the next byte for the socket.
    pub(super) fn base(&self) -> Seq {
        self.base
    }

    /// Whether no bytes are queued.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Number of bytes from the base up to the first hole. The socket can accept these bytes next.
    pub(super) fn ready_len(&self) -> u32 {
        match self.held.as_slice().first() {
            Some(&(start, end)) if start == self.base => end - start,
            _ => 0,
        }
    }

    /// Queues `data`. It starts at `seq`, which must not be before the base. Returns how many bytes from the start of
    /// `data` were queued: all, unless there is no memory or no room for another range.
    pub(super) fn insert(&mut self, seq: Seq, data: impl Payload, pool: &mut ChunkPool) -> usize {
        debug_assert!(!seq.before(self.base));
        if data.is_empty() || !self.held.reserve(seq, seq + data.len() as u32) {
            return 0;
        }
        let mut stored = 0;
        while stored < data.len() {
            let at = self.head + (seq - self.base) as usize + stored;
            let (index, within) = (at / CHUNK_LEN, at % CHUNK_LEN);
            let more = (index + 1).saturating_sub(self.chunks.len());
            if self.chunks.try_reserve(more).is_err() {
                break;
            }
            self.chunks.resize_with(self.chunks.len() + more, || None);
            if self.chunks[index].is_none() {
                self.chunks[index] = pool.take();
            }
            let Some(chunk) = &mut self.chunks[index] else { break };
            let len = (CHUNK_LEN - within).min(data.len() - stored);
            data.slice(stored..stored + len).copy_to(&mut chunk[within..within + len]);
            stored += len;
        }
        if stored > 0 {
            self.newest = seq;
            self.held.insert(seq, seq + stored as u32);
        }
        stored
    }

    /// Writes references to the first `len` ready bytes to `pieces`, as far as they fit. Returns the number of pieces.
    pub(super) fn ready_pieces<'a>(&'a self, len: usize, pieces: &mut [&'a [u8]]) -> usize {
        let mut left = len.min(self.ready_len() as usize);
        let mut within = self.head;
        let mut count = 0;
        for (piece, chunk) in pieces.iter_mut().zip(&self.chunks) {
            let Some(chunk) = chunk else { break };
            if left == 0 {
                break;
            }
            let len = left.min(CHUNK_LEN - within);
            *piece = &chunk[within..within + len];
            left -= len;
            within = 0;
            count += 1;
        }
        count
    }

    /// Notes that the socket has accepted all bytes before `base`, from the queue or directly from a frame.
    pub(super) fn advance(&mut self, base: Seq, pool: &mut ChunkPool) {
        self.head += (base - self.base) as usize;
        self.base = base;
        self.held.remove_before(base);
        let passed = (self.head / CHUNK_LEN).min(self.chunks.len());
        self.head -= passed * CHUNK_LEN;
        self.chunks.drain(..passed).flatten().for_each(|chunk| pool.give(chunk));
        if self.held.is_empty() {
            self.head = 0;
            self.chunks.drain(..).flatten().for_each(|chunk| pool.give(chunk));
        }
    }

    /// The ranges after the first hole, the newest first (RFC 2018 §4).
    pub(super) fn sack_blocks(&self) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        let after_hole = || self.held.as_slice().iter().filter(|&&(start, _)| start != self.base);
        let is_newest = |&(start, end): &Range| !self.newest.before(start) && self.newest.before(end);
        for &(start, end) in after_hole().filter(|range| is_newest(range)) {
            blocks.push(start, end);
        }
        for &(start, end) in after_hole().filter(|range| !is_newest(range)) {
            if !blocks.push(start, end) {
                break;
            }
        }
        blocks
    }

    /// Returns all chunks to the pool.
    pub(super) fn release(&mut self, pool: &mut ChunkPool) {
        self.chunks.drain(..).flatten().for_each(|chunk| pool.give(chunk));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn stream(from: u32, len: usize) -> Vec<u8> {
        (0..len).map(|i| ((from as usize + i) * 31 % 251) as u8).collect()
    }

    fn drain(queue: &mut ReceiveQueue, at_most: usize, pool: &mut ChunkPool) -> Vec<u8> {
        let mut pieces = [&[][..]; 32];
        let count = queue.ready_pieces(usize::MAX, &mut pieces);
        let mut bytes: Vec<u8> = pieces[..count].concat();
        bytes.truncate(at_most);
        let base = queue.base + bytes.len() as u32;
        queue.advance(base, pool);
        bytes
    }

    #[test]
    fn blocks_are_reported_newest_first() {
        let mut pool = ChunkPool::new(1 << 20);
        let mut queue = ReceiveQueue::new(Seq(100));
        queue.insert(Seq(200), &[0; 10][..], &mut pool);
        queue.insert(Seq(400), &[0; 10][..], &mut pool);
        queue.insert(Seq(300), &[0; 10][..], &mut pool);
        let expected = [(Seq(300), Seq(310)), (Seq(200), Seq(210)), (Seq(400), Seq(410))];
        assert_eq!(queue.sack_blocks().as_slice(), expected);
        queue.insert(Seq(100), &[0; 100][..], &mut pool);
        assert_eq!(queue.ready_len(), 110);
        assert_eq!(queue.sack_blocks().as_slice(), [(Seq(300), Seq(310)), (Seq(400), Seq(410))]);
    }

    #[test]
    fn with_an_exhausted_pool_a_part_is_stored() {
        let mut pool = ChunkPool::new(2 * CHUNK_LEN);
        let mut queue = ReceiveQueue::new(Seq(0));
        assert_eq!(queue.insert(Seq(0), &*vec![1; 3 * CHUNK_LEN], &mut pool), 2 * CHUNK_LEN);
        queue.release(&mut pool);
        assert_eq!(pool.lent, 0);
    }

    proptest! {
        /// If segments arrive in any order, overlap, or are duplicated, each byte of the stream is returned once, in
        /// order.
        #[test]
        fn any_order_gives_the_stream(origin: u32, mut cuts in prop::collection::vec((0usize..60_000, 1usize..30_000), 1..30), takes in prop::collection::vec(1usize..50_000, 1..40)) {
            let total = 70_000;
            let data = stream(0, total);
            let mut pool = ChunkPool::new(1 << 20);
            let mut queue = ReceiveQueue::new(Seq(origin));
            cuts.push((0, total)); // at the end, all bytes were sent
            let mut out: Vec<u8> = Vec::new();
            let mut takes = takes.into_iter().cycle();
            for (start, len) in cuts {
                let end = (start + len).min(total);
                let start = start.max(out.len());
                if start < end {
                    queue.insert(Seq(origin) + start as u32, &data[start..end], &mut pool);
                }
                out.extend(drain(&mut queue, takes.next().unwrap(), &mut pool));
            }
            while queue.ready_len() > 0 {
                out.extend(drain(&mut queue, takes.next().unwrap(), &mut pool));
            }
            prop_assert!(out == data);
            prop_assert!(queue.is_empty());
            prop_assert_eq!(pool.lent, 0);
        }
    }
}
