//! Datagrams of the host's network to multicast groups that the guest has joined (`--multicast`).
//!
//! IGMP and MLD messages contain no ports, but a socket of the host needs one. So a group has a socket for each
//! well-known port of protocols of local networks, and for each port that the guest itself uses with the group. The
//! sockets are bound to the group, and share their port with other programs.

use alloc::{
    collections::{BTreeSet, VecDeque},
    vec::Vec,
};
use core::net::{IpAddr, SocketAddr};

use wire::payload::Payload;

use super::{Role, Socket, SocketKey, Udp};
use crate::{
    context::{UdpOf, World},
    events::How,
    flow::{Endpoints, FlowId},
    guard::Guard,
    host::{Host as _, OutboundDatagram},
    memory::PayloadOf,
    timer::{Instant, Timers},
};

/// Ports of mDNS, SSDP, LLMNR and WS-Discovery.
const PORTS: [u16; 4] = [5353, 1900, 5355, 3702];
/// Maximum number of sockets of groups. Each socket costs a file.
pub(super) const MAX_SOCKETS: usize = 128;
/// Sockets of groups take at most one part in this number of the guest's share of sockets.
const PART: usize = 4;
/// Maximum number of used groups and ports that are remembered.
const MAX_USED: usize = 64;
/// First ephemeral port. Other hosts do not send to such a port at a group, since protocols rarely use it as their
/// well-known port.
const EPHEMERAL: u16 = 32_768;
/// Maximum number of the guest's datagrams to groups that are remembered, to recognise copies that the kernel returns.
const MAX_SENT: usize = 64;
/// How long such a datagram is remembered, in microseconds. The kernel returns a copy at once.
const MEMORY: u64 = 500_000;
/// Number of bytes of each datagram that are remembered.
const START: usize = 64;

/// Groups and their sockets.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeSet<IpAddr>,
    /// Number of open sockets.
    sockets: usize,
    /// Groups and ports that the guest has used. The guest need not have joined them.
    used: VecDeque<SocketAddr>,
    sent: VecDeque<Sent>,
}

/// A datagram that the guest has sent to a group.
#[derive(Debug)]
struct Sent {
    at: Instant,
    to: SocketAddr,
    digest: Digest,
}

/// The length and the first bytes of a datagram, to recognise it.
type Digest = (usize, [u8; START]);

fn digest(payload: impl Payload) -> Digest {
    let mut start = [0; START];
    payload.copy_to(&mut start);
    (payload.len(), start)
}

impl<W: World> Udp<W> {
    /// Handles that the guest has joined `group`.
    pub(crate) fn join(&mut self, group: IpAddr, host: &mut W::Host) {
        log::debug!("the guest has joined {group}");
        self.joined.groups.insert(group);
        let used: Vec<u16> =
            self.joined.used.iter().filter(|used| used.ip() == group).map(SocketAddr::port).collect();
        for port in PORTS.into_iter().chain(used) {
            self.open_member(host, SocketAddr::new(group, port));
        }
    }

    /// Handles that the guest has left `group`. The flows of the group's sockets end. If the guest sends more
    /// datagrams, it begins other flows.
    pub(crate) fn leave(&mut self, group: IpAddr, guard: &mut Guard, timers: &mut Timers<FlowId>) {
        log::debug!("the guest has left {group}");
        self.joined.groups.remove(&group);
        let of_group = |(id, socket): (FlowId, &Socket<UdpOf<W>>)| match socket.role {
            Role::Member(at) if at.ip() == group => Some(id),
            _ => None,
        };
        let sockets: Vec<_> = self.sockets.iter().filter_map(of_group).collect();
        for id in &sockets {
            self.end_flows_of(*id, How::Closed, guard, timers);
            self.sockets.remove(*id);
        }
        self.joined.sockets -= sockets.len();
    }

    /// Number of sockets of groups.
    pub(super) const fn members(&self) -> usize {
        self.joined.sockets
    }

    /// Whether the guest is a member of the group now.
    pub(super) fn is_member(&self, group: IpAddr) -> bool {
        self.joined.groups.contains(&group)
    }

    fn open_member(&mut self, host: &mut W::Host, at: SocketAddr) {
        let key = SocketKey::Member(at);
        if self.sockets.find(&key).is_some() {
            return;
        }
        if self.joined.sockets >= MAX_SOCKETS.min(self.limits.endpoints.most / PART) {
            self.counters.no_room += 1;
            return;
        }
        let Some(id) = self.sockets.next_id() else { return };
        match host.udp_join(id, at) {
            Ok(io) => {
                if self.sockets.insert(Socket::new(io, Role::Member(at), at.is_ipv4())).is_ok() {
                    self.joined.sockets += 1;
                }
            }
            Err(errno) => log::debug!("can't receive from {at}: {errno:?}"),
        }
    }

    /// Notes that the guest begins a flow to a group. It expects datagrams to the group at the flow's destination port,
    /// and at the flow's source port.
    pub(super) fn note_use(&mut self, host: &mut W::Host, endpoints: Endpoints) {
        let group = endpoints.remote.ip();
        for port in [endpoints.remote.port(), endpoints.guest.port()] {
            let at = SocketAddr::new(group, port);
            let usual = port != endpoints.remote.port() && port >= EPHEMERAL;
            if usual || PORTS.contains(&port) || self.joined.used.contains(&at) {
                continue;
            }
            if self.joined.used.len() >= MAX_USED {
                self.joined.used.pop_front();
            }
            self.joined.used.push_back(at);
            if self.is_member(group) {
                self.open_member(host, at);
            }
        }
    }

    /// Notes a datagram of the guest to a broadcast address, or to a group of which the guest is a member. The host's
    /// kernel will deliver a copy to the engine's own socket for the group or the port.
    pub(super) fn note_sent_to_group(
        &mut self,
        now: Instant,
        outbound: &OutboundDatagram<PayloadOf<'_, W::Memory>>,
    ) {
        let to = SocketAddr::new(outbound.destination.ip(), outbound.destination.port());
        let len = outbound.payload.len();
        let size = outbound.segment_size.map_or(len, usize::from).max(1);
        for start in (0..len.max(1)).step_by(size) {
            if self.joined.sent.len() >= MAX_SENT {
                self.joined.sent.pop_front();
            }
            let digest = digest(outbound.payload.slice(start..(start + size).min(len)));
            self.joined.sent.push_back(Sent { at: now, to, digest });
        }
    }

    /// Whether a datagram that this socket received was sent by the guest. Returns true only once for each copy.
    pub(super) fn is_echo(&mut self, now: Instant, id: FlowId, payload: impl Payload) -> bool {
        let sent = &mut self.joined.sent;
        while sent.front().is_some_and(|sent| now.since(sent.at).as_micros() as u64 > MEMORY) {
            sent.pop_front();
        }
        if sent.is_empty() {
            return false;
        }
        let receives = |to: SocketAddr| match self.sockets.get(id).map(|socket| &socket.role) {
            Some(Role::Member(at)) => to == *at,
            Some(Role::Endpoint { guest, .. }) => !to.ip().is_multicast() && to.port() == guest.port(),
            Some(Role::Listener(listener)) => !to.ip().is_multicast() && to.port() == listener.port,
            _ => false,
        };
        let digest = digest(payload);
        match sent.iter().position(|sent| sent.digest == digest && receives(sent.to)) {
            Some(place) => sent.remove(place).is_some(),
            None => false,
        }
    }
}
