//! Groups of addresses, and IPv6 addresses that carry an IPv4 address.
//!
//! Each address is in one group, by the IANA registries of special-purpose addresses (RFC 6890) and of IPv6 global
//! unicast addresses:
//!
//! | group | IPv4 | IPv6 |
//! |---|---|---|
//! | `metadata` | [`METADATA`] | [`METADATA`] |
//! | `host` | 127/8, and 0.0.0.0, which also reaches the host | ::1, :: |
//! | `linklocal` | 169.254/16 | fe80::/10 |
//! | `multicast` | 224/4, and the broadcast 255.255.255.255 | ff00::/8 |
//! | `private` | 10/8, 172.16/12, 192.168/16 (RFC 1918), 100.64/10 (RFC 6598), and all other ranges that are not globally reachable: 0/8, 192.0.0/24, 198.18/15, 240/4 | fc00::/7 (RFC 4193), 2001::/23, and all addresses outside of 2000::/3, such as fec0::/10 and 100::/64 |
//! | `public` | all other addresses | all other addresses |
//!
//! Ranges that are not globally reachable are private: networks use these ranges internally, so a rule that denies
//! private addresses must cover them. Documentation ranges (RFC 5737, RFC 3849, RFC 9637) are an exception: examples
//! and tests use them as public addresses.
//!
//! A destination that leads to the host is also in the group `host`. Only the caller knows which destinations lead to
//! the host: see [`Question`](super::Question).

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A group of addresses that a rule can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Addresses of the Internet: all addresses that are in no other group.
    Public,
    /// Addresses of private networks.
    Private,
    /// Link-local addresses.
    LinkLocal,
    /// Addresses at which clouds serve metadata and credentials. These addresses are in no other group.
    Metadata,
    /// Addresses that lead to the host itself.
    Host,
    /// Addresses that reach several hosts.
    Multicast,
    /// Every address.
    All,
}

impl Group {
    /// All groups, with their names in rules.
    pub const ALL: [(&'static str, Self); 7] = [
        ("public", Self::Public),
        ("private", Self::Private),
        ("linklocal", Self::LinkLocal),
        ("metadata", Self::Metadata),
        ("host", Self::Host),
        ("multicast", Self::Multicast),
        ("all", Self::All),
    ];

    /// The group of `address` itself. The result depends neither on an IPv4 address that `address` carries nor on
    /// whether `address` leads to the host. Never [`Group::All`].
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if METADATA.contains(&address) {
            return Self::Metadata;
        }
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, group)| group == self);
        f.pad(named.map_or("", |(word, _)| word))
    }
}

/// Addresses at which clouds serve the metadata and credentials of a machine or a container.
pub const METADATA: [IpAddr; 17] = [
    // AWS EC2, Azure, Google, OCI, OpenStack, Alibaba and most other clouds. EC2 was the first to use this address.
    v4(169, 254, 169, 254),
    // AWS, "Use the Instance Metadata Service", for Nitro instances.
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
    // AWS, "Amazon ECS task IAM role": credentials of a task.
    v4(169, 254, 170, 2),
    // AWS, "EKS Pod Identity": the agent on the node.
    v4(169, 254, 170, 23),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
    // Google, "About VM metadata", for IPv6-only instances.
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
    // Google, "Workload Identity Federation for GKE": the node's metadata server after translation.
    v4(169, 254, 169, 252),
    // Azure, "What is IP address 168.63.129.16": the agent's settings, with certificates.
    v4(168, 63, 129, 16),
    // OCI: oci-python-sdk, instance principals; "Oracle Cloud Infrastructure Classic".
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
    v4(192, 0, 0, 192),
    // OpenStack, neutron: "Metadata service over IPv6"; Akamai.
    v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
    // Akamai (Linode): cloud-init, datasource Akamai.
    v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]),
    // Scaleway: cloud-init, datasource Scaleway.
    v4(169, 254, 42, 42),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]),
    // Alibaba: cloud-init, datasource AliYun.
    v4(100, 100, 100, 200),
    // Tencent, metadata.tencentyun.com.
    v4(169, 254, 0, 23),
    // Volcengine, "Instance metadata".
    v4(100, 96, 0, 96),
];

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(segments: [u16; 8]) -> IpAddr {
    let [a, b, c, d, e, f, g, h] = segments;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

const fn of_v4(address: Ipv4Addr) -> Group {
    match address.octets() {
        [127, ..] | [0, 0, 0, 0] => Group::Host,
        [169, 254, ..] => Group::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => Group::Multicast,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Group::Private,
        [100, 64..=127, ..] => Group::Private,
        [0, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] | [240..=255, ..] => Group::Private,
        _ => Group::Public,
    }
}

const fn of_v6(address: Ipv6Addr) -> Group {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Group::Host,
        [0xfe80..=0xfebf, ..] => Group::LinkLocal,
        [0xff00..=0xffff, ..] => Group::Multicast,
        [0x2001, 0..=0x1ff, ..] => Group::Private,
        [0x2000..=0x3fff, ..] => Group::Public,
        _ => Group::Private,
    }
}

/// The IPv4 addresses that packets to an IPv6 address may reach. Most addresses have none. IPv4-mapped and
/// IPv4-compatible addresses (RFC 4291 §2.5.5), 6to4 (RFC 3056 §2), Teredo (RFC 4380 §4, the client), and NAT64's
/// well-known prefix (RFC 6052 §2.1) have one.
///
/// NAT64 prefixes for local use (RFC 8215) lie anywhere in 64:ff9b:1::/48. We don't know the
/// length of the prefix that the local network uses, so the IPv4 address is read at each position that RFC 6052 §2.2
/// allows. An address in 0/8 is skipped, since no translator translates it.
pub(super) fn carried(address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let bits = address.to_bits();
    // The four bytes that begin at the given byte.
    let from = |byte: u32| (bits >> (96 - 8 * byte)) as u32;
    let one = |address: u32| [Some(address), None, None, None];
    let found: [Option<u32>; 4] = match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] => one(from(12)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => one(from(12)),
        [0x2002, ..] => one(from(2)),
        [0x2001, 0, ..] => one(!from(12)),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => one(from(12)),
        [0x64, 0xff9b, 1, ..] => {
            // The IPv4 address after prefixes of 48, 56, 64 and 96 bits. Byte 8 is skipped.
            let of_48 = from(6) & 0xffff_0000 | from(9) >> 16;
            let of_56 = from(7) & 0xff00_0000 | from(9) >> 8;
            let found = [of_48, of_56, from(9), from(12)].map(|found| (found >> 24 != 0).then_some(found));
            if found == [None; 4] { one(from(12)) } else { found }
        }
        _ => [None; 4],
    };
    found.into_iter().flatten().map(Ipv4Addr::from_bits)
}
