//! The event loop: one epoll set, one link, one stack of flows.

mod announced;
mod api;
mod busy_poll;
mod control;
mod hostfwd;
mod outcomes;
mod stats;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant as Clock};

use anyhow::Context;
use engine::addr::{Guest, Settings};
use engine::events::{Account, Events, Start};
use engine::flow::{Endpoints, FlowId, Protocol};
use engine::forward::spec::Direction;
use engine::forward::{Enabled, Onward, Policy};
use engine::guard::Guard;
use engine::pressure::Pressure;
use engine::rate_limit::RateLimit;
use engine::share::{Bound, Notice};
use engine::stack::{Round, Seeds, Stack};
use engine::timer::Instant;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;

use crate::api::ShardEnd;
use crate::budgets::Budgets;
use crate::budgets::ledger::{Class, Ledger};
use crate::config::Config;
use crate::errno::to_engine;
use crate::event::Source;
use crate::flow_log::{self, FlowLog};
use crate::forward::accept::{Accepted, Acceptors};
use crate::forward::bypass::{Bypass, Client};
use crate::forward::{Forwarder, Receivers, Rules};
use crate::host::{Neighbourhood, News};
use crate::io::client_errors::ClientErrors;
use crate::io::outbound::Outbound;
use crate::io::splice::reset_on_close;
use crate::io::world::Linux;
use crate::io::{self, Sockets, Sources};
use crate::link::{Change, Medium};
use crate::pasta::netns::Opener;
use crate::plan;
use crate::process::lifetime::{Exit, Lifetime};
use announced::Glimpse;
use api::Api;
pub(crate) use api::ApiSetup;
use busy_poll::BusyPoll;
use control::Control;
use hostfwd::HostFwd;
pub(crate) use hostfwd::HostFwdSetup;
use stats::Stats;

/// Maximum number of events that are taken from the kernel at a time.
const EVENTS: usize = 64;
/// Maximum number of frames that are read from the link before its flows and other sockets are served.
const FRAMES: usize = 64;

/// The parts from which a shard is made.
pub(crate) struct Setup {
    /// The link.
    pub(crate) link: Medium,
    /// Addresses and services, including the present neighbours.
    pub(crate) settings: Settings,
    /// The known addresses of the guest.
    pub(crate) guest: Guest,
    /// The rules about which flows the guest may begin.
    pub(crate) guard: Guard,
    /// The rate limits of the guest.
    pub(crate) rate_limit: RateLimit,
    /// The rules about which connections bypass the link.
    pub(crate) policy: Policy,
    /// How outbound sockets are bound.
    pub(crate) outbound: Outbound,
    /// The host's addresses. An outbound socket may use one of them as its source.
    pub(crate) sources: Sources,
    /// Indices of the interfaces at which groups are joined, for IPv6 and IPv4.
    pub(crate) groups: [Option<u32>; 2],
    /// Send errors to clients of the bypass in the guest's namespace.
    pub(crate) client_errors: ClientErrors,
    /// How files and memory are divided.
    pub(crate) budgets: Budgets,
    /// The forwarding rules, and their listening sockets.
    pub(crate) rules: Rules,
    /// Reports changes of the other hosts on the host's links. `None` if the kernel does not report them.
    pub(crate) neighbourhood: Option<Neighbourhood>,
    /// The control socket (`--conf-path`).
    pub(crate) control: Option<ControlSetup>,
    /// The API socket of slirp4netns (`--api-socket`).
    pub(crate) hostfwd: Option<HostFwdSetup>,
    /// `--stats`: minimum time between two lines of counts on standard error.
    pub(crate) stats: Option<Duration>,
    /// The flow log (`--flow-log`).
    pub(crate) flow_log: Option<FlowLog>,
    /// The API socket (`--api-socket`, `--api-fd`).
    pub(crate) api: Option<ApiSetup>,
}

/// The parameters of the control socket.
pub(crate) struct ControlSetup {
    /// The listening socket.
    pub(crate) listener: OwnedFd,
    /// The families and protocols that rules may use.
    pub(crate) enabled: Enabled,
}

/// Changes of resolv.conf, and the configuration that determines their effects.
pub(crate) struct Resolvers<'a> {
    /// The changes.
    pub(crate) news: News,
    /// The configuration of the command line.
    pub(crate) config: &'a Config,
}

