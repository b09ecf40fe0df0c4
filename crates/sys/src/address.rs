//! Socket addresses in the form of the kernel: `sockaddr_in` and `sockaddr_in6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A `sockaddr_in` or `sockaddr_in6`, as bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RawAddress {
    pub(crate) bytes: [u8; size_of::<libc::sockaddr_in6>()],
    pub(crate) len: u32,
}

impl RawAddress {
    /// `address` in the form for a socket of the same family. With `mapped`, in the form for an IPv6 socket: an IPv4
    /// address is written as an IPv4-mapped one.
    pub fn new(address: SocketAddr, mapped: bool) -> Self {
        let mut bytes = [0; size_of::<libc::sockaddr_in6>()];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let v6 = match address {
            SocketAddr::V4(v4) if !mapped => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                return Self { bytes, len: size_of::<libc::sockaddr_in>() as u32 };
            }
            SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
            SocketAddr::V6(v6) => v6,
        };
        bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        bytes[8..24].copy_from_slice(&v6.ip().octets());
        bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
        Self { bytes, len: size_of::<libc::sockaddr_in6>() as u32 }
    }
}

/// Parses a `sockaddr_in` or `sockaddr_in6`. An IPv4-mapped address becomes an IPv4 address. None for other families
/// and truncated addresses.
pub(crate) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.first_chunk().copied()?));
    let port = u16::from_be_bytes(bytes.get(2..)?.first_chunk().copied()?);
    match family {
        libc::AF_INET => {
            let address: [u8; 4] = bytes.get(4..)?.first_chunk().copied()?;
            Some(SocketAddr::new(Ipv4Addr::from(address).into(), port))
        }
        libc::AF_INET6 => {
            let address = Ipv6Addr::from(bytes.get(8..)?.first_chunk::<16>().copied()?);
            let scope = u32::from_ne_bytes(bytes.get(24..)?.first_chunk().copied()?);
            Some(match address.to_canonical() {
                IpAddr::V4(v4) => SocketAddr::new(v4.into(), port),
                IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_in_both_forms() {
        for text in ["192.0.2.1:53", "[2001:db8::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            for mapped in [false, true] {
                let raw = RawAddress::new(address, mapped);
                assert_eq!(parse_address(&raw.bytes[..raw.len as usize]), Some(address));
            }
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new("fe80::1".parse().unwrap(), 9, 0, 7));
        assert_eq!(parse_address(&RawAddress::new(scoped, true).bytes), Some(scoped));
        assert_eq!(parse_address(&[]), None);
    }
}
