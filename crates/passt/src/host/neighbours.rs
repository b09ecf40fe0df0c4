//! The other hosts on the host's links, and their hardware addresses (behaviour §4.1.4).

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use engine::neighbours::Neighbour;
use netlink_packet_core::Parseable;
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use wire::ethernet::Mac;

use super::netlink::{Error, Netlink};

/// `RTM_NEWNEIGH`.
const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
const DELETED: u16 = 29;
/// The multicast group for changes of neighbours (`RTNLGRP_NEIGH`).
const GROUP: u32 = 3;

/// Follows the neighbours on one interface for each family.
pub(crate) struct Neighbourhood {
    /// A socket that has joined the multicast group [`GROUP`].
    changes: Netlink,
    /// Lists the neighbours. On the subscribed socket, changes could arrive between the parts of a list.
    list: Netlink,
    /// Indices of the interfaces for IPv4 and IPv6.
    interfaces: [Option<u32>; 2],
}

impl Neighbourhood {
    /// Starts to follow the IPv4 neighbours on the first interface and the IPv6 neighbours on the second interface.
    /// Also returns the present neighbours.
    ///
    /// # Errors
    /// The kernel does not report changes, or does not list neighbours.
    pub(crate) fn watch(interfaces: [Option<u32>; 2]) -> Result<(Self, Vec<Neighbour>), Error> {
        let changes = Netlink::subscribe(&[GROUP])?;
        let mut list = Netlink::open()?;
        let present = present(&mut list, interfaces)?;
        Ok((Self { changes, list, interfaces }, present))
    }

    /// Returns the changes since the last call, without waiting. If the kernel could not keep all of them, the present
    /// neighbours are returned after those that it has kept.
    pub(crate) fn changes(&mut self) -> Vec<Neighbour> {
        let (interfaces, mut found) = (self.interfaces, Vec::new());
        let complete = self.changes.drain(|kind, octets| found.extend(parse(&interfaces, kind, octets)));
        if !complete {
            match present(&mut self.list, interfaces) {
                Ok(present) => found.extend(present),
                Err(error) => log::warn!("neighbours have changed, and can't be listed: {error}"),
            }
        }
        found
    }
}

/// The present neighbours.
fn present(list: &mut Netlink, interfaces: [Option<u32>; 2]) -> Result<Vec<Neighbour>, Error> {
    let query = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    list.dump("neighbours", query, |octets| parse(&interfaces, NEW, octets))
}

impl AsFd for Neighbourhood {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

/// Returns the neighbour that a message describes, if the neighbour is on one of the interfaces.
fn parse(interfaces: &[Option<u32>; 2], kind: u16, octets: &[u8]) -> Option<Neighbour> {
    let message = NeighbourMessage::parse(octets).ok()?;
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(octets) => mac = octets.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    let address = address.filter(|address: &IpAddr| !address.is_multicast())?;
    if interfaces[usize::from(address.is_ipv6())] != Some(message.header.ifindex) {
        return None;
    }
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    match (kind, message.header.state) {
        (NEW, Reachable | Stale | Delay | Probe | Permanent) => {
            mac.map(|mac| Neighbour { address, mac: Some(mac) })
        }
        (DELETED, _) => Some(Neighbour { address, mac: None }),
        // INCOMPLETE, FAILED: the address resolution has not succeeded. The last known address is kept.
        _ => None,
    }
}
