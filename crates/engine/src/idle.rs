//! Idle members of a table: the time when they expire, and the order in which they end if the table is full. Members
//! whose requests were answered end before other members. Among both, the member that was idle for the longest time
//! ends first.
//!
//! The order is kept in lists through the table's slots, so that each operation takes constant time. Memory is
//! allocated only when the table gets another slot.

use alloc::vec::Vec;
use core::time::Duration;

use crate::{
    flow::FlowId,
    listing::State,
    timer::{Deadline, Instant, Timers},
};

/// Maximum value of the counters.
const MAX_COUNT: u8 = 15;
/// Maximum number of requests of a member that counts as answered. A member with more requests is a stream.
const MAX_ANSWERED: u8 = 8;

/// How many datagrams two parties have exchanged. The initiator is the party that sent the first datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Number of datagrams from the initiator.
    requests: u8,
    /// Number of datagrams from the other party.
    replies: u8,
}

impl Traffic {
    /// No traffic yet.
    pub(crate) const NONE: Self = Self { requests: 0, replies: 0 };

    /// Counts a datagram of the initiator if `request` is true, else of the other party.
    pub(crate) fn note(&mut self, request: bool) {
        let count = if request { &mut self.requests } else { &mut self.replies };
        *count = (*count + 1).min(MAX_COUNT);
    }

    /// Whether the other party has sent a datagram.
    pub(crate) const fn has_replies(self) -> bool {
        self.replies > 0
    }

    /// Whether there were a few requests, and as many replies, so that no more datagrams are expected.
    pub(crate) const fn is_answered(self) -> bool {
        self.replies > 0 && self.requests <= self.replies && self.requests <= MAX_ANSWERED
    }

    /// The traffic as a state for lists.
    pub(crate) const fn state(self) -> State {
        match () {
            () if self.is_answered() => State::Answered,
            () if self.has_replies() && self.requests > 0 => State::Stream,
            () => State::Unanswered,
        }
    }

    /// Whether both parties have sent datagrams, and at least one party has sent more than one (behaviour §7.2).
    pub(crate) const fn is_stream(self) -> bool {
        self.requests > 0 && self.replies > 0 && self.requests + self.replies > 2
    }
}

/// The time without traffic after which a member expires.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    pub(crate) idle: Duration,
    /// The time without traffic after which a [stream](Traffic::is_stream) expires.
    pub(crate) stream: Duration,
}

impl Timeouts {
    /// The timeout of a member with this traffic.
    pub(crate) const fn after(self, traffic: Traffic) -> Duration {
        if traffic.is_stream() { self.stream } else { self.idle }
    }
}

/// The state of a member's own traffic, which the member stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Activity {
    traffic: Traffic,
    deadline: Deadline,
}

impl Activity {
    /// The state of a member without traffic and without a deadline.
    pub(crate) const NONE: Self = Self { traffic: Traffic::NONE, deadline: Deadline::NONE };

    /// Whether the count of requests has reached its maximum, so that further requests do not change it.
    pub(crate) const fn has_many_requests(&self) -> bool {
        self.traffic.requests == MAX_COUNT
    }

    /// The time of the last traffic. None if there was none, or if the members do not expire.
    pub(crate) fn last(&self, timeouts: Timeouts) -> Option<Instant> {
        let due = self.deadline.due()?;
        let after = u64::try_from(timeouts.after(self.traffic).as_micros()).unwrap_or(u64::MAX);
        Some(Instant::from_micros(due.as_micros().saturating_sub(after)))
    }

    /// The member's traffic as a state for lists.
    pub(crate) const fn state(&self) -> State {
        self.traffic.state()
    }

    /// Whether the member has expired. Must be called when the member's key in `timers` is due.
    pub(crate) fn has_expired(&mut self, id: FlowId, now: Instant, timers: &mut Timers<FlowId>) -> bool {
        self.deadline.reached(now, timers, id)
    }
}

/// The idle members of a table: the order in which they end, and their deadlines.
#[derive(Debug)]
pub(crate) struct Idle {
    order: Order,
    /// The timeouts. None: the members do not expire.
    timeouts: Option<Timeouts>,
}

impl Idle {
    /// An empty table.
    pub(crate) fn new(timeouts: Option<Timeouts>) -> Self {
        Self { order: Order::default(), timeouts }
    }

