//! The program: command line, host discovery, privileges, links, reactor, sockets.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use sys::tap::{Offloads, TapDevice};

pub mod accept;
mod bypass;
pub mod cli;
pub mod config;
pub mod control;
mod event_word;
mod forward;
pub mod host;
mod identity;
pub mod io;
#[cfg(test)]
mod isolated;
mod link;
pub mod listen;
mod logging;
pub mod netns;
pub mod pasta;
mod pcap;
pub mod pesto;
pub mod plan;
mod sandbox;
mod scan;
mod shard;
mod stage;

use bypass::Policy;
use config::{Config, GuestLink, Target, Verbosity};
use forward::Rules;
use io::outbound::Outbound;
use listen::Opening;
use pasta::Lifetime;
use pasta::configure::{bring_loopback_up, configure};
use pcap::Capture;
use plan::{NamespacePlan, Plan};
use shard::{ControlSetup, Resolvers, Setup, Shard, Tap};
use stage::{Boot, Confine, PidFile};

/// Runs `passt` or `pasta`, chosen by the name the program was called by (SPEC §1.1).
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
            // If that can't be told, the exit status still says it.
            drop(writeln!(std::io::stderr(), "{error}"));
            return ExitCode::FAILURE;
        }
    };
    logging::start(config.mode.name(), config.verbosity);
    match run(&config) {
        Ok(exit) => exit.into(),
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what was asked for instead of any work, whole.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The life of the process, from what was asked to the reason of its end.
fn run(config: &Config) -> anyhow::Result<pasta::Exit> {
    let inherited = match config.passt.link {
        GuestLink::Fd(fd) => Some(fd),
        GuestLink::Probe | GuestLink::Path(_) => None,
    };
    let boot = Boot::new(inherited)?;
    if let Some(path) = &config.log_file {
        logging::open_file(path, config.log_size)?;
    }
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let facts = host::Facts::gather().context("can't find out about the host's network")?;
    let plan = plan::plan(config, &facts)?;
    tell(&plan);

    let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
    // While we may look into every directory on the way to it.
    let mut resolver = if plan.follows_resolvers(config) { watch_resolvers(&facts) } else { None };
    let neighbourhood = watch_neighbours(&plan);
    let capture = config.pcap.as_deref().map(open_capture).transpose()?;

    let outbound = Outbound::new(&plan.outbound4, &plan.outbound6, config.freebind)
        .context("can't use the outbound interface (--outbound-if4, --outbound-if6)")?;
    // While we have our caller's rights: they may include ports below 1024.
    let opening = Opening::new(config.freebind);
    let (listeners, notes) = opening.rules(&config.inbound, |_, _| false)?;
    notes.iter().for_each(|note| log::warn!("{note}"));

    let control = config.conf_path.as_deref().map(control::socket::listen_at).transpose()?;
    let control = control.map(|listener| ControlSetup { listener, enabled: config.enabled() });

    let (prepared, guest) = boot.join_guest(config)?;
    let (tap, outbound_listeners) = guest.namespace.within(|| {
        let tap = make_tap(&plan)?;
        Ok((tap, opening.rules(&config.outbound, |_, _| false)?))
    })?;
    let (outbound_listeners, notes) = outbound_listeners;
    notes.iter().for_each(|note| log::warn!("{note}"));
    let (inbound, outbound_rules) = (config.inbound.clone(), config.outbound.clone());
    let rules = Rules { inbound, listeners, outbound: outbound_rules, outbound_listeners, opening };
    let policy = Policy { splice: config.splice, keeps_loopback: config.host_lo_to_ns_lo, scope: 0 };
    let mut lifetime = Lifetime::new(guest.command, guest.watch)?;
    let mut shard =
        Shard::new(Setup { tap, capture, plan: &plan, policy, outbound, rules, neighbourhood, control })?;

    let how = Confine { foreground: config.foreground, chroot_fallback: config.chroot_fallback };
    let detached = prepared.confine(how, resolver.as_mut())?.detach(pid_file)?;
    let (staffed, opener, news) = detached.staff(guest.namespace, resolver)?;
    shard.start(opener)?;
    staffed.seal()?.announce()?;
    if let Target::Spawn { .. } = config.pasta.target {
        lifetime.release_command();
        // The terminal is the command's now; whoever debugs us wants to see both.
        if config.verbosity < Verbosity::Debug {
            logging::leave_stderr();
        }
    }
    logging::limit_rates();
    shard.run(lifetime, news.map(|news| Resolvers { news, config }))
}

fn tell(plan: &Plan) {
    for note in &plan.notes {
        log::log!(note.level, "{}", note.text);
    }
    for line in plan.summary() {
        log::info!("{line}");
    }
    log::debug!("{plan:#?}");
}

/// Without it the resolvers found at the start stay in use: no reason to fail.
fn watch_resolvers(facts: &host::Facts) -> Option<host::Watch> {
    host::Watch::open(&facts.resolver)
        .inspect_err(|error| log::info!("Changes of resolv.conf will not be noticed: {error}"))
        .ok()
}

/// Without it all of them are at our own address, as the guest sees it.
fn watch_neighbours(plan: &Plan) -> Option<host::Neighbourhood> {
    let interfaces = [&plan.template4, &plan.template6].map(|link| link.as_ref().map(|link| link.index));
    if interfaces == [None, None] {
        return None;
    }
    host::Neighbourhood::watch(interfaces)
        .inspect_err(|error| log::info!("Hardware addresses of neighbours will not be told: {error}"))
        .ok()
}

fn open_capture(path: &std::path::Path) -> anyhow::Result<Capture> {
    Capture::create(path).with_context(|| format!("can't open capture file {} (--pcap)", path.display()))
}

/// Makes the link in the guest's namespace, where we are. None if nothing is to cross one (`--splice-only`).
fn make_tap(plan: &Plan) -> anyhow::Result<Option<Tap>> {
    let Some(plan) = &plan.namespace else {
        bring_loopback_up()?;
        return Ok(None);
    };
    let device = TapDevice::create(&plan.ifname, Offloads::all())
        .context("can't set up a tap device in the namespace")?;
    log::debug!("tap device {}: {:?}", device.name, device.offloads);
    // The kernel may have completed a pattern.
    let configured = configure(&NamespacePlan { ifname: device.name.clone(), ..plan.clone() })?;
    for note in &configured.notes {
        log::log!(note.level, "{}", note.text);
    }
    Ok(Some(Tap { device, configured }))
}
