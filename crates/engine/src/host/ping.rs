//! The interface of a ping socket that the engine needs.

use core::net::SocketAddr;

use wire::icmp::Header;

use super::{ErrorQueue, Received, SocketError};
use crate::memory::{Memory, PayloadOf};

/// An echo request to be sent.
#[derive(Clone, Copy, Debug)]
pub struct EchoRequest<'a, P> {
    /// The destination. Its port is zero.
    pub destination: SocketAddr,
    /// The message's header. The socket fills in its own identifier and the checksum.
    pub header: &'a Header,
    /// The payload after the header.
    pub payload: P,
    /// Time to live or hop limit; not zero.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// If true, the host refuses the request if it exceeds the path's MTU.
    pub dont_fragment: bool,
}

/// A non-blocking, unconnected ping socket (`SOCK_DGRAM`, `IPPROTO_ICMP` or `IPPROTO_ICMPV6`).
pub trait PingSocket: ErrorQueue {
    /// The memory that holds the payload of frames.
    type Memory: Memory;

    /// Sends a request.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be caused by an earlier request. The kernel reports such an error once, and
    /// does not send the present request.
    fn send(&mut self, request: &EchoRequest<'_, PayloadOf<'_, Self::Memory>>) -> Result<(), SocketError>;

    /// Receives a message, header and payload, into `buffer`. If `buffer` is empty, drops one message.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be caused by an earlier request. The kernel reports such an error once.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError>;
}
