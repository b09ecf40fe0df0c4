//! Tests of rate limits (`--limit`, docs/design/rate-limit.md) with several concurrent connections over a link without
//! delay.

use std::{collections::VecDeque, net::SocketAddr};

use engine::{
    link::Full,
    pressure::Pressure,
    rate_limit::{Rate, RateLimit},
    stack::{Round, Stack},
    timer::Instant,
};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    socket::tcp,
    time::Instant as SmolInstant,
    wire::{EthernetAddress, IpCidr},
};
use testkit::{
    guest::segment,
    host::VirtualHost,
    link::{Receiver, Virtual, VirtualLink},
    network::Impairments,
    settings::GUEST_MAC,
    stream::{CONNECTION_RESET, Peer},
    streams::{DOWNWARD, UPWARD},
};
use wire::{
    frame,
    offload::Offload,
    segment::{Segments, complete_checksum},
};

use crate::{
    application::{Application, Close, Pace},
    guest::Device,
    world::{Opener, Scenario, settings, stack},
};

const GUEST: &str = "198.51.100.2";
const REMOTE: &str = "198.51.100.9:80";
const MTU: u16 = 1500;
/// Size of the guest's socket buffers, and maximum number of the peer's bytes that wait in a socket.
const BUFFER: usize = 1 << 18;
const SECOND: u64 = 1_000_000;

/// The receiver of the frames to the guest.
struct Wire {
    frames: Vec<Vec<u8>>,
    segment: Vec<u8>,
    full: bool,
    /// Segments with payload to this port of the guest are lost.
    loses: Option<u16>,
}

impl Receiver for Wire {
    fn has_room(&mut self) -> bool {
        !self.full
    }

    fn frame(&mut self, frame: &mut [u8], offload: &Offload) -> Result<(), Full> {
        let lost = segment(frame).filter(|(_, segment)| {
            !segment.payload.is_empty() && Some(segment.header.destination_port.get()) == self.loses
        });
        if lost.is_some() {
            return Ok(());
        }
        match Segments::new(frame, offload) {
            Some(mut segments) => {
                while let Some(len) = segments.write_next(&mut self.segment) {
                    self.frames.push(self.segment[..len].to_vec());
                }
            }
            None => {
                assert!(complete_checksum(frame, offload), "an offload that does not fit its frame");
                self.frames.push(frame.to_vec());
            }
        }
        Ok(())
    }
}

/// One connection: the guest's socket, and the numbers of bytes that were sent and are still to be sent.
struct Client {
    handle: SocketHandle,
    /// Number of bytes that the guest has yet to send.
    upward: u64,
    sent: u64,
    /// Number of bytes that the peer has yet to send.
    downward: u64,
    received: u64,
}

/// Measures bursts: in any interval, the number of bytes minus what the rate allows must not exceed the bucket's
/// capacity.
struct Meter {
    bits: u64,
    /// The minimum so far of a difference: the number of bytes, minus the number of bytes that the rate allows.
    lowest: i64,
    bytes: u64,
    largest: i64,
}

impl Meter {
    const fn new(bits: u64) -> Self {
        Self { bits, lowest: 0, bytes: 0, largest: 0 }
    }

    fn note(&mut self, bytes: u64, now: u64) {
        let allowed = (u128::from(self.bits) * u128::from(now) / 8 / u128::from(SECOND)) as i64;
        self.lowest = self.lowest.min(self.bytes as i64 - allowed);
        self.largest = self.largest.max(bytes as i64 - allowed - self.lowest);
        self.bytes = bytes;
    }
}

/// A guest with several connections, to peers that accept all bytes at once.
struct Crowd {
    now: u64,
    stack: Stack<Virtual<Wire>>,
    pressure: Pressure,
    host: VirtualHost,
    link: VirtualLink<Wire>,
    device: Device,
    interface: Interface,
    sockets: SocketSet<'static>,
    clients: Vec<Client>,
    meters: [Meter; 2],
    rounds: u64,
}

