//! A simulation in virtual time of guest, network, engine, sockets, and the applications of both ends.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use engine::{
    addr::{Guest as KnownGuest, Settings},
    context,
    events::How,
    flow::Endpoints,
    host::{Errno, Totals},
    pressure::Pressure,
    rate_limit::RateLimit,
    stack::{Limits, Round, Seeds, Stack},
    timer::Instant,
};
use smoltcp::socket::tcp::State;
use testkit::{
    guest::segment,
    host::VirtualHost,
    journal::Journal,
    link::{Virtual, VirtualLink},
    network::{Direction, Impairments},
    settings::GUEST_MAC,
    stream::{CONNECTION_RESET, Closed, Peer},
};
use wire::{frame, offload::Offload};

use crate::{
    application::{Application, Close, Pace},
    guest::Guest,
    network::{Observed, ToGuest, name_urgent_byte, trace},
};

const GUEST_V4: &str = "198.51.100.2";
const GUEST_V6: &str = "2001:db8:1::2";
/// The remote's address as the guest sees it. It is on the guest's link, so that the guest needs no route.
const REMOTE_V4: &str = "198.51.100.9";
const REMOTE_V6: &str = "2001:db8:1::9";
/// Port of the server.
const SERVER: u16 = 80;
/// Port of the client.
const CLIENT: u16 = 40_000;
/// Maximum number of frames of the guest in one round.
const BATCH: usize = 32;
/// Maximum duration of a run, in microseconds. A longer run has failed.
const FOREVER: u64 = 4 * 3600 * 1_000_000;

/// Settings with TCP only, without mappings, and without router advertisements.
pub(crate) fn settings(mtu: u16) -> Settings {
    let mut settings = testkit::settings::settings();
    settings.mtu = mtu;
    let (v4, v6) = (settings.v4.as_mut().unwrap(), settings.v6.as_mut().unwrap());
    (v4.map_host_loopback, v4.map_guest_address, v4.dns_forward) = (None, None, None);
    (v6.map_host_loopback, v6.map_guest_address, v6.dns_forward) = (None, None, None);
    // smoltcp stores the hardware address under the source of a neighbour advertisement, not under its target.
    v6.our_link_local = REMOTE_V6.parse().unwrap();
    let services = &mut settings.services;
    (services.udp, services.icmp, services.ra) = (false, false, false);
    settings
}

/// The end that opens the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opener {
    Guest,
    Host,
}

/// The result of the guest's attempt to connect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    Accepted,
    Failed(Errno),
}

/// The parameters of one run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) v6: bool,
    pub(crate) opener: Opener,
    pub(crate) answer: Answer,
    pub(crate) mtu: u16,
    pub(crate) network: Impairments,
    /// Maximum backlog on the link, in bytes.
    pub(crate) link_queue: Option<u64>,
    /// The guest's socket buffers, in bytes.
    pub(crate) guest_receive: usize,
    pub(crate) guest_send: usize,
    /// The host's socket buffers, in bytes.
    pub(crate) host_receive: u64,
    pub(crate) host_send: u64,
    /// Round trip between host and peer, in microseconds.
    pub(crate) peer_delay: u64,
    pub(crate) guest: Application,
    pub(crate) host: Application,
    /// In both streams, each byte at a multiple of this position is urgent.
    pub(crate) urgent: Option<u64>,
    /// Whether the host's socket returns an urgent byte only after the bytes before it were discarded.
    pub(crate) strict: bool,
    /// Start of the virtual clock, in microseconds.
    pub(crate) start: u64,
    /// The rate limit of each direction.
    pub(crate) limit: Option<&'static str>,
    /// The guest resets the connection when it has received this many bytes. The next field is the same for the host.
    pub(crate) guest_aborts_at: Option<u64>,
    pub(crate) host_aborts_at: Option<u64>,
}

impl Scenario {
    /// A transfer of `upward` bytes from the guest and `downward` bytes to it, over a clean network with large buffers.
    pub(crate) fn transfer(upward: u64, downward: u64) -> Self {
        Self {
            seed: 1,
            v6: false,
            opener: Opener::Guest,
            answer: Answer::Accepted,
            mtu: 1500,
            network: Impairments::CLEAN,
            link_queue: None,
            guest_receive: 1 << 18,
            guest_send: 1 << 18,
            host_receive: 1 << 18,
            host_send: 1 << 18,
            peer_delay: 100,
            guest: Application::new(upward, Close::WhenSent, Pace::Fast),
            host: Application::new(downward, Close::WhenSent, Pace::Fast),
            urgent: None,
            strict: false,
            start: 0,
            limit: None,
            guest_aborts_at: None,
            host_aborts_at: None,
        }
    }

