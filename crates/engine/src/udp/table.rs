//! The flows of all UDP sockets.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{RoundNumber, check::CheckLimits, train::Extent};
use crate::{
    events::{Account, How},
    flow::{Endpoints, FlowId, Flows, Index, Keyed, Kind},
    host::Errno,
    idle::{Activity, Chain, Idle, Links, Timeouts},
    listing::{Lister, Page},
    share::Share,
    timer::{Instant, Timers},
};

/// Limits on sockets, flows and time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Flows that the guest began.
    pub flows: Share,
    /// Flows that remotes began.
    pub inbound: Share,
    /// Sockets of guest endpoints. Listeners are not counted.
    pub endpoints: Share,
    /// Sockets for clients of listeners, in the other namespace.
    pub bypass: Share,
    /// Checks of flows that a rule by name allows.
    pub checks: CheckLimits,
    /// Time without a datagram after which a flow ends (behaviour §7.2: 30 s).
    pub idle: Duration,
    /// The same time, for a flow with more than a request and an answer (behaviour §7.2: 120 s).
    pub idle_stream: Duration,
}

impl Limits {
    pub(super) const fn timeouts(&self) -> Timeouts {
        Timeouts { idle: self.idle, stream: self.idle_stream }
    }
}

/// The exchange of a guest endpoint with one remote.
#[derive(Debug)]
pub(super) struct Flow {
    /// The two ends, as the guest sees them.
    pub(super) endpoints: Endpoints,
    /// The remote on the host's side.
    pub(super) peer: SocketAddr,
    /// The socket of the flow.
    pub(super) socket: FlowId,
    /// The host's address from which the guest's datagrams are sent: the address to which the peer wrote, or an
    /// address that the guest has, too. None: the kernel chooses.
    pub(super) local: Option<IpAddr>,
    /// The last round in which the guest sent a datagram.
    pub(super) last_sent: RoundNumber,
    /// The check, if a rule by name allows the flow.
    pub(super) check: Option<FlowId>,
    begun: Origin,
    activity: Activity,
    /// Reports the end of the flow.
    pub(super) account: Account,
}

impl Keyed for Flow {
    type Key = Endpoints;
    fn key(&self) -> Endpoints {
        self.endpoints
    }
}

impl Flow {
    /// A flow whose first datagram comes from the side `begun`.
    pub(super) fn new(endpoints: Endpoints, peer: SocketAddr, socket: FlowId, begun: Origin) -> Self {
        Self {
            endpoints,
            peer,
            socket,
            local: None,
            last_sent: RoundNumber::NEVER,
            check: None,
            begun,
            activity: Activity::NONE,
            account: Account::NONE,
        }
    }

    pub(super) const fn leaving_from(mut self, local: Option<IpAddr>) -> Self {
        self.local = local;
        self
    }

    /// The side from which the first datagram came.
    pub(super) const fn begun(&self) -> Origin {
        self.begun
    }

    /// Whether another datagram of the guest in `round` would not change the flow's state: a datagram of the same round
    /// was noted, and the counts have reached their maximum.
    pub(super) fn is_noted(&self, round: RoundNumber) -> bool {
        self.last_sent == round && self.begun == Origin::Guest && self.activity.has_many_requests()
    }

    const fn peer_key(&self) -> PeerKey {
        PeerKey { socket: self.socket, peer: self.peer, guest: self.endpoints.guest }
    }
}

/// The key of a flow on the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    /// The socket that received a datagram.
    pub(super) socket: FlowId,
    /// The sender.
    pub(super) peer: SocketAddr,
    /// The guest's endpoint. It is part of the key, since a listener can forward to several addresses of the guest.
    pub(super) guest: SocketAddr,
}

/// The side from which a datagram comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The guest.
    Guest,
    /// The host's side.
    Host,
}

/// All flows, found from either side.
#[derive(Debug)]
pub(super) struct FlowTable {
    flows: Flows<Flow>,
    /// The slots of `flows`, by the key on the host's side.
    by_peer: Index,
    /// The flows of each socket, as a list. The socket stores the ends of its list.
    by_socket: Links,
    /// Flows that the guest began.
    own: Idle,
    /// Flows that remotes began. They have their own limit, so that a remote can't end flows of the guest.
    inbound: Idle,
    limits: Limits,
}

/// The key on the host's side of the flow in a slot.
fn peer_key_at(flows: &Flows<Flow>, slot: u32) -> Option<PeerKey> {
    flows.at(slot).map(|(_, flow)| flow.peer_key())
}

impl FlowTable {
    pub(super) fn new(limits: Limits, hash_key: [u8; 16]) -> Self {
        Self {
            flows: Flows::new(Kind::UdpFlow, usize::MAX, hash_key),
            by_peer: Index::new(hash_key),
            by_socket: Links::default(),
            own: Idle::new(Some(limits.timeouts())),
            inbound: Idle::new(Some(limits.timeouts())),
            limits,
        }
    }

    /// Memory of a flow, in bytes, without its check: its slot, its deadline, the index of the host's side, and its places
    /// in two lists, each of which has the slots of all flows.
    pub(super) const BYTES: usize =
        Flows::<Flow>::BYTES + Timers::<FlowId>::BYTES + Index::BYTES + 3 * Links::BYTES;

