//! What the engine needs of a datagram socket.

use core::net::{IpAddr, SocketAddr};

use super::{ErrorQueue, SocketError};
use crate::memory::{Memory, PayloadOf};

/// A datagram, or with a segment size a train of them, to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundDatagram<P> {
    /// The destination.
    pub destination: SocketAddr,
    /// The source address, one of the host's. None: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Time to live or hop limit; not zero.
    pub hop_limit: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The host refuses it if it exceeds the path's MTU. If false, the host may fragment it, and for IPv4 any router.
    pub dont_fragment: bool,
    /// The payload.
    pub payload: P,
    /// Cut the payload into datagrams of this many bytes (the last may be shorter); not zero.
    pub segment_size: Option<u16>,
}

/// A received datagram, or a train of them of one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer or room.
    pub len: usize,
    /// The datagram was longer than the buffer or room, and was cut.
    pub truncated: bool,
    /// Size of all datagrams except the last, in bytes, if there is more than one.
    pub segment_size: Option<u16>,
    /// The sender.
    pub from: SocketAddr,
    /// The address that the sender wrote to, if known.
    pub destination: Option<IpAddr>,
    /// The host's address to answer from, if known: `destination`, except for groups.
    pub local: Option<IpAddr>,
    /// Time to live or hop limit, if known.
    pub hop_limit: Option<u8>,
    /// DSCP and ECN.
    pub traffic_class: u8,
}

/// An unconnected, non-blocking datagram socket.
pub trait UdpSocket: ErrorQueue {
    /// Where the payload of frames lies.
    type Memory: Memory;

    /// Sends a datagram or train. A train that the host can't cut goes out in pieces, without an error.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be that of an earlier datagram, which is reported once; nothing was sent
    /// then. A datagram that exceeds the path's MTU leaves an entry in the error queue.
    fn send(&mut self, datagram: &OutboundDatagram<PayloadOf<'_, Self::Memory>>) -> Result<(), SocketError>;

    /// Receives a datagram or train into `room`. Without any room, drops one.
    ///
    /// # Errors
    /// See [`SocketError`]. The error may be that of an earlier datagram, which is reported once.
    fn receive(&mut self, room: <Self::Memory as Memory>::Room<'_>) -> Result<Received, SocketError>;

    /// Whether the socket has the port that was asked for when it was opened.
    fn keeps_port(&self) -> bool;
}
