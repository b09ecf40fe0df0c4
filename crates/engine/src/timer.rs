//! Time, and one queue of deadlines for all flows.

use alloc::{collections::TryReserveError, vec::Vec};
use core::{
    num::{NonZeroU32, NonZeroU64},
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time of a monotonic clock. The clock may start at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    /// Microseconds since the clock's start, plus one. So an optional time takes eight bytes, too.
    after_start: NonZeroU64,
}

impl Default for Instant {
    fn default() -> Self {
        Self::from_micros(0)
    }
}

impl Instant {
    /// The point this many microseconds after the clock's start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self { after_start: NonZeroU64::MIN.saturating_add(micros) }
    }

    /// Microseconds since the clock's start.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.after_start.get() - 1
    }

    /// Time since `earlier`. Zero if `earlier` is later than this point.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.after_start.get().saturating_sub(earlier.after_start.get()))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self { after_start: self.after_start.saturating_add(micros) }
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// A second since the clock's start, in four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Second(NonZeroU32);

impl Second {
    /// The second that contains this point.
    pub(crate) fn of(at: Instant) -> Self {
        let seconds = u32::try_from(at.as_micros() / 1_000_000).unwrap_or(u32::MAX);
        Self(NonZeroU32::MIN.saturating_add(seconds))
    }

    /// The point at which the second starts.
    pub(crate) const fn start(self) -> Instant {
        Instant::from_micros((self.0.get() as u64 - 1) * 1_000_000)
    }
}

/// Deadlines are rounded up to a multiple of this time, in microseconds, so that close deadlines share a wake-up.
const GRAIN: u64 = 4_000;

/// The deadlines of all flows, by key.
///
/// A key has at most one entry. When an owner's deadline moves later, the entry stays. When the entry is due, the owner
/// schedules it again (see [`Deadline`]). When a deadline moves earlier, or its owner ends, the entry is removed. So
/// there are never more entries than owners, and memory that was reserved for the owners is enough for the entries.
#[derive(Debug)]
pub struct Timers<K: Copy> {
    /// A heap with four children for each entry. The entry that is due first is at the root.
    heap: Vec<Entry<K>>,
    /// By ticket: the position of the ticket's entry in the heap. For a free ticket: the next free ticket.
    places: Vec<u32>,
    /// The first free ticket. It is not below the number of tickets if no ticket is free.
    free: u32,
    /// Number of owners for which memory is reserved.
    owners: usize,
}

/// An entry of the heap. It has no padding: 20 bytes for a flow.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Entry<K> {
    at: Instant,
    key: K,
    ticket: u32,
}

impl<K: Ord + Copy> Entry<K> {
    /// Whether this entry is due before `other`. The key decides between entries of the same time, so that the order
    /// does not depend on the past.
    fn is_before(&self, other: &Self) -> bool {
        (self.at, self.key) < (other.at, other.key)
    }
}

