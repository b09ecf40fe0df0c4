//! Limits how often the same call site may log, so that traffic can't fill logs (behaviour §1.7.6).

use std::time::Duration;

/// Messages of one call site that are logged in a second.
const PER_SECOND: u32 = 5;

/// Counts the messages of each call site.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// Bounded by the number of call sites in the program.
    sites: Vec<CallSite>,
}

/// A call site, by file and line.
#[derive(Debug)]
struct CallSite {
    file: &'static str,
    line: Option<u32>,
    /// The second since the start that `count` is for.
    second: u64,
    /// Messages in `second`.
    count: u32,
    /// Messages left out since the last that was logged.
    left_out: u64,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Log it, and add how many messages of the call site were left out before.
    Show {
        /// Messages left out since the last one that was logged.
        left_out: u64,
    },
    /// Log it, and add that more will be left out.
    Announce,
    /// Leave it out.
    LeaveOut,
}

impl Limiter {
    /// Counts a message of the call site at `file` and `line`, and decides about it. `now` is the time since the start.
    pub(super) fn decide(&mut self, file: &'static str, line: Option<u32>, now: Duration) -> Decision {
        let second = now.as_secs();
        let index = self.sites.iter().position(|site| site.file == file && site.line == line);
        let index = index.unwrap_or_else(|| {
            self.sites.push(CallSite { file, line, second, count: 0, left_out: 0 });
            self.sites.len() - 1
        });
        let site = &mut self.sites[index];
        if site.second != second {
            (site.second, site.count) = (second, 0);
        }
        site.count = site.count.saturating_add(1);
        match site.count {
            ..PER_SECOND => Decision::Show { left_out: std::mem::take(&mut site.left_out) },
            PER_SECOND => Decision::Announce,
            _ => {
                site.left_out += 1;
                Decision::LeaveOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_messages_a_second_then_the_number_of_those_left_out() {
        let mut limiter = Limiter::default();
        let mut at = |line, millis| limiter.decide("file", Some(line), Duration::from_millis(millis));
        for millis in 0..4 {
            assert_eq!(at(1, millis), Decision::Show { left_out: 0 });
        }
        assert_eq!(at(1, 4), Decision::Announce);
        for millis in 5..12 {
            assert_eq!(at(1, millis), Decision::LeaveOut);
        }
        assert_eq!(at(2, 12), Decision::Show { left_out: 0 }, "another call site");
        assert_eq!(at(1, 999), Decision::LeaveOut);
        assert_eq!(at(1, 1000), Decision::Show { left_out: 8 });
        assert_eq!(at(1, 1001), Decision::Show { left_out: 0 });
    }
}
