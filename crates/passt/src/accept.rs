//! Connections from outside: listening sockets, and where their connections go in the guest.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use engine::addr::{Guest, Settings};
use engine::flow::Endpoints;
use engine::forward::{Protocol, Table};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with, sockopt};

use crate::listen::Listener;

/// Listening stream sockets.
#[derive(Debug)]
pub(crate) struct Acceptors {
    ports: Vec<Port>,
    /// Given up for a moment to take in, and refuse, a connection when there is no descriptor left for it.
    reserve: Option<OwnedFd>,
    /// Connections refused for want of a descriptor.
    pub(crate) refused: u64,
}

#[derive(Debug)]
struct Port {
    socket: OwnedFd,
    target_address: Option<IpAddr>,
    target_port: u16,
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket, non-blocking.
    pub(crate) socket: OwnedFd,
    /// Its ends as the guest is to see them; none if it can't be shown to the guest.
    pub(crate) ends: Option<Endpoints>,
}

impl Acceptors {
    /// Takes over the stream sockets of `listeners`; returns the others.
    pub(crate) fn new(listeners: Vec<Listener>, table: &Table) -> (Self, Vec<Listener>) {
        let (streams, others) =
            listeners.into_iter().partition::<Vec<_>, _>(|listener| listener.protocol == Protocol::Tcp);
        let ports = streams
            .into_iter()
            .filter_map(|listener| {
                let rule = table.rules().get(listener.rule)?;
                let target_port = rule.target_port(listener.port)?;
                Some(Port { socket: listener.socket, target_address: rule.target_addr, target_port })
            })
            .collect::<Vec<_>>();
        (Self { reserve: ports.first().and_then(Port::reserve), ports, refused: 0 }, others)
    }

    /// The sockets to watch, with their indices.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.ports.iter().enumerate().map(|(index, port)| (index, port.socket.as_fd()))
    }

    /// Accepts a connection of the socket with this index; none if no more wait.
    pub(crate) fn accept(&mut self, index: usize, settings: &Settings, guest: &Guest) -> Option<Accepted> {
        let port = self.ports.get(index)?;
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match acceptfrom_with(&port.socket, flags) {
                Ok((socket, peer)) => {
                    sockopt::set_tcp_nodelay(&socket, true).ok();
                    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                    let ends = peer.and_then(|peer| port.ends(peer, settings, guest));
                    return Some(Accepted { socket, ends });
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) if self.reserve.is_some() => {
                    // Left alone, it would wake us again and again: refuse it.
                    self.reserve = None;
                    drop(acceptfrom_with(&port.socket, flags));
                    self.reserve = port.reserve();
                    self.refused += 1;
                    return None;
                }
                Err(_) => return None,
            }
        }
    }
}

impl Port {
    /// Something harmless to hold a descriptor with, which can be had in an empty root directory, too.
    fn reserve(&self) -> Option<OwnedFd> {
        self.socket.try_clone().ok()
    }

    fn ends(&self, peer: SocketAddr, settings: &Settings, guest: &Guest) -> Option<Endpoints> {
        let from = peer.ip().to_canonical();
        let inbound = settings.inbound(guest, from, from, self.target_address)?;
        Some(Endpoints {
            guest: SocketAddr::new(inbound.destination, self.target_port),
            remote: SocketAddr::new(inbound.source, peer.port()),
        })
    }
}
