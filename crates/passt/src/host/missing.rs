//! Features of the kernel that a test declares missing, so that the fallbacks for them are tested end to end.
//!
//! Only a build with debug assertions reads the environment variable. In a release build, it has no effect.

/// Offloads of a tap device (behaviour §9.1).
pub(crate) const TAP_OFFLOADS: &str = "tap-offloads";
/// Lists of sockets over netlink, sock_diag(7).
pub(crate) const SOCK_DIAG: &str = "sock-diag";
/// `SO_PEEK_OFF` for TCP (Linux 6.9).
pub(crate) const TCP_PEEK_OFFSET: &str = "tcp-peek-offset";

/// `SO_NETNS_COOKIE` (Linux 5.14).
pub(crate) const NETNS_COOKIE: &str = "netns-cookie";

/// Whether `PASST_TEST_MISSING`, a comma-separated list, names `feature`.
pub(crate) fn is_missing(feature: &str) -> bool {
    cfg!(debug_assertions)
        && std::env::var("PASST_TEST_MISSING").is_ok_and(|list| list.split(',').any(|name| name == feature))
}
