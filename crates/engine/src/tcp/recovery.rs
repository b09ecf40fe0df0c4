//! Holes that the guest has reported in the data it received, and their retransmission (RFC 2018, RFC 6675).

use wire::tcp::{SackBlocks, Seq};

use crate::{
    quota::allocation,
    ranges::{Range, Ranges},
};

/// Maximum number of ranges that are stored. Further ranges are ignored. This costs a needless retransmission at worst.
const MAX_RANGES: usize = 64;
/// Number of duplicate acknowledgments that indicate loss (RFC 5681 §3.2).
const DUPLICATE_THRESHOLD: u8 = 3;

/// The state of loss recovery. It exists from the first sign of a hole until all holes are filled.
///
/// Each hole is filled once, from left to right. If a retransmission is lost, too, no acknowledgment reports this loss,
/// so it is detected as follows. At some time, a pass is recorded: `passed` is the sequence number up to which holes
/// have been filled, and `mark` is the highest sequence number that was sent. Segments arrive in the order in which
/// they were sent. So when the guest reports bytes above `mark`, every retransmission from before the record has either
/// arrived or been lost. The holes that are left below `passed` are then filled once more (`again`), and the next pass
/// is recorded.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Ranges above the first hole that the guest has reported as received.
    sacked: Ranges,
    duplicates: u8,
    /// The acknowledgment number that `duplicates` counts.
    una: Seq,
    /// Set during retransmission. Recovery ends when this sequence number is acknowledged.
    point: Option<Seq>,
    /// All holes before this sequence number were retransmitted.
    repaired: Seq,
    /// The highest sequence number sent when the pass was recorded.
    mark: Seq,
    /// Holes before this sequence number had been filled when the pass was recorded.
    passed: Seq,
    /// Holes between these two sequence numbers are filled once more.
    again: (Seq, Seq),
}

impl Default for Recovery {
    fn default() -> Self {
        let start = Seq::default();
        Self {
            sacked: Ranges::new(MAX_RANGES),
            duplicates: 0,
            una: start,
            point: None,
            repaired: start,
            mark: start,
            passed: start,
            again: (start, start),
        }
    }
}

impl Recovery {
    /// Memory of the state, in bytes.
    pub(super) const BYTES: usize =
        allocation(size_of::<Self>()) + allocation(MAX_RANGES * size_of::<Range>());

    /// Handles an acknowledgment. `una` is the guest's cumulative acknowledgment, `next` the highest sequence
    /// number sent so far, `duplicate` whether the acknowledgment repeats an earlier one, which is a sign
    /// of loss.
    pub(super) fn on_ack(&mut self, una: Seq, next: Seq, blocks: &SackBlocks, duplicate: bool) {
        if self.point.is_none() && una.after(self.una) {
            self.duplicates = 0; // there was no hole (RFC 6675 §5)
        }
        self.una = una;
        let before = self.sacked.total();
        self.sacked.remove_before(una);
        for &(start, end) in blocks.as_slice() {
            if start.before(end) && !end.after(next) && end.after(una) {
                self.sacked.insert(start.max(una), end);
            }
        }
        if self.point.is_some_and(|point| !una.before(point)) {
            self.point = None;
            self.duplicates = 0;
        }
        self.repaired = self.repaired.max(una);
        // A segment that was sent after the mark has arrived, so the retransmissions of the remaining holes were lost.
        if self.point.is_some() && self.highest().is_some_and(|highest| highest.after(self.mark)) {
            self.again = (una, self.passed);
            self.note_pass(next);
        }
        if duplicate || self.sacked.total() > before {
            self.duplicates = self.duplicates.saturating_add(1);
        }
    }

    /// Begins retransmission if there are enough signs of loss. Returns whether retransmission is in progress.
    pub(super) fn begin_if_lost(&mut self, una: Seq, next: Seq, mss: u32) -> bool {
        if self.point.is_some() {
            return true;
        }
        let lost = self.duplicates >= DUPLICATE_THRESHOLD || self.sacked.total() > 3 * mss;
        if lost {
            self.begin(una, next);
        }
        lost
    }

    fn begin(&mut self, una: Seq, next: Seq) {
        self.point = Some(next);
        self.repaired = una;
        self.again = (una, una);
        self.note_pass(next);
    }

    fn note_pass(&mut self, next: Seq) {
        self.passed = self.highest().unwrap_or(self.repaired);
        self.mark = next;
    }

