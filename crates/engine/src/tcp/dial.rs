//! The servers to which a connection to the host's resolvers can lead. They are tried in order (docs/design/dns.md).

use core::{net::SocketAddr, time::Duration};

use crate::{
    context::{Context, TcpOf, World},
    flow::FlowId,
    host::{Errno, Host as _},
    resolvers::{Health, Servers},
    timer::Instant,
};

/// How long a server may be silent before the next server is tried.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The servers for a connection that is not established yet.
#[derive(Debug)]
pub(super) struct Dial {
    servers: Servers,
    /// Traffic class of the guest's SYN.
    class: u8,
    /// Index of the current server.
    pub(super) at: usize,
    /// When to try the next server.
    pub(super) due: Option<Instant>,
}

impl Dial {
    pub(super) const fn new(servers: Servers, class: u8) -> Self {
        Self { servers, class, at: 0, due: None }
    }

    /// The current server.
    pub(super) fn server(&self) -> Option<SocketAddr> {
        self.servers.all().get(self.at).copied()
    }

    /// Starts to connect to the current server. If this fails at once, tries the servers after it, in order.
    ///
    /// # Errors
    /// The error of the last server.
    pub(super) fn connect<W: World>(
        &mut self,
        id: FlowId,
        health: &mut Health,
        cx: &mut Context<'_, W>,
    ) -> Result<TcpOf<W>, Errno> {
        let mut refusal = Errno::ENETUNREACH;
        while let Some(server) = self.server() {
            match cx.host.tcp_connect(id, None, server, self.class) {
                Ok(socket) => {
                    log::debug!("{id}: connects to {server}");
                    self.due = (self.at + 1 < self.servers.len()).then(|| cx.now + SERVER_TIMEOUT);
                    return Ok(socket);
                }
                // A connection to another server would need the same resource.
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
