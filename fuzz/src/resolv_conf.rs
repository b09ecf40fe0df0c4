//! The host's resolv.conf, with any contents.

use passt::host::Resolver;

/// Input: the bytes of the file.
pub fn target(data: &[u8]) {
    let alone = Resolver::parse(data);
    let line = b"\nnameserver 192.0.2.1\n";
    let followed = Resolver::parse(&[data, line].concat());
    assert_eq!(followed.servers.len(), alone.servers.len() + 1, "one line more, one server more");
    assert!(alone.search.iter().all(|domain| !domain.contains(char::is_whitespace)));
}
