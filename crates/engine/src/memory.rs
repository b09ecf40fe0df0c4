//! The memory that holds payload: the program's own buffers, or memory that a guest may change at any moment.
//!
//! The engine does not read payload that it only forwards, so only the kernel copies such payload. If the engine must
//! read bytes, it copies them first.

use wire::payload::Payload;

/// A kind of memory. A link and the sockets of a host use the same kind.
pub trait Memory {
    /// The type of existing payload.
    type Payload<'a>: Payload + From<&'a [u8]>;
    /// The type of room for payload.
    type Room<'a>: Room + From<&'a mut [u8]>;

    /// The first `len` bytes of `room`, or all of `room` if it is shorter.
    fn part<'a>(room: &'a mut Self::Room<'_>, len: usize) -> Self::Room<'a>;

    /// The payload in the first `len` bytes of `room`.
    fn filled<'a>(room: &'a Self::Room<'_>, len: usize) -> Self::Payload<'a>;
}

/// Payload in memory of kind `M`.
pub type PayloadOf<'a, M> = <M as Memory>::Payload<'a>;

/// Room for payload in memory of kind `M`.
pub type RoomOf<'a, M> = <M as Memory>::Room<'a>;

/// Room for payload.
pub trait Room {
    /// Copies `bytes` to the room, `at` bytes after its start. Bytes that don't fit are left out. Returns how many were
    /// copied.
    fn put(&mut self, at: usize, bytes: &[u8]) -> usize;
}

/// Memory in the program's own buffers.
#[derive(Clone, Copy, Debug)]
pub struct Plain;

impl Memory for Plain {
    type Payload<'a> = &'a [u8];
    type Room<'a> = &'a mut [u8];

    fn part<'a>(room: &'a mut &mut [u8], len: usize) -> &'a mut [u8] {
        let len = len.min(room.len());
        &mut room[..len]
    }

    fn filled<'a>(room: &'a &mut [u8], len: usize) -> &'a [u8] {
        room.slice(0..len)
    }
}

impl Room for &mut [u8] {
    fn put(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.get_mut(at..).map_or(0, |room| bytes.copy_to(room))
    }
}
