//! Which names the guest was given an address for, and which names stand for others: the memory of rules by name.
//!
//! An entry lives until its time to live is over, at least [`MIN_LIFE`], and as long as flows hold it. Nothing here has
//! a timer: what has expired is not found, and makes room first.

mod strings;

#[cfg(test)]
mod tests;

use alloc::{string::String, vec::Vec};
use core::{hash::BuildHasher, net::IpAddr, time::Duration};

use hashbrown::HashTable;

use crate::{
    flow::HashKey,
    idle::{Chain, Links},
    policy::Lookup,
    timer::Instant,
};
use strings::{StringId, Strings};

/// Shortest life of an entry: clients use an address for longer than its time to live says.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// Longest life of an entry, in seconds: a week, as for resolvers (RFC 8767 §4).
const MAX_LIFE: u32 = 604_800;
/// Longest name, in bytes (RFC 1035 §2.3.4: 255 on the wire). Longer ones have escaped bytes, and match no rule.
const MAX_NAME: usize = 253;

/// Limits on memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of names: those of each address, those of each target, and the targets themselves. A name counts
    /// as often as it is used. 10,000 take less than 4 MiB, even if they are as long as names can be.
    pub total: usize,
    /// Maximum number of names of one address, and of one target. The one that expires first makes room.
    pub each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 10_000, each: 64 }
    }
}

/// What the guest learns from the answer to a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Addresses of the name that was asked for.
    pub addresses: Vec<Address>,
    /// Names that the name that was asked for leads to: of aliases and of services. Each is there once.
    pub targets: Vec<Target>,
}

/// An address, of the name that was asked for or of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// For how long it may be used, in seconds: the shortest time to live on the way to it.
    pub ttl: u32,
}

/// A name that the name that was asked for leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// In the form of [`wire::dns::write_text`].
    pub name: String,
    /// For how long it may be asked for, in seconds: the shortest time to live on the way to it.
    pub ttl: u32,
}

/// The addresses and targets with their names. All names are in the form of [`wire::dns::write_text`].
#[derive(Debug)]
pub struct Names {
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    hash_key: HashKey,
    strings: Strings,
    /// The slots of entries without holds, the one that was learned longest ago first.
    unheld: Chain,
    links: Links,
    /// How many names there are, counted as [`Limits::total`].
    total: usize,
    limits: Limits,
    /// No name of an entry without holds expires before this second.
    next_expiry: u32,
    dropped: u64,
}

/// What has names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An address; IPv4 addresses as IPv4-mapped ones.
    Address([u8; 16]),
    /// A name that an alias or a service leads to.
    Target(StringId),
}

impl Key {
    /// How many names it is itself.
    const fn names(self) -> usize {
        match self {
            Self::Address(_) => 0,
            Self::Target(_) => 1,
        }
    }
}

#[derive(Debug)]
struct Entry {
    key: Key,
    /// At least one.
    names: Vec<Given>,
    holds: u32,
}

/// A name that an entry was given.
#[derive(Clone, Copy, Debug)]
struct Given {
    name: StringId,
    /// The second at which it expires.
    until: u32,
}

/// The addresses with the names that have not expired at a time, for
/// [`Policy::verdict`](crate::policy::Policy::verdict).
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    names: &'a Names,
    now: Instant,
}

impl Lookup for At<'_> {
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.names.lookup(address, self.now)
    }
}

/// Keeps an address and its names until it is [released](Names::release). Each flow to the address has one of its own.
#[must_use = "it has to be released when the flow ends"]
#[derive(Debug, PartialEq, Eq)]
pub struct Hold {
    slot: u32,
}

impl Entry {
    fn lives(&self, given: &Given, second: u32) -> bool {
        self.holds > 0 || given.until > second
    }
}

