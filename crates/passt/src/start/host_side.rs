//! The host's side: all steps that need the caller's rights.

use std::os::fd::OwnedFd;

use anyhow::Context;
use engine::forward::spec::Direction;
use engine::guard::Guard;
use engine::neighbours::Neighbour;
use engine::policy::Policy;

use super::policy;
use crate::budgets::listeners_at_start;
use crate::budgets::resources::Resources;
use crate::config::{self, Config, GuestLink, Mode};
use crate::flow_log::FlowLog;
use crate::forward::listen::{Listener, Opening};
use crate::host::{Facts, Neighbourhood, OwnAddresses, Watch};
use crate::io::outbound::Outbound;
use crate::io::{Sources, unix_socket};
use crate::link::door::{self, GuestSocket};
use crate::link::pcap::Capture;
use crate::link::{stream, vhost_user};
use crate::logging;
use crate::plan::{self, Plan};
use crate::process::pid_file::PidFile;

/// The objects that are open on the host.
pub(crate) struct HostSide {
    /// The PID file. It is written later.
    pub(crate) pid_file: Option<PidFile>,
    /// The flow log (`--flow-log`).
    pub(crate) flow_log: Option<FlowLog>,
    /// Watches resolv.conf, if a setting depends on the file.
    pub(crate) resolver: Option<Watch>,
    /// The parts that the event loop needs.
    pub(crate) network: Network,
}

/// The host's network: the plan, and the open sockets.
pub(crate) struct Network {
    /// How host and guest are set up.
    pub(crate) plan: Plan,
    /// The other hosts on the host's links, and the source of their changes.
    pub(crate) neighbourhood: Option<(Neighbourhood, Vec<Neighbour>)>,
    /// The rules about which flows the guest may begin.
    pub(crate) guard: Guard,
    /// The capture file for frames (`--pcap`).
    pub(crate) capture: Option<Capture>,
    /// How outbound sockets are bound.
    pub(crate) outbound: Outbound,
    /// The host's addresses. An outbound socket may use one of them as its source.
    pub(crate) sources: Sources,
    /// The machine's resources. Budgets divide them.
    pub(crate) resources: Resources,
    /// Listening sockets of the inbound rules.
    pub(crate) listeners: Vec<Listener>,
    /// How more listening sockets of the inbound rules are opened.
    pub(crate) opening: Opening,
    /// The listening control socket (`--conf-path`).
    pub(crate) control: Option<OwnedFd>,
    /// The virtual machine's socket. `None` if the guest is a namespace.
    pub(crate) guest_socket: Option<GuestSocket>,
}

impl HostSide {
    /// Reads the host's network configuration, makes the plan, and opens files and sockets. `guest_socket` is the
    /// virtual machine's socket, if the virtual machine is connected already.
    ///
    /// # Errors
    /// A file or socket can't be opened, or an option requires something that the host does not have.
    pub(crate) fn open(config: &Config, guest_socket: Option<OwnedFd>) -> anyhow::Result<Self> {
        if let Some(path) = &config.log_file {
            logging::open_file(path, config.log_size)?;
        }
        let create = |path| FlowLog::create(path, config.log_size, config.mode.name());
        let flow_log = config.flow_log.as_deref().map(create).transpose()?;
        config.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let facts = Facts::gather().context("can't find out about the host's network")?;
        let plan = plan::plan(config, &facts)?;
        report(&plan);

        Ok(Self {
            pid_file: config.pid_file.as_deref().map(PidFile::create).transpose()?,
            resolver: if plan.follows_resolvers(config) { watch_resolvers(&facts) } else { None },
            flow_log,
            network: Network::open(config, plan, &facts, guest_socket)?,
        })
    }
}

