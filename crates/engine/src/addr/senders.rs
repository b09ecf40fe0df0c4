//! Hardware addresses for IP addresses that are not the guest's own: for example, the addresses of a network that the
//! guest routes for.

use alloc::vec::Vec;
use core::net::IpAddr;

use wire::ethernet::Mac;

/// Maximum number of addresses that are remembered.
const LIMIT: usize = 1024;

/// The source hardware addresses of frames, by the IP source of the frame.
#[derive(Clone, Debug, Default)]
pub(crate) struct Senders {
    /// The known addresses, sorted by IP address.
    known: Vec<Known>,
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    address: IpAddr,
    mac: Mac,
    last_use: u64,
}

impl Senders {
    /// Notes that a frame from `address` came from `mac`. With more than [`LIMIT`] addresses, the address that was
    /// silent for the longest time is forgotten.
    pub(crate) fn note(&mut self, address: IpAddr, mac: Mac) {
        self.uses += 1;
        let last_use = self.uses;
        match self.place(address) {
            Ok(place) => self.known[place] = Known { address, mac, last_use },
            Err(_) => {
                if self.known.len() >= LIMIT {
                    let oldest = self.known.iter().enumerate().min_by_key(|(_, known)| known.last_use);
                    if let Some((place, _)) = oldest {
                        self.known.remove(place);
                    }
                }
                let place = self.place(address).unwrap_or_else(|place| place);
                self.known.insert(place, Known { address, mac, last_use });
            }
        }
    }

    /// Forgets an address.
    pub(crate) fn forget(&mut self, address: IpAddr) {
        if let Ok(place) = self.place(address) {
            self.known.remove(place);
        }
    }

    /// The hardware address of the last frame from `address`.
    pub(crate) fn get(&self, address: IpAddr) -> Option<Mac> {
        Some(self.known.get(self.place(address).ok()?)?.mac)
    }

    fn place(&self, address: IpAddr) -> Result<usize, usize> {
        self.known.binary_search_by_key(&address, |known| known.address)
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn silent_addresses_are_forgotten_first() {
        let mut senders = Senders::default();
        let address = |number: u32| IpAddr::from(Ipv4Addr::from(number));
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        for number in 0..LIMIT as u32 {
            senders.note(address(number), mac(1));
        }
        senders.note(address(0), mac(2));
        senders.note(address(5000), mac(3));
        assert_eq!(senders.known.len(), LIMIT);
        let found = [0, 1, 5000].map(|number| senders.get(address(number)));
        assert_eq!(found, [Some(mac(2)), None, Some(mac(3))]);
        senders.forget(address(0));
        assert_eq!(senders.get(address(0)), None);
    }
}
