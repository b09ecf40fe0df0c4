//! Accepted connections: listening sockets of forwarding rules, and where their connections go.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use engine::addr::{Guest, Settings};
use engine::flow::Endpoints;
use engine::forward::Rule;
use engine::forward::spec::Direction;
use engine::share::Notice;
use engine::timer::Instant;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{Shutdown, SocketFlags, acceptfrom_with, getsockname, listen, shutdown};

use crate::budgets::ledger::Permit;
use crate::config::Splice;
use crate::event_word;
use crate::forward::bypass::{NoWay, Policy};
use crate::forward::listen::BACKLOG;

/// Listening stream sockets.
#[derive(Debug)]
pub(crate) struct Acceptors {
    ports: Vec<Option<Port>>,
    /// Indices of `ports` that are free.
    free: Vec<usize>,
    /// Whether they listen. If not, they hold their ports, and the kernel refuses connections.
    open: bool,
    /// How often connections were refused, for want of a descriptor or memory.
    pub(crate) refused: u64,
    notice: Notice,
}

#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    _permit: Permit,
    direction: Direction,
    target_address: Option<IpAddr>,
    target_port: u16,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket, non-blocking.
    pub(crate) socket: OwnedFd,
    /// Where it goes on.
    pub(crate) way: Result<Way, NoWay>,
}

/// Where a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the link; these are its ends as the guest is to see them.
    Link(Endpoints),
    /// Past it, to a socket in the namespace where the direction leads.
    Bypass(Direction, SocketAddr),
}

impl Acceptors {
    /// No socket yet, to be watched by no more than one epoll set.
    pub(crate) fn new() -> Self {
        Self { ports: Vec::new(), free: Vec::new(), open: true, refused: 0, notice: Notice::default() }
    }

    /// Takes over the listening socket of `rule`'s `port`, to be watched by `epoll`; returns its index.
    ///
    /// # Errors
    /// It can't be watched.
    pub(crate) fn add(
        &mut self,
        epoll: impl AsFd,
        socket: OwnedFd,
        permit: Permit,
        direction: Direction,
        rule: &Rule,
        port: u16,
    ) -> Result<usize, Errno> {
        let target_port = rule.target_port(port).ok_or(Errno::RANGE)?;
        let index = self.free.last().copied().unwrap_or(self.ports.len());
        let port = Port { socket, _permit: permit, direction, target_address: rule.target_addr, target_port };
        if self.open {
            port.watch(epoll, index)?
        } else {
            port.close()?
        }
        match self.free.pop() {
            Some(index) => self.ports[index] = Some(port),
            None => self.ports.push(Some(port)),
        }
        Ok(index)
    }

    /// Closes a listening socket. Events of it that are still on their way mean nothing, also to the next socket of
    /// this index.
    pub(crate) fn remove(&mut self, index: usize) {
        if self.ports.get_mut(index).and_then(Option::take).is_some() {
            self.free.push(index);
        }
    }

    /// Has a socket not listen for now, but keep its port: what still waits to be accepted is lost. False if there is no
    /// such socket.
    pub(crate) fn silence(&self, index: usize) -> bool {
        let Some(Some(port)) = self.ports.get(index) else { return false };
        if self.open {
            shutdown(&port.socket, Shutdown::Both).is_ok()
        } else {
            set_socket_reuseaddr(&port.socket, true).is_ok()
        }
    }

    /// Has a silenced socket listen again.
    pub(crate) fn restore(&self, index: usize) {
        let Some(Some(port)) = self.ports.get(index) else { return };
        let restored =
            if self.open { listen(&port.socket, BACKLOG) } else { set_socket_reuseaddr(&port.socket, false) };
        if let Err(errno) = restored {
            log::warn!("can't listen on a port again: {errno}");
        }
    }

    /// Has all sockets listen, or none: while there is no guest, connections are refused (behaviour §8.8).
    pub(crate) fn set_open(&mut self, epoll: impl AsFd, open: bool) {
        if self.open == open {
            return;
        }
        self.open = open;
        for (index, port) in self.ports.iter().enumerate() {
            let Some(port) = port else { continue };
            let done = if open { port.open(&epoll, index) } else { port.close_watched(&epoll) };
            if let Err(errno) = done {
                log::warn!("can't {} a forwarded port: {errno}", if open { "open" } else { "close" });
            }
        }
    }

    /// Refuses all that wait to be accepted, which takes neither a descriptor nor memory. Left alone, they would wake us
    /// again and again.
    fn refuse_waiting(&mut self, index: usize, errno: Errno, now: Instant) {
        if self.notice.is_due(now) {
            log::warn!("Connections are refused: {errno}");
        }
        self.refused += 1;
        if self.silence(index) {
            self.restore(index);
        }
    }

