//! The checks of UDP flows that a rule by name allows.

use alloc::{boxed::Box, vec::Vec};
use core::time::Duration;

use wire::domain::MAX_DOTTED_LEN;

use super::{
    begun::{Begun, Conflict},
    datagram::GuestDatagram,
};
use crate::{
    first_bytes::{FirstDatagrams, Found, HostName, Why},
    flow::{Endpoints, FlowId, Flows, Keyed, Kind},
    guard::Claim,
    idle::{Chain, Links},
    names::Hold,
    quota::{Part, Quota, allocation},
    timer::{Deadline, Instant, Timers},
};

/// Maximum time in which a client must send the rest of a ClientHello.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum number of checks that wait for more datagrams.
const MAX_WAITING: usize = 256;
/// Maximum number of datagrams that one check holds.
const MAX_DATAGRAMS: usize = 64;
/// Maximum number of bytes that one check holds. The next number is for all checks together.
const MAX_HELD_EACH: usize = 64 << 10;
const MAX_HELD: usize = 1 << 20;
/// If readers keep more bytes than this, new checks are refused. This is more than 7000 post-quantum ClientHellos.
const MAX_READ: usize = 16 << 20;
/// Maximum number of admitted names that are stored for one flow.
const MAX_NAMES: usize = 8;

/// Limits on the checks of flows that a rule by name allows.
#[derive(Clone, Copy, Debug)]
pub struct CheckLimits {
    /// Maximum memory of all readers with what they hold, in bytes. A flow for which there is none is refused.
    pub memory: usize,
    /// Maximum number of new QUIC connections within two minutes. Their IDs are remembered.
    pub ids: usize,
}

impl CheckLimits {
    /// Limits without a budget: those of the parts.
    pub const DEFAULT: Self = Self { memory: usize::MAX, ids: 32_768 };
    /// Memory for each of the IDs, in bytes: an entry in two sets, which may be half empty, and of which one is copied when
    /// it grows.
    const ID_BYTES: usize = 3 * (size_of::<u64>() + 1) * 16 / 7;

    /// Limits for `bytes` bytes of memory, which are not above the usual ones.
    #[must_use]
    pub fn within(bytes: usize) -> Self {
        Self { memory: bytes / 4 * 3, ids: (bytes / 4 / Self::ID_BYTES).min(Self::DEFAULT.ids) }
    }

    /// Memory at these limits, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.memory + self.ids * Self::ID_BYTES
    }
}

/// A datagram that is held back.
pub(super) type Held = GuestDatagram<Vec<u8>>;

/// The check of a flow that a rule by name allows. It may begin before the flow exists.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) endpoints: Endpoints,
    /// The flow. None until a datagram has been admitted.
    pub(super) flow: Option<FlowId>,
    /// The reader of the datagrams. None if the datagrams need not be read.
    pub(super) reader: Option<Box<Reader>>,
    /// The hold on the names of the remote address.
    pub(super) hold: Option<Hold>,
    /// The time until which the check may wait, if it holds datagrams.
    deadline: Deadline,
}

/// The state of a flow whose datagrams are read.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) claim: Claim,
    first: FirstDatagrams,
    /// The names that the guard has admitted, in the order of their admission.
    pub(super) admitted: Vec<HostName>,
    held: Vec<Held>,
    held_bytes: usize,
    memory: Part,
}

impl Keyed for Check {
    type Key = Endpoints;
    fn key(&self) -> Endpoints {
        self.endpoints
    }
}

impl Check {
    /// Whether a datagram must be read before it is forwarded.
    pub(super) fn must_read(&self, datagram: &[u8]) -> bool {
        let awaits_name = |reader: &Reader| self.flow.is_none() || reader.admitted.is_empty();
        let reader = self.reader.as_deref();
        reader.is_some_and(|reader| awaits_name(reader) || FirstDatagrams::may_begin_connection(datagram))
    }
}

impl Reader {
    const fn new(claim: Claim, memory: Part) -> Self {
        let first = FirstDatagrams::new(claim.ech);
        Self { claim, first, admitted: Vec::new(), held: Vec::new(), held_bytes: 0, memory }
    }

