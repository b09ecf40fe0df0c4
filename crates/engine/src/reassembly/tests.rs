use alloc::{collections::BTreeMap, vec, vec::Vec};

use proptest::prelude::*;
use wire::frame::Transport;

use super::*;

const NOW: Instant = Instant::from_micros(1_000_000);

/// A fragment for tests: its datagram, position and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    v4: bool,
    id: u32,
    protocol: u8,
    offset: u16,
    more: bool,
    unfragmentable: u16,
    class: u8,
    bytes: Vec<u8>,
}

impl Cut {
    fn new(id: u32, offset: u16, more: bool, bytes: &[u8]) -> Self {
        Self { v4: true, id, protocol: 17, offset, more, unfragmentable: 20, class: 0, bytes: bytes.to_vec() }
    }

    fn add(&self, reassembly: &mut Reassembly, now: Instant) -> Outcome {
        let fragment = Fragment {
            id: self.id,
            protocol: self.protocol,
            offset: self.offset,
            more: self.more,
            unfragmentable: self.unfragmentable,
            payload: &self.bytes[..],
        };
        let ends = if self.v4 { ["198.51.100.2", "192.0.2.1"] } else { ["2001:db8::2", "2001:db8::1"] };
        let [source, destination] = ends.map(|end| end.parse().unwrap());
        let packet = Packet {
            source,
            destination,
            // The value is different in each fragment, to identify the fragment that the header came from.
            hop_limit: (self.offset / 8) as u8,
            traffic_class: self.class,
            flow_label: 0,
            dont_fragment: false,
            transport: Transport::Fragment(fragment),
        };
        let outcome = reassembly.add(&packet, &fragment, now);
        let held: usize = reassembly.datagrams.iter().map(Datagram::memory).sum();
        assert_eq!(reassembly.bytes, held);
        outcome
    }

    fn end(&self) -> usize {
        usize::from(self.offset) + self.bytes.len()
    }

    fn invalid(&self) -> bool {
        self.bytes.is_empty()
            || self.more && !self.bytes.len().is_multiple_of(8)
            || usize::from(self.unfragmentable) + self.end() > 65_535
    }
}

fn all_of(outcome: Outcome) -> Vec<u8> {
    let Outcome::Complete(_, bytes) = outcome else { panic!("{outcome:?}") };
    bytes
}

/// Cuts `bytes` into fragments. `lens` has the lengths of the first fragments, in units of eight bytes. The last
/// fragment has all other bytes.
fn cut(id: u32, v4: bool, bytes: &[u8], lens: &[usize]) -> Vec<Cut> {
    let (mut at, mut cuts) = (0, Vec::new());
    for len in lens.iter().map(|units| units * UNIT).chain([usize::MAX]) {
        let end = bytes.len().min(at + len.min(bytes.len()));
        let more = end < bytes.len();
        let end = if more { end } else { bytes.len() };
        let protocol = if v4 || at == 0 { 17 } else { 99 };
        let piece = Cut { v4, protocol, ..Cut::new(id, at as u16, more, &bytes[at..end]) };
        cuts.push(piece);
        at = end;
        if !more {
            break;
        }
    }
    cuts
}

fn any_cuts() -> impl Strategy<Value = (Vec<u8>, Vec<Cut>)> {
    let bytes = proptest::collection::vec(any::<u8>(), 9..3000);
    let lens = proptest::collection::vec(1..100usize, 1..30);
    (bytes, lens, any::<bool>(), any::<u32>()).prop_map(|(bytes, lens, v4, id)| {
        let cuts = cut(id, v4, &bytes, &lens);
        (bytes, cuts)
    })
}

/// There are few datagrams and offsets, so that all kinds of overlaps occur.
fn any_fragment() -> impl Strategy<Value = Cut> {
    let place = (0..6u16, 0..5usize, 0..4u8, prop_oneof![8 => Just(0u8), 1 => 1..8u8]);
    (any::<bool>(), 0..2u32, prop_oneof![9 => Just(17u8), 1 => Just(6u8)], place).prop_map(
        |(v4, id, protocol, (offset, units, content, odd))| {
            let len = (units * UNIT).saturating_sub(odd.into());
            Cut {
                v4,
                protocol,
                class: if content == 3 { 3 } else { 0 },
                // Most fragments have the same bytes, so that exact duplicates occur.
                ..Cut::new(id, offset * 8, content != 1, &vec![if content == 2 { 7 } else { 1 }; len])
            }
        },
    )
}