/// Number of children of an entry in the heap.
const CHILDREN: usize = 4;

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self { heap: Vec::new(), places: Vec::new(), free: u32::MAX, owners: 0 }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Reserves memory for one more owner of a deadline. An owner without reserved memory can have a deadline, too, but
    /// then an allocation may fail, which ends the process.
    ///
    /// # Errors
    /// There is no memory.
    pub fn reserve_owner(&mut self) -> Result<(), TryReserveError> {
        let wanted = self.owners + 1;
        self.heap.try_reserve(wanted.saturating_sub(self.heap.len()))?;
        self.places.try_reserve(wanted.saturating_sub(self.places.len()))?;
        self.owners = wanted;
        Ok(())
    }

    /// Memory of an owner, in bytes.
    pub(crate) const BYTES: usize = size_of::<Entry<K>>() + size_of::<u32>();

    /// Reserves memory for `owners` owners, so that the queue does not grow. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve(&mut self, owners: usize) -> bool {
        let more = |len: usize| owners.saturating_sub(len);
        self.heap.try_reserve_exact(more(self.heap.len())).is_ok()
            && self.places.try_reserve_exact(more(self.places.len())).is_ok()
    }

    /// Schedules `key` for `at` or a little later. Returns the entry's ticket.
    fn schedule(&mut self, at: Instant, key: K) -> Ticket {
        let at = Instant::from_micros(at.as_micros().checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX));
        let ticket = match self.places.get(self.free as usize) {
            Some(&next) => core::mem::replace(&mut self.free, next),
            None => {
                self.places.push(0);
                self.places.len() as u32 - 1
            }
        };
        self.heap.push(Entry { at, key, ticket });
        self.rise(self.heap.len() - 1);
        Ticket(NonZeroU32::MIN.saturating_add(ticket))
    }

    /// The place in the heap of the entry of `key`, unless it was removed already.
    fn place(&self, ticket: Ticket, key: K) -> Option<usize> {
        let place = *self.places.get(ticket.index() as usize)? as usize;
        let Entry { key: owner, ticket: number, .. } = *self.heap.get(place)?;
        (number == ticket.index() && owner == key).then_some(place)
    }

    /// Removes the entry of `key`, unless it was removed already.
    fn cancel(&mut self, ticket: Ticket, key: K) {
        if let Some(place) = self.place(ticket, key) {
            self.remove(place);
        }
    }

    /// Removes the entry at `place` in the heap.
    fn remove(&mut self, place: usize) -> Option<Entry<K>> {
        if place >= self.heap.len() {
            return None;
        }
        let entry = self.heap.swap_remove(place);
        self.places[entry.ticket as usize] = self.free;
        self.free = entry.ticket;
        if place < self.heap.len() {
            self.sink(place);
            self.rise(place);
        }
        Some(entry)
    }

    /// Moves the entry at `place` towards the root, up to its place.
    fn rise(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            if !entry.is_before(&self.heap[parent]) {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, entry);
    }

    /// Moves the entry at `place` away from the root, down to its place.
    fn sink(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let first = CHILDREN * place + 1;
            let children = first..(first + CHILDREN).min(self.heap.len());
            let earlier = |a: usize, b: usize| if self.heap[b].is_before(&self.heap[a]) { b } else { a };
            let Some(child) = children.reduce(earlier).filter(|&child| self.heap[child].is_before(&entry))
            else {
                break;
            };
            self.put(place, self.heap[child]);
            place = child;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: Entry<K>) {
        self.heap[place] = entry;
        self.places[entry.ticket as usize] = place as u32;
    }

    /// Number of scheduled keys.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no key is scheduled.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// When the next key is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.heap.first().map(|entry| entry.at)
    }

    /// Removes and returns a key that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        self.next().filter(|&at| at <= now)?;
        self.remove(0).map(|entry| entry.key)
    }
}

/// The number of an entry in the queue: its index in [`Timers::places`], plus one.
#[derive(Clone, Copy, Debug)]
struct Ticket(NonZeroU32);

impl Ticket {
    const fn index(self) -> u32 {
        self.0.get() - 1
    }
}

/// The deadline of one owner, with at most one entry in [`Timers`]. It is packed into 12 bytes, since each flow has one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(Rust, packed(4))]
pub struct Deadline {
    /// The deadline itself.
    due: Option<Instant>,
    /// The entry in the queue.
    ticket: Option<Ticket>,
}

impl Deadline {
    /// No deadline.
    pub const NONE: Self = Self { due: None, ticket: None };

    /// The deadline itself.
    #[must_use]
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sets or clears the deadline.
    pub fn set<K: Ord + Copy>(&mut self, due: Option<Instant>, timers: &mut Timers<K>, key: K) {
        self.due = due;
        if let Some(due) = due
            && self.queued_at(timers, key).is_none_or(|queued| due < queued)
        {
            self.withdraw(timers, key);
            self.ticket = Some(timers.schedule(due, key));
        }
    }

    /// The time of the owner's entry.
    fn queued_at<K: Ord + Copy>(&self, timers: &Timers<K>, key: K) -> Option<Instant> {
        timers.place(self.ticket?, key).map(|place| timers.heap[place].at)
    }

    /// Whether the deadline has been reached. Call this when the owner's key is due: if the deadline has moved later,
    /// the key is scheduled again.
    pub fn reached<K: Ord + Copy>(&mut self, now: Instant, timers: &mut Timers<K>, key: K) -> bool {
        if self.queued_at(timers, key).is_some_and(|queued| queued > now) {
            return false;
        }
        self.ticket = None;
        match self.due() {
            Some(due) if due <= now => {
                self.due = None;
                true
            }
            due => {
                self.set(due, timers, key);
                false
            }
        }
    }

