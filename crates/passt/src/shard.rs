//! The event loop: one epoll set, one link, one stack of flows.

mod control;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant as Clock};

use anyhow::Context;
use engine::addr::Guest;
use engine::flow::FlowId;
use engine::forward::Enabled;
use engine::host::Host;
use engine::link::Link;
use engine::stack::{Seeds, Stack};
use engine::timer::Instant;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use sys::tap::TapDevice;
use wire::frame;

use crate::accept::{Acceptors, Way};
use crate::bypass::{Bypass, Policy};
use crate::config::Config;
use crate::event_word::{LINK, NAMESPACE, NEIGHBOURS, RESOLVERS, SIGNALS};
use crate::forward::{Forwarder, Receivers, Rules};
use crate::host::{Neighbourhood, News};
use crate::io::outbound::Outbound;
use crate::io::splice::reset_on_close;
use crate::io::{self, Sockets};
use crate::link::NoLink;
use crate::link::tap::{BUFFER_LEN, TapLink};
use crate::netns::Opener;
use crate::pasta::configure::Configured;
use crate::pasta::{Exit, Lifetime, Source};
use crate::pcap::Capture;
use crate::plan::{self, Plan};
use control::Control;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;
/// Frames read from the link before its flows and the other sockets get their turn.
const FRAMES: usize = 64;

/// What a shard works with.
pub(crate) struct Setup<'a> {
    /// The link; none if nothing crosses one.
    pub(crate) tap: Option<Tap>,
    /// Where to record frames.
    pub(crate) capture: Option<Capture>,
    /// What was planned.
    pub(crate) plan: &'a Plan,
    /// Which connections bypass the link.
    pub(crate) policy: Policy,
    /// How sockets leave the host.
    pub(crate) outbound: Outbound,
    /// The forwarding rules, and their listening sockets.
    pub(crate) rules: Rules,
    /// Who else is on the host's links, if that can be told.
    pub(crate) neighbourhood: Option<Neighbourhood>,
    /// Where rules can be changed, if anywhere.
    pub(crate) control: Option<ControlSetup>,
}

/// What the control socket needs.
pub(crate) struct ControlSetup {
    /// The listening socket.
    pub(crate) listener: OwnedFd,
    /// What rules may ask for.
    pub(crate) enabled: Enabled,
}

/// A tap device that stands in its namespace.
pub(crate) struct Tap {
    /// The device.
    pub(crate) device: TapDevice,
    /// How it turned out.
    pub(crate) configured: Configured,
}

/// News of the host's resolvers, and what was asked about them.
pub(crate) struct Resolvers<'a> {
    /// The news.
    pub(crate) news: News,
    /// Says what to make of them.
    pub(crate) config: &'a Config,
}

/// One event loop and all it owns.
pub(crate) struct Shard {
    start: Clock,
    stack: Stack<Sockets>,
    sockets: Sockets,
    link: Option<TapLink>,
    bypass: Bypass,
    policy: Policy,
    acceptors: Acceptors,
    forwarder: Forwarder,
    control: Option<Control>,
    neighbourhood: Option<Neighbourhood>,
    /// The link took no more; it reports when it does again.
    link_full: bool,
    link_up: bool,
    buffer: Vec<u8>,
}

impl Shard {
    /// Makes everything that can fail: our caller still learns of it.
    pub(crate) fn new(setup: Setup<'_>) -> anyhow::Result<Self> {
        let start = Clock::now();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("can't create an epoll set")?;
        let mut sockets = Sockets::new(epoll, setup.outbound);
        let mut settings = setup.plan.settings.clone();
        if let Some(neighbourhood) = &setup.neighbourhood {
            for neighbour in neighbourhood.list().context("can't list the host's neighbours")? {
                settings.neighbours.note(neighbour);
            }
        }
        let mac = setup.tap.as_ref().map(|tap| tap.configured.mac);
        let guest = Guest::new(&settings, mac);
        let mut stack = Stack::new(settings, guest, io::udp::limits(), seeds()?, Instant::from_micros(0));
        let mut acceptors = Acceptors::new();
        let rx = Receivers { acceptors: &mut acceptors, udp: stack.udp(), sockets: &mut sockets };
        let forwarder = Forwarder::new(setup.rules, rx)?;
        let control = setup.control.map(|control| Control::new(control, sockets.epoll())).transpose();
        let control = control.context("can't watch the control socket")?;
        // Without --config-net the interface is still down.
        let configured = setup.plan.namespace.as_ref().is_some_and(|plan| plan.interface.is_some());
        let policy =
            Policy { scope: setup.tap.as_ref().map_or(0, |tap| tap.configured.index), ..setup.policy };
        stack.udp().set_policy(policy.datagrams());
        Ok(Self {
            start,
            stack,
            sockets,
            link: setup.tap.map(|tap| TapLink::new(tap.device, setup.capture)),
            bypass: Bypass::new(),
            policy,
            acceptors,
            forwarder,
            control,
            neighbourhood: setup.neighbourhood,
            link_full: false,
            link_up: configured,
            buffer: vec![0; BUFFER_LEN],
        })
    }

