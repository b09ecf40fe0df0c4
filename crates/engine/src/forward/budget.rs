//! A token bucket that limits queries to the kernel about the ports in use. The periodic scans are not limited.

use core::time::Duration;

use crate::timer::Instant;

/// Number of tokens in a full bucket.
const CAPACITY: u32 = 4096;
/// Time in which one token is added.
const PERIOD: Duration = Duration::from_micros(250);

/// Questions to the kernel, which cost tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which ports are in use in a namespace?
    Scan,
    /// Is one port in use?
    Lookup,
    /// What is the next payload of a socket?
    Peek,
}

impl Question {
    /// The cost in tokens. The proportions were measured: a scan reads the kernel's tables four times, a lookup reads
    /// one place in the tables.
    const fn cost(self) -> u32 {
        match self {
            Self::Scan => 128,
            Self::Lookup | Self::Peek => 4,
        }
    }
}

/// A token bucket.
#[derive(Clone, Debug)]
pub struct Budget {
    tokens: u32,
    /// The time up to which tokens were added.
    filled: Instant,
}

impl Budget {
    /// Tokens that scans must leave for lookups: a lookup is more urgent, since it is about one known port.
    pub const RESERVE: u32 = CAPACITY / 2;
    /// Number of tokens that peeks leave for lookups. A peek only looks for a reason for a lookup.
    pub const LAST_RESERVE: u32 = CAPACITY / 8;

    /// A bucket with all its tokens.
    #[must_use]
    pub const fn full(now: Instant) -> Self {
        Self { tokens: CAPACITY, filled: now }
    }

    /// Pays for a question, if `reserve` tokens are left afterwards. Returns false if not enough tokens are left: the
    /// question may not be asked.
    pub fn spend(&mut self, question: Question, reserve: u32, now: Instant) -> bool {
        let periods = now.since(self.filled).as_micros() / PERIOD.as_micros();
        let added = u32::try_from(periods).unwrap_or(CAPACITY).min(CAPACITY);
        self.tokens = (self.tokens + added).min(CAPACITY);
        self.filled = if self.tokens == CAPACITY { now } else { self.filled + PERIOD * added };
        let enough = self.tokens >= question.cost() + reserve;
        if enough {
            self.tokens -= question.cost();
        }
        enough
    }

    /// Returns the cost of a question whose answer was useful.
    pub fn refund(&mut self, question: Question) {
        self.tokens = (self.tokens + question.cost()).min(CAPACITY);
    }

    /// The earliest time at which the tokens pay for `question` and `reserve` remain, if nothing is spent before.
    #[must_use]
    pub fn affordable(&self, question: Question, reserve: u32) -> Instant {
        self.filled + PERIOD * (question.cost() + reserve).saturating_sub(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1000)
    }

    /// A burst is allowed, and then as many questions as the rate allows. The reserve is left for other questions.
    #[test]
    fn rate_and_reserve() {
        let mut budget = Budget::full(at(5));
        let count = |budget: &mut Budget, question, reserve, now| {
            (0..10_000).take_while(|_| budget.spend(question, reserve, now)).count()
        };
        assert_eq!(count(&mut budget, Question::Scan, Budget::RESERVE, at(5)), 16);
        assert_eq!(budget.affordable(Question::Scan, Budget::RESERVE), at(37));
        assert!(!budget.spend(Question::Scan, Budget::RESERVE, at(36)));
        assert!(budget.spend(Question::Scan, Budget::RESERVE, at(37)));
        assert_eq!(count(&mut budget, Question::Lookup, 0, at(37)), 512);
        assert_eq!(count(&mut budget, Question::Lookup, 0, at(47)), 10);
        budget.refund(Question::Scan);
        assert_eq!(count(&mut budget, Question::Scan, 0, at(47)), 1);
        assert_eq!(count(&mut budget, Question::Lookup, 0, at(1_000_000)), 1024, "no more than a bucket");
    }
}
