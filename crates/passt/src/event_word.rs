//! Epoll words: what an event is of.
//!
//! A flow's word is its `FlowId`, whose highest byte is not zero. Here is everything else that an event loop watches.

/// Signals.
pub(crate) const SIGNALS: u64 = 1;
/// What tells that the namespace goes away.
pub(crate) const NAMESPACE: u64 = 2;
/// The control socket, where clients come in.
pub(crate) const CONTROL: u64 = 3;
/// The client of the control socket.
pub(crate) const CONTROL_CLIENT: u64 = 4;
/// News of the host's resolvers.
pub(crate) const RESOLVERS: u64 = 5;
/// Neighbours on the host's links have changed.
pub(crate) const NEIGHBOURS: u64 = 6;
/// Marks the word of a listening stream socket, whose index is in the low bits.
pub(crate) const ACCEPTOR: u64 = 1 << 32;
/// Marks the word of one of the link's descriptors; which one it is, only the link knows.
const LINK: u64 = 1 << 33;

/// The word of a link's descriptor.
pub(crate) const fn link(source: u32) -> u64 {
    LINK | source as u64
}

/// Which of the link's descriptors a word stands for.
pub(crate) const fn of_link(word: u64) -> Option<u32> {
    if word & !(u32::MAX as u64) == LINK { Some(word as u32) } else { None }
}
