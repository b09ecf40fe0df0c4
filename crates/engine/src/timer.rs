//! Time, and one queue of deadlines for all flows.

use alloc::collections::BinaryHeap;
use core::{
    cmp::Reverse,
    ops::{Add, Sub},
    time::Duration,
};

/// A point of a monotonic clock that starts anywhere.
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

    /// Time since `earlier`; zero if that is later.
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

/// Deadlines are rounded up to this, so that neighbours share a wake-up.
const GRAIN: u64 = 4_000;

/// When to look at which key again.
///
/// Entries are never removed: an owner whose deadline moves later looks at its own clock when the
/// early entry comes up, and schedules again (see [`Deadline`]). So a flow costs one entry at a
/// time, not one a packet.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(u64, K)>>,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Has `key` come up at `at` or a little later.
    fn schedule(&mut self, at: Instant, key: K) {
        self.heap.push(Reverse((at.micros.next_multiple_of(GRAIN), key)));
    }

    /// When the next key comes up.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((micros, _))| Instant { micros: *micros })
    }

    /// Takes a key that has come up.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        match self.heap.peek() {
            Some(Reverse((micros, _))) if *micros <= now.micros => {
                self.heap.pop().map(|Reverse((_, key))| key)
            }
            _ => None,
        }
    }
}

/// The deadline of one owner, with at most one entry in [`Timers`] that matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadline {
    /// When the owner wants to be looked at.
    due: Option<Instant>,
    /// The earliest entry in the queue.
    queued: Option<Instant>,
}

impl Deadline {
    /// None set, none queued.
    pub const NONE: Self = Self { due: None, queued: None };

    /// Sets or clears the deadline.
    pub fn set<K: Ord + Copy>(&mut self, due: Option<Instant>, timers: &mut Timers<K>, key: K) {
        self.due = due;
        if let Some(due) = due
            && self.queued.is_none_or(|queued| due < queued)
        {
            timers.schedule(due, key);
            self.queued = Some(due);
        }
    }

    /// To be called when the owner's key came up: whether the deadline has really been reached. If not, it
    /// is queued anew.
    pub fn reached<K: Ord + Copy>(&mut self, now: Instant, timers: &mut Timers<K>, key: K) -> bool {
        if self.queued.is_some_and(|queued| queued > now) {
            return false; // an entry that a nearer deadline left behind
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
        assert_eq!(timers.heap.len(), 1);
        assert_eq!(timers.pop_due(at(99)), None);
        assert_eq!(timers.pop_due(at(100)), Some(7));
        assert!(!deadline.reached(at(100), &mut timers, 7));
        assert_eq!(timers.next(), Some(at(200)));
        assert_eq!(timers.pop_due(at(200)), Some(7));
        assert!(deadline.reached(at(200), &mut timers, 7));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_deadline_that_moves_nearer_comes_up_in_time() {
        let mut timers = Timers::default();
        let mut deadline = Deadline::default();
        deadline.set(Some(at(1000)), &mut timers, 7);
        deadline.set(Some(at(10)), &mut timers, 7);
        assert_eq!(timers.pop_due(at(12)), Some(7));
        assert!(deadline.reached(at(12), &mut timers, 7));
        // The far entry comes up for nothing.
        assert_eq!(timers.pop_due(at(1000)), Some(7));
        assert!(!deadline.reached(at(1000), &mut timers, 7));
    }
}
