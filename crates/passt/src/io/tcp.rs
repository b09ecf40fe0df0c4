//! TCP sockets of the host.
