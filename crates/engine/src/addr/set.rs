//! The set of a guest's addresses, and the evidence for each of them.

use alloc::vec::Vec;
use core::net::IpAddr;

use wire::ethernet::Mac;

use crate::timer::Instant;

/// Maximum number of addresses that are in the set only because the guest's own messages claim them.
pub const MAX_CLAIMED: usize = 256;

/// The evidence that the guest has an address, in order from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Basis {
    /// The guest's own ARP or Neighbour Discovery messages claim the address.
    Claimed,
    /// The address was assigned to the guest, and the guest accepted it: by a lease, or by its messages.
    Assigned,
    /// The address was set on the guest's interface.
    Given,
}

/// The kinds of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    V4 = 0,
    /// IPv6 addresses that are not link-local.
    V6 = 1,
    /// Link-local IPv6 addresses (RFC 4291 §2.5.6).
    LinkLocal = 2,
}

impl Kind {
    /// All kinds of addresses.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::LinkLocal];

    /// The kind of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(address) if address.is_unicast_link_local() => Self::LinkLocal,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The kind's name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
            Self::LinkLocal => "link-local IPv6",
        }
    }
}

/// One of the guest's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub address: IpAddr,
    /// The hardware address of the host that has it, if known.
    pub mac: Option<Mac>,
    /// The evidence that the address is the guest's.
    pub basis: Basis,
    /// When the guest last showed that it has the address.
    pub shown: Instant,
    /// The entry's number. Entries are numbered in the order in which they are made.
    number: u64,
}

/// The addresses of a guest.
///
/// The size of the set is bounded by the sum of three numbers: the addresses that were given to the guest, one assigned
/// address of each kind, and [`MAX_CLAIMED`].
#[derive(Clone, Debug, Default)]
pub struct AddressSet {
    /// The entries, sorted by address.
    entries: Vec<Entry>,
    claimed: usize,
    made: u64,
}

impl AddressSet {
    /// Adds an address, or notes that the guest has shown it again. A stronger basis replaces a weaker one. Returns
    /// whether the address is new.
    ///
    /// If there is no room for another claimed address, the address that was not shown for the longest time is removed.
    /// The first address of its kind is not removed: inbound flows may depend on it, and claims of the guest must not
    /// displace it.
    pub fn insert(&mut self, address: IpAddr, mac: Option<Mac>, basis: Basis, now: Instant) -> bool {
        match self.place(address) {
            Ok(place) => {
                let entry = &mut self.entries[place];
                self.claimed -= usize::from(entry.basis == Basis::Claimed && basis > Basis::Claimed);
                (entry.mac, entry.shown) = (mac.or(entry.mac), now);
                entry.basis = entry.basis.max(basis);
                false
            }
            Err(_) => {
                if basis == Basis::Claimed {
                    if self.claimed >= MAX_CLAIMED {
                        self.evict();
                    }
                    self.claimed += 1;
                }
                let entry = Entry { address, mac, basis, shown: now, number: self.made };
                self.made += 1;
                let place = self.place(address).unwrap_or_else(|place| place);
                self.entries.insert(place, entry);
                true
            }
        }
    }

    /// Removes an address. Returns whether the address was in the set.
    pub fn remove(&mut self, address: IpAddr) -> bool {
        let Ok(place) = self.place(address) else { return false };
        let entry = self.entries.remove(place);
        self.claimed -= usize::from(entry.basis == Basis::Claimed);
        true
    }

    /// Whether the guest has `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.place(address).is_ok()
    }

    /// What is known about an address.
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.get(self.place(address).ok()?)
    }

    /// Notes a new hardware address of the host that has `address`.
    pub(crate) fn moved(&mut self, address: IpAddr, mac: Mac) {
        if let Ok(place) = self.place(address) {
            self.entries[place].mac = Some(mac);
        }
    }

    /// All entries, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The addresses of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Entry> {
        self.iter().filter(move |entry| Kind::of(entry.address) == kind)
    }

    /// The oldest address of a kind.
    #[must_use]
    pub fn first(&self, kind: Kind) -> Option<&Entry> {
        self.of_kind(kind).min_by_key(|entry| entry.number)
    }

    fn evict(&mut self) {
        let first = Kind::ALL.map(|kind| self.first(kind).map(|entry| entry.number));
        let evictable = self
            .iter()
            .filter(|entry| entry.basis == Basis::Claimed && !first.contains(&Some(entry.number)))
            .min_by_key(|entry| (entry.shown, entry.number));
        if let Some(address) = evictable.map(|entry| entry.address) {
            self.remove(address);
        }
    }

    fn place(&self, address: IpAddr) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&address, |entry| entry.address)
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn a_stronger_basis_replaces_a_weaker_one_and_not_the_reverse() {
        let mut set = AddressSet::default();
        assert!(set.insert(v4(1), None, Basis::Claimed, at(1)));
        assert!(!set.insert(v4(1), Some(MAC), Basis::Given, at(2)));
        assert!(!set.insert(v4(1), None, Basis::Assigned, at(3)));
        let entry = set.get(v4(1)).unwrap();
        assert_eq!((entry.basis, entry.mac, entry.shown), (Basis::Given, Some(MAC), at(3)));
        assert!(set.remove(v4(1)) && !set.remove(v4(1)));
        assert!(!set.contains(v4(1)));
        assert_eq!(set.claimed, 0);
    }

    #[test]
    fn the_first_of_each_kind_is_the_oldest() {
        let mut set = AddressSet::default();
        for address in ["10.0.0.9", "fe80::9", "10.0.0.1", "2001:db8::1", "fe80::1"] {
            set.insert(address.parse().unwrap(), None, Basis::Claimed, at(0));
        }
        let first =
            Kind::ALL.map(|kind| alloc::string::ToString::to_string(&set.first(kind).unwrap().address));
        assert_eq!(first, ["10.0.0.9", "2001:db8::1", "fe80::9"]);
    }

    #[test]
    fn claims_are_bounded_and_displace_neither_what_was_given_nor_the_first() {
        let mut set = AddressSet::default();
        set.insert(v4(0), None, Basis::Claimed, at(0));
        for number in 1..=300 {
            set.insert(v4(number), None, Basis::Given, at(0));
        }
        set.insert(v4(301), None, Basis::Assigned, at(0));
        for number in 1000..100_000 {
            set.insert(v4(number), None, Basis::Claimed, at(number.into()));
        }
        assert_eq!(set.iter().count(), 301 + MAX_CLAIMED);
        assert!((0..=301).all(|number| set.contains(v4(number))));
        assert!(set.contains(v4(99_999)) && !set.contains(v4(1000)));
        // An address that is shown again is removed later.
        let kept = v4(100_000 - MAX_CLAIMED as u32 + 1);
        assert!(!set.insert(kept, None, Basis::Claimed, at(100_000)));
        set.insert(v4(100_000), None, Basis::Claimed, at(100_001));
        assert!(set.contains(kept));
    }
}
