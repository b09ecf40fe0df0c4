//! Host names that a client asks for.

use alloc::{boxed::Box, string::String};
use core::{fmt, str};

use wire::domain::{MAX_DOTTED_LEN, MAX_LABEL_LEN};

/// A host name in lower case, without a trailing dot. A host name is never an IP address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostName(Box<str>);

impl HostName {
    /// Reads a name of ASCII letters, digits, hyphens and underscores, in labels of 1 to 63 bytes. One trailing dot is
    /// allowed: some clients send it, though RFC 6066 §3 forbids it. Returns none for all other bytes, and for names
    /// that end in a number: resolvers and browsers read such names as IPv4 addresses, also in the forms `127.1` and
    /// `0x7f.1`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_label = |label: &[u8]| (1..=MAX_LABEL_LEN).contains(&label.len()) && label.iter().all(allowed);
        let valid = bytes.len() <= MAX_DOTTED_LEN && bytes.split(|&b| b == b'.').all(is_label);
        let last = bytes.rsplit(|&b| b == b'.').next()?;
        if !valid || is_number(last) {
            return None;
        }
        let mut name = String::from(str::from_utf8(bytes).ok()?);
        name.make_ascii_lowercase();
        Some(Self(name.into_boxed_str()))
    }

    /// The name in lower case, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether a label is a number as inet_aton(3) reads it.
fn is_number(label: &[u8]) -> bool {
    match label.strip_prefix(b"0x").or_else(|| label.strip_prefix(b"0X")) {
        Some(digits) => digits.iter().all(u8::is_ascii_hexdigit),
        None => label.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(name: &str) -> Option<String> {
        HostName::parse(name.as_bytes()).map(|name| name.as_str().into())
    }

    #[test]
    fn case_and_one_trailing_dot_do_not_matter() {
        for name in ["files.example.org", "Files.EXAMPLE.org", "files.example.org."] {
            assert_eq!(parse(name).as_deref(), Some("files.example.org"), "{name}");
        }
        for name in ["localhost", "_443._tcp.example.org", "r3---sn-4.example.org", "xn--nxasmq6b", "1.0xyz"]
        {
            assert_eq!(parse(name).as_deref(), Some(name));
        }
    }

    #[test]
    fn addresses_are_no_names() {
        let numbers =
            ["192.0.2.1", "192.0.2.1.", "127.1", "2130706433", "0x7f.1", "1.2.0x3", "0X7F000001", "a.0x"];
        for name in numbers.into_iter().chain(["2001:db8::1", "[2001:db8::1]", "::ffff:192.0.2.1"]) {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn other_bytes_and_lengths_are_refused() {
        for name in
            ["", ".", "..", "a..b", ".a", "a..", "a b", "a/b", "a@b", "a\0", "a%2eb", "bücher.example", "*.a"]
        {
            assert_eq!(parse(name), None, "{name:?}");
        }
        assert_eq!(HostName::parse(b"\xffa"), None);
        let label = "x".repeat(MAX_LABEL_LEN);
        assert!(parse(&label).is_some() && parse(&alloc::format!("{label}x")).is_none());
        let mut name = [label.as_str(); 4].join(".");
        assert_eq!(parse(&name), None);
        name.truncate(MAX_DOTTED_LEN);
        assert!(parse(&name).is_some());
    }
}
