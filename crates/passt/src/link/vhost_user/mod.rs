//! vhost-user: the rings of a virtio network device, in memory that QEMU shares with this program (behaviour §9.4,
//! virtio 1.2 §5.1).
//!
//! This program is the back-end. The front-end, QEMU, sends the locations of the guest's memory and rings over a UNIX
//! socket (`session`, `device`). Frames then pass through the rings (`from_guest`, `to_guest`), without system calls
//! except notifications. An error of a front-end or of its guest ends only the front-end's connection, or only one
//! queue.

mod device;
#[cfg(test)]
mod driver;
mod features;
mod from_guest;
mod memory;
mod queue;
mod ring;
mod session;
mod to_guest;

use std::os::fd::OwnedFd;
use std::path::Path;

use engine::link::{Full, LARGEST_SEGMENT, Layout, Link, Slot};
use engine::timer::Instant;
use wire::offload::Offload;

use super::change::Change;
use super::door::{CLIENT, Client, Door, GuestSocket, LISTENER};
use super::inbox::{Inbox, Lent};
use super::pcap::Capture;
use super::watcher::Watcher;
use crate::memory::Vectored;
use device::{Device, MAX_PAIRS};
use features::Features;
pub use from_guest::Frame;
use from_guest::FromGuest;
use session::{Ended, Session};
use to_guest::ToGuest;

/// The number of the first queue's descriptor.
const QUEUE: u32 = CLIENT + 1;

/// Options for a QEMU process that connects at `path`.
pub(crate) fn qemu_options(path: &Path) -> String {
    format!(
        "-chardev socket,id=c,path={} -netdev vhost-user,id=v,chardev=c -device virtio-net-pci,netdev=v -machine \
         memory-backend=m -object memory-backend-memfd,id=m,share=on,size=SIZE",
        path.display()
    )
}

/// A vhost-user socket, and the device that a front-end has set up.
pub struct VhostUserLink {
    pub(super) door: Door<Session>,
    device: Device,
    inbox: Inbox<Frame>,
    from_guest: FromGuest,
    to_guest: ToGuest,
    /// Whether the guest has a queue that receives frames.
    up: bool,
    pub(super) watcher: Watcher,
}

impl VhostUserLink {
    /// Creates a link for the front-end of `socket`. Frames have up to `mtu` bytes after the Ethernet header.
    pub(crate) fn new(socket: GuestSocket, mtu: u16, capture: Option<Capture>) -> Self {
        Self {
            door: Door::new(socket),
            device: Device::default(),
            inbox: Inbox::new(Frame::new()),
            from_guest: FromGuest::default(),
            to_guest: ToGuest::new(mtu),
            up: false,
            watcher: Watcher::new(capture),
        }
    }

    /// Creates a link to the front-end that is connected to `socket`.
    #[must_use]
    pub fn connected(socket: OwnedFd, mtu: u16) -> Self {
        Self::new(GuestSocket::Connected(socket), mtu, None)
    }

