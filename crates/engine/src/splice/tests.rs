//! Tests of the relay with virtual sockets. They move any number of bytes per call, at any time.

use alloc::{collections::VecDeque, vec::Vec};

use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    flow::{Endpoints, FlowId, Protocol},
    forward::spec::Direction,
    guard::Guard,
    host::{Errno, Readiness, SocketError, Totals},
    rate_limit::RateLimit,
    testkit::journal::Journal,
};

const RESET: SocketError = SocketError::Failed(Errno(104));

/// One virtual socket and its peer.
#[derive(Debug, Default)]
struct Socket {
    /// Bytes that the peer has sent, and that were not taken yet.
    received: VecDeque<u8>,
    /// Index of the urgent byte in `received`.
    mark: Option<usize>,
    /// Whether the last call moved the maximum number of bytes. Then the next call stops at the urgent mark.
    was_full: bool,
    /// Whether the peer has ended its half.
    fin_received: bool,
    /// Whether the peer has reset the connection.
    reset: bool,
    /// Whether each send fails, although the peer is there.
    broken: bool,
    /// Bytes that were sent to the peer, and that the peer has not read yet.
    sent: VecDeque<u8>,
    /// Positions of urgent bytes in the stream to the peer.
    urgent_sent: Vec<usize>,
    /// The bytes that the peer has read.
    read: Vec<u8>,
    fin_sent: bool,
    /// Whether a send found no room, or a receive found no bytes. Then the next change is reported.
    starved: bool,
    blocked: bool,
    edge: Readiness,
}

/// Both sockets. Send buffers have room for `room` bytes, and a call moves at most `most` bytes.
#[derive(Debug)]
struct World {
    sockets: [Socket; 2],
    buffered: [VecDeque<u8>; 2],
    buffered_urgent: [bool; 2],
    /// The side from which bytes were taken last, if these bytes were not given yet.
    pending: Option<Side>,
    room: usize,
    most: usize,
    reset_on_close: bool,
    /// Whether the sockets were closed before all sent bytes were acknowledged.
    overtaken: bool,
    /// Number of calls that moved no bytes.
    empty_calls: usize,
}

#[derive(Debug, Clone)]
struct Handle(alloc::rc::Rc<core::cell::RefCell<World>>);

/// The connection's handle of the sockets. Dropping it closes the sockets.
#[derive(Debug)]
struct Sockets(Handle);

impl Drop for Sockets {
    fn drop(&mut self) {
        self.0.with(|world| {
            for socket in &mut world.sockets {
                world.overtaken |= !socket.sent.is_empty();
                socket.fin_sent |= !world.reset_on_close && !socket.reset;
            }
        });
    }
}

impl Handle {
    fn new(room: usize, most: usize) -> Self {
        let world = World {
            sockets: Default::default(),
            buffered: Default::default(),
            buffered_urgent: [false; 2],
            pending: None,
            room,
            most,
            reset_on_close: false,
            overtaken: false,
            empty_calls: 0,
        };
        Self(alloc::rc::Rc::new(world.into()))
    }

    fn with<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        work(&mut self.0.borrow_mut())
    }
}

impl Conduit for Sockets {
    fn direction(&self, from: Side) -> Direction {
        match from {
            A => Direction::Outbound,
            B => Direction::Inbound,
        }
    }

    fn take(&mut self, from: Side, urgent: bool, at_most: usize) -> Result<Taken, SocketError> {
        self.0.with(|world| {
            assert_eq!(world.pending, None, "other bytes were taken before these were given");
            assert!(world.buffered[from as usize].is_empty());
            let socket = &mut world.sockets[from as usize];
            let len = match socket.mark {
                None => socket.received.len(),
                Some(0) if urgent || socket.was_full && socket.fin_received => 1,
                Some(0) if socket.was_full => return Err(SocketError::WouldBlock),
                Some(0) => panic!("the urgent byte is taken for another"),
                Some(mark) => mark,
            };
            assert!(at_most > 0);
            let most = world.most.min(at_most);
            let len = len.min(most);
            if len > 0 {
                world.buffered[from as usize].extend(socket.received.drain(..len));
                world.buffered_urgent[from as usize] = socket.mark == Some(0);
                world.pending = Some(from);
                socket.mark = socket.mark.and_then(|mark| mark.checked_sub(len));
                socket.was_full = len == most;
                socket.starved = !socket.was_full;
                return Ok(Taken { len, more: socket.was_full });
            }
            match (socket.reset, socket.fin_received) {
                (true, _) => Err(RESET),
                (false, true) => Ok(Taken { len: 0, more: false }),
                (false, false) => {
                    world.empty_calls += usize::from(socket.starved);
                    socket.starved = true;
                    Err(SocketError::WouldBlock)
                }
            }
        })
    }

