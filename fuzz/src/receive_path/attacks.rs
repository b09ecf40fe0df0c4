//! A guest that tries to exhaust resources (behaviour §10.6). The use of each resource is bounded, and existing
//! connections continue.

use engine::{flow::Endpoints, host::Readiness};
use testkit::stream::Peer;
use wire::{offload::Offload, tcp::Flags};

use super::{Input, Run, guest::segment_with};

/// Maximum number of connections (behaviour §12), and maximum number of bytes that all connections together may have
/// queued.
const MOST_CONNECTIONS: usize = 131_071;
const MOST_MEMORY: usize = 256 << 20;
const ISS: u32 = 1000;

/// Endpoints of the guest's connection number `number`.
fn ends(number: usize) -> Endpoints {
    let guest = (u32::from(std::net::Ipv4Addr::new(198, 51, 0, 10)) + (number / 60_000) as u32).into();
    let port = 1 + (number % 60_000) as u16;
    Endpoints { guest: (std::net::IpAddr::V4(guest), port).into(), remote: ([192, 0, 2, 1], 80).into() }
}

impl Run {
    fn send(&mut self, ends: &Endpoints, seq: u32, flags: Flags, len: usize) {
        let ack = self.link.heard(ends).next;
        self.frame(&segment_with(ends, seq, ack, flags, len), &Offload::VERIFIED);
    }

    /// Opens a connection. False if the host has no socket for it.
    fn open(&mut self, ends: &Endpoints) -> bool {
        let before = self.stack.tcp().len();
        self.send(ends, ISS, Flags::SYN, 0);
        if self.stack.tcp().len() == before {
            return false;
        }
        let Some(peer) = self.host.peers.last() else { return false };
        peer.state().connected = true;
        let Some(id) = peer.state().flow else { return false };
        self.readiness(id, Readiness { writable: true, ..Readiness::default() });
        self.round();
        self.link.next_step();
        self.send(ends, ISS + 1, Flags::ACK, 0);
        true
    }

    fn peer(&self, ends: &Endpoints) -> Option<&Peer> {
        self.host.peers.iter().find(|peer| peer.state().ends == Some(*ends))
    }

    /// Number of bytes of a connection's stream that the host has received.
    fn written(&self, ends: &Endpoints) -> u64 {
        self.peer(ends).map_or(0, |peer| peer.state().sent)
    }

    /// Sends 100 bytes, and retransmits them until the host has received them.
    fn talk(&mut self, ends: &Endpoints, seq: u32) {
        let before = self.written(ends);
        for _ in 0..100 {
            self.send(ends, seq, Flags::ACK | Flags::PSH, 100);
            let Some(id) = self.peer(ends).and_then(|peer| peer.state().flow) else {
                panic!("{ends:?} is gone")
            };
            self.readiness(id, Readiness { writable: true, ..Readiness::default() });
            if self.written(ends) >= before + 100 {
                return;
            }
        }
        panic!("{ends:?} makes no progress");
    }
}

#[test]
fn connections_fill_the_table_and_no_more() {
    let mut run = Run::new(&mut Input::new(&[]));
    let old = ends(0);
    assert!(run.open(&old));
    run.talk(&old, ISS + 1);
    for number in 1..MOST_CONNECTIONS + MOST_CONNECTIONS / 8 {
        run.send(&ends(number), ISS, Flags::SYN, 0);
        run.link.next_step();
    }
    run.round();
    assert_eq!(run.stack.tcp().len(), MOST_CONNECTIONS);
    assert!(run.stack.timers().len() <= MOST_CONNECTIONS);
    run.talk(&old, ISS + 101);
    // The end of one connection makes room for one new connection.
    run.send(&ends(1), ISS + 1, Flags::RST, 0);
    assert_eq!(run.stack.tcp().len(), MOST_CONNECTIONS - 1);
    while !run.open(&ends(MOST_CONNECTIONS * 2)) {}
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let mut run = Run::new(&mut Input::new(&[]));
    for number in 0..10_000 {
        let ends = ends(number);
        if run.open(&ends) {
            run.send(&ends, ISS + 2, Flags::ACK, 10); // after a gap
            run.send(&ends, ISS + 1, Flags::RST, 0);
        }
        run.round();
        run.check();
        assert_eq!(run.stack.tcp().len(), 0);
    }
}

#[test]
fn holes_take_bounded_memory_and_others_go_on() {
    let mut run = Run::new(&mut Input::new(&[]));
    let old = ends(0);
    while !run.open(&old) {}
    let hostile: Vec<_> = (1..6000).map(ends).filter(|ends| run.open(ends)).collect();
    for ends in &hostile {
        for slot in 0..4 {
            run.send(ends, ISS + 2 + slot * 16_384, Flags::ACK, 1);
        }
        run.round();
        run.link.next_step();
    }
    let memory = run.stack.tcp().queue_memory();
    assert!((MOST_MEMORY / 2..=MOST_MEMORY).contains(&memory), "{memory}");
    run.talk(&old, ISS + 1);
    for ends in &hostile {
        run.send(ends, ISS + 1, Flags::RST, 0);
    }
    run.check();
    assert_eq!(run.stack.tcp().queue_memory(), 0);
    run.talk(&old, ISS + 101);
}
