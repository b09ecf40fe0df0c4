//! Sets of sequence numbers.

use alloc::vec::Vec;

use wire::tcp::Seq;

/// A range of sequence numbers: its first number, and the number after its last.
pub(crate) type Range = (Seq, Seq);

/// Ranges of sequence numbers within one window. The ranges are sorted and disjoint, and no range touches the next.
#[derive(Debug)]
pub(crate) struct Ranges {
    ranges: Vec<Range>,
    /// Maximum number of ranges that are kept.
    most: usize,
}

impl Ranges {
    /// An empty set, which keeps at most `most` ranges.
    pub(crate) const fn new(most: usize) -> Self {
        Self { ranges: Vec::new(), most }
    }

    /// All ranges, in order.
    pub(crate) fn as_slice(&self) -> &[Range] {
        &self.ranges
    }

    /// Allocated memory, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.ranges.capacity() * size_of::<Range>()
    }

    /// Whether the set is empty.
    pub(crate) const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The number of sequence numbers in the set.
    pub(crate) fn total(&self) -> u32 {
        self.ranges.iter().map(|&(start, end)| end - start).sum()
    }

    /// Whether a range from `start` up to `end` would be kept: the range touches others, or there is room for one more
    /// range.
    pub(crate) fn takes(&self, start: Seq, end: Seq) -> bool {
        self.ranges.len() < self.most || self.ranges.iter().any(|range| !apart(range, start, end))
    }

    /// Whether a range from `start` up to `end` would be kept. If so, memory for it is reserved.
    pub(crate) fn reserve(&mut self, start: Seq, end: Seq) -> bool {
        self.takes(start, end) && self.ranges.try_reserve(1).is_ok()
    }

    /// Adds the numbers from `start` up to `end`, and merges the ranges that the new range overlaps or touches. If
    /// there is no room or no memory, the numbers are not added.
    pub(crate) fn insert(&mut self, mut start: Seq, mut end: Seq) {
        if !self.reserve(start, end) {
            return;
        }
        self.ranges.retain(|range| {
            let apart = apart(range, start, end);
            if !apart {
                start = start.min(range.0);
                end = end.max(range.1);
            }
            apart
        });
        let at = self.ranges.partition_point(|range| range.0.before(start));
        self.ranges.insert(at, (start, end));
    }

    /// Removes all numbers before `seq`.
    pub(crate) fn remove_before(&mut self, seq: Seq) {
        self.ranges.retain_mut(|(start, end)| {
            *start = start.max(seq);
            start.before(*end)
        });
    }
}

/// Whether there is a gap between `range` and the range from `start` to `end`.
fn apart(range: &Range, start: Seq, end: Seq) -> bool {
    range.1.before(start) || end.before(range.0)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn ranges(of: &[(u32, u32)], most: usize) -> Ranges {
        let mut ranges = Ranges::new(most);
        of.iter().for_each(|&(start, end)| ranges.insert(Seq(start), Seq(end)));
        ranges
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let origin = u32::MAX - 20;
        let at = |start: u32, end: u32| (origin.wrapping_add(start), origin.wrapping_add(end));
        let mut set = ranges(&[at(40, 50), at(10, 20), at(60, 70)], 3);
        set.insert(Seq(origin) + 20, Seq(origin) + 40);
        let expected = [(Seq(origin) + 10, Seq(origin) + 50), (Seq(origin) + 60, Seq(origin) + 70)];
        assert_eq!(set.as_slice(), expected);
        assert_eq!(set.total(), 50);
        set.remove_before(Seq(origin) + 45);
        assert_eq!(set.as_slice()[0], (Seq(origin) + 45, Seq(origin) + 50));
    }

    #[test]
    fn a_full_set_accepts_only_ranges_that_join_others() {
        let mut set = ranges(&[(10, 20), (30, 40), (50, 60)], 2);
        assert_eq!(set.as_slice(), [(Seq(10), Seq(20)), (Seq(30), Seq(40))]);
        assert!(!set.takes(Seq(50), Seq(60)) && set.takes(Seq(40), Seq(60)));
        set.insert(Seq(40), Seq(60));
        assert_eq!(set.as_slice(), [(Seq(10), Seq(20)), (Seq(30), Seq(60))]);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Insert(u32, u32),
        RemoveBefore(u32),
    }

    const WINDOW: u32 = 64;

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..WINDOW - 1, 1..12_u32).prop_map(|(at, len)| Step::Insert(at, (at + len).min(WINDOW))),
            1 => (0..=WINDOW).prop_map(Step::RemoveBefore),
        ]
    }

    proptest! {
        /// After any steps, wherever the numbers wrap: the ranges are the runs of numbers that the model has, and a range is
        /// refused only if the set is full and it joins none.
        #[test]
        fn any_steps_agree_with_a_table_of_numbers(
            origin: u32,
            most in 1..8_usize,
            steps in prop::collection::vec(step(), 1..40),
        ) {
            let at = |offset: u32| Seq(origin) + offset;
            let (mut set, mut model) = (Ranges::new(most), [false; WINDOW as usize]);
            for step in steps {
                match step {
                    Step::Insert(start, end) => {
                        let touched = start.saturating_sub(1) as usize..((end + 1).min(WINDOW)) as usize;
                        let room = runs(&model).len() < most || model[touched].contains(&true);
                        prop_assert_eq!(set.takes(at(start), at(end)), room);
                        set.insert(at(start), at(end));
                        if room {
                            model[start as usize..end as usize].fill(true);
                        }
                    }
                    Step::RemoveBefore(end) => {
                        set.remove_before(at(end));
                        model[..end as usize].fill(false);
                    }
                }
                let expected: Vec<Range> =
                    runs(&model).into_iter().map(|(start, end)| (at(start), at(end))).collect();
                prop_assert_eq!(set.as_slice(), expected);
                prop_assert_eq!(set.is_empty(), !model.contains(&true));
                prop_assert_eq!(set.total() as usize, model.iter().filter(|&&in_set| in_set).count());
            }
        }
    }

    /// The longest runs of numbers in the set: the first, and the one after the last.
    fn runs(model: &[bool]) -> Vec<(u32, u32)> {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for number in (0..).zip(model).filter(|(_, in_set)| **in_set).map(|(number, _)| number) {
            match runs.last_mut() {
                Some((_, end)) if *end == number => *end += 1,
                _ => runs.push((number, number + 1)),
            }
        }
        runs
    }
}
