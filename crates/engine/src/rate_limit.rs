//! Rate limits of the guest as a whole: a bucket of tokens for each direction (docs/design/rate-limit.md).

mod rate;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use core::time::Duration;

pub use rate::{InvalidRate, Rate};

use crate::{drops::Drops, forward::spec::Direction, timer::Instant};

/// The capacity of a bucket, as the time in which this many tokens are added.
const BURST: Duration = Duration::from_millis(50);
/// Minimum capacity of a class, in bytes: two Ethernet packets of maximum size, and a few small ones.
const MIN_CLASS: u64 = 4096;
/// The length of a turn, as the time in which this many tokens are added.
const TURN: Duration = Duration::from_micros(2500);
/// Minimum length of a turn, in bytes: the payload of a full segment on an Ethernet.
const MIN_TURN: u64 = 1460;
/// Maximum length of a turn, in bytes: about one super-frame.
const MAX_TURN: u64 = 64 << 10;
/// Waiting flows are woken when the tokens of this time have been added.
const WAKE: Duration = Duration::from_millis(5);
/// Minimum time from one wake-up to the next one.
const MIN_WAIT: Duration = Duration::from_millis(1);
/// Datagrams up to this length, in bytes with headers, may use all tokens of their class. Longer datagrams leave a
/// quarter of the class's capacity unused.
const SHORT: u64 = 512;
/// How far the guest's stream may be ahead of its turns, as the time in which this many tokens are added.
const WINDOW: Duration = Duration::from_millis(200);

/// Tokens, in millionths of a bit. A rate of `n` bits per second adds `n` of these units per microsecond.
type Units = i64;
const UNITS_PER_BYTE: u64 = 8_000_000;

/// The classes of traffic that share a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// TCP through the link.
    Tcp = 0,
    /// TCP that bypasses the link.
    Bypass = 1,
    /// UDP and ping.
    Datagrams = 2,
}

const CLASSES: usize = 3;

/// The rate limits of a guest. By default, no direction is limited.
#[derive(Debug, Default)]
pub struct RateLimit {
    outbound: Option<Box<Bucket>>,
    inbound: Option<Box<Bucket>>,
}

/// A datagram, or a train of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Payload of all datagrams, in bytes.
    pub(crate) len: usize,
    /// For a train: payload of each datagram except the last one, in bytes.
    pub(crate) segment_size: Option<u16>,
    /// IPv4, not IPv6.
    pub(crate) v4: bool,
}

impl RateLimit {
    /// Limits for the traffic from the guest (`outbound`) and to the guest (`inbound`).
    #[must_use]
    pub fn new(outbound: Option<Rate>, inbound: Option<Rate>, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Box::new(Bucket::new(rate, now)));
        Self { outbound: bucket(outbound), inbound: bucket(inbound) }
    }

    /// The bucket of a direction, if the direction is limited. [`Direction::Inbound`] is the direction to the guest.
    pub(crate) fn of(&mut self, direction: Direction) -> Option<&mut Bucket> {
        match direction {
            Direction::Outbound => self.outbound.as_deref_mut(),
            Direction::Inbound => self.inbound.as_deref_mut(),
        }
    }

    /// Whether no direction is limited.
    pub(crate) const fn is_absent(&self) -> bool {
        self.outbound.is_none() && self.inbound.is_none()
    }

    /// Whether a direction is limited.
    #[must_use]
    pub const fn is_limited(&self, direction: Direction) -> bool {
        match direction {
            Direction::Outbound => self.outbound.is_some(),
            Direction::Inbound => self.inbound.is_some(),
        }
    }

    /// How far the guest's stream may be ahead of its turns, in bytes. None if the outbound direction is not limited.
    pub(crate) fn window(&self) -> Option<u64> {
        self.outbound.as_ref().map(|bucket| bucket.rate.bytes_in(WINDOW))
    }

    /// The time at which waiting flows should get turns.
    pub(crate) fn next(&self) -> Option<Instant> {
        let due = [&self.outbound, &self.inbound].map(|bucket| bucket.as_ref()?.next());
        due.into_iter().flatten().min()
    }

    /// The part of a load that the limit allows: its first datagrams. The other datagrams are counted in `drops`. None
    /// if no datagram is allowed.
    #[inline]
    pub(crate) fn pass(
        &mut self,
        direction: Direction,
        load: Load,
        now: Instant,
        drops: &mut Drops,
    ) -> Option<Load> {
        let Some(bucket) = self.of(direction) else { return Some(load) };
        let (len, dropped) = bucket.pass(&load, now);
        drops.over_limit += dropped;
        let len = len?;
        Some(Load { len, segment_size: load.segment_size.filter(|&size| len > usize::from(size)), ..load })
    }
}

/// The tokens of one direction.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// The tokens of each class. A class can be in debt.
    tokens: [Units; CLASSES],
    /// Whether flows of each class wait for tokens.
    waiting: [bool; CLASSES],
    /// The time up to which tokens were added.
    since: Instant,
}

