//! A host without sockets, for programs and tests that need only some kinds of sockets, or none.

use core::{
    convert::Infallible,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
};

use super::{
    EchoRequest, Errno, ErrorQueue, Host, OutboundDatagram, PingSocket, QueuedError, Received, SocketError,
    TcpSocket, UdpSocket,
};
use crate::{
    flow::FlowId,
    forward::spec::Direction,
    memory::{Memory, PayloadOf, RoomOf},
};

/// A host that opens no socket. All flows of the guest are refused.
#[derive(Debug)]
pub struct NoHost<M>(PhantomData<M>);

/// A socket of any protocol. No value of this type can exist.
#[derive(Debug)]
pub struct NoSocket<M> {
    never: Infallible,
    memory: PhantomData<M>,
}

impl<M> NoHost<M> {
    /// A host without sockets.
    #[must_use]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<M> Default for NoHost<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Memory> Host for NoHost<M> {
    type Memory = M;
    type Tcp = NoSocket<M>;
    type Udp = NoSocket<M>;
    type Ping = NoSocket<M>;

    fn outbound_source(&mut self, _: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        None
    }

    fn is_own(&mut self, _: SocketAddr) -> bool {
        false
    }

    fn tcp_connect(
        &mut self,
        _: FlowId,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: u8,
    ) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn tcp_watch(&mut self, _: FlowId, socket: &NoSocket<M>) -> Result<(), Errno> {
        match socket.never {}
    }

    fn udp_open(&mut self, _: FlowId, _: IpAddr, _: u16) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn udp_open_shared(&mut self, _: SocketAddr, _: u16) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn udp_join(&mut self, _: FlowId, _: SocketAddr) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn udp_connect(&mut self, _: FlowId, _: Direction, _: SocketAddr, _: u16) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }

    fn udp_watch(&mut self, _: FlowId, socket: &NoSocket<M>) -> Result<(), Errno> {
        match socket.never {}
    }

    fn ping_open(&mut self, _: FlowId, _: Option<IpAddr>, _: IpAddr, _: u16) -> Result<NoSocket<M>, Errno> {
        Err(Errno::EAFNOSUPPORT)
    }
}

impl<M: Memory> TcpSocket for NoSocket<M> {
    type Memory = M;
    const MAX_PIECES: usize = 1;

    fn send(&mut self, _: PayloadOf<'_, M>) -> Result<usize, SocketError> {
        match self.never {}
    }

    fn send_pieces(&mut self, _: &[&[u8]]) -> Result<usize, SocketError> {
        match self.never {}
    }

    fn send_urgent(&mut self, _: u8) -> Result<(), SocketError> {
        match self.never {}
    }

    fn peek(&mut self, _: u32, _: RoomOf<'_, M>) -> Result<usize, SocketError> {
        match self.never {}
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        match self.never {}
    }

    fn discard(&mut self, _: u32) -> Result<u32, SocketError> {
        match self.never {}
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        match self.never {}
    }

    fn unacknowledged(&mut self) -> u32 {
        match self.never {}
    }

    fn take_error(&mut self) -> Option<Errno> {
        match self.never {}
    }

    fn keep_alive(&mut self) {
        match self.never {}
    }

    fn reset_on_close(&mut self) {
        match self.never {}
    }

    fn set_traffic_class(&mut self, _: u8) {
        match self.never {}
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        match self.never {}
    }
}

impl<M> ErrorQueue for NoSocket<M> {
    fn take_queued_error(&mut self, _: &mut [u8]) -> Option<QueuedError> {
        match self.never {}
    }

    fn take_error(&mut self) -> Option<Errno> {
        match self.never {}
    }
}

impl<M: Memory> UdpSocket for NoSocket<M> {
    type Memory = M;

    fn send(&mut self, _: &OutboundDatagram<PayloadOf<'_, M>>) -> Result<(), SocketError> {
        match self.never {}
    }

    fn receive(&mut self, _: RoomOf<'_, M>) -> Result<Received, SocketError> {
        match self.never {}
    }

    fn keeps_port(&self) -> bool {
        match self.never {}
    }
}

impl<M: Memory> PingSocket for NoSocket<M> {
    type Memory = M;

    fn send(&mut self, _: &EchoRequest<'_, PayloadOf<'_, M>>) -> Result<(), SocketError> {
        match self.never {}
    }

    fn receive(&mut self, _: &mut [u8]) -> Result<Received, SocketError> {
        match self.never {}
    }
}
