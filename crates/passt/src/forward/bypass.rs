//! Local connections bypass the link (behaviour §5.3.3, §5.5). This module opens the second socket of such a
//! connection, and decides when the connection forwards bytes.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};

use engine::events::Account;
use engine::flow::{Endpoints, FlowId, Protocol};
use engine::forward::spec::Direction;
use engine::guard::Guard;
use engine::host::Readiness;
use engine::listing::{Lister, Page};
use engine::rate_limit::RateLimit;
use engine::splice::{Conduit, Side};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use rustix::io::{self, Errno};
use rustix::net::connect;

use crate::budgets::Budgets;
use crate::budgets::ledger::{Ledger, Permit};
use crate::errno::to_engine;
use crate::event::Source;
use crate::io::splice::{Pair, Shared, reset_on_close};
use crate::io::{readiness, stream_socket};
use crate::pasta::netns::Opener;

/// The bypassed connections.
#[derive(Debug)]
pub(crate) struct Bypass {
    flows: engine::splice::Bypass<Pair>,
    shared: Rc<RefCell<Shared>>,
    dialer: Option<Dialer>,
    /// Maximum number of sockets that the opener opens before a connection needs them.
    ahead: usize,
}

/// An accepted connection to be forwarded into the other namespace.
pub(crate) struct Client {
    /// The accepted socket.
    pub(crate) socket: OwnedFd,
    /// The client's address.
    pub(crate) address: Option<SocketAddr>,
    /// Permits the two sockets of the connection.
    pub(crate) permit: Permit,
    /// The direction of the rule.
    pub(crate) direction: Direction,
    /// The destination in the other namespace.
    pub(crate) destination: SocketAddr,
    /// Whether bytes that the client has sent by now may be forwarded before an event reports them.
    pub(crate) may_have_sent: bool,
    /// Reports the end of the connection.
    pub(crate) account: Account,
}

impl Bypass {
    /// Memory of a connection, in bytes.
    pub(crate) const CONNECTION_BYTES: usize = engine::splice::Bypass::<Pair>::BYTES;

    /// Creates an empty set of connections. Sockets can't be opened in the guest's namespace before [`Bypass::start`].
    /// `epoll` watches the sockets.
    pub(crate) fn new(epoll: Rc<OwnedFd>, budgets: &Budgets, ledger: Rc<Ledger>) -> Self {
        Self {
            flows: engine::splice::Bypass::new(budgets.local_connections()),
            shared: Shared::new(epoll, ledger),
            dialer: None,
            ahead: budgets.ahead,
        }
    }

    /// Reserves memory for the table at its limit. Returns false if there is none.
    pub(crate) fn reserve(&mut self, budgets: &Budgets) -> bool {
        self.flows.reserve(budgets.local_connections())
    }

    /// Makes `opener` open sockets in the guest's namespace from now on.
    pub(crate) fn start(&mut self, opener: Opener) {
        // At most one and a half batches of each of the two families exist: the next batch is ordered when half a batch
        // is left.
        let batch = (self.ahead / 3).max(1);
        self.dialer = Some(Dialer { opener, batch, v4: Supply::default(), v6: Supply::default() });
    }

