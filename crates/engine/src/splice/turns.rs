//! Bypassed connections under a rate limit take turns (docs/design/rate-limit.md).

use alloc::collections::VecDeque;

use super::{Bypass, Conduit, Entry, Side};
use crate::{
    flow::FlowId,
    forward::spec::Direction,
    rate_limit::{Bucket, Class, RateLimit},
    timer::Instant,
};

/// Room in a list for connections that end within one round.
const SPARE: usize = 256;

/// The sides of connections whose bytes wait for tokens, in the order of their turns. Some of the connections may have
/// ended.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    outbound: Option<VecDeque<(FlowId, Side)>>,
    inbound: Option<VecDeque<(FlowId, Side)>>,
}

impl Waiting {
    /// Memory for a connection, in bytes: two places in each list.
    pub(super) const BYTES: usize = 4 * size_of::<(FlowId, Side)>();

    /// Whether bytes of this direction are moved only in turns.
    pub(super) const fn is_limited(&self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => self.outbound.is_some(),
            Direction::Inbound => self.inbound.is_some(),
        }
    }

    /// Reserves memory for this number of connections, and for as many that ended. Returns false if there is none.
    pub(super) fn reserve(&mut self, connections: usize) -> bool {
        let total = 2 * connections + SPARE;
        [&mut self.outbound, &mut self.inbound]
            .into_iter()
            .flatten()
            .all(|list| list.try_reserve(total.saturating_sub(list.len())).is_ok())
    }

    const fn list(&mut self, direction: Direction) -> Option<&mut VecDeque<(FlowId, Side)>> {
        match direction {
            Direction::Outbound => self.outbound.as_mut(),
            Direction::Inbound => self.inbound.as_mut(),
        }
    }

    /// Adds the sides of a connection to the lists, if their bytes wait for a turn.
    pub(super) fn note<C: Conduit>(&mut self, id: FlowId, entry: &mut Entry<C>) {
        if self.outbound.is_none() && self.inbound.is_none() {
            return;
        }
        for side in Side::ALL {
            let direction = entry.relay.conduit().direction(side);
            let awaits = &mut entry.awaits_turn[side as usize];
            if !*awaits
                && entry.relay.wants_turn(side)
                && let Some(list) = self.list(direction)
                && list.len() < list.capacity()
            {
                *awaits = true;
                list.push_back((id, side));
            }
        }
    }
}

impl<C: Conduit> Bypass<C> {
    /// Makes new connections move bytes only in turns, in the directions that `limit` limits.
    pub fn limit(&mut self, limit: &RateLimit) {
        let list = |direction| limit.is_limited(direction).then(VecDeque::new);
        self.waiting = Waiting { outbound: list(Direction::Outbound), inbound: list(Direction::Inbound) };
    }

    /// Moves bytes that wait for tokens, as far as there are tokens. Must be called at the end of each round.
    /// [`Stack::next_deadline`](crate::stack::Stack::next_deadline) includes the deadline for more tokens.
    pub fn take_turns(&mut self, limit: &mut RateLimit, now: Instant) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            if let Some(bucket) = limit.of(direction) {
                self.take_turns_of(direction, bucket, now);
            }
        }
    }

    fn take_turns_of(&mut self, direction: Direction, bucket: &mut Bucket, now: Instant) {
        self.forget_ended(direction);
        loop {
            let waiting = self.waiting.list(direction).map_or(0, |list| list.len());
            let Some(granted) = bucket.grant(Class::Bypass, waiting, now) else { return };
            let Some((id, side)) = self.waiting.list(direction).and_then(VecDeque::pop_front) else { return };
            let Some(entry) = self.relays.get_mut(id) else { continue };
            entry.awaits_turn[side as usize] = false;
            let mut moved = 0;
            self.step(id, now, |relay| {
                let (next, taken) = relay.take_turn(side, granted);
                moved = taken;
                next
            });
            bucket.spend(Class::Bypass, moved.into());
        }
    }

    /// Limits the length of a list. Each connection is in the list at most once, so a longer list has connections that
    /// ended.
    fn forget_ended(&mut self, direction: Direction) {
        let Self { waiting, relays, .. } = self;
        if let Some(list) = waiting.list(direction)
            && list.len() > 2 * relays.len()
        {
            list.retain(|&(id, _)| relays.get(id).is_some());
        }
    }
}
