//! The present addresses of the host, for rules about the host itself (docs/guard.md).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::followed::Followed;
use super::gather_addresses;
use super::netlink::{Error, Netlink};
use super::parse_address;

/// `RTM_NEWADDR`.
const NEW: u16 = 20;
/// `RTM_DELADDR`.
const DELETED: u16 = 21;
/// The multicast groups for changes of addresses (`RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`).
const GROUPS: [u32; 2] = [5, 9];

/// Follows the addresses of all interfaces in the network namespace of the thread that opened the socket.
#[derive(Debug)]
pub(crate) struct OwnAddresses {
    followed: Followed,
    /// The host's addresses, each with the index of its interface: an address may be on several interfaces.
    own: BTreeSet<(IpAddr, u32)>,
}

impl OwnAddresses {
    /// Starts to follow the addresses.
    ///
    /// # Errors
    /// The kernel does not report changes, or does not list addresses.
    pub(crate) fn watch() -> Result<Self, Error> {
        let (followed, own) = Followed::new("the host's addresses", &GROUPS, present)?;
        Ok(Self { followed, own })
    }

    /// Applies the changes that have arrived, without waiting. If the kernel could not keep all of them, the addresses
    /// are listed again.
    pub(crate) fn update(&mut self) {
        let Self { followed, own } = self;
        let change = |kind, octets: &[u8]| {
            let Some(address) = parse_address(octets) else { return };
            let entry = (address.local, address.interface);
            match kind {
                NEW => _ = own.insert(entry),
                DELETED => _ = own.remove(&entry),
                _ => {}
            }
        };
        if let Some(present) = followed.update(change, present) {
            self.own = present;
        }
    }

    /// Whether the host has this address at present, on any interface.
    pub(crate) fn contains(&mut self, address: IpAddr) -> bool {
        self.update();
        self.own.range((address, 0)..=(address, u32::MAX)).next().is_some()
    }
}

/// The present addresses.
fn present(list: &mut Netlink) -> Result<BTreeSet<(IpAddr, u32)>, Error> {
    let addresses = gather_addresses(list)?;
    Ok(addresses.iter().map(|address| (address.local, address.interface)).collect())
}

impl AsFd for OwnAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.followed.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::isolated::{add_link, ip, isolated};

    #[test]
    fn addresses_come_and_go() {
        isolated(|| {
            add_link("eth0", "192.0.2.10/24");
            add_link("eth1", "198.51.100.1/24");
            ip("address add 198.51.100.9/32 dev eth0");
            let mut own = OwnAddresses::watch().unwrap();
            let mut has = |address: &str| own.contains(address.parse().unwrap());
            assert!(has("192.0.2.10") && has("198.51.100.1") && has("198.51.100.9"));
            assert!(!has("192.0.2.1") && !has("192.0.2.255") && !has("203.0.113.1"));
            ip("address add 203.0.113.1/24 dev eth1");
            ip("address add 198.51.100.9/32 dev eth1");
            ip("address del 198.51.100.9/32 dev eth0");
            assert!(has("203.0.113.1"));
            assert!(has("198.51.100.9"), "the other interface still has it");
            ip("address del 198.51.100.9/32 dev eth1");
            assert!(!has("198.51.100.9"));
        });
    }

    /// The kernel keeps a limited number of changes. A new address that is not known would not be refused.
    #[test]
    fn addresses_are_listed_again_after_lost_changes() {
        isolated(|| {
            add_link("eth0", "192.0.2.10/24");
            let mut own = OwnAddresses::watch().unwrap();
            let mut batch = tempfile::NamedTempFile::new().unwrap();
            for number in 0..4000 {
                let address = std::net::Ipv4Addr::from(0x0a00_0001 + number);
                writeln!(batch, "address add {address}/32 dev eth0").unwrap();
            }
            writeln!(batch, "address del 192.0.2.10/24 dev eth0").unwrap();
            ip(&format!("-batch {}", batch.path().display()));
            assert!(own.contains("10.0.15.160".parse().unwrap()), "the last one");
            assert!(!own.contains("192.0.2.10".parse().unwrap()));
        });
    }
}
