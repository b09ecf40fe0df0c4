//! The content of streams: any longer part occurs at only one position of its stream.

use std::{sync::LazyLock, vec::Vec};

use super::random::Random;

/// Prime, so that no segment size or buffer length divides it.
const PERIOD: usize = 65_521;
/// Maximum number of bytes that are compared at once.
const LONGEST: usize = 1 << 17;

/// The content of a stream, by position modulo 2^32.
pub struct Bytes(LazyLock<Vec<u8>>);

/// From the guest to the host.
pub static UPWARD: Bytes = Bytes(LazyLock::new(|| period(1)));
/// From the host to the guest.
pub static DOWNWARD: Bytes = Bytes(LazyLock::new(|| period(2)));

fn period(seed: u64) -> Vec<u8> {
    let period = Random::new(seed).bytes(PERIOD);
    period.iter().copied().cycle().take(PERIOD + LONGEST).collect()
}

impl Bytes {
    /// Up to `len` bytes from `position` on; at least one unless `len` is zero.
    fn at(&self, position: u32, len: usize) -> &[u8] {
        let start = position as usize % PERIOD;
        let until_wrap = (1 << 32) - u64::from(position);
        &self.0[start..start + len.min(LONGEST).min(until_wrap as usize)]
    }

    /// Fills `buffer` with the stream from `position` on.
    pub fn fill(&self, mut position: u32, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let bytes = self.at(position, buffer.len());
            let (now, later) = buffer.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            position = position.wrapping_add(bytes.len() as u32);
            buffer = later;
        }
    }

    /// Whether `bytes` are the stream's from `position` on.
    pub fn has(&self, mut position: u32, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let expected = self.at(position, bytes.len());
            let (now, later) = bytes.split_at(expected.len());
            if now != expected {
                return false;
            }
            position = position.wrapping_add(now.len() as u32);
            bytes = later;
        }
        true
    }

    /// Panics unless `bytes` are the stream's from `position` on.
    #[track_caller]
    pub fn check(&self, position: u32, bytes: &[u8]) {
        assert!(
            self.has(position, bytes),
            "the {} bytes from {position} on are not the stream's",
            bytes.len()
        );
    }
}
