//! A queue of the device that the front-end has set up: a ring, and the descriptors with which driver and device notify
//! each other.

use std::fs::File;
use std::io::Write;

use super::memory::Memory;
use super::ring::{Addresses, Broken, Ring, Rules};

/// Number of chains that are published together. Each publication may need a system call to notify the driver.
const BATCH: u16 = 32;

/// One of the device's queues.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Number of entries of the ring, if it is known.
    pub(super) size: u16,
    /// Addresses of the ring, if they are known.
    pub(super) addresses: Option<Addresses>,
    /// The next entry of the available ring to process, when the ring starts or continues.
    pub(super) base: u16,
    /// Whether frames may cross the queue.
    pub(super) enabled: bool,
    /// The driver uses this descriptor to notify the device.
    pub(super) kick: Option<Kick>,
    /// The device uses this descriptor to notify the driver.
    pub(super) call: Option<File>,
    /// The device uses this descriptor to report that the ring is broken.
    pub(super) error: Option<File>,
    /// The ring, while it is served.
    pub(super) ring: Option<Ring>,
    /// Whether chains may be available for which no notification arrives.
    pub(super) pending: bool,
    /// The number of available chains when they were last too few for a frame.
    pub(super) short: u16,
}

/// A descriptor to which the driver writes.
#[derive(Debug)]
pub(super) struct Kick {
    /// An eventfd, if the front-end follows the protocol. It is never read: it is watched edge-triggered, so each write
    /// is an event.
    pub(super) fd: File,
    /// Whether the event loop watches the descriptor.
    pub(super) watched: bool,
}

impl Queue {
    /// Begins to serve the ring when all necessary values are known. A ring that is served already continues. If the
    /// ring has `moved`, it continues at its new address.
    pub(super) fn start(&mut self, index: usize, memory: &Memory, rules: Rules, moved: bool) {
        if self.ring.is_some() && !moved || self.kick.is_none() || self.size == 0 {
            return;
        }
        let Some(addresses) = self.addresses else { return };
        let base = self.ring.take().map_or(self.base, |ring| ring.next_available());
        self.base = base;
        match Ring::new(memory, self.size, addresses, rules, base) {
            Ok(ring) => {
                log::debug!("queue {index}: {} entries, from {base} on", self.size);
                self.ring = Some(ring);
                self.pending = true;
                self.short = 0;
            }
            Err(broken) => self.fail(index, broken),
        }
    }

    /// Stops serving the ring. Returns the descriptor that the event loop must forget.
    pub(super) fn stop(&mut self) -> Option<Kick> {
        if let Some(ring) = self.ring.take() {
            self.base = ring.next_available();
        }
        self.call = None;
        self.pending = false;
        self.kick.take()
    }

    /// Marks the ring as broken: it is not served until the front-end starts it again.
    pub(super) fn fail(&mut self, index: usize, broken: Broken) {
        log::warn!(
            "queue {index} of the guest is broken: {broken}. It is not served until the guest resets it"
        );
        self.ring = None;
        self.pending = false;
        if let Some(fd) = &self.error {
            signal(fd);
        }
    }

    /// Publishes the chains that were given back if there are enough for a batch. Otherwise they are published at the
    /// end of the round.
    pub(super) fn publish_batch(&mut self, index: usize, memory: &Memory) {
        if self.ring.as_ref().is_some_and(|ring| ring.unpublished() >= BATCH) {
            self.publish(index, memory);
        }
    }

    /// Publishes the chains that were given back. Notifies the driver if the driver has requested notifications.
    pub(super) fn publish(&mut self, index: usize, memory: &Memory) {
        let Some(ring) = &mut self.ring else { return };
        match ring.publish(memory).and_then(|()| ring.wants_call()) {
            Ok(true) => self.call_now(),
            Ok(false) => {}
            Err(broken) => self.fail(index, broken),
        }
    }

    /// Notifies the driver, even if the driver has not requested notifications.
    pub(super) fn call_now(&self) {
        if let (Some(fd), Some(_)) = (&self.call, &self.ring) {
            signal(fd);
        }
    }
}

/// Writes to an eventfd. The write does not block.
fn signal(mut fd: &File) {
    // EAGAIN: the counter is full. The other side has not read it yet, so the other side will wake up anyway.
    let _ = fd.write(&1_u64.to_ne_bytes());
}
