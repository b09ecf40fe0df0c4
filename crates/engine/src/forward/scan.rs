//! Rules that follow listening sockets (behaviour §8.4). This module computes the ports that such rules open, given
//! the ports in use on the rules' target side.
//!
//! Two directions must not follow each other's listeners from one namespace to the other and back. So a rule
//! never follows sockets of this process, and the two directions take turns: the second direction sees the ports that
//! the first direction has opened.

use alloc::{boxed::Box, vec};
use core::fmt;

use super::{PortRange, Protocol, Table};

/// Number of bits in a word of a [`PortSet`].
const BITS: u16 = 64;
/// Number of words for all ports.
const WORDS: usize = 1 << 16 >> BITS.trailing_zeros();

/// A set of port numbers.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet(Box<[u64]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![0; WORDS].into_boxed_slice())
    }
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port / BITS)] |= 1 << (port % BITS);
    }

    /// Adds the ports of a range.
    pub fn insert_range(&mut self, range: PortRange) {
        for index in range.first() / BITS..=range.last() / BITS {
            let mut word = u64::MAX;
            if index == range.first() / BITS {
                word &= u64::MAX << (range.first() % BITS);
            }
            if index == range.last() / BITS {
                word &= u64::MAX >> (BITS - 1 - range.last() % BITS);
            }
            self.0[usize::from(index)] |= word;
        }
    }

    /// Removes a port.
    pub fn remove(&mut self, port: u16) {
        self.0[usize::from(port / BITS)] &= !(1 << (port % BITS));
    }

    /// Whether a port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / BITS)] & 1 << (port % BITS) != 0
    }

    /// Removes all ports.
    pub fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Whether no port is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first port from `from` on, itself included, that is in the set (`contained`), or that is not.
    fn next(&self, from: u16, contained: bool) -> Option<u16> {
        (from / BITS..=u16::MAX / BITS).find_map(|index| {
            let word = self.0[usize::from(index)];
            let word = if contained { word } else { !word };
            let word = if index == from / BITS { word & (u64::MAX << (from % BITS)) } else { word };
            (word != 0).then(|| index * BITS + word.trailing_zeros() as u16)
        })
    }

    /// The ports in the set, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.within(PortRange::ALL)
    }

    /// The ports of a range that are in the set, in ascending order.
    pub fn within(&self, range: PortRange) -> impl Iterator<Item = u16> {
        let mut from = Some(range.first());
        core::iter::from_fn(move || {
            let port = self.next(from?, true).filter(|port| range.contains(*port));
            from = port.and_then(|port| port.checked_add(1));
            port
        })
    }

    /// The ranges of ports that are not in the set, in ascending order. At least one port of the set is between two ranges.
    pub fn gaps(&self) -> impl Iterator<Item = PortRange> {
        let mut from = Some(0);
        core::iter::from_fn(move || {
            let first = self.next(from?, false)?;
            from = self.next(first, true);
            PortRange::new(first, from.map_or(u16::MAX, |port| port - 1))
        })
    }

    /// Removes the ports that are not in `other`.
    pub fn retain_common(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= other);
    }

    fn include(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word |= other);
    }

    fn exclude(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word &= !other);
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Ports in use in one network namespace, with any address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// TCP ports with a listening socket.
    pub tcp: PortSet,
    /// UDP ports with a socket that is bound and not connected.
    pub udp: PortSet,
}

impl InUse {
    /// The ports of a protocol.
    pub fn of(&mut self, protocol: Protocol) -> &mut PortSet {
        match protocol {
            Protocol::Tcp => &mut self.tcp,
            Protocol::Udp => &mut self.udp,
        }
    }

    /// Adds the ports of another set.
    pub fn include(&mut self, other: &Self) {
        self.tcp.include(&other.tcp);
        self.udp.include(&other.udp);
    }
}

/// The target ports of those rules of `table` that follow a scan, except `ours`, the ports that this process itself
/// uses on the target side. A scan can ignore all other ports.
#[must_use]
pub fn relevant(table: &Table, ours: &InUse) -> InUse {
    let mut relevant = InUse::default();
    for rule in table.rules().iter().filter(|rule| rule.scan) {
        // UDP rules follow TCP listeners, too.
        relevant.tcp.insert_range(rule.target_ports());
        if rule.protocol == Protocol::Udp {
            relevant.udp.insert_range(rule.target_ports());
        }
    }
    relevant.tcp.exclude(&ours.tcp);
    relevant.udp.exclude(&ours.udp);
    relevant
}

