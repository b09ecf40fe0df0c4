//! The engine's socket traits over real sockets of the host.

mod ping;
mod tcp;
mod udp;
