//! Tests of the bypass between real sockets. Socket buffers and pipes have the minimum size, and the common buffer has
//! a few bytes.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant as Clock};

use engine::events::Account;
use engine::flow::FlowId;
use engine::host::Readiness;
use engine::splice::Bypass;
use engine::timer::Instant;
use proptest::prelude::*;
use rustix::event::Timespec;

use super::*;
use crate::budgets::ledger::plenty;
use crate::io::readiness;
use crate::isolated::isolated;

/// Minimum capacity of a pipe.
const PAGE: usize = 4096;
/// Maximum time of every wait. No wait should come close to this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection with its peers, and the epoll set that reports its events.
struct Line {
    epoll: Rc<OwnedFd>,
    shared: Rc<RefCell<Shared>>,
    bypass: Bypass<Pair>,
    id: FlowId,
    peers: [Peer; 2],
    start: Clock,
}

struct Peer {
    stream: File,
    wrote: Vec<u8>,
    read: Vec<u8>,
    /// The positions of urgent bytes in `wrote`.
    wrote_urgent: Vec<usize>,
    read_urgent: Vec<usize>,
    /// Whether the peer has ended its half of the connection.
    shut: bool,
    /// Whether the peer has received the end of the stream.
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Write(Side, usize),
    /// Write one urgent byte.
    WriteUrgent(Side),
    Read(Side, usize),
    Shut(Side),
    /// Run the event loop once.
    Turn,
}

/// The kind of socket that connects a peer with the program.
#[derive(Clone, Copy)]
enum Kind {
    Unix,
    Tcp,
}

/// Makes a peer, and a socket that is connected to it. Both are non-blocking, and have send buffers of minimum size.
fn end(kind: Kind) -> (Peer, OwnedFd) {
    let pair: [OwnedFd; 2] = match kind {
        Kind::Unix => UnixStream::pair().map(|(one, other)| [one.into(), other.into()]).unwrap(),
        Kind::Tcp => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            [one.into(), listener.accept().unwrap().0.into()]
        }
    };
    for socket in &pair {
        io::ioctl_fionbio(socket, true).unwrap();
        sockopt::set_socket_send_buffer_size(socket, 1).unwrap();
        sockopt::set_socket_oobinline(socket, true).unwrap();
    }
    let [stream, ours] = pair;
    let peer = Peer {
        stream: stream.into(),
        wrote: Vec::new(),
        read: Vec::new(),
        wrote_urgent: Vec::new(),
        read_urgent: Vec::new(),
        shut: false,
        ended: false,
    };
    (peer, ours)
}

impl Line {
    fn new(kind: Kind, buffer: usize) -> Self {
        Self::with(kind, buffer, true)
    }

    /// `readable`: as for [`Bypass::insert`].
    fn with(kind: Kind, buffer: usize, readable: bool) -> Self {
        let epoll = Rc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let (_, ledger) = plenty();
        let permit = ledger.take(Class::LocalIn).unwrap();
        let shared = Shared::with(epoll.clone(), buffer, PAGE, ledger);
        let ((client, accepted), (server, connected)) = (end(kind), end(kind));
        let mut bypass = Bypass::new(1);
        let loopback = Ipv4Addr::LOCALHOST.into();
        let pair = Pair::new(accepted, connected, Direction::Inbound, loopback, shared.clone(), permit);
        let id = bypass.insert(pair, readable, Account::NONE).unwrap();
        let mut line = Self { epoll, shared, bypass, id, peers: [client, server], start: Clock::now() };
        let stands = Readiness { writable: true, ..Readiness::default() };
        line.bypass.on_readiness(id, Side::Connected, stands, line.now());
        let pair = line.bypass.conduit(id).unwrap();
        for side in Side::ALL {
            pair.watch(side, side as u64, false).unwrap();
        }
        line
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(side, len) => {
                let peer = &mut self.peers[side as usize];
                let first = peer.wrote.len();
                let bytes: Vec<u8> = (first..first + len).map(|at| (at * 31 + at / 251) as u8).collect();
                match peer.stream.write(&bytes) {
                    Ok(len) => peer.wrote.extend(&bytes[..len]),
                    Err(error) => assert!(peer.shut || error.kind() == ErrorKind::WouldBlock, "{error}"),
                }
            }
            Act::WriteUrgent(side) => {
                let peer = &mut self.peers[side as usize];
                let flags = SendFlags::OOB | SendFlags::NOSIGNAL;
                if !peer.shut && send(&peer.stream, b"!", flags).is_ok() {
                    peer.wrote_urgent.push(peer.wrote.len());
                    peer.wrote.push(b'!');
                }
            }
            Act::Read(side, len) => {
                let peer = &mut self.peers[side as usize];
                // Bytes that arrive in the meantime may be urgent. The read would not notice an urgent byte.
                let unread = sys::stream::unread(&peer.stream).unwrap() as usize;
                if unread > 0 && sys::stream::is_at_mark(&peer.stream).unwrap_or(false) {
                    peer.read_urgent.push(peer.read.len());
                }
                let mut bytes = vec![0; len.min(unread.max(1))];
                match peer.stream.read(&mut bytes) {
                    Ok(0) => peer.ended |= len > 0,
                    Ok(len) => peer.read.extend(&bytes[..len]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            Act::Shut(side) => {
                let peer = &mut self.peers[side as usize];
                if !std::mem::replace(&mut peer.shut, true) {
                    rustix::net::shutdown(&peer.stream, Shutdown::Write).unwrap();
                }
            }
            Act::Turn => self.turn(),
        }
    }

    /// Runs an event loop once, without waiting.
    fn turn(&mut self) {
        let mut events = Vec::with_capacity(8);
        let timeout = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&*self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)).unwrap();
        for event in events {
            let side = Side::ALL[event.data.u64() as usize];
            self.bypass.on_readiness(self.id, side, readiness(event.flags), self.now());
        }
        self.bypass.run(self.now());
        self.bypass.on_deadlines(self.now());
    }

