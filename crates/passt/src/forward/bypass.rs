//! Local connections, which bypass the link (behaviour §5.3.3, §5.5): where their second socket comes from, and their turns.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};

use engine::flow::FlowId;
use engine::forward::spec::Direction;
use engine::host::Readiness;
use engine::splice::{Conduit, Side};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use rustix::io::{self, Errno};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};

use crate::budgets::Budgets;
use crate::budgets::ledger::{Ledger, Permit};
use crate::event::Source;
use crate::io::readiness;
use crate::io::splice::{Depot, Pair, reset_on_close};
use crate::pasta::netns::Opener;

/// The bypassed connections.
#[derive(Debug)]
pub(crate) struct Bypass {
    flows: engine::splice::Bypass<Pair>,
    depot: Rc<RefCell<Depot>>,
    dialer: Option<Dialer>,
    /// Most sockets that the opener makes ahead.
    ahead: usize,
}

impl Bypass {
    /// No connection, and no way into the guest's namespace yet. Sockets will be watched by `epoll`.
    pub(crate) fn new(epoll: Rc<OwnedFd>, budgets: &Budgets, ledger: Rc<Ledger>) -> Self {
        Self {
            flows: engine::splice::Bypass::new(budgets.local_connections()),
            depot: Depot::new(epoll, ledger),
            dialer: None,
            ahead: budgets.ahead,
        }
    }

    /// Has sockets for the guest's namespace made by `opener`.
    pub(crate) fn start(&mut self, opener: Opener) {
        // Of each of two families, half as many may be left when others are ordered.
        let batch = (self.ahead / 3).max(1);
        self.dialer = Some(Dialer { opener, batch, v4: Stock::default(), v6: Stock::default() });
    }

    /// The connections.
    pub(crate) const fn flows(&self) -> &engine::splice::Bypass<Pair> {
        &self.flows
    }

    /// Goes on with an accepted connection in the other namespace. If that fails at once, it is reset.
    pub(crate) fn open(
        &mut self,
        accepted: OwnedFd,
        permit: Permit,
        direction: Direction,
        destination: SocketAddr,
        now: Instant,
    ) {
        let (connecting, stands) = match self.connect(direction, destination) {
            Ok(socket) => socket,
            Err(errno) => {
                log::debug!("local connection to {destination} not forwarded: {errno}");
                self.flows.counters.refused += 1;
                return reset_on_close(&accepted);
            }
        };
        let pair = Pair::new(accepted, connecting, direction, destination.ip(), self.depot.clone(), permit);
        let id = match self.flows.insert(pair) {
            Ok(id) => id,
            Err(mut refused) => {
                self.flows.counters.refused += 1;
                return refused.reset_on_close();
            }
        };
        log::debug!("{id}: {direction:?}, to {destination}");
        // What the client has sent by now goes on before anything else is done.
        if stands {
            let writable = Readiness { writable: true, ..Readiness::default() };
            self.flows.on_readiness(id, Side::Connected, writable, now);
        }
        let watched = self.flows.conduit(id).is_none_or(|pair| {
            let word = |side| Source::Bypass(id, side).word();
            pair.watch(Side::Accepted, word(Side::Accepted), false).is_ok()
                && pair.watch(Side::Connected, word(Side::Connected), !stands).is_ok()
        });
        if !watched {
            self.flows.reset(id, now);
        }
    }

    /// A socket on its way to `destination`, and whether it is there.
    fn connect(&mut self, direction: Direction, destination: SocketAddr) -> io::Result<(OwnedFd, bool)> {
        let socket = match direction {
            Direction::Outbound => stream_socket(destination.is_ipv4())?,
            Direction::Inbound => {
                self.dialer.as_mut().ok_or(Errno::NETUNREACH)?.socket(destination.is_ipv4())?
            }
        };
        // Between addresses of one namespace, the handshake is over when the first call returns, but only the second
        // one says how it went.
        match connect(&socket, &destination) {
            Err(Errno::INPROGRESS) => {}
            connected => return connected.map(|()| (socket, true)),
        }
        match connect(&socket, &destination) {
            Err(Errno::ALREADY) => Ok((socket, false)),
            connected => connected.map(|()| (socket, true)),
        }
    }

    /// The direction of what a bypassed connection's socket receives.
    pub(crate) fn direction(&mut self, id: FlowId, side: Side) -> Option<Direction> {
        Some(self.flows.conduit(id)?.way(side))
    }

    /// Copies what that socket has received to `buffer`, which stays in the socket. Returns from what address it came,
    /// and how many bytes were copied.
    pub(crate) fn peek(&mut self, id: FlowId, side: Side, buffer: &mut [u8]) -> Option<(IpAddr, usize)> {
        let pair = self.flows.conduit(id)?;
        Some((pair.source(side), pair.peek(side, buffer)))
    }

    /// Handles an event of a bypassed connection's socket.
    pub(crate) fn on_event(&mut self, id: FlowId, side: Side, events: EventFlags, now: Instant) {
        self.flows.on_readiness(id, side, readiness(events), now);
    }

    /// Whether connections wait for their turn.
    pub(crate) fn has_runnable(&self) -> bool {
        self.flows.has_runnable()
    }

    /// When there is something to do next, whatever is reported.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.flows.next_deadline()
    }

    /// Does what is due, and gives turns.
    pub(crate) fn finish_round(&mut self, now: Instant) {
        if self.flows.next_deadline().is_some_and(|due| due <= now) {
            self.flows.on_deadlines(now);
        }
        if self.flows.has_runnable() {
            self.flows.run(now);
        }
    }
}

/// Sockets in the guest's namespace. The opener makes many at a time, and more before they are used up, so that a
/// connection seldom waits for it.
#[derive(Debug)]
struct Dialer {
    opener: Opener,
    /// How many sockets of a family are made at a time.
    batch: usize,
    v4: Stock,
    v6: Stock,
}

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    ordered: Option<Receiver<io::Result<Vec<OwnedFd>>>>,
}

impl Dialer {
    fn socket(&mut self, v4: bool) -> io::Result<OwnedFd> {
        let batch = self.batch;
        let stock = if v4 { &mut self.v4 } else { &mut self.v6 };
        if stock.sockets.len() <= batch / 2 && stock.ordered.is_none() {
            stock.ordered = Some(self.opener.begin(move || make(v4, batch)));
        }
        let made = match &stock.ordered {
            None => None,
            // Waits only if there is nothing else.
            Some(ordered) if stock.sockets.is_empty() => Some(ordered.recv().unwrap_or(Err(Errno::PIPE))),
            Some(ordered) => match ordered.try_recv() {
                Ok(made) => Some(made),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(Errno::PIPE)),
            },
        };
        if let Some(made) = made {
            stock.ordered = None;
            // An error is one when there is nothing else, and then comes up again.
            match made {
                Ok(made) => stock.sockets.extend(made),
                Err(errno) if stock.sockets.is_empty() => return Err(errno),
                Err(_) => {}
            }
        }
        stock.sockets.pop().ok_or(Errno::MFILE)
    }
}

/// Up to `count` sockets, at least one.
fn make(v4: bool, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut made = vec![stream_socket(v4)?];
    made.extend((1..count).map_while(|_| stream_socket(v4).ok()));
    Ok(made)
}

fn stream_socket(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(socket.as_fd(), true)?;
    sockopt::set_socket_oobinline(socket.as_fd(), true)?; // urgent data are part of the stream
    Ok(socket)
}