    /// Runs the scenario to its end. Checks that every byte arrived once, in order, and that both ends closed.
    pub(crate) fn run(self) -> Outcome {
        let (up, down) = (self.guest.total, self.host.total);
        let mut world = World::new(self);
        world.run();
        let outcome = world.outcome();
        let (guest, host) = (&world.guest.application, &world.host_side.application);
        assert_eq!((guest.received, host.received), (down, up), "bytes that arrived");
        assert!(guest.ended && host.ended && guest.closed && host.closed, "both ends close");
        assert_eq!(outcome.closed, Some(Closed::Orderly));
        world.journal.read();
        assert_eq!(world.journal.how(), [How::Closed]);
        assert_eq!(world.journal.ends[0].totals, Some(Totals::bytes(up, down)), "bytes that were reported");
        outcome
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Duration of the run, in virtual microseconds.
    pub(crate) time: u64,
    pub(crate) observed: Observed,
    pub(crate) closed: Option<Closed>,
    /// Maximum memory of the queue during the run, in bytes.
    pub(crate) memory: usize,
    /// Positions of the urgent bytes that the host's socket got.
    pub(crate) urgent_sent: Vec<u64>,
}

/// The application of the host's end, and the network between host and peer.
#[derive(Debug)]
struct HostSide {
    application: Application,
    delay: u64,
    receive_capacity: u64,
    /// Acknowledgments of the peer in flight: the time of arrival, and the position up to which each acknowledges.
    acknowledgments: VecDeque<(u64, u64)>,
    scheduled: u64,
    end_at: Option<u64>,
    /// Bytes of the peer in flight: the time of arrival, and their number.
    arrival: Option<(u64, u64)>,
    connect_at: Option<u64>,
    answer: Answer,
    urgent: Option<u64>,
}

impl HostSide {
    fn poll(&mut self, now: u64, peer: &Peer) {
        if self.connect_at.is_some_and(|at| at <= now) {
            self.connect_at = None;
            match self.answer {
                Answer::Accepted => peer.connect(),
                Answer::Failed(errno) => peer.fail(errno),
            }
        }
        if !peer.state().connected || peer.closed() == Some(Closed::Reset) {
            return;
        }
        self.receive(now, peer);
        self.send(now, peer);
    }

    fn receive(&mut self, now: u64, peer: &Peer) {
        let sent = peer.state().sent;
        let shut = peer.state().shut;
        while self.scheduled < sent {
            let (step, rest) = match self.application.pace {
                Pace::Fast => (u64::MAX, 0),
                Pace::Slow(bytes, rest) => (bytes, rest),
            };
            let until = sent.min(self.scheduled.saturating_add(step));
            let last = self.acknowledgments.back().map_or(0, |last| last.0);
            self.acknowledgments.push_back(((now + self.delay).max(last + rest), until));
            self.scheduled = until;
        }
        while let Some((_, until)) = self.acknowledgments.pop_front_if(|(at, _)| *at <= now) {
            peer.acknowledge(until);
            self.application.received = until;
        }
        if shut && self.acknowledgments.is_empty() && !peer.has_seen_end() {
            let at = *self.end_at.get_or_insert(now + self.delay);
            if at <= now {
                peer.acknowledge_all();
                self.application.ended = true;
            }
        }
    }

    fn send(&mut self, now: u64, peer: &Peer) {
        if let Some((_, len)) = self.arrival.take_if(|(at, _)| *at <= now) {
            self.arrive(len, peer);
        }
        let room = self.receive_capacity - peer.unread();
        let next = room.min(self.application.to_send());
        if self.arrival.is_none() && next > 0 {
            self.arrival = Some((now + self.delay, next));
        }
        if self.application.wants_to_close() {
            self.application.closed = true;
            peer.end();
        }
    }

    /// `len` bytes of the application arrive.
    fn arrive(&mut self, len: u64, peer: &Peer) {
        let end = self.application.sent + len;
        if let Some(every) = self.urgent {
            let mut next = self.application.sent.next_multiple_of(every);
            while next < end {
                peer.arrive_urgent(next + 1 - self.application.sent);
                self.application.sent = next + 1;
                next += every;
            }
        }
        if self.application.sent < end {
            peer.arrive(end - self.application.sent);
            self.application.sent = end;
        }
    }

