//! TCP connections that bypass the link. Each has two sockets of the host's kernel, one in each namespace. Bytes that
//! one socket receives are sent by the other socket (behaviour §6.11).
//!
//! [`relay`] handles one connection. This module finds the connection for an event, gives turns to connections, and
//! ends them.

mod relay;
#[cfg(test)]
mod tests;
mod turns;

use alloc::collections::VecDeque;

use self::{
    relay::{Next, Relay},
    turns::Waiting,
};
use crate::{
    allocation,
    events::{Account, How},
    flow::{FlowId, Kind, Slots},
    forward::spec::Direction,
    host::{Readiness, SocketError},
    listing::{Lister, Page},
    timer::{Deadline, Instant, Timers},
};

/// One of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The accepted socket.
    Accepted = 0,
    /// The socket that is connected in the other namespace.
    Connected = 1,
}

impl Side {
    /// Both sides.
    pub const ALL: [Self; 2] = [Self::Accepted, Self::Connected];

    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Accepted => Self::Connected,
            Self::Connected => Self::Accepted,
        }
    }
}

/// Bytes taken from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Number of bytes. Zero means the end of the stream.
    pub len: usize,
    /// Whether there may be more bytes, without another report of readiness.
    pub more: bool,
}

/// Two non-blocking stream sockets, and for each direction a buffer for bytes between the sockets.
///
/// Readiness is edge-triggered: each change is reported once. Readiness to send is reported only after a send has
/// returned [`SocketError::WouldBlock`].
pub trait Conduit {
    /// The direction of the bytes that the socket `from` receives.
    fn direction(&self, from: Side) -> Direction;

    /// Takes received bytes from the socket `from`. The buffer of this direction must be empty. The next call must be
    /// `give`, before another conduit takes bytes.
    ///
    /// At most `at_most` bytes are taken. `at_most` is not zero.
    ///
    /// With `urgent`, there may be an urgent byte among the received bytes. Then the taken bytes end before the urgent
    /// byte, or consist of the urgent byte alone. `give` sends it as an urgent byte.
    ///
    /// # Errors
    /// See [`SocketError`]. [`SocketError::WouldBlock`] means that there are no received bytes.
    fn take(&mut self, from: Side, urgent: bool, at_most: usize) -> Result<Taken, SocketError>;

    /// Sends the bytes that were taken from `from` to the other socket. Returns how many bytes were sent, at least one.
    /// The other bytes stay in the buffer.
    ///
    /// # Errors
    /// See [`SocketError`]. [`SocketError::WouldBlock`] means that the other socket accepts no bytes now.
    fn give(&mut self, from: Side) -> Result<usize, SocketError>;

    /// Ends the sending half of a socket's stream, after all bytes that were sent before.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn shutdown_write(&mut self, side: Side) -> Result<(), SocketError>;

    /// Receives no more bytes at a socket: after the bytes that it has received already, `take` finds the end of the
    /// stream. The peer gets no FIN: it would take it for the end of complete data.
    fn abandon(&mut self, side: Side);

    /// Number of bytes (FIN counts as one) that were sent to a socket's peer but are not yet acknowledged by the peer.
    fn unacknowledged(&mut self, side: Side) -> u32;

    /// Makes the next close of both sockets send a reset instead of a FIN.
    fn reset_on_close(&mut self);
}

/// Counts of bypassed connections since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were begun.
    pub opened: u64,
    /// Connections that were refused: the limit was reached, or no socket could be opened.
    pub refused: u64,
    /// Connections that ended with a reset.
    pub reset: u64,
}

/// All bypassed connections.
#[derive(Debug)]
pub struct Bypass<C> {
    relays: Slots<Entry<C>>,
    /// Connections that have more bytes to move, but have used their turn.
    runnable: VecDeque<FlowId>,
    /// The sides whose bytes wait for tokens.
    waiting: Waiting,
    timers: Timers<FlowId>,
    /// Counts since the start.
    pub counters: Counters,
}

#[derive(Debug)]
struct Entry<C> {
    relay: Relay<C>,
    runnable: bool,
    /// Whether each side is in a list of sides that wait for tokens.
    awaits_turn: [bool; 2],
    deadline: Deadline,
    /// Reports the end of the connection.
    account: Account,
}

impl<C: Conduit> Entry<C> {
    fn report_end(&mut self, how: How) {
        let [requests, replies] = self.relay.carried();
        self.account.close_bytes(how, requests, replies);
    }
}

