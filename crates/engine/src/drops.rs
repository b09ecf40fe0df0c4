//! Counts of datagrams that were dropped.

use crate::link::Full;

/// UDP datagrams or echo messages that were dropped since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// From the guest: the source or the destination is not allowed (behaviour §5.2, R-100).
    pub invalid: u64,
    /// From the guest: the guard refuses the flow.
    pub refused: u64,
    /// The rate limit of the direction is exceeded (docs/design/rate-limit.md).
    pub over_limit: u64,
    /// A limit of flows or sockets is reached, or the host could not open a socket.
    pub no_room: u64,
    /// The host's socket was full, or refused to send.
    pub not_sent: u64,
    /// The link to the guest was full.
    pub link_full: u64,
    /// From the host: the datagram is longer than an IP packet, its sender's address can't be shown to the guest, or
    /// it is not a reply.
    pub undeliverable: u64,
}

impl Drops {
    /// The sum of all counts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.invalid
            + self.refused
            + self.over_limit
            + self.no_room
            + self.not_sent
            + self.link_full
            + self.undeliverable
    }

    /// Counts a datagram for the guest if the datagram was not sent: the link was full, or (none) the datagram was too
    /// long for a frame.
    pub(crate) const fn note_sent(&mut self, sent: Option<Result<(), Full>>) {
        match sent {
            None => self.undeliverable += 1,
            Some(Err(Full)) => self.link_full += 1,
            Some(Ok(())) => {}
        }
    }
}
