//! One ring of descriptors (a split virtqueue, virtio 1.2 §2.7), from the device's side.
//!
//! The guest may write anything to the ring at any time. Each field is copied out once, then checked, then used. An
//! invalid value is reported as [`Broken`], and the ring is not served until the front-end starts it again.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};

use super::memory::{Area, Memory, OutOfRange, Piece};

/// Maximum number of entries of a ring.
pub(super) const MAX_SIZE: u32 = 32768;
/// Maximum number of descriptors of one chain, for a ring of any size.
const MAX_CHAIN: u32 = 1024;

const DESCRIPTOR: usize = 16;
const INDEX_AT: usize = 2;
const RING_AT: usize = 4;
const USED_ELEMENT: usize = 8;

/// The error with which a driver has broken its ring.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum Broken {
    /// The ring is outside the guest's memory, or is not aligned as required.
    #[error("the ring is not in the guest's memory")]
    Ring,
    /// The available index is too large: the ring has fewer descriptors.
    #[error("its available index is {0} ahead")]
    Index(u16),
    /// The index of a descriptor is greater than or equal to the size of the table.
    #[error("descriptor {0} is outside the table")]
    Descriptor(u16),
    /// A chain has more descriptors than the table.
    #[error("a chain of descriptors is too long, or has a loop")]
    Chain,
    /// A descriptor points outside the guest's memory.
    #[error("a buffer is not in the guest's memory")]
    Buffer,
    /// A descriptor has length zero.
    #[error("a buffer is empty")]
    Empty,
    /// A buffer has the wrong direction for its ring.
    #[error("a buffer has the wrong direction")]
    Direction,
    /// A table of descriptors is in a table, is in the middle of a chain, has an invalid length, or was not negotiated.
    #[error("a table of descriptors is not allowed")]
    Indirect,
}

impl From<OutOfRange> for Broken {
    fn from(_: OutOfRange) -> Self {
        Self::Buffer
    }
}

/// The addresses of the parts of a ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// Address of the descriptor table. All three addresses are in the front-end's address space.
    pub(super) descriptors: u64,
    /// Address of the available ring, in which the driver offers chains.
    pub(super) available: u64,
    /// Address of the used ring, in which the device reports used chains.
    pub(super) used: u64,
    /// Address of the used ring in the log, if writes to the used ring are logged.
    pub(super) log: Option<u64>,
}

/// The direction of a ring's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads the buffers.
    FromDriver,
    /// The device writes the buffers.
    ToDriver,
}

/// A chain of buffers that the driver has made available.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The index of the chain's first descriptor.
    pub(super) head: u16,
    /// Number of bytes of all buffers.
    pub(super) len: u64,
}

/// The features of a ring that were negotiated.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// VIRTIO_F_EVENT_IDX.
    pub(super) event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub(super) indirect: bool,
}

/// A ring that is served.
#[derive(Debug)]
pub(super) struct Ring {
    size: u16,
    rules: Rules,
    descriptors: Area,
    available: Area,
    used: Area,
    log: Option<u64>,
    /// The next entry of the available ring to take. The counter is free-running: it wraps at 2^16, not at the ring's
    /// size.
    next_available: u16,
    /// The next entry of the used ring to write.
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
    /// The used index at the last call of [`Ring::wants_call`].
    notified: u16,
}

impl Ring {
    /// Creates the ring of `size` entries at `addresses`. The first entry to take is `next_available`.
    pub(super) fn new(
        memory: &Memory,
        size: u16,
        addresses: Addresses,
        rules: Rules,
        next_available: u16,
    ) -> Result<Self, Broken> {
        let entries = usize::from(size);
        let area = |address, len| memory.area(address, len).ok_or(Broken::Ring);
        let used = area(addresses.used, RING_AT + entries * USED_ELEMENT + 2)?;
        let next_used = load(&used, INDEX_AT).map_err(|_| Broken::Ring)?;
        let available = area(addresses.available, RING_AT + entries * 2 + 2)?;
        load(&available, INDEX_AT).map_err(|_| Broken::Ring)?;
        Ok(Self {
            size,
            rules,
            descriptors: area(addresses.descriptors, entries * DESCRIPTOR)?,
            available,
            used,
            log: addresses.log,
            next_available,
            next_used,
            published: next_used,
            notified: next_used,
        })
    }