    /// Reserves memory for `flows` flows. Returns false if there is none.
    pub(super) fn reserve(&mut self, flows: usize) -> bool {
        let Self { flows: table, by_peer, by_socket, own, inbound, .. } = self;
        by_peer.reserve(flows, |slot| peer_key_at(table, slot))
            && by_socket.reserve_all(flows)
            && own.reserve_all(flows)
            && inbound.reserve_all(flows)
            && table.reserve(flows)
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn find(&self, endpoints: &Endpoints) -> Option<FlowId> {
        self.flows.find(endpoints)
    }

    pub(super) fn find_peer(&self, key: &PeerKey) -> Option<FlowId> {
        self.flows.id_at(self.by_peer.find(key, |slot| peer_key_at(&self.flows, slot))?)
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(id)
    }

    /// The first flow of a socket.
    pub(super) fn first_of(&self, socket: &Chain) -> Option<FlowId> {
        self.flows.id_at(socket.first()?)
    }

    /// Adds a flow to the table and to the list of its `socket`. Neither of the flow's keys may be in the table. After
    /// that, the table may exceed its limit: see [`FlowTable::surplus`]. None if there is no memory.
    pub(super) fn insert(
        &mut self,
        flow: Flow,
        socket: &mut Chain,
        timers: &mut Timers<FlowId>,
    ) -> Option<FlowId> {
        let (key, begun) = (flow.peer_key(), flow.begun);
        let index = self.flows.next_timed_id(timers)?.index();
        if !self.by_peer.reserve_next(|slot| peer_key_at(&self.flows, slot))
            || !self.by_socket.reserve(index)
            || !self.idle(begun).reserve(index)
        {
            return None;
        }
        let id = self.flows.insert(flow).ok()?;
        self.by_peer.insert(&key, id.index(), |slot| peer_key_at(&self.flows, slot));
        self.by_socket.push(socket, id.index());
        self.idle(begun).join(id);
        Some(id)
    }

    /// The next flow to end, if `begun` has more flows than its limit. It is never the newest flow.
    pub(super) fn surplus(&mut self, begun: Origin) -> Option<FlowId> {
        let share = self.share(begun);
        let idle = self.idle(begun);
        if idle.len() <= share.most.max(1) {
            return None;
        }
        let next = idle.next()?;
        self.flows.id_at(next)
    }

    /// The limit of flows of the origin `begun`.
    pub(super) const fn share(&self, begun: Origin) -> Share {
        match begun {
            Origin::Guest => self.limits.flows,
            Origin::Host => self.limits.inbound,
        }
    }

    const fn idle(&mut self, begun: Origin) -> &mut Idle {
        match begun {
            Origin::Guest => &mut self.own,
            Origin::Host => &mut self.inbound,
        }
    }

    /// Notes a datagram of a flow.
    pub(super) fn touch(&mut self, id: FlowId, from: Origin, now: Instant, timers: &mut Timers<FlowId>) {
        let Self { flows, own, inbound, .. } = self;
        let Some(Flow { begun, activity, .. }) = flows.get_mut(id) else { return };
        let idle = match begun {
            Origin::Guest => own,
            Origin::Host => inbound,
        };
        idle.note(id, activity, from == *begun, now, timers);
    }

    /// Stores the account of a flow, with which the flow's end will be reported.
    pub(super) fn set_account(&mut self, id: FlowId, account: Account) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.account = account;
        }
    }

    /// Counts a datagram or train, if the flow's end will be reported.
    pub(super) fn count(&mut self, id: FlowId, from: Origin, extent: &Extent) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.account.count(from == flow.begun, extent.len, extent.count());
        }
    }

    /// Reports that a datagram of a flow did not arrive.
    pub(super) fn note_failure(&mut self, endpoints: &Endpoints, errno: Errno) {
        if let Some(flow) = self.flows.find(endpoints).and_then(|id| self.flows.get_mut(id)) {
            flow.account.note_failure(errno);
        }
    }

    /// Lists the flows of a page. Returns the next slot, if there are more slots.
    pub(super) fn list(&mut self, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        let timeouts = self.limits.timeouts();
        let (flows, next) = self.flows.page_mut(page.from, page.slots);
        for (id, flow) in flows {
            let (state, active) = (flow.activity.state(), flow.activity.last(timeouts));
            lister.add((id, &flow.account), state, active, |listed| {
                listed.totals = Some(flow.account.counted());
            });
        }
        next
    }

    /// Reports the end of all flows, because the program ends.
    pub(super) fn report_exit(&mut self) {
        self.flows.values_mut().for_each(|flow| flow.account.close(How::Exit));
    }

    /// Notes that the guest has sent a datagram in this round.
    pub(super) fn note_sent(&mut self, id: FlowId, round: RoundNumber) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.last_sent = round;
        }
    }

    /// Whether a flow has expired.
    pub(super) fn has_expired(&mut self, id: FlowId, now: Instant, timers: &mut Timers<FlowId>) -> bool {
        self.flows.get_mut(id).is_some_and(|flow| flow.activity.has_expired(id, now, timers))
    }

    /// Removes a flow from the table and from the list of its `socket`. Returns the flow's check, which the caller must
    /// end.
    #[must_use]
    pub(super) fn remove(
        &mut self,
        id: FlowId,
        how: How,
        socket: &mut Chain,
        timers: &mut Timers<FlowId>,
    ) -> Option<FlowId> {
        let mut flow = self.flows.remove(id)?;
        flow.account.close(how);
        self.by_peer.remove(&flow.peer_key(), id.index());
        self.by_socket.unlink(socket, id.index());
        self.idle(flow.begun).leave(id, &mut flow.activity, timers);
        flow.check
    }

    /// All flows with their ids.
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.flows.iter()
    }
}
