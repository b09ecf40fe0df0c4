//! Sockets of the host, as the engine needs them.

mod datagram;
mod errors;
mod none;
mod ping;
mod totals;

use core::net::{IpAddr, SocketAddr};

pub use datagram::{OutboundDatagram, Received, UdpSocket};
pub use errors::{ErrorQueue, QueuedError, Report};
pub(crate) use errors::{SendResult, drain, send};
pub use none::{NoHost, NoSocket};
pub use ping::{EchoRequest, PingSocket};
pub use totals::{Amount, Info, Path, Totals};

use crate::{
    flow::FlowId,
    forward::spec::Direction,
    memory::{Memory, PayloadOf},
};

/// Hop limit in packets to the guest if the host does not report the hop limit of the received packet.
pub(crate) const UNKNOWN_HOP_LIMIT: u8 = 255;

/// A Linux error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    // The error number on x86 and Arm.
    pub(crate) const EPERM: Self = Self(1);
    pub(crate) const ENOMEM: Self = Self(12);
    pub(crate) const EACCES: Self = Self(13);
    pub(crate) const ENFILE: Self = Self(23);
    pub(crate) const EMFILE: Self = Self(24);
    pub(crate) const ENOSPC: Self = Self(28);
    pub(crate) const EMSGSIZE: Self = Self(90);
    pub(crate) const EAFNOSUPPORT: Self = Self(97);
    pub(crate) const EADDRINUSE: Self = Self(98);
    pub(crate) const ECONNRESET: Self = Self(104);
    pub(crate) const ENETUNREACH: Self = Self(101);
    pub(crate) const ENOBUFS: Self = Self(105);
    pub(crate) const ETIMEDOUT: Self = Self(110);
    pub(crate) const ECONNREFUSED: Self = Self(111);
    pub(crate) const EHOSTUNREACH: Self = Self(113);

    /// Whether the error means that a resource is exhausted: files, memory, or epoll watches. The end of a flow
    /// releases some of it.
    #[must_use]
    pub const fn is_exhaustion(self) -> bool {
        matches!(self, Self::ENOMEM | Self::ENFILE | Self::EMFILE | Self::ENOSPC | Self::ENOBUFS)
    }
}

/// The reason why a socket operation did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketError {
    /// The operation can't be done now. Readiness will be reported.
    WouldBlock,
    /// The call failed with this error. A stream socket then has failed permanently.
    Failed(Errno),
}

/// The operations for which a socket is ready. For stream sockets, reports are edge-triggered: each change is reported
/// once. For datagram and ping sockets, reports are level-triggered: a socket with unread datagrams is reported again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Bytes, a datagram, or the end of the stream can be read.
    pub readable: bool,
    /// Bytes can be written. For a connecting socket: the connection is established.
    pub writable: bool,
    /// The peer has ended its half of the stream.
    pub read_closed: bool,
    /// An error is pending, or both halves are closed.
    pub error: bool,
    /// The readable bytes contain an urgent mark (stream sockets only).
    pub urgent: bool,
}

/// A non-blocking stream socket.
///
/// Received bytes stay in the socket until they are discarded. They can be copied any number of times before that.
pub trait TcpSocket {
    /// The memory that holds the payload of frames.
    type Memory: Memory;

    /// Sends `payload`. Returns how many bytes the socket accepted, at least one. If the socket did not accept all
    /// bytes, the socket is full, and readiness will be reported.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn send(&mut self, payload: PayloadOf<'_, Self::Memory>) -> Result<usize, SocketError>;

    /// Maximum number of pieces that one call of [`TcpSocket::send_pieces`] takes.
    const MAX_PIECES: usize;

    /// Sends pieces of the engine's own memory, in order, at most [`MAX_PIECES`](Self::MAX_PIECES). The result is the
    /// same as for [`TcpSocket::send`].
    ///
    /// # Errors
    /// See [`SocketError`].
    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError>;

    /// Sends one byte, and marks it as urgent. The peer has one urgent byte at a time: a later urgent byte replaces an
    /// earlier one that the peer has not read yet (RFC 6093 §3.3).
    ///
    /// # Errors
    /// See [`SocketError`].
    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError>;

