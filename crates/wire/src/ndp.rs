//! Neighbour Discovery (RFC 4861) with the DNS options of RFC 8106.
//!
//! A message is an [`icmp::Header`] with a body. This module makes the headers, and parses and writes the bodies.

use core::net::Ipv6Addr;

use zerocopy::{
    Immutable, IntoBytes, Unaligned,
    big_endian::{U16, U32},
};

use crate::{domain, ethernet::Mac, icmp};

/// The hop limit of every message. It proves that no router has forwarded the message (RFC 4861 §11.2).
pub const HOP_LIMIT: u8 = 255;

/// All nodes on the link (RFC 4291 §2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Longest body of a router advertisement that [`RouterAdvertisement::write`] writes, in bytes.
pub const MAX_ADVERTISEMENT_LEN: usize = 8 + 32 + 8 + 8 + 2 * MAX_OPTION_LEN;

/// Infinite lifetime (RFC 4861 §4.6.2, RFC 8106 §5).
const INFINITE: u32 = u32::MAX;

/// The length field of an option is one byte, in units of this many bytes.
const OPTION_UNIT: usize = 8;
const MAX_OPTION_LEN: usize = 255 * OPTION_UNIT;

mod option {
    pub(super) const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
    pub(super) const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
    pub(super) const PREFIX_INFORMATION: u8 = 3;
    pub(super) const MTU: u8 = 5;
    pub(super) const RECURSIVE_DNS_SERVER: u8 = 25;
    pub(super) const DNS_SEARCH_LIST: u8 = 31;
}

/// Flags of a neighbour advertisement (RFC 4861 §4.4).
const ROUTER: u32 = 1 << 31;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;

/// Option "source or target link-layer address" for Ethernet (RFC 4861 §4.6.1).
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LinkLayerAddress {
    kind: u8,
    units: u8,
    mac: Mac,
}

impl LinkLayerAddress {
    const fn new(kind: u8, mac: Mac) -> Self {
        Self { kind, units: 1, mac }
    }
}

/// Option "prefix information" (RFC 4861 §4.6.2).
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct PrefixInformation {
    kind: u8,
    units: u8,
    prefix_len: u8,
    flags: u8,
    valid: U32,
    preferred: U32,
    reserved: U32,
    prefix: [u8; 16],
}

/// Flags L (on-link) and A (autonomous address configuration).
const PREFIX_FLAGS: u8 = 0x80 | 0x40;

/// Option "MTU" (RFC 4861 §4.6.4).
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Mtu {
    kind: u8,
    units: u8,
    reserved: U16,
    mtu: U32,
}

/// The start of the options of RFC 8106 §5.1 and §5.2.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct DnsOption {
    kind: u8,
    units: u8,
    reserved: U16,
    lifetime: U32,
}

const DNS_OPTION_LEN: usize = size_of::<DnsOption>();

/// The body of a neighbour solicitation or advertisement with its one option.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub struct Neighbour {
    target: [u8; 16],
    option: LinkLayerAddress,
}

/// The target of a neighbour solicitation or advertisement. None if the message is invalid (RFC 4861 §7.1.1, §7.1.2).
/// The caller has checked the hop limit and the message type.
#[must_use]
pub fn neighbour_target(message: &icmp::Message<'_>) -> Option<Ipv6Addr> {
    let (target, options) = message.payload.split_first_chunk::<16>()?;
    let target = Ipv6Addr::from(*target);
    (message.header.code == 0 && !target.is_multicast() && options_are_valid(options)).then_some(target)
}

/// Whether a router solicitation is valid (RFC 4861 §6.1.1). The caller has checked the hop limit and the message type.
#[must_use]
pub fn is_valid_router_solicitation(message: &icmp::Message<'_>) -> bool {
    message.header.code == 0 && options_are_valid(message.payload)
}

/// Whether no option has length zero or extends past the message (RFC 4861 §6.1.1).
fn options_are_valid(mut options: &[u8]) -> bool {
    while let [_, units, ..] = *options {
        let len = usize::from(units) * OPTION_UNIT;
        match options.get(len..) {
            Some(rest) if len > 0 => options = rest,
            _ => return false,
        }
    }
    options.is_empty()
}

/// A neighbour solicitation for `target` from the station `source`. Returns the header, with a checksum of zero, and
/// the body.
#[must_use]
pub fn solicitation(target: Ipv6Addr, source: Mac) -> (icmp::Header, Neighbour) {
    let option = LinkLayerAddress::new(option::SOURCE_LINK_LAYER_ADDRESS, source);
    let header = icmp::Header::new(icmp::v6::NEIGHBOUR_SOLICITATION, 0, 0);
    (header, Neighbour { target: target.octets(), option })
}

/// The neighbour advertisement with which a router answers a solicitation, with flags R, S and O: `target` is at `mac`.
/// Returns the header, with a checksum of zero, and the body.
#[must_use]
pub fn solicited_advertisement(target: Ipv6Addr, mac: Mac) -> (icmp::Header, Neighbour) {
    advertisement(target, mac, ROUTER | SOLICITED | OVERRIDE)
}

