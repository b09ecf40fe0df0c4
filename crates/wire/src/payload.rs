//! Payload: bytes that are carried, but not looked at.

use core::ops::Range;

/// Bytes in memory that others may change at any moment, such as a guest's, or in a buffer of ours. They can be counted,
/// divided and copied.
pub trait Payload: Copy {
    /// How many bytes there are.
    fn len(self) -> usize;

    /// The bytes of `range`, as far as there are any.
    #[must_use]
    fn slice(self, range: Range<usize>) -> Self;

    /// Copies the first bytes to `buffer`, as many as there are and fit; returns how many.
    fn copy_to(self, buffer: &mut [u8]) -> usize;

    /// Whether there is none.
    fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Payload for &[u8] {
    fn len(self) -> usize {
        <[u8]>::len(self)
    }

    fn slice(self, range: Range<usize>) -> Self {
        let end = range.end.min(self.len());
        &self[range.start.min(end)..end]
    }

    fn copy_to(self, buffer: &mut [u8]) -> usize {
        let len = self.len().min(buffer.len());
        buffer[..len].copy_from_slice(&self[..len]);
        len
    }
}
