//! The engine's socket traits over real sockets of the host.

pub mod outbound;
pub mod ping;
mod tcp;
pub mod udp;
