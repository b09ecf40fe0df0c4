//! Small messages: bytes that were taken out of the socket, and are kept until the guest has acknowledged them.
//!
//! To leave bytes in the socket until they are acknowledged takes two system calls for each message: one peeks, one
//! discards. This is right for bulk, since the kernel's queue is the retransmission buffer. For a small message, the
//! second call costs more than a copy of the bytes. The buffers are few, and shared by all sockets: a socket that gets
//! none peeks.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io;
use rustix::net::{RecvFlags, recv};

use crate::errno::retry;

/// Length of a buffer, in bytes. Shorter messages are kept.
pub(super) const LEN: usize = 2048;
/// Maximum number of buffers. Together they are at most 512 KiB.
const MOST_BUFFERS: usize = 256;

type Buffer = Box<[u8; LEN]>;

/// The buffers of all sockets.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<Buffer>>,
    made: Cell<usize>,
}

impl Buffers {
    pub(super) fn take(&self) -> Option<Buffer> {
        if let Some(buffer) = self.free.borrow_mut().pop() {
            return Some(buffer);
        }
        let made = self.made.get();
        (made < MOST_BUFFERS).then(|| {
            self.made.set(made + 1);
            Box::new([0; LEN])
        })
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        self.free.borrow_mut().push(buffer);
    }
}

/// The oldest unacknowledged bytes of one socket's stream, as far as they are no longer in the socket.
#[derive(Debug)]
pub(super) struct Kept {
    buffers: Rc<Buffers>,
    /// A buffer, and the place of the bytes in it. The place is never empty.
    held: Option<(Buffer, Range<usize>)>,
}

impl Kept {
    pub(super) const fn new(buffers: Rc<Buffers>) -> Self {
        Self { buffers, held: None }
    }

    /// Number of kept bytes.
    pub(super) fn len(&self) -> usize {
        self.held.as_ref().map_or(0, |(_, place)| place.len())
    }

    /// The kept bytes from `offset` on.
    pub(super) fn from(&self, offset: usize) -> &[u8] {
        let bytes = self.held.as_ref().and_then(|(buffer, place)| buffer.get(place.clone()));
        bytes.and_then(|bytes| bytes.get(offset..)).unwrap_or_default()
    }

    /// Takes at most `most` bytes out of the socket, and keeps them after the bytes that are kept already. Returns the
    /// number of bytes, zero at the end of the stream, and whether the number was limited by the room for them. None
    /// if there is no room.
    pub(super) fn receive(&mut self, socket: impl AsFd, most: usize) -> Option<io::Result<(usize, bool)>> {
        let (mut buffer, place) = match self.held.take() {
            Some(held) => held,
            None => (self.buffers.take()?, 0..0),
        };
        let end = LEN.min(place.end.saturating_add(most));
        let received = match &mut buffer[place.end..end] {
            [] => None,
            room => Some(retry(|| recv(&socket, &mut *room, RecvFlags::DONTWAIT).map(|(len, _)| len))),
        };
        let len = received.and_then(Result::ok).unwrap_or(0);
        self.hold(buffer, place.start..place.end + len);
        received.map(|received| received.map(|len| (len, len == end - place.end)))
    }

    /// Drops the oldest `len` bytes, or all if there are fewer. Returns how many were dropped.
    pub(super) fn discard(&mut self, len: usize) -> usize {
        let Some((buffer, place)) = self.held.take() else { return 0 };
        let len = len.min(place.len());
        self.hold(buffer, place.start + len..place.end);
        len
    }

    fn hold(&mut self, buffer: Buffer, place: Range<usize>) {
        if place.is_empty() {
            self.buffers.give_back(buffer);
        } else {
            self.held = Some((buffer, place));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.discard(usize::MAX);
    }
}
