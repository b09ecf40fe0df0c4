//! Time, and one queue of deadlines for all flows.

use alloc::collections::BTreeSet;
use core::{
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time of a monotonic clock. The clock may start at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// The point this many microseconds after the clock's start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// Microseconds since the clock's start.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Time since `earlier`. Zero if `earlier` is later than this point.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self { micros: self.micros.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)) }
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// Deadlines are rounded up to a multiple of this time, in microseconds, so that close deadlines share a wake-up.
const GRAIN: u64 = 4_000;

/// The deadlines of all flows, by key.
///
/// A key has at most one entry. When an owner's deadline moves later, the entry stays. When the entry is due, the owner
/// schedules it again (see [`Deadline`]). When a deadline moves earlier, or its owner ends, the entry is removed. So
/// there are never more entries than owners.
#[derive(Debug)]
pub struct Timers<K> {
    queue: BTreeSet<(u64, K)>,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self { queue: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Schedules `key` for `at` or a little later. Returns the time.
    fn schedule(&mut self, at: Instant, key: K) -> Instant {
        let micros = at.micros.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX);
        self.queue.insert((micros, key));
        Instant { micros }
    }

    fn cancel(&mut self, at: Instant, key: K) {
        self.queue.remove(&(at.micros, key));
    }

    /// Number of scheduled keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether no key is scheduled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When the next key is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(micros, _)| Instant { micros })
    }

    /// Removes and returns a key that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        self.queue.first().filter(|&&(micros, _)| micros <= now.micros)?;
        self.queue.pop_first().map(|(_, key)| key)
    }
}

/// The deadline of one owner, with at most one entry in [`Timers`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadline {
    /// The deadline itself.
    due: Option<Instant>,
    /// The entry in the queue.
    queued: Option<Instant>,
}

impl Deadline {
    /// No deadline.
    pub const NONE: Self = Self { due: None, queued: None };

    /// Sets or clears the deadline.
    pub fn set<K: Ord + Copy>(&mut self, due: Option<Instant>, timers: &mut Timers<K>, key: K) {
        self.due = due;
        if let Some(due) = due
            && self.queued.is_none_or(|queued| due < queued)
        {
            self.withdraw(timers, key);
            self.queued = Some(timers.schedule(due, key));
        }
    }

    /// Whether the deadline has been reached. Call this when the owner's key is due: if the deadline has moved later,
    /// the key is scheduled again.
    pub fn reached<K: Ord + Copy>(&mut self, now: Instant, timers: &mut Timers<K>, key: K) -> bool {
        if self.queued.is_some_and(|queued| queued > now) {
            return false;
        }
        self.queued = None;
        match self.due {
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
        if let Some(queued) = self.queued.take() {
            timers.cancel(queued, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
