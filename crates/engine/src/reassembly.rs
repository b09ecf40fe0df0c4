//! Reassembly of the guest's fragments (behaviour §4.7; RFC 791 §3.2, RFC 8200 §4.5).
//!
//! docs/design/fragments.md describes the rules and their reasons.

use alloc::{collections::VecDeque, vec::Vec};
use core::{net::IpAddr, time::Duration};

use wire::{
    assembly::OriginalHeader,
    fragment::{Fragment, MAX_LEN, UNIT},
    frame::Packet,
    payload::Payload,
};

use crate::timer::Instant;

/// Time from the first fragment of a datagram until the incomplete datagram is dropped (RFC 8200 §4.5, RFC 1122
/// §3.3.2).
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of datagrams that wait for fragments.
pub const MAX_DATAGRAMS: usize = 256;
/// Maximum amount of memory of all datagrams that wait for fragments, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// ECN "congestion experienced" (RFC 3168 §5).
const CONGESTION_EXPERIENCED: u8 = 3;

/// The result of adding a fragment.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The fragment waits for other fragments, or is a duplicate.
    Waiting,
    /// The fragment completes a packet with this header. The bytes are the packet's fragmentable part. The caller
    /// should [return](Reassembly::recycle) them.
    Complete(OriginalHeader, Vec<u8>),
    /// The fragment is invalid by itself. Only this fragment is dropped.
    Invalid(Invalid),
    /// The fragment contradicts another fragment, or its datagram was dropped earlier because fragments contradicted
    /// each other.
    Conflict,
}

/// The reason why a fragment is invalid by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The fragment is empty.
    Empty,
    /// The fragment is not the last one, and its length is not a multiple of eight.
    UnalignedLength,
    /// The packet would be too long.
    TooLong,
}

/// A datagram that has expired.
#[derive(Debug, PartialEq, Eq)]
pub struct Expired {
    /// The header of the fragment with offset zero, and the bytes that follow it without a gap. None if this fragment
    /// is missing.
    pub first: Option<(OriginalHeader, Vec<u8>)>,
    /// Identification.
    pub id: u32,
    /// Source of the packet.
    pub source: IpAddr,
    /// Destination of the packet.
    pub destination: IpAddr,
}

/// Memory of a datagram without its bytes, in bytes. The list of datagrams may be twice as long as needed, and is copied when
/// it grows.
const DATAGRAM_BYTES: usize = 3 * size_of::<Datagram>();

/// Limits on the datagrams that wait. At each limit, the datagrams that have waited for the longest time are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of datagrams.
    pub datagrams: usize,
    /// Maximum memory of their bytes, in bytes. A single datagram may exceed it.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Limits {
    /// Limits without a budget.
    pub const DEFAULT: Self = Self { datagrams: MAX_DATAGRAMS, bytes: MAX_BYTES };

    /// Limits for `bytes` bytes of memory, which are not above the usual ones.
    #[must_use]
    pub fn within(bytes: usize) -> Self {
        let datagrams = (bytes / 8 / DATAGRAM_BYTES).clamp(1, MAX_DATAGRAMS);
        let bytes = bytes.saturating_sub(Self { datagrams, bytes: 0 }.memory());
        Self { datagrams, bytes: bytes.min(MAX_BYTES) }
    }

    /// Memory at these limits, in bytes: a new datagram is complete before others are dropped, and its buffer may be twice
    /// as long as needed. One more is kept for reuse.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.bytes + 4 * MAX_LEN + self.datagrams * DATAGRAM_BYTES
    }
}

/// All datagrams that wait for fragments.
#[derive(Debug, Default)]
pub struct Reassembly {
    limits: Limits,
    /// The datagrams in the order in which their first fragments arrived, which is also the order of their deadlines.
    datagrams: VecDeque<Datagram>,
    /// Memory of all datagrams, in bytes.
    bytes: usize,
    /// A buffer for reuse.
    spare: Vec<u8>,
    evicted: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    /// The protocol. None for IPv6.
    protocol: Option<u8>,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    deadline: Instant,
    /// The packet's header, from the fragment with offset zero.
    first: Option<OriginalHeader>,
    /// Number of bytes of the first fragment that count for the packet's length, but do not belong to the fragmentable
    /// part.
    unfragmentable: usize,
    /// The fragmentable part, up to the end of the furthest fragment.
    bytes: Vec<u8>,
    /// The start and end of each fragment in `bytes`, in ascending order. The fragments don't overlap.
    ranges: Vec<(u16, u16)>,
    /// Number of bytes of `bytes` that the fragments cover.
    covered: usize,
    /// The end of the last fragment. None until it has arrived.
    end: Option<usize>,
    /// Whether a fragment is marked "congestion experienced".
    congested: bool,
    /// Whether fragments contradicted each other, so that no packet will be built.
    dropped: bool,
}