impl<C: Conduit> Bypass<C> {
    /// An empty table for at most `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            relays: Slots::new(Kind::Splice, limit),
            runnable: VecDeque::new(),
            waiting: Waiting::default(),
            timers: Timers::default(),
            counters: Counters::default(),
        }
    }

    /// Memory of a connection, in bytes: its slot, its deadline, and its places in the lists.
    pub const BYTES: usize =
        Slots::<Entry<C>>::BYTES + Timers::<FlowId>::BYTES + size_of::<FlowId>() + Waiting::BYTES;

    /// Reserves memory for `limit` connections, so that the tables do not grow. Returns false if there is none.
    #[must_use]
    pub fn reserve(&mut self, limit: usize) -> bool {
        let Self { relays, timers, runnable, waiting, .. } = self;
        relays.reserve(limit)
            && timers.reserve(limit)
            && allocation::reserve_exact([runnable], limit + 1)
            && waiting.reserve(limit + 1)
    }

    /// Number of connections.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.relays.len()
    }

    /// Whether there are no connections.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// Adds a connection. It has an accepted socket, and a socket that is connecting. If the second socket is already
    /// connected, the caller must report its readiness. `readable` is whether bytes of the accepted socket may be
    /// taken before an event reports them. `account` is closed when the connection ends.
    ///
    /// # Errors
    /// Returns the sockets, if the limit is reached or there is no memory.
    pub fn insert(&mut self, conduit: C, readable: bool, account: Account) -> Result<FlowId, C> {
        let limited = Side::ALL.map(|side| self.waiting.is_limited(conduit.direction(side)));
        let relay = Relay::new(conduit, readable, limited);
        let entry =
            Entry { relay, runnable: false, awaits_turn: [false; 2], deadline: Deadline::NONE, account };
        let Self { relays, timers, runnable, waiting, .. } = self;
        let has_memory = relays.next_timed_id(timers).is_some()
            && allocation::reserve([runnable], relays.slots())
            && waiting.reserve(relays.slots());
        let inserted = if has_memory { relays.insert(entry) } else { Err(entry) };
        let id = inserted.map_err(|mut entry| {
            entry.report_end(How::Displaced);
            entry.relay.into_conduit()
        })?;
        self.counters.opened += 1;
        Ok(id)
    }

    /// The sockets of all connections that have not ended, with their ids.
    pub fn conduits(&self) -> impl Iterator<Item = (FlowId, &C)> {
        self.relays.iter().map(|(id, entry)| (id, entry.relay.peek_conduit()))
    }

    /// The sockets of a connection that has not ended.
    pub fn conduit(&mut self, id: FlowId) -> Option<&mut C> {
        self.relays.get_mut(id).map(|entry| entry.relay.conduit())
    }

    /// Reports the end of all connections, because the program ends.
    pub fn report_exit(&mut self) {
        self.relays.values_mut().for_each(|entry| entry.report_end(How::Exit));
    }

    /// Resets a connection.
    pub fn reset(&mut self, id: FlowId, now: Instant) {
        self.step(id, now, Relay::reset);
    }

    /// Resets a connection that the new rules deny.
    pub fn forbid(&mut self, id: FlowId, now: Instant) {
        if let Some(entry) = self.relays.get_mut(id) {
            entry.report_end(How::Forbidden);
        }
        self.reset(id, now);
    }

    /// Lists the connections of a page. Returns the next slot, if there are more slots.
    pub fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let (relays, next) = self.relays.page_mut(page.from, page.slots);
        for (id, Entry { relay, account, .. }) in relays {
            lister.add((id, account), relay.state(), None, |listed| {
                let [requests, replies] = relay.carried();
                listed.totals = Some(listed.flow.start.totals(requests, replies));
            });
        }
        next
    }

    /// Resets a connection, if it still has this number. Returns whether it has.
    pub fn end_requested(&mut self, id: FlowId, number: u64, now: Instant) -> bool {
        let Some(entry) = self.relays.get_mut(id).filter(|entry| entry.account.is_of(number)) else {
            return false;
        };
        entry.report_end(How::Requested);
        self.reset(id, now);
        true
    }

    /// Handles the readiness of a socket.
    pub fn on_readiness(&mut self, id: FlowId, side: Side, readiness: Readiness, now: Instant) {
        self.step(id, now, |relay| relay.on_readiness(side, readiness));
    }

    /// Whether connections wait for their turn.
    #[must_use]
    pub fn has_runnable(&self) -> bool {
        !self.runnable.is_empty()
    }

    /// Gives a turn to every connection that waits for one.
    pub fn run(&mut self, now: Instant) {
        for _ in 0..self.runnable.len() {
            let Some(id) = self.runnable.pop_front() else { break };
            if let Some(entry) = self.relays.get_mut(id) {
                entry.runnable = false;
                self.step(id, now, Relay::proceed);
            }
        }
    }

    /// The time at which [`Bypass::on_deadlines`] must be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Handles the deadlines that have been reached.
    pub fn on_deadlines(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop_due(now) {
            let Some(entry) = self.relays.get_mut(id) else { continue };
            if entry.deadline.reached(now, &mut self.timers, id) {
                self.step(id, now, Relay::proceed);
            }
        }
    }

    /// Runs one step of one connection, and handles the result.
    fn step(&mut self, id: FlowId, now: Instant, step: impl FnOnce(&mut Relay<C>) -> Next) {
        let Some(entry) = self.relays.get_mut(id) else { return };
        let next = step(&mut entry.relay);
        self.waiting.note(id, entry);
        match next {
            Next::Wait => {}
            Next::Run if entry.runnable => {}
            Next::Run => {
                entry.runnable = true;
                allocation::push(&mut self.runnable, id, |&id| self.relays.get(id).is_some());
            }
            Next::CheckAfter(after) => entry.deadline.set(Some(now + after), &mut self.timers, id),
            Next::End { reset } => {
                entry.deadline.withdraw(&mut self.timers, id);
                self.counters.reset += u64::from(reset);
                entry.report_end(if reset { How::Reset } else { How::Closed });
                self.relays.remove(id);
            }
        }
    }
}
