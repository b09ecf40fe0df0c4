//! Packet capture of both directions (SPEC §9.5).
