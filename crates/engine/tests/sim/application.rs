//! The applications of the two ends: the amount and speed of data that they send and read, and the time when they
//! close.

/// The time at which one end closes its half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// The end closes as soon as it has sent all its bytes.
    WhenSent,
    /// The end closes when it has sent all its bytes, and has read the other end's stream to its end.
    WhenOtherClosed,
}

/// The speed at which one end reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// The end reads bytes at once.
    Fast,
    /// The end reads this many bytes, and then pauses for this many microseconds.
    Slow(u64, u64),
}

/// The application of one end.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub(crate) total: u64,
    pub(crate) close: Close,
    pub(crate) pace: Pace,
    /// Number of bytes that the application has written to its socket, and that it has read from its socket.
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Whether the application has read the other end's stream to its end.
    pub(crate) ended: bool,
    /// Whether the application has closed its half.
    pub(crate) closed: bool,
    rests_until: u64,
}

impl Application {
    pub(crate) fn new(total: u64, close: Close, pace: Pace) -> Self {
        Self { total, close, pace, sent: 0, received: 0, ended: false, closed: false, rests_until: 0 }
    }

    pub(crate) fn to_send(&self) -> u64 {
        self.total - self.sent
    }

    pub(crate) fn wants_to_close(&self) -> bool {
        !self.closed && self.to_send() == 0 && (self.close == Close::WhenSent || self.ended)
    }

    /// Number of bytes that the application would read now.
    pub(crate) fn may_read(&self, now: u64) -> u64 {
        match self.pace {
            Pace::Fast => u64::MAX,
            Pace::Slow(bytes, _) if now >= self.rests_until => bytes,
            Pace::Slow(..) => 0,
        }
    }

    pub(crate) fn was_read(&mut self, len: u64, now: u64) {
        self.received += len;
        if let Pace::Slow(_, rest) = self.pace {
            self.rests_until = now + rest;
        }
    }

    /// The time at which the application becomes active without an event.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        Some(self.rests_until).filter(|&until| until > now)
    }
}
