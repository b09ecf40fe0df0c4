//! Sockets of forwarding rules.

use core::net::{IpAddr, SocketAddr};

use crate::{
    addr::{Guest, Settings},
    forward::{Rule, spec::Direction},
};

/// Where one listening socket of a forwarding rule leads.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Which way it leads.
    pub direction: Direction,
    /// Index of the rule in its table.
    pub rule: usize,
    /// The port listened on.
    pub port: u16,
    /// The address listened on; none for both families' wildcards.
    pub address: Option<IpAddr>,
    /// Listens on one interface only.
    pub on_interface: bool,
    /// The guest's address; none for the default one (behaviour §5.4).
    pub target_address: Option<IpAddr>,
    /// The guest's port.
    pub target_port: u16,
}

impl Listener {
    /// The listener of `port`, which is one of the rule's.
    #[must_use]
    pub fn new(direction: Direction, index: usize, rule: &Rule, port: u16) -> Option<Self> {
        Some(Self {
            direction,
            rule: index,
            port,
            address: rule.listen.addr,
            on_interface: rule.listen.interface.is_some(),
            target_address: rule.target_addr,
            target_port: rule.target_port(port)?,
        })
    }

    /// The guest endpoint that `peer` reaches by writing to `hit` (behaviour §5.3.2). A group that was written to is the
    /// guest's default address here: that is where the guest answers from.
    pub(super) fn guest_of(
        &self,
        settings: &Settings,
        guest: &Guest,
        peer: IpAddr,
        hit: Option<IpAddr>,
    ) -> Option<SocketAddr> {
        let hit = hit.filter(|address| !address.is_multicast()).unwrap_or(peer);
        let inbound = settings.inbound(guest, peer, hit, self.target_address)?;
        Some(SocketAddr::new(inbound.destination, self.target_port))
    }

    /// How well `peer` can be reached through this socket by what the guest sends on its own from `source`, a port that
    /// the rule leads to. The least rank is the best. None: not at all.
    ///
    /// A socket that is bound to an interface is never used: packets to peers of other interfaces would vanish on it. One
    /// of another port is not used for groups: nobody there knows it, and what is heard at a group may have to come from the
    /// protocol's own port.
    pub(super) fn rank(&self, source: SocketAddr, peer: SocketAddr) -> Option<Rank> {
        let inbound = self.direction == Direction::Inbound && !self.on_interface;
        let port_changes = self.port != self.target_port;
        if !inbound || self.target_port != source.port() || port_changes && peer.ip().is_multicast() {
            return None;
        }
        let binding = match self.address.filter(|address| !address.is_unspecified()) {
            None if self.address.is_some_and(|any| any.is_ipv4() != peer.is_ipv4()) => return None,
            None => Binding::Any,
            Some(address) => {
                let reaches =
                    address.is_ipv4() == peer.is_ipv4() && address.is_loopback() == peer.ip().is_loopback();
                if !reaches {
                    return None;
                }
                if address == source.ip() { Binding::Same } else { Binding::Other }
            }
        };
        Some(Rank { binding, port_changes, rule: self.rule, port: self.port })
    }
}

/// Order of the listeners that lead to one port of the guest, best first: by address, then one that keeps the port, then
/// by the order of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    binding: Binding,
    port_changes: bool,
    rule: usize,
    port: u16,
}

/// What address a listener is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    /// To the one that the guest sends from.
    Same,
    /// To all.
    Any,
    /// To another one: a server on the host that is bound to it would send from there.
    Other,
}
