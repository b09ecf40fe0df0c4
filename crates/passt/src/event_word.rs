//! Epoll words: what an event is of.
//!
//! A flow's word is its `FlowId`, whose highest byte is not zero. Here is everything else that an event loop watches.

/// The link.
pub(crate) const LINK: u64 = 0;
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
