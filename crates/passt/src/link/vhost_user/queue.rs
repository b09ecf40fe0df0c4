//! A queue of the device, as the front-end sets it up: a ring, and the descriptors to notify each other.

use std::fs::File;
use std::io::Write;

use super::memory::Memory;
use super::ring::{Addresses, Broken, Ring, Rules};

/// One of the device's queues.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Entries of the ring, once known.
    pub(super) size: u16,
    /// Where the ring is, once known.
    pub(super) addresses: Option<Addresses>,
    /// The entry of the available ring to start, or to go on, with.
    pub(super) base: u16,
    /// Frames may cross it.
    pub(super) enabled: bool,
    /// The driver notifies us here.
    pub(super) kick: Option<Kick>,
    /// We notify the driver here.
    pub(super) call: Option<File>,
    /// We tell here that the ring is broken.
    pub(super) error: Option<File>,
    /// The ring, while it is served.
    pub(super) ring: Option<Ring>,
    /// There may be chains of which no notification comes.
    pub(super) pending: bool,
    /// Chains that were available when they were not enough for a frame.
    pub(super) short: u16,
}

/// A descriptor that the driver writes to.
#[derive(Debug)]
pub(super) struct Kick {
    /// An eventfd, as far as one can know. Never read: each write to it is an event of its own.
    pub(super) fd: File,
    /// Whether the event loop waits for it.
    pub(super) watched: bool,
}

impl Queue {
    /// Serves the ring if all that this needs is known and it is not served yet, or serves it where it is `moved` to.
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
            Err(broken) => self.give_up(index, broken),
        }
    }

    /// Ends serving. Returns the descriptor that the event loop has to forget.
    pub(super) fn stop(&mut self) -> Option<Kick> {
        if let Some(ring) = self.ring.take() {
            self.base = ring.next_available();
        }
        self.call = None;
        self.pending = false;
        self.kick.take()
    }

    /// The ring is broken: it is not served again before the front-end starts it anew.
    pub(super) fn give_up(&mut self, index: usize, broken: Broken) {
        log::warn!(
            "queue {index} of the guest is broken: {broken}. It is not served until the guest resets it"
        );
        self.ring = None;
        self.pending = false;
        if let Some(fd) = &self.error {
            signal(fd);
        }
    }

    /// Shows the driver what was given back, and notifies it if it wants that.
    pub(super) fn publish(&mut self, index: usize, memory: &Memory) {
        let Some(ring) = &mut self.ring else { return };
        match ring.publish(memory).and_then(|()| ring.wants_call()) {
            Ok(true) => self.call_now(),
            Ok(false) => {}
            Err(broken) => self.give_up(index, broken),
        }
    }

    /// Notifies the driver, wanted or not.
    pub(super) fn call_now(&self) {
        if let (Some(fd), Some(_)) = (&self.call, &self.ring) {
            signal(fd);
        }
    }
}

/// Writes to an eventfd, which does not block.
fn signal(mut fd: &File) {
    // If it is full, the other side has not looked yet, and will find what there is.
    let _ = fd.write(&1_u64.to_ne_bytes());
}