impl Network {
    fn open(
        config: &Config,
        plan: Plan,
        facts: &Facts,
        guest_socket: Option<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let guard = policy::guard(config)?;
        let neighbourhood = watch_neighbours(&plan);
        let capture = config.pcap.as_deref().map(open_capture).transpose()?;
        let outbound = Outbound::new(&plan.outbound4, &plan.outbound6, config.freebind)
            .context("can't use the outbound interface (--outbound-if4, --outbound-if6)")?
            .sharing(plan.settings.services.multicast);

        let resources = Resources::gather();
        let spare = listeners_at_start(&resources);
        let opening = Opening { direction: Direction::Inbound, freebind: config.freebind, spare };
        let (listeners, notes) = opening.rules(&config.inbound, |_, _| false)?;
        notes.iter().for_each(|note| log::warn!("{note}"));
        let opening = Opening { spare: spare.saturating_sub(listeners.len()), ..opening };

        let control = config.conf_path.as_deref().map(unix_socket::listen_at).transpose()?;
        let guest_socket = match config.mode {
            Mode::Passt => Some(open_guest_socket(&config.passt, guest_socket)?),
            Mode::Pasta => None,
        };
        let needed = guard.policy().is_some_and(Policy::needs_own_addresses);
        let followed =
            follow_addresses(needed, control.is_some()).context("the rules need the host's addresses")?;
        let sources = Sources::of(facts, followed);
        Ok(Self {
            plan,
            neighbourhood,
            guard,
            capture,
            outbound,
            sources,
            resources,
            listeners,
            opening,
            control,
            guest_socket,
        })
    }
}

fn report(plan: &Plan) {
    plan.notes.iter().for_each(|note| log::log!(note.level, "{}", note.text));
    plan.summary().iter().for_each(|line| log::info!("{line}"));
    log::debug!("{plan:#?}");
}

/// Starts to watch resolv.conf. A failure is not fatal: the resolvers found at the start then stay in use.
fn watch_resolvers(facts: &Facts) -> Option<Watch> {
    Watch::open(&facts.resolver)
        .inspect_err(|error| log::info!("Changes of resolv.conf will not be noticed: {error}"))
        .ok()
}

/// Starts to follow the host's addresses, if the rules need them (`needed`), or if a client of the control socket may
/// later send rules that need them (`maybe`). The netlink socket must be opened now, since the process can't open it
/// later. A failure is fatal only if the addresses are `needed`.
fn follow_addresses(needed: bool, maybe: bool) -> anyhow::Result<Option<OwnAddresses>> {
    if !needed && !maybe {
        return Ok(None);
    }
    match OwnAddresses::watch() {
        Err(error) if !needed => {
            log::info!("Changes of the host's addresses will not be noticed: {error}");
            Ok(None)
        }
        followed => Ok(Some(followed?)),
    }
}

/// Starts to follow the neighbours. A failure is not fatal: the guest then sees all neighbours at this program's MAC
/// address.
fn watch_neighbours(plan: &Plan) -> Option<(Neighbourhood, Vec<Neighbour>)> {
    let interfaces = [&plan.template4, &plan.template6].map(|link| link.as_ref().map(|link| link.index));
    if interfaces == [None, None] {
        return None;
    }
    Neighbourhood::watch(interfaces)
        .inspect_err(|error| log::warn!("Neighbours of the host appear at our MAC address: {error}"))
        .ok()
}

fn open_capture(path: &std::path::Path) -> anyhow::Result<Capture> {
    Capture::create(path).with_context(|| format!("can't open capture file {} (--pcap)", path.display()))
}

/// Opens the socket to which the virtual machine connects, unless it is connected already.
fn open_guest_socket(config: &config::Passt, connected: Option<OwnedFd>) -> anyhow::Result<GuestSocket> {
    match connected {
        Some(socket) => GuestSocket::connected(socket).context("can't use the socket (--fd)"),
        None => Ok(GuestSocket::Listening { socket: listen_for_guest(config)?, one_off: config.one_off }),
    }
}

/// Listens at the path of the command line, or at the first default path that is free (behaviour §9.2).
fn listen_for_guest(config: &config::Passt) -> anyhow::Result<OwnedFd> {
    let (socket, path) = match &config.link {
        GuestLink::Path(path) => (unix_socket::listen_at(path)?, path.clone()),
        GuestLink::Probe | GuestLink::Fd(_) => unix_socket::listen_at_first(door::default_paths())?,
    };
    log::info!("You can now start QEMU (7.2 or later) with:");
    let options =
        if config.vhost_user { vhost_user::qemu_options(&path) } else { stream::qemu_options(&path) };
    log::info!("    {options}");
    Ok(socket)
}
