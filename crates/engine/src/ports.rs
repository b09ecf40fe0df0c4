//! Ranges of port numbers.

use alloc::vec::Vec;
use core::{fmt, ops::RangeInclusive};

/// A non-empty range of ports, from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Dynamic ports of RFC 6335 §6, for a host whose own ephemeral range can't be read.
    pub const RFC6335_DYNAMIC: Self = Self { first: 49152, last: 65535 };

    /// Every port number, 0 included.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// The range from `first` to `last`. `None` if `first` is greater than `last`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Parses a range in a specifier: `FIRST-LAST`, or one port. The numbers are decimal, with any number of leading
    /// zeros, without sign, blanks or another base (behaviour §2.1). `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let port = |text: &str| {
            if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
        };
        match text.split_once('-') {
            None => Some(Self::single(port(text)?)),
            Some((first, last)) => Self::new(port(first)?, port(last)?),
        }
    }

    /// Parses the range in the text of net.ipv4.ip_local_port_range: two numbers, both included. `None` if the text is
    /// malformed.
    pub fn from_sysctl(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(last))) => Self::new(first, last),
            _ => None,
        }
    }

    /// The range of one port.
    pub fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// The ports of all `ranges`, in ascending order and without overlaps.
    pub(crate) fn merge(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable_by_key(|range| range.first);
        let mut merged: Vec<Self> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(previous) if range.first <= previous.last => {
                    previous.last = previous.last.max(range.last)
                }
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Lowest port of the range.
    pub fn first(self) -> u16 {
        self.first
    }

    /// Highest port of the range.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Number of ports, 1 to 65536.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether `port` is in the range.
    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether the two ranges have a port in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The parts of the range outside of `excluded`, in ascending order. The ranges in `excluded` must be in ascending
    /// order and must not overlap.
    pub(crate) fn without(self, excluded: &[Self]) -> impl Iterator<Item = Self> {
        let mut excluded = excluded.iter().filter(move |hole| hole.overlaps(self));
        // The variable has 32 bits, since the port after 65535 marks the end.
        let mut next = u32::from(self.first);
        core::iter::from_fn(move || {
            loop {
                let first = u16::try_from(next).ok()?;
                if first > self.last {
                    return None;
                }
                let Some(hole) = excluded.next() else {
                    next = u32::from(self.last) + 1;
                    return Self::new(first, self.last);
                };
                next = u32::from(hole.last) + 1;
                if first < hole.first {
                    return Self::new(first, hole.first - 1);
                }
            }
        })
    }

    /// Every port, in ascending order.
    pub fn iter(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_ephemeral_ports_r103() {
        assert_eq!(PortRange::from_sysctl("32768\t60999\n"), PortRange::new(32768, 60999));
        for bad in ["", "1", "x y", "2 1", "1 65536"] {
            assert_eq!(PortRange::from_sysctl(bad), None, "{bad}");
        }
    }
}
