//! What was asked: the valid, contradiction-free outcome of a command line (SPEC §2).
