//! The tap device of a network namespace, with virtio-net headers (SPEC §9.1).