/// A simple model of the rules: a list of all fragments of a datagram. Each fragment is compared with every other
/// fragment.
#[derive(Default)]
struct Model {
    datagrams: BTreeMap<(bool, u32, u8), Option<Vec<Cut>>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    Packet(Vec<u8>, u8, u8, u8),
    Refused,
}

impl Model {
    fn add(&mut self, new: &Cut) -> Said {
        if new.invalid() {
            return Said::Refused;
        }
        let key = (new.v4, new.id, if new.v4 { new.protocol } else { 0 });
        let entry = self.datagrams.entry(key).or_insert_with(|| Some(Vec::new()));
        let Some(fragments) = entry else { return Said::Refused };
        if fragments
            .iter()
            .any(|old| (old.offset, old.more, &old.bytes) == (new.offset, new.more, &new.bytes))
        {
            return Said::Nothing;
        }
        let overlap = fragments
            .iter()
            .any(|old| usize::from(old.offset) < new.end() && usize::from(new.offset) < old.end());
        let last = |cut: &&Cut| !cut.more;
        let after_end = |last: &Cut, other: &Cut| other.end() > last.end();
        let conflict = overlap
            || fragments.iter().find(last).is_some_and(|last| !new.more || after_end(last, new))
            || !new.more && fragments.iter().any(|old| after_end(new, old));
        if conflict {
            *entry = None;
            return Said::Refused;
        }
        fragments.push(new.clone());
        let Some(end) = fragments.iter().find(last).map(Cut::end) else { return Said::Nothing };
        let mut bytes = vec![None; end];
        for fragment in fragments.iter() {
            for (at, byte) in fragment.bytes.iter().enumerate() {
                bytes[usize::from(fragment.offset) + at] = Some(*byte);
            }
        }
        let Some(bytes) = bytes.into_iter().collect::<Option<Vec<u8>>>() else { return Said::Nothing };
        let first = fragments.iter().find(|fragment| fragment.offset == 0).unwrap();
        let class = first.class | fragments.iter().map(|cut| cut.class).max().unwrap();
        let said = Said::Packet(bytes, first.protocol, 0, class);
        self.datagrams.remove(&key);
        said
    }
}

proptest! {
    /// Fragments in any order, with duplicates, give the original datagram.
    #[test]
    fn fragments_in_any_order_make_the_datagram(
        (bytes, cuts) in any_cuts(),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 0..60),
    ) {
        let mut reassembly = Reassembly::default();
        let mut missing: Vec<usize> = (0..cuts.len()).collect();
        let mut sent = Vec::new();
        for index in order {
            // The next fragment is a duplicate, or a new fragment.
            let choices = sent.len() + missing.len();
            let choice = index.index(choices);
            let which = if choice < sent.len() { sent[choice] } else { missing.remove(choice - sent.len()) };
            if choice >= sent.len() {
                sent.push(which);
            }
            let outcome = cuts[which].add(&mut reassembly, NOW);
            if missing.is_empty() {
                prop_assert_eq!(all_of(outcome), bytes);
                prop_assert!(reassembly.is_empty());
                return Ok(());
            }
            prop_assert_eq!(outcome, Outcome::Waiting);
        }
        for (left, which) in missing.iter().enumerate().map(|(at, which)| (missing.len() - at - 1, which)) {
            let outcome = cuts[*which].add(&mut reassembly, NOW);
            if left > 0 {
                prop_assert_eq!(outcome, Outcome::Waiting);
            } else {
                prop_assert_eq!(all_of(outcome), &bytes[..]);
            }
        }
    }

    /// For any sequence of fragments, the outcome is the same as in the model.
    #[test]
    fn any_fragments_do_as_the_model(fragments in proptest::collection::vec(any_fragment(), 0..80)) {
        let mut reassembly = Reassembly::default();
        let mut model = Model::default();
        for fragment in fragments {
            let said = match fragment.add(&mut reassembly, NOW) {
                Outcome::Waiting => Said::Nothing,
                Outcome::Complete(whole, bytes) => {
                    let said = Said::Packet(bytes.clone(), whole.protocol, whole.hop_limit, whole.traffic_class);
                    reassembly.recycle(bytes);
                    said
                }
                Outcome::Invalid(_) | Outcome::Conflict => Said::Refused,
            };
            prop_assert_eq!(said, model.add(&fragment), "{:?}", fragment);
            prop_assert_eq!(reassembly.len(), model.datagrams.len());
        }
    }

    /// Memory is bounded, for any fragments.
    #[test]
    fn memory_is_bounded(fragments in proptest::collection::vec((0..400u32, 0..8192u16, 1..3000usize), 0..600)) {
        let mut reassembly = Reassembly::default();
        for (id, offset, len) in fragments {
            let fragment = Cut { more: false, ..Cut::new(id, offset * 8, true, &vec![1; len]) };
            if let Outcome::Complete(_, bytes) = fragment.add(&mut reassembly, NOW) {
                reassembly.recycle(bytes);
            }
            prop_assert!(reassembly.len() <= MAX_DATAGRAMS);
            prop_assert!(reassembly.bytes() <= MAX_BYTES);
        }
    }
}

