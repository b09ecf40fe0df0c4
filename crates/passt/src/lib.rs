//! The program: command line, host discovery, privileges, links, reactor, sockets.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use anyhow::Context;
use engine::forward::spec::Direction;
use engine::neighbours::Neighbour;
use sys::tap::{Offloads, TapDevice};
use wire::ethernet::Mac;

pub mod budgets;
pub mod cli;
pub mod config;
mod control;
mod event_word;
mod forward;
pub mod host;
pub mod io;
#[cfg(test)]
mod isolated;
pub mod link;
mod logging;
pub mod memory;
mod missing;
pub mod pasta;
pub mod plan;
mod process;
mod shard;

use budgets::resources::Resources;
use budgets::{Budgets, Needs, listeners_at_start};
use config::{Config, GuestLink, Mode, Verbosity};
use forward::Rules;
use forward::bypass::Policy;
use forward::listen::{Listener, Opening};
use io::Sources;
use io::outbound::Outbound;
use io::unix_socket;
use link::Medium;
use link::door::{self, GuestSocket};
use link::pcap::Capture;
use link::stream::{self, StreamLink};
use link::tap::TapLink;
use link::vhost_user::{self, VhostUserLink};
use pasta::configure::{Configured, bring_loopback_up, configure};
use plan::{NamespacePlan, Plan};
use process::lifetime::{Exit, Lifetime};
use process::stage::{Boot, Confine, PidFile, Prepared};
use shard::{ControlSetup, Resolvers, Setup, Shard};

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
            // If that can't be told, the exit status still says it.
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