impl Crowd {
    /// One connection for each pair in `transfers`: the numbers of bytes to send upwards and downwards. `limits` are
    /// the rates of the two directions.
    fn new(limits: [Option<&str>; 2], transfers: &[(u64, u64)]) -> Self {
        let rates = limits.map(|text| text.map(|text| text.parse::<Rate>().unwrap()));
        let mut stack = stack(settings(MTU), 64, 1);
        *stack.rate_limit_mut() = RateLimit::new(rates[0], rates[1], Instant::from_micros(0));
        let mut device = Device { mtu: MTU.into(), received: VecDeque::new(), sent: Vec::new() };
        let config = Config::new(EthernetAddress(GUEST_MAC.0).into());
        let mut interface = Interface::new(config, &mut device, SmolInstant::ZERO);
        interface
            .update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.parse().unwrap(), 24)).unwrap());
        let mut crowd = Self {
            now: 0,
            stack,
            pressure: Pressure::None,
            host: VirtualHost::default(),
            link: VirtualLink::to(Wire {
                frames: Vec::new(),
                segment: vec![0; frame::MAX_LEN],
                full: false,
                loses: None,
            }),
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            clients: Vec::new(),
            meters: rates.map(|rate| Meter::new(rate.map_or(u64::MAX >> 20, Rate::bits_per_second))),
            rounds: 0,
        };
        for &(upward, downward) in transfers {
            crowd.connect(upward, downward);
        }
        crowd
    }

    fn connect(&mut self, upward: u64, downward: u64) {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let remote: SocketAddr = REMOTE.parse().unwrap();
        let port = 40_000 + self.clients.len() as u16;
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), remote, port).unwrap();
        self.clients.push(Client { handle, upward, sent: 0, downward, received: 0 });
        // Each connection is opened before the next one, so that clients and peers have the same order.
        self.settle();
    }

    fn round(&mut self, events: impl FnOnce(&mut Round<'_, Virtual<Wire>>)) {
        self.rounds += 1;
        let has_room = self.pressure == Pressure::LinkFull && !self.link.full;
        let mut round = self.stack.round(Instant::from_micros(self.now), &mut self.host, &mut self.link);
        if has_room {
            round.link_has_room();
        }
        events(&mut round);
        self.pressure = round.finish();
    }

    fn peers(&self) -> Vec<Peer> {
        self.host.peers.clone()
    }

    /// Handles all events that are due now.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let frames = self.exchange();
            let is_due = self.stack.next_deadline().is_some_and(|due| due.as_micros() <= self.now);
            let has_room = self.pressure == Pressure::LinkFull && !self.link.full;
            if is_due || has_room || self.pressure == Pressure::MoreToSend {
                self.round(|_| ());
            } else if !frames {
                return;
            }
        }
        panic!("it does not come to rest at {}", self.now);
    }

    /// Exchanges frames and events between the guest and the engine. Returns whether there were any.
    fn exchange(&mut self) -> bool {
        let mut active = false;
        let at = SmolInstant::from_micros(self.now as i64);
        self.device.received.extend(std::mem::take(&mut self.link.frames));
        self.interface.poll(at, &mut self.device, &mut self.sockets);
        active |= self.run_guest();
        self.interface.poll(at, &mut self.device, &mut self.sockets);
        for bytes in std::mem::take(&mut self.device.sent) {
            active = true;
            self.round(|round| round.frame(frame::head(&bytes), &bytes, &Offload::VERIFIED));
        }
        active |= self.run_peers();
        while let Some((flow, readiness)) = self.host.next_ready() {
            active = true;
            self.round(|round| round.ready(flow, readiness));
        }
        let sent = self.peers().iter().map(|peer| peer.state().sent).sum();
        let received = self.clients.iter().map(|client| client.received).sum();
        self.meters[0].note(sent, self.now);
        self.meters[1].note(received, self.now);
        active || !self.link.frames.is_empty()
    }

    fn run_guest(&mut self) -> bool {
        let mut active = false;
        for client in &mut self.clients {
            let socket = self.sockets.get_mut::<tcp::Socket>(client.handle);
            while socket.can_recv() {
                let position = client.received as u32;
                let read = socket.recv(|bytes| {
                    DOWNWARD.check(position, bytes);
                    (bytes.len(), bytes.len() as u64)
                });
                client.received += read.unwrap();
                active = true;
            }
            while socket.can_send() && client.upward > 0 {
                let (position, most) = (client.sent as u32, client.upward);
                let sent = socket.send(|room| {
                    let len = room.len().min(most as usize);
                    UPWARD.fill(position, &mut room[..len]);
                    (len, len as u64)
                });
                let sent = sent.unwrap();
                client.sent += sent;
                client.upward -= sent;
                active = true;
            }
        }
        active
    }

    fn run_peers(&mut self) -> bool {
        let mut active = false;
        for (peer, client) in self.host.peers.clone().iter().zip(&mut self.clients) {
            if !peer.state().connected {
                peer.connect();
                active = true;
            }
            peer.acknowledge_all();
            let len = client.downward.min((BUFFER as u64).saturating_sub(peer.unread()));
            if len > 0 && (peer.unread() <= BUFFER as u64 / 2 || len == client.downward) {
                peer.arrive(len);
                client.downward -= len;
                active = true;
            }
        }
        active
    }

    /// Runs until this time, in microseconds.
    fn run_until(&mut self, end: u64) {
        loop {
            self.settle();
            let at = SmolInstant::from_micros(self.now as i64);
            let guest = self.interface.poll_at(at, &self.sockets).map(|at| at.total_micros() as u64);
            let engine = self.stack.next_deadline().map(Instant::as_micros);
            let next = [guest, engine].into_iter().flatten().min().unwrap_or(u64::MAX);
            self.now = next.max(self.now + 1).min(end);
            if self.now == end {
                return self.settle();
            }
        }
    }

    /// Number of bytes that each peer (with [`UP`]) or each client of the guest (with [`DOWN`]) has received.
    fn moved(&self, direction: usize) -> Vec<u64> {
        match direction {
            UP => self.peers().iter().map(|peer| peer.state().sent).collect(),
            _ => self.clients.iter().map(|client| client.received).collect(),
        }
    }

    /// Checks that the average rate of a direction since the start is its limit, within two percent, and that no burst
    /// was too long.
    #[track_caller]
    fn assert_rate(&self, direction: usize) {
        let meter = &self.meters[direction];
        let expected = (u128::from(meter.bits) * u128::from(self.now) / 8 / u128::from(SECOND)) as u64;
        let moved: u64 = self.moved(direction).iter().sum();
        assert!(moved.abs_diff(expected) * 50 <= expected, "{moved} bytes, not {expected}");
        self.assert_burst(direction);
    }

    #[track_caller]
    fn assert_burst(&self, direction: usize) {
        let meter = &self.meters[direction];
        let burst = (meter.bits / 8 / 20).max(12 << 10) as i64;
        assert!(meter.largest <= burst, "a burst of {} bytes, not {burst}", meter.largest);
    }
}

