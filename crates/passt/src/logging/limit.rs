//! How often the same place in the program may speak: what traffic can cause must not fill logs (behaviour §1.7.6).

use std::time::Duration;

/// Messages of one place that are shown in a second.
const PER_SECOND: u32 = 5;

/// What has been said lately.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    /// As many as there are places in the program that log.
    places: Vec<Place>,
}

/// One place in the program, by file and line.
#[derive(Debug)]
struct Place {
    file: &'static str,
    line: Option<u32>,
    /// The second that is counted for, since the start.
    second: u64,
    /// Messages in this second.
    count: u32,
    /// Messages left out since the last that was shown.
    left_out: u64,
}

/// What to do with a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Show it, and say how many like it were left out before.
    Show {
        /// Their number, not counting any that was announced.
        left_out: u64,
    },
    /// Show it, and say that more will be left out.
    Announce,
    /// Leave it out.
    LeaveOut,
}

impl Limiter {
    /// Counts a message of the place at `file` and `line`, `now` after the start.
    pub(super) fn judge(&mut self, file: &'static str, line: Option<u32>, now: Duration) -> Verdict {
        let second = now.as_secs();
        let index = self.places.iter().position(|place| place.file == file && place.line == line);
        let place = match index {
            Some(index) => &mut self.places[index],
            None => {
                self.places.push(Place { file, line, second, count: 0, left_out: 0 });
                let last = self.places.len() - 1;
                &mut self.places[last]
            }
        };
        if place.second != second {
            (place.second, place.count) = (second, 0);
        }
        place.count = place.count.saturating_add(1);
        match place.count {
            ..PER_SECOND => Verdict::Show { left_out: std::mem::take(&mut place.left_out) },
            PER_SECOND => Verdict::Announce,
            _ => {
                place.left_out += 1;
                Verdict::LeaveOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_speaks_five_times_in_a_second_and_then_says_what_it_kept_back() {
        let mut limiter = Limiter::default();
        let mut at = |line, millis| limiter.judge("file", Some(line), Duration::from_millis(millis));
        for millis in 0..4 {
            assert_eq!(at(1, millis), Verdict::Show { left_out: 0 });
        }
        assert_eq!(at(1, 4), Verdict::Announce);
        for millis in 5..12 {
            assert_eq!(at(1, millis), Verdict::LeaveOut);
        }
        assert_eq!(at(2, 12), Verdict::Show { left_out: 0 }, "another place");
        assert_eq!(at(1, 999), Verdict::LeaveOut);
        assert_eq!(at(1, 1000), Verdict::Show { left_out: 8 });
        assert_eq!(at(1, 1001), Verdict::Show { left_out: 0 });
    }
}
