//! A network in virtual time: it delays, loses, reorders and duplicates frames.

use std::{collections::BTreeMap, vec::Vec};

use super::random::Random;

/// Rate of a direction, in bytes per microsecond: 10 Gbit/s.
pub const RATE: u64 = 1250;
/// The first frames of each direction are not impaired, so that the duration of a run does not depend on the handshake.
/// Other tests cover lost handshakes.
const SPARED: u64 = 4;

/// The impairments of one direction of a network.
#[derive(Clone, Copy, Debug)]
pub struct Impairments {
    /// Lost frames per thousand.
    pub loss: u32,
    /// Frames per thousand that later frames overtake.
    pub reordering: u32,
    /// Frames per thousand that arrive twice.
    pub duplication: u32,
    /// One-way delay, in microseconds.
    pub delay: u64,
}

impl Impairments {
    /// A clean network with a delay of 100 microseconds.
    pub const CLEAN: Self = Self { loss: 0, reordering: 0, duplication: 0, delay: 100 };
}

/// Frames in flight in one direction. Times are in microseconds.
#[derive(Debug)]
pub struct Direction {
    impairments: Impairments,
    random: Random,
    in_flight: BTreeMap<(u64, u64), Vec<u8>>,
    taken: u64,
    free_at: u64,
}

impl Direction {
    /// A direction without frames in flight.
    pub const fn new(impairments: Impairments, seed: u64) -> Self {
        Self { impairments, random: Random::new(seed), in_flight: BTreeMap::new(), taken: 0, free_at: 0 }
    }

    /// Sends a frame.
    pub fn send(&mut self, now: u64, frame: &[u8]) {
        self.taken += 1;
        self.free_at = self.free_at.max(now) + (frame.len() as u64).div_ceil(RATE);
        let spared = self.taken <= SPARED;
        let Impairments { loss, reordering, duplication, delay } = self.impairments;
        if self.random.permille(loss) && !spared {
            return;
        }
        let copies = if self.random.permille(duplication) && !spared { 2 } else { 1 };
        for copy in 0..copies {
            let late = self.random.permille(reordering) && !spared;
            let extra = if late { 50 + self.random.below(delay.max(100) as usize) as u64 } else { 0 };
            self.in_flight.insert((self.free_at + delay + extra, self.taken * 2 + copy), frame.to_vec());
        }
    }

    /// The time at which the next frame arrives.
    pub fn next(&self) -> Option<u64> {
        self.in_flight.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes and returns a frame that has arrived.
    pub fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// The time at which the last frame sent so far has left the sender.
    pub const fn free_at(&self) -> u64 {
        self.free_at
    }

    /// Number of bytes that have not left the sender at the time `now`.
    pub const fn backlog(&self, now: u64) -> u64 {
        self.free_at.saturating_sub(now) * RATE
    }
}
