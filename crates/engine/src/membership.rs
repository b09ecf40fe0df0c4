//! The multicast groups of which the guest is a member (`--multicast`). The engine is the router of the guest's link,
//! so it receives the guest's reports and sends queries (RFC 3376 §6, RFC 3810 §7).
//!
//! While the guest is not a member of any group, the engine sends no queries. When the guest joins a group, it sends a
//! report without a query.

use alloc::collections::BTreeMap;
use core::{net::IpAddr, time::Duration};

use wire::membership::{Change, LAST_MEMBER_INTERVAL, QUERY_INTERVAL, RESPONSE_INTERVAL, ROBUSTNESS};

use crate::timer::Instant;

/// Maximum number of groups of a family.
const MAX_GROUPS: usize = 64;
/// Time between general queries.
const QUERY_PERIOD: Duration = Duration::from_secs(QUERY_INTERVAL as u64);
/// Time from the last report to the end of the membership (RFC 3376 §8.4).
const LIFETIME: Duration =
    Duration::from_secs(ROBUSTNESS as u64 * QUERY_INTERVAL as u64 + RESPONSE_INTERVAL as u64);
/// After a member has left, other members must answer a query within this time (RFC 3376 §8.8, with the robustness
/// variable of the RFC).
const LAST_MEMBER: Duration = Duration::from_secs(ROBUSTNESS as u64 * LAST_MEMBER_INTERVAL as u64);

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The group has its first member: join the group.
    Join(IpAddr),
    /// The group no longer has a member: leave the group.
    Leave(IpAddr),
    /// Query the members of this group.
    QueryGroup(IpAddr),
    /// Query the members of all groups of a family: IPv4 if true, else IPv6.
    QueryAll(bool),
}

/// The groups of both families.
#[derive(Debug, Default)]
pub(crate) struct Memberships {
    /// The end of each group's membership.
    groups: BTreeMap<IpAddr, Instant>,
    /// The times of the next general queries of IPv6 and IPv4. None while there are no members.
    queries: [Option<Instant>; 2],
    /// Number of groups for which there was no room.
    pub(crate) refused: u64,
}

impl Memberships {
    /// Notes a report of the guest about a group.
    pub(crate) fn note(&mut self, change: Change, now: Instant) -> Option<Step> {
        match change {
            Change::Member(group) if !is_followed(group) => None,
            Change::Member(group) => {
                if let Some(end) = self.groups.get_mut(&group) {
                    *end = now + LIFETIME;
                    return None;
                }
                let v4 = group.is_ipv4();
                if self.groups.keys().filter(|group| group.is_ipv4() == v4).count() >= MAX_GROUPS {
                    self.refused += 1;
                    return None;
                }
                self.groups.insert(group, now + LIFETIME);
                self.queries[usize::from(v4)].get_or_insert(now + QUERY_PERIOD);
                Some(Step::Join(group))
            }
            Change::Left(group) => {
                // A repeated leave causes no second query.
                let end = self.groups.get_mut(&group).filter(|end| **end > now + LAST_MEMBER)?;
                *end = now + LAST_MEMBER;
                Some(Step::QueryGroup(group))
            }
        }
    }

    /// The next action that is due. Must be called until it returns none.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Step> {
        let ended = self.groups.iter().find(|(_, end)| **end <= now).map(|(group, _)| *group);
        if let Some(group) = ended {
            self.groups.remove(&group);
            let v4 = group.is_ipv4();
            if !self.groups.keys().any(|group| group.is_ipv4() == v4) {
                self.queries[usize::from(v4)] = None;
            }
            return Some(Step::Leave(group));
        }
        for (query, v4) in self.queries.iter_mut().zip([false, true]) {
            if query.is_some_and(|at| at <= now) {
                *query = Some(now + QUERY_PERIOD);
                return Some(Step::QueryAll(v4));
            }
        }
        None
    }

    /// The time when the next action is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.groups.values().copied().chain(self.queries.into_iter().flatten()).min()
    }
}

