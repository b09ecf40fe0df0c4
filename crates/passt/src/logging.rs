//! Where log lines go, and which of them (SPEC §1.7).
