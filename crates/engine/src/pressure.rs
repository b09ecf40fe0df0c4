//! The work that is left after a round of the event loop.
//!
//! While the link is full, bytes of TCP stay in the sockets of the host, and connections wait for their turn.
//! Datagrams and pings are read, dropped, and counted ([`Drops::link_full`](crate::drops::Drops::link_full)). Answers
//! of local services are not sent, since the guest will ask again.

/// How long the event loop may wait after a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub enum Pressure {
    /// Wait until the next event or the next deadline.
    #[default]
    None,
    /// Do not wait: flows have more to send than their turn allowed. Check for events, and begin another round.
    MoreToSend,
    /// The link is full. Wait until the link has room, and report this to the next round.
    LinkFull,
}
