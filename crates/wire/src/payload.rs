//! Payload: bytes that are carried, but not looked at.

use core::ops::Range;

use crate::checksum::Sum;

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

    /// The sum of the bytes, for a checksum.
    #[must_use]
    fn sum(self) -> Sum {
        sum_of_copies(self)
    }
}

/// The sum of bytes that can't be read in place: parts of them are copied, each once.
pub fn sum_of_copies(payload: impl Payload) -> Sum {
    // Of even length, so that pieces add up.
    let mut buffer = [0; 1024];
    let (mut sum, mut at) = (Sum::new(), 0);
    while at < payload.len() {
        let len = payload.slice(at..at + buffer.len()).copy_to(&mut buffer);
        if len == 0 {
            break;
        }
        sum = sum.bytes(&buffer[..len]);
        at += len;
    }
    sum
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

    fn sum(self) -> Sum {
        Sum::new().bytes(self)
    }
}