/// The largest datagram of each family, and one byte more.
#[test]
fn largest_datagrams() {
    for (v4, unfragmentable, largest) in [(true, 20, 65_515), (true, 60, 65_475), (false, 0, 65_535)] {
        for (len, fits) in [(largest, true), (largest + 1, false)] {
            let bytes: Vec<u8> = (0..len).map(|at: usize| (at / 255) as u8).collect();
            let mut reassembly = Reassembly::default();
            let mut cuts = cut(1, v4, &bytes, &[185; 50]);
            let mut last = cuts.pop().unwrap();
            for cut in &mut cuts {
                cut.unfragmentable = unfragmentable;
                assert_eq!(cut.add(&mut reassembly, NOW), Outcome::Waiting);
            }
            last.unfragmentable = unfragmentable;
            let outcome = last.add(&mut reassembly, NOW);
            if fits {
                assert!(all_of(outcome) == bytes);
            } else {
                assert_eq!(outcome, Outcome::Invalid(Invalid::TooLong), "{len}");
            }
            // The length with the first fragment's headers counts.
            last.unfragmentable = 0;
            let outcome = last.add(&mut reassembly, NOW);
            assert!(!matches!(outcome, Outcome::Complete(..)), "{len} {outcome:?}");
        }
    }
}

/// RFC 5722: after an overlap, all fragments of the datagram are dropped until the datagram expires. This includes
/// later fragments.
#[test]
fn an_overlap_drops_the_datagram_and_what_follows() {
    let mut reassembly = Reassembly::default();
    let first = Cut::new(1, 0, true, &[1; 16]);
    let overlapping = Cut::new(1, 8, true, &[1; 16]);
    let rest = Cut::new(1, 16, false, &[1; 8]);
    assert_eq!(first.add(&mut reassembly, NOW), Outcome::Waiting);
    assert_eq!(overlapping.add(&mut reassembly, NOW), Outcome::Conflict);
    for again in [&rest, &first, &rest] {
        assert_eq!(again.add(&mut reassembly, NOW), Outcome::Conflict);
    }
    assert_eq!(reassembly.bytes(), 0);
    // No error is sent about such a datagram (RFC 8200 §4.5).
    let due = reassembly.next().unwrap();
    let expired = reassembly.expire(due).unwrap();
    assert_eq!((expired.first, expired.id), (None, 1));
    assert_eq!(first.add(&mut reassembly, due), Outcome::Waiting);
    assert_eq!(all_of(rest.add(&mut reassembly, due)), [1; 24]);
}

/// A fragment at the same offset with other bytes is an overlap, not a duplicate.
#[test]
fn a_duplicate_is_exact() {
    for (other, outcome) in [
        (Cut::new(1, 0, true, &[1; 16]), Outcome::Waiting),
        (Cut::new(1, 0, true, &[&[1; 15][..], &[2]].concat()), Outcome::Conflict),
        (Cut::new(1, 0, false, &[1; 16]), Outcome::Conflict),
        (Cut::new(1, 0, true, &[1; 8]), Outcome::Conflict),
        (Cut::new(1, 8, true, &[1; 8]), Outcome::Conflict),
    ] {
        let mut reassembly = Reassembly::default();
        assert_eq!(Cut::new(1, 0, true, &[1; 16]).add(&mut reassembly, NOW), Outcome::Waiting);
        assert_eq!(other.add(&mut reassembly, NOW), outcome, "{other:?}");
    }
}

