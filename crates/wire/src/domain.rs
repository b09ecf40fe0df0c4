//! Domain names in wire format (RFC 1035 §3.1).

use core::net::{IpAddr, Ipv6Addr};

/// Longest name in wire format, in bytes.
pub const MAX_LEN: usize = 255;

/// Longest name in dotted form without a trailing dot, in bytes. Wire format has one byte more before the first label, and one
/// after the last.
pub const MAX_DOTTED_LEN: usize = MAX_LEN - 2;

/// Longest label, in bytes.
pub const MAX_LABEL_LEN: usize = 63;

/// The labels of a name in dotted form; one trailing dot is allowed. None if there is no label, if a label is empty or
/// longer than 63 bytes, or if the name is longer than [`MAX_LEN`] in wire format.
pub fn labels(name: &str) -> Option<impl Iterator<Item = &[u8]>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = name.split('.').all(|label| (1..=MAX_LABEL_LEN).contains(&label.len()));
    (valid && wire_len(name) <= MAX_LEN).then(|| name.split('.').map(str::as_bytes))
}

/// Writes a name to the start of `buffer`, without compression; returns its length in bytes. None if it is not a valid
/// name (see [`labels`]), or does not fit.
pub fn encode(name: &str, buffer: &mut [u8]) -> Option<usize> {
    let mut at = 0;
    for label in labels(name)? {
        let place = buffer.get_mut(at..at + 1 + label.len())?;
        place[0] = label.len() as u8;
        place[1..].copy_from_slice(label);
        at += place.len();
    }
    *buffer.get_mut(at)? = 0;
    Some(at + 1)
}

/// The name without the leading labels of service and protocol, which begin with an underscore (RFC 2782, RFC 8552, RFC
/// 9460 §2.3). For `_http._tcp.example.org` the result is `example.org`. A name is returned unchanged if it has only
/// such labels, has more than two of them, or has one that is longer than the name of a service can be (RFC 6335 §5.1).
#[must_use]
pub fn without_service(name: &str) -> &str {
    const MOST: usize = 2;
    const MAX_SERVICE_LEN: usize = 15;
    let mut rest = name;
    for _ in 0..MOST {
        let Some(after_underscore) = rest.strip_prefix('_') else { break };
        match after_underscore.split_once('.') {
            Some((service, after)) if service.len() <= MAX_SERVICE_LEN => rest = after,
            _ => return name,
        }
    }
    if rest.is_empty() || rest.starts_with('_') { name } else { rest }
}

/// The address that a reverse-mapping name stands for (RFC 1035 §3.5, RFC 3596 §2.5). `name` is in lower case and has
/// no trailing dot. None if the name does not stand for a single address.
#[must_use]
pub fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut parts = octets.rsplit('.').map(octet);
        let octets = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
        return parts.next().is_none().then_some(octets.into());
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let (mut bits, mut count) = (0_u128, 0);
    for nibble in nibbles.rsplit('.') {
        let &[digit @ (b'0'..=b'9' | b'a'..=b'f')] = nibble.as_bytes() else { return None };
        bits = bits << 4 | u128::from((digit as char).to_digit(16)?);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// Parses a decimal number from 0 to 255 without leading zeros, which is the only form that servers use.
fn octet(text: &str) -> Option<u8> {
    let leading_zero = text.len() > 1 && text.starts_with('0');
    (text.bytes().all(|b| b.is_ascii_digit()) && !leading_zero).then(|| text.parse().ok()).flatten()
}

/// Length in wire format of a name without its trailing dot. In wire format, each dot is a length byte, another length
/// byte comes first, and the root label comes last.
const fn wire_len(name: &str) -> usize {
    name.len() + 2
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{string::String, vec::Vec};

    use super::*;

    fn encoded(name: &str) -> Option<Vec<u8>> {
        let mut buffer = [0xaa; 300];
        encode(name, &mut buffer).map(|len| buffer[..len].to_vec())
    }

    #[test]
    fn a_name_is_encoded_as_labels_and_root() {
        let expected = b"\x05guest\x07example\x04test\x00".to_vec();
        assert_eq!(encoded("guest.example.test").as_ref(), Some(&expected));
        assert_eq!(encoded("guest.example.test."), Some(expected));
        assert_eq!(encoded("a"), Some(b"\x01a\x00".to_vec()));
    }

    #[test]
    fn reverse_names_have_one_address() {
        for (name, expected) in [
            ("4.3.2.1.in-addr.arpa", Some("1.2.3.4")),
            ("255.0.0.10.in-addr.arpa", Some("10.0.0.255")),
            ("04.3.2.1.in-addr.arpa", None),
            ("+4.3.2.1.in-addr.arpa", None),
            ("256.3.2.1.in-addr.arpa", None),
            ("3.2.1.in-addr.arpa", None),
            ("x.4.3.2.1.in-addr.arpa", None),
            (".3.2.1.in-addr.arpa", None),
            ("in-addr.arpa", None),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", Some("2001:db8::1")),
            ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.ip6.arpa", None),
            ("01.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", None),
            ("g.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa", None),
            ("example.org", None),
        ] {
            assert_eq!(reverse_address(name), expected.map(|text| text.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn service_labels_are_removed() {
        for (name, expected) in [
            ("_http._tcp.example.org", "example.org"),
            ("_8443._https.a_b.example.org", "a_b.example.org"),
            ("example.org", "example.org"),
            ("a._tcp.example.org", "a._tcp.example.org"),
            ("_kerberos-master._udp.example.org", "example.org"),
            ("_sixteen-letters-._tcp.example.org", "_sixteen-letters-._tcp.example.org"),
            ("_a._b._c.example.org", "_a._b._c.example.org"),
            ("_tcp", "_tcp"),
            ("_http._tcp", "_http._tcp"),
            ("_tcp.", "_tcp."),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(without_service(name), expected);
        }
    }

    #[test]
    fn invalid_names_are_refused() {
        let long = String::from_utf8([b'x'; 64].to_vec()).unwrap();
        for name in ["", ".", "..", ".a", "a..b", long.as_str()] {
            assert_eq!(encoded(name), None, "{name:?}");
        }
    }

    #[test]
    fn limits_are_those_of_the_wire_format() {
        let label = String::from_utf8([b'x'; 63].to_vec()).unwrap();
        assert!(encoded(&label).is_some());
        let mut name = [label.as_str(); 4].join("."); // 4 * 63 + 3 = 255 characters
        assert_eq!(encoded(&name), None);
        name.truncate(253);
        assert_eq!(encoded(&name).map(|bytes| bytes.len()), Some(MAX_LEN));
        let mut small = [0; 2];
        assert_eq!(encode("a", &mut small), None);
    }
}
