//! Scripts: segments of a guest, and the engine's expected answers.
//!
//! A segment is a line such as `S. 0:0 ack 1 win 65535 mss 1460 wscale 5 sackok` or `P. 1:101 ack 1 sack
//! 201:301,401:501`. It has flags (S, F, R, P, U, and a dot for ACK), the range of sequence numbers of its payload
//! (without SYN and FIN), and other fields with their names. All numbers are relative to the initial sequence numbers.
//! The payload is the content of the stream at this position. Fields that are missing in an expected line are not
//! compared. SACK blocks are an exception.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use engine::{
    flow::Endpoints,
    pressure::Pressure,
    stack::{Round, Stack},
    timer::Instant,
};
use sys::failing_allocator::exempt;
use testkit::{
    guest::{headers, segment},
    host::VirtualHost,
    link::{Capture, Kept, Virtual},
    stream::Peer,
    streams::{DOWNWARD, UPWARD},
};
use wire::{
    frame::{self, Outgoing},
    offload::Offload,
    tcp::{Flags, HEADER_LEN, Header, MAX_OPTIONS_LEN, Options, Segment, Seq},
};

use crate::world::{settings, stack};

/// Memory, host and link of a scripted guest.
pub(crate) type Scripted = Virtual<Kept>;

/// One connection between a scripted guest and a virtual socket.
pub(crate) struct Script {
    pub(crate) stack: Stack<Scripted>,
    pub(crate) host: VirtualHost,
    link: Capture,
    now: u64,
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The guest's initial sequence number.
    pub(crate) guest_iss: u32,
    /// The engine's initial sequence number. None before its SYN.
    pub(crate) our_iss: Option<u32>,
}

/// The guest's SYN in most scripts: a window of 64 KiB without and 8 MiB with window scale, and SACK.
pub(crate) const SYN: &str = "S 0:0 win 65535 mss 1460 wscale 7 sackok";

impl Script {
    pub(crate) fn new() -> Self {
        let settings = settings(1500);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        Self {
            stack: stack(settings, 4, 9),
            host: VirtualHost::default(),
            link: Capture::default(),
            now: 0,
            guest: SocketAddr::new(address("198.51.100.2"), 40_000),
            remote: SocketAddr::new(address("203.0.113.9"), 80),
            guest_iss: 1_000_000,
            our_iss: None,
        }
    }

    /// Sets the host's resolvers to these servers. The guest reaches them over TCP at the address `at`.
    pub(crate) fn resolvers(&mut self, at: &str, servers: &[&str]) {
        let v4 = self.stack.settings_mut().v4.as_mut().unwrap();
        v4.dns_forward = Some(at.parse().unwrap());
        v4.dns_servers = servers.iter().map(|server| server.parse().unwrap()).collect();
        self.remote = SocketAddr::new(at.parse().unwrap(), 53);
    }

    /// The next segments belong to another connection.
    pub(crate) fn another_port(&mut self) {
        self.guest.set_port(self.guest.port() + 1);
        self.our_iss = None;
    }

    /// A connection that the guest has opened with [`SYN`].
    pub(crate) fn connected() -> Self {
        Self::connected_by(SYN)
    }

    /// A connection that the guest has opened with this SYN.
    pub(crate) fn connected_by(syn: &str) -> Self {
        let mut script = Self::new();
        script.connect_by(syn);
        script
    }

    /// The guest opens a connection with this SYN.
    pub(crate) fn connect_by(&mut self, syn: &str) {
        self.guest(syn);
        self.quiet();
        self.peer().connect();
        self.settle();
        self.us("S. 0:0 ack 1");
        self.guest(". 1:1 ack 1 win 512");
        self.quiet();
    }

    /// A connection that a client of the host has opened.
    pub(crate) fn accepted() -> Self {
        let mut script = Self::new();
        script.accept();
        script.us("S 0:0");
        script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
        script.us(". 1:1 ack 1");
        script.quiet();
        script
    }

    /// A client of the host connects.
    pub(crate) fn accept(&mut self) {
        let ends = Endpoints { guest: self.guest, remote: self.remote };
        let socket = self.host.accepted();
        self.engine(|round| round.accept(ends, socket).expect("a free flow"));
        self.settle();
    }

