//! The control socket, by which forwarding rules are changed while we run (`--conf-path`, SPEC §8.9).
//!
//! One client at a time is told the rules in force, and may answer with others. What the protocol has no word for is
//! said behind its end: a client that goes on reading learns whether its update holds, see [`reply`]; one that doesn't
//! is not disturbed.

pub mod reply;
pub(crate) mod server;
pub mod wire;
