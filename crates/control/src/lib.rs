//! The protocol of the control socket, by which forwarding rules are changed at run time (`--conf-path`, behaviour §8.9).
//!
//! The server announces the rules in force ([`message`]). The client may answer with others. The C implementation's
//! protocol ends there; a client that continues to read learns whether its update holds ([`reply`]), and one that does not
//! read is not disturbed.
#![forbid(unsafe_code)]

pub mod message;
pub mod reply;