    /// Lets a listening socket serve another rule.
    pub(crate) fn retarget(&mut self, index: usize, rule: &Rule, port: u16) {
        if let (Some(Some(open)), Some(target_port)) = (self.ports.get_mut(index), rule.target_port(port)) {
            (open.target_address, open.target_port) = (rule.target_addr, target_port);
        }
    }

    /// Index of the socket that an epoll word stands for.
    pub(crate) const fn index(word: u64) -> Option<usize> {
        if word & event_word::ACCEPTOR == 0 { None } else { Some((word & !event_word::ACCEPTOR) as usize) }
    }

    /// Accepts a connection of the socket with this index; none if no more wait.
    pub(crate) fn accept(
        &mut self,
        index: usize,
        policy: &Policy,
        settings: &Settings,
        guest: &Guest,
        now: Instant,
    ) -> Option<Accepted> {
        let port = self.ports.get(index)?.as_ref()?;
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(&port.socket, flags) {
                Ok((socket, peer)) => {
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let way = peer.ok_or(NoWay).and_then(|peer| {
                        let hit = || Some(SocketAddr::try_from(getsockname(&socket).ok()?).ok()?.ip());
                        port.way(peer, hit, policy, settings, guest)
                    });
                    return Some(Accepted { socket, way });
                }
                // INVAL: it does not listen any more.
                Err(Errno::AGAIN | Errno::INVAL) => return None,
                // Of the connection, which is gone: accept(2), "Error handling".
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
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
                    self.refuse_waiting(index, errno, now);
                    return None;
                }
            }
        }
    }
}

impl Port {
    fn watch(&self, epoll: impl AsFd, index: usize) -> Result<(), Errno> {
        let word = EventData::new_u64(event_word::ACCEPTOR | index as u64);
        epoll::add(epoll, &self.socket, word, EventFlags::IN)
    }

    /// Has it not listen, and keep its port: without SO_REUSEADDR nobody else can have it meanwhile.
    fn close(&self) -> Result<(), Errno> {
        shutdown(&self.socket, Shutdown::Both)?;
        set_socket_reuseaddr(&self.socket, false)
    }

    /// The same, if it is watched: a socket that does not listen is reported without end.
    fn close_watched(&self, epoll: impl AsFd) -> Result<(), Errno> {
        epoll::delete(epoll, &self.socket)?;
        self.close()
    }

    /// Has it listen again.
    fn open(&self, epoll: impl AsFd, index: usize) -> Result<(), Errno> {
        set_socket_reuseaddr(&self.socket, true)?;
        listen(&self.socket, BACKLOG)?;
        self.watch(epoll, index)
    }

    /// Where a connection from `peer` goes on; `hit` is the address that it was accepted at.
    fn way(
        &self,
        peer: SocketAddr,
        hit: impl Fn() -> Option<IpAddr>,
        policy: &Policy,
        settings: &Settings,
        guest: &Guest,
    ) -> Result<Way, NoWay> {
        let from = peer.ip().to_canonical();
        let hit = || hit().map(|hit| hit.to_canonical()).ok_or(NoWay);
        let bypass = match (self.direction, self.target_address) {
            (Direction::Outbound, _) => Some(Policy::outward(from, hit()?)?),
            (Direction::Inbound, Some(_)) if policy.splice != Splice::Only => None,
            (Direction::Inbound, Some(_)) => return Err(NoWay),
            (Direction::Inbound, None) => {
                // It matters where loopback addresses are kept, and where the guest has several.
                let matters = policy.keeps_loopback || guest.has_several(from);
                let hit = if matters { hit()? } else { from };
                match policy.inward(from, hit, settings, guest)? {
                    None => return self.ends(peer, hit, settings, guest).map(Way::Link).ok_or(NoWay),
                    destination => destination,
                }
            }
        };
        match bypass {
            Some(mut destination) => {
                destination.set_port(self.target_port);
                Ok(Way::Bypass(self.direction, destination))
            }
            None => self.ends(peer, from, settings, guest).map(Way::Link).ok_or(NoWay),
        }
    }

    /// The ends of a connection through the link, as the guest is to see them.
    fn ends(&self, peer: SocketAddr, hit: IpAddr, settings: &Settings, guest: &Guest) -> Option<Endpoints> {
        let inbound = settings.inbound(guest, peer.ip(), hit, self.target_address)?;
        Some(Endpoints {
            guest: SocketAddr::new(inbound.destination, self.target_port),
            remote: SocketAddr::new(inbound.source, peer.port()),
        })
    }
}