/// One event loop and all objects that it owns.
pub(crate) struct Shard {
    start: Clock,
    stack: Stack<Linux>,
    sockets: Sockets,
    link: Medium,
    bypass: Bypass,
    policy: Policy,
    acceptors: Acceptors,
    forwarder: Forwarder,
    control: Option<Control>,
    hostfwd: Option<HostFwd>,
    neighbourhood: Option<Neighbourhood>,
    stats: Option<Stats>,
    flow_log: Option<FlowLog>,
    api: Option<Api>,
    /// The reports of flows, for the flow log and the API socket.
    reports: Events,
    /// The number of flows that were not reported, when the log said so last, and how often it says so.
    unreported: (u64, Notice),
    budgets: Budgets,
    /// The work that the last round did not finish.
    pressure: Pressure,
    /// Whether the link may have more frames to receive.
    link_has_frames: bool,
    glimpse: Glimpse,
    busy_poll: BusyPoll,
}

impl Shard {
    /// Executes all steps that can fail, while the caller still waits for the result.
    pub(crate) fn new(setup: Setup) -> anyhow::Result<Self> {
        let start = Clock::now();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("can't create an epoll set")?;
        let epoll = Rc::new(epoll);
        let ledger = Ledger::new(&setup.budgets);
        let mut bypass = Bypass::new(epoll.clone(), &setup.budgets, ledger.clone());
        let mut sockets = Sockets::new(epoll, setup.outbound, setup.sources, ledger);
        sockets.join_at(setup.groups);
        sockets.report_by(setup.client_errors);
        let (idle, idle_stream) = io::udp::timeouts();
        let limits = setup.budgets.limits(idle, idle_stream);
        let mut stack = Stack::new(setup.settings, setup.guest, limits, seeds()?, Instant::from_micros(0));
        *stack.guard_mut() = setup.guard;
        stack.guard_mut().limit(setup.budgets.memory.guard());
        let most = setup.budgets.memory.reports;
        let reports = Self::wants_reports(setup.flow_log.is_some(), setup.api.is_some(), most);
        stack.guard_mut().report_to(reports.clone());
        *stack.rate_limit_mut() = setup.rate_limit;
        bypass.limit(stack.rate_limit_mut());
        if setup.budgets.memory.bounded && !(stack.reserve() && bypass.reserve(&setup.budgets)) {
            anyhow::bail!("--memory: the system has no memory for the tables");
        }
        let mut acceptors = Acceptors::new();
        // If the link has clients, the listeners are closed until a guest has sent a frame.
        acceptors.set_open(sockets.epoll(), !setup.link.has_clients());
        let rx = Receivers { acceptors: &mut acceptors, udp: stack.udp_mut(), sockets: &mut sockets };
        let forwarder = Forwarder::new(setup.rules, rx)?;
        let control = setup.control.map(|control| Control::new(control, sockets.epoll())).transpose();
        let control = control.context("can't watch the control socket")?;
        let hostfwd = setup.hostfwd.map(|hostfwd| HostFwd::new(hostfwd, sockets.epoll())).transpose();
        let hostfwd = hostfwd.context("can't watch the API socket")?;
        stack.udp_mut().set_policy(setup.policy);
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            start,
            stack,
            sockets,
            link: setup.link,
            bypass,
            policy: setup.policy,
            acceptors,
            forwarder,
            control,
            hostfwd,
            neighbourhood: setup.neighbourhood,
            stats: setup.stats.map(Stats::new),
            flow_log: setup.flow_log,
            api: setup.api.map(Api::new),
            reports,
            unreported: Default::default(),
            budgets: setup.budgets,
            pressure: Pressure::None,
            link_has_frames: false,
            glimpse: Box::new([0; _]),
            busy_poll: BusyPoll::new(processors),
        })
    }

    /// Makes the first scan for ports in use, and forwards the ports that are found. `opener` is in the guest's
    /// namespace, if the guest has a namespace. `api` is the channel to the API thread, if there is one.
    pub(crate) fn start(&mut self, opener: Option<Opener>, api: Option<ShardEnd>) -> anyhow::Result<()> {
        if let Some(api) = api {
            self.start_api(api).context("can't watch the channel to the API thread")?;
        }
        let Some(opener) = opener else { return Ok(()) };
        let now = self.now();
        let Self { acceptors, sockets, stack, .. } = self;
        let rx = Receivers { acceptors, udp: stack.udp_mut(), sockets };
        self.forwarder.start(&opener, now, rx);
        self.sockets.start(opener.clone());
        self.bypass.start(opener);
        Ok(())
    }

    /// Watches everything that this process has opened at its start. Must be called after the last fork.
    ///
    /// # Errors
    /// A descriptor can't be watched.
    pub(crate) fn watch(
        &mut self,
        lifetime: &Lifetime,
        resolvers: Option<&Resolvers<'_>>,
    ) -> anyhow::Result<()> {
        self.watch_all(lifetime, resolvers)?;
        let change = self.link.watch(self.sockets.epoll()).context("can't watch the guest's link")?;
        self.on_link_change(change, self.now());
        Ok(())
    }

    /// Runs the event loop until the process must exit.
    pub(crate) fn run(
        mut self,
        lifetime: Lifetime,
        resolvers: Option<Resolvers<'_>>,
    ) -> anyhow::Result<Exit> {
        let exit = self.serve(lifetime, resolvers);
        self.stack.report_exit();
        self.bypass.report_exit();
        self.report(self.now());
        exit
    }

    fn serve(&mut self, mut lifetime: Lifetime, resolvers: Option<Resolvers<'_>>) -> anyhow::Result<Exit> {
        // A child that ended before the signals were blocked reports nothing.
        if let Some(exit) = lifetime.reap() {
            return Ok(exit);
        }
        let mut events = Vec::with_capacity(EVENTS);
        // What only the start has used. Here, since even the return to a function of the start would map its pages again.
        sys::heap::trim();
        sys::pages::release_code();
        loop {
            self.wait(&mut events)?;
            let now = self.now();
            for event in &events {
                let Some(source) = Source::of(event.data.u64()) else { continue };
                log::trace!("event of {source:?}: {:?}", { event.flags });
                let exit = match source {
                    Source::Signals => lifetime.on_signals(),
                    Source::Namespace => lifetime.on_namespace(),
                    Source::Resolvers => {
                        resolvers.iter().for_each(|resolvers| self.on_resolvers(resolvers));
                        None
                    }
                    source => {
                        self.on_event(source, event.flags, now);
                        None
                    }
                };
                if let Some(exit) = exit {
                    return Ok(exit);
                }
            }
            self.receive(now);
            if let Some(exit) = self.finish_round(now) {
                return Ok(exit);
            }
            self.report(now);
            self.show_stats(now);
            self.note_lag(now);
        }
    }

    /// Passes the flow events of this round on to the flow log and to the API socket.
    fn report(&mut self, now: Instant) {
        let events = self.reports.take();
        let (told, notice) = &mut self.unreported;
        let unreported = self.reports.unreported().flows;
        if unreported > *told && notice.is_due(now) {
            *told = unreported;
            log::warn!(
                "{unreported} flows are missing in the flow log and at the API socket{}",
                Bound::Budget
            );
        }
        if events.is_empty() {
            return;
        }
        flow_log::debug_failures(&events);
        if let Some(log) = &mut self.flow_log {
            log.write(&events, now);
        }
        if let Some(api) = &mut self.api {
            api.on_events(events, now);
        }
    }

    fn watch_all(&self, lifetime: &Lifetime, resolvers: Option<&Resolvers<'_>>) -> anyhow::Result<()> {
        let resolvers = resolvers.map(|resolvers| (Source::Resolvers, resolvers.news.as_fd()));
        let neighbours = self.neighbourhood.as_ref().map(|watch| (Source::Neighbours, watch.as_fd()));
        let addresses = self.sockets.followed_addresses().map(|fd| (Source::Neighbours, fd));
        for (source, fd) in lifetime.sources().chain(resolvers).chain(neighbours).chain(addresses) {
            let what = match source {
                Source::Signals => "signals",
                Source::Namespace => "the guest's namespace",
                Source::Resolvers => "resolv.conf",
                _ => "changes of the host's network",
            };
            source
                .watch(self.sockets.epoll(), fd, EventFlags::IN)
                .with_context(|| format!("can't watch {what}"))?;
        }
        Ok(())
    }

    /// Handles a change of the host's resolvers. Queries and connections that have begun keep using the old resolvers.
    fn on_resolvers(&mut self, resolvers: &Resolvers<'_>) {
        let Some(resolver) = resolvers.news.latest() else { return };
        plan::set_resolvers(resolvers.config, &resolver, self.stack.settings_mut());
        log::info!("resolv.conf has changed, name servers are now {}", list(&resolver.servers));
    }

    /// Waits for events, or until the next deadline.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> anyhow::Result<()> {
        let runnable = self.bypass.flows().has_runnable() || self.pressure == Pressure::MoreToSend;
        if runnable || self.link_has_frames {
            return self.look(events, Some(Duration::ZERO));
        }
        let due = [
            self.stack.next_deadline(),
            self.forwarder.next_scan(),
            self.control_deadline(),
            self.hostfwd.as_ref().and_then(|hostfwd| hostfwd.server.next_deadline()),
            self.link.next_deadline(),
            self.bypass.flows().next_deadline(),
            self.stats.as_ref().and_then(Stats::next_line),
        ];
        let start = Clock::now();
        let timeout = due.into_iter().flatten().min().map(|due| due.since(self.at(start)));
        let polling = self.busy_poll.limit().min(timeout.unwrap_or(Duration::MAX));
        let mut waited = Duration::ZERO;
        events.clear();
        while events.is_empty() && waited < polling {
            self.look(events, Some(Duration::ZERO))?;
            if events.is_empty() {
                busy_poll::pause();
            }
            waited = start.elapsed();
        }
        if events.is_empty() {
            self.look(events, timeout.map(|timeout| timeout.saturating_sub(waited)))?;
            waited = start.elapsed();
        }
        self.busy_poll.waited(waited);
        Ok(())
    }

    /// Takes events from the kernel. If there are none, waits for them for `timeout`, or for ever.
    fn look(&self, events: &mut Vec<epoll::Event>, timeout: Option<Duration>) -> anyhow::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        events.clear();
        match epoll::wait(self.sockets.epoll(), rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("can't wait for events"),
        }
    }

    fn now(&self) -> Instant {
        self.at(Clock::now())
    }

    fn at(&self, time: Clock) -> Instant {
        Instant::from_micros(time.duration_since(self.start).as_micros() as u64)
    }

    /// Handles an event of a source that the shard owns.
    fn on_event(&mut self, source: Source, flags: EventFlags, now: Instant) {
        match source {
            // The event loop's caller owns these sources.
            Source::Signals | Source::Namespace | Source::Resolvers => {}
            Source::Neighbours => self.on_neighbours(now),
            Source::HostFwd => self.on_hostfwd(now),
            Source::HostFwdClient(number) => self.on_hostfwd_client(number, now),
            Source::Control => self.on_control(now),
            Source::ControlClient => self.on_control_client(now),
            Source::Api => self.on_api(now),
            Source::Link(number) => {
                let change = self.link.on_event(number, flags, now, self.sockets.epoll());
                self.on_link_change(change, now);
            }
            Source::Listener(id) => self.accept(id, now),
            Source::Bypass(id, side) => {
                if flags.contains(EventFlags::IN) {
                    self.before_bypassed(id, side, now);
                }
                self.bypass.on_event(id, side, flags, now);
            }
            Source::Flow(id) => {
                if flags.contains(EventFlags::IN) {
                    self.before_datagram(id, now);
                }
                self.round(now).ready(id, io::readiness(flags));
            }
        }
    }

    /// Returns the engine for an event of this round, or for the end of this round.
    const fn round(&mut self, now: Instant) -> Round<'_, Linux> {
        self.stack.round(now, &mut self.sockets, &mut self.link)
    }

    /// Handles a change of the host's table of neighbours, or of the host's addresses.
    fn on_neighbours(&mut self, now: Instant) {
        self.sockets.update_addresses();
        let Some(neighbourhood) = &mut self.neighbourhood else { return };
        let known = self.stack.settings().neighbours.iter().map(|(address, _)| address);
        for change in neighbourhood.changes(known) {
            self.round(now).neighbour(change);
        }
    }

    fn on_link_change(&mut self, change: Change, now: Instant) {
        if change.down {
            self.acceptors.set_open(self.sockets.epoll(), false);
            self.round(now).link_down();
        }
        if change.room {
            self.round(now).link_has_room();
            if self.pressure == Pressure::LinkFull {
                self.pressure = Pressure::MoreToSend;
            }
        }
        self.link_has_frames |= change.frames;
        if change.up {
            self.round(now).link_up();
        }
    }

    /// Handles frames of the guest.
    fn receive(&mut self, now: Instant) {
        if !self.link_has_frames {
            return;
        }
        for _ in 0..FRAMES {
            let Some(mut frame) = self.link.receive() else {
                self.link_has_frames = false;
                break;
            };
            self.acceptors.set_open(self.sockets.epoll(), true);
            let (head, whole, offload) = frame.parts();
            self.before_frame(head, whole, now);
            self.stack.round(now, &mut self.sockets, &mut self.link).frame(head, whole, &offload);
        }
    }

    /// Handles expired deadlines, and sends the output of this round.
    fn finish_round(&mut self, now: Instant) -> Option<Exit> {
        if self.forwarder.next_scan().is_some_and(|due| due <= now) {
            let Self { acceptors, sockets, stack, .. } = self;
            self.forwarder.on_deadline(now, Receivers { acceptors, udp: stack.udp_mut(), sockets });
        }
        if self.control_deadline().is_some_and(|due| due <= now) {
            self.on_control_deadline(now);
        }
        self.on_hostfwd_deadline(now);
        self.link.on_deadline(now, self.sockets.epoll());
        self.bypass.finish_round(self.stack.rate_limit_mut(), now);
        self.pressure = self.round(now).finish();
        let full = self.pressure == Pressure::LinkFull;
        let change = self.link.finish_round(full, self.sockets.epoll());
        if change.lost {
            self.round(now).link_lost();
        }
        self.on_link_change(change, now);
        change.over.then_some(Exit::GuestGone)
    }

    /// Accepts one pending connection. If more connections are pending, epoll reports the socket again in the next
    /// round.
    fn accept(&mut self, id: FlowId, now: Instant) {
        let (settings, guest) = (self.stack.settings(), self.stack.guest());
        let Some(accepted) = self.acceptors.accept(id, &self.policy, settings, guest, now) else {
            return;
        };
        if !self.admits(&accepted, now) {
            self.acceptors.refused += 1;
            return reset_on_close(&accepted.socket);
        }
        let class = match (accepted.onward, accepted.direction) {
            (Onward::Bypass(_), Direction::Inbound) => Class::LocalIn,
            (Onward::Bypass(_), Direction::Outbound) => Class::LocalOut,
            (Onward::Link(_), _) if !self.link.is_none() => Class::Incoming,
            (Onward::Link(_) | Onward::Refuse, _) => return reset_on_close(&accepted.socket),
        };
        let Some(permit) = self.sockets.ledger().take(class) else {
            self.acceptors.refused += 1;
            self.report_no_file(&accepted, now);
            return reset_on_close(&accepted.socket);
        };
        match accepted.onward {
            Onward::Bypass(destination) => {
                let may_have_sent =
                    self.before_accepted(&accepted.socket, accepted.direction, destination.ip(), now);
                let account = self.begin_bypass(&accepted, destination, now);
                let Accepted { socket, peer: address, direction, .. } = accepted;
                let client =
                    Client { socket, address, permit, direction, destination, may_have_sent, account };
                self.bypass.open(client, now);
            }
            Onward::Link(ends) => {
                let socket = self.sockets.stream(accepted.socket, permit);
                // If the engine has no room, it returns the socket. Dropping the socket resets the connection.
                drop(self.round(now).accept(ends, socket));
            }
            Onward::Refuse => {}
        }
    }

    /// Reports a connection for which there is no file.
    fn report_no_file(&self, accepted: &Accepted, now: Instant) {
        let mut account = match accepted.onward {
            Onward::Bypass(destination) => self.begin_bypass(accepted, destination, now),
            Onward::Link(ends) => {
                let start = Start::of(Protocol::Tcp, Direction::Inbound, ends);
                self.stack.guard().begin_unjudged(start, now)
            }
            Onward::Refuse => return,
        };
        account.close_unopened(to_engine(Errno::MFILE));
    }

    /// Reports the beginning of a connection that bypasses the link.
    fn begin_bypass(&self, accepted: &Accepted, destination: SocketAddr, now: Instant) -> Account {
        let Some(client) = accepted.peer else { return Account::NONE };
        let ends = match accepted.direction {
            Direction::Outbound => Endpoints { guest: client, remote: destination },
            Direction::Inbound => Endpoints { guest: destination, remote: client },
        };
        self.stack.guard().begin_bypass(Protocol::Tcp, accepted.direction, ends, now)
    }

    /// Whether the guard admits a connection that a client in the guest's namespace opens to the host's loopback.
    fn admits(&mut self, accepted: &Accepted, now: Instant) -> bool {
        match (accepted.onward, accepted.direction, accepted.peer) {
            (Onward::Bypass(remote), Direction::Outbound, Some(guest)) => {
                let ends = Endpoints { guest, remote };
                self.stack.guard_mut().admits_bypass(Protocol::Tcp, ends, now)
            }
            _ => true,
        }
    }
}

fn list(servers: &[IpAddr]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Random numbers from the kernel.
fn seeds() -> anyhow::Result<Seeds> {
    Ok(Seeds {
        hash_key: random()?,
        isn_secret: random()?,
        query_secret: random()?,
        advertisement: u32::from_le_bytes(random()?),
    })
}

fn random<const LEN: usize>() -> anyhow::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    getrandom::fill(&mut bytes).context("can't get random numbers")?;
    Ok(bytes)
}
