//! Ping: echo requests of the guest over ping sockets of the host (SPEC §4.5).

/// A ping socket (`SOCK_DGRAM`, `IPPROTO_ICMP` or `IPPROTO_ICMPV6`).
pub trait PingSocket {}