    /// Makes `epoll` watch the link. Must be called in the process that runs the event loop.
    ///
    /// # Errors
    /// The system refuses to watch the link.
    pub fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        self.door.watch(epoll)?;
        Ok(Change::default())
    }

    /// Handles an event of a descriptor. 0 is the listening socket, 1 is the front-end's socket, and 2 and higher
    /// numbers are descriptors of the queues.
    pub fn on_event(&mut self, source: u32, now: Instant, epoll: &OwnedFd) -> Change {
        match source {
            LISTENER => {
                self.door.accept(now, epoll);
                Change::default()
            }
            CLIENT => self.on_messages(epoll),
            _ => self.on_kick((source - QUEUE) as usize),
        }
    }

    /// Handles messages of the front-end, or its disconnection.
    fn on_messages(&mut self, epoll: &OwnedFd) -> Change {
        let Some(session) = self.door.client_mut() else { return Change::default() };
        // The messages may remove the rings, so completed work is published to the driver first.
        self.from_guest.release(&mut self.device);
        self.device.publish();
        let handled = session.handle(&mut self.device).and_then(|all| {
            self.device.watch_kicks(epoll)?;
            if !all {
                // This makes epoll report the remaining messages again.
                self.door.rewatch(Session::EVENTS, epoll)?;
            }
            Ok(())
        });
        if let Err(ended) = handled {
            return self.on_end(&ended, epoll);
        }
        let open = self.device.open_queues().next().is_some();
        let up = open && !self.up;
        self.up = open;
        Change { frames: true, room: true, up, ..Change::default() }
    }

    /// Ends the connection if the front-end has shortened a file that it shares. Must be called after each round.
    pub(super) fn end_if_memory_is_lost(&mut self, epoll: &OwnedFd) -> Option<Change> {
        self.device.memory.is_lost().then(|| self.on_end(&Ended::MemoryLost, epoll))
    }

    /// Handles the end of the connection to the front-end.
    fn on_end(&mut self, ended: &Ended, epoll: &OwnedFd) -> Change {
        match ended {
            Ended::Closed if self.device.had_too_few_queues() => log::warn!(
                "the front-end closed its connection before it set up a queue. There are {MAX_PAIRS} pairs of \
                 queues: if it asks for more, lower that (QEMU: queues= of -netdev)"
            ),
            Ended::Closed => log::info!("client connection closed"),
            ended => log::warn!("resetting connection of the vhost-user front-end: {ended}"),
        }
        self.device.reset();
        self.device.forget_kicks(epoll);
        self.up = false;
        self.door.disconnect(epoll)
    }

    /// Handles a notification: the driver has made buffers available in a queue.
    fn on_kick(&mut self, index: usize) -> Change {
        let Device { queues, memory, .. } = &mut self.device;
        let Some(queue) = queues.get_mut(index) else { return Change::default() };
        let Some(ring) = &mut queue.ring else { return Change::default() };
        // Notifications are requested again when the queue is empty, or when the guest's buffers are used up.
        if let Err(broken) = ring.suppress_kicks(memory) {
            queue.fail(index, broken);
            return Change::default();
        }
        let to_guest = index.is_multiple_of(2);
        queue.pending = !to_guest;
        Change { frames: !to_guest, room: to_guest, ..Change::default() }
    }

    /// Receives the next frame of the guest, if a frame is available. The frame may be a train of several frames.
    pub fn receive(&mut self) -> Option<Lent<Frame>> {
        let mut frame = self.inbox.lend()?;
        // A capture or trace needs all bytes, and the guest must not change them any more. So all bytes are copied.
        let watching = self.watcher.is_watching();
        let frames = self.from_guest.next(&mut self.device, &mut frame, watching);
        if frames == 0 {
            return None;
        }
        self.watcher.received(&[frame.bytes()]);
        for _ in 1..frames {
            self.watcher.received(&[]);
        }
        Some(frame)
    }

    /// Must be called after each round of events. Publishes completed work to the driver. If the link was found `full`,
    /// a later event reports that the link accepts frames again.
    pub fn finish_round(&mut self, full: bool) -> Change {
        self.watcher.flush();
        self.from_guest.release(&mut self.device);
        self.device.publish();
        let room = full && self.device.request_buffers();
        Change { room, over: self.door.is_closed(), ..Change::default() }
    }
}

impl Link for VhostUserLink {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        if self.door.client().is_none() {
            return self.to_guest.prepare_own(layout);
        }
        let plain = self.watcher.is_watching();
        self.to_guest.prepare(&mut self.device, layout, plain)
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        self.to_guest.slot(&self.device, layout)
    }

    fn largest_segment(&self) -> u16 {
        // Without super-frames, the size is the maximum size that the guest accepts.
        if self.device.features.contains(Features::GUEST_TSO4) { LARGEST_SEGMENT } else { u16::MAX }
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        if self.door.client().is_none() {
            self.watcher.dropped(1); // as with an unplugged cable
            return Ok(());
        }
        self.to_guest.commit(&mut self.device, &mut self.watcher, len, offload)
    }
}
