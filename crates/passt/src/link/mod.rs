//! Links to the guest. A link receives Ethernet frames from the guest and sends frames to the guest (behaviour §9).

#[cfg(test)]
mod all_sums;
mod change;
pub(crate) mod door;
mod inbox;
pub(crate) mod live;
pub(crate) mod pcap;
mod segmentation;
pub(crate) mod stream;
pub(crate) mod tap;
mod trace;
pub mod vhost_user;
mod watcher;

use std::os::fd::OwnedFd;

use engine::link::{Full, Layout, Link, Slot};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use wire::offload::Offload;

use crate::memory::{Payload, Vectored};
pub use change::Change;
use inbox::{Buffer, Lent};
use stream::StreamLink;
use tap::TapLink;
use vhost_user::VhostUserLink;
pub(crate) use watcher::Counters;

/// The link of a guest, of any kind. The engine is compiled once, for this type.
pub(crate) enum Medium {
    /// No link, because of `--splice-only` or because the link was lost. It is always full. The counts belong to the
    /// lost link.
    None(Counters),
    /// The tap device of a network namespace.
    Tap(TapLink),
    /// A UNIX stream socket.
    Stream(StreamLink),
    /// Rings in the guest's memory. Boxed, because this variant is large.
    VhostUser(Box<VhostUserLink>),
}

/// Evaluates the same expression for a link of any kind, or another expression if there is no link.
macro_rules! each {
    ($medium:expr, $link:ident => $result:expr, none => $none:expr) => {
        match $medium {
            Medium::None(_) => $none,
            Medium::Tap($link) => $result,
            Medium::Stream($link) => $result,
            Medium::VhostUser($link) => $result,
        }
    };
}

/// A frame of the guest, while it is handled. Its buffer returns to the link when the frame is dropped.
pub(crate) enum Frame {
    /// The frame is in our own memory.
    Own(Lent<Buffer>),
    /// The frame is in the guest's memory.
    Guest(Lent<vhost_user::Frame>),
}

impl Frame {
    /// The frame's head, the whole frame, and the offload work that is not done yet.
    pub(crate) fn parts(&mut self) -> (&[u8], Payload<'_>, Offload) {
        match self {
            Self::Own(buffer) => buffer.parts(),
            Self::Guest(frame) => frame.parts(),
        }
    }
}

impl Medium {
    /// Creates the variant without a link.
    pub(crate) const fn none() -> Self {
        Self::None(Counters { received: 0, sent: 0, dropped: 0 })
    }

    /// Whether there is no link. If true, connections through the link must be refused.
    pub(crate) const fn is_none(&self) -> bool {
        matches!(self, Self::None(_))
    }

    /// Whether guests connect and disconnect. If true, there may be no guest at times.
    pub(crate) const fn has_clients(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::VhostUser(_))
    }

    /// The name of the link's kind.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::None(_) => "none",
            Self::Tap(_) => "tap",
            Self::Stream(_) => "stream",
            Self::VhostUser(_) => "vhost-user",
        }
    }

    /// Counts of frames that have crossed the link, and of frames that were lost.
    pub(crate) fn counters(&self) -> Counters {
        match self {
            Self::None(counters) => *counters,
            Self::Tap(link) => link.watcher.counters(),
            Self::Stream(link) => link.watcher.counters(),
            Self::VhostUser(link) => link.watcher.counters(),
        }
    }

    /// Begins a capture, or ends it. Returns false if there is no link.
    pub(crate) fn capture(&mut self, live: Option<live::Live>) -> bool {
        match self {
            Self::None(_) => return false,
            Self::Tap(link) => link.watcher.capture(live),
            Self::Stream(link) => link.watcher.capture(live),
            Self::VhostUser(link) => link.watcher.capture(live),
        }
        true
    }

    /// Makes `epoll` watch the link. Must be called after the last fork.
    ///
    /// # Errors
    /// The system refuses to watch the link.
    pub(crate) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        each!(self, link => link.watch(epoll), none => Ok(Change::default()))
    }

    /// Handles an event of one of the link's descriptors.
    pub(crate) fn on_event(
        &mut self,
        source: u32,
        flags: EventFlags,
        now: Instant,
        epoll: &OwnedFd,
    ) -> Change {
        match self {
            Self::None(_) => Change::default(),
            Self::Tap(link) => link.on_event(flags, epoll),
            Self::Stream(link) => link.on_event(source, flags, now, epoll),
            Self::VhostUser(link) => link.on_event(source, now, epoll),
        }
    }

    /// Returns the time at which [`Medium::on_deadline`] must be called.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match self {
            Self::None(_) | Self::Tap(_) => None,
            Self::Stream(link) => link.door.next_deadline(),
            Self::VhostUser(link) => link.door.next_deadline(),
        }
    }

    /// Does the work whose deadline has passed.
    pub(crate) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        match self {
            Self::None(_) | Self::Tap(_) => {}
            Self::Stream(link) => link.door.on_deadline(now, epoll),
            Self::VhostUser(link) => link.door.on_deadline(now, epoll),
        }
    }

    /// Receives one frame. `None`: no frame is available now, and an event reports the next frame. The caller must drop
    /// a frame before it receives the next frame.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        match self {
            Self::None(_) => None,
            Self::Tap(link) => link.receive().map(Frame::Own),
            Self::Stream(link) => link.receive().map(Frame::Own),
            Self::VhostUser(link) => link.receive().map(Frame::Guest),
        }
    }

    /// Sends the frames that wait to be sent. Must be called after each round of events. If the link was found `full`,
    /// a later event reports that the link accepts frames again.
    pub(crate) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> Change {
        let change = match self {
            Self::None(_) => Change::default(),
            Self::Tap(link) => link.finish_round(full, epoll),
            Self::Stream(link) => link.finish_round(full, epoll),
            Self::VhostUser(link) => {
                let change = link.finish_round(full);
                link.end_if_memory_is_lost(epoll).unwrap_or(change)
            }
        };
        if let Self::Tap(link) = self
            && let Some(errno) = link.failed
        {
            log::error!(
                "the tap device {} does not exist any more ({errno}): connections through it end, and new ones are \
                 refused. Local connections that bypass it continue. To connect the namespace again, start pasta again",
                link.device.name
            );
            // This closes the device, so epoll forgets it.
            *self = Self::None(link.watcher.counters());
        }
        change
    }
}

impl Link for Medium {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        each!(self, link => link.prepare(layout), none => false)
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        each!(self, link => link.slot(layout), none => Slot::in_buffer(&mut [], layout))
    }

    fn largest_segment(&self) -> u16 {
        each!(self, link => link.largest_segment(), none => u16::MAX)
    }

    fn send(&mut self, layout: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        each!(self, link => link.send(layout, len, offload), none => Err(Full))
    }
}
