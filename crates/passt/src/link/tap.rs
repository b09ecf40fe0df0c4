//! The tap device of a network namespace, with virtio-net headers (behaviour §9.1).

use std::os::fd::OwnedFd;

use anyhow::Context;
use engine::link::{Full, Layout, Link, Slot};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use sys::tap::{Offloads, TapDevice, VNET_HDR_LEN};
use wire::offload::{Offload, SegmentKind};
use wire::segment::{Segments, complete_checksum};

use super::pcap::Capture;
use super::trace::{self, Way};
use super::{Change, Counters, Received};
use crate::event_word;
use crate::memory::Vectored;

/// The only descriptor there is.
const DEVICE: u32 = 0;
/// What ends us.
const FAILED: &str = "the tap device failed";

/// Room for one frame with its virtio-net header.
pub(crate) const BUFFER_LEN: usize = VNET_HDR_LEN + wire::frame::MAX_LEN;

/// A tap, and the frame that is being written to it.
pub(crate) struct TapLink {
    device: TapDevice,
    /// A virtio-net header, whether the device takes one or not, and a frame.
    slot: Vec<u8>,
    /// One segment, where the device can't segment by itself.
    segment: Vec<u8>,
    capture: Option<Capture>,
    failed: Option<Errno>,
    /// The interface is up from the start.
    up: bool,
    /// We wait for the device to take frames again.
    waiting: bool,
    /// What went through, and what did not.
    pub(super) counters: Counters,
}

impl TapLink {
    /// The link over `device`, whose interface is `up` already or will be some day.
    pub(crate) fn new(device: TapDevice, up: bool, capture: Option<Capture>) -> Self {
        Self {
            device,
            slot: vec![0; BUFFER_LEN],
            segment: Vec::new(),
            capture,
            failed: None,
            up,
            waiting: false,
            counters: Counters::default(),
        }
    }

    /// See [`super::Medium::watch`].
    pub(crate) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        epoll::add(epoll, &self.device.fd, EventData::new_u64(event_word::link(DEVICE)), EventFlags::IN)
            .context("can't watch the tap device")?;
        Ok(Change { up: self.up, ..Change::default() })
    }

    /// See [`super::Medium::on_event`].
    pub(crate) fn on_event(&mut self, flags: EventFlags, epoll: &OwnedFd) -> anyhow::Result<Change> {
        let room = flags.contains(EventFlags::OUT);
        if room {
            self.wait_for(false, epoll)?;
        }
        Ok(Change { frames: true, room, ..Change::default() })
    }

    /// See [`super::Medium::finish_round`].
    pub(crate) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> anyhow::Result<Change> {
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
        if let Some(errno) = self.failed {
            return Err(errno).context(FAILED);
        }
        if full && !self.waiting {
            self.wait_for(true, epoll)?;
        }
        Ok(Change::default())
    }

    /// Changes what ends the wait.
    fn wait_for(&mut self, room: bool, epoll: &OwnedFd) -> anyhow::Result<()> {
        let events = if room { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        self.waiting = room;
        epoll::modify(epoll, &self.device.fd, EventData::new_u64(event_word::link(DEVICE)), events)
            .context("can't watch the tap device")
    }

    /// Reads one frame to `buffer`, which has [`BUFFER_LEN`] bytes. None if there is none now.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> anyhow::Result<Option<Received>> {
        loop {
            let len = match rustix::io::read(&self.device.fd, &mut *buffer) {
                Ok(len) => len,
                Err(Errno::AGAIN) => return Ok(None),
                // EIO: the interface is down.
                Err(Errno::IO) => return Ok(None),
                Err(Errno::INTR) => continue,
                // A frame that the kernel can't describe or copy, which is gone now.
                Err(Errno::INVAL | Errno::NOMEM | Errno::NOBUFS) => {
                    self.counters.dropped += 1;
                    return Ok(None);
                }
                Err(errno) => return Err(errno).context(FAILED),
            };
            let (start, offload) = if self.has_header() {
                match buffer.first_chunk().map(Offload::from_virtio) {
                    Some(Some(offload)) if len >= VNET_HDR_LEN => (VNET_HDR_LEN, offload),
                    _ => {
                        self.counters.dropped += 1;
                        continue;
                    }
                }
            } else {
                (0, Offload::default())
            };
            self.counters.received += 1;
            trace::frame(Way::In, &buffer[start..len]);
            if let Some(capture) = &mut self.capture {
                capture.add(&[&buffer[start..len]]);
            }
            return Ok(Some(Received { start, end: len, offload }));
        }
    }

    fn has_header(&self) -> bool {
        self.device.offloads.contains(Offloads::VNET_HDR)
    }

    /// Whether the device takes a frame with this much left undone.
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

    /// Sends the frame in the slot in pieces that the device takes.
    fn commit_in_software(&mut self, len: usize, offload: &Offload) -> Result<(), Full> {
        let mut frame = core::mem::take(&mut self.slot);
        let mut result = Ok(());
        if let Some(mut segments) = Segments::new(&frame[VNET_HDR_LEN..VNET_HDR_LEN + len], offload) {
            let mut segment = core::mem::take(&mut self.segment);
            segment.resize(BUFFER_LEN, 0);
            segment[..VNET_HDR_LEN].copy_from_slice(&Offload::default().to_virtio());
            let mut sent = false;
            while let Some(len) = segments.write_next(&mut segment[VNET_HDR_LEN..]) {
                result = self.write(&segment[..VNET_HDR_LEN + len]);
                if result.is_err() {
                    break;
                }
                sent = true;
            }
            if sent {
                result = Ok(()); // what is missing will be retransmitted, or was a datagram
            }
            self.segment = segment;
        } else {
            complete_checksum(&mut frame[VNET_HDR_LEN..VNET_HDR_LEN + len], offload);
            frame[..VNET_HDR_LEN].copy_from_slice(&Offload::default().to_virtio());
            result = self.write(&frame[..VNET_HDR_LEN + len]);
        }
        self.slot = frame;
        result
    }

    /// Writes a frame with its virtio-net header, which is left out if the device takes none.
    fn write(&mut self, frame: &[u8]) -> Result<(), Full> {
        let start = if self.has_header() { 0 } else { VNET_HDR_LEN };
        loop {
            match rustix::io::write(&self.device.fd, &frame[start..]) {
                Ok(_) => {
                    self.counters.sent += 1;
                    trace::frame(Way::Out, &frame[VNET_HDR_LEN..]);
                    if let Some(capture) = &mut self.capture {
                        capture.add(&[&frame[VNET_HDR_LEN..]]);
                    }
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Full),
                // The device is gone.
                Err(errno @ (Errno::BADFD | Errno::BADF | Errno::NODEV)) => {
                    self.failed = Some(errno);
                    return Ok(());
                }
                // The interface is down, memory is short, or the guest's kernel does not want it (the guest may have put a
                // filter there): lost like on a wire.
                Err(_) => {
                    self.counters.dropped += 1;
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
        if !self.takes(offload) {
            return self.commit_in_software(len, offload);
        }
        self.slot[..VNET_HDR_LEN].copy_from_slice(&offload.to_virtio());
        let slot = core::mem::take(&mut self.slot);
        let result = self.write(&slot[..VNET_HDR_LEN + len]);
        self.slot = slot;
        result
    }
}

#[cfg(test)]
mod tests;
