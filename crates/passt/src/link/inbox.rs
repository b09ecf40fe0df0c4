//! Where a link receives frames.
//!
//! While a frame is handled, replies are sent by the same link. So the frame can't borrow from the link: the link lends
//! the buffer that holds it, and gets it back when the frame is dropped.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

use wire::offload::Offload;

use crate::memory::Payload;

/// A buffer that belongs to a link, and is lent while a frame in it is handled.
pub(super) struct Inbox<T>(Rc<Cell<T>>);

/// What an [`Inbox`] has lent. Dropped, it returns there.
pub struct Lent<T: Default> {
    value: T,
    home: Rc<Cell<T>>,
}

impl<T: Default> Inbox<T> {
    /// An inbox with this buffer.
    pub(super) fn new(value: T) -> Self {
        Self(Rc::new(Cell::new(value)))
    }

    /// Lends the buffer; none while the frame before is still held, which no caller does.
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

/// A buffer in our own memory, and where in it the frame is.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// All of the buffer.
    pub(super) bytes: Vec<u8>,
    /// Where the frame is.
    pub(super) frame: Range<usize>,
    /// What was left undone in it.
    pub(super) offload: Offload,
}

impl Buffer {
    /// A buffer of `len` bytes, with no frame in it.
    pub(super) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len], ..Self::default() }
    }

    /// The frame's head, all of it, and what was left undone in it.
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
