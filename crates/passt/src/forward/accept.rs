//! Listening sockets of forwarding rules, and the destinations of accepted connections.

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
    /// Whether the sockets listen. If not, the sockets hold their ports, and the kernel refuses connections.
    open: bool,
    /// Number of connections that were refused because there was no descriptor or memory.
    pub(crate) refused: u64,
    /// The last connection could be neither accepted nor left out.
    failed: bool,
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
    /// The accepted socket. It is non-blocking.
    pub(crate) socket: OwnedFd,
    /// The client's address. If the kernel does not return an address, this is `None`, and the connection is refused.
    pub(crate) peer: Option<SocketAddr>,
    /// The direction of the rule.
    pub(crate) direction: Direction,
    /// What happens to the connection.
    pub(crate) onward: Onward,
}

impl Acceptors {
    /// Creates an empty set of sockets. One epoll set must watch all of them.
    pub(crate) fn new() -> Self {
        Self {
            ports: Slots::new(Kind::Listener, u32::MAX as usize),
            open: true,
            refused: 0,
            failed: false,
            notice: Notice::default(),
        }
    }

    /// Adds the listening socket of a rule's port. `epoll` watches the socket. Returns the socket's id.
    ///
    /// # Errors
    /// The socket can't be watched.
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

    /// Closes a listening socket. Its pending events have no effect: the next socket has another id.
    pub(crate) fn remove(&mut self, id: FlowId) {
        self.ports.remove(id);
    }

    /// Makes a socket stop listening, but keep its port. Pending connections are lost. Returns false if the socket does
    /// not exist.
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

    /// Makes all sockets listen, or makes all stop. While there is no guest, connections are refused (behaviour §8.8).
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

    /// Refuses all pending connections. This needs neither a descriptor nor memory. Without this, epoll would report
    /// the same connections repeatedly.
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

    /// Accepts a pending connection of a listening socket. Returns `None` if no connection is pending.
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
                    self.failed = false;
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).map(unmapped);
                    let onward = peer.map_or(Onward::Refuse, |peer| {
                        let ask = policy.depends_on_written_to(&port.listener, guest, peer.ip());
                        let hit = if ask { local_address(&socket) } else { None };
                        policy.onward(&port.listener, settings, guest, peer, hit)
                    });
                    return Some(Accepted { socket, peer, direction: port.listener.direction, onward });
                }
                // INVAL: the socket does not listen any more.
                Err(Errno::AGAIN | Errno::INVAL) => return None,
                // The error belongs to a connection that has ended: accept(2), "Error handling".
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
                // A descriptor or memory is lacking, or a policy forbids the call. The connection stays pending. The
                // lack may be over in the next round; if not, pending connections are refused.
                Err(errno) => {
                    if std::mem::replace(&mut self.failed, true) {
                        self.refuse_waiting(id, errno, now);
                    }
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

    /// Stops listening and keeps the port. The socket has no SO_REUSEADDR, so no other socket can be bound to the port.
    fn close(&self) -> Result<(), Errno> {
        shutdown(&self.socket, Shutdown::Both)?;
        set_socket_reuseaddr(&self.socket, false)
    }

    /// Stops watching the socket, then closes it like [`Port::close`]. Otherwise epoll would repeatedly report a socket
    /// that does not listen.
    fn close_watched(&self, epoll: impl AsFd) -> Result<(), Errno> {
        epoll::delete(epoll, &self.socket)?;
        self.close()
    }

    /// Makes the socket listen again.
    fn open(&self, epoll: impl AsFd, id: FlowId) -> Result<(), Errno> {
        set_socket_reuseaddr(&self.socket, true)?;
        listen(&self.socket, BACKLOG)?;
        self.watch(epoll, id)
    }
}

/// Converts an IPv4-mapped address, as dual-stack sockets report it, to an IPv4 address.
fn unmapped(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        v4 @ IpAddr::V4(_) => SocketAddr::new(v4, peer.port()),
        IpAddr::V6(_) => peer,
    }
}

fn local_address(socket: &OwnedFd) -> Option<IpAddr> {
    Some(SocketAddr::try_from(getsockname(socket).ok()?).ok()?.ip())
}
