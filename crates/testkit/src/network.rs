//! A network in virtual time: it delays, loses, reorders and repeats frames.

use std::{collections::BTreeMap, vec::Vec};

use super::random::Random;

/// Bytes per microsecond that a direction carries: 10 Gbit/s.
pub const RATE: u64 = 1250;
/// Frames of each direction that are spared, so that the handshake does not decide how long a run takes: lost
/// handshakes have tests of their own.
const SPARED: u64 = 4;

/// What a network does to frames, in either direction.
#[derive(Clone, Copy, Debug)]
pub struct Impairments {
    /// Frames lost, in a thousand.
    pub loss: u32,
    /// Frames that later ones overtake, in a thousand.
    pub reordering: u32,
    /// Frames that arrive twice, in a thousand.
    pub duplication: u32,
    /// Time from end to end, in microseconds.
    pub delay: u64,
}

impl Impairments {
    /// A clean network with a delay of 100 microseconds.
    pub const CLEAN: Self = Self { loss: 0, reordering: 0, duplication: 0, delay: 100 };
}

/// Frames on their way in one direction. Times are microseconds.
#[derive(Debug)]
pub struct Direction {
    impairments: Impairments,
    random: Random,
    in_flight: BTreeMap<(u64, u64), Vec<u8>>,
    taken: u64,
    free_at: u64,
}

impl Direction {
    /// With nothing on its way.
    pub const fn new(impairments: Impairments, seed: u64) -> Self {
        Self { impairments, random: Random::new(seed), in_flight: BTreeMap::new(), taken: 0, free_at: 0 }
    }

    /// Takes a frame.
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

    /// When the next frame arrives.
    pub fn next(&self) -> Option<u64> {
        self.in_flight.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes out a frame that has arrived.
    pub fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        let entry = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// When the frames taken so far have left.
    pub const fn free_at(&self) -> u64 {
        self.free_at
    }

    /// Bytes that wait to leave.
    pub const fn backlog(&self, now: u64) -> u64 {
        self.free_at.saturating_sub(now) * RATE
    }
}