/// The unsolicited neighbour advertisement of a router, with flags R and O: `target` is at `mac` now (RFC 4861 §7.2.6).
/// Returns the header, with a checksum of zero, and the body.
#[must_use]
pub fn unsolicited_advertisement(target: Ipv6Addr, mac: Mac) -> (icmp::Header, Neighbour) {
    advertisement(target, mac, ROUTER | OVERRIDE)
}

fn advertisement(target: Ipv6Addr, mac: Mac, flags: u32) -> (icmp::Header, Neighbour) {
    let option = LinkLayerAddress::new(option::TARGET_LINK_LAYER_ADDRESS, mac);
    let header = icmp::Header::new(icmp::v6::NEIGHBOUR_ADVERTISEMENT, 0, flags);
    (header, Neighbour { target: target.octets(), option })
}

/// The content of a router advertisement. The lifetimes of prefix and DNS options are infinite. The router lifetime is
/// the maximum of its field.
#[derive(Clone, Copy, Debug)]
pub struct RouterAdvertisement<'a, S> {
    /// Hardware address of the router.
    pub mac: Mac,
    /// The on-link prefix: any address in the prefix, and the prefix length in bits, 0 to 128.
    pub prefix: Option<(Ipv6Addr, u8)>,
    /// MTU of the link, in bytes.
    pub mtu: Option<u32>,
    /// Recursive resolvers (RFC 8106 §5.1); at most 127 are announced.
    pub resolvers: &'a [Ipv6Addr],
    /// Search list (RFC 8106 §5.2). Names that are not valid, or do not fit in an option of 2040 bytes, are left out.
    pub search: &'a [S],
}

impl<S: AsRef<str>> RouterAdvertisement<'_, S> {
    /// The header of an advertisement, with a checksum of zero: hop limit 255, flag M, router lifetime 65535 s
    /// (behaviour §4.2).
    #[must_use]
    pub fn header() -> icmp::Header {
        let (hop_limit, managed, lifetime) = (HOP_LIMIT, 0x80, u16::MAX);
        let rest = u32::from_be_bytes([hop_limit, managed, 0, 0]) | u32::from(lifetime);
        icmp::Header::new(icmp::v6::ROUTER_ADVERTISEMENT, 0, rest)
    }

    /// Writes the body to the start of `buffer`; returns its length in bytes, at most [`MAX_ADVERTISEMENT_LEN`]. None
    /// if it does not fit.
    pub fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut body = Body { buffer, len: 0 };
        body.put(&[0; 8])?; // reachable time and retransmission timer: unspecified
        if let Some((address, prefix_len)) = self.prefix {
            body.put(prefix_information(address, prefix_len).as_bytes())?;
        }
        body.put(LinkLayerAddress::new(option::SOURCE_LINK_LAYER_ADDRESS, self.mac).as_bytes())?;
        if let Some(mtu) = self.mtu {
            let (kind, reserved) = (option::MTU, U16::ZERO);
            body.put(Mtu { kind, units: 1, reserved, mtu: U32::new(mtu) }.as_bytes())?;
        }
        self.put_resolvers(&mut body)?;
        self.put_search(&mut body)?;
        Some(body.len)
    }

    fn put_resolvers(&self, body: &mut Body<'_>) -> Option<()> {
        let most = (MAX_OPTION_LEN - DNS_OPTION_LEN) / 16;
        let resolvers = self.resolvers.get(..most).unwrap_or(self.resolvers);
        if resolvers.is_empty() {
            return Some(());
        }
        let units = 1 + 2 * resolvers.len() as u8;
        body.put(dns_option(option::RECURSIVE_DNS_SERVER, units).as_bytes())?;
        resolvers.iter().try_for_each(|resolver| body.put(&resolver.octets()))
    }

    fn put_search(&self, body: &mut Body<'_>) -> Option<()> {
        let mut names = [0; MAX_OPTION_LEN - DNS_OPTION_LEN];
        let mut len = 0;
        for name in self.search {
            len += domain::encode(name.as_ref(), &mut names[len..]).unwrap_or(0);
        }
        if len == 0 {
            return Some(());
        }
        let padded = len.next_multiple_of(OPTION_UNIT);
        let units = 1 + (padded / OPTION_UNIT) as u8;
        body.put(dns_option(option::DNS_SEARCH_LIST, units).as_bytes())?;
        names[len..padded].fill(0);
        body.put(&names[..padded])
    }
}

fn prefix_information(address: Ipv6Addr, prefix_len: u8) -> PrefixInformation {
    let host_bits = u128::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
    PrefixInformation {
        kind: option::PREFIX_INFORMATION,
        units: 4,
        prefix_len,
        flags: PREFIX_FLAGS,
        valid: U32::new(INFINITE),
        preferred: U32::new(INFINITE),
        reserved: U32::ZERO,
        prefix: (address.to_bits() & !host_bits).to_be_bytes(),
    }
}

