//! The host's resolvers and search list, from resolv.conf (resolver(5)).

mod watch;

use std::{
    fs::File,
    io::{self, Read},
    net::IpAddr,
    os::fd::OwnedFd,
};

use resolv_conf::ScopedIp;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::errno::retry;
pub(crate) use watch::{News, Watch};

/// The host's resolv.conf.
pub(crate) const PATH: &str = "/etc/resolv.conf";
/// Maximum number of octets of the file that are read.
const MAX_LEN: u64 = 1 << 20;

/// The host's resolvers and its domain search list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// All name servers in the order of the file, without zones.
    pub servers: Vec<IpAddr>,
    /// Domains in the last `search` or `domain` line.
    pub search: Vec<String>,
}

impl Resolver {
    /// Reads the host's file. A missing or unreadable file is treated as an empty file.
    pub(super) fn gather() -> Self {
        match read_file() {
            Ok(text) => Self::parse(&text),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    log::warn!("Can't read {PATH}, no name server is known: {error}");
                }
                Self::default()
            }
        }
    }

    /// Parses `text`. Invalid lines are skipped.
    pub fn parse(text: &[u8]) -> Self {
        let (config, ignored) = resolv_conf::Config::parse_with_errors(&without_zones(text));
        for line in ignored {
            log::debug!("{PATH}: {line}");
        }
        let servers = config
            .nameservers
            .iter()
            .map(|server| match server {
                ScopedIp::V4(address) => IpAddr::V4(*address),
                ScopedIp::V6(address, _) => IpAddr::V6(*address),
            })
            .collect();
        let search = config.get_last_search_or_domain().cloned().collect();
        Self { servers, search }
    }
}

/// The content of the host's file.
pub(crate) fn read_file() -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    read(retry(|| openat(CWD, PATH, flags, Mode::empty()))?)
}

/// Reads at most [`MAX_LEN`] octets. The file must have been opened with O_NONBLOCK: it may be a pipe.
fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::from(file).take(MAX_LEN).read_to_end(&mut text)?;
    Ok(text)
}

/// Returns `text` without `%zone`. A zone has no meaning for the guest, and the parser refuses some valid zones.
fn without_zones(text: &[u8]) -> Vec<u8> {
    let mut zone = false;
    text.iter()
        .copied()
        .filter(|octet| {
            zone = (zone || *octet == b'%') && !octet.is_ascii_whitespace();
            !zone
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &[u8]) -> Vec<String> {
        Resolver::parse(text).servers.iter().map(ToString::to_string).collect()
    }

    /// behaviour §3.4.2, Q14.
    #[test]
    fn lines_of_resolver_5() {
        assert_eq!(servers(b"nameserver 192.0.2.1\nnameserver\t192.0.2.2\n"), ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(
            servers(b"  nameserver   2001:db8::1   \nnameserver 192.0.2.1"),
            ["2001:db8::1", "192.0.2.1"]
        );
        assert_eq!(servers(b"nameserver 192.0.2.1 # the good one\r\n"), ["192.0.2.1"]);
        assert_eq!(servers(b"nameserver fe80::1%br-lan.7\nnameserver fe80::2%3\n"), ["fe80::1", "fe80::2"]);
        assert_eq!(servers(b"# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n"), [""; 0]);
    }

    #[test]
    fn invalid_lines_are_skipped() {
        assert_eq!(
            servers(b"nameserver\nnameserver x\nnameserver 1.2.3.4.5\nnameserver 192.0.2.1"),
            ["192.0.2.1"]
        );
        assert_eq!(
            servers(b"\xff\xfe nameserver\noptions ndots:x\nfrobnicate\nnameserver 192.0.2.1"),
            ["192.0.2.1"]
        );
        assert_eq!(servers(b""), [""; 0]);
        assert_eq!(servers(&[b'%'; 100_000]), [""; 0]);
    }

    /// resolver(5): the last `search` or `domain` line is used.
    #[test]
    fn search_list() {
        let search = |text: &[u8]| Resolver::parse(text).search;
        assert_eq!(search(b"search a.example\tb.example \n"), ["a.example", "b.example"]);
        assert_eq!(search(b"domain a.example"), ["a.example"]);
        assert_eq!(search(b"search a.example\nsearch b.example c.example\n"), ["b.example", "c.example"]);
        assert_eq!(search(b"nameserver 192.0.2.1\n"), [""; 0]);
    }

    proptest::proptest! {
        /// A valid line is found between any octets.
        #[test]
        fn any_octets_are_accepted(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let text = [&noise[..], b"\nnameserver 192.0.2.1\n", &noise[..]].concat();
            let wanted = "192.0.2.1".parse().unwrap();
            proptest::prop_assert!(Resolver::parse(&text).servers.contains(&wanted));
        }
    }
}
