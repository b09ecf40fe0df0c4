//! Payload: bytes that are forwarded, and not parsed.

use core::ops::Range;

use crate::checksum::Sum;

/// Bytes that can be counted, divided and copied, but not borrowed as a slice.
///
/// They may be in a guest's memory, which changes at any time: a Rust reference to it would be undefined behaviour, and
/// a value that was checked could be another when it is used. For memory of this process, `&[u8]` implements it.
pub trait Payload: Copy {
    /// Number of bytes.
    fn len(self) -> usize;

    /// The bytes of `range`, cut to those that exist.
    #[must_use]
    fn slice(self, range: Range<usize>) -> Self;

    /// Copies the first bytes to `buffer`, as many as exist and fit; returns their number.
    fn copy_to(self, buffer: &mut [u8]) -> usize;

    /// Whether there are no bytes.
    fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The sum of the bytes, for a checksum. Memory that others change is read once.
    #[must_use]
    fn sum(self) -> Sum {
        sum_of_copies(self)
    }
}

/// The sum of bytes that cannot be read in place: they are copied in parts, each once.
pub fn sum_of_copies(payload: impl Payload) -> Sum {
    // An even length, so that the sums of parts can be added.
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