    fn give(&mut self, from: Side) -> Result<usize, SocketError> {
        self.0.with(|world| {
            assert!(world.pending.is_none_or(|pending| pending == from));
            world.pending = None;
            let buffered = &mut world.buffered[from as usize];
            assert!(!buffered.is_empty());
            let socket = &mut world.sockets[from.other() as usize];
            assert!(!socket.fin_sent, "sent after the end");
            if socket.reset || socket.broken {
                return Err(RESET);
            }
            let len = buffered.len().min(world.most).min(world.room - socket.sent.len());
            if len == 0 {
                world.empty_calls += usize::from(socket.blocked);
                socket.blocked = true;
                return Err(SocketError::WouldBlock);
            }
            if world.buffered_urgent[from as usize] {
                socket.urgent_sent.push(socket.read.len() + socket.sent.len());
            }
            socket.sent.extend(buffered.drain(..len));
            Ok(len)
        })
    }

    fn shutdown_write(&mut self, side: Side) -> Result<(), SocketError> {
        self.0.with(|world| {
            let socket = &mut world.sockets[side as usize];
            assert!(!socket.fin_sent);
            socket.fin_sent = true;
            if socket.reset || socket.broken { Err(RESET) } else { Ok(()) }
        })
    }

    fn abandon(&mut self, side: Side) {
        self.0.with(|world| world.sockets[side as usize].fin_received = true);
    }

    fn unacknowledged(&mut self, side: Side) -> u32 {
        self.0.with(|world| {
            let socket = &world.sockets[side as usize];
            u32::try_from(socket.sent.len()).unwrap() + u32::from(socket.fin_sent)
        })
    }

    fn reset_on_close(&mut self) {
        self.0.with(|world| world.reset_on_close = true);
    }
}

/// An action of a peer.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Sends this many bytes.
    Send(Side, usize),
    /// Sends this many bytes. The last byte is urgent.
    SendUrgent(Side, usize),
    /// Reads at most this many bytes.
    Read(Side, usize),
    /// Ends the peer's half of the stream.
    Fin(Side),
    /// Resets the connection.
    Reset(Side),
    /// Readiness is reported, or a turn is given. Both may happen late.
    Report,
}

/// A connection: the relay, its virtual sockets, and what the peers have sent.
struct Case {
    bypass: Bypass<Sockets>,
    limit: RateLimit,
    id: FlowId,
    world: Handle,
    /// The bytes that each peer has sent.
    wrote: [Vec<u8>; 2],
    /// Positions of urgent bytes in `wrote`.
    marks: [Vec<usize>; 2],
    next: u8,
    now: Instant,
}

impl Case {
    fn new(room: usize, most: usize) -> Self {
        Self::with(room, most, Account::NONE, RateLimit::default())
    }

    fn with(room: usize, most: usize, account: Account, limit: RateLimit) -> Self {
        let world = Handle::new(room, most);
        let mut bypass = Bypass::new(10);
        bypass.limit(&limit);
        let id = bypass.insert(Sockets(world.clone()), true, account).unwrap();
        let mut case = Self {
            bypass,
            limit,
            id,
            world,
            wrote: Default::default(),
            marks: Default::default(),
            next: 0,
            now: Instant::default(),
        };
        case.edge(Side::Connected, Readiness { writable: true, ..Readiness::default() });
        case
    }

