//! The memory of rules by name: the names for which the guest was given an address, and the names to which other names
//! lead.
//!
//! A name expires after its time to live, but not before [`MIN_LIFE`], and not while flows hold its entry. There are no
//! timers: expired names are not found, and are the first to be removed when the table is full.

mod strings;

#[cfg(test)]
mod tests;

use alloc::{string::String, vec::Vec};
use core::{hash::BuildHasher, net::IpAddr, time::Duration};

use hashbrown::HashTable;
use wire::domain::MAX_DOTTED_LEN;

use crate::{
    flow::HashKey,
    idle::{Chain, Links},
    policy::Lookup,
    timer::Instant,
};
use strings::{StringId, Strings};

/// Minimum life of a name. Clients use an address for longer than its time to live.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// Maximum life of a name, in seconds: a week, as in resolvers (RFC 8767 §4).
const MAX_LIFE: u32 = 604_800;

/// Limits on memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of names: those of each address, those of each target, and the targets themselves. A name counts
    /// once for each use. 10,000 names take less than 4 MiB, even if all have the maximum length.
    pub total: usize,
    /// Maximum number of names of one address, and of one target. If there are more, the name that expires first is
    /// removed.
    pub each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 10_000, each: 64 }
    }
}

impl Limits {
    /// Memory of a name of the maximum length, in bytes.
    const BYTES: usize = 420;

    /// Limits for `bytes` bytes of memory, which are not above the usual ones.
    #[must_use]
    pub fn within(bytes: usize) -> Self {
        let usual = Self::default();
        Self { total: (bytes / Self::BYTES).min(usual.total), ..usual }
    }

    /// Memory at these limits, in bytes.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.total * Self::BYTES
    }
}

/// The addresses and names in the answer to a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Addresses of the name in the question, and of the targets.
    pub addresses: Vec<Address>,
    /// The targets of aliases and services to which the name in the question leads, without duplicates.
    pub targets: Vec<Target>,
}

/// An address of the name in the question, or of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// How long the address may be used, in seconds: the shortest time to live in the chain of records that leads to
    /// it.
    pub ttl: u32,
}

/// A name to which the name in the question leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name, in the form of [`wire::dns::write_text`].
    pub name: String,
    /// How long the name may be queried, in seconds: the shortest time to live in the chain of records that leads to
    /// it.
    pub ttl: u32,
}

/// An address and its names, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The address.
    pub address: IpAddr,
    /// The names, each with the number of seconds for which it is still valid. Zero: it is valid until no flow holds the
    /// address.
    pub names: Vec<(String, u32)>,
    /// Number of flows that hold the address.
    pub flows: u32,
}

/// The addresses and targets with their names. All names are in the form of [`wire::dns::write_text`].
#[derive(Debug)]
pub struct Names {
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    hash_key: HashKey,
    strings: Strings,
    /// The slots of entries without holds, in the order in which they were last learned.
    unheld: Chain,
    links: Links,
    /// Number of names, counted as in [`Limits::total`].
    total: usize,
    limits: Limits,
    /// No name of an entry without holds expires before this second.
    next_expiry: u32,
    dropped: u64,
}

/// The key of an entry: the address or target to which names lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An address. An IPv4 address is stored as an IPv4-mapped one.
    Address([u8; 16]),
    /// The target of an alias or a service.
    Target(StringId),
}

impl Key {
    /// Number of names that the key itself counts as in [`Limits::total`].
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
    /// The names that lead to the key. At least one.
    names: Vec<Given>,
    holds: u32,
}

/// A name of an entry.
#[derive(Clone, Copy, Debug)]
struct Given {
    name: StringId,
    /// The second at which the name expires.
    until: u32,
}

/// A view of the names of all addresses at one time, without expired names.
/// [`Policy::verdict`](crate::policy::Policy::verdict) uses it.
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