    fn next(&self) -> Option<u64> {
        let acknowledgment = self.acknowledgments.front().map(|&(at, _)| at);
        let end = self.end_at.filter(|_| !self.application.ended);
        let arrival = self.arrival.map(|(at, _)| at);
        [acknowledgment, end, arrival, self.connect_at].into_iter().flatten().min()
    }
}

/// A stack that carries only TCP, with this limit of connections.
pub(crate) fn stack<W: context::World>(settings: Settings, connections: usize, secret: u8) -> Stack<W> {
    let guest = KnownGuest::new(&settings, Some(GUEST_MAC));
    let limits = Limits { connections, queue_memory: 256 << 20, ..testkit::settings::limits() };
    let seeds =
        Seeds { hash_key: [7; 16], isn_secret: [secret; 16], query_secret: [8; 16], advertisement: 0 };
    Stack::new(settings, guest, limits, seeds, Instant::from_micros(0))
}

/// Memory, host and link of a scenario.
type Simulated = Virtual<ToGuest>;

/// A running scenario.
pub(crate) struct World {
    now: u64,
    start: u64,
    stack: Stack<Simulated>,
    pressure: Pressure,
    host: VirtualHost,
    link: VirtualLink<ToGuest>,
    to_engine: Direction,
    pub(crate) guest: Guest,
    host_side: HostSide,
    memory: usize,
    urgent: Option<u64>,
    guest_aborts_at: Option<u64>,
    host_aborts_at: Option<u64>,
    journal: Journal,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let address = |v4: &str, v6: &str| if scenario.v6 { v6 } else { v4 }.parse::<IpAddr>().unwrap();
        let (guest_address, remote) = (address(GUEST_V4, GUEST_V6), address(REMOTE_V4, REMOTE_V6));
        let settings = settings(scenario.mtu);
        let mut host = VirtualHost::default();
        (host.send_capacity, host.strict) = (Some(scenario.host_send), scenario.strict);
        let buffers = (scenario.guest_receive, scenario.guest_send);
        let mtu = usize::from(scenario.mtu);
        let guest = Guest::new(guest_address, mtu, buffers, scenario.guest, scenario.seed);
        let to_guest = Direction::new(scenario.network, scenario.seed * 2);
        let start = scenario.start;
        let mut stack = stack(settings, 16, scenario.seed as u8);
        let rate = scenario.limit.map(|text| text.parse().expect("a rate"));
        *stack.rate_limit_mut() = RateLimit::new(rate, rate, Instant::from_micros(start));
        let mut world = Self {
            now: start,
            start,
            stack,
            pressure: Pressure::None,
            host,
            link: VirtualLink::to(ToGuest::new(to_guest, scenario.link_queue)),
            to_engine: Direction::new(scenario.network, scenario.seed * 2 + 1),
            guest,
            host_side: HostSide {
                application: scenario.host,
                delay: scenario.peer_delay,
                receive_capacity: scenario.host_receive,
                acknowledgments: VecDeque::new(),
                scheduled: 0,
                end_at: None,
                arrival: None,
                connect_at: None,
                answer: scenario.answer,
                urgent: scenario.urgent,
            },
            memory: 0,
            urgent: scenario.urgent,
            guest_aborts_at: scenario.guest_aborts_at,
            host_aborts_at: scenario.host_aborts_at,
            journal: Journal::default(),
        };
        world.stack.guard_mut().report_to(world.journal.events.clone());
        world.open(scenario.opener, SocketAddr::new(remote, SERVER), guest_address);
        world
    }

    fn open(&mut self, opener: Opener, remote: SocketAddr, guest: IpAddr) {
        match opener {
            Opener::Guest => {
                self.guest.connect(remote, CLIENT);
                self.host_side.connect_at = Some(self.now + self.host_side.delay);
            }
            Opener::Host => {
                self.guest.listen(SERVER);
                let ends = Endpoints {
                    guest: SocketAddr::new(guest, SERVER),
                    remote: SocketAddr::new(remote.ip(), CLIENT),
                };
                let socket = self.host.accepted();
                self.engine(|round| round.accept(ends, socket).expect("a free flow"));
            }
        }
    }

