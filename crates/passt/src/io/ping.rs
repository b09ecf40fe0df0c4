//! Ping sockets of the host (SPEC §4.5).