/// Keeps an address and its names until the hold is [released](Names::release). Each flow to the address has its own
/// hold.
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

    /// Notes an answer to the guest: `name` has this address for `ttl` seconds. Must be called before the answer is
    /// sent to the guest. Returns false if the name is too long, or if there is no room since flows hold all entries.
    pub fn learn(&mut self, address: IpAddr, name: &str, ttl: u32, now: Instant) -> bool {
        self.add(address_key(address), name, ttl, now)
    }

    /// The names for which the guest was given this address.
    pub fn lookup(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = &str> {
        self.names_of(self.find(&address_key(address)), now)
    }

    /// The names of all addresses at this time, in the form that the policy needs.
    #[must_use]
    pub const fn at(&self, now: Instant) -> At<'_> {
        At { names: self, now }
    }

    /// Notes that `name` leads to `target` by an alias or a service record. There must be a rule that allows `name`, or
    /// `name` must be a noted target. For `ttl` seconds, the guest may ask for `target`, which is treated like `name`.
    /// The result is as in [`learn`](Self::learn).
    pub fn learn_target(&mut self, target: &str, name: &str, ttl: u32, now: Instant) -> bool {
        if target.len() > MAX_DOTTED_LEN {
            self.dropped += 1;
            return false;
        }
        let id = self.strings.take(target);
        let learned = self.add(Key::Target(id), name, ttl, now);
        // The entry of the target, if there is one, has counted its own use of the string. So the use above ends here.
        self.strings.release(id);
        learned
    }

    /// The names that lead to `target`. The addresses and targets of `target` must be learned for each of these names.
    pub fn lookup_target(&self, target: &str, now: Instant) -> impl Iterator<Item = &str> {
        let slot = self.strings.find(target).and_then(|id| self.find(&Key::Target(id)));
        self.names_of(slot, now)
    }

    /// Notes that a flow to this address begins. None if the guest was not given the address, or its names have
    /// expired: then no name has allowed the flow.
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

    /// Notes that a flow ends.
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

    /// Notes traffic to this address of a flow without a hold. The names of the address that have not expired are kept
    /// for at least [`MIN_LIFE`].
    pub fn prolong(&mut self, address: IpAddr, now: Instant) {
        let (Some(slot), second) = (self.find(&address_key(address)), second(now)) else { return };
        self.expire(slot, second);
        self.renew(slot);
        let entry = self.slots.get_mut(slot as usize).and_then(Option::as_mut);
        for given in entry.into_iter().flat_map(|entry| &mut entry.names) {
            given.until = given.until.max(end_of_life(0, second));
        }
    }

    /// The addresses in `count` slots from `first` on, each with its names and their remaining time. Also returns the
    /// next slot, if there are more slots. An address without names that are valid at `now` is left out.
    #[must_use]
    pub fn page(&self, first: u32, count: u32, now: Instant) -> (Vec<Known>, Option<u32>) {
        let (end, second) = (first.saturating_add(count), second(now));
        let known = |slot: u32| {
            let entry = self.entry(slot)?;
            let Key::Address(octets) = entry.key else { return None };
            let live = entry.names.iter().filter(|given| entry.lives(given, second));
            let names: Vec<_> = live
                .map(|given| (self.strings.text(given.name).into(), given.until.saturating_sub(second)))
                .collect();
            let address = IpAddr::from(octets).to_canonical();
            (!names.is_empty()).then_some(Known { address, names, flows: entry.holds })
        };
        let len = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        ((first..end.min(len)).filter_map(known).collect(), (end < len).then_some(end))
    }

    /// Number of names, expired ones included, counted as in [`Limits::total`].
    #[must_use]
    pub const fn len(&self) -> usize {
        self.total
    }

    /// Whether there are no names.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Number of names that were not learned.
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
        // A longer text has escaped bytes, and matches no rule.
        let added = name.len() <= MAX_DOTTED_LEN && self.try_add(key, name, ttl, second(now));
        self.dropped += u64::from(!added);
        added
    }

    fn try_add(&mut self, key: Key, name: &str, ttl: u32, second: u32) -> bool {
        let until = end_of_life(ttl, second);
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
            // A name of the same entry is removed to make room, if there is one.
            let Some(slot) = found else { return false };
            self.forget_first(slot);
        }
        // Making room may have removed the entry.
        let Some(slot) = self.find(&key).or_else(|| self.insert(key)) else { return false };
        let Some(Some(entry)) = self.slots.get_mut(slot as usize) else { return false };
        if entry.names.is_empty() {
            // Most entries never have more than one name.
            entry.names.reserve_exact(1);
        }
        entry.names.push(Given { name: self.strings.take(name), until });
        self.total += 1;
        self.next_expiry = self.next_expiry.min(until);
        true
    }

    /// Notes that the entry was learned again or used. Other entries will be removed earlier.
    fn renew(&mut self, slot: u32) {
        if self.entry(slot).is_some_and(|entry| entry.holds == 0) {
            self.links.move_to_end(&mut self.unheld, slot);
        }
    }

    /// Makes room for `more` names. First removes all expired names, and then entries without holds, in the order in
    /// which they were last learned, up to `except`. Returns false if this is not enough.
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

    /// Removes the expired names of an entry. Removes the entry if no name is left.
    fn expire(&mut self, slot: u32, second: u32) {
        self.retain(slot, |entry, given| entry.lives(given, second));
    }

    /// Removes the name that expires first.
    fn forget_first(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot) else { return };
        let first = entry.names.iter().min_by_key(|given| given.until).map(|given| given.name);
        self.retain(slot, |_, given| Some(given.name) != first);
    }

    /// Removes the names of an entry for which `keep` returns false. Removes the entry if no name is left, unless flows
    /// hold it.
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

    /// The name `name` of an entry, if the entry has it.
    fn given(&mut self, slot: u32, name: &str) -> Option<&mut Given> {
        let id = self.strings.find(name)?;
        self.slots.get_mut(slot as usize)?.as_mut()?.names.iter_mut().find(|given| given.name == id)
    }
}

/// Makes room for one more element: doubles the capacity of a list, but only up to `most`.
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

/// The second at which a name expires: an answer at `second` gives the name for `ttl` seconds.
fn end_of_life(ttl: u32, second: u32) -> u32 {
    // One second is added, since `second` is rounded down.
    second.saturating_add(ttl.clamp(MIN_LIFE.as_secs() as u32, MAX_LIFE) + 1)
}

/// The clock's second, rounded down.
fn second(now: Instant) -> u32 {
    u32::try_from(now.as_micros() / 1_000_000).unwrap_or(u32::MAX)
}
