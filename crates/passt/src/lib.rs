//! passt and pasta: user-mode networking for virtual machines and network namespaces.
//!
//! This crate is the program around the engine. It parses the command line, reads the host's network configuration,
//! opens sockets and links, gives up its rights, and runs the event loop. The crate `engine` implements the protocols.
//! The engine does no I/O: it requests I/O from this crate by its traits `Host` (sockets) and `Link` (frames).
//!
//! ```text
//!   guest                     this process                       host
//!  +-------+ frames +------+ frames +--------+ payload +-----------+
//!  | VM or |<------>| link |<------>| engine |<------->| io        |<---> network
//!  | netns |        +------+        +--------+         | (sockets) |
//!  |       |                                           |           |
//!  |       |     +------------------------------+      |           |
//!  |       |<--->| forward: local TCP (bypass), |<---->|           |
//!  +-------+     |          listening sockets   |      +-----------+
//!                +------------------------------+
//!                  shard: one event loop for all
//! ```
//!
//! # Life of the process
//!
//! 1. [`cli::parse`] turns the arguments into a [`config::Config`].
//! 2. [`host::Facts::gather`] reads the host's interfaces, addresses, routes and resolvers. [`plan::plan`] makes the
//!    plan from the configuration and these facts, without any I/O.
//! 3. Everything that needs the caller's rights is opened: files, listening sockets, the guest's socket.
//! 4. The process changes user, joins or spawns the guest's namespace, and configures the link there.
//! 5. The process gives up its rights in stages: file system, terminal, capabilities, system calls. A stage is a type
//!    that only the previous stage can be converted to, so the compiler checks the order of the stages.
//! 6. The process reports to its caller that the network is ready, and runs the event loop until a signal arrives, the
//!    command ends, the namespace ends, or a one-off guest disconnects.
//!
//! # Contract
//!
//! - `docs/behaviour` specifies the command line, exit statuses and messages that clients match on. Comments cite this
//!   specification ("behaviour §1.4").
//! - Before step 6, an error ends the process with status 1 and a message that names the option or object. The caller
//!   gets status 0 only after every step that can fail has succeeded.
//! - After step 6 has begun, nothing from the guest, the network or a file may panic, block or end the process. If a
//!   [`budgets`] limit is reached, new work is refused or dropped, and counted.
//! - One thread serves all traffic and never blocks. Helper threads open sockets in the guest's namespace, read
//!   resolv.conf, and serve the API socket.
//! - This crate has no `unsafe` code: all `unsafe` code is in the crate `sys`.
//!
//! The first two steps depend only on their arguments, apart from [`host::Facts::gather`]:
//!
//! ```
//! use passt::cli::{Invocation, parse};
//!
//! let arguments = ["pasta", "--config-net", "--tcp-ports", "8080", "true"].map(Into::into);
//! let Ok(Invocation::Run(config)) = parse(arguments, || 32768..=60999) else { panic!("refused") };
//! assert_eq!(config.mode.name(), "pasta");
//! assert!(config.pasta.config_net);
//! assert_eq!(config.inbound.rules()[0].ports.first(), 8080);
//!
//! let error = parse(["passt".into(), "--colour".into()], || 32768..=60999).unwrap_err();
//! assert!(error.to_string().starts_with("passt: unrecognized option '--colour'"));
//! ```
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

mod api;
pub mod budgets;
mod capped_file;
mod causes;
pub mod cli;
pub mod config;
mod control;
mod errno;
mod event;
mod flow_log;
mod forward;
pub mod host;
mod hostfwd;
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
mod version;

use causes::Causes;
use config::{Config, Verbosity};
use process::lifetime::{Exit, Lifetime};
use process::stage::Boot;
use shard::Resolvers;
use start::{GuestSide, HostSide};

/// Runs `passt`, `pasta` or `slirp4netns`. The name of the program selects the mode (behaviour §1.1).
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
            log::error!("{}", Causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints a text on standard output. Fails if the text can't be written completely (R-14).
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If this fails, the exit status still reports the failure.
            drop(writeln!(std::io::stderr(), "can't write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the process from its configuration to its end. The process gives up its rights in stages, see
/// [`process::stage`]. Each step comes before the stage that gives up the rights that the step needs.
fn run(config: &Config) -> anyhow::Result<Exit> {
    let mut boot = Boot::new(config)?;
    let mut host = HostSide::open(config, &mut boot)?;
    let (prepared, guest) = boot.prepare(config, host.network.resolvers_of_command().as_deref())?;

    let (entry, metrics) = (host.api, host.metrics);
    let api = start::ApiFiles { has_entry: entry.is_some(), has_metrics: metrics.is_some() };
    let guest_side = GuestSide::open(config, &mut host.network, guest.namespace.as_ref(), api.needed())?;
    let mut shard = start::event_loop(config, host.network, host.flow_log, guest_side, &api)?;
    let mut api = api.needed().then(|| api::Start {
        entry,
        metrics,
        about: shard.about(config),
        files: shard.api_files(),
    });
    let mut lifetime = Lifetime::new(guest.command, guest.watch, config.mode)?;

    let confined = prepared.confine(config, host.resolver.as_mut(), &mut api)?;
    let detached = confined.detach(config, host.pid_file, host.made, api.as_mut())?;
    let (staffed, threads) = detached.staff(guest.namespace, host.resolver, api)?;
    // The first scan for ports comes before the report to the caller, so that ports in use are forwarded when the
    // network is ready.
    shard.start(threads.opener, threads.api)?;
    let resolvers = threads.news.map(|news| Resolvers { news, config });
    shard.watch(&lifetime, resolvers.as_ref())?;
    let sealed = staffed.seal()?;
    sealed.announce()?;

    // The command owns the terminal now. With --debug, the log is still written to the terminal.
    if lifetime.release_command() && config.verbosity < Verbosity::Debug {
        // The guard's refusals are an exception: the author of the rules needs to see them.
        logging::leave_stderr();
        if !config.rules.is_empty() || config.policy.is_some() {
            logging::show_refusals();
        }
    }
    logging::limit_rates();
    shard.run(lifetime, resolvers)
}