    /// Looks for the first time at what rules follow: ports in use now are forwarded when our caller learns that we
    /// are ready. `opener` is in the guest's namespace.
    pub(crate) fn start(&mut self, opener: Opener) -> anyhow::Result<()> {
        let now = self.now();
        let Self { acceptors, sockets, stack, .. } = self;
        let rx = Receivers { acceptors, udp: stack.udp(), sockets };
        let changeable = self.control.is_some();
        self.forwarder
            .start(&opener, changeable, now, rx)
            .context("can't look for ports in use in the namespace")?;
        self.sockets.start(opener.clone());
        self.bypass.start(opener);
        Ok(())
    }

    /// Serves the guest until the end.
    pub(crate) fn run(
        mut self,
        mut lifetime: Lifetime,
        resolvers: Option<Resolvers<'_>>,
    ) -> anyhow::Result<Exit> {
        self.watch_all(&lifetime, resolvers.as_ref())?;
        if let (true, Some(link)) = (self.link_up, &mut self.link) {
            self.stack.on_link_up(link);
        }
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.wait(&mut events)?;
            let now = self.now();
            for event in &events {
                if let (RESOLVERS, Some(resolvers)) = (event.data.u64(), &resolvers) {
                    self.on_resolvers(resolvers);
                } else if let Some(exit) = self.on_event(event.data.u64(), event.flags, now, &mut lifetime)? {
                    return Ok(exit);
                }
            }
            self.finish_round(now)?;
        }
    }

    fn watch_all(&self, lifetime: &Lifetime, resolvers: Option<&Resolvers<'_>>) -> anyhow::Result<()> {
        let watch = |fd, word, events| {
            epoll::add(self.sockets.epoll(), fd, EventData::new_u64(word), events)
                .context("can't watch a descriptor")
        };
        for (source, fd) in lifetime.sources() {
            let word = match source {
                Source::Signals => SIGNALS,
                Source::Namespace => NAMESPACE,
            };
            watch(fd, word, EventFlags::IN)?;
        }
        if let Some(resolvers) = resolvers {
            watch(resolvers.news.as_fd(), RESOLVERS, EventFlags::IN)?;
        }
        if let Some(neighbourhood) = &self.neighbourhood {
            watch(neighbourhood.as_fd(), NEIGHBOURS, EventFlags::IN)?;
        }
        if let Some(link) = &self.link {
            watch(link.fd().as_fd(), LINK, EventFlags::IN)?;
        }
        Ok(())
    }

    /// The host has other resolvers. What is under way goes on to where it went.
    fn on_resolvers(&mut self, resolvers: &Resolvers<'_>) {
        let Some(resolver) = resolvers.news.latest() else { return };
        plan::set_resolvers(resolvers.config, &resolver, self.stack.settings_mut());
        log::info!("resolv.conf has changed, name servers are now {}", list(&resolver.servers));
    }

    /// Waits for events, or until something is due.
    fn wait(&self, events: &mut Vec<epoll::Event>) -> anyhow::Result<()> {
        let timeout = if self.bypass.has_runnable() || self.stack.has_runnable() && !self.link_full {
            Some(Duration::ZERO)
        } else {
            let due = [
                self.stack.next_deadline(),
                self.forwarder.next_scan(),
                self.control_deadline(),
                self.bypass.next_deadline(),
            ];
            due.into_iter().flatten().min().map(|due| due.since(self.now()))
        };
        // Whole milliseconds, rounded up: nothing is due before.
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
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    fn on_event(
        &mut self,
        word: u64,
        flags: EventFlags,
        now: Instant,
        lifetime: &mut Lifetime,
    ) -> anyhow::Result<Option<Exit>> {
        match word {
            SIGNALS => return Ok(lifetime.on_event(Source::Signals)),
            NAMESPACE => return Ok(lifetime.on_event(Source::Namespace)),
            LINK => self.on_link(flags, now)?,
            NEIGHBOURS => self.on_neighbours(),
            word if self.on_control(word, now) => {}
            _ if self.bypass.on_event(word, flags, now) => {}
            _ => {
                if let Some(id) = FlowId::from_bits(word) {
                    let (readiness, sockets) = (io::readiness(flags), &mut self.sockets);
                    match &mut self.link {
                        Some(link) => self.stack.on_readiness(id, readiness, now, sockets, link),
                        None => self.stack.on_readiness(id, readiness, now, sockets, &mut NoLink),
                    }
                } else if let Some(index) = Acceptors::index(word) {
                    self.accept(index, now);
                }
            }
        }
        Ok(None)
    }

    /// The host has got to know its neighbours better, or has forgotten some.
    fn on_neighbours(&mut self) {
        let changes = self.neighbourhood.as_mut().map(Neighbourhood::changes).unwrap_or_default();
        for change in changes {
            match &mut self.link {
                Some(link) => self.stack.on_neighbour(change, link),
                None => self.stack.on_neighbour(change, &mut NoLink),
            }
        }
    }

    /// The link has frames, or room for frames again.
    fn on_link(&mut self, flags: EventFlags, now: Instant) -> anyhow::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if flags.contains(EventFlags::OUT) {
            self.link_full = false;
            wait_for_link(&self.sockets, link, EventFlags::IN)?;
        }
        for _ in 0..FRAMES {
            let Some(frame) = link.receive(&mut self.buffer).context("the tap device failed")? else { break };
            let bytes = &self.buffer[frame.start..frame.end];
            self.stack.on_frame(frame::head(bytes), bytes, &frame.offload, now, &mut self.sockets, link);
        }
        Ok(())
    }

    /// Sends what this round has made due.
    fn finish_round(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.forwarder.next_scan().is_some_and(|due| due <= now) {
            let Self { acceptors, sockets, stack, .. } = self;
            self.forwarder.scan(now, Receivers { acceptors, udp: stack.udp(), sockets });
        }
        if self.control_deadline().is_some_and(|due| due <= now) {
            self.on_control_deadline(now);
        }
        self.bypass.finish_round(now);
        let Some(link) = &mut self.link else {
            end_round(&mut self.stack, now, &mut self.sockets, &mut NoLink);
            return Ok(());
        };
        end_round(&mut self.stack, now, &mut self.sockets, link);
        if !self.link_full && !self.stack.run(now, &mut self.sockets, link) {
            self.link_full = true;
            wait_for_link(&self.sockets, link, EventFlags::IN | EventFlags::OUT)?;
        }
        link.flush_capture();
        match link.failure() {
            Some(errno) => Err(errno).context("the tap device failed"),
            None => Ok(()),
        }
    }

    /// Accepts what waits on a listening socket.
    fn accept(&mut self, index: usize, now: Instant) {
        loop {
            let (settings, guest) = (self.stack.settings(), self.stack.guest());
            let Some(accepted) = self.acceptors.accept(index, &self.policy, settings, guest) else { break };
            match (accepted.way, &mut self.link) {
                (Ok(Way::Bypass(direction, destination)), _) => {
                    self.bypass.open(self.sockets.epoll(), accepted.socket, direction, destination);
                }
                (Ok(Way::Link(ends)), Some(link)) => {
                    let socket = self.sockets.stream(accepted.socket);
                    // Refused, for want of room: the socket resets as it is dropped.
                    drop(self.stack.on_accept(ends, socket, now, &mut self.sockets, link));
                }
                (Ok(Way::Link(_)) | Err(_), _) => reset_on_close(&accepted.socket),
            }
        }
    }
}

