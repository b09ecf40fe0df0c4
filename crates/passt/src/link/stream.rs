//! The UNIX stream socket of a virtual machine (behaviour §9.2, §9.3).
//!
//! The link serves one client at a time. An error of a client ends only its own connection. Flows stay, and continue
//! when this client or another client connects.

mod outbox;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use engine::link::{Full, Layout, Link, Slot};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use wire::offload::Offload;
use wire::stream::{MAX_FRAME_LEN, PREFIX_LEN, Unframer};
use wire::train::Train;

use super::change::Change;
use super::door::{Client, Door, GuestSocket, LISTENER};
use super::inbox::{Buffer, Inbox, Lent};
use super::pcap::Capture;
use super::watcher::Watcher;
use crate::memory::Vectored;
use outbox::Outbox;

/// Length of the buffer, in bytes: the maximum number of bytes that are read at a time, and room to complete a frame
/// that has begun.
const BUFFER_LEN: usize = (256 << 10) + PREFIX_LEN + MAX_FRAME_LEN;
/// Requested size of the send buffer, in bytes. The kernel may grant less.
const SEND_BUFFER: usize = 1 << 20;

/// Options for a QEMU process that connects at `path`.
pub(crate) fn qemu_options(path: &Path) -> String {
    format!(
        "-device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path={}",
        path.display()
    )
}

/// A stream socket that is connected, or waits for a client.
pub(crate) struct StreamLink {
    pub(super) door: Door<Connection>,
    inbox: Inbox<Buffer>,
    outbox: Outbox,
    pub(super) watcher: Watcher,
}

/// The connection of a client.
pub(super) struct Connection {
    socket: OwnedFd,
    unframer: Unframer,
    /// Whether all bytes that had arrived at the last event were read.
    drained: bool,
    /// Whether the client has closed the connection, or violated the framing. Then the connection must be ended.
    lost: bool,
    /// Whether the event loop must report when the socket accepts more bytes.
    waiting: bool,
}

impl StreamLink {
    /// Creates a link for the client of `socket`.
    pub(crate) fn new(socket: GuestSocket, capture: Option<Capture>) -> Self {
        Self {
            door: Door::new(socket),
            inbox: Inbox::new(Buffer::new(BUFFER_LEN)),
            outbox: Outbox::new(),
            watcher: Watcher::new(capture),
        }
    }

    /// See [`super::Medium::watch`].
    pub(super) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<Change> {
        Ok(Change { up: self.door.watch(epoll)?, ..Change::default() })
    }

    /// See [`super::Medium::on_event`].
    pub(super) fn on_event(
        &mut self,
        source: u32,
        flags: EventFlags,
        now: Instant,
        epoll: &OwnedFd,
    ) -> Change {
        if source == LISTENER {
            return Change { up: self.door.accept(now, epoll), ..Change::default() };
        }
        let Some(connection) = self.door.client_mut() else { return Change::default() };
        let room = flags.contains(EventFlags::OUT);
        if room {
            self.outbox.retry();
        }
        // If there is an error, a read reports it.
        connection.drained = false;
        Change { frames: true, room, ..Change::default() }
    }

    /// See [`super::Medium::receive`]. The frame may be a train of several frames.
    pub(super) fn receive(&mut self) -> Option<Lent<Buffer>> {
        let connection = self.door.client_mut()?;
        let mut lent = self.inbox.lend()?;
        let buffer = &mut lent.bytes[..];
        let mut frame = connection.next_frame(buffer)?;
        self.watcher.received(&[&buffer[frame.clone()]]);
        // Captures and traces show frames as they arrived. The engine verifies the fields that are not verified here.
        let train = if self.watcher.is_watching() {
            None
        } else {
            Train::begin(&buffer[frame.clone()], &buffer[frame.clone()], &Offload::default())
        };
        let verified = train.is_some();
        if let Some(mut train) = train {
            let mut ahead = connection.unframer;
            while let Ok(Some(next)) = ahead.next_frame(buffer)
                && train.join_in(buffer, &mut frame, next)
            {
                connection.unframer = ahead;
                self.watcher.received(&[]);
            }
            train.finish(&mut buffer[frame.clone()]);
        }
        lent.frame = frame;
        lent.offload = Offload { verified, ..Offload::default() };
        Some(lent)
    }

    /// See [`super::Medium::finish_round`].
    pub(super) fn finish_round(&mut self, full: bool, epoll: &OwnedFd) -> Change {
        self.watcher.flush();
        let Some(connection) = self.door.client_mut() else { return Change::default() };
        if connection.lost {
            log::info!("client connection closed");
            self.outbox.clear();
            return self.door.disconnect(epoll);
        }
        self.outbox.flush(&connection.socket);
        let wait = full || !self.outbox.is_empty();
        if connection.waiting == wait {
            return Change::default();
        }
        let before = std::mem::replace(&mut connection.waiting, wait);
        let events = if wait { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let Err(error) = self.door.rewatch(events, epoll) else { return Change::default() };
        log::warn!("can't watch the guest's socket for room: {error}");
        if let Some(connection) = self.door.client_mut() {
            connection.waiting = before;
        }
        // If room can't be awaited, the next round tries to send.
        Change { room: wait, ..Change::default() }
    }
}

impl Client for Connection {
    const EVENTS: EventFlags = EventFlags::IN;

    fn new(socket: OwnedFd) -> io::Result<Self> {
        // Best effort: a smaller buffer only reduces the speed.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
        Ok(Self { socket, unframer: Unframer::default(), drained: true, lost: false, waiting: false })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Finds the next whole frame, and reads more of the stream if there is none in `buffer`.
    fn next_frame(&mut self, buffer: &mut [u8]) -> Option<std::ops::Range<usize>> {
        loop {
            match self.unframer.next_frame(buffer) {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) if self.drained || self.lost => return None,
                Ok(None) => self.read(buffer),
                Err(bad) => {
                    log::warn!("Bad frame size from guest ({} bytes), resetting connection", bad.0);
                    self.lost = true;
                    return None;
                }
            }
        }
    }

    /// Reads once. Reads at most as many bytes as fit into `buffer`.
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
        if let Some(connection) = self.door.client()
            && !self.outbox.has_room(layout.len())
        {
            self.outbox.flush(&connection.socket);
        }
        self.outbox.has_room(layout.len())
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Vectored> {
        Slot::in_buffer(self.outbox.room(), layout)
    }

    fn largest_segment(&self) -> u16 {
        // All super-frames are segmented. Large super-frames need fewer reads of sockets.
        u16::MAX
    }

    fn send(&mut self, _: Layout, len: usize, offload: &Offload) -> Result<(), Full> {
        let Some(connection) = self.door.client() else {
            self.watcher.dropped(1); // as with an unplugged cable
            return Ok(());
        };
        self.outbox.commit(len, offload, &mut self.watcher)?;
        if self.outbox.is_due() {
            self.outbox.flush(&connection.socket);
        }
        Ok(())
    }
}
