//! TCP connections that bypass the link: two sockets of the host's kernel, one in each namespace. Bytes received
//! from one are sent by the other (behaviour §6.11).
//!
//! [`relay`] is one connection; this module finds it for an event, gives it its turns, and ends it.

mod relay;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;

use self::relay::{Next, Relay};
use crate::{
    flow::{FlowId, Kind, Slots},
    host::{Readiness, SocketError},
    timer::{Deadline, Instant, Timers},
};

/// One of the two sockets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The one that was accepted.
    Accepted = 0,
    /// The one that is connected in the other namespace.
    Connected = 1,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Accepted, Self::Connected];

    /// The other one.
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
    /// How many bytes. Zero is the end of the stream.
    pub len: usize,
    /// There may be more bytes, without another report of readiness.
    pub more: bool,
}

/// Two non-blocking stream sockets, and for each direction a buffer for bytes on their way from one to the other.
///
/// Readiness is edge-triggered: each change is reported once. That a socket can send is reported only after a send has
/// returned [`SocketError::WouldBlock`].
pub trait Conduit {
    /// Takes received bytes from the socket `from`, whose direction has none in its buffer. The next call has to be
    /// `give`, before another conduit takes bytes.
    ///
    /// With `urgent`, there may be an urgent byte among the received ones. What is taken then ends before that byte, or
    /// is that byte alone, which is given as an urgent one.
    ///
    /// # Errors
    /// See [`SocketError`]; [`SocketError::WouldBlock`] means that there are none.
    fn take(&mut self, from: Side, urgent: bool) -> Result<Taken, SocketError>;

    /// Sends buffered bytes from `from` to the other socket. Returns how many, at least one; the others stay buffered.
    ///
    /// # Errors
    /// See [`SocketError`]; [`SocketError::WouldBlock`] means that the other socket takes none.
    fn give(&mut self, from: Side) -> Result<usize, SocketError>;

    /// Ends the sending half of a socket's stream, after everything sent before.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn shutdown_write(&mut self, side: Side) -> Result<(), SocketError>;

    /// Bytes (and FIN) sent to a socket's peer but not yet acknowledged by it.
    fn unacknowledged(&mut self, side: Side) -> u32;

    /// Makes the next close of both sockets send a reset instead of a FIN.
    fn reset_on_close(&mut self);
}

/// Counts of what happened to bypassed connections since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections begun.
    pub opened: u64,
    /// Connections that were refused: the limit was reached, or no socket could be opened.
    pub refused: u64,
    /// Connections that ended in a reset.
    pub reset: u64,
}

/// All bypassed connections.
#[derive(Debug)]
pub struct Bypass<C> {
    relays: Slots<Entry<C>>,
    /// Connections with more to move than their turn allowed.
    runnable: VecDeque<FlowId>,
    timers: Timers<FlowId>,
    /// Counts since the start.
    pub counters: Counters,
}

#[derive(Debug)]
struct Entry<C> {
    relay: Relay<C>,
    runnable: bool,
    deadline: Deadline,
}

impl<C: Conduit> Bypass<C> {
    /// An empty table for at most `limit` connections.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            relays: Slots::new(Kind::Splice, limit),
            runnable: VecDeque::new(),
            timers: Timers::default(),
            counters: Counters::default(),
        }
    }

    /// How many connections there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.relays.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// Adds a connection of an accepted socket and one that is being connected. If that is established already, the
    /// caller reports it as readiness.
    ///
    /// # Errors
    /// The sockets, if the limit is reached.
    pub fn insert(&mut self, conduit: C) -> Result<FlowId, C> {
        let entry = Entry { relay: Relay::new(conduit), runnable: false, deadline: Deadline::NONE };
        let id = self.relays.insert(entry).map_err(|entry| entry.relay.into_conduit())?;
        self.counters.opened += 1;
        Ok(id)
    }

    /// The sockets of a connection that has not ended.
    pub fn conduit(&mut self, id: FlowId) -> Option<&mut C> {
        self.relays.get_mut(id).map(|entry| entry.relay.conduit())
    }

    /// Resets a connection.
    pub fn reset(&mut self, id: FlowId, now: Instant) {
        self.step(id, now, Relay::reset);
    }

    /// A socket reported readiness.
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

    /// When [`Bypass::on_deadlines`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Handles everything that is due.
    pub fn on_deadlines(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop_due(now) {
            let Some(entry) = self.relays.get_mut(id) else { continue };
            if entry.deadline.reached(now, &mut self.timers, id) {
                self.step(id, now, Relay::proceed);
            }
        }
    }

    /// One step of one connection, and what follows from it.
    fn step(&mut self, id: FlowId, now: Instant, step: impl FnOnce(&mut Relay<C>) -> Next) {
        let Some(entry) = self.relays.get_mut(id) else { return };
        match step(&mut entry.relay) {
            Next::Wait => {}
            Next::Run if entry.runnable => {}
            Next::Run => {
                entry.runnable = true;
                self.runnable.push_back(id);
            }
            Next::CheckAfter(after) => entry.deadline.set(Some(now + after), &mut self.timers, id),
            Next::End { reset } => {
                entry.deadline.withdraw(&mut self.timers, id);
                self.counters.reset += u64::from(reset);
                self.relays.remove(id);
            }
        }
    }
}
