//! Flows: their identifiers, and the tables that store and find them.

mod index;

use alloc::vec::Vec;
use core::{
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
};

pub(crate) use index::{HashKey, Index};

use crate::timer::Timers;

/// The kind of object to which a socket or timer belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A TCP connection.
    Tcp = 1,
    /// A UDP socket. It belongs to a guest endpoint, a listener, a group, or a client that bypasses the link.
    Udp = 2,
    /// A ping socket.
    Ping = 3,
    /// A UDP flow: one remote of a guest endpoint. The flow has a deadline, but no socket of its own.
    UdpFlow = 4,
    /// A TCP connection that bypasses the link. The connection has two sockets.
    Splice = 5,
    /// A DNS query of the guest, or a session with a resolver. Each has a socket for each server.
    Dns = 6,
    /// A listening TCP socket of a forwarding rule.
    Listener = 7,
    /// The check of a UDP flow that a rule by name allows. It has a deadline, but no socket.
    UdpCheck = 8,
}

/// The ID of a flow. It is not reused: the next flow in the same slot has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    /// The index of the slot.
    index: u32,
    generation: Generation,
    /// The kind of the flow, which selects the table of the slot.
    kind: Kind,
}

/// The number of flows that a slot has had before, modulo 2^24. It has three bytes, in network byte order, so that an ID
/// has eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Generation([u8; 3]);

impl Generation {
    const fn new(number: u32) -> Self {
        let [_, high, middle, low] = number.to_be_bytes();
        Self([high, middle, low])
    }

    const fn get(self) -> u32 {
        let [high, middle, low] = self.0;
        u32::from_be_bytes([0, high, middle, low])
    }

    const fn next(self) -> Self {
        Self::new(self.get().wrapping_add(1))
    }
}

impl FlowId {
    /// The kind of the flow, which selects the flow's table.
    #[must_use]
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// The flow's slot.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.index
    }

    /// The id as one word, for epoll. The highest byte is the kind, which is never zero.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        (self.kind as u64) << 56 | (self.generation.get() as u64) << 32 | self.index as u64
    }

    /// The id in a word of [`FlowId::to_bits`]. None if the word is not the id of a flow.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        let kind = match bits >> 56 {
            1 => Kind::Tcp,
            2 => Kind::Udp,
            3 => Kind::Ping,
            4 => Kind::UdpFlow,
            5 => Kind::Splice,
            6 => Kind::Dns,
            7 => Kind::Listener,
            8 => Kind::UdpCheck,
            _ => return None,
        };
        Some(Self { index: bits as u32, generation: Generation::new((bits >> 32) as u32), kind })
    }
}

/// The protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo, which has no ports.
    Icmp,
}

impl Protocol {
    /// All protocols, with their names in rules and logs.
    pub const ALL: [(&'static str, Self); 3] = [("tcp", Self::Tcp), ("udp", Self::Udp), ("icmp", Self::Icmp)];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, protocol)| protocol == self);
        f.pad(named.map_or("", |(word, _)| word))
    }
}

/// The two ends of a flow as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// The address and port of the other side, as the guest sees them.
    pub remote: SocketAddr,
}

/// [`Endpoints`] in 38 bytes instead of 64, for each flow of a table. The addresses have no scope, since those that the
/// guest sees have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) guest: IpAddr,
    pub(crate) remote: IpAddr,
    pub(crate) guest_port: u16,
    pub(crate) remote_port: u16,
}

impl Ends {
    pub(crate) const fn endpoints(&self) -> Endpoints {
        Endpoints {
            guest: SocketAddr::new(self.guest, self.guest_port),
            remote: SocketAddr::new(self.remote, self.remote_port),
        }
    }
}

impl From<Endpoints> for Ends {
    fn from(Endpoints { guest, remote }: Endpoints) -> Self {
        Self { guest: guest.ip(), remote: remote.ip(), guest_port: guest.port(), remote_port: remote.port() }
    }
}

/// Each write to the hash function has a cost, so there are few.
impl Hash for Ends {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.guest, self.remote) {
            (IpAddr::V4(guest), IpAddr::V4(remote)) => {
                state.write_u64(u64::from(guest.to_bits()) << 32 | u64::from(remote.to_bits()));
            }
            (guest, remote) => (guest, remote).hash(state),
        }
        state.write_u32(u32::from(self.guest_port) << 16 | u32::from(self.remote_port));
    }
}

/// The text form for messages: number and kind.
impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tcp => "TCP",
            Kind::Udp => "UDP socket",
            Kind::Ping => "ping",
            Kind::UdpFlow => "UDP",
            Kind::Splice => "TCP bypass",
            Kind::Dns => "DNS",
            Kind::Listener => "TCP listener",
            Kind::UdpCheck => "UDP check",
        };
        write!(f, "Flow {} ({kind})", self.index)
    }
}

