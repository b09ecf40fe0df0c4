//! The tap device of a network namespace, with virtio-net headers (behaviour §9.1).

mod pace;

use std::os::fd::OwnedFd;

use anyhow::Context;
use engine::link::{Full, Layout, Link, Slot};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use sys::tap::{Offloads, TapDevice, VNET_HDR_LEN};
use wire::offload::{Offload, SegmentKind};
use wire::segment::{Segments, complete_checksum};

use self::pace::Pace;
use super::change::Change;
use super::inbox::{Buffer, Inbox, Lent};
use super::pcap::Capture;
use super::segmentation;
use super::watcher::Watcher;
use crate::event::Source;
use crate::memory::Vectored;

/// The device is the link's only descriptor.
const DEVICE: Source = Source::Link(0);

/// Length of one frame with its virtio-net header, in bytes.
const BUFFER_LEN: usize = VNET_HDR_LEN + wire::frame::MAX_LEN;

/// A tap device, and the frame that is being written to it.
pub(crate) struct TapLink {
    pub(super) device: TapDevice,
    inbox: Inbox<Buffer>,
    /// Room for a virtio-net header and a frame. There is room for the header even if the device uses no headers.
    slot: Vec<u8>,
    /// Room for a virtio-net header and the frame of one segment. It is used if the device does not accept
    /// super-frames.
    segment: Vec<u8>,
    /// The error that shows that the device has failed: its interface was deleted.
    pub(super) failed: Option<Errno>,
    /// Whether the interface is up from the start.
    up: bool,
    /// Whether the event loop reports when the device accepts frames again.
    waiting: bool,
    pace: Pace,
    pub(super) watcher: Watcher,
}

impl TapLink {
    /// Creates the link over `device`. The interface of the device is `up` already, or may be set up later.
    pub(crate) fn new(device: TapDevice, up: bool, capture: Option<Capture>) -> Self {
        Self {
            device,
            inbox: Inbox::new(Buffer::new(BUFFER_LEN)),
            slot: vec![0; BUFFER_LEN],
            segment: Vec::new(),
            failed: None,
            up,
            waiting: false,
            pace: Pace::default(),
            watcher: Watcher::new(capture),
        }
    }

