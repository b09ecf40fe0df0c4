//! The slots of a table by a key of their flows.

use core::hash::{BuildHasher, Hash};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

/// The slots of a table by a key of their flows. Keys are not stored: each method gets a function that returns the key of the
/// flow in a slot.
#[derive(Debug)]
pub(crate) struct Index {
    slots: HashTable<u32>,
    hash_key: HashKey,
}

impl Index {
    /// Memory of a place that has been [reserved](Self::reserve), for each flow, in bytes: a slot and a byte in up to 32/7 as
    /// many places.
    pub(crate) const BYTES: usize = ((size_of::<u32>() + 1) * 32).div_ceil(7);

    /// An empty index. `hash_key` must be random.
    pub(crate) const fn new(hash_key: [u8; 16]) -> Self {
        Self { slots: HashTable::new(), hash_key: HashKey(hash_key) }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Reserves memory for one more flow. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve_next<K: Hash>(&mut self, key_at: impl Fn(u32) -> Option<K>) -> bool {
        self.slots.try_reserve(1, rehash(&self.hash_key, key_at)).is_ok()
    }

    /// Reserves memory for `flows` flows. A table that is at most half full is cleaned in place when flows come and go. A fuller
    /// one would grow, and need memory for both tables meanwhile. Returns false if there is no memory.
    #[must_use]
    pub(crate) fn reserve<K: Hash>(&mut self, flows: usize, key_at: impl Fn(u32) -> Option<K>) -> bool {
        self.slots.try_reserve(2 * (flows + 1), rehash(&self.hash_key, key_at)).is_ok()
    }

    /// Adds a slot, whose key is in no other slot. If memory was not reserved, an allocation may fail, which ends the process.
    pub(crate) fn insert<K: Hash>(&mut self, key: &K, slot: u32, key_at: impl Fn(u32) -> Option<K>) {
        self.slots.insert_unique(self.hash_key.hash_one(key), slot, rehash(&self.hash_key, key_at));
    }

    /// Removes a slot.
    pub(crate) fn remove<K: Hash>(&mut self, key: &K, slot: u32) {
        if let Ok(entry) = self.slots.find_entry(self.hash_key.hash_one(key), |&index| index == slot) {
            entry.remove();
        }
    }

    /// The slot with this key.
    pub(crate) fn find<K: Hash + Eq>(&self, key: &K, key_at: impl Fn(u32) -> Option<K>) -> Option<u32> {
        let is_same = |&slot: &u32| key_at(slot).is_some_and(|other| other == *key);
        self.slots.find(self.hash_key.hash_one(key), is_same).copied()
    }

    /// Allocated memory, in bytes.
    #[cfg(test)]
    pub(crate) fn memory(&self) -> usize {
        self.slots.allocation_size()
    }
}

/// The hash of the key in a slot.
fn rehash<K: Hash>(hash_key: &HashKey, key_at: impl Fn(u32) -> Option<K>) -> impl Fn(&u32) -> u64 {
    move |&slot| key_at(slot).map_or(0, |key| hash_key.hash_one(key))
}

/// The key of the hash function (SipHash), for tables whose keys the guest or the network chooses.
#[derive(Clone, Debug)]
pub(crate) struct HashKey(pub(crate) [u8; 16]);

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }
}
