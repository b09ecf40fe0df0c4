//! The program: command line, host discovery, privileges, links, reactor, sockets.
#![forbid(unsafe_code)]

use std::process::ExitCode;

pub mod cli;
pub mod config;
pub mod host;
mod io;
mod link;
mod listen;
mod logging;
mod pasta;
mod pcap;
pub mod plan;
mod shard;
mod stage;

/// Runs `passt` or `pasta`, chosen by the name the program was called by (SPEC §1.1).
pub fn main() -> ExitCode {
    ExitCode::FAILURE
}
