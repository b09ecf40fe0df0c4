//! The program: command line, host discovery, privileges, links, reactor, sockets.
#![forbid(unsafe_code)]

use std::{
    io::{Write, stderr, stdout},
    process::ExitCode,
};

use cli::Invocation;
use config::Config;

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
    match cli::parse(std::env::args_os(), host::ephemeral_ports) {
        Ok(Invocation::Run(config)) => run(*config),
        Ok(Invocation::Help(text) | Invocation::Version(text) | Invocation::Capabilities(text)) => {
            show(&text)
        }
        Err(error) => {
            // With standard error closed, the exit status has to say it all.
            let _ = writeln!(stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what was asked for.
fn run(_config: Config) -> ExitCode {
    ExitCode::FAILURE
}

/// Writes a text to standard output, all of it, before the program ends.
fn show(text: &str) -> ExitCode {
    let mut out = stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