const UP: usize = 0;
const DOWN: usize = 1;
/// More bytes than any test transfers.
const ENDLESS: u64 = 1 << 40;

#[track_caller]
fn assert_shares(moved: &[u64]) {
    let fair = moved.iter().sum::<u64>() / moved.len() as u64;
    assert!(moved.iter().all(|bytes| bytes.abs_diff(fair) * 20 <= fair), "{moved:?}");
}

#[test]
fn tcp_of_the_guest_keeps_the_rate_and_shares_it() {
    for (rate, connections) in [("20M", 1), ("20M", 8), ("1M", 1), ("1M", 8), ("100M", 3)] {
        let mut crowd = Crowd::new([Some(rate), None], &vec![(ENDLESS, 0); connections]);
        crowd.run_until(10 * SECOND);
        crowd.assert_rate(UP);
        assert_shares(&crowd.moved(UP));
    }
}

#[test]
fn tcp_to_the_guest_keeps_the_rate_and_shares_it() {
    for (rate, connections) in [("20M", 1), ("20M", 8), ("1M", 1), ("1M", 8), ("100M", 3)] {
        let mut crowd = Crowd::new([None, Some(rate)], &vec![(0, ENDLESS); connections]);
        crowd.run_until(10 * SECOND);
        crowd.assert_rate(DOWN);
        assert_shares(&crowd.moved(DOWN));
    }
}

