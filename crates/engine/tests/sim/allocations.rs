//! Allocations fail, one after the other, or all from some point on: what needs memory is refused, and nothing else is
//! lost (docs/design/memory.md).

use std::{net::SocketAddr, time::Duration};

use engine::{flow::FlowId, host::Readiness};
use sys::failing_allocator::{Plan, count, exempt};
use testkit::{
    exempt::exempt_by,
    guest::{fragments, headers, icmp, udp},
    host::READABLE,
};
use wire::{icmp::Header, protocol};

use crate::script::{SYN, Script};

/// A UDP server on the host's network.
const SERVER: &str = "203.0.113.9";

/// A guest with one connection that is established before allocations fail.
struct Session {
    script: Script,
    /// The port and the sequence number of the established connection.
    first: (u16, Option<u32>),
    /// How many bytes the guest has sent over it.
    sent: usize,
}

impl Session {
    fn new() -> Self {
        exempt_by(exempt);
        let mut script = Script::connected();
        let services = &mut script.stack.settings_mut().services;
        (services.udp, services.icmp) = (true, true);
        let first = (script.guest.port(), script.our_iss);
        Self { script, first, sent: 0 }
    }

    /// The guest sends bytes over the established connection. Like any guest, it repeats what is not acknowledged.
    fn send(&mut self, batches: &[&[(usize, usize)]]) {
        let (port, iss) = self.first;
        self.script.guest.set_port(port);
        self.script.our_iss = iss;
        for lines in batches {
            let line = |&(start, end): &(usize, usize)| {
                let base = 1 + self.sent;
                format!("P. {}:{} ack 1 win 512", base + start, base + end)
            };
            let lines: Vec<String> = lines.iter().map(line).collect();
            self.script.batch(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        }
        self.sent += batches.iter().copied().flatten().map(|range| range.1).max().unwrap_or(0);
    }

    /// The guest sends all bytes again that the server does not have.
    fn repeat(&mut self) {
        self.script.host.peers[0].acknowledge_all();
        self.script.settle();
        let has = self.script.host.peers[0].state().sent as usize;
        if has < self.sent {
            let missing = self.sent - has;
            self.sent = has;
            self.send(&[&[(0, missing)]]);
        }
        self.script.host.peers[0].acknowledge_all();
        self.script.settle();
    }

    /// Bytes out of order, bytes that the socket does not accept, and a hole in the bytes that the guest receives.
    fn trouble(&mut self) {
        self.send(&[&[(200, 300)], &[(400, 500)], &[(0, 100)], &[(100, 200)], &[(300, 400)]]);
        self.script.host.peers[0].state().send_capacity = 10;
        self.send(&[&[(0, 1000)], &[(1000, 2000)]]);
        self.script.host.peers[0].state().send_capacity = 1 << 20;
        self.script.host.peers[0].acknowledge_all();
        self.script.settle();
        self.script.host.peers[0].arrive(3000);
        self.script.settle();
        // The guest has not received the first segment.
        let next = 1 + self.sent;
        self.script.guest(&format!(". {next}:{next} ack 1 win 512 sack 1461:2921"));
        self.script.settle();
    }

    /// The guest opens a connection. Returns whether it is established.
    fn opens(&mut self, port: u16) -> bool {
        self.script.guest.set_port(port);
        self.script.our_iss = None;
        let before = self.script.host.peers.len();
        self.script.sent_frames();
        self.script.guest(SYN);
        if self.script.host.peers.len() == before {
            return false;
        }
        self.script.peer().connect();
        self.script.settle();
        if !self.script.sent().iter().any(|line| line.starts_with("S.")) {
            return false;
        }
        self.script.batch(&[". 1:1 ack 1 win 512", "P. 1:101 ack 1 win 512"]);
        self.script.peer().state().sent == 100
    }

    /// A client of the host opens a connection. Returns whether the guest gets a SYN.
    fn accepts(&mut self, port: u16) -> bool {
        let ends = engine::flow::Endpoints {
            guest: SocketAddr::new(self.script.guest.ip(), port),
            remote: SocketAddr::new(SERVER.parse().unwrap(), 50_000),
        };
        self.script.sent_frames();
        self.script.our_iss = None;
        let socket = self.script.host.accepted();
        let accepted = self.script.engine(|round| round.accept(ends, socket).is_ok());
        self.script.settle();
        accepted && self.script.sent().iter().any(|line| line.starts_with("S "))
    }

    /// The guest sends a datagram, whole or in fragments, and the server answers. Returns whether the answer arrives.
    fn asks(&mut self, port: u16, in_fragments: bool) -> bool {
        let headers = headers(self.script.guest.ip(), SERVER.parse().unwrap());
        let payload = [7; 100];
        let sent = self.script.host.opened.len();
        if in_fragments {
            let whole = udp(&headers, (port, 53), &payload).0;
            let upper = &whole[34..];
            let mut upper = upper.to_vec();
            upper[6..8].fill(0); // no checksum
            self.script.frames(&fragments(&headers, protocol::UDP, &upper, 48));
        } else {
            self.script.offloaded(&udp(&headers, (port, 53), &payload));
        }
        self.script.sent_frames();
        let Some(opened) = self.script.host.opened.get(sent) else { return false };
        let (id, socket) = (opened.id, opened.socket.clone());
        socket.arrive(&format!("{SERVER}:53"), &payload);
        self.ready(id, READABLE);
        self.script.sent_frames().iter().any(|frame| frame.ends_with(&payload))
    }

    fn ready(&mut self, id: FlowId, readiness: Readiness) {
        self.script.engine(|round| round.ready(id, readiness));
    }

    /// The guest sends an echo request. Returns whether it leaves the host.
    fn pings(&mut self, id: u16) -> bool {
        let headers = headers(self.script.guest.ip(), SERVER.parse().unwrap());
        let before = self.script.host.opened.len();
        let header = Header { kind: 8, code: 0, checksum: 0.into(), rest: (u32::from(id) << 16 | 1).into() };
        self.script.offloaded(&(icmp(&headers, header, b"echo"), Default::default()));
        self.script.sent_frames();
        self.script.host.opened.get(before).is_some_and(|opened| opened.socket.sent().len() == 1)
    }

    /// Everything that needs memory, and time for all deadlines.
    fn run(&mut self) {
        self.trouble();
        self.opens(41_000);
        self.accepts(8080);
        for port in 5000..5003 {
            self.asks(port, false);
            self.asks(port + 100, true);
        }
        for id in 1..4 {
            self.pings(id);
        }
        self.script.pass(Duration::from_secs(2));
        self.trouble();
    }

    /// The session works as before, and nothing of the established connection is lost.
    fn check(&mut self, plan: Plan) {
        self.repeat();
        assert_eq!(self.script.host.peers[0].state().sent as usize, self.sent, "{plan:?}: bytes are lost");
        assert_eq!(self.script.host.peers[0].closed(), None, "{plan:?}: the connection has ended");
        // Datagrams whose fragments were lost expire.
        self.script.pass(Duration::from_secs(61));
        assert!(self.opens(42_000), "{plan:?}: no connection");
        assert!(self.asks(6000, false), "{plan:?}: no datagram");
        assert!(self.asks(6001, true), "{plan:?}: no fragments");
        assert!(self.pings(99), "{plan:?}: no ping");
        assert_eq!(self.script.stack.tcp().queue_memory(), 0, "{plan:?}");
        // All flows end, and leave nothing.
        self.script.pass(Duration::from_secs(100_000));
        assert!(self.script.stack.tcp().is_empty() && self.script.stack.timers().is_empty(), "{plan:?}");
        assert_eq!(self.script.host.open_files(), 0, "{plan:?}");
    }
}

/// Runs a session in which allocations fail. Returns how many allocations there were.
fn allocations(plan: Plan) -> u64 {
    let mut session = Session::new();
    let ((), allocations) = count(plan, || {
        exempt(true);
        session.run();
    });
    session.check(plan);
    allocations
}

#[test]
fn any_allocation_may_fail() {
    let all = allocations(Plan::None);
    assert!(all > 10, "{all}");
    for number in 1..=all {
        allocations(Plan::Only(number));
        allocations(Plan::From(number));
    }
}