impl Reassembly {
    /// No datagrams. At most as many as `limits` allow will wait.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The number of datagrams that wait for fragments.
    #[must_use]
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Whether no datagram waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Memory of the datagrams that wait, in bytes. See [`Limits::bytes`].
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of datagrams that were dropped to make room for newer ones.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The time at which [`Reassembly::expire`] must be called.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.datagrams.front().map(|oldest| oldest.deadline)
    }

    /// Removes a datagram that has expired.
    pub fn expire(&mut self, now: Instant) -> Option<Expired> {
        self.next().filter(|&due| due <= now)?;
        let Datagram { key, first, mut bytes, ranges, dropped, .. } = self.remove(0)?;
        let end = ranges.first().filter(|range| range.0 == 0).map_or(0, |range| usize::from(range.1));
        bytes.truncate(end);
        let first = first.filter(|_| !dropped).map(|header| (header, bytes));
        let Key { source, destination, id, .. } = key;
        Some(Expired { first, id, source, destination })
    }

    /// Takes back the memory of a complete packet, for reuse.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        self.spare = bytes;
    }

    /// Adds a fragment of the guest.
    pub fn add<P: Payload>(
        &mut self,
        packet: &Packet<'_, P>,
        fragment: &Fragment<P>,
        now: Instant,
    ) -> Outcome {
        if fragment.payload.is_empty() {
            return Outcome::Invalid(Invalid::Empty);
        }
        if fragment.more && !fragment.payload.len().is_multiple_of(UNIT) {
            return Outcome::Invalid(Invalid::UnalignedLength);
        }
        let (Ok(end), false) = (u16::try_from(fragment.end()), fragment.is_too_long()) else {
            return Outcome::Invalid(Invalid::TooLong);
        };
        // A fragment for which there is no memory is lost.
        let Some(index) = self.find(packet, fragment, now) else { return Outcome::Waiting };
        let Some(datagram) = self.datagrams.get_mut(index) else { return Outcome::Waiting };
        let before = datagram.memory();
        let waiting = datagram.add(packet, fragment, (fragment.offset, end));
        self.bytes = self.bytes + datagram.memory() - before;
        match waiting {
            Ok(false) => {
                self.shrink(index);
                Outcome::Waiting
            }
            Ok(true) => self.complete(index),
            Err(Conflict) => Outcome::Conflict,
        }
    }

    /// The index of a fragment's datagram, which may be a new datagram. None if there is no memory.
    fn find<P>(&mut self, packet: &Packet<'_, P>, fragment: &Fragment<P>, now: Instant) -> Option<usize> {
        let key = Key {
            source: packet.source,
            destination: packet.destination,
            id: fragment.id,
            protocol: packet.source.is_ipv4().then_some(fragment.protocol),
        };
        // A guest sends all fragments of a datagram one after the other, so the datagram is among the newest.
        if let Some(index) = self.datagrams.iter().rposition(|datagram| datagram.key == key) {
            return Some(index);
        }
        self.datagrams.try_reserve(1).ok()?;
        if self.datagrams.len() >= self.limits.datagrams {
            self.evict(0);
        }
        let mut bytes = core::mem::take(&mut self.spare);
        bytes.clear();
        let datagram = Datagram::new(key, now + TIMEOUT, bytes);
        self.bytes += datagram.memory();
        self.datagrams.push_back(datagram);
        Some(self.datagrams.len() - 1)
    }

    /// Makes room for the datagram at `index`: drops the datagrams that have waited for the longest time.
    fn shrink(&mut self, mut index: usize) {
        while self.bytes > self.limits.bytes && self.datagrams.len() > 1 {
            self.evict(usize::from(index == 0));
            index = index.saturating_sub(1);
        }
    }

    fn evict(&mut self, index: usize) {
        if self.remove(index).is_some() {
            self.evicted += 1;
        }
    }

    fn remove(&mut self, index: usize) -> Option<Datagram> {
        let datagram = self.datagrams.remove(index)?;
        self.bytes -= datagram.memory();
        Some(datagram)
    }

    fn complete(&mut self, index: usize) -> Outcome {
        let Some(datagram) = self.remove(index) else { return Outcome::Waiting };
        let Some(mut header) = datagram.first else { return Outcome::Waiting };
        if datagram.unfragmentable + datagram.covered > MAX_LEN {
            return Outcome::Invalid(Invalid::TooLong);
        }
        if datagram.congested {
            header.traffic_class |= CONGESTION_EXPERIENCED;
        }
        Outcome::Complete(header, datagram.bytes)
    }
}

