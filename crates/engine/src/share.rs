//! Limits of tables, and log messages about limits that are reached.

use core::{fmt, time::Duration};

use crate::timer::Instant;

/// The maximum number of members of a table. A table may always have at least one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Maximum number of members.
    pub most: usize,
    /// The resource from which the number is derived.
    pub bound: Bound,
}

/// The resource from which a share is derived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The limit of open files.
    Files,
    /// The memory of the machine or control group.
    Memory,
    /// The budget that the user gave (`--memory`).
    Budget,
    /// No resource: the number is fixed.
    Fixed,
}

impl Share {
    /// Whether a table with `len` members has no room for another member.
    pub(crate) const fn is_full(&self, len: usize) -> bool {
        len >= self.most && len > 0
    }
}

/// The end of a message: how the user can get a larger share.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => {
                "; to have more, raise the limit of open files (ulimit -n, LimitNOFILE= of systemd)"
            }
            Self::Memory => "; the memory of the machine or control group allows no more",
            Self::Budget => "; to have more, give more memory (--memory)",
            Self::Fixed => "",
        })
    }
}

/// A line of the log that is written at most once a minute.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notice {
    last: Option<Instant>,
}

impl Notice {
    /// The shortest time between two lines.
    pub const INTERVAL: Duration = Duration::from_secs(60);

    /// Whether to write the line now. If so, `now` is noted as the time of the last line.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now.since(last) >= Self::INTERVAL);
        if due {
            self.last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_once_a_minute() {
        let mut notice = Notice::default();
        let due = [0, 1, 59, 60, 61].map(|second| notice.is_due(Instant::from_micros(second * 1_000_000)));
        assert_eq!(due, [true, false, false, true, false]);
    }
}
