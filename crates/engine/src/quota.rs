//! Amounts of memory that the members of one part share. A member that needs more than is left is refused, and the
//! other parts are not affected (docs/design/memory.md).

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};

/// An amount of memory. Clones share it.
#[derive(Clone, Debug)]
pub struct Quota(Arc<Amount>);

#[derive(Debug)]
struct Amount {
    /// Maximum number of bytes.
    most: usize,
    /// Number of bytes in use.
    used: AtomicUsize,
}

impl Quota {
    /// An amount of `most` bytes, of which nothing is used.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Amount { most, used: AtomicUsize::new(0) }))
    }

    /// Number of bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes` bytes. None if fewer are left.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Part> {
        let mut part = self.part();
        part.resize(bytes).then_some(part)
    }

    /// A part without bytes.
    #[must_use]
    pub fn part(&self) -> Part {
        Part { of: Some(self.0.clone()), bytes: 0 }
    }
}

/// The bytes that one member uses. They are returned when the part is dropped, by any thread.
///
/// A clone has no bytes, since a copy is not counted. Parts are no property of their members: all are equal.
#[derive(Debug, Default)]
pub struct Part {
    /// The amount. None: nothing is counted.
    of: Option<Arc<Amount>>,
    bytes: usize,
}

impl Part {
    /// Nothing is counted.
    pub const NONE: Self = Self { of: None, bytes: 0 };

    /// Changes the number of bytes. Returns false if there are not enough. Then the number stays the same.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        let Some(Amount { most, used }) = self.of.as_deref() else { return true };
        // Only the thread of the engine takes bytes. Others can only return some meanwhile.
        match bytes.checked_sub(self.bytes) {
            Some(more) if used.load(Ordering::Relaxed).saturating_add(more) > *most => return false,
            Some(more) => used.fetch_add(more, Ordering::Relaxed),
            None => used.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
        true
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(Amount { used, .. }) = self.of.as_deref() {
            used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Clone for Part {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Part {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Part {}

/// What the allocator uses for an allocation of `bytes` bytes: its own word, and the rest of a unit.
#[must_use]
pub const fn allocation(bytes: usize) -> usize {
    const WORD: usize = size_of::<usize>();
    const LEAST: usize = 4 * WORD;
    let whole = (bytes + WORD).next_multiple_of(2 * WORD);
    if whole < LEAST { LEAST } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_returns_what_it_took() {
        let quota = Quota::new(100);
        let mut first = quota.take(60).unwrap();
        assert!(quota.take(41).is_none());
        let second = quota.take(40).unwrap();
        assert!(!first.resize(61), "nothing is left");
        assert_eq!(quota.used(), 100);
        assert!(first.resize(10));
        drop(second);
        assert_eq!(quota.used(), 10);
        assert!(!first.resize(usize::MAX));
        drop(first.clone());
        assert_eq!(quota.used(), 10, "a clone has nothing to return");
        drop(first);
        assert_eq!(quota.used(), 0);
        assert!(Part::default().resize(usize::MAX), "not counted");
    }

    #[test]
    fn allocations_are_rounded_up() {
        assert_eq!([0, 24, 25, 40, 41].map(allocation), [32, 32, 48, 48, 64]);
    }
}