/// RFC 8200 §4.5: the timeout counts from the fragment that arrives first. The fragment with offset zero is returned
/// unchanged, if it has arrived.
#[test]
fn datagrams_expire() {
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.next(), None);
    let second = NOW + Duration::from_secs(1);
    assert_eq!(Cut::new(1, 8, true, &[2; 8]).add(&mut reassembly, NOW), Outcome::Waiting);
    assert_eq!(Cut::new(2, 8, false, &[2; 8]).add(&mut reassembly, second), Outcome::Waiting);
    assert_eq!(Cut::new(1, 0, true, &[1; 8]).add(&mut reassembly, second), Outcome::Waiting);
    assert_eq!(reassembly.next(), Some(NOW + TIMEOUT));
    assert_eq!(reassembly.expire(NOW + Duration::from_micros(59_999_999)), None);
    let expired = reassembly.expire(NOW + TIMEOUT).unwrap();
    let (whole, bytes) = expired.first.unwrap();
    assert_eq!((expired.id, whole.protocol, bytes), (1, 17, vec![1; 8]));
    assert_eq!(reassembly.expire(NOW + TIMEOUT), None);
    let Expired { first, id, source, destination } = reassembly.expire(second + TIMEOUT).unwrap();
    assert_eq!((first, id, source, destination), (None, 2, expired.source, expired.destination));
    assert_ne!(source, destination);
    assert_eq!((reassembly.next(), reassembly.bytes()), (None, 0));
}

/// Limits for an amount of memory keep within it, up to the usual limits.
#[test]
fn limits_within_an_amount_of_memory() {
    for bytes in (16..26).map(|shift| 5 << shift) {
        let limits = Limits::within(bytes);
        assert!(limits.memory() <= bytes, "{bytes}: {limits:?}");
        let mut reassembly = Reassembly::new(limits);
        for id in 0..2000 {
            let offset = if id % 3 == 0 { 65_496 } else { 0 };
            assert_eq!(Cut::new(id, offset, true, &[1; 8]).add(&mut reassembly, NOW), Outcome::Waiting);
        }
        assert!(reassembly.len() <= limits.datagrams && !reassembly.is_empty());
        assert!(reassembly.len() == 1 || reassembly.bytes() <= limits.bytes);
        // The newest datagram is complete in spite of them.
        let last = Cut::new(1999, 8, false, &[1]).add(&mut reassembly, NOW);
        assert_eq!(last, Outcome::Complete(reply(), vec![1; 9]));
    }
    assert_eq!(Limits::within(usize::MAX / 2).memory(), Limits::DEFAULT.memory());
}

/// At each limit, the oldest datagram is dropped.
#[test]
fn the_oldest_is_dropped_at_a_limit() {
    let mut reassembly = Reassembly::default();
    for id in 0..=MAX_DATAGRAMS as u32 {
        assert_eq!(Cut::new(id, 0, true, &[1; 8]).add(&mut reassembly, NOW), Outcome::Waiting);
    }
    assert_eq!((reassembly.len(), reassembly.evicted()), (MAX_DATAGRAMS, 1));
    assert_eq!(Cut::new(1, 8, false, &[1]).add(&mut reassembly, NOW), Outcome::Complete(reply(), vec![1; 9]));
    assert_eq!(Cut::new(0, 8, false, &[1]).add(&mut reassembly, NOW), Outcome::Waiting);

    // A few bytes at the end of a long datagram use as much memory as the whole datagram.
    let mut reassembly = Reassembly::default();
    for id in 0..1000 {
        assert_eq!(Cut::new(id, 65_496, true, &[1; 8]).add(&mut reassembly, NOW), Outcome::Waiting);
    }
    let expected = MAX_BYTES / 65_536..=MAX_BYTES / 65_504;
    assert!(expected.contains(&reassembly.len()), "{}", reassembly.len());
    // The growing datagram is not dropped.
    let oldest = reassembly.datagrams[0].key.id;
    let lens: Vec<Cut> = (0..2000).map(|at| Cut::new(oldest, at * 16, true, &[1; 8])).collect();
    for cut in &lens {
        assert_eq!(cut.add(&mut reassembly, NOW), Outcome::Waiting);
    }
    assert_eq!(reassembly.datagrams[0].key.id, oldest);
}

fn reply() -> OriginalHeader {
    OriginalHeader {
        source: "198.51.100.2".parse().unwrap(),
        destination: "192.0.2.1".parse().unwrap(),
        hop_limit: 0,
        traffic_class: 0,
        flow_label: 0,
        protocol: 17,
    }
}
