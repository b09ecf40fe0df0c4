//! The decision about a new connection or sender at a listening socket of a forwarding rule. The decision is the same
//! for TCP and UDP (behaviour §5.3.3, §5.4, §5.5).
//!
//! ```text
//! a connection or datagram: peer, and the address that it was sent to
//!     -> Listener (which rule)  -> Policy::onward -> Onward::Link     through the link, with these ends
//!                                                    Onward::Bypass   past it, to this address in the other namespace
//!                                                    Onward::Refuse   nowhere
//! ```

use core::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::{Rule, spec::Direction};
use crate::{
    addr::{Guest, Settings},
    flow::Endpoints,
};

/// One listening socket of a forwarding rule, and the destination that it forwards to.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The direction of the listener's flows.
    pub direction: Direction,
    /// Index of the rule in its table.
    pub rule: usize,
    /// The port that the socket listens on.
    pub port: u16,
    /// The address that the socket listens on. None: the wildcard addresses of both families.
    pub address: Option<IpAddr>,
    /// Whether the socket listens on one interface only.
    pub on_interface: bool,
    /// The guest's address. None: the default address (behaviour §5.4).
    pub target_address: Option<IpAddr>,
    /// The guest's port.
    pub target_port: u16,
}

/// Which flows bypass the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bypass {
    /// Flows between loopback addresses bypass the link.
    #[default]
    Local,
    /// No flow from the host bypasses the link (`--no-splice`, and `passt`).
    Never,
    /// Flows between loopback addresses bypass the link. All others are refused (`--splice-only`).
    Only,
}

/// The command line's rules for new connections and senders.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// Which flows bypass the link.
    pub bypass: Bypass,
    /// Whether traffic to a loopback address of the host goes to the same address of the guest (`--host-lo-to-ns-lo`).
    pub keeps_loopback: bool,
    /// Index of the guest's interface: the scope of the guest's link-local address. Zero: no interface.
    pub scope: u32,
}

/// The decision about a new connection or a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// The connection or datagram goes to the guest through the link, with these ends as the guest sees them.
    Link(Endpoints),
    /// The connection or datagram bypasses the link. The destination is this address in the namespace of the
    /// listener's target.
    Bypass(SocketAddr),
    /// The connection or datagram is refused.
    Refuse,
}

impl Listener {
    /// The listener for `port`. None if the port is not in the rule's range.
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

    /// The ends of a flow from `peer` to `written_to` through the link, as the guest sees them (behaviour §5.3.2). If
    /// `written_to` is a multicast group, the guest's end is the guest's default address, since the guest answers from
    /// this address. None if the guest can't be reached.
    pub(crate) fn ends(
        &self,
        settings: &Settings,
        guest: &Guest,
        peer: SocketAddr,
        written_to: Option<IpAddr>,
    ) -> Option<Endpoints> {
        let written_to = written_to.filter(|address| !address.is_multicast()).unwrap_or(peer.ip());
        let inbound = settings.inbound(guest, peer.ip(), written_to, self.target_address)?;
        Some(Endpoints {
            guest: SocketAddr::new(inbound.destination, self.target_port),
            remote: SocketAddr::new(inbound.source, peer.port()),
        })
    }
}

impl Policy {
    /// Whether flows of the listener may bypass the link.
    #[must_use]
    pub fn may_bypass(&self, listener: &Listener) -> bool {
        listener.direction == Direction::Outbound || self.bypass != Bypass::Never
    }

    /// Whether the result of [`Policy::onward`] depends on `written_to`. To find `written_to`, a system call for each
    /// connection is needed.
    #[must_use]
    pub fn depends_on_written_to(&self, listener: &Listener, guest: &Guest, peer: IpAddr) -> bool {
        match listener.direction {
            Direction::Outbound => true,
            // The result depends on it if loopback addresses are kept, or if the guest has several addresses and is
            // reached at each of them.
            Direction::Inbound => {
                listener.target_address.is_none()
                    && (self.keeps_loopback || guest.has_several(peer.to_canonical()))
            }
        }
    }

    /// Decides about a flow that `peer` opens at `listener`. `written_to` is the flow's destination address, if known.
    #[must_use]
    pub fn onward(
        &self,
        listener: &Listener,
        settings: &Settings,
        guest: &Guest,
        peer: SocketAddr,
        written_to: Option<IpAddr>,
    ) -> Onward {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let written_to = written_to.map(|written_to| written_to.to_canonical());
        let to = |address| Onward::Bypass(SocketAddr::new(address, listener.target_port));
        let looped = written_to.filter(IpAddr::is_loopback);
        if listener.direction == Direction::Outbound {
            // The destination is the same loopback address (behaviour §5.5, R-89, R-106).
            return looped.filter(|_| peer.ip().is_loopback()).map_or(Onward::Refuse, to);
        }
        let local = peer.ip().is_loopback()
            && listener.target_address.is_none()
            && !written_to.is_some_and(|written_to| written_to.is_multicast());
        match self.bypass {
            Bypass::Local | Bypass::Only if local => {}
            Bypass::Local | Bypass::Never => {
                return listener.ends(settings, guest, peer, written_to).map_or(Onward::Refuse, Onward::Link);
            }
            Bypass::Only => return Onward::Refuse,
        }
        // A service that listens on the namespace's loopback only is not exposed unless the user asks for it (R-88).
        if let Some(looped) = looped.filter(|_| self.keeps_loopback) {
            return to(looped);
        }
        match settings.guest_destination(guest, peer.ip(), written_to) {
            Some(IpAddr::V6(address)) if address.is_unicast_link_local() => {
                Onward::Bypass(SocketAddrV6::new(address, listener.target_port, 0, self.scope).into())
            }
            Some(address) => to(address),
            None => Onward::Refuse,
        }
    }
}

#[cfg(test)]
mod tests;
