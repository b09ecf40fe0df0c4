//! Parsers for the values of options.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use engine::forward::IfName;
use wire::ethernet::Mac;

/// Maximum length of a path of a UNIX socket in bytes: the length of `sun_path` without the terminating zero.
pub(super) const SOCKET_PATH_MAX: usize = 107;

/// An unsigned number: decimal, octal after `0`, hexadecimal after `0x`. Leading blanks and one `+` are accepted
/// (behaviour §2.1).
pub(super) fn number(value: &OsStr) -> Option<u64> {
    let text = value.to_str()?.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    // `from_str_radix` would accept another sign.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

/// A number of bytes: decimal, with an optional suffix `K`, `M` or `G` for powers of 1024.
pub(super) fn size(value: &OsStr) -> Option<u64> {
    const SUFFIXES: [(&[char], u32); 3] = [(&['K', 'k'], 10), (&['M', 'm'], 20), (&['G', 'g'], 30)];
    let text = value.to_str()?;
    let found = SUFFIXES.iter().find_map(|(letters, shift)| Some((text.strip_suffix(*letters)?, *shift)));
    let (digits, shift) = found.unwrap_or((text, 0));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    number.checked_mul(1 << shift)
}

/// An IP address. An IPv4-mapped IPv6 address becomes an IPv4 address.
pub(super) fn addr(value: &OsStr) -> Option<IpAddr> {
    Some(value.to_str()?.parse::<IpAddr>().ok()?.to_canonical())
}

/// Stores an address in the field of its family.
pub(super) fn store(addr: IpAddr, v4: &mut Option<Ipv4Addr>, v6: &mut Option<Ipv6Addr>) {
    match addr {
        IpAddr::V4(addr) => *v4 = Some(addr),
        IpAddr::V6(addr) => *v6 = Some(addr),
    }
}

/// Whether the address is the limited broadcast address of IPv4.
pub(super) fn is_broadcast(addr: IpAddr) -> bool {
    addr == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A MAC address: exactly six pairs of hexadecimal digits with colons.
pub(super) fn mac(value: &OsStr) -> Result<Mac, String> {
    let invalid = || format!("Invalid MAC address: {}", value.display());
    let text = value.to_str().ok_or_else(invalid)?;
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(pair.ok_or_else(invalid)?, 16).map_err(|_| invalid())?;
    }
    if pairs.next().is_some() { Err(invalid()) } else { Ok(Mac(mac)) }
}

/// A name of a network interface. The interface need not exist.
pub(super) fn interface(value: &OsStr) -> Result<IfName, String> {
    let name = value.to_str().and_then(|name| name.parse().ok());
    name.ok_or_else(|| format!("Invalid interface name: {}", value.display()))
}

/// A path of a file. Any string except the empty string is valid.
pub(super) fn path(value: &OsStr, what: &str) -> Result<PathBuf, String> {
    if value.is_empty() {
        Err(format!("Invalid {what}: the path is empty"))
    } else {
        Ok(PathBuf::from(value))
    }
}

/// A path of a UNIX socket.
pub(super) fn socket_path(value: &OsStr) -> Result<PathBuf, String> {
    let path = path(value, "socket path")?;
    if value.as_bytes().len() > SOCKET_PATH_MAX {
        return Err(format!("Socket path longer than {SOCKET_PATH_MAX} bytes: {}", value.display()));
    }
    Ok(path)
}

/// A host or domain name of up to 253 characters (behaviour §2.2).
pub(super) fn name(value: &OsStr, what: &str) -> Result<String, String> {
    match value.to_str() {
        Some(name) if (1..=253).contains(&name.len()) => Ok(name.into()),
        _ => Err(format!("Invalid {what}: {}", value.display())),
    }
}

/// `--netmask`: a number of bits or a dotted mask. Zeros between ones are refused.
pub(super) fn prefix_len(value: &OsStr) -> Option<u8> {
    if let Some(bits) = number(value) {
        return u8::try_from(bits).ok().filter(|bits| *bits <= 32);
    }
    let mask = u32::from(value.to_str()?.parse::<Ipv4Addr>().ok()?);
    let ones = mask.leading_ones();
    if mask.count_ones() == ones { u8::try_from(ones).ok() } else { None }
}