/// Prints what was asked for instead of any work, whole.
fn print(text: &str) -> ExitCode {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The life of the process, from what was asked to the reason of its end.
fn run(config: &Config) -> anyhow::Result<Exit> {
    let inherited = inherited(config)?;
    let boot = Boot::new(inherited.as_ref().map(AsFd::as_fd))?;
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
        .context("can't use the outbound interface (--outbound-if4, --outbound-if6)")?
        .sharing(plan.settings.services.multicast);
    // While we have our caller's rights: they may include ports below 1024.
    let resources = Resources::gather();
    let spare = listeners_at_start(&resources);
    let opening = Opening { direction: Direction::Inbound, freebind: config.freebind, spare };
    let (listeners, notes) = opening.rules(&config.inbound, |_, _| false)?;
    notes.iter().for_each(|note| log::warn!("{note}"));
    let opening = Opening { spare: spare.saturating_sub(listeners.len()), ..opening };

    let control = config.conf_path.as_deref().map(unix_socket::listen_at).transpose()?;

    let Site { prepared, link, mac, given, lacks, scope, outbound_listeners, guest } = match config.mode {
        Mode::Pasta => enter_namespace(boot, config, &plan, opening, capture)?,
        Mode::Passt => open_door(boot, config, &plan, inherited, capture)?,
    };
    let mut plan = plan;
    let enabled = plan.without(lacks, config.enabled());
    let restricted = (enabled != config.enabled()).then_some(enabled);
    let control = control.map(|listener| ControlSetup { listener, enabled });
    let needs = Needs {
        listeners: listeners.len() + outbound_listeners.len(),
        namespace: guest.is_some(),
        vhost_user: config.passt.vhost_user,
    };
    let budgets = Budgets::new(&resources, &needs);
    log::debug!("{resources:?} {budgets:?}");
    let (inbound, outbound_rules) = (config.inbound.clone(), config.outbound.clone());
    let rules = Rules { inbound, listeners, outbound: outbound_rules, outbound_listeners, opening };
    let policy = Policy { splice: config.splice, keeps_loopback: config.host_lo_to_ns_lo, scope };
    let stats = config.stats;
    let sources = Sources::of(&facts);
    let setup = Setup {
        link,
        mac,
        given,
        plan: &plan,
        policy,
        outbound,
        sources,
        budgets,
        rules,
        restricted,
        neighbourhood,
        control,
        stats,
    };
    let mut shard = Shard::new(setup)?;
    let (namespace, command, watch) = match guest {
        Some(guest) => (Some(guest.namespace), guest.command, guest.watch),
        None => (None, None, None),
    };
    let mut lifetime = Lifetime::new(command, watch)?;

    let how = Confine { foreground: config.foreground, chroot_fallback: config.chroot_fallback };
    let detached = prepared.confine(how, resolver.as_mut())?.detach(pid_file)?;
    let (staffed, opener, news) = detached.staff(namespace, resolver)?;
    shard.start(opener)?;
    staffed.seal()?.announce()?;
    if lifetime.release_command() {
        // The terminal is the command's now; whoever debugs us wants to see both.
        if config.verbosity < Verbosity::Debug {
            logging::leave_stderr();
        }
    }
    logging::limit_rates();
    shard.run(lifetime, news.map(|news| Resolvers { news, config }))
}

/// The socket that our caller left open for us (`--fd`).
fn inherited(config: &Config) -> anyhow::Result<Option<OwnedFd>> {
    let GuestLink::Fd(fd) = config.passt.link else { return Ok(None) };
    sys::spawn::inherited(fd).map(Some).with_context(|| format!("can't use descriptor {fd} (--fd)"))
}

/// Where the guest is, and the way to it.
struct Site {
    prepared: Prepared,
    link: Medium,
    /// The guest's hardware address, if it is known.
    mac: Option<Mac>,
    /// The addresses that were set on the guest's interface.
    given: Vec<IpAddr>,
    /// Whether the guest's namespace lacks IPv4, and IPv6.
    lacks: [bool; 2],
    /// Index of the guest's interface; zero for none of this machine.
    scope: u32,
    /// Listening sockets in the guest's namespace.
    outbound_listeners: Vec<Listener>,
    /// The namespace, in pasta mode.
    guest: Option<pasta::Guest>,
}

/// Goes to the guest's namespace and makes the link there.
fn enter_namespace(
    boot: Boot,
    config: &Config,
    plan: &Plan,
    opening: Opening,
    capture: Option<Capture>,
) -> anyhow::Result<Site> {
    let (prepared, guest) = boot.join_guest(config)?;
    let (tap, (outbound_listeners, notes)) = guest.namespace.within(|| {
        let tap = make_tap(plan)?;
        Ok((tap, opening.outbound().rules(&config.outbound, |_, _| false)?))
    })?;
    notes.iter().for_each(|note| log::warn!("{note}"));
    let (mac, given, lacks, scope, link) = match tap {
        None => (None, Vec::new(), [false; 2], 0, Medium::none()),
        Some((device, configured)) => {
            // Without --config-net the interface is still down.
            let up = plan.namespace.as_ref().is_some_and(|plan| plan.interface.is_some());
            let link = Medium::Tap(TapLink::new(device, up, capture));
            let lacks = [configured.no_ipv4, configured.no_ipv6];
            (Some(configured.mac), configured.addresses, lacks, configured.index, link)
        }
    };
    Ok(Site { prepared, link, mac, given, lacks, scope, outbound_listeners, guest: Some(guest) })
}

/// Opens the socket where the guest will be, or is.
fn open_door(
    boot: Boot,
    config: &Config,
    plan: &Plan,
    inherited: Option<OwnedFd>,
    capture: Option<Capture>,
) -> anyhow::Result<Site> {
    let socket = match inherited {
        Some(socket) => GuestSocket::connected(socket).context("can't use the socket (--fd)")?,
        None => {
            GuestSocket::Listening { socket: listen_for_guest(&config.passt)?, one_off: config.passt.one_off }
        }
    };
    Ok(Site {
        prepared: boot.serve_socket(config)?,
        link: if config.passt.vhost_user {
            Medium::VhostUser(Box::new(VhostUserLink::new(socket, plan.settings.mtu, capture)))
        } else {
            Medium::Stream(StreamLink::new(socket, capture))
        },
        mac: None,
        given: Vec::new(),
        lacks: [false; 2],
        scope: 0,
        outbound_listeners: Vec::new(),
        guest: None,
    })
}

/// Listens where the command line says, or at the first default path that is free (behaviour §9.2).
fn listen_for_guest(config: &config::Passt) -> anyhow::Result<OwnedFd> {
    let path = match &config.link {
        GuestLink::Path(path) => Some(path.clone()),
        GuestLink::Probe | GuestLink::Fd(_) => None,
    };
    let (socket, path) = match path {
        Some(path) => (unix_socket::listen_at(&path)?, path),
        None => unix_socket::listen_at_first(door::default_paths())?,
    };
    log::info!("You can now start QEMU (7.2 or later) with:");
    let options =
        if config.vhost_user { vhost_user::qemu_options(&path) } else { stream::qemu_options(&path) };
    log::info!("    {options}");
    Ok(socket)
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

/// Without the hardware addresses of neighbours, the guest sees all of them at ours: no reason to fail.
fn watch_neighbours(plan: &Plan) -> Option<(host::Neighbourhood, Vec<Neighbour>)> {
    let interfaces = [&plan.template4, &plan.template6].map(|link| link.as_ref().map(|link| link.index));
    if interfaces == [None, None] {
        return None;
    }
    host::Neighbourhood::watch(interfaces)
        .inspect_err(|error| log::warn!("Neighbours of the host appear at our MAC address: {error}"))
        .ok()
}

fn open_capture(path: &std::path::Path) -> anyhow::Result<Capture> {
    Capture::create(path).with_context(|| format!("can't open capture file {} (--pcap)", path.display()))
}

/// Makes the link in the guest's namespace, where we are. None if nothing is to cross one (`--splice-only`).
fn make_tap(plan: &Plan) -> anyhow::Result<Option<(TapDevice, Configured)>> {
    let Some(plan) = &plan.namespace else {
        bring_loopback_up()?;
        return Ok(None);
    };
    let wanted = if missing::is_missing(missing::TAP_OFFLOADS) { Offloads::empty() } else { Offloads::all() };
    let device =
        TapDevice::create(&plan.ifname, wanted).context("can't set up a tap device in the namespace")?;
    log::debug!("tap device {}: {:?}", device.name, device.offloads);
    // The kernel may have completed a pattern.
    let configured = configure(&NamespacePlan { ifname: device.name.clone(), ..plan.clone() })?;
    for note in &configured.notes {
        log::log!(note.level, "{}", note.text);
    }
    Ok(Some((device, configured)))
}
