//! Limits how often the same call site may log, so that traffic can't fill logs (behaviour §1.7.6).

use std::time::Duration;

/// Maximum number of messages that one call site logs in a second.
const PER_SECOND: u32 = 5;

/// Counts the messages of each call site.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// The call sites that have logged. The number of call sites in the program limits the length.
    sites: Vec<CallSite>,
}

/// A call site, identified by file and line.
#[derive(Debug)]
struct CallSite {
    file: &'static str,
    line: Option<u32>,
    /// The second to which `count` belongs, counted from the start.
    second: u64,
    /// Number of messages in `second`.
    count: u32,
    /// Number of messages that were left out since the last logged message.
    left_out: u64,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Log the message, and add the number of messages of the call site that were left out before.
    Show {
        /// Number of messages that were left out since the last logged message.
        left_out: u64,
    },
    /// Log the message, and add that further messages will be left out.
    Announce,
    /// Do not log the message.
    LeaveOut,
}

impl Limiter {
    /// Counts a message of the call site at `file` and `line`, and decides whether to log it. `now` is the time since
    /// the start.
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
