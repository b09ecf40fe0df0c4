//! The buffer in which a link receives frames.
//!
//! While a frame is handled, replies are sent over the same link. So the frame can't borrow from the link: the link
//! lends the buffer with the frame, and gets the buffer back when the frame is dropped.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

use wire::offload::Offload;

use crate::memory::Payload;

/// A buffer that belongs to a link. The buffer is lent while a frame in it is handled.
pub(super) struct Inbox<T>(Rc<Cell<T>>);

/// The buffer that an [`Inbox`] has lent. It returns to the inbox when this value is dropped.
pub struct Lent<T: Default> {
    value: T,
    home: Rc<Cell<T>>,
}

impl<T: Default> Inbox<T> {
    /// Creates an inbox with this buffer.
    pub(super) fn new(value: T) -> Self {
        Self(Rc::new(Cell::new(value)))
    }

    /// Lends the buffer. Returns `None` if the previous frame still exists. This does not happen, since callers drop
    /// each frame before they receive the next one.
    pub(super) fn lend(&mut self) -> Option<Lent<T>> {
        let value = Rc::get_mut(&mut self.0).map(|home| home.take());
        debug_assert!(value.is_some(), "a frame was received while the one before was handled");
        Some(Lent { value: value?, home: Rc::clone(&self.0) })
    }
}

impl<T: Default> Drop for Lent<T> {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.value));
    }
}

impl<T: Default> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Default> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// A buffer in our own memory, and the position of the frame in the buffer.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// All bytes of the buffer.
    pub(super) bytes: Vec<u8>,
    /// The position of the frame.
    pub(super) frame: Range<usize>,
    /// The offload work of the frame that is not done yet.
    pub(super) offload: Offload,
}

impl Buffer {
    /// Creates a buffer of `len` bytes, with no frame in it.
    pub(super) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], ..Self::default() }
    }

    /// The frame's head, the whole frame, and the offload work that is not done yet.
    pub(crate) fn parts(&self) -> (&[u8], Payload<'_>, Offload) {
        let bytes = self.bytes.get(self.frame.clone()).unwrap_or_default();
        (wire::frame::head(bytes), bytes.into(), self.offload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_comes_back_as_it_is() {
        let mut inbox = Inbox::new(Buffer::new(100));
        let mut lent = inbox.lend().unwrap();
        lent.bytes[7] = 7;
        lent.frame = 6..9;
        drop(lent);
        let lent = inbox.lend().unwrap();
        assert_eq!((lent.bytes.len(), lent.parts().0), (100, &[0, 7, 0][..]));
    }

    #[test]
    #[should_panic(expected = "while the one before was handled")]
    #[cfg(debug_assertions)]
    fn one_frame_at_a_time() {
        let mut inbox = Inbox::new(Buffer::new(1));
        let _first = inbox.lend();
        inbox.lend();
    }
}
