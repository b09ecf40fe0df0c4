//! Selects the listener of a forwarding rule that sends the datagrams of a flow that the guest begins.

use core::net::SocketAddr;

use crate::forward::{Listener, spec::Direction};

impl Listener {
    /// How suitable this socket is for a flow that the guest begins from `source` to `peer`. The rule forwards to the
    /// port of `source`. The lowest rank is the best. None: the socket can't be used.
    ///
    /// A socket that is bound to an interface is never used: packets to peers on other interfaces would get lost. A
    /// socket with another port is not used for groups: receivers may require the protocol's port as source port.
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

/// Order of the listeners that forward to one port of the guest, best first: first by address, then listeners with the
/// same port number, then by the order of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    binding: Binding,
    port_changes: bool,
    rule: usize,
    port: u16,
}

/// The address to which a listener is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Binding {
    /// The address from which the guest sends.
    Same,
    /// All addresses.
    Any,
    /// Another address. A server on the host that is bound to this address would send from it, too.
    Other,
}