    /// See [`super::Medium::watch`].
    pub(super) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        DEVICE.watch(epoll, &self.device.fd, EventFlags::IN).context("can't watch the tap device")?;
        Ok(Change { up: self.up, ..Change::default() })
    }

    /// See [`super::Medium::on_event`].
    pub(super) fn on_event(&mut self, flags: EventFlags, epoll: &OwnedFd) -> Change {
        let room = flags.contains(EventFlags::OUT);
        if room {
            self.wait_for(false, epoll);
        }
        Change { frames: true, room, ..Change::default() }
    }

    /// See [`super::Medium::finish_round`].
    pub(super) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> Change {
        self.watcher.flush();
        self.pace.finish_round();
        if self.failed.is_some() {
            return Change { lost: true, room: true, ..Change::default() };
        }
        // If room can't be awaited, the next round tries to send.
        let room = full && !self.waiting && !self.wait_for(true, epoll);
        Change { room, ..Change::default() }
    }

    /// Sets whether the event loop reports that the device accepts frames again. Returns false if that failed, and
    /// nothing has changed.
    fn wait_for(&mut self, room: bool, epoll: &OwnedFd) -> bool {
        let events = if room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        match DEVICE.rewatch(epoll, &self.device.fd, events) {
            Ok(()) => self.waiting = room,
            Err(errno) => log::warn!("can't watch the tap device for room: {errno}"),
        }
        self.waiting == room
    }

    /// Reads one frame, if a frame is available. If it is likely that there is none, epoll is to tell.
    pub(super) fn receive(&mut self) -> Option<Lent<Buffer>> {
        if !self.pace.reads_on() {
            return None;
        }
        let mut buffer = self.inbox.lend()?;
        loop {
            let len = match rustix::io::read(&self.device.fd, &mut buffer.bytes[..]) {
                Ok(len) => len,
                Err(Errno::AGAIN) => return None,
                // EIO: the interface is down.
                Err(Errno::IO) => return None,
                Err(Errno::INTR) => continue,
                // The kernel can't describe or copy the frame. The kernel has removed the frame from the queue.
                Err(Errno::INVAL | Errno::NOMEM | Errno::NOBUFS) => {
                    self.watcher.dropped(1);
                    return None;
                }
                Err(errno) => {
                    self.failed = Some(errno);
                    return None;
                }
            };
            let Some((start, offload)) = self.header_of(&buffer.bytes[..len]) else {
                self.watcher.dropped(1);
                continue;
            };
            self.pace.found();
            (buffer.frame, buffer.offload) = (start..len, offload);
            self.watcher.received(&[&buffer.bytes[start..len]]);
            return Some(buffer);
        }
    }

    /// Returns the start of the frame in the read bytes, and the offload work that is not done yet. None if the
    /// virtio-net header is invalid.
    fn header_of(&self, bytes: &[u8]) -> Option<(usize, Offload)> {
        if !self.has_header() {
            return Some((0, Offload::default()));
        }
        Some((VNET_HDR_LEN, Offload::from_virtio(bytes.first_chunk()?)?))
            .filter(|_| bytes.len() >= VNET_HDR_LEN)
    }

    fn has_header(&self) -> bool {
        self.device.offloads.contains(Offloads::VNET_HDR)
    }

    /// Whether the device accepts a frame with this offload.
    fn takes(&self, offload: &Offload) -> bool {
        let needed = match offload.segmentation.map(|segmentation| segmentation.kind) {
            Some(SegmentKind::Tcp4) => Offloads::CSUM | Offloads::TSO4,
            Some(SegmentKind::Tcp6) => Offloads::CSUM | Offloads::TSO6,
            Some(SegmentKind::Udp) => Offloads::CSUM | Offloads::USO,
            None if offload.checksum.is_some() => Offloads::CSUM,
            None => Offloads::empty(),
        };
        self.device.offloads.contains(needed)
    }

    /// Sends a frame. Room for its virtio-net header precedes the frame. Offload work that the device can't do is done
    /// in software.
    fn send_in_software(&mut self, bytes: &mut [u8], offload: &Offload) -> Result<(), Full> {
        let (header, frame) = bytes.split_at_mut(VNET_HDR_LEN);
        header.copy_from_slice(&Offload::default().to_virtio());
        let Some(segments) = Segments::new(frame, offload) else {
            complete_checksum(frame, offload);
            return self.write(bytes);
        };
        let mut room = std::mem::take(&mut self.segment);
        room.resize(BUFFER_LEN, 0);
        room[..VNET_HDR_LEN].copy_from_slice(header);
        let lost = segmentation::send(segments, &mut room, VNET_HDR_LEN, |room, end, payload| {
            let payload = &frame[payload];
            room[end..end + payload.len()].copy_from_slice(payload);
            self.write(&room[..end + payload.len()]).map(|()| 0)
        });
        self.segment = room;
        self.watcher.dropped(lost?);
        Ok(())
    }

    /// Writes a frame with its virtio-net header. The header is left out if the device uses no headers.
    fn write(&mut self, frame: &[u8]) -> Result<(), Full> {
        let start = if self.has_header() { 0 } else { VNET_HDR_LEN };
        loop {
            match rustix::io::write(&self.device.fd, &frame[start..]) {
                Ok(_) => {
                    self.watcher.sent(&[&frame[VNET_HDR_LEN..]]);
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Full),
                // The device does not exist any more.
                Err(errno @ (Errno::BADFD | Errno::BADF | Errno::NODEV)) => {
                    self.failed = Some(errno);
                    return Ok(());
                }
                // The interface is down, memory is short, or the guest's kernel refuses the frame (the guest may have a
                // filter there). The frame is lost, as on a wire.
                Err(_) => {
                    self.watcher.dropped(1);
                    return Ok(());
                }
            }
        }
    }
}

impl Link for TapLink {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        VNET_HDR_LEN + layout.len() <= self.slot.len()
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        Slot::in_buffer(self.slot.get_mut(VNET_HDR_LEN..).unwrap_or_default(), layout)
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        let mut slot = std::mem::take(&mut self.slot);
        let bytes = &mut slot[..VNET_HDR_LEN + len];
        let result = if self.takes(offload) {
            bytes[..VNET_HDR_LEN].copy_from_slice(&offload.to_virtio());
            self.write(bytes)
        } else {
            self.send_in_software(bytes, offload)
        };
        self.slot = slot;
        result
    }
}

#[cfg(test)]
mod tests;
