//! The retransmission timeout (RFC 6298).

use core::{num::NonZeroU32, time::Duration};

use crate::timer::Instant;

/// Timeout before the first measurement (RFC 6298 §2.1).
const INITIAL: Duration = Duration::from_secs(1);
/// Minimum timeout. It is longer than the time for which a guest may delay an acknowledgment (up to 200 ms).
const MIN: Duration = Duration::from_millis(240);
/// Maximum timeout (RFC 6298 §2.5).
const MAX: Duration = Duration::from_secs(120);

/// The estimated round-trip time, in microseconds.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    smoothed: NonZeroU32,
    variation: u32,
}

/// Round-trip estimation and back-off.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RetransmissionTimeout {
    /// None before the first measurement.
    estimate: Option<Estimate>,
    /// Number of timeouts since the last progress.
    backoff: u8,
}

impl RetransmissionTimeout {
    /// The present timeout.
    pub(super) fn duration(&self) -> Duration {
        let base = match self.estimate {
            None => INITIAL,
            Some(Estimate { smoothed, variation }) => {
                Duration::from_micros(u64::from(smoothed.get()) + 4 * u64::from(variation)).max(MIN)
            }
        };
        base.saturating_mul(1 << self.backoff.min(16)).min(MAX)
    }

    /// Notes a measured round trip. The segment must have been sent only once (Karn's algorithm).
    pub(super) fn measured(&mut self, sent: Instant, now: Instant) {
        let sample = u32::try_from(now.since(sent).as_micros()).unwrap_or(u32::MAX >> 4).min(u32::MAX >> 4);
        let (smoothed, variation) = match self.estimate {
            None => (sample, sample / 2),
            Some(Estimate { smoothed, variation }) => {
                let smoothed = smoothed.get();
                ((7 * smoothed + sample) / 8, (3 * variation + smoothed.abs_diff(sample)) / 4)
            }
        };
        let smoothed = NonZeroU32::new(smoothed).unwrap_or(NonZeroU32::MIN);
        self.estimate = Some(Estimate { smoothed, variation });
    }

    /// Doubles the timeout after it has expired. Returns the number of timeouts since the last progress.
    pub(super) fn expired(&mut self) -> u8 {
        self.backoff = self.backoff.saturating_add(1);
        self.backoff
    }

    /// Ends the back-off, since the guest has answered.
    pub(super) fn progress(&mut self) {
        self.backoff = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_rfc_6298() {
        let mut rto = RetransmissionTimeout::default();
        assert_eq!(rto.duration(), INITIAL);
        let start = Instant::from_micros(0);
        rto.measured(start, start + Duration::from_millis(400));
        assert_eq!(rto.duration(), Duration::from_millis(400 + 4 * 200));
        rto.measured(start, start + Duration::from_millis(400));
        assert_eq!(rto.duration(), Duration::from_millis(400 + 4 * 150));
        assert_eq!(rto.expired(), 1);
        assert_eq!(rto.duration(), Duration::from_millis(2 * (400 + 4 * 150)));
        rto.progress();
        assert_eq!(rto.duration(), Duration::from_millis(400 + 4 * 150));
    }

    #[test]
    fn stays_between_its_bounds() {
        let mut rto = RetransmissionTimeout::default();
        rto.measured(Instant::from_micros(0), Instant::from_micros(10));
        assert_eq!(rto.duration(), MIN);
        for _ in 0..255 {
            rto.expired();
        }
        assert_eq!(rto.duration(), MAX);
    }
}
