//! Links to the guest: where Ethernet frames come from and go to (behaviour §9).

#[cfg(test)]
mod all_sums;
pub(crate) mod entrance;
pub(crate) mod pcap;
pub(crate) mod stream;
pub(crate) mod tap;
mod trace;
pub mod vhost_user;

use std::ops::Range;
use std::os::fd::OwnedFd;

use engine::link::{Full, Layout, Link, Slot};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use wire::offload::Offload;

use crate::memory::{Payload, Vectored};
use entrance::Listener;
use stream::StreamLink;
use tap::TapLink;
use vhost_user::VhostUserLink;

/// Counts of frames since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Those of the guest.
    pub(crate) received: u64,
    /// Those to the guest.
    pub(crate) sent: u64,
    /// Those that the link did not take, or spoiled.
    pub(crate) dropped: u64,
}

/// The link of a guest, of one kind or another.
pub(crate) enum Medium {
    /// No link at all (`--splice-only`): nothing fits.
    None,
    /// The tap device of a network namespace.
    Tap(TapLink),
    /// A UNIX stream socket.
    Stream(StreamLink),
    /// Rings in memory of the guest. Large, and there is one.
    VhostUser(Box<VhostUserLink>),
}

/// What has changed about a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// There may be frames to receive.
    pub frames: bool,
    /// It takes frames again, if it was full.
    pub room: bool,
    /// There is a guest that can hear us, from now on.
    pub up: bool,
    /// The guest has gone; another may come.
    pub down: bool,
    /// The guest has gone, and no other may come.
    pub over: bool,
}

/// A frame of the guest, while it is handled.
pub(crate) enum Inbox {
    /// In a buffer of ours: where.
    Own(Vec<u8>, Range<usize>),
    /// In the guest's memory.
    Guest(vhost_user::Inbox),
}

impl Inbox {
    /// The frame's head, and all of it.
    pub(crate) fn frame(&mut self) -> (&[u8], Payload<'_>) {
        match self {
            Self::Own(buffer, range) => {
                let bytes = buffer.get(range.clone()).unwrap_or_default();
                (wire::frame::head(bytes), bytes.into())
            }
            Self::Guest(inbox) => inbox.frame(),
        }
    }
}

/// One frame from the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Where in the buffer it starts.
    pub(crate) start: usize,
    /// Where it ends.
    pub(crate) end: usize,
    /// What was left undone in it.
    pub(crate) offload: Offload,
}

impl Medium {
    /// What [`Medium::receive`] puts frames into.
    pub(crate) fn inbox(&self) -> Inbox {
        match self {
            Self::None => Inbox::Own(Vec::new(), 0..0),
            Self::Tap(_) => Inbox::Own(vec![0; tap::BUFFER_LEN], 0..0),
            Self::Stream(_) => Inbox::Own(vec![0; stream::BUFFER_LEN], 0..0),
            Self::VhostUser(_) => Inbox::Guest(vhost_user::Inbox::new()),
        }
    }

    /// Whether a guest comes and goes: then nobody may be there.
    pub(crate) const fn has_clients(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::VhostUser(_))
    }

    /// What went through so far.
    pub(crate) fn counters(&self) -> Counters {
        match self {
            Self::None => Counters::default(),
            Self::Tap(link) => link.counters,
            Self::Stream(link) => link.counters,
            Self::VhostUser(link) => link.counters(),
        }
    }

    /// Has `epoll` watch the link. To be called in the process that will wait.
    pub(crate) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        match self {
            Self::None => Ok(Change::default()),
            Self::Tap(link) => link.watch(epoll),
            Self::Stream(link) => link.watch(epoll),
            Self::VhostUser(link) => link.watch(epoll),
        }
    }

    /// Takes an event of one of the link's descriptors.
    ///
    /// # Errors
    /// There is no going on.
    pub(crate) fn on_event(
        &mut self,
        source: u32,
        flags: EventFlags,
        now: Instant,
        epoll: &OwnedFd,
    ) -> anyhow::Result<Change> {
        match self {
            Self::None => Ok(Change::default()),
            Self::Tap(link) => link.on_event(flags, epoll),
            Self::Stream(link) => link.on_event(source, flags, now, epoll),
            Self::VhostUser(link) => link.on_event(source, flags, now, epoll),
        }
    }

    fn listener(&mut self) -> Option<&mut Listener> {
        match self {
            Self::None | Self::Tap(_) => None,
            Self::Stream(link) => link.listener(),
            Self::VhostUser(link) => link.listener(),
        }
    }

    /// When to call [`Medium::on_deadline`].
    pub(crate) fn next_deadline(&mut self) -> Option<Instant> {
        self.listener()?.next_deadline()
    }

    /// Does what is due.
    pub(crate) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        if let Some(listener) = self.listener() {
            listener.on_deadline(now, epoll);
        }
    }

    /// Receives one frame to `inbox`, always the same one, which this link has made. Returns what was left undone in it;
    /// none if there is no frame now: a report says when there is.
    ///
    /// # Errors
    /// There is no going on.
    pub(crate) fn receive(&mut self, inbox: &mut Inbox) -> anyhow::Result<Option<Offload>> {
        let received = match (self, &mut *inbox) {
            (Self::Tap(link), Inbox::Own(buffer, _)) => link.receive(buffer)?,
            (Self::Stream(link), Inbox::Own(buffer, _)) => link.receive(buffer),
            (Self::VhostUser(link), Inbox::Guest(inbox)) => return Ok(link.receive(inbox)),
            _ => None,
        };
        let Some(received) = received else { return Ok(None) };
        if let Inbox::Own(_, range) = inbox {
            *range = received.start..received.end;
        }
        Ok(Some(received.offload))
    }

    /// To be called after each round of events: sends what still waits to be sent. If the link was found `full`, a
    /// report will say when it is not.
    ///
    /// # Errors
    /// There is no going on.
    pub(crate) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> anyhow::Result<Change> {
        match self {
            Self::None => Ok(Change::default()),
            Self::Tap(link) => link.finish_round(full, epoll),
            Self::Stream(link) => link.finish_round(full, epoll),
            Self::VhostUser(link) => link.finish_round(full, epoll),
        }
    }
}

impl Link for Medium {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        match self {
            Self::None => false,
            Self::Tap(link) => link.prepare(layout),
            Self::Stream(link) => link.prepare(layout),
            Self::VhostUser(link) => link.prepare(layout),
        }
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        match self {
            Self::None => Slot::in_buffer(&mut [], layout),
            Self::Tap(link) => link.slot(layout),
            Self::Stream(link) => link.slot(layout),
            Self::VhostUser(link) => link.slot(layout),
        }
    }

    fn largest_segment(&self) -> u16 {
        match self {
            Self::None => u16::MAX,
            Self::Tap(link) => link.largest_segment(),
            Self::Stream(link) => link.largest_segment(),
            Self::VhostUser(link) => link.largest_segment(),
        }
    }

    fn send(&mut self, layout: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        match self {
            Self::None => Err(Full),
            Self::Tap(link) => link.send(layout, len, offload),
            Self::Stream(link) => link.send(layout, len, offload),
            Self::VhostUser(link) => link.send(layout, len, offload),
        }
    }
}