#[derive(Debug)]
struct Entry<T> {
    generation: Generation,
    /// If the slot is free: the next free slot, or [`NO_SLOT`].
    next_free: u32,
    flow: Option<T>,
}

/// Ends the list of free slots.
const NO_SLOT: u32 = u32::MAX;

/// Flows of one kind, found by id.
///
/// Memory is allocated only by [`Slots::next_id`] and [`Slots::insert`]. If there is none, the table is full.
#[derive(Debug)]
pub struct Slots<T> {
    kind: Kind,
    slots: Vec<Entry<T>>,
    first_free: u32,
    len: usize,
    limit: usize,
    /// Number of slots whose owners have room in the queue of deadlines.
    timed: u32,
}

impl<T> Slots<T> {
    /// An empty table for at most `limit` flows.
    #[must_use]
    pub const fn new(kind: Kind, limit: usize) -> Self {
        Self { kind, slots: Vec::new(), first_free: NO_SLOT, len: 0, limit, timed: 0 }
    }

    /// The number of flows.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no flows.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The id that the next inserted flow will get. The memory for the flow is reserved. None if the table is full, or
    /// if there is no memory.
    #[must_use]
    pub fn next_id(&mut self) -> Option<FlowId> {
        if self.len >= self.limit {
            return None;
        }
        let (index, generation) = match self.slots.get(self.first_free as usize) {
            Some(slot) => (self.first_free, slot.generation),
            None => {
                self.slots.try_reserve(1).ok()?;
                (
                    u32::try_from(self.slots.len()).ok().filter(|&index| index != NO_SLOT)?,
                    Generation::default(),
                )
            }
        };
        Some(FlowId { index, generation, kind: self.kind })
    }

    /// Like [`Slots::next_id`], for a flow with a deadline: also reserves the memory for the deadline.
    #[must_use]
    pub fn next_timed_id<K: Ord + Copy>(&mut self, timers: &mut Timers<K>) -> Option<FlowId> {
        let id = self.next_id()?;
        if id.index >= self.timed {
            timers.reserve_owner().ok()?;
            self.timed += 1;
        }
        Some(id)
    }

    /// Memory of a slot, in bytes.
    pub(crate) const BYTES: usize = size_of::<Entry<T>>();

    /// Reserves memory for `flows` flows, so that the table does not grow, which would copy it. Returns false if there is
    /// none.
    #[must_use]
    pub(crate) fn reserve(&mut self, flows: usize) -> bool {
        self.slots.try_reserve_exact(flows.saturating_sub(self.slots.len())).is_ok()
    }

    /// An upper bound for the number of slots after the next insertion.
    pub(crate) const fn slots(&self) -> usize {
        self.slots.len() + 1
    }

    /// Inserts a flow and returns its id.
    ///
    /// # Errors
    /// If the table is full, or if there is no memory, returns the flow itself.
    pub fn insert(&mut self, flow: T) -> Result<FlowId, T> {
        let Some(id) = self.next_id() else { return Err(flow) };
        match self.slots.get_mut(id.index as usize) {
            Some(slot) => {
                self.first_free = slot.next_free;
                slot.flow = Some(flow);
            }
            None => {
                self.slots.push(Entry { generation: id.generation, next_free: NO_SLOT, flow: Some(flow) })
            }
        }
        self.len += 1;
        Ok(id)
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        self.get(id)?;
        let slot = self.slots.get_mut(id.index as usize)?;
        let flow = slot.flow.take()?;
        slot.generation = slot.generation.next();
        slot.next_free = self.first_free;
        self.first_free = id.index;
        self.len -= 1;
        Some(flow)
    }

    /// The flow with this id, if it still exists.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation && id.kind == self.kind { slot.flow.as_ref() } else { None }
    }

    /// The flow with this id, if it still exists.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation && id.kind == self.kind { slot.flow.as_mut() } else { None }
    }

    /// All flows with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &T)> {
        (0..self.slots.len()).filter_map(|index| self.at(index as u32))
    }

    /// All flows.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.flow.as_mut())
    }

    /// The flows in `count` slots from `first` on. Also returns the next slot, if there are more slots.
    pub(crate) fn page_mut(
        &mut self,
        first: u32,
        count: u32,
    ) -> (impl Iterator<Item = (FlowId, &mut T)>, Option<u32>) {
        let end = first.saturating_add(count);
        let next = (self.slots.len() > end as usize).then_some(end);
        let (from, to) = (self.slots.len().min(first as usize), self.slots.len().min(end as usize));
        let kind = self.kind;
        let page = self.slots.get_mut(from..to).unwrap_or_default().iter_mut().zip(first..);
        let flows = page.filter_map(move |(slot, index)| {
            let id = FlowId { index, generation: slot.generation, kind };
            Some((id, slot.flow.as_mut()?))
        });
        (flows, next)
    }

    /// The present flow of the slot `index`, with its id.
    fn at(&self, index: u32) -> Option<(FlowId, &T)> {
        let slot = self.slots.get(index as usize)?;
        let id = FlowId { index, generation: slot.generation, kind: self.kind };
        slot.flow.as_ref().map(|flow| (id, flow))
    }
}