    /// Counts the present memory of the reader. Returns false if there is not so much.
    fn count(&mut self) -> bool {
        let held =
            self.held.capacity() * size_of::<Held>() + self.held.len() * allocation(0) + self.held_bytes;
        self.memory.resize(LEAST_READER + self.first.memory() + held)
    }

    /// Notes a name that the guard has admitted.
    pub(super) fn note_admitted(&mut self, name: &HostName) {
        if self.admitted.contains(name) {
            return;
        }
        if self.admitted.len() == MAX_NAMES {
            self.admitted.remove(0);
        }
        self.admitted.push(name.clone());
    }
}

/// Memory of a reader that has read nothing, in bytes: with the names that may be admitted later.
const LEAST_READER: usize =
    allocation(size_of::<Reader>()) + MAX_NAMES * (size_of::<HostName>() + allocation(MAX_DOTTED_LEN));

/// All checks.
#[derive(Debug)]
pub(super) struct Checks {
    checks: Flows<Check>,
    /// The checks that hold datagrams, in the order in which they began to wait.
    waiting: Chain,
    links: Links,
    waiting_len: usize,
    /// Number of bytes that all checks hold.
    held_bytes: usize,
    /// Number of bytes that all readers keep.
    read_bytes: usize,
    quota: Quota,
    begun: Begun,
    /// Buffer for a datagram that is being read.
    pub(super) copy: Vec<u8>,
}

impl Checks {
    /// An empty table of checks. `hash_key` must be random.
    pub(super) fn new(limits: CheckLimits, hash_key: [u8; 16]) -> Self {
        Self {
            checks: Flows::new(Kind::UdpCheck, usize::MAX, hash_key),
            waiting: Chain::default(),
            links: Links::default(),
            waiting_len: 0,
            held_bytes: 0,
            read_bytes: 0,
            quota: Quota::new(limits.memory),
            begun: Begun::new(limits.ids, hash_key),
            copy: Vec::with_capacity(wire::frame::MAX_LEN),
        }
    }

    /// Memory of a check without a reader, in bytes.
    pub(super) const BYTES: usize = Flows::<Check>::BYTES + Timers::<FlowId>::BYTES + Links::BYTES;

    /// Reserves memory for `flows` checks without a reader. Returns false if there is none.
    pub(super) fn reserve(&mut self, flows: usize) -> bool {
        self.checks.reserve(flows) && self.links.reserve_all(flows)
    }