const fn dns_option(kind: u8, units: u8) -> DnsOption {
    DnsOption { kind, units, reserved: U16::ZERO, lifetime: U32::new(INFINITE) }
}

/// A body under construction: `len` bytes are written.
struct Body<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl Body<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        self.buffer.get_mut(self.len..self.len + bytes.len())?.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{string::String, vec::Vec};

    use super::*;

    const MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

    fn message<'a>(header: &'a icmp::Header, payload: &'a [u8]) -> icmp::Message<'a> {
        icmp::Message { header, payload }
    }

    #[test]
    fn target_of_a_solicitation() {
        let target: Ipv6Addr = "fe80::1".parse().unwrap();
        let (header, body) = solicitation(target, MAC);
        assert_eq!(neighbour_target(&message(&header, body.as_bytes())), Some(target));
        assert_eq!(&body.as_bytes()[16..], [1, 1, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
        // a message without options
        assert_eq!(neighbour_target(&message(&header, &target.octets())), Some(target));
    }

    #[test]
    fn invalid_solicitations_have_no_target() {
        // RFC 4861 §7.1.1
        let target: Ipv6Addr = "fe80::1".parse().unwrap();
        let (mut header, body) = solicitation(target, MAC);
        let bytes = body.as_bytes();
        for short in [0, 15, 17, 23] {
            assert_eq!(neighbour_target(&message(&header, &bytes[..short])), None, "{short} bytes");
        }
        let mut empty_option = body;
        empty_option.option.units = 0;
        assert_eq!(neighbour_target(&message(&header, empty_option.as_bytes())), None);
        let mut long_option = body;
        long_option.option.units = 2;
        assert_eq!(neighbour_target(&message(&header, long_option.as_bytes())), None);
        let mut multicast = body;
        multicast.target = ALL_NODES.octets();
        assert_eq!(neighbour_target(&message(&header, multicast.as_bytes())), None);
        header.code = 1;
        assert_eq!(neighbour_target(&message(&header, bytes)), None);
        assert!(!is_valid_router_solicitation(&message(&header, &[])));
    }

    #[test]
    fn a_solicited_advertisement_has_flags_router_solicited_override() {
        // behaviour §4.2
        let (header, body) = solicited_advertisement("fe80::9".parse().unwrap(), MAC);
        assert_eq!(header.as_bytes(), [136, 0, 0, 0, 0xe0, 0, 0, 0]);
        assert_eq!(&body.as_bytes()[16..], [2, 1, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
    }

    #[test]
    fn router_advertisement_byte_for_byte() {
        // behaviour §4.2: the order of options; RFC 8106. Host bits of the prefix are cleared.
        let resolvers = ["2001:db8::53".parse().unwrap()];
        let advertisement = RouterAdvertisement {
            mac: MAC,
            prefix: Some(("2001:db8:1::2".parse().unwrap(), 64)),
            mtu: Some(65520),
            resolvers: &resolvers,
            search: &["corp.test"],
        };
        assert_eq!(RouterAdvertisement::<&str>::header().as_bytes(), [134, 0, 0, 0, 255, 0x80, 0xff, 0xff]);
        let mut buffer = [0xaa; MAX_ADVERTISEMENT_LEN];
        let len = advertisement.write(&mut buffer).unwrap();
        let mut expected: Vec<u8> = [0; 8].to_vec();
        expected.extend([3, 4, 64, 0xc0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0]);
        expected.extend([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 1, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);
        expected.extend([5, 1, 0, 0, 0, 0, 0xff, 0xf0]);
        expected.extend([25, 3, 0, 0, 255, 255, 255, 255]);
        expected.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53]);
        expected.extend([31, 3, 0, 0, 255, 255, 255, 255]);
        expected.extend(b"\x04corp\x04test\x00\0\0\0\0\0");
        assert_eq!(&buffer[..len], expected);
        assert!(is_valid_router_solicitation(&message(
            &icmp::Header::new(icmp::v6::ROUTER_SOLICITATION, 0, 0),
            &expected[8..]
        )));
    }

    #[test]
    fn the_longest_advertisement_fits_in_max_advertisement_len() {
        let resolvers = [Ipv6Addr::LOCALHOST; 200];
        let long: String = ["abcdefghi"; 25].join(".");
        let search: Vec<&str> = [long.as_str(); 20].to_vec();
        let prefix = Some((Ipv6Addr::LOCALHOST, 128));
        let mut all =
            RouterAdvertisement { mac: MAC, prefix, mtu: Some(1280), resolvers: &resolvers, search: &search };
        let mut buffer = [0; MAX_ADVERTISEMENT_LEN];
        let len = all.write(&mut buffer).unwrap();
        assert!(options_are_valid(&buffer[8..len]));
        assert_eq!(all.write(&mut buffer[..len - 1]), None);
        (all.prefix, all.mtu, all.resolvers, all.search) = (None, None, &[], &["", "not..a.name"]);
        assert_eq!(all.write(&mut buffer), Some(16));
    }
}