/// The error of a fragment that contradicts another fragment.
struct Conflict;

impl Datagram {
    const fn new(key: Key, deadline: Instant, bytes: Vec<u8>) -> Self {
        Self {
            key,
            deadline,
            first: None,
            unfragmentable: 0,
            bytes,
            ranges: Vec::new(),
            covered: 0,
            end: None,
            congested: false,
            dropped: false,
        }
    }

    /// The memory of the datagram that counts for [`Limits::bytes`], in bytes.
    const fn memory(&self) -> usize {
        self.bytes.capacity() + self.ranges.capacity() * size_of::<(u16, u16)>()
    }

    /// Adds a valid fragment, if there is memory for it. Returns true if the packet is complete.
    fn add<P: Payload>(
        &mut self,
        packet: &Packet<'_, P>,
        fragment: &Fragment<P>,
        range: (u16, u16),
    ) -> Result<bool, Conflict> {
        if self.dropped {
            return Err(Conflict);
        }
        let at = match self.place(fragment, range) {
            Ok(Some(at)) => at,
            Ok(None) => return Ok(false),
            Err(conflict) => {
                self.dropped = true;
                self.bytes = Vec::new();
                self.ranges = Vec::new();
                return Err(conflict);
            }
        };
        let (start, end) = (usize::from(range.0), usize::from(range.1));
        let more = end.saturating_sub(self.bytes.len());
        if self.bytes.try_reserve(more).is_err() || self.ranges.try_reserve(1).is_err() {
            return Ok(false);
        }
        self.bytes.resize(self.bytes.len() + more, 0);
        fragment.payload.copy_to(self.bytes.get_mut(start..end).unwrap_or_default());
        self.ranges.insert(at, range);
        self.covered += end - start;
        if !fragment.more {
            self.end = Some(end);
        }
        self.congested |= packet.traffic_class & CONGESTION_EXPERIENCED == CONGESTION_EXPERIENCED;
        if start == 0 {
            self.first = Some(OriginalHeader::new(packet, fragment));
            self.unfragmentable = fragment.unfragmentable.into();
        }
        Ok(self.end == Some(self.covered))
    }

    /// The index of a new fragment in the list. None if the fragment is an exact duplicate.
    fn place<P: Payload>(
        &self,
        fragment: &Fragment<P>,
        (start, end): (u16, u16),
    ) -> Result<Option<usize>, Conflict> {
        let at = self.ranges.partition_point(|range| range.0 < start);
        let next = self.ranges.get(at);
        if next == Some(&(start, end)) {
            let last = self.end == Some(end.into());
            let same = last != fragment.more && self.has_same_bytes(fragment);
            return if same { Ok(None) } else { Err(Conflict) };
        }
        let previous = at.checked_sub(1).and_then(|before| self.ranges.get(before));
        let overlaps =
            next.is_some_and(|next| next.0 < end) || previous.is_some_and(|before| before.1 > start);
        let furthest = self.ranges.last().map_or(0, |range| range.1);
        let after_the_last = self.end.is_some_and(|last| usize::from(end) > last);
        let last_before_others = !fragment.more && furthest > end;
        if overlaps || after_the_last || last_before_others { Err(Conflict) } else { Ok(Some(at)) }
    }

    /// Whether the stored bytes are equal to the fragment's. The fragment is in memory that may change, so each piece
    /// is read only once.
    fn has_same_bytes<P: Payload>(&self, fragment: &Fragment<P>) -> bool {
        let start = usize::from(fragment.offset);
        let held = self.bytes.get(start..fragment.end()).unwrap_or_default();
        let mut buffer = [0; 256];
        held.chunks(buffer.len()).enumerate().all(|(index, held)| {
            let at = index * buffer.len();
            let len = fragment.payload.slice(at..at + held.len()).copy_to(&mut buffer);
            buffer.get(..len) == Some(held)
        })
    }
}

#[cfg(test)]
mod tests;