    pub(super) fn find(&self, endpoints: &Endpoints) -> Option<FlowId> {
        if self.checks.is_empty() { None } else { self.checks.find(endpoints) }
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Check> {
        self.checks.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Check> {
        self.checks.get_mut(id)
    }

    pub(super) fn reader(&mut self, id: FlowId) -> Option<&mut Reader> {
        self.checks.get_mut(id)?.reader.as_deref_mut()
    }

    /// All checks with their IDs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Check)> {
        self.checks.iter()
    }

    /// Adds a check. If there is a claim, the check has a reader. None if there is no room for another reader.
    pub(super) fn begin(&mut self, endpoints: Endpoints, claim: Option<Claim>) -> Option<FlowId> {
        if claim.is_some() && self.read_bytes > MAX_READ {
            return None;
        }
        let reader = match claim {
            Some(claim) => Some(Box::new(Reader::new(claim, self.quota.take(LEAST_READER)?))),
            None => None,
        };
        self.checks.insert(Check { endpoints, flow: None, reader, hold: None, deadline: Deadline::NONE }).ok()
    }

    /// Holds back a datagram, and reads it.
    pub(super) fn read(
        &mut self,
        id: FlowId,
        datagram: Held,
        now: Instant,
        timers: &mut Timers<FlowId>,
    ) -> Found {
        let Some(Check { reader: Some(reader), deadline, .. }) = self.checks.get_mut(id) else {
            return Found::More;
        };
        let len = datagram.payload.len();
        if reader.held.len() == MAX_DATAGRAMS || reader.held_bytes + len > MAX_HELD_EACH {
            return Found::NoName(Why::TooLong);
        }
        if reader.held.is_empty() {
            self.links.push(&mut self.waiting, id.index());
            self.waiting_len += 1;
            deadline.set(Some(now + PATIENCE), timers, id);
        }
        reader.held_bytes += len;
        self.held_bytes += len;
        let before = reader.first.len();
        let found = reader.first.feed_datagram(&datagram.payload, now);
        self.read_bytes = self.read_bytes + reader.first.len() - before;
        reader.held.push(datagram);
        if reader.count() { found } else { Found::NoName(Why::NoRoom) }
    }

    /// Notes that the flow of a check will forward the datagrams that were read.
    pub(super) fn note_forwarded(&mut self, id: FlowId, now: Instant) -> Result<(), Conflict> {
        let Self { checks, begun, .. } = self;
        let Some(Check { reader: Some(reader), .. }) = checks.get_mut(id) else { return Ok(()) };
        reader.first.connections().try_for_each(|(id, forwarded)| begun.note(id, forwarded, now))?;
        reader.first.mark_forwarded();
        Ok(())
    }

    /// Removes and returns the datagrams that a check holds. After that, the check does not wait.
    pub(super) fn take_held(&mut self, id: FlowId, timers: &mut Timers<FlowId>) -> Vec<Held> {
        let Some(Check { reader: Some(reader), deadline, .. }) = self.checks.get_mut(id) else {
            return Vec::new();
        };
        if !reader.held.is_empty() {
            self.links.unlink(&mut self.waiting, id.index());
            self.waiting_len -= 1;
            self.held_bytes -= core::mem::take(&mut reader.held_bytes);
            deadline.set(None, timers, id);
            deadline.withdraw(timers, id);
        }
        let held = core::mem::take(&mut reader.held);
        // The memory shrinks, so there is enough.
        let _ = reader.count();
        held
    }

    /// Removes the reader of a check that holds no datagrams.
    pub(super) fn stop_reading(&mut self, id: FlowId) {
        if let Some(reader) = self.checks.get_mut(id).and_then(|check| check.reader.take()) {
            self.read_bytes -= reader.first.len();
        }
    }

    /// Resets the reader of a check, unless a name was admitted. Without an admitted name, no datagram that it has read
    /// was forwarded.
    pub(super) fn begin_anew(&mut self, id: FlowId) {
        let Some(reader) = self.checks.get_mut(id).and_then(|check| check.reader.as_deref_mut()) else {
            return;
        };
        if reader.admitted.is_empty() {
            self.read_bytes -= reader.first.len();
            reader.first = FirstDatagrams::new(reader.claim.ech);
            let _ = reader.count();
        }
    }

    /// Removes a check. Its hold must be released.
    pub(super) fn remove(&mut self, id: FlowId, timers: &mut Timers<FlowId>) -> Option<Hold> {
        drop(self.take_held(id, timers));
        self.stop_reading(id);
        self.checks.remove(id)?.hold
    }

    /// The check that has waited for the longest time, if too many checks wait, or if they hold too many bytes.
    pub(super) fn surplus(&self) -> Option<FlowId> {
        let too_many = self.waiting_len > MAX_WAITING || self.held_bytes > MAX_HELD;
        self.waiting.first().filter(|_| too_many).and_then(|index| self.checks.id_at(index))
    }

    /// Whether the deadline of a check has been reached.
    pub(super) fn has_expired(&mut self, id: FlowId, now: Instant, timers: &mut Timers<FlowId>) -> bool {
        self.checks.get_mut(id).is_some_and(|check| check.deadline.reached(now, timers, id))
    }
}

#[cfg(test)]
impl Checks {
    /// The number of checks that wait, and the number of bytes that they hold.
    pub(super) const fn waiting(&self) -> (usize, usize) {
        (self.waiting_len, self.held_bytes)
    }

    /// Memory of all readers, in bytes.
    pub(super) fn used_memory(&self) -> usize {
        self.quota.used()
    }

    /// Asserts that no state is left.
    #[track_caller]
    pub(super) fn assert_empty(&self) {
        assert_eq!((self.checks.len(), self.waiting_len, self.held_bytes, self.read_bytes), (0, 0, 0, 0));
        assert_eq!(self.waiting.first(), None);
    }
}
