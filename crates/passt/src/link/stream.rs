//! A UNIX stream socket with a virtual machine behind it (behaviour §9.2, §9.3).
//!
//! One client at a time. Whatever it does to its connection ends that connection and nothing else: flows stay, and go on
//! when it, or another, comes back.

mod outbox;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::Context;
use engine::link::{Full, Layout, Link, Slot};
use engine::timer::Instant;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use wire::offload::Offload;
use wire::stream::{MAX_FRAME_LEN, PREFIX_LEN, Unframer};
use wire::train::Train;

use super::entrance::{Entrance, LISTENER, Listener};
use super::pcap::Capture;
use super::trace::{self, Way};
use super::{Change, Counters, Received};
use crate::event_word;
use crate::memory::Vectored;
use outbox::Outbox;

/// Room for what is read at a time.
pub(crate) const BUFFER_LEN: usize = (256 << 10) + PREFIX_LEN + MAX_FRAME_LEN;
/// Send buffer that is asked for, in bytes; the kernel gives what its limits allow.
const SEND_BUFFER: usize = 1 << 20;

const CLIENT: u32 = 1;

/// Options for QEMU to come in at `path`.
pub(crate) fn qemu_options(path: &Path) -> String {
    format!(
        "-device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path={}",
        path.display()
    )
}

/// A stream socket, or one to come.
pub(crate) struct StreamLink {
    listener: Option<Listener>,
    one_off: bool,
    client: Option<Client>,
    outbox: Outbox,
    capture: Option<Capture>,
    /// What went through, and what nobody was there to take.
    pub(super) counters: Counters,
}

/// Who is connected.
struct Client {
    socket: OwnedFd,
    unframer: Unframer,
    /// Everything that had come when we last looked was read.
    drained: bool,
    /// It is gone, or has to go.
    lost: bool,
    /// We wait for it to take more.
    waiting: bool,
}

impl StreamLink {
    /// A link for whoever comes in by `entrance`.
    pub(crate) fn new(entrance: Entrance, capture: Option<Capture>) -> Self {
        let (listener, one_off, client) = match entrance {
            Entrance::Listener { socket, one_off } => (Some(socket), one_off, None),
            Entrance::Connected(socket) => (None, true, Some(Client::new(socket))),
        };
        Self { listener, one_off, client, outbox: Outbox::new(), capture, counters: Counters::default() }
    }

