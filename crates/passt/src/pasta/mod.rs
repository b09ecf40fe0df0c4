//! Namespaces of pasta: spawn one, join one, configure it, leave with it (SPEC §1.5, §1.6, §3.6).