/// The rules of `table` that follow a scan, by index. Each rule has the ports on which it should listen, in order.
///
/// `target` has the ports in use on the rules' target side. `ours` has the ports that this process itself uses there.
/// UDP rules follow TCP listeners too: many services open a UDP socket on their TCP port only on demand.
pub fn wanted<'a>(
    table: &'a Table,
    target: &InUse,
    ours: &InUse,
) -> impl Iterator<Item = (usize, u16)> + use<'a> {
    let mut tcp = target.tcp.clone();
    tcp.exclude(&ours.tcp);
    let mut udp = target.udp.clone();
    udp.include(&tcp);
    udp.exclude(&ours.udp);
    let rules = table.rules().iter().enumerate().filter(|(_, rule)| rule.scan);
    let per_rule = rules.map(move |(index, rule)| {
        let used = match rule.protocol {
            Protocol::Tcp => &tcp,
            Protocol::Udp => &udp,
        };
        let listen_on = |port| rule.ports.first() + (port - rule.target_ports().first());
        let ports: alloc::vec::Vec<u16> = used.within(rule.target_ports()).map(listen_on).collect();
        (index, ports)
    });
    per_rule.flat_map(|(index, ports)| ports.into_iter().map(move |port| (index, port)))
}

#[cfg(test)]
mod tests {
    use alloc::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;
    use crate::forward::{
        Enabled,
        spec::{Context, Direction, Spec, parse},
    };

