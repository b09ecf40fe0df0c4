//! A table that stores each string once, and counts its uses.

use alloc::{boxed::Box, vec::Vec};
use core::hash::BuildHasher;

use hashbrown::HashTable;

use super::grow;
use crate::flow::HashKey;

/// A string in [`Strings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StringId(u32);

#[derive(Debug)]
struct Slot {
    text: Box<str>,
    /// Number of uses. Zero: the slot is free.
    uses: u32,
}

#[derive(Debug)]
pub(super) struct Strings {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_text: HashTable<u32>,
    hash_key: HashKey,
    /// Expected maximum number of strings.
    most: usize,
}

impl Strings {
    /// A table for `most` strings. Beyond this number, it allocates memory in small steps.
    pub(super) const fn new(most: usize, hash_key: HashKey) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_text: HashTable::new(), hash_key, most }
    }

    /// Counts one more use of a string, and returns its ID. The string is stored until each use was ended by
    /// [`release`](Self::release).
    pub(super) fn take(&mut self, text: &str) -> StringId {
        if let Some(id) = self.find(text) {
            self.take_again(id);
            return id;
        }
        let slot = Slot { text: text.into(), uses: 1 };
        let index = match self.free.pop() {
            Some(index) => {
                if let Some(place) = self.slots.get_mut(index as usize) {
                    *place = slot;
                }
                index
            }
            None => {
                grow(&mut self.slots, self.most);
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        let (slots, hash_key) = (&self.slots, &self.hash_key);
        self.by_text.insert_unique(hash_key.hash_one(text), index, |&index| {
            slots.get(index as usize).map_or(0, |slot| hash_key.hash_one(&*slot.text))
        });
        StringId(index)
    }

    /// Counts one more use of a stored string.
    pub(super) fn take_again(&mut self, id: StringId) {
        if let Some(slot) = self.slots.get_mut(id.0 as usize) {
            slot.uses += 1;
        }
    }

    pub(super) fn release(&mut self, id: StringId) {
        let Some(slot) = self.slots.get_mut(id.0 as usize) else { return };
        slot.uses = slot.uses.saturating_sub(1);
        if slot.uses > 0 {
            return;
        }
        let text = core::mem::take(&mut slot.text);
        if let Ok(found) = self.by_text.find_entry(self.hash_key.hash_one(&*text), |&index| index == id.0) {
            found.remove();
        }
        self.free.push(id.0);
    }

    pub(super) fn find(&self, text: &str) -> Option<StringId> {
        let same = |&index: &u32| self.slots.get(index as usize).is_some_and(|slot| &*slot.text == text);
        self.by_text.find(self.hash_key.hash_one(text), same).map(|&index| StringId(index))
    }

    pub(super) fn text(&self, id: StringId) -> &str {
        self.slots.get(id.0 as usize).map_or("", |slot| &slot.text)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_text.len()
    }

    /// Allocated memory, in bytes.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let texts: usize = self.slots.iter().map(|slot| super::tests::allocation(slot.text.len())).sum();
        self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u32>()
            + self.by_text.allocation_size()
            + texts
    }
}
