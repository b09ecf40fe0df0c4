//! The surroundings of the attacks: a guest under rules by name, a resolver that answers by a script, and servers that
//! keep every byte that they get.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use testkit::hello::{client_hello, records, server_name};
use testkit::message::{Data::Bytes, Message};
use wire::dns::Type;

use crate::harness::*;

/// The rules. The guest may reach nothing else.
pub(super) const ALLOWED: [&str; 4] =
    ["www.allowed.test:443", "*.files.test:443", "http.allowed.test:80", "git.allowed.test:22"];
/// No server of the host's network has this address. The host's resolver gets the questions that the guest sends to it.
pub(super) const ANY_SERVER: &str = "203.0.113.53:53";
/// Each attacker's payload has this marker. No server may get it.
const MARKER: &[u8] = b"exfil";
/// A marker in payload that the guest may send.
const CONTROL: &[u8] = b"control";
const PORTS: [u16; 16] =
    [22, 25, 53, 80, 123, 443, 445, 853, 1900, 5353, 5355, 7000, 7001, 8443, 10_000, 40_000];

/// The outcome of an attempt, as its client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// NXDOMAIN.
    NoName,
    /// An answer without records.
    NoData,
    /// NOTIMP.
    NotImplemented,
    /// SERVFAIL.
    Failed,
    /// An answer with records. The attack had no effect.
    Answered,
    /// The connection is refused.
    Refused,
    /// The connection is reset.
    Reset,
    /// The connection is closed, and the client has got no data.
    Closed,
    /// The TLS alert unrecognized_name.
    Alert,
    /// ICMP: administratively prohibited.
    Prohibited,
    /// ICMP: the protocol is not supported.
    Unsupported,
    /// Nothing, since no error can be reported to such a sender.
    Nothing,
}

/// An attack.
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
    /// Parts of the expected log line, besides `refused:`. Empty if the attack has no effect, so that nothing is
    /// refused.
    pub(super) log: &'static [&'static str],
    /// Whether the resolver must get a query.
    pub(super) asks: bool,
    pub(super) run: fn(&mut Fort<'_>) -> Outcome,
}

/// An attempt. The resolver must get a query if, and only if, the outcome is an answer with records.
pub(super) const fn attempt(
    name: &'static str,
    outcome: Outcome,
    log: &'static [&'static str],
    run: fn(&mut Fort<'_>) -> Outcome,
) -> Attempt {
    Attempt { name, outcome, log, asks: matches!(outcome, Outcome::Answered), run }
}

/// The guest and its surroundings.
pub(super) struct Fort<'a> {
    pub(super) net: &'a Net,
    pub(super) daemon: Daemon<'a>,
    pub(super) resolver: Resolver,
    pub(super) script: Arc<Script>,
    pub(super) sinks: Sinks,
    pub(super) capture: Option<Capture<'a>>,
    log: String,
    raw: OnceCell<Raw>,
}

impl<'a> Fort<'a> {
    pub(super) fn new(net: &'a Net, more: &[&str]) -> Self {
        let log = net.path("log");
        let closed = ["-t", "none", "-u", "none"];
        let rules = ALLOWED.iter().flat_map(|rule| ["--allow", rule]);
        let options = ["--dns-host", "198.51.100.3", "--map-guest-addr", "198.51.100.99", "--log-file", &log];
        let capture = has_tool("socat").then(|| Capture::start(net));
        let daemon = net.pasta(
            &options.into_iter().chain(closed).chain(rules).chain(more.iter().copied()).collect::<Vec<_>>(),
        );
        let script = Arc::new(Script::default());
        let answers = Arc::clone(&script);
        let resolver = Resolver::start(&net.peer, PEER[0], move |query| answers.answer(query));
        let (sinks, raw) = (Sinks::new(net), OnceCell::new());
        let fort = Fort { net, daemon, resolver, script, sinks, capture, log, raw };
        for (name, address) in [
            ("www.allowed.test", FAR[0]),
            ("http.allowed.test", FAR[0]),
            ("a.files.test", PEER_ALIAS[0]),
            ("git.allowed.test", PEER_ALIAS[0]),
            ("control.files.test", FAR[0]),
        ] {
            fort.script.set(name, address);
            assert_eq!(fort.ask(&question(name, Type::A)), Outcome::Answered, "{name}");
        }
        fort
    }