    /// The socket that was opened last.
    pub(crate) fn peer(&self) -> Peer {
        self.host.peers.last().expect("a socket").clone()
    }

    /// Runs a round of the engine with these events, and more rounds until nothing is left to send.
    pub(crate) fn engine<R>(&mut self, events: impl FnOnce(&mut Round<'_, Scripted>) -> R) -> R {
        exempt(false); // of the test `allocations`: only allocations of the engine count
        let now = Instant::from_micros(self.now);
        let mut round = self.stack.round(now, &mut self.host, &mut self.link);
        let result = events(&mut round);
        let mut pressure = round.finish();
        while pressure == Pressure::MoreToSend {
            pressure = self.stack.round(now, &mut self.host, &mut self.link).finish();
        }
        exempt(true);
        result
    }

    /// Reports the sockets that became ready to the engine.
    pub(crate) fn settle(&mut self) {
        while let Some((flow, readiness)) = self.host.next_ready() {
            self.engine(|round| round.ready(flow, readiness));
        }
    }

    /// The guest sends this segment.
    pub(crate) fn guest(&mut self, line: &str) {
        self.batch(&[line]);
    }

    /// The guest sends these segments, which arrive in one round.
    pub(crate) fn batch(&mut self, lines: &[&str]) {
        let frames: Vec<_> = lines.iter().map(|line| self.write(line)).collect();
        self.frames(&frames);
    }

    /// The guest sends these frames.
    pub(crate) fn frames(&mut self, frames: &[Vec<u8>]) {
        self.engine(|round| {
            for bytes in frames {
                round.frame(frame::head(bytes), bytes, &Offload::VERIFIED);
            }
        });
        self.settle();
    }

    /// The guest sends these frames, each with its offload metadata, in one round.
    pub(crate) fn many<'a>(&mut self, frames: impl Iterator<Item = &'a (Vec<u8>, Offload)>) {
        self.engine(|round| {
            for (bytes, offload) in frames {
                round.frame(frame::head(bytes), bytes, offload);
            }
        });
        self.settle();
    }

    /// The socket that was opened first.
    pub(crate) fn peer_of_first(&self) -> Peer {
        self.host.peers[0].clone()
    }

    /// The link accepts this many frames until they are taken.
    pub(crate) fn limit_link(&mut self, most: usize) {
        self.link.most = Some(most);
        self.engine(|round| round.link_has_room());
    }

    /// The guest sends a frame with open checksums.
    pub(crate) fn offloaded(&mut self, (bytes, offload): &(Vec<u8>, Offload)) {
        self.engine(|round| round.frame(frame::head(bytes), bytes, offload));
        self.settle();
    }

    /// The frames that the engine has sent.
    pub(crate) fn sent_frames(&mut self) -> Vec<Vec<u8>> {
        self.link.take().into_iter().map(|(bytes, _)| bytes).collect()
    }

    /// Checks that the engine has sent this segment. It must be the oldest segment that was not compared yet.
    pub(crate) fn us(&mut self, expected: &str) {
        assert!(!self.link.frames.is_empty(), "nothing was sent, expected {expected:?}");
        let (bytes, _) = self.link.frames.remove(0);
        let actual = self.read(&bytes);
        assert!(matches(expected, &actual), "sent was      {actual}\nexpected was {expected}");
    }

    /// The segments that the engine has sent, as lines.
    pub(crate) fn sent(&mut self) -> Vec<String> {
        self.link.take().iter().map(|(bytes, _)| self.read(bytes)).collect()
    }

    /// The guest's ports to which the engine has sent segments, in order.
    pub(crate) fn sent_ports(&mut self) -> Vec<u16> {
        let frames = self.link.take();
        let segments = frames.iter().filter_map(|(bytes, _)| segment(bytes));
        segments.map(|(_, segment)| segment.header.destination_port.get()).collect()
    }

    /// Checks that the engine has sent no other segment.
    pub(crate) fn quiet(&mut self) {
        assert_eq!(self.sent(), Vec::<String>::new());
    }

