//! vhost-user: the rings of a virtio network device, in memory that QEMU shares with us (behaviour §9.4, virtio 1.2 §5.1).
//!
//! We are the back-end. The front-end, QEMU, tells us over a UNIX socket where the guest's memory and rings are
//! (`session`, `device`); frames then pass through the rings (`from_guest`, `to_guest`) without a system call but for
//! notifications. Whatever a front-end or its guest does wrong ends its connection, or a queue, and nothing else.

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

use anyhow::Context;
use engine::link::{Full, LARGEST_SEGMENT, Layout, Link, Slot};
use engine::timer::Instant;
use rustix::event::epoll::{self, EventData, EventFlags};
use wire::offload::Offload;

use super::entrance::{Entrance, LISTENER, Listener};
use super::pcap::Capture;
use super::trace::{self, Way};
use super::{Change, Counters};
use crate::event_word;
use crate::memory::Vectored;
use device::{Device, MAX_PAIRS};
use features::Features;
pub use from_guest::Inbox;
use from_guest::Transmitted;
use session::{Ended, Session};
use to_guest::Receiver;

const CLIENT: u32 = 1;
/// The first of the queues' descriptors.
const QUEUE: u32 = 2;

/// Options for QEMU to come in at `path`.
pub(crate) fn qemu_options(path: &Path) -> String {
    format!(
        "-chardev socket,id=c,path={} -netdev vhost-user,id=v,chardev=c -device virtio-net-pci,netdev=v -machine \
         memory-backend=m -object memory-backend-memfd,id=m,share=on,size=SIZE",
        path.display()
    )
}

/// A vhost-user socket, and the device that a front-end has set up.
pub struct VhostUserLink {
    listener: Option<Listener>,
    one_off: bool,
    session: Option<Session>,
    /// A socket that was connected from the start, until we watch it.
    connected: Option<OwnedFd>,
    device: Device,
    transmitted: Transmitted,
    receiver: Receiver,
    capture: Option<Capture>,
    /// The guest has had a queue for what we send.
    up: bool,
    /// The guest has gone, and no other may come.
    over: bool,
    /// What went through; dropped: nobody was there to take it.
    counters: Counters,
}

impl VhostUserLink {
    /// A link for whoever comes in by `entrance`, with frames of up to `mtu` bytes behind the Ethernet header.
    pub(crate) fn new(entrance: Entrance, mtu: u16, capture: Option<Capture>) -> Self {
        let (listener, one_off, connected) = match entrance {
            Entrance::Listener { socket, one_off } => (Some(socket), one_off, None),
            Entrance::Connected(socket) => (None, true, Some(socket)),
        };
        Self {
            listener,
            one_off,
            session: None,
            connected,
            device: Device::default(),
            transmitted: Transmitted::default(),
            receiver: Receiver::new(mtu),
            capture,
            up: false,
            over: false,
            counters: Counters::default(),
        }
    }

    /// A link to the front-end at the other end of `socket`.
    #[must_use]
    pub fn connected(socket: OwnedFd, mtu: u16) -> Self {
        Self::new(Entrance::Connected(socket), mtu, None)
    }

    /// The listening socket, if more than one client may connect.
    pub(super) fn listener(&mut self) -> Option<&mut Listener> {
        self.listener.as_mut()
    }

    /// See [`super::Medium::counters`].
    pub(crate) fn counters(&self) -> Counters {
        let dropped = self.counters.dropped + self.receiver.dropped;
        Counters { dropped, ..self.counters }
    }

    /// Whether somebody wants to see all frames: then they have to be copied.
    fn is_watched(&self) -> bool {
        self.capture.is_some() || log::log_enabled!(log::Level::Trace)
    }