    /// Runs all attempts. Each must have the expected outcome and log line, and must send no byte to a server.
    pub(super) fn withstand(&mut self, attempts: &[Attempt]) {
        for attempt in attempts {
            self.pace();
            let Attempt { name, log, .. } = attempt;
            let (lines, questions) = (self.count(log), self.resolver.asked().len());
            let outcome = (attempt.run)(self);
            assert_eq!(outcome, attempt.outcome, "{name}");
            if !log.is_empty() {
                wait_until(&format!("{name}: a line of the log with {log:?}"), || self.count(log) > lines);
            }
            self.assert_nothing_left(name);
            let asked = self.resolver.asked().len() > questions;
            assert_eq!(asked, attempt.asks, "{name}: does the resolver get a query?");
        }
        assert!(self.daemon.runs());
    }

    /// Waits, so that the log's rate limit omits no line. Each call site logs up to five lines per second.
    pub(super) fn pace(&self) {
        std::thread::sleep(Duration::from_millis(250));
    }

    /// Asserts that the servers got nothing, and that no message at the resolver has the attackers' marker.
    pub(super) fn assert_nothing_left(&mut self, name: &str) {
        let got = self.sinks.collect();
        assert!(got.is_empty(), "{name}: servers got {got:?}");
        let asked = self.resolver.asked();
        let leaked = asked.iter().find(|query| contains(&query.message, MARKER));
        assert!(leaked.is_none(), "{name}: the resolver got {leaked:?}");
    }

    /// The number of log lines about refusals that have all these parts.
    pub(super) fn count(&self, parts: &[&str]) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let of_refusal = log.lines().filter(|line| line.contains("refused:"));
        of_refusal.filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }

    /// Asserts that allowed payload still arrives, and that nothing with the attackers' marker has left the host.
    pub(super) fn finish(mut self) {
        let hello = records(&client_hello(&[(0, &server_name(b"www.allowed.test")), (21, CONTROL)]), 16_000);
        let mut client = self.net.guest.connect((FAR[0], 443)).unwrap();
        client.write_all(&hello).unwrap();
        let mut got = Vec::new();
        wait_until("an allowed hello", || {
            got.extend(self.sinks.collect().into_iter().flat_map(|(_, bytes)| bytes));
            got.len() >= hello.len()
        });
        assert_eq!(got, hello);
        assert_eq!(self.ask(&question("control.files.test", Type::A)), Outcome::Answered);
        assert!(contains(&self.resolver.asked().last().unwrap().message, CONTROL));
        if let Some(capture) = &self.capture {
            let frames = capture.frames();
            assert!(
                frames.iter().any(|frame| contains(frame, CONTROL)),
                "the capture has what leaves the host"
            );
            let leaked = frames.iter().find(|frame| contains(frame, MARKER));
            assert!(leaked.is_none(), "the host sent {leaked:?}");
        }
    }

    /// A packet socket at the guest's interface, which the first call opens.
    pub(super) fn raw(&self) -> &Raw {
        self.raw.get_or_init(|| Raw::open(self.net))
    }
}

/// Whether `bytes` contain `part`. The case of letters is ignored.
pub(super) fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

/// Servers at many ports of all machines. They accept connections, and never answer.
pub(super) struct Sinks {
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpStream>,
}