fn list(servers: &[std::net::IpAddr]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Does what is due in the stack, and sends what that and the round's events have made due.
fn end_round<L: Link<Memory = <Sockets as Host>::Memory>>(
    stack: &mut Stack<Sockets>,
    now: Instant,
    sockets: &mut Sockets,
    link: &mut L,
) {
    if stack.next_deadline().is_some_and(|due| due <= now) {
        stack.on_deadlines(now, sockets, link);
    }
    stack.end_batch(now, sockets, link);
}

/// Changes what of the link ends the wait.
fn wait_for_link(sockets: &Sockets, link: &TapLink, events: EventFlags) -> anyhow::Result<()> {
    epoll::modify(sockets.epoll(), link.fd(), EventData::new_u64(LINK), events)
        .context("can't watch the tap device")
}

/// Random numbers from the kernel.
fn seeds() -> anyhow::Result<Seeds> {
    let mut bytes = [0; 36];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .context("can't get random numbers")?;
    }
    let (mut hash_key, mut isn_secret, mut advertisement) = ([0; 16], [0; 16], [0; 4]);
    hash_key.copy_from_slice(&bytes[..16]);
    isn_secret.copy_from_slice(&bytes[16..32]);
    advertisement.copy_from_slice(&bytes[32..]);
    Ok(Seeds { hash_key, isn_secret, advertisement: u32::from_le_bytes(advertisement) })
}