/// Whether a membership matters outside the guest's link. The membership of three kinds of groups does not matter
/// there. Every host is a member of all-hosts and all-nodes. Solicited-node groups belong to Neighbour Discovery on the
/// guest's link. Packets of interface scope never leave a host.
pub(crate) fn is_followed(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.is_multicast() && group.octets() != [224, 0, 0, 1],
        IpAddr::V6(group) => {
            let all_nodes = group.segments() == [0xff02, 0, 0, 0, 0, 0, 0, 1];
            let solicited_node = matches!(group.segments(), [0xff02, 0, 0, 0, 0, 1, 0xff00..=0xffff, _]);
            let scope = group.octets()[1] & 0xf;
            group.is_multicast() && scope > 1 && !all_nodes && !solicited_node
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Test {
        memberships: Memberships,
        now: Instant,
    }

    impl Test {
        fn new() -> Self {
            Self { memberships: Memberships::default(), now: Instant::from_micros(5) }
        }

        fn joins(&mut self, group: &str) -> Option<Step> {
            self.memberships.note(Change::Member(group.parse().unwrap()), self.now)
        }

        fn leaves(&mut self, group: &str) -> Option<Step> {
            self.memberships.note(Change::Left(group.parse().unwrap()), self.now)
        }

        fn wait(&mut self, time: Duration) -> Vec<Step> {
            self.now = self.now + time;
            core::iter::from_fn(|| self.memberships.due(self.now)).collect()
        }
    }

    const GROUPS: [&str; 2] = ["239.1.2.3", "ff05::1234"];

    #[test]
    fn groups_without_reports_end_after_two_queries() {
        for group in GROUPS {
            let mut test = Test::new();
            assert_eq!(test.memberships.next(), None);
            let (address, v4) = (group.parse().unwrap(), group == GROUPS[0]);
            assert_eq!(test.joins(group), Some(Step::Join(address)));
            assert_eq!(test.wait(124 * SECOND), []);
            assert_eq!(test.wait(SECOND), [Step::QueryAll(v4)]);
            assert_eq!(test.joins(group), None);
            assert_eq!(test.wait(125 * SECOND), [Step::QueryAll(v4)]);
            assert_eq!(test.wait(125 * SECOND), [Step::QueryAll(v4)]);
            assert_eq!(test.wait(9 * SECOND), []);
            assert_eq!(test.wait(SECOND), [Step::Leave(address)]);
            assert_eq!(test.memberships.next(), None);
        }
    }

    #[test]
    fn after_a_leave_another_member_may_answer() {
        for group in GROUPS {
            let mut test = Test::new();
            let address = group.parse().unwrap();
            assert_eq!(test.leaves(group), None);
            test.joins(group);
            assert_eq!(test.leaves(group), Some(Step::QueryGroup(address)));
            assert_eq!(test.wait(SECOND), []);
            // A repeated leave neither moves the end of the membership nor causes another query.
            assert_eq!(test.leaves(group), None);
            assert_eq!(test.wait(SECOND), [Step::Leave(address)]);
            test.joins(group);
            test.leaves(group);
            test.wait(SECOND);
            assert_eq!(test.joins(group), None);
            assert_eq!(test.wait(100 * SECOND), []);
        }
    }

    #[test]
    fn groups_of_the_link_alone_are_not_followed() {
        let mut test = Test::new();
        for group in ["224.0.0.1", "10.0.0.1", "ff02::1", "ff01::fb", "ff00::1", "ff02::1:ff00:1", "fe80::1"]
        {
            assert_eq!(test.joins(group), None, "{group}");
        }
        assert_eq!(test.memberships.next(), None);
        for group in ["224.0.0.2", "224.0.0.251", "ff02::2", "ff02::fb", "ff02::1:3", "ff15::1:ff00:1"] {
            assert_eq!(test.joins(group), Some(Step::Join(group.parse().unwrap())));
        }
    }

    #[test]
    fn the_groups_of_each_family_are_bounded() {
        let mut test = Test::new();
        for number in 0..100 {
            let joined = test.joins(&alloc::format!("239.0.0.{number}"));
            assert_eq!(joined.is_some(), number < MAX_GROUPS, "{number}");
        }
        assert_eq!(test.memberships.refused, 36);
        assert!(test.joins(GROUPS[1]).is_some());
        test.leaves("239.0.0.5");
        test.wait(2 * SECOND);
        assert!(test.joins(GROUPS[0]).is_some());
    }
}