impl<T: Keyed> Slots<T> {
    /// The key of the flow in the slot `index`.
    fn key_at(&self, index: u32) -> Option<T::Key> {
        self.at(index).map(|(_, flow)| flow.key())
    }
}

/// Flows of one kind, found by id or by key.
///
/// The keyed hash (SipHash) keeps a guest from choosing colliding flows.
#[derive(Debug)]
pub struct Flows<T> {
    slots: Slots<T>,
    by_key: Index,
}

/// An entry of a table that is found by a key.
pub trait Keyed {
    /// The type of the key.
    type Key: Hash + Eq;
    /// This entry's key; it must not change while the entry is in the table.
    fn key(&self) -> Self::Key;
}

impl<T: Keyed> Flows<T> {
    /// An empty table for at most `limit` flows. `hash_key` must be random.
    #[must_use]
    pub fn new(kind: Kind, limit: usize, hash_key: [u8; 16]) -> Self {
        Self { slots: Slots::new(kind, limit), by_key: Index::new(hash_key) }
    }

    /// The number of flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are no flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id that the next inserted flow will get. The memory for the flow is reserved. None if the table is full, or
    /// if there is no memory.
    #[must_use]
    pub fn next_id(&mut self) -> Option<FlowId> {
        let id = self.slots.next_id()?;
        self.by_key.reserve_next(|slot| self.slots.key_at(slot)).then_some(id)
    }

    /// Like [`Flows::next_id`], for a flow with a deadline: also reserves the memory for the deadline.
    #[must_use]
    pub fn next_timed_id<K: Ord + Copy>(&mut self, timers: &mut Timers<K>) -> Option<FlowId> {
        self.next_id()?;
        self.slots.next_timed_id(timers)
    }

    /// Memory of a slot and its place in the index, in bytes.
    pub(crate) const BYTES: usize = Slots::<T>::BYTES + Index::BYTES;

    /// Reserves memory for `flows` flows, so that neither the table nor its index grow. Returns false if there is none.
    #[must_use]
    pub(crate) fn reserve(&mut self, flows: usize) -> bool {
        self.by_key.reserve(flows, |slot| self.slots.key_at(slot)) && self.slots.reserve(flows)
    }

    /// Maximum number of flows.
    pub(crate) const fn limit(&self) -> usize {
        self.slots.limit
    }

    /// An upper bound for the number of slots after the next insertion.
    pub(crate) const fn slots(&self) -> usize {
        self.slots.slots()
    }

    /// Inserts a flow whose key is not in the table. Returns the flow's id.
    ///
    /// # Errors
    /// If the table is full, or if there is no memory, returns the flow itself.
    pub fn insert(&mut self, flow: T) -> Result<FlowId, T> {
        if self.next_id().is_none() {
            return Err(flow);
        }
        let key = flow.key();
        let id = self.slots.insert(flow)?;
        self.by_key.insert(&key, id.index, |slot| self.slots.key_at(slot));
        Ok(id)
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: FlowId) -> Option<T> {
        let flow = self.slots.remove(id)?;
        self.by_key.remove(&flow.key(), id.index);
        Some(flow)
    }

    /// The flow with this id, if it still exists.
    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<&T> {
        self.slots.get(id)
    }

