//! Listening sockets of the forwarding rules (SPEC §8.1).