    /// Lists the connections of a page. See [`engine::splice::Bypass::list`].
    pub(crate) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        self.flows.list(page, lister)
    }

    /// Resets a connection, if it still has this number. Returns whether it has.
    pub(crate) fn end_requested(&mut self, id: FlowId, number: u64, now: Instant) -> bool {
        self.flows.end_requested(id, number, now)
    }

    /// Reports the end of all connections, because the program ends.
    pub(crate) fn report_exit(&mut self) {
        self.flows.report_exit();
    }

    /// The bypassed connections.
    pub(crate) const fn flows(&self) -> &engine::splice::Bypass<Pair> {
        &self.flows
    }

    /// Forwards an accepted connection into the other namespace. If an error occurs at once, the connection is reset.
    pub(crate) fn open(&mut self, client: Client, now: Instant) {
        let Client { socket: accepted, address, permit, direction, destination, may_have_sent, mut account } =
            client;
        let (connecting, connected) = match self.connect(direction, destination) {
            Ok(socket) => socket,
            Err(errno) => {
                let hint = refusal_hint(direction, destination, errno);
                log::debug!("local connection to {destination} not forwarded: {errno}{hint}");
                self.flows.counters.refused += 1;
                account.close_unopened(to_engine(errno));
                return reset_on_close(&accepted);
            }
        };
        let pair = Pair::new(accepted, connecting, direction, destination.ip(), self.shared.clone(), permit);
        let ends = address.map(|guest| Endpoints { guest, remote: destination });
        let pair = pair.begun_by_guest(ends.filter(|_| direction == Direction::Outbound));
        let id = match self.flows.insert(pair, may_have_sent, account) {
            Ok(id) => id,
            Err(mut refused) => {
                self.flows.counters.refused += 1;
                return refused.reset_on_close();
            }
        };
        log::debug!("{id}: {direction:?}, to {destination}");
        // Bytes that the client has already sent are forwarded before the sockets are watched.
        if connected {
            let writable = Readiness { writable: true, ..Readiness::default() };
            self.flows.on_readiness(id, Side::Connected, writable, now);
        }
        let watched = self.flows.conduit(id).is_none_or(|pair| {
            let word = |side| Source::Bypass(id, side).word();
            pair.watch(Side::Accepted, word(Side::Accepted), false).is_ok()
                && pair.watch(Side::Connected, word(Side::Connected), !connected).is_ok()
        });
        if !watched {
            self.flows.reset(id, now);
        }
    }

    /// Resets the connections that clients in the guest's namespace have opened, if the current rules deny them.
    pub(crate) fn review(&mut self, guard: &mut Guard, now: Instant) {
        let of_guest = self.flows.conduits().filter_map(|(id, pair)| Some((id, pair.guests_ends()?)));
        for (id, ends) in of_guest.collect::<Vec<_>>() {
            if !guard.still_admits_bypass(Protocol::Tcp, ends, now) {
                log::debug!("{id}: forbidden by new rules");
                self.flows.forbid(id, now);
            }
        }
    }

    /// Returns a socket that connects to `destination`, and whether the socket is connected already.
    fn connect(&mut self, direction: Direction, destination: SocketAddr) -> io::Result<(OwnedFd, bool)> {
        let socket = match direction {
            Direction::Outbound => stream_socket(destination.is_ipv4())?,
            Direction::Inbound => {
                self.dialer.as_mut().ok_or(Errno::NETUNREACH)?.socket(destination.is_ipv4())?
            }
        };
        // Between addresses of one namespace, the handshake is complete when the first call returns. Only a second call
        // returns the result of the handshake.
        match connect(&socket, &destination) {
            // After a signal, the socket goes on connecting (connect(2)).
            Err(Errno::INPROGRESS | Errno::INTR) => {}
            connected => return connected.map(|()| (socket, true)),
        }
        match connect(&socket, &destination) {
            Err(Errno::ALREADY | Errno::INTR) => Ok((socket, false)),
            connected => connected.map(|()| (socket, true)),
        }
    }

    /// The direction of the bytes that the socket of a bypassed connection receives.
    pub(crate) fn direction(&mut self, id: FlowId, side: Side) -> Option<Direction> {
        Some(self.flows.conduit(id)?.direction(side))
    }

    /// Copies bytes that the socket has received to `buffer`. The bytes stay in the socket. Returns the address of the
    /// sender and the number of bytes.
    pub(crate) fn peek(&mut self, id: FlowId, side: Side, buffer: &mut [u8]) -> Option<(IpAddr, usize)> {
        let pair = self.flows.conduit(id)?;
        Some((pair.source(side), pair.peek(side, buffer)))
    }

    /// Handles an event of a bypassed connection's socket.
    pub(crate) fn on_event(&mut self, id: FlowId, side: Side, events: EventFlags, now: Instant) {
        self.flows.on_readiness(id, side, readiness(events), now);
    }

    /// Applies `limit` to new connections.
    pub(crate) fn limit(&mut self, limit: &RateLimit) {
        self.flows.limit(limit);
    }

    /// Makes connections with pending work forward their bytes, as far as `limit` allows. Also handles deadlines that
    /// have passed.
    pub(crate) fn finish_round(&mut self, limit: &mut RateLimit, now: Instant) {
        if self.flows.next_deadline().is_some_and(|due| due <= now) {
            self.flows.on_deadlines(now);
        }
        if self.flows.has_runnable() {
            self.flows.run(now);
        }
        self.flows.take_turns(limit, now);
    }
}