impl Sinks {
    fn new(net: &Net) -> Self {
        let everywhere = any(LOOPBACK[1]);
        let of = |ns, ports: &[u16]| ports.iter().map(|port| (ns, (everywhere, *port))).collect::<Vec<_>>();
        let without_dns: Vec<u16> = PORTS.into_iter().filter(|port| *port != 53).collect();
        let others = [GATEWAY[0], GATEWAY[1], PEER[1], PEER_ALIAS[0], PEER_ALIAS[1]];
        let places = [
            of(&net.host, &PORTS),
            of(&net.far, &PORTS),
            of(&net.peer, &without_dns),
            others.map(|address| (&net.peer, (address, 53))).to_vec(),
        ]
        .concat();
        let listener = |(ns, at): &(&Ns, (IpAddr, u16))| {
            let listener = ns.listen(*at);
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let socket = |(ns, at): &(&Ns, (IpAddr, u16))| {
            let socket = ns.udp(*at);
            socket.set_nonblocking(true).unwrap();
            socket
        };
        Sinks {
            listeners: places.iter().map(listener).collect(),
            datagrams: places.iter().map(socket).collect(),
            streams: Vec::new(),
        }
    }

    /// Accepts all connections that wait, and returns the new ones.
    pub(super) fn accept(&mut self) -> Vec<TcpStream> {
        let new: Vec<TcpStream> = self
            .listeners
            .iter()
            .flat_map(|listener| std::iter::from_fn(|| listener.accept().ok().map(|(stream, _)| stream)))
            .collect();
        for stream in &new {
            stream.set_nonblocking(true).unwrap();
            self.streams.push(stream.try_clone().unwrap());
        }
        new
    }

    /// Everything that has arrived since the last call, with the server's address.
    pub(super) fn collect(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.accept();
        let mut got = Vec::new();
        let mut buffer = vec![0; 65_536];
        for socket in &self.datagrams {
            while let Ok(len) = socket.recv(&mut buffer) {
                got.push((socket.local_addr().unwrap(), buffer[..len].to_vec()));
            }
        }
        self.streams.retain_mut(|stream| {
            loop {
                match stream.read(&mut buffer) {
                    Ok(len) if len > 0 => got.push((stream.local_addr().unwrap(), buffer[..len].to_vec())),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    _ => return false,
                }
            }
        });
        got
    }
}

/// The answers of the host's resolver.
#[derive(Default)]
pub(super) struct Script {
    /// By name and type.
    answers: Mutex<HashMap<(String, u16), Vec<u8>>>,
    /// Whether answers have to wait.
    holds: AtomicBool,
}

impl Script {
    /// From now on, `name` has this address.
    pub(super) fn set(&self, name: &str, address: IpAddr) {
        let (kind, octets) = match address {
            IpAddr::V4(address) => (Type::A, address.octets().to_vec()),
            IpAddr::V6(address) => (Type::AAAA, address.octets().to_vec()),
        };
        self.say(name, kind, &Message::response(name, kind).answer(name, kind, &[Bytes(&octets)]));
    }

    /// From now on, `message` is the answer to a question.
    pub(super) fn say(&self, name: &str, kind: Type, message: &Message) {
        self.answers.lock().unwrap().insert((name.to_owned(), kind.0), message.bytes());
    }

    /// Sets whether answers have to wait. The end of this state sends them.
    pub(super) fn hold(&self, holds: bool) {
        self.holds.store(holds, Ordering::Relaxed);
    }

    fn answer(&self, query: &Query) -> Option<Vec<u8>> {
        wait_until("the answer", || !self.holds.load(Ordering::Relaxed));
        let known = self.answers.lock().unwrap().get(&(query.name.clone(), query.kind.0)).cloned();
        known.or_else(|| Some(query.answer_from(&[])))
    }
}

/// A query for the records `kind` of `name`.
pub(super) fn question(name: &str, kind: Type) -> Vec<u8> {
    query(&testkit::message::name(name), kind, 1)
}

/// A query for the records `kind` of a name in wire format.
pub(super) fn query(name: &[u8], kind: Type, class: u16) -> Vec<u8> {
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], name, &kind.0.to_be_bytes(), &class.to_be_bytes()].concat()
}