    /// The number of members.
    pub(crate) const fn len(&self) -> usize {
        self.order.len
    }

    /// Reserves memory for members in `slots` slots, so that the list does not grow. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve_all(&mut self, slots: usize) -> bool {
        self.order.links.reserve_all(slots)
    }

    /// Reserves memory for a member in this slot. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve(&mut self, index: u32) -> bool {
        self.order.links.reserve(index)
    }

    /// Adds a member with [no traffic](Activity::NONE). Its slot must be [reserved](Self::reserve).
    pub(crate) fn join(&mut self, id: FlowId) {
        self.order.join(id.index());
    }

    /// Removes a member.
    pub(crate) fn leave(&mut self, id: FlowId, activity: &mut Activity, timers: &mut Timers<FlowId>) {
        activity.deadline.withdraw(timers, id);
        self.order.leave(id.index(), activity.traffic);
    }

    /// Notes that the initiator (`request`) or the other party sent a datagram now. Moves the member's deadline, and
    /// makes the member the last one of its chain.
    pub(crate) fn note(
        &mut self,
        id: FlowId,
        activity: &mut Activity,
        request: bool,
        now: Instant,
        timers: &mut Timers<FlowId>,
    ) {
        let before = activity.traffic;
        activity.traffic.note(request);
        if let Some(timeouts) = self.timeouts {
            activity.deadline.set(Some(now + timeouts.after(activity.traffic)), timers, id);
        }
        self.order.note(id.index(), before, activity.traffic);
    }

    /// The slot of the member that ends next.
    pub(crate) fn next(&self) -> Option<u32> {
        self.order.next()
    }
}

/// The members of a table, in the order in which they are ended to make room for new members.
#[derive(Debug, Default)]
struct Order {
    links: Links,
    /// The chain of answered members, then the chain of the other members.
    chains: [Chain; 2],
    len: usize,
}

impl Order {
    /// Adds a member in the slot `index`, without traffic.
    fn join(&mut self, index: u32) {
        self.links.push(&mut self.chains[chain_of(Traffic::NONE)], index);
        self.len += 1;
    }

    /// Removes a member. `last` is the member's traffic at the last call of [`Order::note`].
    fn leave(&mut self, index: u32, last: Traffic) {
        self.links.unlink(&mut self.chains[chain_of(last)], index);
        self.len -= 1;
    }

    /// Notes that a member had traffic now. The member becomes the last of the answered members, or of the other
    /// members.
    fn note(&mut self, index: u32, before: Traffic, after: Traffic) {
        let (from, to) = (chain_of(before), chain_of(after));
        if from == to {
            self.links.move_to_end(&mut self.chains[to], index);
        } else {
            self.links.unlink(&mut self.chains[from], index);
            self.links.push(&mut self.chains[to], index);
        }
    }

    /// The slot of the member that ends next.
    fn next(&self) -> Option<u32> {
        self.chains.iter().find_map(Chain::first)
    }
}

/// Index of the chain for a member with this traffic.
fn chain_of(traffic: Traffic) -> usize {
    usize::from(!traffic.is_answered())
}

/// No slot.
const NONE: u32 = u32::MAX;

/// A list that runs through slots. This type stores the two ends of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Chain {
    /// The first slot in the list.
    pub(crate) fn first(&self) -> Option<u32> {
        Some(self.first).filter(|&first| first != NONE)
    }
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
}

/// The neighbours of slots in their lists. A slot is in one list at most.
#[derive(Debug, Default)]
pub(crate) struct Links(Vec<Link>);