    /// Has `epoll` watch the link. To be called in the process that will wait.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        if let Some(listener) = &self.listener {
            listener.watch(epoll).context("can't watch the guest's socket")?;
        }
        if let Some(socket) = self.connected.take() {
            self.begin(socket, epoll).context("can't watch the guest's socket")?;
        }
        Ok(Change::default())
    }

    fn begin(&mut self, socket: OwnedFd, epoll: &OwnedFd) -> std::io::Result<()> {
        let session = Session::new(socket.into())?;
        epoll::add(epoll, session.socket(), EventData::new_u64(event_word::link(CLIENT)), Self::arrivals())?;
        self.session = Some(session);
        Ok(())
    }

    /// Each arrival is an event, once: part of a message may stay in the socket.
    fn arrivals() -> EventFlags {
        EventFlags::IN | EventFlags::RDHUP | EventFlags::ET
    }

    /// Takes an event of one of the descriptors: 0 is the listening socket, 1 the front-end's, from 2 on those of the
    /// queues.
    ///
    /// # Errors
    /// None: what a front-end does wrong is its own end.
    pub fn on_event(
        &mut self,
        source: u32,
        _: EventFlags,
        now: Instant,
        epoll: &OwnedFd,
    ) -> anyhow::Result<Change> {
        match source {
            LISTENER => {
                if let Some(listener) = &mut self.listener
                    && let Some(socket) = listener.accept(self.session.is_some(), now, epoll)
                    && let Err(error) = self.begin(socket, epoll)
                {
                    log::warn!("can't watch the connection: {error}");
                }
                Ok(Change::default())
            }
            CLIENT => Ok(self.on_messages(epoll)),
            _ => Ok(self.on_kick((source - QUEUE) as usize)),
        }
    }

    /// The front-end has something to say.
    fn on_messages(&mut self, epoll: &OwnedFd) -> Change {
        let Some(session) = &mut self.session else { return Change::default() };
        // They may take the rings away.
        self.transmitted.release(&mut self.device);
        self.device.publish();
        let handled = session.handle(&mut self.device).and_then(|all| {
            self.device.watch_kicks(epoll)?;
            if !all {
                // For one event more.
                let data = EventData::new_u64(event_word::link(CLIENT));
                epoll::modify(epoll, session.socket(), data, Self::arrivals())
                    .map_err(std::io::Error::from)?;
            }
            Ok(())
        });
        match handled {
            Ok(()) => {}
            Err(ended) => {
                match ended {
                    Ended::Closed if self.device.had_too_few_queues() => log::warn!(
                        "the front-end closed its connection before it set up a queue. There are {MAX_PAIRS} pairs of \
                         queues: if it asks for more, lower that (QEMU: queues= of -netdev)"
                    ),
                    Ended::Closed => log::info!("client connection closed"),
                    ended => log::warn!("resetting connection of the vhost-user front-end: {ended}"),
                }
                // The descriptor may have copies elsewhere.
                let _ = epoll::delete(epoll, session.socket());
                self.session = None;
                self.device.reset();
                self.device.forget_kicks(epoll);
                (self.up, self.over) = (false, self.one_off);
                return Change { room: true, down: true, ..Change::default() };
            }
        }
        let open = self.device.open_queues().next().is_some();
        let up = open && !self.up;
        self.up = open;
        Change { frames: true, room: true, up, ..Change::default() }
    }

    /// The driver has made buffers available in a queue.
    fn on_kick(&mut self, index: usize) -> Change {
        let Device { queues, memory, .. } = &mut self.device;
        let Some(queue) = queues.get_mut(index) else { return Change::default() };
        let Some(ring) = &mut queue.ring else { return Change::default() };
        if let Err(broken) = ring.spare_kicks(memory) {
            queue.give_up(index, broken);
            return Change::default();
        }
        let to_guest = index.is_multiple_of(2);
        queue.pending = !to_guest;
        Change { frames: !to_guest, room: to_guest, ..Change::default() }
    }

    /// Receives a frame into `inbox`, if there is one: what was left undone in it.
    pub fn receive(&mut self, inbox: &mut Inbox) -> Option<Offload> {
        let watched = self.is_watched();
        let offload = self.transmitted.next(&mut self.device, inbox, watched)?;
        self.counters.received += 1;
        if watched {
            trace::frame(Way::In, inbox.bytes());
        }
        if let Some(capture) = &mut self.capture {
            capture.add(&[inbox.bytes()]);
        }
        Some(offload)
    }

    /// To be called after each round of events: shows the guest what was done. If the link was found `full`, a report will
    /// say when it is not.
    ///
    /// # Errors
    /// None.
    pub fn finish_round(&mut self, full: bool, _: &OwnedFd) -> anyhow::Result<Change> {
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
        self.transmitted.release(&mut self.device);
        self.device.publish();
        let room = full && self.device.ask_for_buffers();
        Ok(Change { room, over: self.over, ..Change::default() })
    }
}

impl Link for VhostUserLink {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        if self.session.is_none() {
            return self.receiver.prepare_own(layout);
        }
        let plain = self.is_watched();
        self.receiver.prepare(&mut self.device, layout, plain)
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        self.receiver.slot(&self.device, layout)
    }

    fn largest_segment(&self) -> u16 {
        // Without super-frames, as large as the guest takes.
        if self.device.features.contains(Features::GUEST_TSO4) { LARGEST_SEGMENT } else { u16::MAX }
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        if self.session.is_none() {
            self.counters.dropped += 1; // as by an unplugged cable
            return Ok(());
        }
        self.receiver.commit(&mut self.device, len, offload)?;
        self.counters.sent += 1;
        if self.is_watched() {
            trace::frame(Way::Out, self.receiver.frame(len));
        }
        if let Some(capture) = &mut self.capture {
            capture.add(&[self.receiver.frame(len)]);
        }
        Ok(())
    }
}