#[test]
fn the_two_directions_are_independent() {
    let mut crowd = Crowd::new([Some("5M"), Some("15M")], &[(ENDLESS, ENDLESS), (ENDLESS, ENDLESS)]);
    crowd.run_until(10 * SECOND);
    crowd.assert_rate(UP);
    crowd.assert_rate(DOWN);
    // A direction without a limit is not slowed down: its transfer takes no virtual time.
    let mut crowd = Crowd::new([Some("1M"), None], &[(ENDLESS, 10 << 20)]);
    assert_eq!(crowd.moved(DOWN), [10 << 20]);
    crowd.run_until(10 * SECOND);
    crowd.assert_rate(UP);
}

#[test]
fn a_limit_below_a_segment_a_second_moves_bytes() {
    for rate in ["8k", "64k"] {
        let mut crowd = Crowd::new([Some(rate), Some(rate)], &[(ENDLESS, ENDLESS), (ENDLESS, ENDLESS)]);
        crowd.run_until(1000 * SECOND);
        for direction in [UP, DOWN] {
            crowd.assert_rate(direction);
            assert_shares(&crowd.moved(direction));
        }
    }
}

/// The connection with little to send only waits for one turn of each other connection.
#[test]
fn a_connection_with_little_to_send_does_not_wait_for_those_with_much() {
    for direction in [UP, DOWN] {
        let mut transfers = [(0, 0); 9];
        transfers[..8].fill(if direction == UP { (ENDLESS, 0) } else { (0, ENDLESS) });
        let mut crowd = Crowd::new([Some("20M"), Some("20M")], &transfers);
        crowd.run_until(SECOND);
        for said in 1..=50 {
            let client = &mut crowd.clients[8];
            *(if direction == UP { &mut client.upward } else { &mut client.downward }) += 100;
            // 8 turns of 6250 bytes take 20 ms.
            crowd.run_until(crowd.now + 30_000);
            assert_eq!(crowd.moved(direction)[8], 100 * said);
        }
        crowd.assert_rate(direction);
        assert_shares(&crowd.moved(direction)[..8]);
    }
}

/// The window limits how many bytes the guest sends before their turn, since these bytes would wait in the queue.
#[test]
fn the_queue_is_no_longer_than_the_rate_needs() {
    for (rate, window) in [("20M", 500_000), ("1M", 65_536), ("1G", 1 << 20)] {
        let mut crowd = Crowd::new([Some(rate), None], &[(ENDLESS, 0); 3]);
        for step in 1..=20 {
            crowd.run_until(step * SECOND / 20);
            let memory = crowd.stack.tcp().queue_memory();
            assert!(memory <= 3 * (window + (32 << 10)), "{rate}: {memory} bytes");
        }
        crowd.assert_burst(UP);
    }
}

/// There is no polling: deadlines exist only while bytes wait for tokens, and are not more frequent than necessary.
#[test]
fn deadlines_are_few_and_end_with_the_transfer() {
    for (rate, direction) in [("20M", UP), ("20M", DOWN), ("1G", UP), ("1G", DOWN)] {
        let bytes = rate.parse::<Rate>().unwrap().bits_per_second() / 8;
        let transfer = if direction == UP { (bytes, 0) } else { (0, bytes) };
        let mut crowd = Crowd::new([Some(rate), Some(rate)], &[transfer]);
        let mut wakeups = 0;
        while crowd.moved(direction) != [bytes] {
            let due = crowd.stack.next_deadline().unwrap().as_micros();
            assert!(due > crowd.now, "a deadline that is over");
            wakeups += 1;
            crowd.run_until(due);
        }
        assert!((900_000..1_020_000).contains(&crowd.now), "{rate}: {} us", crowd.now);
        assert!(wakeups <= 300, "{rate}: {wakeups} wake-ups");
        crowd.run_until(crowd.now + SECOND); // timers that are due once more
        let next = crowd.stack.next_deadline().unwrap().as_micros();
        assert!(next > crowd.now + 5 * SECOND, "a deadline at {next}");
    }
}

