//! Reproducible randomness (SplitMix64).

use std::vec::Vec;

/// The distance of two states.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator of random numbers. For one seed, it gives the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for this seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for this seed after `count` numbers.
    const fn after(seed: u64, count: u64) -> Self {
        Self(seed.wrapping_add(count.wrapping_mul(STEP)))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`. Zero if `bound` is zero.
    pub const fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.next() % bound as u64) as usize }
    }

    /// `len` random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// True with a probability of `permille` / 1000.
    pub const fn permille(&mut self, permille: u32) -> bool {
        self.below(1000) < permille as usize
    }
}

/// Fills `buffer` with the bytes of the sequence `seed` from `offset` on. A receiver needs no copy of a transfer to check it:
/// seed and offset determine each byte.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let (mut random, skip) = (Random::after(seed, offset / 8), (offset % 8) as usize);
    let mut word = || random.next().to_ne_bytes();
    let mut rest = buffer;
    if skip != 0 {
        let (start, later) = rest.split_at_mut(rest.len().min(8 - skip));
        start.copy_from_slice(&word()[skip..][..start.len()]);
        rest = later;
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&word()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_the_bytes_of_the_whole() {
        let mut whole = [0; 100];
        fill(7, 0, &mut whole);
        assert_eq!(whole[..8], Random::new(7).next().to_ne_bytes());
        for start in 0..20 {
            for len in 0..30 {
                let mut part = std::vec![0; len];
                fill(7, start as u64, &mut part);
                assert_eq!(part, whole[start..start + len], "{start}, {len}");
            }
        }
    }
}