    /// The flow with this id, if it still exists.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut T> {
        self.slots.get_mut(id)
    }

    /// The id of the flow that is in the slot `index`.
    #[must_use]
    pub fn id_at(&self, index: u32) -> Option<FlowId> {
        self.slots.at(index).map(|(id, _)| id)
    }

    /// The id of the flow with this key.
    #[must_use]
    pub fn find(&self, key: &T::Key) -> Option<FlowId> {
        self.id_at(self.by_key.find(key, |slot| self.slots.key_at(slot))?)
    }

    /// The present flow of the slot `index`, with its id.
    pub(crate) fn at(&self, index: u32) -> Option<(FlowId, &T)> {
        self.slots.at(index)
    }

    /// All flows with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &T)> {
        self.slots.iter()
    }

    /// All flows. Their keys must not change.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.values_mut()
    }

    /// The flows in `count` slots from `first` on. Their keys must not change. Also returns the next slot, if there are
    /// more slots.
    pub(crate) fn page_mut(
        &mut self,
        first: u32,
        count: u32,
    ) -> (impl Iterator<Item = (FlowId, &mut T)>, Option<u32>) {
        self.slots.page_mut(first, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Named(u32);
    impl Keyed for Named {
        type Key = u32;
        fn key(&self) -> u32 {
            self.0
        }
    }

    #[test]
    fn a_stale_id_finds_nothing() {
        let mut flows = Flows::new(Kind::Udp, 2, [7; 16]);
        let first = flows.insert(Named(1)).ok().unwrap();
        assert_eq!(FlowId::from_bits(first.to_bits()), Some(first));
        assert!(flows.remove(first).is_some());
        let second = flows.insert(Named(2)).ok().unwrap();
        assert_eq!(first.index, second.index);
        assert!(flows.get(first).is_none());
        assert!(flows.remove(first).is_none());
        assert_eq!(flows.find(&2), Some(second));
        assert_eq!(flows.find(&1), None);
    }

    /// Each flow that lives during the whole listing is listed once, whatever ends or begins meanwhile.
    #[test]
    fn pages_list_each_lasting_flow_once() {
        let mut slots = Slots::new(Kind::Tcp, 100);
        let ids: Vec<FlowId> = (0..10).map(|number| slots.insert(number).unwrap()).collect();
        let mut listed = Vec::new();
        let mut place = Some(0);
        while let Some(first) = place {
            let (page, next) = slots.page_mut(first, 4);
            let page: Vec<(FlowId, i32)> = page.map(|(id, number)| (id, *number)).collect();
            assert!(page.len() <= 4);
            listed.extend(page);
            place = next;
            if first == 4 {
                // One flow that was listed and one that was not end. Another one begins.
                slots.remove(ids[1]).unwrap();
                slots.remove(ids[8]).unwrap();
                slots.insert(99).unwrap();
            }
        }
        let lasting: Vec<_> = (0..10).filter(|n| ![1, 8].contains(n)).map(|n| (ids[n as usize], n)).collect();
        assert!(lasting.iter().all(|flow| listed.iter().filter(|other| *other == flow).count() == 1));
        let (mut beyond, next) = slots.page_mut(u32::MAX, 4);
        assert!(beyond.next().is_none() && next.is_none());
    }

    #[test]
    fn a_full_table_refuses_and_keeps_its_flows() {
        let mut flows = Flows::new(Kind::Tcp, 100, [7; 16]);
        for name in 0..100 {
            assert!(flows.insert(Named(name)).is_ok());
        }
        assert!(flows.insert(Named(100)).is_err());
        for name in 0..100 {
            let id = flows.find(&name).unwrap();
            assert_eq!(flows.get(id).unwrap().0, name);
        }
    }

    /// A table with reserved memory does not grow, whatever comes and goes, and it uses no more than it says.
    #[test]
    fn reserved_memory_is_enough() {
        for limit in [1, 2, 3, 7, 100, 897, 1000, 4096] {
            let mut flows = Flows::new(Kind::Tcp, limit, [7; 16]);
            assert!(flows.reserve(limit));
            let memory = |flows: &Flows<Named>| {
                flows.slots.slots.capacity() * size_of::<Entry<Named>>() + flows.by_key.memory()
            };
            let before = memory(&flows);
            assert!(before <= limit * Flows::<Named>::BYTES + 64, "{before} bytes for {limit}");
            let mut ids: Vec<FlowId> =
                (0..limit as u32).map(|key| flows.insert(Named(key)).ok().unwrap()).collect();
            for key in 0..10 * limit as u32 {
                let at = key as usize * 7919 % limit;
                flows.remove(ids[at]).unwrap();
                ids[at] = flows.insert(Named(1_000_000 + key)).ok().unwrap();
            }
            assert_eq!(memory(&flows), before);
        }
    }

    /// in a full table, after insertions and removals, each present flow is found, and no removed flow is found.
    #[test]
    fn every_flow_is_found_under_load_r63() {
        let mut flows = Flows::new(Kind::Tcp, 1 << 14, [7; 16]);
        let ids: Vec<FlowId> = (0..1 << 14).map(|key| flows.insert(Named(key)).ok().unwrap()).collect();
        for id in ids.iter().skip(1).step_by(3) {
            flows.remove(*id).unwrap();
        }
        for key in (1 << 14)..(1 << 14) + (1 << 12) {
            flows.insert(Named(key)).ok().unwrap();
        }
        for key in 0..(1 << 14) + (1 << 12) {
            let gone = key < 1 << 14 && key % 3 == 1;
            let found = flows.find(&key).and_then(|id| flows.get(id)).map(Keyed::key);
            assert_eq!(found, (!gone).then_some(key));
        }
    }
}
