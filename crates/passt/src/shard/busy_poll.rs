//! Busy polling: whether the thread looks for events for a short time before it sleeps.
//!
//! Waking a sleeping thread takes longer than the answer to a small message. So if the next event is expected soon, the
//! thread looks again, and lets other threads of its processor run between two looks. If nothing comes, it sleeps. An
//! average of past waits predicts the next one; an idle process does not poll. See docs/design/busy-polling.md.

use std::hint;
use std::thread;
use std::time::{Duration, Instant as Clock};

/// The longest time to poll: about what sleeping and waking cost.
const LIMIT: Duration = Duration::from_micros(50);
/// The thread polls while it expects a shorter wait than this. More than [`LIMIT`], since the waits of a thread that
/// sleeps contain its waking.
const SOON: Duration = Duration::from_micros(60);
/// A longer wait counts as this much, so that a few short waits after it begin the polling again.
const FAR: Duration = Duration::from_micros(150);
/// The time between two looks.
const PAUSE: Duration = Duration::from_micros(1);
/// The part of a new wait in the expected one: an eighth.
const WEIGHT: u32 = 8;

/// What the waits of the past say about the next one.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// Whether the thread may poll at all.
    allowed: bool,
    /// The moving average of the waits.
    expected: Duration,
}

impl BusyPoll {
    /// `processors` is the number of processors that the process may use. With one, the thread never polls: the process
    /// that causes the next event needs that processor.
    pub(super) const fn new(processors: usize) -> Self {
        Self { allowed: processors > 1, expected: FAR }
    }

    /// How long to poll before the thread sleeps. Zero: not at all.
    pub(super) fn limit(&self) -> Duration {
        if self.allowed && self.expected < SOON { LIMIT } else { Duration::ZERO }
    }

    /// Takes note of a wait, whether the thread has polled, slept or both.
    pub(super) fn waited(&mut self, time: Duration) {
        self.expected = (self.expected * (WEIGHT - 1) + time.min(FAR)) / WEIGHT;
    }
}

/// Lets other threads of this processor run, and passes the time until the next look.
pub(super) fn pause() {
    thread::yield_now();
    let start = Clock::now();
    while start.elapsed() < PAUSE {
        hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(time: u64) -> Duration {
        Duration::from_micros(time)
    }

    /// The number of waits of this length until the thread polls, or until it does not.
    fn waits_until(polls: bool, time: Duration, poll: &mut BusyPoll) -> usize {
        let done = |poll: &BusyPoll| (poll.limit() > Duration::ZERO) == polls;
        let mut waits = 0;
        while !done(poll) && waits < 1000 {
            poll.waited(time);
            waits += 1;
        }
        waits
    }

    #[test]
    fn polls_only_while_events_come_soon() {
        let mut poll = BusyPoll::new(2);
        assert_eq!(poll.limit(), Duration::ZERO);
        assert_eq!(waits_until(true, us(20), &mut poll), 9);
        assert_eq!(poll.limit(), LIMIT);
        // A single pause, however long, does not end it for more than a few waits.
        (0..50).for_each(|_| poll.waited(us(20)));
        poll.waited(Duration::from_secs(3600));
        assert_eq!(waits_until(true, us(20), &mut poll), 0);
        // Rare events do.
        assert_eq!(waits_until(false, us(1000), &mut poll), 2);
        assert_eq!(waits_until(true, us(20), &mut poll), 1);
        assert_eq!(waits_until(false, Duration::MAX, &mut poll), 1);
    }

    #[test]
    fn events_that_are_just_too_late_are_not_polled_for() {
        let mut poll = BusyPoll::new(64);
        assert_eq!(waits_until(true, us(70), &mut poll), 1000);
    }

    #[test]
    fn with_one_processor_the_thread_never_polls() {
        let mut poll = BusyPoll::new(1);
        assert_eq!(waits_until(true, us(1), &mut poll), 1000);
    }
}
