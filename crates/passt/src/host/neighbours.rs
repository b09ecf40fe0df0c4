//! The other hosts on the host's links, and their hardware addresses (behaviour §4.1.4).

use std::{
    collections::BTreeMap,
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

use super::followed::Followed;
use super::netlink::{Error, Netlink};

/// `RTM_NEWNEIGH`.
const NEW: u16 = 28;
/// `RTM_DELNEIGH`.
const DELETED: u16 = 29;
/// The multicast group for changes of neighbours (`RTNLGRP_NEIGH`).
const GROUP: u32 = 3;

/// Follows the neighbours on one interface for each family.
pub(crate) struct Neighbourhood {
    followed: Followed,
    /// Indices of the interfaces for IPv4 and IPv6.
    interfaces: [Option<u32>; 2],
}

/// What a message says of a neighbour.
enum Entry {
    Reachable(Mac),
    /// INCOMPLETE, FAILED: the address resolution has not succeeded. The last known address is kept.
    Unresolved,
    Deleted,
}

impl Neighbourhood {
    /// Starts to follow the IPv4 neighbours on the first interface and the IPv6 neighbours on the second interface.
    /// Also returns the present neighbours.
    ///
    /// # Errors
    /// The kernel does not report changes, or does not list neighbours.
    pub(crate) fn watch(interfaces: [Option<u32>; 2]) -> Result<(Self, Vec<Neighbour>), Error> {
        let (followed, present) = Followed::new("neighbours", &[GROUP], |list| present(list, interfaces))?;
        let present = present.into_iter().filter_map(neighbour).collect();
        Ok((Self { followed, interfaces }, present))
    }

    /// Returns the changes since the last call, without waiting. If the kernel could not keep all of them, all
    /// present neighbours are returned, and the end of those in `known` that are not among them.
    pub(crate) fn changes(&mut self, known: impl Iterator<Item = IpAddr>) -> Vec<Neighbour> {
        let (interfaces, mut found) = (self.interfaces, Vec::new());
        let change = |kind, octets: &[u8]| found.extend(parse(&interfaces, kind, octets));
        if let Some(present) = self.followed.update(change, |list| present(list, interfaces)) {
            let gone = known.filter(|address| !present.contains_key(address));
            found = gone.map(|address| (address, Entry::Deleted)).collect();
            found.extend(present);
        }
        found.into_iter().filter_map(neighbour).collect()
    }
}

/// The present neighbours.
fn present(list: &mut Netlink, interfaces: [Option<u32>; 2]) -> Result<BTreeMap<IpAddr, Entry>, Error> {
    let query = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let entries = list.dump("neighbours", query, |octets| parse(&interfaces, NEW, octets))?;
    Ok(entries.into_iter().collect())
}

fn neighbour((address, entry): (IpAddr, Entry)) -> Option<Neighbour> {
    match entry {
        Entry::Reachable(mac) => Some(Neighbour { address, mac: Some(mac) }),
        Entry::Unresolved => None,
        Entry::Deleted => Some(Neighbour { address, mac: None }),
    }
}

impl AsFd for Neighbourhood {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.followed.as_fd()
    }
}

/// Returns the neighbour that a message describes, if the neighbour is on one of the interfaces.
fn parse(interfaces: &[Option<u32>; 2], kind: u16, octets: &[u8]) -> Option<(IpAddr, Entry)> {
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
    let entry = match (kind, message.header.state, mac) {
        (NEW, Reachable | Stale | Delay | Probe | Permanent, Some(mac)) => Entry::Reachable(mac),
        (NEW, ..) => Entry::Unresolved,
        (DELETED, ..) => Entry::Deleted,
        _ => return None,
    };
    Some((address, entry))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::isolated::{add_link, ip, isolated};

    fn batch(lines: impl Iterator<Item = String>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        lines.for_each(|line| writeln!(file, "{line}").unwrap());
        ip(&format!("-batch {}", file.path().display()));
    }

    /// The kernel keeps a limited number of changes. A neighbour that is no longer there would keep its address.
    #[test]
    fn neighbours_are_listed_again_after_lost_changes() {
        isolated(|| {
            add_link("eth0", "192.0.2.10/16");
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let interfaces = [Some(rustix::net::netdevice::name_to_index(socket, "eth0").unwrap()), None];
            let add = |address: &str, mac: &str| {
                ip(&format!("neigh add {address} lladdr {mac} nud permanent dev eth0"))
            };
            add("192.0.2.1", "02:00:00:00:00:01");
            add("192.0.2.2", "02:00:00:00:00:02");
            let (mut neighbourhood, present) = Neighbourhood::watch(interfaces).unwrap();
            let mut known: Vec<IpAddr> = present.iter().map(|neighbour| neighbour.address).collect();
            known.sort();
            assert_eq!(known, ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap()));

            ip("neigh del 192.0.2.1 dev eth0");
            let mut expected = vec![Neighbour { address: known[0], mac: None }];
            assert_eq!(neighbourhood.changes(known[1..].iter().copied()).last(), expected.last());

            let other = |number: u32| std::net::Ipv4Addr::from(0xc000_0a00 + number % 200);
            batch((0..2000).flat_map(|number| {
                let entry = format!("{} lladdr 02:00:00:00:01:00 nud permanent dev eth0", other(number));
                [format!("neigh add {entry}"), format!("neigh del {} dev eth0", other(number))]
            }));
            ip("neigh del 192.0.2.2 dev eth0");
            add("192.0.2.3", "02:00:00:00:00:03");
            let changes = neighbourhood.changes(known[1..].iter().copied());
            expected[0].address = known[1];
            expected.push(Neighbour {
                address: "192.0.2.3".parse().unwrap(),
                mac: Some(Mac([2, 0, 0, 0, 0, 3])),
            });
            let of_interest: Vec<_> =
                changes.into_iter().filter(|change| change.address < other(0)).collect();
            assert_eq!(of_interest, expected);
        });
    }
}
