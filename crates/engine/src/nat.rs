//! The one table of address translation between guest and host (SPEC §5).
