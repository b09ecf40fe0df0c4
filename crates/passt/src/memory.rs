//! Payload of frames, in the program's own buffers or in the guest's memory, as lists of pieces for system calls.

use std::ops::Range;

use engine::memory::{self, Memory};
use sys::iov;
use wire::checksum::Sum;
use wire::payload::sum_of_copies;

/// The memory type of this program: lists of pieces that system calls read from and write to.
#[derive(Clone, Copy, Debug)]
pub struct Vectored;

impl Memory for Vectored {
    type Payload<'a> = Payload<'a>;
    type Room<'a> = Room<'a>;

    fn part<'a>(room: &'a mut Room<'_>, len: usize) -> Room<'a> {
        Room(room.0.first(len))
    }

    fn filled<'a>(room: &'a Room<'_>, len: usize) -> Payload<'a> {
        Payload(room.0.filled(len))
    }
}

/// Payload of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a>(pub iov::Source<'a>);

impl wire::payload::Payload for Payload<'_> {
    fn len(self) -> usize {
        self.0.len()
    }

    fn slice(self, range: Range<usize>) -> Self {
        Self(self.0.slice(range))
    }

    fn copy_to(self, buffer: &mut [u8]) -> usize {
        self.0.copy_to(buffer)
    }

    fn sum(self) -> Sum {
        self.0.own().map_or_else(|| sum_of_copies(self), |bytes| Sum::new().bytes(bytes))
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(bytes.into())
    }
}

/// Room for the payload of a frame.
#[derive(Debug)]
pub struct Room<'a>(pub iov::Room<'a>);

impl memory::Room for Room<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.0.put(at, bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Room<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;
    use wire::payload::Payload as _;

    use super::*;

    /// The checksum of a list of pieces equals the checksum of the contiguous bytes, for all lengths of the pieces.
    #[test]
    fn pieces_have_the_sum_of_the_whole() {
        let mut bytes: Vec<u8> = (0..5000).map(|byte| (byte * byte % 251) as u8).collect();
        let whole = bytes.clone();
        let own = |range| Payload::from(&whole[..]).slice(range).sum().finish();
        for lens in [&[5000][..], &[1, 2, 3, 1017, 1024, 1, 2952], &[1023, 3977], &[4999, 1]] {
            let mut rest = &mut bytes[..];
            let slices = lens.iter().map(|&len| {
                let (piece, behind) = std::mem::take(&mut rest).split_at_mut(len);
                rest = behind;
                VolatileSlice::from(piece)
            });
            let mut pieces = iov::Pieces::default();
            let payload = Payload(pieces.source(slices.collect::<Vec<_>>()).unwrap());
            for start in [0, 1, 2, 5, 1000, 1023, 4998, 5000] {
                for end in [start, start + 1, 2047, 2048, 4999, 5000] {
                    assert_eq!(payload.slice(start..end).sum().finish(), own(start..end), "{start}..{end}");
                }
            }
        }
    }
}