    /// A round of the engine with this event.
    fn engine<R>(&mut self, events: impl FnOnce(&mut Round<'_, Simulated>) -> R) -> R {
        self.link.now = self.now;
        let takes = self.link.free_at().is_none();
        let mut round = self.stack.round(Instant::from_micros(self.now), &mut self.host, &mut self.link);
        if self.pressure == Pressure::LinkFull && takes {
            round.link_has_room();
        }
        let result = events(&mut round);
        self.pressure = round.finish();
        self.memory = self.memory.max(self.stack.tcp().queue_memory());
        result
    }

    fn peer(&self) -> Option<Peer> {
        self.host.peers.first().cloned()
    }

    pub(crate) fn run(&mut self) {
        let (mut steps_at, mut steps) = (self.now, 0);
        loop {
            self.step();
            if self.is_over() {
                break;
            }
            let next = self.next().filter(|&next| next < self.start + FOREVER);
            if next.is_none() && self.stack.tcp().is_empty() && self.guest.state() == State::Closing {
                break; // smoltcp does not repeat a FIN after a fast retransmission
            }
            let Some(next) = next else { panic!("the run does not end: {}", self.describe()) };
            self.now = self.now.max(next);
            if self.now > steps_at {
                (steps_at, steps) = (self.now, 0);
            }
            steps += 1;
            assert!(steps < 1000, "the engine is busy without a pause at {}", self.now);
        }
    }

    fn describe(&mut self) -> String {
        let (state, observed) = (self.guest.state(), self.link.observed);
        let users = (&self.guest.application, &self.host_side.application);
        let peer = self.peer();
        format!("at {}: guest {state}, {users:#?}, {peer:#?}, {observed:#?}", self.now)
    }

    fn is_over(&mut self) -> bool {
        let opened = !self.host.peers.is_empty() && self.now > self.start;
        let closed = matches!(self.guest.state(), State::Closed | State::TimeWait | State::Listen);
        opened && closed && self.stack.tcp().is_empty() && !self.guest.has_unread()
    }

    /// Handles all events that are due now.
    fn step(&mut self) {
        self.deliver_to_guest();
        self.deliver_to_engine();
        if let Some(peer) = self.peer() {
            self.host_side.poll(self.now, &peer);
            self.abort_if_due(&peer);
        }
        while let Some((flow, readiness)) = self.host.next_ready() {
            self.engine(|round| round.ready(flow, readiness));
        }
        let mut turns = 0;
        while self.is_due() {
            self.engine(|_| ());
            turns += 1;
            assert!(turns < 10_000, "a connection is always runnable");
        }
        if let Some(peer) = self.peer() {
            self.host_side.poll(self.now, &peer); // there may be room again in the socket
        }
    }

    /// Whether the engine has work to do without an event.
    fn is_due(&mut self) -> bool {
        self.link.now = self.now;
        let deadline = self.stack.next_deadline().is_some_and(|due| due.as_micros() <= self.now);
        let takes = self.pressure == Pressure::LinkFull && self.link.free_at().is_none();
        deadline || takes || self.pressure == Pressure::MoreToSend
    }

    fn abort_if_due(&mut self, peer: &Peer) {
        let received = self.guest.application.received;
        if self.guest_aborts_at.take_if(|at| received >= *at).is_some() {
            self.guest.abort();
        }
        let received = self.host_side.application.received;
        if self.host_aborts_at.take_if(|at| received >= *at).is_some() {
            peer.fail(CONNECTION_RESET);
        }
    }

    fn deliver_to_guest(&mut self) {
        while let Some(frame) = self.link.network.arrived(self.now) {
            self.guest.deliver(frame);
        }
        for frame in self.guest.poll(self.now) {
            assert!(frame.len() <= usize::from(self.stack.settings().mtu) + wire::ethernet::HEADER_LEN);
            trace(self.now, "guest", &frame);
            self.to_engine.send(self.now, &frame);
        }
    }

    fn deliver_to_engine(&mut self) {
        let now = self.now;
        loop {
            let mut frames: Vec<_> = std::iter::from_fn(|| self.to_engine.arrived(now)).take(BATCH).collect();
            for frame in &mut frames {
                if let Some(every) = self.urgent {
                    name_urgent_byte(frame, every, self.guest.application.total, &self.link.observed);
                }
            }
            if frames.is_empty() {
                break;
            }
            for bytes in &frames {
                if let Some((_, segment)) = segment(bytes) {
                    self.link.observed.guest_segment(&segment);
                }
            }
            self.engine(|round| {
                for bytes in &frames {
                    round.frame(frame::head(bytes), bytes, &Offload::VERIFIED);
                }
            });
        }
    }

    /// The time at which the next event is due.
    fn next(&mut self) -> Option<u64> {
        let link = if self.pressure == Pressure::LinkFull { self.link.free_at() } else { None };
        let guest = self.guest.next(self.now);
        let timer = self.stack.next_deadline().map(Instant::as_micros);
        let network = [self.link.network.next(), self.to_engine.next()];
        let peer = self.peer().filter(|peer| peer.closed() != Some(Closed::Reset));
        let peer = peer.and_then(|_| self.host_side.next());
        [link, guest, timer, peer].into_iter().chain(network).flatten().min()
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome {
            time: self.now - self.start,
            observed: self.link.observed,
            closed: self.peer().and_then(|peer| peer.closed()),
            memory: self.memory,
            urgent_sent: self.peer().map_or(Vec::new(), |peer| peer.state().urgent_sent.clone()),
        }
    }
}