    fn edge(&mut self, side: Side, edge: Readiness) {
        self.world.with(|world| {
            let old = &mut world.sockets[side as usize].edge;
            old.readable |= edge.readable;
            old.writable |= edge.writable;
            old.read_closed |= edge.read_closed;
            old.error |= edge.error;
        });
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send(side, len) => self.send(side, len),
            Act::SendUrgent(side, len) => self.send_urgent(side, len),
            Act::Read(side, len) => {
                let freed = self.world.with(|world| {
                    let socket = &mut world.sockets[side as usize];
                    let len = len.min(socket.sent.len());
                    socket.read.extend(socket.sent.drain(..len));
                    len > 0 && core::mem::take(&mut socket.blocked)
                });
                if freed {
                    self.edge(side, Readiness { writable: true, ..Readiness::default() });
                }
            }
            Act::Fin(side) => {
                self.world.with(|world| world.sockets[side as usize].fin_received = true);
                self.edge(side, Readiness { readable: true, read_closed: true, ..Readiness::default() });
            }
            Act::Reset(side) => {
                self.world.with(|world| {
                    let socket = &mut world.sockets[side as usize];
                    socket.reset = true;
                    socket.sent.clear();
                });
                let edge =
                    Readiness { readable: true, read_closed: true, error: true, ..Readiness::default() };
                self.edge(side, edge);
            }
            Act::Report => self.report(),
        }
    }

    fn send(&mut self, side: Side, len: usize) {
        let over = self.world.with(|world| {
            let socket = &world.sockets[side as usize];
            socket.fin_received || socket.reset
        });
        if over || len == 0 {
            return;
        }
        for _ in 0..len {
            self.next = self.next.wrapping_mul(5).wrapping_add(3);
            self.wrote[side as usize].push(self.next);
            self.world.with(|world| world.sockets[side as usize].received.push_back(self.next));
        }
        self.world.with(|world| world.sockets[side as usize].starved = false);
        self.edge(side, Readiness { readable: true, ..Readiness::default() });
    }

    fn send_urgent(&mut self, side: Side, len: usize) {
        let before = self.wrote[side as usize].len();
        self.send(side, len);
        let position = self.wrote[side as usize].len();
        if position > before {
            self.marks[side as usize].push(position - 1);
            self.world.with(|world| {
                let socket = &mut world.sockets[side as usize];
                socket.mark = socket.received.len().checked_sub(1);
            });
        }
    }

    /// Reports readiness, like an event loop.
    fn report(&mut self) {
        for side in Side::ALL {
            let edge = self.world.with(|world| {
                let socket = &mut world.sockets[side as usize];
                Readiness { urgent: socket.mark.is_some(), ..core::mem::take(&mut socket.edge) }
            });
            let quiet = Readiness { urgent: edge.urgent, ..Readiness::default() };
            if edge != quiet {
                self.bypass.on_readiness(self.id, side, edge, self.now);
            }
        }
        self.bypass.run(self.now);
        self.bypass.take_turns(&mut self.limit, self.now);
    }

    /// Runs until nothing more happens, with peers that read.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let before = self.world.with(|world| {
                (
                    world.sockets.each_ref().map(|socket| (socket.read.len(), socket.received.len())),
                    world.edges(),
                )
            });
            for side in Side::ALL {
                self.act(Act::Read(side, 7));
            }
            self.report();
            if let Some(due) = self.bypass.next_deadline() {
                self.now = self.now.max(due);
                self.bypass.on_deadlines(self.now);
            }
            if let Some(due) = self.limit.next() {
                self.now = self.now.max(due);
            }
            let after = self.world.with(|world| {
                (
                    world.sockets.each_ref().map(|socket| (socket.read.len(), socket.received.len())),
                    world.edges(),
                )
            });
            let next = self.bypass.next_deadline().or(self.limit.next());
            if before == after && !self.bypass.has_runnable() && next.is_none() {
                assert!(!self.world.with(|world| world.overtaken));
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn read(&self, side: Side) -> Vec<u8> {
        self.world.with(|world| world.sockets[side as usize].read.clone())
    }

    /// Positions of the urgent bytes that were sent to a side.
    fn urgent_sent(&self, side: Side) -> Vec<usize> {
        self.world.with(|world| world.sockets[side as usize].urgent_sent.clone())
    }

    fn fin_sent(&self, side: Side) -> bool {
        self.world.with(|world| world.sockets[side as usize].fin_sent)
    }
}

impl World {
    fn edges(&self) -> usize {
        self.sockets.iter().filter(|socket| socket.edge != Readiness::default()).count()
    }
}

const A: Side = Side::Accepted;
const B: Side = Side::Connected;

/// A send can fail, for lack of memory, on a socket whose peer is there and waits.
#[test]
fn a_failed_send_resets_both_sides() {
    let mut case = Case::new(100, 10);
    case.world.with(|world| world.sockets[B as usize].broken = true);
    case.act(Act::Send(A, 5));
    case.act(Act::Report);
    assert!(case.bypass.is_empty() && case.world.with(|world| world.reset_on_close));

    // The end of a stream is sent, too.
    let mut case = Case::new(100, 10);
    case.world.with(|world| world.sockets[B as usize].broken = true);
    case.act(Act::Fin(A));
    case.act(Act::Report);
    case.act(Act::Report);
    assert!(case.bypass.is_empty() && case.world.with(|world| world.reset_on_close));
}

