//! The API socket of slirp4netns in the event loop (behaviour §13.1.4).

use std::os::fd::{AsFd, OwnedFd};

use engine::forward::Table;
use engine::timer::Instant;

use super::{Receivers, Shard};
use crate::hostfwd::{Defaults, Forward, Forwards, Reply, Request, Server};

/// The parameters of the API socket.
pub(crate) struct HostFwdSetup {
    /// The listening socket.
    pub(crate) listener: OwnedFd,
    /// What requests may leave out.
    pub(crate) defaults: Defaults,
}

/// The API socket, and the ports that its clients have forwarded.
#[derive(Debug)]
pub(super) struct HostFwd {
    pub(super) server: Server,
    forwards: Forwards,
}

impl HostFwd {
    /// Watches the listening socket for clients.
    pub(super) fn new(setup: HostFwdSetup, epoll: impl AsFd) -> rustix::io::Result<Self> {
        let server = Server::new(setup.listener, setup.defaults, epoll)?;
        Ok(Self { server, forwards: Forwards::default() })
    }
}

impl Shard {
    /// Handles an event of the API socket: a client may be waiting.
    pub(super) fn on_hostfwd(&mut self, now: Instant) {
        if let Some(hostfwd) = &mut self.hostfwd {
            hostfwd.server.on_listener(now, self.sockets.epoll());
        }
    }

    /// Closes clients that took too long.
    pub(super) fn on_hostfwd_deadline(&mut self, now: Instant) {
        if let Some(HostFwd { server, .. }) = &mut self.hostfwd
            && server.next_deadline().is_some_and(|due| due <= now)
        {
            server.on_deadline(now, self.sockets.epoll());
        }
    }

    /// Handles an event of a client's socket.
    pub(super) fn on_hostfwd_client(&mut self, number: u32, now: Instant) {
        let Some(hostfwd) = &mut self.hostfwd else { return };
        let Some(request) = hostfwd.server.on_client(number, self.sockets.epoll()) else { return };
        let outcome = match request {
            Ok(Request::List) => Ok(Reply::List),
            Ok(Request::Add(forward)) => self.add_forward(forward, now).map(Reply::Added),
            Ok(Request::Remove(id)) => self.remove_forward(id, now).map(|()| Reply::Removed),
            Err(error) => Err(error),
        };
        let reply = outcome.unwrap_or_else(|error| {
            log::warn!("Request of an API client refused: {error}");
            Reply::Error(error)
        });
        if let Some(HostFwd { server, forwards }) = &mut self.hostfwd {
            server.reply(number, reply.encode(forwards), self.sockets.epoll());
        }
    }

    /// Forwards another port. Returns its number.
    ///
    /// # Errors
    /// A message for the client: the port can't be forwarded.
    fn add_forward(&mut self, forward: Forward, now: Instant) -> Result<u64, String> {
        let because = |error: String| format!("add_hostfwd: {error}");
        if self.sockets.ledger().spare_listeners() == 0 {
            return Err(because("the limit of open files (ulimit -n) is too low for more ports".into()));
        }
        let changed = self
            .hostfwd
            .as_ref()
            .map(|hostfwd| hostfwd.forwards.with(forward, hostfwd.server.defaults().enabled));
        let (forwards, id, table) = changed.unwrap_or(Err(String::new())).map_err(because)?;
        self.replace_inbound(forwards, table, now).map_err(because)?;
        Ok(id)
    }

    /// Forwards a port no longer.
    ///
    /// # Errors
    /// A message for the client: there is no forwarded port with this number.
    fn remove_forward(&mut self, id: u64, now: Instant) -> Result<(), String> {
        let because = |error: String| format!("remove_hostfwd: {error}");
        let changed = self
            .hostfwd
            .as_ref()
            .map(|hostfwd| hostfwd.forwards.without(id, hostfwd.server.defaults().enabled));
        let (forwards, table) = changed.unwrap_or(Err(String::new())).map_err(because)?;
        self.replace_inbound(forwards, table, now).map_err(because)
    }

    /// Puts the rules in `table` in force, which forward the ports in `forwards`.
    fn replace_inbound(&mut self, forwards: Forwards, table: Table, now: Instant) -> Result<(), String> {
        let rx = Receivers {
            acceptors: &mut self.acceptors,
            udp: self.stack.udp_mut(),
            sockets: &mut self.sockets,
        };
        self.forwarder.replace_inbound(table, now, rx)?;
        if let Some(hostfwd) = &mut self.hostfwd {
            hostfwd.forwards = forwards;
        }
        Ok(())
    }
}