    /// Both peers send their bytes, end their halves, and read all bytes.
    fn finish(&mut self, len: usize) {
        while !self.bypass.is_empty() || self.peers.iter().any(|peer| !peer.ended) {
            assert!(self.start.elapsed() < PATIENCE, "it stalls");
            for side in Side::ALL {
                let peer = &self.peers[side as usize];
                if !peer.shut {
                    let left = len.saturating_sub(peer.wrote.len());
                    self.act(if left > 0 { Act::Write(side, left) } else { Act::Shut(side) });
                }
                self.act(Act::Read(side, PAGE));
            }
            self.turn();
        }
        for side in Side::ALL {
            let (peer, other) = (&self.peers[side as usize], &self.peers[side.other() as usize]);
            assert!(peer.read == other.wrote, "{side:?}");
            assert!(peer.read_urgent.iter().all(|position| other.wrote_urgent.contains(position)));
            assert_eq!(peer.read_urgent.last(), other.wrote_urgent.last(), "{side:?}");
        }
        assert_eq!(self.bypass.counters.reset, 0);
    }
}

/// Actions. `urgent` is the weight of urgent bytes.
fn acts(urgent: u32) -> impl Strategy<Value = Vec<Act>> {
    let side = prop_oneof![Just(Side::Accepted), Just(Side::Connected)];
    let act = prop_oneof![
        8 => (side.clone(), 0_usize..6000).prop_map(|(side, len)| Act::Write(side, len)),
        8 => (side.clone(), 0_usize..6000).prop_map(|(side, len)| Act::Read(side, len)),
        urgent => side.clone().prop_map(Act::WriteUrgent),
        1 => side.prop_map(Act::Shut),
        8 => Just(Act::Turn),
    ];
    proptest::collection::vec(act, 0..80)
}

proptest! {
    // A stall takes a long time to detect, and shrinking repeats the stall many times.
    #![proptest_config(ProptestConfig { max_shrink_iters: 8, ..ProptestConfig::default() })]

    /// for all sizes and orders of turns, all bytes arrive in order, and the end of each stream arrives after its
    /// bytes. It does not matter which side ends first.
    #[test]
    fn nothing_is_lost_between_sockets_r84(acts in acts(0), buffer in 1_usize..5000) {
        let mut line = Line::new(Kind::Unix, buffer);
        for act in acts {
            line.act(act);
        }
        line.finish(0);
    }

    /// For TCP sockets, and for all sizes and orders of turns, the last urgent byte always arrives as an urgent byte.
    #[test]
    fn urgent_bytes_are_carried_between_sockets(acts in acts(4), buffer in 1_usize..5000) {
        isolated(move || {
            let mut line = Line::new(Kind::Tcp, buffer);
            for act in acts {
                line.act(act);
            }
            line.finish(0);
        });
    }
}

/// Each message is read by one call, and the next one waits for its event: announced ports depend on this (behaviour §8.4).
#[test]
fn small_messages_need_no_pipe() {
    isolated(|| {
        let mut line = Line::with(Kind::Tcp, 4096, false);
        for round in 1..4 {
            for side in Side::ALL {
                line.act(Act::Write(side, 30));
                let receiver = side.other();
                while line.peers[receiver as usize].read.len() < 30 * round {
                    assert!(line.start.elapsed() < PATIENCE, "it stalls");
                    line.turn();
                    line.act(Act::Read(receiver, 30));
                }
            }
        }
        assert!(line.shared.borrow().pipes.is_empty());
        line.finish(0);
    });
}

/// Many bytes in both directions at once, through buffers and through pipes. All pipes are returned.
#[test]
fn pipes_are_borrowed() {
    let mut line = Line::new(Kind::Unix, 64);
    line.finish(1 << 18);
    let shared = line.shared.borrow();
    assert!((1..=2).contains(&shared.pipes.len()), "{:?}", shared.pipes);
    assert!(shared.pipes.iter().all(|pipe| pipe.capacity == PAGE));
}
