//! The traffic of a connection (docs/design/flow-log.md).
//!
//! The connection's own counts are exact, but they are sequence numbers, which wrap after 4 GiB. The kernel's counts
//! have 64 bits, but they are not exact: the end of a stream counts as a byte, received bytes count before the guest
//! has them, and bytes in the send buffer do not count. The two counts differ by less than 2 GiB. So the kernel's count
//! gives the high bits, and the connection's count gives the low bits.

use super::conn::{Connection, Phase};
use crate::{
    context::World,
    events::How,
    host::{Amount, Info, TcpSocket as _, Totals},
};

impl<W: World> Connection<W> {
    /// Reports the end of the connection.
    pub(super) fn report_end(&mut self, how: How) {
        if self.rare.account().is_some() {
            let totals = self.info().map(|info| info.totals);
            let opened = !matches!(self.phase, Phase::Connecting | Phase::SynSent | Phase::SynReceived);
            if let Some(account) = self.rare.account_mut() {
                account.close_with(how, opened, totals);
            }
        }
    }

    /// The bytes of the guest that the socket has accepted, the bytes that the guest has acknowledged, and the path to
    /// the peer.
    pub(super) fn info(&mut self) -> Option<Info> {
        let Info { totals: Totals { sent, received }, path } = self.socket.info()?;
        // The bytes of a refused client were discarded.
        let accepted = if self.phase == Phase::Refused { 0 } else { self.receive.accepted() };
        let (sent, received) = (aligned(sent, accepted), aligned(received, self.send.acknowledged()));
        Some(Info { totals: Totals { sent, received }, path })
    }
}

/// `count` with its number of bytes replaced by the nearest number that is equal to `bytes` modulo 2^32.
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
        // Before the handshake, the SYN is not acknowledged, so the connection's count is -1.
        assert_eq!(of(1000, u32::MAX), 0);
        assert_eq!(of(0, u32::MAX), 0);
    }
}
