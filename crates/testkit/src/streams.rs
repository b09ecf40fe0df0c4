//! The content of streams. Each sufficiently long part of a stream occurs at only one position.

use std::{sync::LazyLock, vec::Vec};

use super::random::Random;

/// The period of a stream, in bytes. It is prime, so no segment size or buffer length divides it.
const PERIOD: usize = 65_521;
/// Maximum number of bytes that are compared at once.
const LONGEST: usize = 1 << 17;

/// The content of a stream, by position modulo 2^32.
pub struct Bytes(LazyLock<Vec<u8>>);

/// The stream from the guest to the host.
pub static UPWARD: Bytes = Bytes(LazyLock::new(|| period(1)));
/// The stream from the host to the guest.
pub static DOWNWARD: Bytes = Bytes(LazyLock::new(|| period(2)));

fn period(seed: u64) -> Vec<u8> {
    let period = Random::new(seed).bytes(PERIOD);
    period.iter().copied().cycle().take(PERIOD + LONGEST).collect()
}

impl Bytes {
    /// Up to `len` bytes of the stream, from `position` on. At least one byte, unless `len` is zero.
    fn at(&self, position: u32, len: usize) -> &[u8] {
        let start = position as usize % PERIOD;
        let until_wrap = (1 << 32) - u64::from(position);
        &self.0[start..start + len.min(LONGEST).min(until_wrap as usize)]
    }

    /// Fills `buffer` with the bytes of the stream from `position` on.
    pub fn fill(&self, mut position: u32, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let bytes = self.at(position, buffer.len());
            let (now, later) = buffer.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            position = position.wrapping_add(bytes.len() as u32);
            buffer = later;
        }
    }

    /// Whether `bytes` are equal to the stream from `position` on.
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

    /// Panics unless `bytes` are equal to the stream from `position` on.
    #[track_caller]
    pub fn check(&self, position: u32, bytes: &[u8]) {
        assert!(
            self.has(position, bytes),
            "the {} bytes from {position} on are not the stream's",
            bytes.len()
        );
    }
}
