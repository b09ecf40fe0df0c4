//! Allocations that may fail. What can't be allocated is refused like anything else that exceeds a limit.

use alloc::{boxed::Box, collections::VecDeque, vec::Vec};
use core::ops::{Deref, DerefMut};

/// A box whose allocation may fail. The standard library has none, except for arrays.
#[derive(Debug)]
pub(crate) struct Boxed<T>(Box<[T; 1]>);

impl<T> Boxed<T> {
    /// Moves a value into a box. None if there is no memory.
    pub(crate) fn new(value: T) -> Option<Self> {
        let mut array = Vec::new();
        array.try_reserve_exact(1).ok()?;
        array.push(value);
        Some(Self(array.into_boxed_slice().try_into().ok()?))
    }
}

impl<T> Deref for Boxed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let [value] = &*self.0;
        value
    }
}

impl<T> DerefMut for Boxed<T> {
    fn deref_mut(&mut self) -> &mut T {
        let [value] = &mut *self.0;
        value
    }
}

/// A copy of `bytes`. None if there is no memory.
pub(crate) fn copied(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).ok()?;
    copy.extend_from_slice(bytes);
    Some(copy)
}

/// Lists of flows that need memory for each slot of a table, so that a flow can be added without an allocation.
pub(crate) fn reserve<T, const N: usize>(lists: [&mut VecDeque<T>; N], slots: usize) -> bool {
    lists.into_iter().all(|list| list.try_reserve(slots.saturating_sub(list.len())).is_ok())
}

/// Moves an empty list to the start of its memory. Otherwise the list would write to all of its memory as time passes, and
/// all pages would become resident, however short the list is.
pub(crate) fn rewind_if_empty<T>(list: &mut VecDeque<T>) {
    if list.is_empty() {
        list.clear();
    }
}

/// Like [`reserve`], but not for more slots than these.
pub(crate) fn reserve_exact<T, const N: usize>(lists: [&mut VecDeque<T>; N], slots: usize) -> bool {
    lists.into_iter().all(|list| list.try_reserve_exact(slots.saturating_sub(list.len())).is_ok())
}

/// Adds an entry to a list with [reserved](reserve) memory, in which each flow is at most once. If the list is full, it
/// has entries of flows that ended, which are removed first.
pub(crate) fn push<T>(list: &mut VecDeque<T>, entry: T, lives: impl Fn(&T) -> bool) {
    if list.len() == list.capacity() {
        list.retain(lives);
    }
    debug_assert!(list.len() < list.capacity(), "no memory is reserved");
    list.push_back(entry);
}
