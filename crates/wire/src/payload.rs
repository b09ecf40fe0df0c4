//! Payload: bytes that are forwarded without parsing.

use core::ops::Range;

use crate::checksum::Sum;

/// Bytes that can be counted, divided and copied, but not borrowed as a slice.
///
/// The bytes may be in the memory of a guest, which can change them at any time. So a Rust reference to the bytes would
/// be undefined behaviour, and a value could change between its check and its use. For memory of this process, `&[u8]`
/// implements this trait.
pub trait Payload: Copy {
    /// Number of bytes.
    fn len(self) -> usize;

    /// The bytes in `range`. The part of `range` past the end is ignored.
    #[must_use]
    fn slice(self, range: Range<usize>) -> Self;

    /// Copies the first bytes to `buffer`, as many as exist and fit; returns their number.
    fn copy_to(self, buffer: &mut [u8]) -> usize;

    /// Whether there are no bytes.
    fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The sum of the bytes, for a checksum. Each byte of shared memory is read only once.
    #[must_use]
    fn sum(self) -> Sum {
        sum_of_copies(self)
    }
}

/// The sum of bytes that cannot be read in place. The bytes are copied in parts, each byte once.
pub fn sum_of_copies(payload: impl Payload) -> Sum {
    // The length is even, so that the sums of the parts can be added.
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