/// While the link is full, the next event is that the link has room.
#[test]
fn a_full_link_takes_no_tokens_and_causes_no_deadlines() {
    let mut crowd = Crowd::new([None, Some("20M")], &[(0, ENDLESS), (0, ENDLESS)]);
    crowd.run_until(SECOND);
    let before: u64 = crowd.moved(DOWN).iter().sum();
    crowd.link.full = true;
    crowd.run_until(crowd.now + 10_000);
    let rounds = crowd.rounds;
    crowd.run_until(3 * SECOND);
    assert_eq!(crowd.moved(DOWN).iter().sum::<u64>(), before);
    // These are the rounds of the guest's timers and of the retransmission timers.
    assert!(crowd.rounds - rounds < 50, "{} rounds", crowd.rounds - rounds);
    crowd.link.full = false;
    crowd.run_until(13 * SECOND);
    let moved: u64 = crowd.moved(DOWN).iter().sum();
    assert!((moved - before).abs_diff(25_000_000) < 500_000, "{} bytes in 10 s", moved - before);
    crowd.assert_burst(DOWN);
    assert_shares(&crowd.moved(DOWN));
}

/// Every byte arrives once and in order, and both ends close, even with bad networks and slow applications.
#[test]
fn limited_transfers_end() {
    let bad = Impairments { loss: 20, reordering: 20, duplication: 10, delay: 5000 };
    for limit in ["64k", "2M", "50M"] {
        for network in [Impairments::CLEAN, bad] {
            for (seed, opener) in [(1, Opener::Guest), (2, Opener::Host), (3, Opener::Guest)] {
                let run = Scenario {
                    seed,
                    opener,
                    network,
                    limit: Some(limit),
                    ..Scenario::transfer(200_000, 150_000)
                };
                Scenario { urgent: (seed == 3).then_some(10_007), ..run.clone() }.run();
                Scenario { host_send: 20_000, link_queue: Some(20_000), v6: true, ..run.clone() }.run();
                let slow = |close| Application::new(100_000, close, Pace::Slow(5000, 10_000));
                Scenario { guest: slow(Close::WhenOtherClosed), host: slow(Close::WhenSent), ..run }.run();
            }
        }
    }
}

/// Retransmitted bytes need no tokens, so they do not slow down other connections.
#[test]
fn retransmissions_need_no_tokens() {
    let mut crowd = Crowd::new([None, Some("64k")], &[(0, ENDLESS), (0, ENDLESS)]);
    crowd.run_until(SECOND);
    crowd.link.loses = Some(40_000);
    let before = crowd.moved(DOWN)[1];
    crowd.run_until(7 * SECOND);
    // The connection with losses sends at most four segments of new bytes.
    let moved = crowd.moved(DOWN)[1] - before;
    assert!(moved >= 48_000 - 6 * 1460, "{moved} bytes in 6 s");
}

/// If the peer resets the connection, bytes that wait for tokens are discarded.
#[test]
fn a_connection_that_fails_while_it_waits_ends() {
    let mut crowd = Crowd::new([Some("64k"), Some("64k")], &[(60_000, 60_000)]);
    crowd.run_until(SECOND);
    crowd.host.peers[0].fail(CONNECTION_RESET);
    let before = crowd.moved(UP);
    crowd.run_until(21 * SECOND);
    assert_eq!(crowd.moved(DOWN), [60_000]);
    assert_eq!(crowd.moved(UP), before);
    assert!(crowd.stack.tcp().is_empty());
}
