//! Accepted connections: listening sockets of forwarding rules, and where their connections go.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use engine::addr::{Guest, Settings};
use engine::flow::{FlowId, Kind, Slots};
use engine::forward::spec::Direction;
use engine::forward::{Listener, Onward, Policy};
use engine::share::Notice;
use engine::timer::Instant;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{Shutdown, SocketFlags, acceptfrom_with, getsockname, listen, shutdown};

use crate::budgets::ledger::Permit;
use crate::errno::retry;
use crate::event::Source;
use crate::forward::listen::BACKLOG;

/// Listening stream sockets.
#[derive(Debug)]
pub(crate) struct Acceptors {
    ports: Slots<Port>,
    /// Whether they listen. If not, they hold their ports, and the kernel refuses connections.
    open: bool,
    /// How many connections were refused for lack of a descriptor or memory.
    pub(crate) refused: u64,
    notice: Notice,
}

#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    _permit: Permit,
    listener: Listener,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket, non-blocking.
    pub(crate) socket: OwnedFd,
    /// The client. None if the kernel does not say; then it is refused.
    pub(crate) peer: Option<SocketAddr>,
    /// The direction of its rule.
    pub(crate) direction: Direction,
    /// What happens to it.
    pub(crate) onward: Onward,
}

impl Acceptors {
    /// No sockets. All must be watched by the same epoll set.
    pub(crate) fn new() -> Self {
        Self {
            ports: Slots::new(Kind::Listener, u32::MAX as usize),
            open: true,
            refused: 0,
            notice: Notice::default(),
        }
    }

    /// Takes over the listening socket of a rule's port, to be watched by `epoll`; returns its id.
    ///
    /// # Errors
    /// It can't be watched.
    pub(crate) fn add(
        &mut self,
        epoll: impl AsFd,
        socket: OwnedFd,
        permit: Permit,
        listener: Listener,
    ) -> Result<FlowId, Errno> {
        let id = self.ports.next_id().ok_or(Errno::NFILE)?;
        let port = Port { socket, _permit: permit, listener };
        if self.open {
            port.watch(epoll, id)?
        } else {
            port.close()?
        }
        self.ports.insert(port).map_err(|_| Errno::NFILE)
    }

    /// Closes a listening socket. Its remaining events have no effect: the next socket has another id.
    pub(crate) fn remove(&mut self, id: FlowId) {
        self.ports.remove(id);
    }

    /// Makes a socket stop listening, but keep its port. Pending connections are lost. False if there is no such
    /// socket.
    pub(crate) fn pause(&self, id: FlowId) -> bool {
        let Some(port) = self.ports.get(id) else { return false };
        if self.open {
            shutdown(&port.socket, Shutdown::Both).is_ok()
        } else {
            set_socket_reuseaddr(&port.socket, true).is_ok()
        }
    }

    /// Makes a paused socket listen again.
    pub(crate) fn resume(&self, id: FlowId) {
        let Some(port) = self.ports.get(id) else { return };
        let resumed =
            if self.open { listen(&port.socket, BACKLOG) } else { set_socket_reuseaddr(&port.socket, false) };
        if let Err(errno) = resumed {
            log::warn!("can't listen on a port again: {errno}");
        }
    }

    /// Makes all sockets listen, or none: while there is no guest, connections are refused (behaviour §8.8).
    pub(crate) fn set_open(&mut self, epoll: impl AsFd, open: bool) {
        if self.open == open {
            return;
        }
        self.open = open;
        for (id, port) in self.ports.iter() {
            let done = if open { port.open(&epoll, id) } else { port.close_watched(&epoll) };
            if let Err(errno) = done {
                log::warn!("can't {} a forwarded port: {errno}", if open { "open" } else { "close" });
            }
        }
    }

    /// Refuses all pending connections, which takes neither a descriptor nor memory. Otherwise epoll would report them
    /// again and again.
    fn refuse_waiting(&mut self, id: FlowId, errno: Errno, now: Instant) {
        if self.notice.is_due(now) {
            log::warn!("Connections are refused: {errno}");
        }
        self.refused += 1;
        if self.pause(id) {
            self.resume(id);
        }
    }

    /// Assigns a listening socket to another rule.
    pub(crate) fn retarget(&mut self, id: FlowId, listener: Listener) {
        if let Some(port) = self.ports.get_mut(id) {
            port.listener = listener;
        }
    }

    /// Accepts a pending connection of a listening socket; `None` if there is none.
    pub(crate) fn accept(
        &mut self,
        id: FlowId,
        policy: &Policy,
        settings: &Settings,
        guest: &Guest,
        now: Instant,
    ) -> Option<Accepted> {
        let port = self.ports.get(id)?;
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match retry(|| acceptfrom_with(&port.socket, flags)) {
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let onward = peer.map_or(Onward::Refuse, |peer| {
                        let ask = policy.depends_on_written_to(&port.listener, guest, peer.ip());
                        let hit = if ask { local_address(&socket) } else { None };
                        policy.onward(&port.listener, settings, guest, peer, hit)
                    });
                    return Some(Accepted { socket, peer, direction: port.listener.direction, onward });
                }
                // INVAL: it does not listen any more.
                Err(Errno::AGAIN | Errno::INVAL) => return None,
                // Errors of the connection, which has ended: accept(2), "Error handling".
                Err(
                    Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::NONET,
                ) => {}
                // A descriptor or memory is lacking, or a policy forbids it: the connection stays pending.
                Err(errno) => {
                    self.refuse_waiting(id, errno, now);
                    return None;
                }
            }
        }
    }
}

impl Port {
    fn watch(&self, epoll: impl AsFd, id: FlowId) -> Result<(), Errno> {
        Source::Listener(id).watch(epoll, &self.socket, EventFlags::IN)
    }

    /// Stops listening and keeps the port: without SO_REUSEADDR, no other socket can be bound to it.
    fn close(&self) -> Result<(), Errno> {
        shutdown(&self.socket, Shutdown::Both)?;
        set_socket_reuseaddr(&self.socket, false)
    }

    /// Stops watching the socket, then closes it like [`Port::close`]. Epoll would report a socket that does not listen
    /// again and again.
    fn close_watched(&self, epoll: impl AsFd) -> Result<(), Errno> {
        epoll::delete(epoll, &self.socket)?;
        self.close()
    }

    /// Listens again.
    fn open(&self, epoll: impl AsFd, id: FlowId) -> Result<(), Errno> {
        set_socket_reuseaddr(&self.socket, true)?;
        listen(&self.socket, BACKLOG)?;
        self.watch(epoll, id)
    }
}

fn local_address(socket: &OwnedFd) -> Option<IpAddr> {
    Some(SocketAddr::try_from(getsockname(socket).ok()?).ok()?.ip())
}
