//! UDP sockets of the host.
