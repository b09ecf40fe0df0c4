use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};

use proptest::prelude::*;

use super::*;

/// The limits of a small table: 8 names, and 3 names of each address.
const SMALL: Limits = Limits { total: 8, each: 3 };

fn at(second: u64) -> Instant {
    Instant::from_micros(second * 1_000_000)
}

fn names(limits: Limits) -> Names {
    Names::new(limits, [7; 16])
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::from([192, 0, high, low])
}

impl Names {
    /// Number of entries with holds.
    pub(crate) fn held(&self) -> usize {
        self.slots.iter().flatten().filter(|entry| entry.holds > 0).count()
    }

    fn found(&self, address: IpAddr, second: u64) -> Vec<&str> {
        let mut found: Vec<_> = self.lookup(address, at(second)).collect();
        found.sort_unstable();
        found
    }

    /// Allocated memory, in bytes.
    fn bytes(&self) -> usize {
        let lists =
            self.slots.iter().flatten().map(|entry| allocation(entry.names.capacity() * size_of::<Given>()));
        self.slots.capacity() * size_of::<Option<Entry>>()
            + self.free.capacity() * size_of::<u32>()
            + self.by_key.allocation_size()
            + self.links.bytes()
            + self.strings.bytes()
            + lists.sum::<usize>()
    }

    fn check(&self) {
        let entries = || self.slots.iter().flatten();
        assert_eq!(self.total, entries().map(|entry| entry.names.len() + entry.key.names()).sum::<usize>());
        assert!(self.total <= self.limits.total);
        assert!(entries().all(|entry| (1..=self.limits.each).contains(&entry.names.len())));
        assert_eq!(self.by_key.len(), entries().count());
        let targets = entries().filter_map(|entry| match entry.key {
            Key::Target(id) => Some(id),
            Key::Address(_) => None,
        });
        let used = entries().flat_map(|entry| &entry.names).map(|given| given.name).chain(targets);
        let used: BTreeSet<&str> = used.map(|id| self.strings.text(id)).collect();
        assert_eq!(self.strings.len(), used.len());
        let unheld = entries().filter(|entry| entry.holds == 0);
        assert!(unheld.flat_map(|entry| &entry.names).all(|given| given.until >= self.next_expiry));
    }
}

/// The memory that malloc uses for an allocation of `len` bytes: it adds 8 bytes, and rounds up to a multiple of 16, at
/// least 32.
pub(super) fn allocation(len: usize) -> usize {
    if len == 0 { 0 } else { (len + 8).next_multiple_of(16).max(32) }
}

#[test]
fn an_address_has_the_names_it_was_given_for() {
    let mut names = names(SMALL);
    assert!(names.learn(address(1), "peer.test", 300, at(0)));
    assert!(names.learn(address(1), "other.test", 300, at(0)));
    assert!(names.learn("2001:db8::1".parse().unwrap(), "peer.test", 300, at(0)));
    assert_eq!(names.found(address(1), 0), ["other.test", "peer.test"]);
    assert_eq!(names.found("::ffff:192.0.0.1".parse().unwrap(), 0), ["other.test", "peer.test"]);
    assert_eq!(names.found("2001:db8::1".parse().unwrap(), 0), ["peer.test"]);
    assert!(names.found(address(2), 0).is_empty());
    assert_eq!(names.at(at(0)).names(address(1)).count(), 2);
    assert_eq!(names.at(at(400)).names(address(1)).count(), 0);
    assert_eq!((names.len(), names.strings.len()), (3, 2), "each name is stored once");
    names.check();
}

