//! Where the payload of frames lies: in buffers of our own, or in a guest's memory, as lists of pieces for the kernel.

use std::ops::Range;

use engine::memory::{self, Memory};
use sys::iov;

/// Memory that system calls gather from and scatter to.
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
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.put(at, bytes);
    }
}

impl<'a> From<&'a mut [u8]> for Room<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self(bytes.into())
    }
}