impl Links {
    /// Reserves memory for the slot `index`. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve(&mut self, index: u32) -> bool {
        let more = (index as usize + 1).saturating_sub(self.0.len());
        self.0.try_reserve(more).is_ok()
    }

    /// Memory of a slot, in bytes.
    pub(crate) const BYTES: usize = size_of::<Link>();

    /// Reserves memory for `slots` slots, so that the list does not grow. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve_all(&mut self, slots: usize) -> bool {
        self.0.try_reserve_exact(slots.saturating_sub(self.0.len())).is_ok()
    }

    /// Puts a slot that is in no list at the end of `chain`. If the slot was not [reserved](Self::reserve), an allocation
    /// may fail, which ends the process.
    pub(crate) fn push(&mut self, chain: &mut Chain, index: u32) {
        let len = self.0.len().max(index as usize + 1);
        self.0.resize(len, Link { previous: NONE, next: NONE });
        self.set(index, Link { previous: chain.last, next: NONE });
        match self.at(chain.last) {
            Some(last) => last.next = index,
            None => chain.first = index,
        }
        chain.last = index;
    }

    /// Takes a slot out of `chain`. The slot must be in `chain`.
    pub(crate) fn unlink(&mut self, chain: &mut Chain, index: u32) {
        let Some(&mut Link { previous, next }) = self.at(index) else { return };
        match self.at(previous) {
            Some(link) => link.next = next,
            None => chain.first = next,
        }
        match self.at(next) {
            Some(link) => link.previous = previous,
            None => chain.last = previous,
        }
    }

    /// Moves a slot to the end of `chain`. The slot must be in `chain`.
    pub(crate) fn move_to_end(&mut self, chain: &mut Chain, index: u32) {
        if chain.last != index {
            self.unlink(chain, index);
            self.push(chain, index);
        }
    }

    /// Allocated memory, in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Link>()
    }

    fn at(&mut self, index: u32) -> Option<&mut Link> {
        self.0.get_mut(index as usize)
    }

    fn set(&mut self, index: u32, link: Link) {
        if let Some(place) = self.at(index) {
            *place = link;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use alloc::{collections::BTreeMap, vec};

    fn traffic(requests: u8, replies: u8) -> Traffic {
        let mut traffic = Traffic::default();
        (0..requests).for_each(|_| traffic.note(true));
        (0..replies).for_each(|_| traffic.note(false));
        traffic
    }

    #[test]
    fn answered_exchanges_and_streams() {
        for (requests, replies, answered, stream) in [
            (0, 0, false, false),
            (1, 0, false, false),
            (1, 1, true, false),
            (2, 1, false, true),
            (2, 2, true, true),
            (8, 8, true, true),
            (9, 9, false, true),
            (200, 200, false, true),
            (1, 200, true, true),
            (200, 0, false, false),
        ] {
            let traffic = traffic(requests, replies);
            assert_eq!((traffic.is_answered(), traffic.is_stream()), (answered, stream), "{traffic:?}");
        }
    }

    #[test]
    fn the_longest_idle_ends_first_and_answered_ones_before_others() {
        let mut idle = Order::default();
        let mut members = [Traffic::default(); 5];
        (0..5).for_each(|index| idle.join(index));
        let note = |idle: &mut Order, members: &mut [Traffic; 5], index: usize, request| {
            let before = members[index];
            members[index].note(request);
            idle.note(index as u32, before, members[index]);
        };
        assert_eq!(idle.next(), Some(0));
        for index in [3, 0, 1, 2, 4] {
            note(&mut idle, &mut members, index, true);
        }
        assert_eq!(idle.next(), Some(3));
        note(&mut idle, &mut members, 4, false);
        note(&mut idle, &mut members, 2, false);
        // After another request, the member is no longer answered.
        note(&mut idle, &mut members, 4, true);
        let mut order = vec![];
        while let Some(next) = idle.next() {
            idle.leave(next, members[next as usize]);
            order.push(next);
        }
        assert_eq!(order, [2, 3, 0, 1, 4]);
        assert_eq!(idle.len, 0);
    }

    /// After any sequence of operations, the order is that of a sorted map.
    #[test]
    fn any_order_agrees_with_a_sorted_map() {
        let mut idle = Order::default();
        let mut model: BTreeMap<u32, (u64, Traffic)> = BTreeMap::new();
        let mut random: u32 = 1;
        for now in 0..50_000_u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let index = random >> 16 & 63;
            match (random >> 24 & 3, model.get_mut(&index)) {
                (_, None) => {
                    idle.join(index);
                    model.insert(index, (now, Traffic::default()));
                }
                (0, Some((_, last))) => {
                    idle.leave(index, *last);
                    model.remove(&index);
                }
                (kind, Some((at, exchange))) => {
                    let before = *exchange;
                    exchange.note(kind == 1);
                    *at = now;
                    idle.note(index, before, *exchange);
                }
            }
            let next = model.iter().min_by_key(|(_, (at, exchange))| (!exchange.is_answered(), *at));
            assert_eq!((idle.next(), idle.len), (next.map(|(index, _)| *index), model.len()));
        }
    }
}
