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
    /// The guest's address; none for the default one (SPEC §5.4).
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

    /// The guest endpoint that `peer` reaches by writing to `hit` (SPEC §5.3.2). A group that was written to is the
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

    /// For which families (true: IPv4) the guest may write to anyone through this socket, from the very port that it
    /// leads to.
    pub(super) fn same_port_families(&self) -> impl Iterator<Item = bool> {
        let inbound = self.direction == Direction::Inbound && !self.on_interface;
        let usable = inbound && self.target_port == self.port && self.target_address.is_none();
        let families = match self.address {
            None => [true, true],
            Some(address) if address.is_unspecified() => [address.is_ipv4(), address.is_ipv6()],
            Some(_) => [false, false],
        };
        [true, false].into_iter().zip(families).filter(move |&(_, on)| on && usable).map(|(v4, _)| v4)
    }
}
