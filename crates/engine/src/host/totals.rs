//! How much a socket or flow has carried.

/// What was carried in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// What was sent.
    pub sent: Amount,
    /// What was received.
    pub received: Amount,
}

/// What was carried in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Bytes of payload. Bytes that were sent again are counted once.
    pub bytes: u64,
    /// Packets: segments, datagrams, or echo messages. None if they were not counted.
    pub packets: Option<u64>,
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
    /// Adds `packets` with `bytes` of payload together.
    pub(crate) fn add(&mut self, bytes: usize, packets: usize) {
        self.bytes += bytes as u64;
        self.packets = self.packets.map(|counted| counted + packets as u64);
    }
}