#[test]
fn names_expire_with_their_time_to_live_but_not_within_a_minute() {
    let mut names = names(SMALL);
    let now = Instant::from_micros(100_900_000);
    names.learn(address(1), "short.test", 0, now);
    names.learn(address(1), "long.test", 300, now);
    names.learn(address(2), "longest.test", u32::MAX, now);
    let found = |after_millis: u64| {
        names
            .lookup(address(1), now + Duration::from_millis(after_millis))
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(found(60_000), ["short.test", "long.test"]);
    assert_eq!(found(61_100), ["long.test"]);
    assert_eq!(found(300_000), ["long.test"]);
    assert!(found(301_100).is_empty());
    assert_eq!(names.found(address(2), 604_900), ["longest.test"]);
    assert!(names.found(address(2), 605_000).is_empty());
}

/// A later answer can only extend the life of a name: the guest may still use the first answer.
#[test]
fn an_answer_again_prolongs() {
    let mut names = names(SMALL);
    names.learn(address(1), "peer.test", 300, at(0));
    names.learn(address(1), "peer.test", 0, at(10));
    assert_eq!(names.found(address(1), 300), ["peer.test"]);
    names.learn(address(1), "peer.test", 300, at(200));
    assert_eq!(names.found(address(1), 500), ["peer.test"]);
    assert_eq!(names.len(), 1);
}

#[test]
fn flows_hold_an_address_beyond_its_time() {
    let mut names = names(SMALL);
    names.learn(address(1), "peer.test", 0, at(0));
    names.learn(address(1), "other.test", 1000, at(0));
    assert_eq!(names.hold(address(2), at(0)), None);
    let first = names.hold(address(1), at(10)).unwrap();
    let second = names.hold(address(1), at(10)).unwrap();
    assert_eq!(names.found(address(1), 5000), ["other.test", "peer.test"]);
    names.release(first);
    assert_eq!(names.found(address(1), 5000), ["other.test", "peer.test"]);
    names.release(second);
    assert!(names.found(address(1), 5000).is_empty());
    // An expired address can't be held. If only one name of an address has expired, a hold does not restore this name.
    names.learn(address(3), "peer.test", 0, at(5000));
    names.learn(address(3), "other.test", 1000, at(5000));
    let hold = names.hold(address(3), at(5100)).unwrap();
    assert_eq!(names.found(address(3), 5100), ["other.test"]);
    names.release(hold);
    assert_eq!(names.hold(address(3), at(7000)), None);
    names.check();
}

#[test]
fn targets_stand_for_names() {
    let mut names = names(SMALL);
    assert!(names.learn_target("cdn.test", "www.test", 100, at(0)));
    assert!(names.learn_target("cdn.test", "mail.test", 200, at(0)));
    let found = |names: &Names, target, second| {
        names.lookup_target(target, at(second)).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(found(&names, "cdn.test", 0), ["www.test", "mail.test"]);
    assert_eq!(found(&names, "cdn.test", 150), ["mail.test"]);
    assert!(found(&names, "cdn.test", 250).is_empty());
    assert!(found(&names, "www.test", 0).is_empty());
    assert_eq!(names.len(), 3);
    names.check();
}

#[test]
fn what_has_expired_makes_room_first() {
    let mut names = names(SMALL);
    for number in 0..8 {
        let ttl = if number == 5 { 0 } else { 1000 };
        names.learn(address(number), &format!("{number}.test"), ttl, at(0));
    }
    names.learn(address(8), "new.test", 1000, at(100));
    assert!((0..9).all(|number| names.found(address(number), 100).is_empty() == (number == 5)));
    names.check();
}

#[test]
fn then_what_was_learned_longest_ago_and_is_not_held() {
    let mut names = names(SMALL);
    for number in 0..8 {
        names.learn(address(number), &format!("{number}.test"), 1000, at(0));
    }
    let hold = names.hold(address(0), at(1)).unwrap();
    names.learn(address(1), "1.test", 1000, at(1));
    for number in 8..10 {
        assert!(names.learn(address(number), "new.test", 1000, at(2)));
    }
    let gone: Vec<u16> = (0..10).filter(|&number| names.found(address(number), 2).is_empty()).collect();
    assert_eq!(gone, [2, 3]);
    // A new target needs room for two names: its own and the name that leads to it.
    assert!(names.learn_target("cdn.test", "new.test", 1000, at(2)));
    let gone: Vec<u16> = (0..10).filter(|&number| names.found(address(number), 2).is_empty()).collect();
    assert_eq!(gone, [2, 3, 4, 5]);
    names.release(hold);
    names.check();
}

#[test]
fn what_is_held_makes_no_room() {
    let mut names = names(SMALL);
    let mut holds: Vec<Hold> = Vec::new();
    for number in 0..8 {
        names.learn(address(number), &format!("{number}.test"), 0, at(0));
        holds.extend(names.hold(address(number), at(0)));
    }
    assert!(!names.learn(address(8), "new.test", 1000, at(100)));
    assert!(!names.learn_target("cdn.test", "new.test", 1000, at(100)));
    assert_eq!((names.dropped(), names.len()), (2, 8));
    // A new name of a known address replaces another name of this address.
    assert!(names.learn(address(3), "new.test", 1000, at(100)));
    assert_eq!(names.found(address(3), 100), ["new.test"]);
    names.check();
    holds.into_iter().for_each(|hold| names.release(hold));
    assert!(names.learn(address(8), "new.test", 1000, at(100)));
    assert_eq!(names.len(), 2, "the others had expired");
    names.check();
}

#[test]
fn an_address_has_few_names() {
    let mut names = names(SMALL);
    for (number, ttl) in [(0, 500), (1, 100), (2, 300), (3, 200)] {
        assert!(names.learn(address(1), &format!("{number}.test"), ttl, at(0)));
    }
    assert_eq!(names.found(address(1), 0), ["0.test", "2.test", "3.test"]);
    names.check();
}

#[test]
fn a_table_of_one_entry_keeps_the_newest_names() {
    let mut names = names(Limits { total: 2, each: 3 });
    for number in 0..5 {
        assert!(names.learn(address(1), &format!("{number}.test"), 100 + number, at(0)));
        names.check();
    }
    assert_eq!(names.found(address(1), 0), ["3.test", "4.test"]);
    let mut names = self::names(Limits { total: 1, each: 3 });
    for number in 0..5 {
        assert!(names.learn(address(1), &format!("{number}.test"), 100, at(0)));
        names.check();
    }
    assert_eq!(names.found(address(1), 0), ["4.test"]);
    assert!(!names.learn_target("cdn.test", "4.test", 100, at(0)));
}

#[test]
fn names_that_are_too_long_are_not_learned() {
    let mut names = names(SMALL);
    let long = "x".repeat(254);
    assert!(!names.learn(address(1), &long, 100, at(0)));
    assert!(!names.learn_target(&long, "peer.test", 100, at(0)));
    assert!(!names.learn_target("peer.test", &long, 100, at(0)));
    assert_eq!((names.dropped(), names.len(), names.strings.len()), (3, 0, 0));
}

/// All names have the maximum length, and all are different.
#[test]
fn ten_thousand_names_take_less_than_4_mib() {
    let limits = Limits::default();
    let name = |number: usize| format!("{number:x>253}");
    for targets in [false, true] {
        let mut names = names(limits);
        // The loop learns more names than there is room for, so the table has its maximum size.
        for number in 0..limits.total * 2 {
            if targets {
                assert!(names.learn_target(&name(number * 2), &name(number * 2 + 1), 1000, at(0)));
            } else {
                assert!(names.learn(address(number as u16), &name(number), 1000, at(0)));
            }
        }
        assert_eq!((names.len(), names.strings.len()), (10_000, 10_000));
        let bytes = names.bytes();
        assert!(bytes < 4 << 20, "{bytes} bytes");
        assert!(bytes <= limits.memory() && Limits::within(limits.memory()).total == limits.total);
        assert!(bytes > 253 * 10_000, "the names themselves are counted");
    }
}

/// The contents of a table without limits.
#[derive(Default)]
struct Model {
    /// For each address and name, the second at which the name expires.
    until: BTreeMap<(u8, u8), u64>,
    holds: BTreeMap<u8, Vec<Hold>>,
}

impl Model {
    fn found(&self, address: u8, second: u64) -> Vec<String> {
        let held = self.holds.get(&address).is_some_and(|holds| !holds.is_empty());
        let names = self.until.range((address, 0)..=(address, u8::MAX));
        names
            .filter(|&(_, &until)| held || until > second)
            .map(|((_, name), _)| format!("{name:03}.test"))
            .collect()
    }

    /// A flow begins. Names that have expired are not restored.
    fn begin(&mut self, address: u8, second: u64) {
        if self.holds.get(&address).is_none_or(Vec::is_empty) {
            self.until.retain(|&(of, _), until| of != address || *until > second);
        }
    }

    /// A flow without a hold forwards a packet.
    fn prolong(&mut self, address: u8, second: u64) {
        self.begin(address, second);
        let names = self.until.range_mut((address, 0)..=(address, u8::MAX));
        names.for_each(|(_, until)| *until = (second + 61).max(*until));
    }
}

/// Each address is on one page, with the names that are still valid. Names that lead to other names are not listed.
#[test]
fn pages_have_each_address_once() {
    let mut names = names(Limits { total: 100, each: 4 });
    for to in 0..10 {
        assert!(names.learn(address(to), "a.test", 100, at(0)));
    }
    names.learn(address(3), "b.test", 300, at(0));
    names.learn_target("t.test", "a.test", 300, at(0));
    let hold = names.hold(address(5), at(0)).unwrap();
    let list = |names: &Names, second| {
        let (mut all, mut next) = (vec![], Some(0));
        while let Some(first) = next {
            let (page, after) = names.page(first, 3, at(second));
            assert!(page.len() <= 3);
            (next, all) = (after, [all, page].concat());
        }
        all
    };
    let now = list(&names, 1);
    assert_eq!(
        now.iter().map(|known| known.address).collect::<Vec<_>>(),
        (0..10).map(address).collect::<Vec<_>>()
    );
    assert_eq!(now[3].names, [("a.test".into(), 100), ("b.test".into(), 300)]);
    let later = list(&names, 200);
    let left: Vec<_> = later.iter().map(|known| (known.address, &known.names[..], known.flows)).collect();
    assert_eq!(
        left,
        [(address(3), &[("b.test".into(), 101)][..], 0), (address(5), &[("a.test".into(), 0)][..], 1)]
    );
    names.release(hold);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// If no limit is reached, the table behaves exactly like the model.
    #[test]
    fn any_use_agrees_with_a_plain_map(
        operations in prop::collection::vec((0..5_u8, 0..4_u8, 0..6_u8, 0..300_u64), 0..200)
    ) {
        let mut names = names(Limits { total: 1000, each: 100 });
        let mut model = Model::default();
        let mut second = 0;
        for (operation, to, name, number) in operations {
            let ip = address(to.into());
            match operation {
                0 => second += number / 4,
                1 => {
                    let learned = names.learn(ip, &format!("{name:03}.test"), number as u32, at(second));
                    prop_assert!(learned);
                    let until = model.until.entry((to, name)).or_default();
                    *until = (second + number.max(60) + 1).max(*until);
                }
                2 => {
                    model.begin(to, second);
                    let hold = names.hold(ip, at(second));
                    prop_assert_eq!(hold.is_some(), !model.found(to, second).is_empty());
                    model.holds.entry(to).or_default().extend(hold);
                }
                3 => {
                    names.prolong(ip, at(second));
                    model.prolong(to, second);
                }
                _ => {
                    if let Some(hold) = model.holds.get_mut(&to).and_then(Vec::pop) {
                        names.release(hold);
                    }
                }
            }
            names.check();
            prop_assert_eq!(names.found(ip, second), model.found(to, second));
        }
    }

    /// With little room, the limits hold, and no memory leaks.
    #[test]
    fn any_use_stays_within_the_bounds(
        operations in prop::collection::vec((0..6_u8, 0..8_u16, 0..12_u8, 0..300_u32), 0..300)
    ) {
        let mut names = names(SMALL);
        let mut holds = vec![];
        let mut second = 0;
        for (operation, to, name, number) in operations {
            let name = format!("{name}.test");
            match operation {
                0 => second += u64::from(number),
                1 => drop(names.learn(address(to), &name, number, at(second))),
                2 => drop(names.learn_target(&format!("{to}.test"), &name, number, at(second))),
                3 => holds.extend(names.hold(address(to), at(second))),
                4 => names.prolong(address(to), at(second)),
                _ => holds.pop().into_iter().for_each(|hold| names.release(hold)),
            }
            names.check();
        }
        holds.into_iter().for_each(|hold| names.release(hold));
        names.expire_all(u32::MAX);
        prop_assert_eq!((names.len(), names.strings.len(), names.by_key.len()), (0, 0, 0));
    }
}
