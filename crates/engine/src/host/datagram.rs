//! The interface of a datagram socket that the engine needs.

use core::net::{IpAddr, SocketAddr};

use super::{ErrorQueue, SocketError};
use crate::memory::{Memory, PayloadOf};

/// A datagram to be sent. With a segment size, a train of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundDatagram<P> {
    /// The destination.
    pub destination: SocketAddr,
    /// The source address, which is an address of the host. None: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Time to live or hop limit; not zero.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// If true, the host refuses the datagram if it exceeds the path's MTU. If false, the host may fragment the
    /// datagram; for IPv4, any router may do so.
    pub dont_fragment: bool,
    /// The payload.
    pub payload: P,
    /// If given, the payload is split into datagrams of this many bytes. The last datagram may be shorter. Not zero.
    pub segment_size: Option<u16>,
}

/// A received datagram, or a train of datagrams from one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Number of bytes in the buffer or room.
    pub len: usize,
    /// The datagram was longer than the buffer or room, and was cut.
    pub truncated: bool,
    /// Size of all datagrams except the last, in bytes. None if there is only one datagram.
    pub segment_size: Option<u16>,
    /// The sender.
    pub from: SocketAddr,
    /// The address to which the sender sent the datagram, if known.
    pub destination: Option<IpAddr>,
    /// The host's address from which to answer, if known. It is `destination`, unless `destination` is a group.
    pub local: Option<IpAddr>,
    /// Time to live or hop limit, if known.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: u8,
}

/// An unconnected, non-blocking datagram socket.
pub trait UdpSocket: ErrorQueue {
    /// The memory that holds the payload of frames.
    type Memory: Memory;

    /// Sends a datagram or train. If the host can't cut a train, the datagrams are sent one by one, without an error.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be caused by an earlier datagram. The kernel reports such an error once, and
    /// does not send the present datagram. A datagram that exceeds the path's MTU leaves an entry in the error queue.
    fn send(&mut self, datagram: &OutboundDatagram<PayloadOf<'_, Self::Memory>>) -> Result<(), SocketError>;

    /// Receives a datagram or train into `room`. If the room is empty, drops one datagram.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be caused by an earlier datagram. The kernel reports such an error once.
    fn receive(&mut self, room: <Self::Memory as Memory>::Room<'_>) -> Result<Received, SocketError>;

    /// Whether the socket has the port that was requested when it was opened.
    fn keeps_port(&self) -> bool;
}
