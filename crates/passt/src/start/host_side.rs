//! The host's side: all steps that need the caller's rights.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use engine::forward::spec::Direction;
use engine::guard::Guard;
use engine::neighbours::Neighbour;
use engine::policy::Policy;
use engine::stack::Stack;

use super::policy;
use crate::api::{self, Entry, listen_for_metrics};
use crate::budgets::resources::Resources;
use crate::budgets::{listeners_at_start, memory};
use crate::config::{self, ApiSocket, Config, GuestLink, Mode};
use crate::flow_log::FlowLog;
use crate::forward::bypass::Bypass;
use crate::forward::listen::{self, Listener, Opening};
use crate::host::{Facts, Neighbourhood, OwnAddresses, Watch};
use crate::io::outbound::Outbound;
use crate::io::world::Linux;
use crate::io::{Sources, unix_socket};
use crate::link::door::{self, GuestSocket};
use crate::link::pcap::Capture;
use crate::link::{stream, vhost_user};
use crate::logging;
use crate::plan::{self, Plan};
use crate::process::made_files::MadeFiles;
use crate::process::pid_file::PidFile;
use crate::process::service::PassedSockets;
use crate::process::stage::Boot;

/// The objects that are open on the host.
pub(crate) struct HostSide {
    /// The files that have been made.
    pub(crate) made: MadeFiles,
    /// The PID file. It is written later.
    pub(crate) pid_file: Option<PidFile>,
    /// The flow log (`--flow-log`).
    pub(crate) flow_log: Option<FlowLog>,
    /// The API socket (`--api-socket`, `--api-fd`, or one in the registry).
    pub(crate) api: Option<Entry>,
    /// The listening socket of `--metrics`.
    pub(crate) metrics: Option<OwnedFd>,
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
    /// The limits of `--memory`.
    pub(crate) memory: memory::Limits,
    /// Listening sockets of the inbound rules.
    pub(crate) listeners: Vec<Listener>,
    /// How more listening sockets of the inbound rules are opened.
    pub(crate) opening: Opening,
    /// The listening control socket (`--conf-path`).
    pub(crate) control: Option<OwnedFd>,
    /// The listening API socket of slirp4netns (`--api-socket`).
    pub(crate) hostfwd: Option<OwnedFd>,
    /// The virtual machine's socket. `None` if the guest is a namespace.
    pub(crate) guest_socket: Option<GuestSocket>,
}

impl HostSide {
    /// Reads the host's network configuration, makes the plan, and opens files and sockets. Takes the sockets that the
    /// caller has opened.
    ///
    /// # Errors
    /// A file or socket can't be opened, or an option requires something that the host does not have.
    pub(crate) fn open(config: &Config, boot: &mut Boot) -> anyhow::Result<Self> {
        if let Some(path) = &config.log_file {
            logging::open_file(path, config.log_size)?;
        }
        let create = |path| FlowLog::create(path, config.log_size, config.mode.name());
        let flow_log = config.flow_log.as_deref().map(create).transpose()?;
        config.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let facts = Facts::gather().context("can't find out about the host's network")?;
        let plan = plan::plan(config, &facts)?;
        report(&plan);
        let mut sockets = boot.take_sockets();
        let mut made = MadeFiles::default();
        let pid_file = config.pid_file.as_deref().map(|path| PidFile::create(path, &mut made)).transpose()?;

        Ok(Self {
            pid_file,
            resolver: if plan.follows_resolvers(config) { watch_resolvers(&facts) } else { None },
            flow_log,
            api: open_api(config, boot, &mut sockets, &mut made)?,
            metrics: config.metrics.map(listen_for_metrics).transpose()?,
            network: {
                let guest_socket = boot.take_guest_socket();
                let network = Network::open(config, plan, &facts, guest_socket, &mut sockets, &mut made)?;
                sockets.finish()?;
                network
            },
            made,
        })
    }
}

/// The limits that follow from `--memory`.
fn memory_limits(config: &Config) -> memory::Limits {
    let footprint = memory::Footprint {
        stack: Stack::<Linux>::FOOTPRINT,
        local_connection: Bypass::CONNECTION_BYTES,
        row: api::ROW_BYTES,
    };
    config.memory.map_or(memory::Limits::DEFAULT, |budget| memory::Limits::of(budget, &footprint))
}

impl Network {
    /// With rules by name, the servers to which a spawned command sends its questions.
    pub(crate) fn resolvers_of_command(&self) -> Option<Vec<IpAddr>> {
        let by_name = self.guard.policy().is_some_and(Policy::has_names);
        by_name.then(|| self.plan.resolvers_of_command())
    }

