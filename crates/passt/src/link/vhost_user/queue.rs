//! A queue of the device, as the front-end sets it up: a ring, and the descriptors to notify each other.

use std::fs::File;
use std::io::Write;

use super::memory::Memory;
use super::ring::{Addresses, Broken, Ring, Rules};

/// Chains that are published together: each publication may notify the driver by a system call.
const BATCH: u16 = 32;

/// One of the device's queues.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Entries of the ring, once known.
    pub(super) size: u16,
    /// Where the ring is, once known.
    pub(super) addresses: Option<Addresses>,
    /// The entry of the available ring to start or to continue with.
    pub(super) base: u16,
    /// Frames may cross it.
    pub(super) enabled: bool,
    /// The driver notifies us here.
    pub(super) kick: Option<Kick>,
    /// We notify the driver here.
    pub(super) call: Option<File>,
    /// We report here that the ring is broken.
    pub(super) error: Option<File>,
    /// The ring, while it is served.
    pub(super) ring: Option<Ring>,
    /// Chains may be available for which no notification arrives.
    pub(super) pending: bool,
    /// How many chains were available when they were too few for a frame.
    pub(super) short: u16,
}

/// A descriptor that the driver writes to.
#[derive(Debug)]
pub(super) struct Kick {
    /// An eventfd, if the front-end follows the protocol. It is never read: watched edge-triggered, each write is an event.
    pub(super) fd: File,
    /// Whether the event loop watches it.
    pub(super) watched: bool,
}

impl Queue {
    /// Begins to serve the ring, once all that this needs is known. A ring that is served already continues, at its new
    /// address if it has `moved`.
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

    /// Stops serving the ring. Returns the descriptor that the event loop has to forget.
    pub(super) fn stop(&mut self) -> Option<Kick> {
        if let Some(ring) = self.ring.take() {
            self.base = ring.next_available();
        }
        self.call = None;
        self.pending = false;
        self.kick.take()
    }

    /// The ring is broken: it is not served until the front-end starts it again.
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

    /// Publishes the chains that were given back, if they make a batch. The rest is published at the end of the round.
    pub(super) fn publish_batch(&mut self, index: usize, memory: &Memory) {
        if self.ring.as_ref().is_some_and(|ring| ring.unpublished() >= BATCH) {
            self.publish(index, memory);
        }
    }

    /// Publishes the chains that were given back, and notifies the driver if it asks for that.
    pub(super) fn publish(&mut self, index: usize, memory: &Memory) {
        let Some(ring) = &mut self.ring else { return };
        match ring.publish(memory).and_then(|()| ring.wants_call()) {
            Ok(true) => self.call_now(),
            Ok(false) => {}
            Err(broken) => self.fail(index, broken),
        }
    }

    /// Notifies the driver, whether it asks for that or not.
    pub(super) fn call_now(&self) {
        if let (Some(fd), Some(_)) = (&self.call, &self.ring) {
            signal(fd);
        }
    }
}

/// Writes to an eventfd, which does not block.
fn signal(mut fd: &File) {
    // EAGAIN: the counter is full. The other side has not read it yet, so it will wake up anyway.
    let _ = fd.write(&1_u64.to_ne_bytes());
}
