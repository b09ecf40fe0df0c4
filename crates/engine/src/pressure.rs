//! What is left to do after a round of the event loop.
//!
//! While the link is full, bytes of TCP stay in the sockets of the host, and connections wait for their turn. Datagrams
//! and pings are read and dropped, and counted ([`Drops::link_full`](crate::drops::Drops::link_full)). Answers of local
//! services are not sent: the guest asks again.

/// How long the event loop may wait after a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub enum Pressure {
    /// Until something happens, or until the next deadline.
    #[default]
    None,
    /// Not at all: flows have more to send than their turn allowed. Look for events, and do another round.
    MoreToSend,
    /// The link took no more. Wait until it has room, and report that to the next round.
    LinkFull,
}
