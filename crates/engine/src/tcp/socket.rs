//! The far side of a connection of the guest: a socket of the host, or the engine itself, which answers DNS questions.

use core::net::SocketAddr;

use super::questions::Questions;
use crate::{
    allocation::Boxed,
    context::{TcpOf, World},
    host::{Errno, Info, SocketError, TcpSocket},
    memory::{PayloadOf, RoomOf},
};

/// The side of a connection opposite to the guest.
pub(super) enum Socket<W: World> {
    /// A socket of the host.
    Host(TcpOf<W>),
    /// The engine itself: it terminates the connection and judges the DNS questions (docs/design/guard.md). There are few
    /// such connections, so their state is not in the table.
    Questions(Boxed<Questions<W::Memory>>),
}

/// Calls a method of the socket.
macro_rules! either {
    ($socket:expr, $name:ident($($argument:expr),*)) => {
        match $socket {
            Socket::Host(socket) => socket.$name($($argument),*),
            Socket::Questions(questions) => questions.$name($($argument),*),
        }
    };
}

impl<W: World> TcpSocket for Socket<W> {
    type Memory = W::Memory;
    const MAX_PIECES: usize = TcpOf::<W>::MAX_PIECES;

    fn send(&mut self, payload: PayloadOf<'_, W::Memory>) -> Result<usize, SocketError> {
        either!(self, send(payload))
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        either!(self, send_pieces(pieces))
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        either!(self, send_urgent(byte))
    }

    fn peek(&mut self, offset: u32, room: RoomOf<'_, W::Memory>) -> Result<usize, SocketError> {
        either!(self, peek(offset, room))
    }

    fn unread(&mut self) -> Option<u32> {
        either!(self, unread())
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        either!(self, urgent_mark())
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        either!(self, discard(len))
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        either!(self, shutdown_write())
    }

    fn unacknowledged(&mut self) -> u32 {
        either!(self, unacknowledged())
    }

    fn take_error(&mut self) -> Option<Errno> {
        either!(self, take_error())
    }

    fn has_error(&self) -> bool {
        either!(self, has_error())
    }

    fn keep_alive(&mut self) {
        either!(self, keep_alive());
    }

    fn reset_on_close(&mut self) {
        either!(self, reset_on_close());
    }

    fn set_traffic_class(&mut self, class: u8) {
        either!(self, set_traffic_class(class));
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        either!(self, peer_traffic_class())
    }

    fn local(&self) -> Option<SocketAddr> {
        either!(self, local())
    }

    fn info(&mut self) -> Option<Info> {
        either!(self, info())
    }
}