    /// See [`super::Medium::watch`].
    pub(crate) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        if let Some(listener) = &self.listener {
            listener.watch(epoll).context("can't watch the guest's socket")?;
        }
        if let Some(client) = &self.client {
            client.watch(epoll).context("can't watch the guest's socket")?;
        }
        Ok(Change { up: self.client.is_some(), ..Change::default() })
    }

    /// See [`super::Medium::on_event`].
    pub(crate) fn on_event(
        &mut self,
        source: u32,
        flags: EventFlags,
        now: Instant,
        epoll: &OwnedFd,
    ) -> anyhow::Result<Change> {
        if source == LISTENER {
            return Ok(Change { up: self.accept(now, epoll), ..Change::default() });
        }
        let Some(client) = &mut self.client else { return Ok(Change::default()) };
        let room = flags.contains(EventFlags::OUT);
        if room {
            self.outbox.retry();
        }
        // Errors are found by reading.
        client.drained = false;
        Ok(Change { frames: true, room, ..Change::default() })
    }

    /// The listening socket, if more than one client may connect.
    pub(super) fn listener(&mut self) -> Option<&mut Listener> {
        self.listener.as_mut()
    }

    /// Accepts a client unless one is connected already. Returns whether it did.
    fn accept(&mut self, now: Instant, epoll: &OwnedFd) -> bool {
        let Some(listener) = &mut self.listener else { return false };
        if self.client.as_ref().is_some_and(Client::has_hung_up) {
            // Its last frames come first; the listener reports again.
            return false;
        }
        let Some(socket) = listener.accept(self.client.is_some(), now, epoll) else { return false };
        let client = Client::new(socket);
        if let Err(errno) = client.watch(epoll) {
            log::warn!("can't watch the connection: {errno}");
            return false;
        }
        self.client = Some(client);
        true
    }

    /// See [`super::Medium::receive`]. The frame may be a train of several.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let client = self.client.as_mut()?;
        let mut frame = loop {
            match client.unframer.next_frame(buffer) {
                Ok(Some(frame)) => break frame,
                Ok(None) if client.drained || client.lost => return None,
                Ok(None) => client.read(buffer),
                Err(bad) => {
                    log::warn!("Bad frame size from guest ({} bytes), resetting connection", bad.0);
                    client.lost = true;
                    return None;
                }
            }
        };
        self.counters.received += 1;
        trace::frame(Way::In, &buffer[frame.clone()]);
        if let Some(capture) = &mut self.capture {
            capture.add(&[&buffer[frame.clone()]]);
        }
        // Captures and traces show frames as they came. The engine verifies what is not verified here.
        let watched = self.capture.is_some() || log::log_enabled!(log::Level::Trace);
        let train = if watched { None } else { Train::begin(&buffer[frame.clone()]) };
        let verified = train.is_some();
        if let Some(mut train) = train {
            let mut ahead = client.unframer;
            while let Ok(Some(next)) = ahead.next_frame(buffer)
                && train.join(buffer, &mut frame, next)
            {
                client.unframer = ahead;
                self.counters.received += 1;
            }
            train.finish(&mut buffer[frame.clone()]);
        }
        let offload = Offload { verified, ..Offload::default() };
        Some(Received { start: frame.start, end: frame.end, offload })
    }

    /// See [`super::Medium::finish_round`].
    pub(crate) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> anyhow::Result<Change> {
        if let Some(capture) = &mut self.capture {
            capture.flush();
        }
        let Some(client) = &mut self.client else { return Ok(Change::default()) };
        if client.lost {
            log::info!("client connection closed");
            // The descriptor may have copies elsewhere.
            let _ = epoll::delete(epoll, &client.socket);
            self.client = None;
            self.outbox.clear();
            return Ok(Change { room: true, down: true, over: self.one_off, ..Change::default() });
        }
        self.outbox.flush(&client.socket);
        let wait = full || !self.outbox.is_empty();
        if client.waiting != wait {
            let events = if wait { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(epoll, &client.socket, EventData::new_u64(event_word::link(CLIENT)), events)
                .context("can't watch the guest's socket")?;
            client.waiting = wait;
        }
        Ok(Change::default())
    }
}

impl Client {
    fn new(socket: OwnedFd) -> Self {
        // Just a wish.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
        Self { socket, unframer: Unframer::default(), drained: true, lost: false, waiting: false }
    }

    fn watch(&self, epoll: &OwnedFd) -> rustix::io::Result<()> {
        epoll::add(epoll, &self.socket, EventData::new_u64(event_word::link(CLIENT)), EventFlags::IN)
    }

    /// Whether it will send no more than what is there already.
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::RDHUP)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// Reads some of what is there, unless nothing is.
    fn read(&mut self, buffer: &mut [u8]) {
        let room = self.unframer.room(buffer);
        let len = room.len();
        match recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.lost = true,
            Ok((read, _)) => {
                self.unframer.filled(read);
                self.drained = read < len;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.drained = true,
            Err(_) => self.lost = true,
        }
    }
}

impl Link for StreamLink {
    type Memory = Vectored;

    fn prepare(&mut self, layout: Layout) -> bool {
        if let Some(client) = &self.client
            && !self.outbox.has_room(layout.len())
        {
            self.outbox.flush(&client.socket);
        }
        self.outbox.has_room(layout.len())
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        Slot::in_buffer(self.outbox.room(), layout)
    }

    fn largest_segment(&self) -> u16 {
        // Each is a frame of its own here.
        u16::MAX
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        let Some(client) = &self.client else {
            self.counters.dropped += 1; // as by an unplugged cable
            return Ok(());
        };
        self.outbox.commit(len, offload, self.capture.as_mut())?;
        self.counters.sent += 1;
        if self.outbox.is_due() {
            self.outbox.flush(&client.socket);
        }
        Ok(())
    }
}
