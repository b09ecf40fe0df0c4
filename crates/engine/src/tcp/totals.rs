//! How much a connection has carried (docs/design/flow-log.md).
//!
//! The connection's own counts are sequence numbers, which wrap after 4 GiB. The kernel counts with 64 bits, but
//! something else: the end of a stream counts as a byte, received bytes count before the guest has them, and bytes in
//! the send buffer don't count. The counts differ by less than 2 GiB, so each provides what the other lacks.

use super::conn::{Connection, Phase};
use crate::{
    context::World,
    events::How,
    host::{Amount, TcpSocket as _, Totals},
};

impl<W: World> Connection<W> {
    /// Reports the end of the connection.
    pub(super) fn report_end(&mut self, how: How) {
        if self.account.is_open() {
            let totals = self.totals();
            self.account.close_with(how, totals);
        }
    }

    /// The bytes of the guest that the socket has accepted, and the bytes that the guest has acknowledged.
    fn totals(&mut self) -> Option<Totals> {
        let Totals { sent, received } = self.socket.totals()?;
        // What a refused client has sent was discarded.
        let accepted = if self.phase == Phase::Refused { 0 } else { self.receive.accepted() };
        Some(Totals { sent: aligned(sent, accepted), received: aligned(received, self.send.acknowledged()) })
    }
}

/// `count`, with the number of bytes that is nearest to it and equal to `bytes` modulo 2^32.
fn aligned(count: Amount, bytes: u32) -> Amount {
    let difference = bytes.wrapping_sub(count.bytes as u32).cast_signed();
    Amount { bytes: count.bytes.saturating_add_signed(difference.into()), ..count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_32_bits() {
        let of = |count, bytes| aligned(Amount { bytes: count, packets: Some(7) }, bytes).bytes;
        assert_eq!(of(1001, 1000), 1000);
        assert_eq!(of((5 << 32) + 1, 0), 5 << 32);
        assert_eq!(of(5 << 32, u32::MAX), (5 << 32) - 1);
        assert_eq!(of((5 << 32) - 1, 3), (5 << 32) + 3);
        // Before the handshake, nothing has been acknowledged, not even the SYN.
        assert_eq!(of(1000, u32::MAX), 0);
        assert_eq!(of(0, u32::MAX), 0);
    }
}