impl Names {
    /// A table without names. `hash_key` must be random.
    #[must_use]
    pub fn new(limits: Limits, hash_key: [u8; 16]) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashTable::new(),
            hash_key: HashKey(hash_key),
            strings: Strings::new(limits.total, HashKey(hash_key)),
            unheld: Chain::default(),
            links: Links::default(),
            total: 0,
            limits,
            next_expiry: u32::MAX,
            dropped: 0,
        }
    }

    /// The guest was told that `name`, for which it has asked, has this address for `ttl` seconds. Call this before the
    /// answer goes to the guest. False: there is no room, since flows hold all entries, or the name is too long.
    pub fn learn(&mut self, address: IpAddr, name: &str, ttl: u32, now: Instant) -> bool {
        self.add(address_key(address), name, ttl, now)
    }

    /// The names for which the guest was given this address.
    pub fn lookup(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        self.names_of(self.find(&address_key(address)), now)
    }

    /// The names of all addresses at this time, in the form that the policy asks for.
    #[must_use]
    pub const fn at(&self, now: Instant) -> At<'_> {
        At { names: self, now }
    }

    /// Notes that `name` leads to `target` by an alias or a service record. A rule allows `name`, or `name` was itself noted
    /// as such a target. For `ttl` seconds the guest may ask for `target`, which is treated like `name`.
    /// The result is that of [`learn`](Self::learn).
    pub fn learn_target(&mut self, target: &str, name: &str, ttl: u32, now: Instant) -> bool {
        if target.len() > MAX_NAME {
            self.dropped += 1;
            return false;
        }
        let id = self.strings.take(target);
        let learned = self.add(Key::Target(id), name, ttl, now);
        // The entry has taken the string once more, if there is one.
        self.strings.release(id);
        learned
    }

    /// The names for which `target` stands: an address of `target` is to be learned for each of them, and a target of
    /// `target` as well.
    pub fn lookup_target(&self, target: &str, now: Instant) -> impl Iterator<Item = &str> {
        let slot = self.strings.find(target).and_then(|id| self.find(&Key::Target(id)));
        self.names_of(slot, now)
    }

    /// A flow to this address begins. None if the guest was not given the address, or that has expired: the flow was
    /// not allowed by a name.
    pub fn hold(&mut self, address: IpAddr, now: Instant) -> Option<Hold> {
        let slot = self.find(&address_key(address))?;
        self.expire(slot, second(now));
        let entry = self.slots.get_mut(slot as usize)?.as_mut()?;
        if entry.holds == 0 {
            self.links.unlink(&mut self.unheld, slot);
        }
        entry.holds += 1;
        Some(Hold { slot })
    }

    /// A flow ends.
    pub fn release(&mut self, hold: Hold) {
        let Hold { slot } = hold;
        let Some(Some(entry)) = self.slots.get_mut(slot as usize) else { return };
        entry.holds = entry.holds.saturating_sub(1);
        if entry.holds == 0 {
            let first = entry.names.iter().map(|given| given.until).min();
            self.next_expiry = self.next_expiry.min(first.unwrap_or(u32::MAX));
            self.links.push(&mut self.unheld, slot);
        }
    }

    /// How many names there are, expired ones included, counted as [`Limits::total`].
    #[must_use]
    pub const fn len(&self) -> usize {
        self.total
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many names were not learned.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    fn names_of(&self, slot: Option<u32>, now: Instant) -> impl Iterator<Item = &str> {
        let second = second(now);
        let entry = slot.and_then(|slot| self.entry(slot));
        entry.into_iter().flat_map(move |entry| {
            let live = entry.names.iter().filter(move |given| entry.lives(given, second));
            live.map(|given| self.strings.text(given.name))
        })
    }

    fn add(&mut self, key: Key, name: &str, ttl: u32, now: Instant) -> bool {
        let added = name.len() <= MAX_NAME && self.try_add(key, name, ttl, second(now));
        self.dropped += u64::from(!added);
        added
    }

    fn try_add(&mut self, key: Key, name: &str, ttl: u32, second: u32) -> bool {
        // One more, since the second has begun.
        let life = ttl.clamp(MIN_LIFE.as_secs() as u32, MAX_LIFE) + 1;
        let until = second.saturating_add(life);
        let found = self.find(&key);
        if let Some(slot) = found {
            self.renew(slot);
        }
        if let Some(given) = found.and_then(|slot| self.given(slot, name)) {
            given.until = given.until.max(until);
            return true;
        }
        let full = found.is_some_and(|slot| self.names_in(slot) >= self.limits.each);
        let more = if found.is_some() { 1 } else { 1 + key.names() };
        if full || !self.make_room(more, found, second) {
            // A name of the same entry makes room, if there is one.
            let Some(slot) = found else { return false };
            self.forget_first(slot);
        }
        // To make room may have ended the entry.
        let Some(slot) = self.find(&key).or_else(|| self.insert(key)) else { return false };
        let Some(Some(entry)) = self.slots.get_mut(slot as usize) else { return false };
        if entry.names.is_empty() {
            // Most entries have one name for ever.
            entry.names.reserve_exact(1);
        }
        entry.names.push(Given { name: self.strings.take(name), until });
        self.total += 1;
        self.next_expiry = self.next_expiry.min(until);
        true
    }

    /// The entry was learned again: others make room before it.
    fn renew(&mut self, slot: u32) {
        if self.entry(slot).is_some_and(|entry| entry.holds == 0) {
            self.links.move_to_end(&mut self.unheld, slot);
        }
    }

    /// Makes room for some more names: all that has expired goes, then entries without holds, those that were learned
    /// longest ago first, but not `except`. False if that is not enough.
    fn make_room(&mut self, more: usize, except: Option<u32>, second: u32) -> bool {
        let Some(most) = self.limits.total.checked_sub(more) else { return false };
        if self.total > most && second >= self.next_expiry {
            self.expire_all(second);
        }
        while self.total > most
            && let Some(oldest) = self.unheld.first().filter(|&oldest| Some(oldest) != except)
        {
            self.remove(oldest);
        }
        self.total <= most
    }

    fn expire_all(&mut self, second: u32) {
        for slot in 0..self.slots.len() as u32 {
            self.expire(slot, second);
        }
        let unheld = self.slots.iter().flatten().filter(|entry| entry.holds == 0);
        let untils = unheld.flat_map(|entry| &entry.names).map(|given| given.until);
        self.next_expiry = untils.min().unwrap_or(u32::MAX);
    }

    /// Removes names that have expired, and the entry with the last one.
    fn expire(&mut self, slot: u32, second: u32) {
        self.retain(slot, |entry, given| entry.lives(given, second));
    }

    /// Removes the name that expires first.
    fn forget_first(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot) else { return };
        let first = entry.names.iter().min_by_key(|given| given.until).map(|given| given.name);
        self.retain(slot, |_, given| Some(given.name) != first);
    }

    /// Removes all other names of an entry, and the entry with the last one, unless flows hold it.
    fn retain(&mut self, slot: u32, keep: impl Fn(&Entry, &Given) -> bool) {
        let mut index = 0;
        while let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::as_mut)
            && let Some(&given) = entry.names.get(index)
        {
            if keep(entry, &given) {
                index += 1;
                continue;
            }
            entry.names.swap_remove(index);
            self.strings.release(given.name);
            self.total -= 1;
        }
        if index == 0 && self.entry(slot).is_some_and(|entry| entry.holds == 0) {
            self.remove(slot);
        }
    }

    fn insert(&mut self, key: Key) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                grow(&mut self.slots, self.limits.total);
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).ok()?
            }
        };
        self.total += key.names();
        if let Key::Target(id) = key {
            self.strings.take_again(id);
        }
        *self.slots.get_mut(slot as usize)? = Some(Entry { key, names: Vec::new(), holds: 0 });
        let (slots, hash_key) = (&self.slots, &self.hash_key);
        self.by_key.insert_unique(hash_key.hash_one(key), slot, |&slot| {
            slots.get(slot as usize).and_then(Option::as_ref).map_or(0, |entry| hash_key.hash_one(entry.key))
        });
        self.links.push(&mut self.unheld, slot);
        Some(slot)
    }

    /// Removes an entry without holds.
    fn remove(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        if let Ok(found) = self.by_key.find_entry(self.hash_key.hash_one(entry.key), |&at| at == slot) {
            found.remove();
        }
        self.links.unlink(&mut self.unheld, slot);
        self.free.push(slot);
        self.total -= entry.names.len() + entry.key.names();
        for given in entry.names {
            self.strings.release(given.name);
        }
        if let Key::Target(id) = entry.key {
            self.strings.release(id);
        }
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let same = |&slot: &u32| self.entry(slot).is_some_and(|entry| entry.key == *key);
        self.by_key.find(self.hash_key.hash_one(key), same).copied()
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn names_in(&self, slot: u32) -> usize {
        self.entry(slot).map_or(0, |entry| entry.names.len())
    }

    /// The name among those of an entry.
    fn given(&mut self, slot: u32, name: &str) -> Option<&mut Given> {
        let id = self.strings.find(name)?;
        self.slots.get_mut(slot as usize)?.as_mut()?.names.iter_mut().find(|given| given.name == id)
    }
}

/// Makes room for one more: doubles a list, but not beyond the most that it is meant for.
fn grow<T>(list: &mut Vec<T>, most: usize) {
    const LEAST: usize = 4;
    if list.len() == list.capacity() {
        let room = most.saturating_sub(list.len());
        list.reserve_exact(list.len().min(room).max(LEAST));
    }
}

const fn address_key(address: IpAddr) -> Key {
    Key::Address(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    })
}

/// The clock's second, rounded down.
fn second(now: Instant) -> u32 {
    u32::try_from(now.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}
