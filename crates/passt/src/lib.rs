//! The program: command line, host discovery, privileges, links, reactor, sockets.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

pub mod budgets;
pub mod cli;
pub mod config;
mod control;
mod errno;
mod event;
mod forward;
pub mod host;
pub mod io;
#[cfg(test)]
mod isolated;
pub mod link;
mod logging;
pub mod memory;
pub mod pasta;
pub mod plan;
mod process;
mod shard;
mod start;

use config::{Config, Verbosity};
use process::lifetime::{Exit, Lifetime};
use process::stage::Boot;
use shard::Resolvers;
use start::{GuestSide, HostSide};

/// Runs `passt` or `pasta`, chosen by the name the program was called by (behaviour §1.1).
pub fn main() -> ExitCode {
    let config = match cli::parse(std::env::args_os(), host::ephemeral_ports) {
        Ok(cli::Invocation::Run(config)) => config,
        Ok(
            cli::Invocation::Help(text)
            | cli::Invocation::Version(text)
            | cli::Invocation::Capabilities(text),
        ) => {
            return print(&text);
        }
        Err(error) => {
            // If this fails, the exit status still reports the failure.
            drop(writeln!(std::io::stderr(), "{error}"));
            return ExitCode::FAILURE;
        }
    };
    logging::start(config.mode.name(), config.verbosity);
    logging::report_panics();
    match run(&config) {
        Ok(exit) => exit.into(),
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a text that was asked for, whole.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The life of the process. It gives up its rights in stages, see [`process::stage`]: in front of each stage stands
/// what needs the rights of the stage before.
fn run(config: &Config) -> anyhow::Result<Exit> {
    let mut boot = Boot::new(config)?;
    let mut host = HostSide::open(config, boot.take_guest_socket())?;
    let (prepared, guest) = boot.prepare(config)?;

    let guest_side = GuestSide::open(config, &mut host.network, guest.namespace.as_ref())?;
    let mut shard = start::event_loop(config, host.network, guest_side)?;
    let mut lifetime = Lifetime::new(guest.command, guest.watch)?;

    let confined = prepared.confine(config, host.resolver.as_mut())?;
    let detached = confined.detach(config, host.pid_file)?;
    let (staffed, threads) = detached.staff(guest.namespace, host.resolver)?;
    // The first scan for ports: those in use now are forwarded when the caller learns that the network is ready.
    shard.start(threads.opener)?;
    let sealed = staffed.seal()?;
    sealed.announce()?;

    // The command takes over the terminal, but with --debug the user wants to see both.
    if lifetime.release_command() && config.verbosity < Verbosity::Debug {
        logging::leave_stderr();
    }
    logging::limit_rates();
    shard.run(lifetime, threads.news.map(|news| Resolvers { news, config }))
}