    /// The next entry of the available ring that will be taken.
    pub(super) fn next_available(&self) -> u16 {
        self.next_available
    }

    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The number of chains that the driver has made available.
    pub(super) fn waiting(&self) -> Result<u16, Broken> {
        // Acquire: the driver writes the entries before it writes the index.
        let index = u16::from_le(self.available.atomic(INDEX_AT)?.load(Ordering::Acquire));
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size { Err(Broken::Index(waiting)) } else { Ok(waiting) }
    }

    /// Whether `waiting` is the number of all entries of the ring, so that no more chains can become available.
    pub(super) fn is_whole(&self, waiting: u16) -> bool {
        waiting == self.size
    }

    /// Reads the chain that is `ahead` places after the next chain, and adds its buffers to `pieces`. The chain must be
    /// available.
    ///
    /// `left` limits the number of iterations for any content of the descriptors: a chain has at most as many
    /// descriptors as the ring, and at most [`MAX_CHAIN`].
    pub(super) fn peek(
        &self,
        memory: &Memory,
        ahead: u16,
        direction: Direction,
        pieces: &mut Vec<Piece>,
    ) -> Result<Chain, Broken> {
        let entry = self.next_available.wrapping_add(ahead) % self.size;
        let head = load(&self.available, RING_AT + 2 * usize::from(entry))?;
        let mut chain = Chain { head, len: 0 };
        let mut index = head;
        let mut left = u32::from(self.size).min(MAX_CHAIN);
        let mut table = None;
        loop {
            left = left.checked_sub(1).ok_or(Broken::Chain)?;
            let descriptor = match &table {
                None => self.descriptor(index)?,
                Some(table) => Table::descriptor(table, memory, index)?,
            };
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                if table.is_some() || !self.rules.indirect || descriptor.has(VRING_DESC_F_NEXT) {
                    return Err(Broken::Indirect);
                }
                table = Some(Table::new(descriptor)?);
                left = left.saturating_add(1);
                index = 0;
                continue;
            }
            if descriptor.has(VRING_DESC_F_WRITE) != (direction == Direction::ToDriver) {
                return Err(Broken::Direction);
            }
            if descriptor.len == 0 {
                return Err(Broken::Empty);
            }
            memory.find(descriptor.address, descriptor.len, pieces)?;
            chain.len += u64::from(descriptor.len);
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    fn descriptor(&self, index: u16) -> Result<Descriptor, Broken> {
        if index >= self.size {
            return Err(Broken::Descriptor(index));
        }
        let mut bytes = [0; DESCRIPTOR];
        self.descriptors.slice(usize::from(index) * DESCRIPTOR, DESCRIPTOR)?.copy_to(&mut bytes);
        Ok(Descriptor::from(bytes))
    }

    /// Takes the next `count` chains out of the available ring.
    pub(super) fn advance(&mut self, count: u16) {
        self.next_available = self.next_available.wrapping_add(count);
    }

    /// Gives a chain back. `len` bytes were written to the chain. The driver sees the chain after the next
    /// [`Ring::publish`].
    pub(super) fn give_back(&mut self, memory: &Memory, head: u16, len: u32) -> Result<(), Broken> {
        let at = RING_AT + USED_ELEMENT * usize::from(self.next_used % self.size);
        let mut bytes = [0; USED_ELEMENT];
        bytes[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        bytes[4..].copy_from_slice(&len.to_le_bytes());
        self.used.slice(at, USED_ELEMENT)?.copy_from(&bytes);
        self.mark(memory, at, USED_ELEMENT);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// The number of chains that were given back but not published.
    pub(super) fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.published)
    }

    /// Publishes all chains that were given back at the same time: the driver must see the buffers of one frame
    /// together (virtio 1.2 §5.1.6.4.2).
    ///
    /// Release: the used elements are written before the index that includes them.
    pub(super) fn publish(&mut self, memory: &Memory) -> Result<(), Broken> {
        if self.unpublished() == 0 {
            return Ok(());
        }
        self.used.atomic(INDEX_AT)?.store(self.next_used.to_le(), Ordering::Release);
        self.mark(memory, INDEX_AT, 2);
        self.published = self.next_used;
        Ok(())
    }

    /// Whether the driver requests a notification of the chains that were published since the last call (virtio 1.2
    /// §2.7.7.2).
    ///
    /// With event indices, the driver names a used entry. The driver must be notified if this entry is between `old`
    /// (included) and `new` (excluded). The subtraction wraps: `new - event - 1 < new - old` is true if and only if
    /// `event` is in `old..new`.
    pub(super) fn wants_call(&mut self) -> Result<bool, Broken> {
        let (old, new) = (self.notified, self.published);
        if old == new {
            return Ok(false);
        }
        // The device stores the used index before it loads the event index. The driver stores its event index before it
        // loads the used index. So at least one side sees the store of the other side, and no notification is missed.
        fence(Ordering::SeqCst);
        self.notified = new;
        if self.rules.event_idx {
            let event = load(&self.available, RING_AT + 2 * usize::from(self.size))?;
            return Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old));
        }
        Ok(load(&self.available, 0)? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }

    /// Requests a notification from the driver when it makes another chain available. `seen` is the number of available
    /// chains that the device has seen. Returns the number of chains that have become available in the meantime. For
    /// these chains, the driver may not send a notification.
    pub(super) fn request_kicks(&mut self, memory: &Memory, seen: u16) -> Result<u16, Broken> {
        if self.rules.event_idx {
            let at = RING_AT + USED_ELEMENT * usize::from(self.size);
            let index = self.next_available.wrapping_add(seen);
            self.used.atomic(at)?.store(index.to_le(), Ordering::Relaxed);
            self.mark(memory, at, 2);
        } else {
            self.set_flags(memory, 0)?;
        }
        // The device stores the request before it loads the available index. The driver stores its index before it
        // loads the request. So no chain is missed.
        fence(Ordering::SeqCst);
        Ok(self.waiting()?.saturating_sub(seen))
    }

    /// Requests that the driver does not notify the device.
    pub(super) fn suppress_kicks(&mut self, memory: &Memory) -> Result<(), Broken> {
        // With event indices, the driver notifies once for each request, so nothing has to be suppressed.
        if self.rules.event_idx { Ok(()) } else { self.set_flags(memory, VRING_USED_F_NO_NOTIFY as u16) }
    }

    fn set_flags(&self, memory: &Memory, flags: u16) -> Result<(), Broken> {
        self.used.atomic(0)?.store(flags.to_le(), Ordering::Relaxed);
        self.mark(memory, 0, 2);
        Ok(())
    }

    /// Logs a write to the used ring.
    fn mark(&self, memory: &Memory, at: usize, len: usize) {
        if let Some(log) = self.log {
            memory.mark_at(log.saturating_add(at as u64), len as u64);
        }
    }
}

/// A descriptor, copied out of the guest's memory.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const fn has(&self, flag: u32) -> bool {
        self.flags & flag as u16 != 0
    }
}

impl From<[u8; DESCRIPTOR]> for Descriptor {
    fn from(b: [u8; DESCRIPTOR]) -> Self {
        Self {
            address: u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            len: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_le_bytes([b[12], b[13]]),
            next: u16::from_le_bytes([b[14], b[15]]),
        }
    }
}

/// A table of descriptors outside the ring.
struct Table {
    address: u64,
    entries: u32,
}

impl Table {
    fn new(descriptor: Descriptor) -> Result<Self, Broken> {
        let (entries, rest) = (descriptor.len / DESCRIPTOR as u32, descriptor.len % DESCRIPTOR as u32);
        if entries == 0 || rest != 0 {
            return Err(Broken::Indirect);
        }
        Ok(Self { address: descriptor.address, entries })
    }

    fn descriptor(&self, memory: &Memory, index: u16) -> Result<Descriptor, Broken> {
        if u32::from(index) >= self.entries {
            return Err(Broken::Descriptor(index));
        }
        let address = self.address.checked_add(DESCRIPTOR as u64 * u64::from(index)).ok_or(Broken::Buffer)?;
        Ok(Descriptor::from(memory.read(address)?))
    }
}

/// Loads a word of a ring.
fn load(area: &Area, at: usize) -> Result<u16, Broken> {
    Ok(u16::from_le(area.atomic(at)?.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests;