    /// The sequence number after the highest byte that the guest has reported as received above the first hole.
    fn highest(&self) -> Option<Seq> {
        self.sacked.as_slice().last().map(|&(_, end)| end)
    }

    /// After a timeout: every byte that the guest has not acknowledged or reported by SACK counts as lost. Returns the
    /// sequence number after the highest byte that SACK reported. None if SACK reported nothing.
    pub(super) fn restart(&mut self, una: Seq, next: Seq) -> Option<Seq> {
        let highest = self.highest()?;
        self.begin(una, next);
        Some(highest)
    }

    /// The next hole to fill during retransmission, below the highest byte that SACK reported. Without SACK, it is one
    /// segment at the cumulative acknowledgment (RFC 6582).
    pub(super) fn next_hole(&self, una: Seq, mss: u32) -> Option<(Seq, Seq)> {
        self.point?;
        let front = self.repaired.max(una);
        if self.sacked.is_empty() {
            return (front == una).then(|| (una, una + mss));
        }
        let (again, again_end) = self.again;
        self.hole_from(again.max(una))
            .filter(|(start, _)| start.before(again_end))
            .map(|(start, end)| (start, end.min(again_end)))
            .or_else(|| self.hole_from(front))
    }

    /// The first range at or after `start` that the guest has not received. It is below the highest byte that SACK
    /// reported.
    fn hole_from(&self, mut start: Seq) -> Option<(Seq, Seq)> {
        for &(sacked_start, sacked_end) in self.sacked.as_slice() {
            if start.before(sacked_start) {
                return Some((start, sacked_start));
            }
            start = start.max(sacked_end);
        }
        None
    }

    /// Notes that the hole that was returned last was retransmitted up to `seq`.
    pub(super) fn repaired_to(&mut self, seq: Seq) {
        if !seq.after(self.again.1) {
            self.again.0 = self.again.0.max(seq);
        }
        self.repaired = self.repaired.max(seq);
    }

    /// Whether recovery is complete.
    pub(super) fn is_over(&self) -> bool {
        self.point.is_none() && self.sacked.is_empty() && self.duplicates == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(ranges: &[(u32, u32)]) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        for &(start, end) in ranges {
            blocks.push(Seq(start), Seq(end));
        }
        blocks
    }

    #[test]
    fn holes_are_filled_once_and_in_order() {
        let mut recovery = Recovery::default();
        recovery.on_ack(Seq(0), Seq(100), &blocks(&[(10, 20), (40, 50)]), true);
        assert!(recovery.begin_if_lost(Seq(0), Seq(100), 5));
        assert_eq!(recovery.next_hole(Seq(0), 5), Some((Seq(0), Seq(10))));
        recovery.repaired_to(Seq(10));
        assert_eq!(recovery.next_hole(Seq(0), 5), Some((Seq(20), Seq(40))));
        recovery.repaired_to(Seq(40));
        assert_eq!(recovery.next_hole(Seq(0), 5), None);
        // Data sent after the retransmission has arrived, but the hole remains: the retransmission was lost.
        recovery.on_ack(Seq(0), Seq(120), &blocks(&[(110, 120)]), false);
        assert_eq!(recovery.next_hole(Seq(0), 5), Some((Seq(0), Seq(10))));
        recovery.on_ack(Seq(120), Seq(120), &blocks(&[]), false);
        assert!(recovery.is_over());
    }

    #[test]
    fn without_sack_three_duplicates_repair_one_segment() {
        let mut recovery = Recovery::default();
        for _ in 0..2 {
            recovery.on_ack(Seq(7), Seq(100), &blocks(&[]), true);
            assert!(!recovery.begin_if_lost(Seq(7), Seq(100), 10));
        }
        recovery.on_ack(Seq(7), Seq(100), &blocks(&[]), true);
        assert!(recovery.begin_if_lost(Seq(7), Seq(100), 10));
        assert_eq!(recovery.next_hole(Seq(7), 10), Some((Seq(7), Seq(17))));
        recovery.repaired_to(Seq(17));
        assert_eq!(recovery.next_hole(Seq(7), 10), None);
        // A partial acknowledgment shows the next hole.
        recovery.on_ack(Seq(17), Seq(100), &blocks(&[]), false);
        assert_eq!(recovery.next_hole(Seq(17), 10), Some((Seq(17), Seq(27))));
    }
}
