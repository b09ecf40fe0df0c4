//! Small messages: bytes that were taken out of the socket, and are kept until the guest has acknowledged them.
//!
//! To leave bytes in the socket until they are acknowledged takes two system calls for each message: one peeks, one
//! discards. This is right for bulk, since the kernel's queue is the retransmission buffer. For a small message, the
//! second call costs more than a copy of the bytes. The buffers are few, and shared by all sockets: a socket that gets
//! none peeks.

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::io;
use rustix::net::{RecvFlags, recv};

use super::Shared;
use crate::errno::retry;

/// Length of a buffer, in bytes. Shorter messages are kept.
pub(super) const LEN: usize = 2048;

/// Maximum number of buffers. Together they are at most 512 KiB.
const MOST_BUFFERS: usize = 256;

/// The memory of a buffer, and the place of the kept bytes in it.
#[derive(Debug)]
pub(super) struct Memory {
    start: u16,
    end: u16,
    bytes: [u8; LEN],
}

type Buffer = Box<Memory>;

impl Memory {
    /// The kept bytes.
    fn kept(&self) -> &[u8] {
        self.bytes.get(self.start.into()..self.end.into()).unwrap_or_default()
    }
}

/// The buffers of all sockets.
#[derive(Debug, Default)]
pub(super) struct Buffers {
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
            Box::new(Memory { start: 0, end: 0, bytes: [0; LEN] })
        })
    }

    pub(super) fn give_back(&self, mut buffer: Buffer) {
        (buffer.start, buffer.end) = (0, 0);
        self.free.borrow_mut().push(buffer);
    }
}

/// The oldest unacknowledged bytes of one socket's stream, as far as they are no longer in the socket.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) shared: Rc<Shared>,
    /// A buffer that is not empty.
    held: Option<Buffer>,
}

impl Kept {
    pub(super) const fn new(shared: Rc<Shared>) -> Self {
        Self { shared, held: None }
    }

    /// Number of kept bytes.
    pub(super) fn len(&self) -> usize {
        self.held.as_ref().map_or(0, |buffer| buffer.kept().len())
    }

    /// The kept bytes from `offset` on.
    pub(super) fn from(&self, offset: usize) -> &[u8] {
        self.held.as_ref().and_then(|buffer| buffer.kept().get(offset..)).unwrap_or_default()
    }

    /// Takes at most `most` bytes out of the socket, and keeps them after the bytes that are kept already. Returns the
    /// number of bytes, zero at the end of the stream, and whether the number was limited by the room for them. None
    /// if there is no room.
    pub(super) fn receive(&mut self, socket: impl AsFd, most: usize) -> Option<io::Result<(usize, bool)>> {
        let mut buffer = match self.held.take() {
            Some(buffer) => buffer,
            None => self.shared.buffers.take()?,
        };
        let room = &mut buffer.bytes[usize::from(buffer.end)..];
        let wanted = room.len().min(most);
        let received = match &mut room[..wanted] {
            [] => None,
            room => Some(retry(|| recv(&socket, &mut *room, RecvFlags::DONTWAIT).map(|(len, _)| len))),
        };
        let len = received.and_then(Result::ok).unwrap_or(0);
        buffer.end += len as u16;
        self.hold(buffer);
        received.map(|received| received.map(|len| (len, len == wanted)))
    }

    /// Drops the oldest `len` bytes, or all if there are fewer. Returns how many were dropped.
    pub(super) fn discard(&mut self, len: usize) -> usize {
        let Some(mut buffer) = self.held.take() else { return 0 };
        let len = len.min(buffer.kept().len());
        buffer.start += len as u16;
        self.hold(buffer);
        len
    }

    fn hold(&mut self, buffer: Buffer) {
        if buffer.kept().is_empty() {
            self.shared.buffers.give_back(buffer);
        } else {
            self.held = Some(buffer);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.discard(usize::MAX);
    }
}