    fn open(
        config: &Config,
        plan: Plan,
        facts: &Facts,
        guest_socket: Option<OwnedFd>,
        sockets: &mut PassedSockets,
        made: &mut MadeFiles,
    ) -> anyhow::Result<Self> {
        let guard = policy::guard(config)?;
        policy::check_control_socket(config, &guard);
        let neighbourhood = watch_neighbours(&plan);
        let capture = config.pcap.as_deref().map(open_capture).transpose()?;
        let outbound = Outbound::new(&plan.outbound4, &plan.outbound6, config.freebind)
            .context("can't use the outbound interface (--outbound-if4, --outbound-if6)")?
            .sharing(plan.settings.services.multicast)
            .with_localhost(config.mode == Mode::Slirp4netns);

        let resources = Resources::gather();
        let memory = memory_limits(config);
        let spare = listeners_at_start(&resources).min(memory.listeners);
        let opening = Opening { direction: Direction::Inbound, freebind: config.freebind, spare };
        sockets.check_ports(&config.inbound)?;
        let (listeners, notes) = opening.rules_by(
            &config.inbound,
            |_, _| false,
            |index, rule, port| match sockets.take_port(rule, port) {
                Some((socket, address)) => listen::adopt(index, rule.protocol, port, socket, address),
                None => opening.socket(index, rule, port, false),
            },
        )?;
        notes.iter().for_each(|note| log::warn!("{note}"));
        let opening = Opening { spare: spare.saturating_sub(listeners.len()), ..opening };

        let control = config.conf_path.as_deref().map(|path| sockets.listen_at(path, made)).transpose()?;
        let hostfwd = config.slirp4netns.api_socket.as_deref();
        let hostfwd =
            hostfwd.map(|path| sockets.listen_at(path, made)).transpose().context("--api-socket")?;
        let guest_socket = match config.mode {
            Mode::Passt => Some(open_guest_socket(&config.passt, guest_socket, sockets, made)?),
            Mode::Pasta | Mode::Slirp4netns => None,
        };
        let needed = guard.policy().is_some_and(Policy::needs_own_addresses);
        let followed = follow_addresses(needed, config.rules_may_change())
            .context("the rules need the host's addresses")?;
        let sources = Sources::of(facts, followed);
        Ok(Self {
            plan,
            neighbourhood,
            guard,
            capture,
            outbound,
            sources,
            resources,
            memory,
            listeners,
            opening,
            control,
            hostfwd,
            guest_socket,
        })
    }
}

/// Opens the API socket. A process that will change its user has none in the registry, since it could not remove it.
fn open_api(
    config: &Config,
    boot: &mut Boot,
    sockets: &mut PassedSockets,
    made: &mut MadeFiles,
) -> anyhow::Result<Option<Entry>> {
    match (boot.take_api_socket(), &config.api) {
        (Some(socket), _) => Entry::inherited(socket).map(Some),
        (None, Some(ApiSocket::Path(path))) => Entry::at(sockets.listen_at(path, made)).map(Some),
        (None, Some(ApiSocket::Registry)) if boot.keeps_user() => Ok(Entry::registered()),
        (None, _) => Ok(None),
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

/// Starts to follow the host's addresses, if the rules need them (`needed`), or if a client may later send rules that
/// need them (`maybe`). The netlink socket must be opened now, since the process can't open it
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
fn open_guest_socket(
    config: &config::Passt,
    connected: Option<OwnedFd>,
    sockets: &mut PassedSockets,
    made: &mut MadeFiles,
) -> anyhow::Result<GuestSocket> {
    match connected {
        Some(socket) => GuestSocket::connected(socket).context("can't use the socket (--fd)"),
        None => Ok(GuestSocket::Listening {
            socket: listen_for_guest(config, sockets, made)?,
            one_off: config.one_off,
        }),
    }
}

/// Listens at the path of the command line, or at the first default path that is free (behaviour §9.2).
fn listen_for_guest(
    config: &config::Passt,
    sockets: &mut PassedSockets,
    made: &mut MadeFiles,
) -> anyhow::Result<OwnedFd> {
    let (socket, path) = match &config.link {
        GuestLink::Path(path) => (sockets.listen_at(path, made)?, path.clone()),
        GuestLink::Probe | GuestLink::Fd(_) => {
            let listening = unix_socket::listen_at_first(door::default_paths())?;
            made.add(&listening.1);
            listening
        }
    };
    log::info!("You can now start QEMU (7.2 or later) with:");
    let options =
        if config.vhost_user { vhost_user::qemu_options(&path) } else { stream::qemu_options(&path) };
    log::info!("    {options}");
    Ok(socket)
}
