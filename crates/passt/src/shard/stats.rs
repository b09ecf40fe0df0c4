//! Event counts, as a table on standard error (`--stats`, behaviour §1.10).

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use engine::timer::Instant;

use super::Shard;

/// Number of lines between two headings.
const PAGE: usize = 20;
/// Number of columns.
const COLUMNS: usize = 24;
/// Number of characters in a column.
const WIDTH: usize = 9;

/// Headings. Each heading spans as many columns as it has parts.
const HEADINGS: [(&str, &[&str]); 7] = [
    ("frames", &["from", "to", "lost", "useless", "corrupt"]),
    ("TCP", &["now", "opened", "refused", "reset", "nofile"]),
    ("TCP bypass", &["now", "opened", "refused", "reset"]),
    ("UDP", &["now", "dropped", "ended"]),
    ("DNS", &["now", "dropped", "ended"]),
    ("ping", &["now", "dropped", "ended"]),
    ("limit", &["dropped"]),
];

/// One line of the table.
type Counts = [u64; COLUMNS];

/// The state of the table. If no count changes, there is neither a line nor a deadline.
#[derive(Debug)]
pub(super) struct Stats {
    interval: Duration,
    shown: Counts,
    shown_at: Option<Instant>,
    lines: usize,
    due: Option<Instant>,
}

impl Stats {
    /// Creates a table that prints at most one line in each `interval`.
    pub(super) const fn new(interval: Duration) -> Self {
        Self { interval, shown: [0; COLUMNS], shown_at: None, lines: 0, due: None }
    }

    /// Returns the time of the next line.
    pub(super) const fn next_line(&self) -> Option<Instant> {
        self.due
    }

    /// Returns the text to print now, if counts have changed and the interval has passed.
    fn update(&mut self, counts: Counts, now: Instant) -> Option<String> {
        if counts == self.shown && self.lines > 0 {
            return None;
        }
        let due = self.shown_at.map_or(now, |at| at + self.interval);
        if due > now {
            self.due = Some(due);
            return None;
        }
        (self.due, self.shown_at, self.shown) = (None, Some(now), counts);
        let mut text = String::new();
        if self.lines.is_multiple_of(PAGE) {
            text.push_str(&heading());
        }
        self.lines += 1;
        let written = counts.iter().try_for_each(|count| write!(text, "{count:>WIDTH$}"));
        debug_assert!(written.is_ok(), "writing to a string can't fail");
        text.push('\n');
        Some(text)
    }
}

fn heading() -> String {
    let (mut groups, mut names) = (String::new(), String::new());
    for (group, parts) in HEADINGS {
        let width = parts.len() * WIDTH;
        groups.push_str(&format!("{group:>WIDTH$}{:1$}", "", width - WIDTH));
        parts.iter().for_each(|name| names.push_str(&format!("{name:>WIDTH$}")));
    }
    format!("{}\n{names}\n", groups.trim_end())
}

impl Shard {
    /// Prints a line of the table if a line is due. Errors are ignored.
    pub(super) fn show_stats(&mut self, now: Instant) {
        if self.stats.is_none() {
            return;
        }
        let counts = self.counts();
        if let Some(stats) = &mut self.stats
            && let Some(text) = stats.update(counts, now)
        {
            drop(std::io::stderr().write_all(text.as_bytes()));
        }
    }

    fn counts(&mut self) -> Counts {
        let link = self.link.counters();
        let bypassed = self.bypass.flows();
        let useless = *self.stack.counters();
        let udp = self.stack.udp();
        let all = [udp.counters(), self.stack.dns().counters(), self.stack.ping().counters()];
        let over_limit = all.iter().map(|drops| drops.over_limit).sum();
        let udp = (udp.flows() as u64, udp.counters().total(), udp.ended());
        let (tcp, dns, ping) = (self.stack.tcp(), self.stack.dns(), self.stack.ping());
        [
            link.received,
            link.sent,
            link.dropped,
            useless.total() - useless.checksums,
            useless.checksums,
            tcp.len() as u64,
            tcp.counters.opened,
            tcp.counters.refused,
            tcp.counters.reset,
            self.acceptors.refused,
            bypassed.len() as u64,
            bypassed.counters.opened,
            bypassed.counters.refused,
            bypassed.counters.reset,
            udp.0,
            udp.1,
            udp.2,
            dns.len() as u64,
            dns.counters().total(),
            dns.ended(),
            ping.flows() as u64,
            ping.counters().total(),
            ping.ended(),
            over_limit,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn every_column_has_a_heading() {
        let headings: usize = HEADINGS.iter().map(|(_, parts)| parts.len()).sum();
        assert_eq!(headings, COLUMNS);
        assert!(heading().lines().nth(1).unwrap().len() == COLUMNS * WIDTH);
    }

    /// behaviour §1.10. If no count has changed, no deadline wakes the process up.
    #[test]
    fn a_line_needs_news_and_time() {
        let mut stats = Stats::new(Duration::from_secs(10));
        let counts = |first| {
            let mut counts = [0; COLUMNS];
            counts[0] = first;
            counts
        };
        let first = stats.update(counts(0), at(1)).unwrap();
        assert_eq!(first.lines().count(), 3);
        assert_eq!((stats.update(counts(0), at(60)), stats.next_line()), (None, None));
        assert!(stats.update(counts(1), at(61)).unwrap().starts_with("        1"));
        assert_eq!((stats.update(counts(2), at(62)), stats.next_line()), (None, Some(at(71))));
        assert!(stats.update(counts(3), at(71)).unwrap().starts_with("        3"));
        assert_eq!(stats.next_line(), None);
    }

    #[test]
    fn the_heading_comes_back() {
        let mut stats = Stats::new(Duration::ZERO);
        let lines = |text: Option<String>| text.unwrap().lines().count();
        let counts: Vec<_> =
            (0..41).map(|second| lines(stats.update([second; COLUMNS], at(second)))).collect();
        assert_eq!(counts.iter().sum::<usize>(), 41 + 3 * 2);
        assert_eq!((counts[0], counts[20], counts[40]), (3, 3, 3));
    }
}