/// Bytes that the accepted socket gets before both sockets are connected may have to wait for the event that reports
/// them.
#[test]
fn the_first_bytes_wait_for_an_event_if_requested() {
    for (readable, taken) in [(true, 5), (false, 0)] {
        let world = Handle::new(100, 10);
        let mut bypass = Bypass::new(10);
        let id = bypass.insert(Sockets(world.clone()), readable, Account::NONE).unwrap();
        world.with(|world| world.sockets[A as usize].received.extend([0; 5]));
        let sent = || world.with(|world| world.sockets[B as usize].sent.len());
        let now = Instant::default();
        bypass.on_readiness(id, B, Readiness { writable: true, ..Readiness::default() }, now);
        assert_eq!(sent(), taken);
        bypass.on_readiness(id, A, Readiness { readable: true, ..Readiness::default() }, now);
        assert_eq!(sent(), 5);
    }
}

/// all bytes arrive in order, the end of the stream arrives after them, and the halves end independently.
#[test]
fn half_closes_are_passed_on_one_by_one_r84() {
    let mut case = Case::new(10, 3);
    case.act(Act::Send(A, 100));
    case.act(Act::Fin(A));
    case.settle();
    assert_eq!(case.read(B), case.wrote[A as usize]);
    assert!(case.fin_sent(B) && !case.fin_sent(A));
    assert_eq!(case.bypass.len(), 1, "the other half is open");
    case.act(Act::Send(B, 50));
    case.act(Act::Fin(B));
    case.settle();
    assert_eq!(case.read(A), case.wrote[B as usize]);
    assert!(case.fin_sent(A) && case.bypass.is_empty());
    assert!(!case.world.with(|world| world.reset_on_close));
}

/// docs/flow-log.md: the report of the end has the bytes of both directions, as the guest sees them.
#[test]
fn an_end_has_the_bytes_of_both_directions() {
    for (direction, reset, expected) in [
        (Direction::Outbound, false, (How::Closed, 100, 50)),
        (Direction::Inbound, false, (How::Closed, 50, 100)),
        (Direction::Inbound, true, (How::Reset, 50, 100)),
    ] {
        let mut journal = Journal::default();
        let mut guard = Guard::default();
        guard.report_to(journal.events.clone());
        let at = "127.0.0.1:80".parse().unwrap();
        let ends = Endpoints { guest: at, remote: at };
        let account = guard.begin_bypass(Protocol::Tcp, direction, ends, Instant::default());
        let mut case = Case::with(10, 3, account, RateLimit::default());
        case.act(Act::Send(A, 100));
        case.act(Act::Send(B, 50));
        case.settle();
        case.act(if reset { Act::Reset(A) } else { Act::Fin(A) });
        case.act(Act::Fin(B));
        case.settle();
        case.bypass.report_exit();
        journal.read();
        let (how, sent, received) = expected;
        assert_eq!(journal.how(), [how]);
        assert_eq!(journal.ends[0].totals, Some(Totals::bytes(sent, received)));
        assert!(journal.ends[0].flow.start.bypasses);
    }
}

/// The first bytes of a client are forwarded when the other connection is established. This needs no event for these
/// bytes.
#[test]
fn first_bytes_do_not_wait_for_an_event() {
    let mut case = Case::new(10, 3);
    case.act(Act::Send(A, 5));
    case.world.with(|world| world.sockets[A as usize].edge = Readiness::default());
    case.report();
    assert_eq!(case.world.with(|world| world.sockets[B as usize].sent.len()), 5);
}

/// The same applies if the first byte is urgent.
#[test]
fn the_first_byte_may_be_urgent() {
    let mut case = Case::new(10, 3);
    case.act(Act::SendUrgent(A, 1));
    case.world.with(|world| world.sockets[A as usize].edge = Readiness::default());
    case.report();
    assert_eq!(case.urgent_sent(B), [0]);
}

/// A caller resets a connection, for example, if a socket can't be watched.
#[test]
fn a_connection_can_be_reset() {
    let mut case = Case::new(10, 3);
    case.bypass.reset(case.id, case.now);
    assert!(case.world.with(|world| world.reset_on_close) && case.bypass.conduit(case.id).is_none());
    assert_eq!(case.bypass.counters, Counters { opened: 1, refused: 0, reset: 1 });
}