    /// Removes the owner's entry. Call this when the owner ends.
    pub fn withdraw<K: Ord + Copy>(&mut self, timers: &mut Timers<K>, key: K) {
        if let Some(ticket) = self.ticket.take() {
            timers.cancel(ticket, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use alloc::collections::BTreeSet;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    #[test]
    fn a_deadline_that_moves_later_costs_one_entry() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        for millis in 100..200 {
            deadline.set(Some(at(millis)), &mut timers, 7);
        }
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.pop_due(at(99)), None);
        assert_eq!(timers.pop_due(at(100)), Some(7));
        assert!(!deadline.reached(at(100), &mut timers, 7));
        assert_eq!(timers.next(), Some(at(200)));
        assert_eq!(timers.pop_due(at(200)), Some(7));
        assert!(deadline.reached(at(200), &mut timers, 7));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_that_moves_earlier_is_due_in_time() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        deadline.set(Some(at(1000)), &mut timers, 7);
        deadline.set(Some(at(10)), &mut timers, 7);
        assert_eq!(timers.pop_due(at(12)), Some(7));
        assert!(deadline.reached(at(12), &mut timers, 7));
        assert!(timers.is_empty());
    }

    /// A guest that opens and resets connections, or causes delayed acknowledgments, must not fill the memory with
    /// entries that are due hours later.
    #[test]
    fn earlier_deadlines_and_ended_owners_leave_no_entries() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        for round in 0..100 {
            let now = at(round * 8);
            deadline.set(Some(at(60_000)), &mut timers, 7);
            deadline.set(Some(now + Duration::from_millis(4)), &mut timers, 7);
            assert_eq!(timers.pop_due(now + Duration::from_millis(4)), Some(7));
            assert!(deadline.reached(now + Duration::from_millis(4), &mut timers, 7));
        }
        for owner in 0..100 {
            let mut deadline = Deadline::default();
            deadline.set(Some(at(7_200_000)), &mut timers, owner);
            deadline.withdraw(&mut timers, owner);
        }
        assert!(timers.is_empty());
    }

    /// After any sequence of operations, the queue agrees with a sorted set.
    #[test]
    fn any_order_of_deadlines_agrees_with_a_sorted_set() {
        let mut timers = Timers::default();
        let mut model: BTreeSet<(Instant, u32)> = BTreeSet::new();
        let mut deadlines = [Deadline::NONE; 64];
        (0..64).for_each(|_| timers.reserve_owner().unwrap());
        let capacity = (timers.heap.capacity(), timers.places.capacity());
        let mut random: u32 = 1;
        let mut now = at(0);
        for _ in 0..20_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let owner = random >> 16 & 63;
            let deadline = &mut deadlines[owner as usize];
            match random >> 24 & 7 {
                0 => {
                    deadline.withdraw(&mut timers, owner);
                    deadline.withdraw(&mut timers, owner); // the second call does nothing
                    model.retain(|&(_, other)| other != owner);
                }
                1 => {
                    now = now + Duration::from_millis(u64::from(random >> 8 & 31));
                    while let Some(&(due, owner)) = model.first().filter(|(due, _)| *due <= now) {
                        assert_eq!(timers.pop_due(now), Some(owner));
                        model.remove(&(due, owner));
                        if !deadlines[owner as usize].reached(now, &mut timers, owner) {
                            let queued = deadlines[owner as usize].queued_at(&timers, owner);
                            model.extend(queued.map(|at| (at, owner)));
                        }
                    }
                    assert_eq!(timers.pop_due(now), None);
                }
                _ => {
                    deadline.set(
                        Some(now + Duration::from_millis(u64::from(random & 127))),
                        &mut timers,
                        owner,
                    );
                    model.retain(|&(_, other)| other != owner);
                    model.extend(deadline.queued_at(&timers, owner).map(|at| (at, owner)));
                }
            }
            let next = model.first().map(|&(due, _)| due);
            assert_eq!((timers.next(), timers.len()), (next, model.len()));
        }
        assert_eq!((timers.heap.capacity(), timers.places.capacity()), capacity);
    }
}
