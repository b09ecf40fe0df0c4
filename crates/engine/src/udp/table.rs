//! The flows of all UDP sockets.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hashbrown::HashMap;

use super::Round;
use crate::{
    flow::{Endpoints, FlowId, Flows, HashKey, Keyed, Kind},
    timer::{Deadline, Instant, Timers},
};

/// How much is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most flows.
    pub flows: usize,
    /// Most sockets of guest endpoints; listeners are not counted.
    pub endpoints: usize,
    /// A flow ends after this long without a datagram (SPEC §7.2: 30 s).
    pub idle: Duration,
    /// The same for a flow that has carried more than a question and an answer (SPEC §7.2: 120 s).
    pub idle_stream: Duration,
}

/// What a guest endpoint exchanges with one remote.
#[derive(Debug)]
pub(super) struct Flow {
    /// As the guest sees it.
    pub(super) endpoints: Endpoints,
    /// The remote on the host's side.
    pub(super) peer: SocketAddr,
    /// The socket that it goes through.
    pub(super) socket: FlowId,
    /// The host's address that the guest's datagrams leave from: the one that the peer wrote to, or that the guest
    /// has as well. None: the kernel's choice.
    pub(super) local: Option<IpAddr>,
    /// When the guest sent last.
    pub(super) last_sent: Round,
    /// Datagrams of the guest, counted up to two.
    sent: u8,
    /// Datagrams of the peer, counted up to two.
    received: u8,
    deadline: Deadline,
}

impl Keyed for Flow {
    type Key = Endpoints;
    fn key(&self) -> Endpoints {
        self.endpoints
    }
}

impl Flow {
    pub(super) const fn new(endpoints: Endpoints, peer: SocketAddr, socket: FlowId) -> Self {
        Self {
            endpoints,
            peer,
            socket,
            local: None,
            last_sent: Round::NEVER,
            sent: 0,
            received: 0,
            deadline: Deadline::NONE,
        }
    }

    pub(super) const fn leaving_from(mut self, local: Option<IpAddr>) -> Self {
        self.local = local;
        self
    }

    const fn peer_key(&self) -> PeerKey {
        PeerKey { socket: self.socket, peer: self.peer, guest: self.endpoints.guest }
    }
}

/// A flow as the host's side sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    /// The socket that a datagram came in by.
    pub(super) socket: FlowId,
    /// From whom.
    pub(super) peer: SocketAddr,
    /// For whom: a listener can lead to several addresses of the guest.
    pub(super) guest: SocketAddr,
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

/// All flows, found from either side.
#[derive(Debug)]
pub(super) struct Table {
    flows: Flows<Flow>,
    by_peer: HashMap<PeerKey, FlowId, HashKey>,
    limits: Limits,
}

impl Table {
    pub(super) fn new(limits: Limits, hash_key: [u8; 16]) -> Self {
        Self {
            flows: Flows::new(Kind::UdpFlow, limits.flows, hash_key),
            by_peer: HashMap::with_hasher(HashKey(hash_key)),
            limits,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn find(&self, endpoints: &Endpoints) -> Option<FlowId> {
        self.flows.find(endpoints)
    }

    pub(super) fn find_peer(&self, key: &PeerKey) -> Option<FlowId> {
        self.by_peer.get(key).copied()
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id)
    }

    /// Whether strangers may still make flows: a quarter of the table is the guest's own.
    pub(super) fn admits_strangers(&self) -> bool {
        self.flows.len() < self.limits.flows / 4 * 3
    }

    /// Adds a flow that is in the table by neither of its keys; none if the table is full.
    pub(super) fn insert(&mut self, flow: Flow) -> Option<FlowId> {
        let key = flow.peer_key();
        let id = self.flows.insert(flow).ok()?;
        self.by_peer.insert(key, id);
        Some(id)
    }

    /// Notes a datagram: the flow's end moves away.
    pub(super) fn touch(
        &mut self,
        id: FlowId,
        direction: Direction,
        now: Instant,
        timers: &mut Timers<FlowId>,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let count = match direction {
            Direction::Out => &mut flow.sent,
            Direction::In => &mut flow.received,
        };
        *count = (*count + 1).min(2);
        let stream = flow.sent > 0 && flow.received > 0 && flow.sent + flow.received > 2;
        let idle = if stream { self.limits.idle_stream } else { self.limits.idle };
        flow.deadline.set(Some(now + idle), timers, id);
    }

    /// Notes in which round the guest has sent.
    pub(super) fn note_sent(&mut self, id: FlowId, round: Round) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.last_sent = round;
        }
    }

    /// Removes a flow whose time has come.
    pub(super) fn expire(&mut self, id: FlowId, now: Instant, timers: &mut Timers<FlowId>) -> Option<Flow> {
        if !self.flows.get_mut(id)?.deadline.reached(now, timers, id) {
            return None;
        }
        let flow = self.flows.remove(id)?;
        self.by_peer.remove(&flow.peer_key());
        Some(flow)
    }
}