/// R-85, behaviour §6.11: a reset is forwarded as a reset, after the bytes that were received before it.
#[test]
fn a_reset_follows_the_bytes_before_it_r85() {
    let mut case = Case::new(10, 3);
    case.report();
    case.act(Act::Send(B, 100));
    case.act(Act::Reset(B));
    case.report();
    assert!(!case.world.with(|world| world.reset_on_close), "the reset overtakes bytes");
    case.settle();
    assert_eq!(case.read(A), case.wrote[B as usize]);
    assert!(!case.fin_sent(A));
    assert!(case.world.with(|world| world.reset_on_close) && case.bypass.is_empty());
    assert_eq!(case.bypass.counters, Counters { opened: 1, refused: 0, reset: 1 });
}

/// R-87, behaviour §6.11: a client of a port whose target is closed gets a reset.
#[test]
fn a_refused_connection_is_reset_r87() {
    let mut case = Case::new(10, 3);
    case.world.with(|world| world.sockets[B as usize].edge = Readiness::default());
    case.act(Act::Send(A, 5));
    case.report();
    assert_eq!(
        case.world.with(|world| world.sockets[A as usize].received.len()),
        5,
        "nothing is taken before the connection is established"
    );
    case.act(Act::Reset(B));
    case.settle();
    assert!(case.world.with(|world| world.reset_on_close) && case.bypass.is_empty());
}

/// Sockets are not closed before all sent bytes are acknowledged.
#[test]
fn sockets_stay_open_until_everything_is_acknowledged() {
    let mut case = Case::new(100, 100);
    case.act(Act::Send(A, 60));
    case.act(Act::Fin(A));
    case.act(Act::Fin(B));
    case.report();
    assert!(case.fin_sent(A) && case.fin_sent(B));
    for _ in 0..20 {
        let due = case.bypass.next_deadline().unwrap();
        case.now = due;
        case.bypass.on_deadlines(due);
        assert_eq!(case.bypass.len(), 1);
    }
    case.act(Act::Read(B, 60));
    case.settle();
    assert!(case.bypass.is_empty());
}

/// calls for a receiver that does not read are not repeated.
#[test]
fn a_blocked_receiver_costs_no_calls_r83() {
    let mut case = Case::new(10, 3);
    case.report();
    for _ in 0..50 {
        case.act(Act::Send(A, 20));
        case.report();
        assert!(!case.bypass.has_runnable() && case.bypass.next_deadline().is_none());
    }
    assert_eq!(case.world.with(|world| world.empty_calls), 0);
    assert!(case.world.with(|world| world.buffered[A as usize].len()) <= 3, "the rest waits in the socket");
    case.settle();
    assert_eq!(case.read(B), case.wrote[A as usize]);
}

fn limit(rate: &str) -> RateLimit {
    RateLimit::new(Some(rate.parse().unwrap()), None, Instant::default())
}

/// docs/design/rate-limit.md: connections share the rate. When a connection fails, the other connections get its share.
#[test]
fn connections_share_a_limited_rate() {
    let mut limit = limit("1M");
    let mut bypass = Bypass::new(10);
    bypass.limit(&limit);
    let worlds = [(); 3].map(|()| Handle::new(usize::MAX, 5000));
    let ids =
        worlds.each_ref().map(|world| bypass.insert(Sockets(world.clone()), true, Account::NONE).unwrap());
    let mut now = Instant::default();
    for id in ids {
        let writable = Readiness { writable: true, ..Readiness::default() };
        bypass.on_readiness(id, B, writable, now);
    }
    let mut moved = |from: usize, bypass: &mut Bypass<Sockets>| {
        let worlds = &worlds[from..];
        let end = now + Duration::from_secs(10);
        while now < end {
            for (world, &id) in worlds.iter().zip(&ids[from..]) {
                world.with(|world| {
                    let missing = 20_000 - world.sockets[A as usize].received.len();
                    world.sockets[A as usize].received.extend(core::iter::repeat_n(7, missing));
                });
                bypass.on_readiness(id, A, Readiness { readable: true, ..Readiness::default() }, now);
            }
            bypass.run(now);
            bypass.take_turns(&mut limit, now);
            assert!(!bypass.has_runnable());
            now = limit.next().unwrap();
        }
        let sent =
            |world: &Handle| world.with(|world| core::mem::take(&mut world.sockets[B as usize].sent).len());
        worlds.iter().map(sent).collect::<Vec<_>>()
    };
    let shares = moved(0, &mut bypass);
    assert!(shares.iter().all(|bytes| bytes.abs_diff(1_250_000 / 3) < 10_000), "{shares:?}");
    bypass.reset(ids[0], Instant::default());
    let shares = moved(1, &mut bypass);
    assert!(shares.iter().all(|bytes| bytes.abs_diff(1_250_000 / 2) < 10_000), "{shares:?}");
}

