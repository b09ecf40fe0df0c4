//! Names of network interfaces.

use alloc::string::String;
use core::{fmt, ops::Deref, str::FromStr};

/// Name of a network interface: 1 to 15 bytes, without `/` and white space. The names `.` and `..` are invalid.
///
/// These are the kernel's own limits (`IFNAMSIZ` less the terminating zero). So a name that parses is refused later
/// only because no such interface exists.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IfName(String);

/// A string that can't be the name of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an interface name: 1 to 15 characters, without '/' or blanks, neither '.' nor '..'")]
pub struct InvalidIfName;

impl IfName {
    /// Maximum length of a name, in bytes.
    pub const MAX_LEN: usize = 15;

    /// The loopback interface, `lo`.
    pub fn loopback() -> Self {
        Self(String::from("lo"))
    }
}

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(name: &str) -> Result<Self, InvalidIfName> {
        let length_ok = (1..=Self::MAX_LEN).contains(&name.len());
        let bytes_ok = !name.bytes().any(|b| b == b'/' || b == 0 || b == 0x0b || b.is_ascii_whitespace());
        if length_ok && bytes_ok && name != "." && name != ".." {
            Ok(Self(String::from(name)))
        } else {
            Err(InvalidIfName)
        }
    }
}

impl Deref for IfName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// a 15-character name works, a longer one does not.
    #[test]
    fn length_limit_is_15_r15() {
        assert!("abcdefghijklmno".parse::<IfName>().is_ok());
        assert!("abcdefghijklmnop".parse::<IfName>().is_err());
        assert!("".parse::<IfName>().is_err());
    }

    /// Forbidden names of `ifname` (behaviour §2.4).
    #[test]
    fn forbidden_characters_and_names() {
        for bad in ["a/b", "a b", "a\tb", "a\nb", "a\x0bb", "a\0b", ".", ".."] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
        for good in ["lo", "eth0.100", "wg-x", "...", "a:b", "%"] {
            assert!(good.parse::<IfName>().is_ok(), "{good:?}");
        }
    }
}
