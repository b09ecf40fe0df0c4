//! Which socket of a forwarding rule suits what the guest sends on its own.

use core::net::SocketAddr;

use crate::forward::{Listener, spec::Direction};

impl Listener {
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