/// Bytes that can't be sent do not wait for tokens, so they cause no deadline.
#[test]
fn a_blocked_receiver_needs_no_tokens() {
    let mut case = Case::with(10, 3, Account::NONE, limit("1M"));
    case.report();
    case.act(Act::Send(A, 100));
    case.report();
    case.report();
    assert_eq!((case.bypass.next_deadline(), case.limit.next()), (None, None));
    case.settle();
    assert_eq!(case.read(B), case.wrote[A as usize]);
}

/// RFC 9293 §3.8.5: an urgent byte arrives as an urgent byte. It does not matter whether a call stops before it, after
/// it, or before the end.
#[test]
fn urgent_bytes_arrive_as_urgent() {
    for len in 1..20 {
        let mut case = Case::new(10, 3);
        case.report();
        case.act(Act::SendUrgent(A, len));
        case.act(Act::Send(A, 4));
        case.settle();
        case.act(Act::SendUrgent(B, 1));
        case.act(Act::SendUrgent(B, len));
        case.act(Act::Fin(B));
        case.settle();
        assert_eq!(case.urgent_sent(B), [len - 1]);
        assert_eq!(case.urgent_sent(A), [len]);
        assert_eq!((case.read(A), case.read(B)), (case.wrote[1].clone(), case.wrote[0].clone()));
        assert!(case.fin_sent(A));
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let side = prop_oneof![Just(A), Just(B)];
    let act = prop_oneof![
        4 => (side.clone(), 0_usize..300).prop_map(|(side, len)| Act::Send(side, len)),
        2 => (side.clone(), 0_usize..300).prop_map(|(side, len)| Act::SendUrgent(side, len)),
        4 => (side.clone(), 0_usize..300).prop_map(|(side, len)| Act::Read(side, len)),
        1 => side.clone().prop_map(Act::Fin),
        1 => prop_oneof![9 => Just(Act::Report), 1 => side.prop_map(Act::Reset)],
        4 => Just(Act::Report),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// with any sizes and any ends of both sides, every byte arrives unless a reset has discarded it, a FIN
    /// is forwarded as a FIN and a reset as a reset, and no change of readiness is missed.
    #[test]
    fn nothing_is_lost_r84_r85(
        acts in acts(), room in 1_usize..200, most in 1_usize..100, rates: [bool; 2],
    ) {
        // A class has tokens for 4096 bytes. Many runs have more bytes.
        let [out, inbound] = rates.map(|limited| limited.then(|| "100k".parse().unwrap()));
        let mut case = Case::with(room, most, Account::NONE, RateLimit::new(out, inbound, Instant::default()));
        for act in acts {
            case.act(act);
        }
        case.settle();
        let (reset, fin) = case.world.with(|world| {
            (world.sockets.each_ref().map(|s| s.reset), world.sockets.each_ref().map(|s| s.fin_received))
        });
        for from in Side::ALL {
            let to = from.other();
            let (read, wrote) = (case.read(to), &case.wrote[from as usize]);
            prop_assert!(wrote.starts_with(&read));
            if !reset[to as usize] {
                prop_assert_eq!(&read, wrote);
                // A later urgent mark may replace an earlier one. The last mark is never lost.
                let (sent, marks) = (case.urgent_sent(to), &case.marks[from as usize]);
                prop_assert!(sent.iter().all(|position| marks.contains(position)));
                prop_assert_eq!(sent.last(), marks.last());
                // The end of the stream is forwarded, if it was reached before the connection was reset.
                prop_assert!(!case.fin_sent(to) || fin[from as usize]);
                prop_assert!(case.fin_sent(to) || !fin[from as usize] || reset.contains(&true));
            }
        }
        let over = reset.contains(&true) || fin == [true, true];
        prop_assert_eq!(case.bypass.is_empty(), over);
        if reset.contains(&true) && fin != [true, true] {
            prop_assert!(case.world.with(|world| world.reset_on_close));
        }
        prop_assert_eq!(case.bypass.next_deadline(), None);
        prop_assert_eq!(case.limit.next(), None);
    }
}