    /// Copies received bytes to `room`. The copy starts `offset` bytes after the oldest byte not yet discarded.
    /// Returns the number of copied bytes; zero means the end of the stream.
    ///
    /// If there is an urgent byte at a larger offset, the copy ends before it. Some sockets don't return the urgent
    /// byte or later ones until all bytes before it are discarded. Until then, the result is
    /// [`SocketError::WouldBlock`].
    ///
    /// # Errors
    /// See [`SocketError`].
    fn peek(&mut self, offset: u32, room: <Self::Memory as Memory>::Room<'_>) -> Result<usize, SocketError>;

    /// Number of received bytes that are not discarded. None if it is not known.
    fn unread(&mut self) -> Option<u32> {
        None
    }

    /// The offset of the urgent byte from the oldest byte not yet discarded. None if no received byte is urgent.
    fn urgent_mark(&mut self) -> Option<u32>;

    /// Discards the oldest `len` received bytes. All of them must have been copied before. Returns how many bytes were
    /// discarded. The other bytes are still in the socket.
    ///
    /// # Errors
    /// See [`SocketError`]. No byte was discarded.
    fn discard(&mut self, len: u32) -> Result<u32, SocketError>;

    /// Ends this side's half of the stream, after all bytes that were sent before.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn shutdown_write(&mut self) -> Result<(), SocketError>;

    /// Number of bytes (FIN counts as one) that were sent but are not yet acknowledged by the peer.
    fn unacknowledged(&mut self) -> u32;

    /// Returns and clears the pending error.
    fn take_error(&mut self) -> Option<Errno>;

    /// Whether the last peek has found an error after the bytes that it returned. The next peek returns the error.
    fn has_error(&self) -> bool {
        false
    }

    /// Lets the kernel probe a silent peer (behaviour §6.5, R-74).
    fn keep_alive(&mut self);

    /// Makes the next close send a reset instead of a FIN.
    fn reset_on_close(&mut self);

    /// Sets the traffic class of all following packets. The ECN bits of `class` must be zero: the kernel sets them.
    fn set_traffic_class(&mut self, class: u8);

    /// The traffic class, with ECN bits, of the SYN that opened an accepted connection. None if it is not known.
    fn peer_traffic_class(&mut self) -> Option<u8>;

    /// The socket's own address and port, if known. They are used in messages.
    fn local(&self) -> Option<SocketAddr> {
        None
    }

    /// The traffic of the socket, and the path to its peer. None if this is not known. The function is called before the
    /// socket is closed if the flow's end is reported, and when the flow is listed.
    fn info(&mut self) -> Option<Info> {
        None
    }
}

/// Opens sockets. The sockets report readiness under the flow's id, see [`Readiness`].
pub trait Host {
    /// The memory that holds the payload of frames.
    type Memory: Memory;
    /// The type of stream sockets.
    type Tcp: TcpSocket<Memory = Self::Memory>;
    /// The type of datagram sockets.
    type Udp: UdpSocket<Memory = Self::Memory>;
    /// The type of ping sockets.
    type Ping: PingSocket<Memory = Self::Memory>;

    /// The source address of packets that the guest's address `guest` sends to `destination`. It is `guest` itself, if
    /// the host has this address on the interface of the route to `destination`. None: the kernel chooses.
    fn outbound_source(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr>;

    /// Whether the host itself has the address of `destination`.
    fn is_own(&mut self, destination: SocketAddr) -> bool;

    /// Starts to connect to `destination`, from `source` if it is given and the host still has this address. The
    /// packets have traffic class `class` (without ECN bits). The result is reported as readiness: writable, or error.
    ///
    /// # Errors
    /// The connection attempt can't be started.
    fn tcp_connect(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: SocketAddr,
        class: u8,
    ) -> Result<Self::Tcp, Errno>;

    /// Makes an accepted socket report its readiness under `flow`.
    ///
    /// # Errors
    /// The socket can't be watched. The caller must drop the socket.
    fn tcp_watch(&mut self, flow: FlowId, socket: &Self::Tcp) -> Result<(), Errno>;

    /// Opens an unconnected datagram socket of the family of `address`, for the guest endpoint of `flow`. The socket
    /// is bound to the host's wildcard (or `--outbound`) address and to `port` if this port is free, else to any port
    /// (Q7, Q8).
    ///
    /// # Errors
    /// The socket can't be opened.
    fn udp_open(&mut self, flow: FlowId, address: IpAddr, port: u16) -> Result<Self::Udp, Errno>;

    /// Opens a datagram socket that only sends: to `group`, from the port `port`. Other programs of the host use this
    /// port and must share it. The socket must not take datagrams from these programs, and reports no readiness.
    ///
    /// # Errors
    /// The other programs do not share the port, or the socket can't be opened.
    fn udp_open_shared(&mut self, group: SocketAddr, port: u16) -> Result<Self::Udp, Errno>;

    /// Opens a datagram socket for `flow` that receives datagrams to the group and port `at` from the host's network.
    /// The socket shares the port with other programs, and takes no datagrams from them.
    ///
    /// # Errors
    /// The port is not shared, the host's network is not followed for this family, or the socket can't be opened.
    fn udp_join(&mut self, flow: FlowId, at: SocketAddr) -> Result<Self::Udp, Errno>;

    /// Opens a datagram socket for `flow` in the target namespace of `direction`. The socket is connected to `target`,
    /// and bound to `port` if this port is free there, else to any port.
    ///
    /// # Errors
    /// The socket can't be opened or connected.
    fn udp_connect(
        &mut self,
        flow: FlowId,
        direction: Direction,
        target: SocketAddr,
        port: u16,
    ) -> Result<Self::Udp, Errno>;

    /// Makes a listening datagram socket report its readiness under `flow`.
    ///
    /// # Errors
    /// The socket can't be watched. The caller must drop the socket.
    fn udp_watch(&mut self, flow: FlowId, socket: &Self::Udp) -> Result<(), Errno>;

    /// Opens a ping socket towards `destination`. Its echo identifier is `id` if this identifier is free, else any.
    /// `source` has the meaning that it has in [`Host::tcp_connect`].
    ///
    /// # Errors
    /// The socket can't be opened.
    fn ping_open(
        &mut self,
        flow: FlowId,
        source: Option<IpAddr>,
        destination: IpAddr,
        id: u16,
    ) -> Result<Self::Ping, Errno>;

    /// Sends an ICMP error to `client`, a sender of datagrams in the guest's namespace that bypass the link. `packet` is
    /// the whole IP packet. It may be lost like any other. A host without a way to send it does nothing.
    fn report_to_client(&mut self, client: IpAddr, packet: &[u8]) {
        let _ = (client, packet);
    }
}
