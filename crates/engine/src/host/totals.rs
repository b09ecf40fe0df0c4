//! The traffic of a socket or flow.

use core::time::Duration;

/// The traffic of a flow in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The traffic that was sent.
    pub sent: Amount,
    /// The traffic that was received.
    pub received: Amount,
}

/// The traffic of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Number of bytes of payload. Retransmitted bytes are counted once.
    pub bytes: u64,
    /// Number of segments, datagrams or echo messages. None if they were not counted.
    pub packets: Option<u64>,
}

/// What the host's kernel knows about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The traffic of the socket: to its peer (sent) and from its peer (received). The end of a stream may count as a
    /// byte.
    pub totals: Totals,
    /// The path to the peer. None if there is no path.
    pub path: Option<Path>,
}

/// The path of a connection to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The smoothed round-trip time.
    pub rtt: Duration,
    /// Number of segments that were sent again.
    pub retransmissions: u32,
}

impl Totals {
    /// Totals without counts of packets.
    #[must_use]
    pub const fn bytes(sent: u64, received: u64) -> Self {
        Self {
            sent: Amount { bytes: sent, packets: None },
            received: Amount { bytes: received, packets: None },
        }
    }
}

impl Default for Amount {
    fn default() -> Self {
        Self { bytes: 0, packets: Some(0) }
    }
}

impl Amount {
    /// Adds a number of packets, and their payload in bytes.
    pub(crate) fn add(&mut self, bytes: usize, packets: usize) {
        self.bytes += bytes as u64;
        self.packets = self.packets.map(|counted| counted + packets as u64);
    }
}
