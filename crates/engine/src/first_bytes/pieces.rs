//! A stream whose pieces arrive in any order, and more than once.

use alloc::vec::Vec;

use wire::tcp::Seq;

use super::Why;
use crate::ranges::Ranges;

/// Maximum number of separate pieces. Clients cut a ClientHello into 31 pieces at most.
const MAX_PIECES: usize = 256;

/// The bytes of a stream that have arrived.
#[derive(Debug)]
pub(super) struct Pieces {
    /// All bytes up to the end of the last piece. Holes contain zeros.
    bytes: Vec<u8>,
    held: Ranges,
}

impl Pieces {
    pub(super) const fn new() -> Self {
        Self { bytes: Vec::new(), held: Ranges::new(MAX_PIECES) }
    }

    /// Length of the stream up to the end of the last piece, in bytes. The stream uses this much memory.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Allocated memory, in bytes.
    pub(super) const fn memory(&self) -> usize {
        self.bytes.capacity() + self.held.bytes()
    }

    /// The bytes before the first hole.
    pub(super) fn start(&self) -> &[u8] {
        match self.held.as_slice().first() {
            Some(&(Seq(0), end)) => &self.bytes[..index(end)],
            _ => &[],
        }
    }

    /// Adds a piece, if the stream then has at most `most` bytes. `most` is at most [`super::MAX_LEN`].
    ///
    /// # Errors
    /// [`Why::TooLong`] if the stream would exceed `most` bytes or has too many pieces. [`Why::Contradiction`] if the
    /// piece differs from bytes that have arrived: the engine can't know which of the two the server will use.
    pub(super) fn insert(&mut self, offset: u64, piece: &[u8], most: usize) -> Result<(), Why> {
        let start = usize::try_from(offset).map_err(|_| Why::TooLong)?;
        let end = start.checked_add(piece.len()).filter(|&end| end <= most).ok_or(Why::TooLong)?;
        for &(held_start, held_end) in self.held.as_slice() {
            let (from, to) = (start.max(index(held_start)), end.min(index(held_end)));
            if from < to && self.bytes[from..to] != piece[from - start..to - start] {
                return Err(Why::Contradiction);
            }
        }
        if piece.is_empty() {
            return Ok(());
        }
        if !self.held.takes(seq(start), seq(end)) {
            return Err(Why::TooLong);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[start..end].copy_from_slice(piece);
        self.held.insert(seq(start), seq(end));
        Ok(())
    }
}

/// Indexes are far below the range in which sequence numbers wrap.
const fn seq(index: usize) -> Seq {
    Seq(index as u32)
}

const fn index(seq: Seq) -> usize {
    seq.0 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert(pieces: &mut Pieces, offset: u64, piece: &[u8]) -> Result<(), Why> {
        pieces.insert(offset, piece, 1000)
    }

    #[test]
    fn pieces_in_any_order_become_the_stream() {
        let mut pieces = Pieces::new();
        for (offset, piece) in [(4, &b"efg"[..]), (0, b"ab"), (2, b""), (1, b"bcde")] {
            assert_eq!(insert(&mut pieces, offset, piece), Ok(()));
        }
        assert_eq!((pieces.start(), pieces.len()), (&b"abcdefg"[..], 7));
    }

    #[test]
    fn nothing_after_a_hole_counts() {
        let mut pieces = Pieces::new();
        assert_eq!(insert(&mut pieces, 1, b"b"), Ok(()));
        assert_eq!(pieces.start(), b"");
        assert_eq!(insert(&mut pieces, 3, b"d"), Ok(()));
        assert_eq!(insert(&mut pieces, 0, b"a"), Ok(()));
        assert_eq!(pieces.start(), b"ab");
    }

    #[test]
    fn overlaps_have_to_agree() {
        let mut pieces = Pieces::new();
        assert_eq!(insert(&mut pieces, 2, b"cde"), Ok(()));
        assert_eq!(insert(&mut pieces, 0, b"abcd"), Ok(()));
        for (offset, piece) in [(0, &b"abcdeX"[..4]), (4, b"ef")] {
            assert_eq!(insert(&mut pieces, offset, piece), Ok(()));
        }
        for (offset, piece) in [(0, &b"X"[..]), (3, b"dX"), (5, b"Xghi"), (1, b"bcdeX")] {
            assert_eq!(insert(&mut pieces, offset, piece), Err(Why::Contradiction), "{offset}");
        }
        assert_eq!(pieces.start(), b"abcdef");
    }

    #[test]
    fn length_and_number_are_bounded() {
        let mut pieces = Pieces::new();
        for (offset, piece) in [(1000, &b"x"[..]), (999, b"xx"), (u64::MAX, b"x"), (1 << 62, b"x")] {
            assert_eq!(insert(&mut pieces, offset, piece), Err(Why::TooLong), "{offset}");
        }
        for number in 0..MAX_PIECES as u64 {
            assert_eq!(insert(&mut pieces, 2 * number, b"x"), Ok(()));
        }
        assert_eq!(insert(&mut pieces, 600, b"x"), Err(Why::TooLong));
        assert_eq!(insert(&mut pieces, 1, b"x"), Ok(()));
        assert_eq!(insert(&mut pieces, 600, b"x"), Ok(()));
    }
}
