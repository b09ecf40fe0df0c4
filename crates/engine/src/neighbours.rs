//! Hardware addresses of neighbours. The guest sees the hardware addresses of the host's neighbours if they are known,
//! else the engine's own (behaviour §4.1.4).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::ethernet::Mac;

/// Maximum number of neighbours that are kept.
const LIMIT: usize = 512;

/// The known hosts on the host's own link.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// The host's routers. The router's hardware address is used for all unknown hosts.
    router4: Option<Ipv4Addr>,
    router6: Option<Ipv6Addr>,
    /// The known neighbours, sorted by address.
    known: Vec<(IpAddr, Mac)>,
}

/// A change of the host's information about a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// The neighbour's hardware address. None: the host no longer knows it.
    pub mac: Option<Mac>,
}

impl Neighbours {
    /// A table without neighbours. The arguments are the host's routers, one for each family.
    #[must_use]
    pub const fn with_routers(router4: Option<Ipv4Addr>, router6: Option<Ipv6Addr>) -> Self {
        Self { router4, router6, known: Vec::new() }
    }

    /// The router towards `address`.
    #[must_use]
    pub fn router(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.router4.map(IpAddr::V4),
            IpAddr::V6(_) => self.router6.map(IpAddr::V6),
        }
    }

    /// Notes a change. Returns true if the neighbour has a hardware address that was not known before. At most 512
    /// neighbours are kept.
    pub fn note(&mut self, neighbour: Neighbour) -> bool {
        let place = self.place(neighbour.address);
        match (place, neighbour.mac.filter(|mac| mac.is_unicast() && *mac != Mac([0; 6]))) {
            (Ok(place), Some(mac)) => core::mem::replace(&mut self.known[place].1, mac) != mac,
            (Ok(place), None) => {
                self.known.remove(place);
                false
            }
            (Err(place), Some(mac)) if self.known.len() < LIMIT => {
                self.known.insert(place, (neighbour.address, mac));
                true
            }
            (Err(_), _) => false,
        }
    }

    /// Whether no neighbour is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The known neighbours, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, Mac)> + '_ {
        self.known.iter().copied()
    }

    /// The hardware address of a neighbour, if it is known.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<Mac> {
        self.place(address).ok().map(|place| self.known[place].1)
    }

    fn place(&self, address: IpAddr) -> Result<usize, usize> {
        self.known.binary_search_by_key(&address, |(address, _)| *address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 20));

    const fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    fn known(address: IpAddr, last: u8) -> Neighbour {
        Neighbour { address, mac: Some(mac(last)) }
    }

    #[test]
    fn note_returns_true_only_for_a_new_hardware_address() {
        let mut neighbours = Neighbours::default();
        assert!(neighbours.note(known(NEAR, 1)));
        assert!(!neighbours.note(known(NEAR, 1)));
        assert!(neighbours.note(known(NEAR, 2)));
        assert!(!neighbours.note(Neighbour { address: NEAR, mac: None }));
        assert!(!neighbours.note(Neighbour { address: NEAR, mac: None }));
        assert_eq!(neighbours.get(NEAR), None);
        for bad in [Mac([0; 6]), Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1])] {
            assert!(!neighbours.note(Neighbour { address: NEAR, mac: Some(bad) }));
        }
    }

    #[test]
    fn the_number_of_neighbours_is_bounded() {
        let mut neighbours = Neighbours::default();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        let kept = (0..2000).rev().filter(|number| neighbours.note(known(address(*number), 1))).count();
        assert_eq!((kept, neighbours.known.len()), (LIMIT, LIMIT));
        assert!(neighbours.note(known(address(1999), 2)), "old ones still change");
        neighbours.note(Neighbour { address: address(1999), mac: None });
        assert!(neighbours.note(known(address(0), 1)));
    }
}