impl Bucket {
    /// A full bucket.
    fn new(rate: Rate, now: Instant) -> Self {
        let bucket = Self { rate, tokens: [0; CLASSES], waiting: [false; CLASSES], since: now };
        Self { tokens: [bucket.share(); CLASSES], ..bucket }
    }

    /// Each class's share of the bucket's capacity.
    fn share(&self) -> Units {
        to_units(self.rate.bytes_in(BURST) / CLASSES as u64).max(to_units(MIN_CLASS))
    }

    /// Maximum number of tokens of a class.
    fn capacity(&self, class: usize) -> Units {
        let waiting = self.waiting.get(class).copied().unwrap_or_default();
        if waiting { to_units(self.rate.bytes_in(BURST)).max(self.share()) } else { self.share() }
    }

    /// Length of a turn, in bytes.
    fn turn(&self) -> u64 {
        self.rate.bytes_in(TURN).clamp(MIN_TURN, MAX_TURN)
    }

    /// Adds the tokens for the time since the last call, in equal parts to all classes that are not full.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.since(self.since).as_micros();
        let new = elapsed.saturating_mul(self.rate.bits_per_second().into());
        let mut new = Units::try_from(new).unwrap_or(Units::MAX);
        self.since = self.since.max(now);
        while new > 0 {
            let room: [Units; CLASSES] =
                core::array::from_fn(|class| self.capacity(class) - self.tokens[class]);
            let open = room.iter().filter(|&&room| room > 0).count();
            if open == 0 {
                break;
            }
            // The remainder of the division goes to the first classes.
            let part = (new / open as Units).max(1);
            for (tokens, room) in self.tokens.iter_mut().zip(room).filter(|(_, room)| *room > 0) {
                let added = part.min(room).min(new);
                *tokens += added;
                new -= added;
            }
        }
    }

    /// How many bytes the next flow of a class may move. `waiting` is the number of flows of this class that wait. None
    /// if no flow waits, or if there are too few tokens for a turn. Then the flows wait until
    /// [`Stack::next_deadline`](crate::stack::Stack::next_deadline).
    pub(crate) fn grant(&mut self, class: Class, waiting: usize, now: Instant) -> Option<u32> {
        self.set_waiting(class, waiting > 0);
        if waiting == 0 {
            return None;
        }
        self.refill(now);
        let bytes = u64::try_from(self.tokens[class as usize]).unwrap_or(0) / UNITS_PER_BYTE;
        if bytes < self.turn() {
            return None;
        }
        let part = (bytes / waiting as u64).max(self.turn());
        Some(u32::try_from(part).unwrap_or(u32::MAX))
    }

    /// Sets whether flows of a class wait for tokens. A flow that also waits for something else does not count.
    pub(crate) const fn set_waiting(&mut self, class: Class, waiting: bool) {
        self.waiting[class as usize] = waiting;
    }

    /// Takes the tokens for `bytes` that a flow has moved.
    pub(crate) fn spend(&mut self, class: Class, bytes: u64) {
        self.tokens[class as usize] -= to_units(bytes);
    }

    /// The length of the part that is allowed (see [`RateLimit::pass`]), in bytes, and the number of dropped datagrams.
    fn pass(&mut self, load: &Load, now: Instant) -> (Option<usize>, u64) {
        self.refill(now);
        let size = load.segment_size.map_or(load.len, usize::from).max(1);
        let (mut passed, mut dropped) = (None, 0);
        for start in (0..load.len.max(1)).step_by(size) {
            let len = size.min(load.len - start);
            if dropped == 0 && self.take(len as u64 + headers(load.v4)) {
                passed = Some(start + len);
            } else {
                dropped += 1;
            }
        }
        (passed, dropped)
    }

    /// Takes the tokens for a datagram, if there are enough.
    fn take(&mut self, len: u64) -> bool {
        let share = self.share();
        let kept = if len > SHORT { share / 4 } else { 0 };
        let tokens = &mut self.tokens[Class::Datagrams as usize];
        let pass = *tokens >= (to_units(len) + kept).min(share);
        if pass {
            *tokens -= to_units(len);
        }
        pass
    }

    /// The time at which there are enough tokens to wake the waiting flows. None if no flow waits.
    fn next(&self) -> Option<Instant> {
        let wanted = to_units(self.turn().max(self.rate.bytes_in(WAKE)));
        let open = (0..CLASSES).filter(|&class| self.tokens[class] < self.capacity(class)).count();
        let waits = (0..CLASSES).filter(|&class| self.waiting[class]).map(|class| {
            let missing = u128::try_from(wanted - self.tokens[class]).unwrap_or(0) * open.max(1) as u128;
            let micros = missing.div_ceil(self.rate.bits_per_second().into());
            Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)).max(MIN_WAIT)
        });
        waits.min().map(|wait| self.since + wait)
    }
}

/// Length of the UDP or ICMP header and the IP header, in bytes.
const fn headers(v4: bool) -> u64 {
    8 + if v4 { 20 } else { 40 }
}

fn to_units(bytes: u64) -> Units {
    Units::try_from(bytes.saturating_mul(UNITS_PER_BYTE)).unwrap_or(Units::MAX)
}
