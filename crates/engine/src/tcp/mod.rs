//! TCP between the guest and sockets of the host (SPEC §6).