    /// Advances the time.
    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time.as_micros() as u64;
        let due = |script: &Self| script.stack.next_deadline().map(Instant::as_micros);
        while let Some(at) = due(self).filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.engine(|_| ());
        }
        self.now = until;
    }

    /// Nobody runs the engine for this time: the process was stopped. Then the guest's segments that have arrived are in the
    /// first round.
    pub(crate) fn stop(&mut self, time: Duration, arrived: &[&str]) {
        self.now += time.as_micros() as u64;
        self.batch(arrived);
    }

    /// Sets whether the link is full.
    pub(crate) fn set_link_full(&mut self, full: bool) {
        self.link.most = full.then_some(0);
        if !full {
            self.engine(|round| round.link_has_room());
        }
    }

    /// The frame of a segment of the guest, from its line.
    pub(crate) fn write(&self, line: &str) -> Vec<u8> {
        self.write_with(line, None)
    }

    /// The frame of a segment of the guest, from its line. If `raw_options` are given, they replace all options.
    pub(crate) fn write_with(&self, line: &str, raw_options: Option<&[u8]>) -> Vec<u8> {
        let parsed = Line::parse(line);
        let payload_len = (parsed.end - parsed.start) as usize;
        let mut options_bytes = [0; MAX_OPTIONS_LEN];
        let absolute = |relative: i64, iss: u32| Seq(iss.wrapping_add(relative as u32));
        let mut options = Options {
            mss: parsed.value("mss").map(|mss| mss as u16),
            window_scale: parsed.value("wscale").map(|scale| scale as u8),
            sack_permitted: parsed.has("sackok"),
            ..Options::default()
        };
        let our_iss = self.our_iss.unwrap_or(0);
        for &(start, end) in &parsed.sack {
            options.sack.push(absolute(start, our_iss), absolute(end, our_iss));
        }
        let mut options_len = options.emit(&mut options_bytes);
        if let Some(raw) = raw_options {
            options_len = raw.len();
            options_bytes[..options_len].copy_from_slice(raw);
        }
        let mut header = Header::new(
            (self.guest.port(), self.remote.port()),
            absolute(parsed.start, self.guest_iss),
            parsed.value("ack").map_or(Seq(0), |ack| absolute(ack, our_iss)),
            parsed.flags,
            parsed.value("win").unwrap_or(512) as u16,
            options_len,
        );
        header.urgent = (parsed.value("urg").unwrap_or(0) as u16).into();
        let headers = Outgoing {
            traffic_class: parsed.value("tos").unwrap_or(0) as u8,
            ..headers(self.guest.ip(), self.remote.ip())
        };
        let position = (parsed.start - 1).max(0) as u32;
        let fill = |room: &mut [u8]| UPWARD.fill(position, room);
        testkit::guest::tcp(&headers, header, &options_bytes[..options_len], payload_len, fill).0
    }

    /// A segment of the guest without options. Its payload is `bytes`, at `position` of the stream.
    pub(crate) fn bytes(&self, line: &str, position: usize, bytes: &[u8]) -> Vec<u8> {
        let (flags, rest) = line.split_once(' ').unwrap_or((line, ""));
        let line = format!("{flags} {}:{} {rest}", position + 1, position + 1 + bytes.len());
        let mut frame = self.write(&line);
        let start = headers(self.guest.ip(), self.remote.ip()).headroom(HEADER_LEN);
        frame[start..start + bytes.len()].copy_from_slice(bytes);
        frame
    }

    /// The segments that the engine has sent: their flags without PSH, and their payload.
    pub(crate) fn heard(&mut self) -> Vec<(Flags, Vec<u8>)> {
        let frames = self.link.take();
        let segments = frames.iter().filter_map(|(bytes, _)| segment(bytes));
        segments.map(|(_, segment)| (segment.flags() - Flags::PSH, segment.payload.to_vec())).collect()
    }

    /// A segment of the engine, as a line.
    fn read(&mut self, bytes: &[u8]) -> String {
        let Some((packet, segment)) = segment(bytes) else { return "no TCP segment".into() };
        if segment.flags().contains(Flags::SYN) {
            self.our_iss.get_or_insert(segment.seq().0);
        }
        let our_iss = self.our_iss.unwrap_or(0);
        let start = segment.seq().0.wrapping_sub(our_iss);
        if !segment.payload.is_empty() {
            DOWNWARD.check(start.wrapping_sub(1), segment.payload);
        }
        let mut line = render(&segment, our_iss, self.guest_iss);
        if packet.traffic_class != 0 {
            line += &format!(" tos {}", packet.traffic_class);
        }
        line
    }
}

