//! Connections to the host's resolvers: one server after the other is dialled, before the guest's SYN is answered
//! (docs/design/dns.md).

use core::{net::SocketAddr, time::Duration};

use super::{
    Tcp,
    conn::{End, Phase},
};
use crate::{
    context::{Context, TcpOf, World},
    flow::FlowId,
    host::{Errno, Host as _, Readiness, TcpSocket},
    resolvers::{Health, Servers},
    timer::Instant,
};

/// How long a server may be silent before the next one is dialled.
const SILENCE: Duration = Duration::from_secs(2);

/// The servers for a connection that is not there yet.
#[derive(Debug)]
pub(super) struct Dial {
    servers: Servers,
    /// Traffic class of the guest's SYN.
    class: u8,
    /// Index of the one that is dialled.
    at: usize,
    /// When to dial the next one.
    pub(super) due: Option<Instant>,
}

impl Dial {
    pub(super) const fn new(servers: Servers, class: u8) -> Self {
        Self { servers, class, at: 0, due: None }
    }

    /// The server that is dialled.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.servers.all().get(self.at).copied()
    }

    /// Starts to connect to the server at hand, or the first one after it that can be tried.
    ///
    /// # Errors
    /// Why the last one can't be tried.
    pub(super) fn connect<W: World>(
        &mut self,
        id: FlowId,
        health: &mut Health,
        cx: &mut Context<'_, W>,
    ) -> Result<TcpOf<W>, Errno> {
        const ENETUNREACH: Errno = Errno(101);
        let mut refusal = ENETUNREACH;
        while let Some(server) = self.server() {
            match cx.host.tcp_connect(id, None, server, self.class) {
                Ok(socket) => {
                    log::debug!("{id}: dials {server}");
                    self.due = (self.at + 1 < self.servers.len()).then(|| cx.now + SILENCE);
                    return Ok(socket);
                }
                // Another server would need a file, too.
                Err(errno) if errno.is_exhaustion() => return Err(errno),
                Err(errno) => {
                    health.failed(server.ip(), cx.now);
                    refusal = errno;
                }
            }
            self.at += 1;
        }
        self.due = None;
        Err(refusal)
    }
}

/// Whether a failure to connect to a resolver was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redial {
    /// It was: another server is dialled, or the connection has ended.
    Done,
    /// There was none.
    NotNeeded,
}

impl<W: World> Tcp<W> {
    /// A socket reported readiness. If that is a failure to connect to a resolver, the next one is dialled.
    pub(super) fn redial_if_failed(
        &mut self,
        id: FlowId,
        readiness: Readiness,
        cx: &mut Context<'_, W>,
    ) -> Redial {
        let Some(connection) = self.flows.get_mut(id) else { return Redial::NotNeeded };
        let Some(dial) = connection.dial.as_mut().filter(|_| connection.phase == Phase::Connecting) else {
            return Redial::NotNeeded;
        };
        let Some(server) = dial.server() else { return Redial::NotNeeded };
        let error = if readiness.error { connection.socket.take_error() } else { None };
        let Some(errno) = error else {
            if readiness.writable {
                self.health.answered(server.ip());
                connection.dial = None;
            }
            return Redial::NotNeeded;
        };
        log::debug!("{id}: {server} failed (error {})", errno.0);
        self.health.failed(server.ip(), cx.now);
        dial.at += 1;
        let end = match dial.server() {
            None => Err(errno),
            Some(_) => dial.connect(id, &mut self.health, cx).map(|socket| connection.socket = socket),
        };
        match end {
            Ok(()) => self.touch(id),
            Err(errno) => self.end(id, End::SocketFailed(errno), cx),
        }
        Redial::Done
    }

    /// A deadline was reached: a resolver that was silent is given up, if another one can be dialled.
    pub(super) fn redial_if_silent(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(connection) = self.flows.get_mut(id) else { return };
        let Some(dial) = connection.dial.as_mut().filter(|_| connection.phase == Phase::Connecting) else {
            return;
        };
        let (at, server) = (dial.at, dial.server());
        if dial.due.is_none_or(|due| due > cx.now) {
            return;
        }
        dial.at += 1;
        match dial.connect(id, &mut self.health, cx) {
            Ok(socket) => {
                connection.socket = socket;
                if let Some(server) = server {
                    self.health.failed(server.ip(), cx.now);
                }
            }
            // There is still hope for this one.
            Err(_) => dial.at = at,
        }
        self.touch(id);
    }
}
