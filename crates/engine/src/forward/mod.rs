//! Port forwarding rules (SPEC §2.4, §8).