/// A segment as a line. Sequence numbers are relative to the sender's `iss`, acknowledgment numbers to the receiver's
/// `other_iss`.
fn render(segment: &Segment<'_>, iss: u32, other_iss: u32) -> String {
    let flags = segment.flags();
    let mut line = String::new();
    for (flag, letter) in [
        (Flags::SYN, 'S'),
        (Flags::FIN, 'F'),
        (Flags::RST, 'R'),
        (Flags::PSH, 'P'),
        (Flags::URG, 'U'),
        (Flags::ACK, '.'),
    ] {
        if flags.contains(flag) {
            line.push(letter);
        }
    }
    let start = segment.seq().0.wrapping_sub(iss);
    line += &format!(" {start}:{}", start as usize + segment.payload.len());
    if flags.contains(Flags::ACK) {
        line += &format!(" ack {}", segment.ack().0.wrapping_sub(other_iss));
    }
    line += &format!(" win {}", segment.window());
    if flags.contains(Flags::URG) {
        line += &format!(" urg {}", segment.header.urgent);
    }
    let options = Options::parse(segment.options);
    if let Some(mss) = options.mss {
        line += &format!(" mss {mss}");
    }
    if let Some(scale) = options.window_scale {
        line += &format!(" wscale {scale}");
    }
    if options.sack_permitted {
        line += " sackok";
    }
    let relative = |seq: &Seq| seq.0.wrapping_sub(other_iss);
    let blocks = options.sack.as_slice().iter();
    let blocks: Vec<_> =
        blocks.map(|(start, end)| format!("{}:{}", relative(start), relative(end))).collect();
    if !blocks.is_empty() {
        line += &format!(" sack {}", blocks.join(","));
    }
    line
}

/// A parsed line.
struct Line<'a> {
    flags: Flags,
    start: i64,
    end: i64,
    words: Vec<&'a str>,
    sack: Vec<(i64, i64)>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let mut words = line.split_whitespace();
        let mut flags = Flags::empty();
        for letter in words.next().expect("flags").chars() {
            flags |= match letter {
                'S' => Flags::SYN,
                'F' => Flags::FIN,
                'R' => Flags::RST,
                'P' => Flags::PSH,
                'U' => Flags::URG,
                '.' => Flags::ACK,
                '-' => Flags::empty(),
                other => panic!("no flag is called {other}"),
            };
        }
        let (start, end) = range(words.next().expect("a range"));
        let words: Vec<_> = words.collect();
        let after = |name: &str| words.iter().position(|word| *word == name).map(|at| words[at + 1]);
        let sack = after("sack").map_or(Vec::new(), |blocks| blocks.split(',').map(range).collect());
        Self { flags, start, end, words, sack }
    }

    fn has(&self, name: &str) -> bool {
        self.words.contains(&name)
    }

    fn value(&self, name: &str) -> Option<i64> {
        let at = self.words.iter().position(|word| *word == name)?;
        Some(self.words[at + 1].parse().expect("a number"))
    }
}

fn range(text: &str) -> (i64, i64) {
    let (start, end) = text.split_once(':').expect("a range");
    (start.parse().expect("a number"), end.parse().expect("a number"))
}

/// Whether a segment matches the expected line.
fn matches(expected: &str, actual: &str) -> bool {
    let (expected, actual) = (Line::parse(expected), Line::parse(actual));
    let push = if expected.flags.contains(Flags::PSH) { Flags::empty() } else { Flags::PSH };
    let values = ["ack", "win", "urg", "tos", "mss", "wscale"];
    expected.flags == actual.flags - push
        && (expected.start, expected.end) == (actual.start, actual.end)
        && expected.sack == actual.sack
        && (!expected.has("sackok") || actual.has("sackok"))
        && values.iter().all(|name| !expected.has(name) || expected.value(name) == actual.value(name))
}
