//! Connects to the next of the host's resolvers if a resolver fails or is silent. The guest's SYN is answered only
//! after that (docs/design/dns.md).

use super::{
    Tcp,
    conn::{End, Phase},
    socket::Socket,
};
use crate::{
    context::{Context, World},
    flow::FlowId,
    host::{Readiness, TcpSocket},
};

/// Whether a failure to connect to a resolver was handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redial {
    /// The failure was handled: another server is tried, or the connection has ended.
    Done,
    /// There was no such failure.
    NotNeeded,
}

impl<W: World> Tcp<W> {
    /// Handles the readiness of a socket. If the socket failed to connect to a resolver, the next resolver is tried.
    pub(super) fn redial_if_failed(
        &mut self,
        id: FlowId,
        readiness: Readiness,
        cx: &mut Context<'_, W>,
    ) -> Redial {
        let Some(connection) = self.flows.get_mut(id) else { return Redial::NotNeeded };
        let Some(dial) = connection.rare.dial_mut().filter(|_| connection.phase == Phase::Connecting) else {
            return Redial::NotNeeded;
        };
        let Some(server) = dial.server() else { return Redial::NotNeeded };
        let error = if readiness.error { connection.socket.take_error() } else { None };
        let Some(errno) = error else {
            if readiness.writable {
                self.health.answered(server.ip());
                connection.rare.end_dial();
            }
            return Redial::NotNeeded;
        };
        log::debug!("{id}: {server} failed (error {})", errno.0);
        self.health.failed(server.ip(), cx.now);
        dial.at += 1;
        let end = match dial.server() {
            None => Err(errno),
            Some(_) => {
                dial.connect(id, &mut self.health, cx).map(|socket| connection.socket = Socket::Host(socket))
            }
        };
        match end {
            Ok(()) => self.touch(id),
            Err(errno) => self.end(id, End::SocketFailed(errno), cx),
        }
        Redial::Done
    }

    /// Handles a deadline: gives up a silent resolver, if another resolver can be tried.
    pub(super) fn redial_if_silent(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        let Some(dial) = connection.rare.dial_mut().filter(|_| connection.phase == Phase::Connecting) else {
            return;
        };
        let (at, server) = (dial.at, dial.server());
        if dial.due.is_none_or(|due| due > cx.now) {
            return;
        }
        dial.at += 1;
        match dial.connect(id, &mut self.health, cx) {
            Ok(socket) => {
                connection.socket = Socket::Host(socket);
                if let Some(server) = server {
                    self.health.failed(server.ip(), cx.now);
                }
            }
            // No other server is left, so the connection continues to wait for this server.
            Err(_) => dial.at = at,
        }
        self.touch(id);
    }
}