/// A supply of sockets in the guest's namespace. The opener makes the next batch of sockets before the present batch is
/// used up, so a connection rarely waits for the opener.
#[derive(Debug)]
struct Dialer {
    opener: Opener,
    /// How many sockets of one family are made at a time.
    batch: usize,
    v4: Supply,
    v6: Supply,
}

/// Sockets of one family that no connection uses yet.
#[derive(Debug, Default)]
struct Supply {
    sockets: Vec<OwnedFd>,
    /// A batch that the opener is making.
    ordered: Option<Receiver<io::Result<Vec<OwnedFd>>>>,
}

impl Dialer {
    fn socket(&mut self, v4: bool) -> io::Result<OwnedFd> {
        let batch = self.batch;
        let supply = if v4 { &mut self.v4 } else { &mut self.v6 };
        if supply.sockets.len() <= batch / 2 && supply.ordered.is_none() {
            supply.ordered = Some(self.opener.begin(move || make(v4, batch)));
        }
        let made = match &supply.ordered {
            None => None,
            // This waits only if no socket is left.
            Some(ordered) if supply.sockets.is_empty() => Some(ordered.recv().unwrap_or(Err(Errno::PIPE))),
            Some(ordered) => match ordered.try_recv() {
                Ok(made) => Some(made),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(Errno::PIPE)),
            },
        };
        if let Some(made) = made {
            supply.ordered = None;
            // While sockets are left, an error does not matter: the next order reports the error again.
            match made {
                Ok(made) => supply.sockets.extend(made),
                Err(errno) if supply.sockets.is_empty() => return Err(errno),
                Err(_) => {}
            }
        }
        supply.sockets.pop().ok_or(Errno::MFILE)
    }
}

/// Makes up to `count` sockets, but at least one.
fn make(v4: bool, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut made = vec![stream_socket(v4)?];
    made.extend((1..count).map_while(|_| stream_socket(v4).ok()));
    Ok(made)
}

/// What the user can do if the guest refuses a connection that the host's loopback began. The usual reason is a server
/// on the namespace's own loopback: the connection goes to the guest's address (behaviour §5.5).
fn refusal_hint(direction: Direction, destination: SocketAddr, errno: Errno) -> &'static str {
    match (direction, errno) {
        (Direction::Inbound, Errno::CONNREFUSED) if !destination.ip().is_loopback() => {
            " (a server that listens on the namespace's loopback is reached with --host-lo-to-ns-lo)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_for_refusals_at_the_guests_address() {
        let guest = "192.0.2.2:80".parse().unwrap();
        let loopback = "127.0.0.1:80".parse().unwrap();
        let hint = |direction, to, errno| refusal_hint(direction, to, errno).contains("--host-lo-to-ns-lo");
        assert!(hint(Direction::Inbound, guest, Errno::CONNREFUSED));
        assert!(!hint(Direction::Inbound, loopback, Errno::CONNREFUSED));
        assert!(!hint(Direction::Inbound, guest, Errno::TIMEDOUT));
        assert!(!hint(Direction::Outbound, guest, Errno::CONNREFUSED));
    }
}