    /// A table of rules from TCP and UDP specifiers.
    fn table(direction: Direction, tcp: &[&str], udp: &[&str]) -> Table {
        let ephemeral = PortRange::new(32768, 60999).unwrap();
        let mut table = Table::new();
        for (protocol, specs) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
            for spec in specs {
                let context = Context { protocol, direction, enabled: Enabled::ALL, ephemeral };
                let Ok(Spec::Forward { rules, .. }) = parse(spec, &context) else { panic!("{spec}") };
                rules.into_iter().for_each(|rule| table.add(rule, Enabled::ALL).unwrap());
            }
        }
        table
    }

    fn in_use(tcp: &[u16], udp: &[u16]) -> InUse {
        InUse { tcp: tcp.iter().copied().collect(), udp: udp.iter().copied().collect() }
    }

    fn ports(table: &Table, target: &InUse, ours: &InUse) -> Vec<(Protocol, u16)> {
        wanted(table, target, ours).map(|(rule, port)| (table.rules()[rule].protocol, port)).collect()
    }

    use Protocol::{Tcp, Udp};

    /// Ports in use are followed, and UDP rules follow TCP ports too. Excluded, ephemeral and our own ports are not
    /// followed (behaviour §8.4).
    #[test]
    fn ports_that_are_followed() {
        let used = in_use(&[22, 80, 40000, 65535], &[53, 80, 123]);
        let none = InUse::default();
        let all = table(Direction::Inbound, &["auto"], &["auto"]);
        let expected =
            [(Tcp, 22), (Tcp, 80), (Tcp, 65535), (Udp, 22), (Udp, 53), (Udp, 80), (Udp, 123), (Udp, 65535)];
        assert_eq!(ports(&all, &used, &none), expected);
        assert_eq!(
            ports(&all, &used, &in_use(&[80, 65535], &[22, 80, 123])),
            [(Tcp, 22), (Udp, 53)],
            "our own"
        );

        let some = table(Direction::Inbound, &["auto,22,8000-8100:40000-40100"], &["auto,~53"]);
        assert_eq!(
            ports(&some, &used, &none),
            [(Tcp, 22), (Tcp, 8000), (Udp, 22), (Udp, 80), (Udp, 123), (Udp, 65535)]
        );
        let fixed = table(Direction::Inbound, &["22,80"], &["all"]);
        assert_eq!(ports(&fixed, &used, &none), [], "rules without auto follow nothing");
    }

    /// The target ports of rules that follow a scan, without our own.
    #[test]
    fn ports_that_are_relevant() {
        let ours = in_use(&[80], &[53]);
        let only_udp = table(Direction::Outbound, &["22"], &["auto,~53-54,~100-65535"]);
        let InUse { tcp, udp } = relevant(&only_udp, &ours);
        assert_eq!(
            tcp.iter().collect::<Vec<_>>(),
            (1..=52).chain(55..=79).chain(81..=99).collect::<Vec<_>>()
        );
        assert_eq!(udp.iter().collect::<Vec<_>>(), (1..=52).chain(55..=99).collect::<Vec<_>>());
        let only_tcp = table(Direction::Outbound, &["auto,8000:80,9000:90"], &["53"]);
        let InUse { tcp, udp } = relevant(&only_tcp, &ours);
        assert_eq!((tcp.iter().collect::<Vec<_>>(), udp.is_empty()), (Vec::from([90]), true));
    }

    /// One of two namespaces whose rules follow each other.
    #[derive(Default)]
    struct Side {
        services: InUse,
        ours: InUse,
    }

    impl Side {
        fn scanned(&self) -> InUse {
            let mut all = self.services.clone();
            all.include(&self.ours);
            all
        }

        /// The result of a scan that looks only for the ports relevant to `table`.
        fn scanned_for(&self, table: &Table) -> InUse {
            let relevant = relevant(table, &self.ours);
            let of = |all: PortSet, relevant: PortSet| {
                all.iter().filter(|port| relevant.contains(*port)).collect()
            };
            let all = self.scanned();
            InUse { tcp: of(all.tcp, relevant.tcp), udp: of(all.udp, relevant.udp) }
        }

        /// Opens and closes the listeners of this side by the rules of `table`, except on ports that a service uses.
        /// Returns whether anything changed.
        fn follow(&mut self, table: &Table, other: &Self) -> bool {
            let mut now = InUse::default();
            let wanted = ports(table, &other.scanned(), &other.ours);
            assert_eq!(wanted, ports(table, &other.scanned_for(table), &other.ours));
            for (protocol, port) in wanted {
                if !self.services.of(protocol).contains(port) {
                    now.of(protocol).insert(port);
                }
            }
            core::mem::replace(&mut self.ours, now.clone()) != now
        }
    }

    fn services() -> impl Strategy<Value = InUse> {
        let ports = || prop::collection::btree_set(1u16..12, 0..6);
        (ports(), ports()).prop_map(|(tcp, udp): (BTreeSet<_>, BTreeSet<_>)| InUse {
            tcp: tcp.into_iter().collect(),
            udp: udp.into_iter().collect(),
        })
    }

    proptest! {
        /// a port is never forwarded both ways, for any order in which services start and stop on both sides.
        /// When the services stop changing, the listeners stop changing too. A listener for a service that has ended is
        /// closed.
        #[test]
        fn no_loop_and_no_flapping_r104(
            changes in prop::collection::vec((services(), services()), 1..8),
            inwards in prop::sample::select(&["auto", "auto,3-9:1-7", "auto,~2"][..]),
            outwards in prop::sample::select(&["auto", "auto,1-7:3-9", "auto,~5"][..]),
        ) {
            let inbound = table(Direction::Inbound, &[inwards], &[inwards]);
            let outbound = table(Direction::Outbound, &[outwards], &[outwards]);
            let (mut host, mut guest) = (Side::default(), Side::default());
            for (on_host, on_guest) in changes {
                (host.services, guest.services) = (on_host, on_guest);
                let mut turns = 0;
                while host.follow(&inbound, &guest) | guest.follow(&outbound, &host) {
                    turns += 1;
                    // A rule that shifts ports by two can connect at most six ports in a chain. Each of these ports may
                    // need a turn.
                    prop_assert!(turns <= 7, "flaps: {:?} {:?}", host.ours, guest.ours);
                }
                for (table, here, there) in [(&inbound, &host, &guest), (&outbound, &guest, &host)] {
                    for rule in table.rules() {
                        let (ours, theirs) = match rule.protocol {
                            Tcp => (&here.ours.tcp, &there.ours.tcp),
                            Udp => (&here.ours.udp, &there.ours.udp),
                        };
                        for port in ours.within(rule.ports) {
                            let target = rule.target_port(port).unwrap();
                            prop_assert!(!theirs.contains(target), "forwards to our own listener: {port}");
                            let mut served = there.services.clone();
                            let served = served.of(rule.protocol).contains(target)
                                || rule.protocol == Udp && there.services.tcp.contains(target);
                            prop_assert!(served, "forwards to no service: {port}");
                        }
                    }
                }
            }
        }

        #[test]
        fn sets_are_sets(ports in prop::collection::btree_set(any::<u16>(), 0..50), a: u16, b: u16) {
            let set: PortSet = ports.iter().copied().collect();
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), ports.clone());
            let range = PortRange::new(a.min(b), a.max(b)).unwrap();
            let within: Vec<u16> = ports.range(range.iter()).copied().collect();
            prop_assert_eq!(set.within(range).collect::<Vec<_>>(), within);
            prop_assert_eq!(set.is_empty(), ports.is_empty());
            let outside: Vec<u16> = (0..=u16::MAX).filter(|port| !ports.contains(port)).collect();
            prop_assert_eq!(set.gaps().flat_map(PortRange::iter).collect::<Vec<_>>(), outside);
            let apart = set.gaps().zip(set.gaps().skip(1)).all(|(one, next)| one.last() + 1 < next.first());
            prop_assert!(apart, "{:?}", ports);

            let mut longer = set.clone();
            longer.insert_range(range);
            let all: BTreeSet<u16> = ports.iter().copied().chain(range.iter()).collect();
            prop_assert!(longer.iter().eq(all));
        }
    }
}
