//! Where a guest's client comes in: a UNIX socket (behaviour §9.2, §9.3).

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use engine::timer::Instant;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with, getpeername, sockopt};
use wire::stream::{DEFAULT_SOCKETS, default_socket};

use crate::event_word;

/// Which of a link's descriptors is the listening socket.
pub(super) const LISTENER: u32 = 0;
/// How long to wait before a connection that could not be accepted is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where clients come from.
pub(crate) enum Entrance {
    /// A listening socket, for one after the other.
    Listener {
        /// The socket.
        socket: Listener,
        /// The first is the last (`--one-off`).
        one_off: bool,
    },
    /// A connected socket that we inherited (`--fd`): there is no other.
    Connected(OwnedFd),
}

impl Entrance {
    /// By a socket that is connected already.
    ///
    /// # Errors
    /// It is no stream socket, or has no other end.
    pub(crate) fn connected(socket: OwnedFd) -> anyhow::Result<Self> {
        if sockopt::socket_type(&socket)? != SocketType::STREAM {
            bail!("not a stream socket");
        }
        getpeername(&socket)?;
        Ok(Self::Connected(socket))
    }
}

/// A listening socket, non-blocking, and a descriptor in reserve: without it, a pending connection could be neither
/// accepted nor refused while there is no free descriptor.
///
/// A connection that cannot be accepted stays pending, and the socket stays readable. So the event loop does not watch
/// the socket until it is time to try again.
pub(crate) struct Listener {
    socket: OwnedFd,
    reserve: Option<OwnedFd>,
    /// The socket is not watched before.
    paused_until: Option<Instant>,
}

impl Listener {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, reserve: reserve(), paused_until: None }
    }

    /// Has `epoll` watch the socket, as [`LISTENER`].
    pub(super) fn watch(&self, epoll: &OwnedFd) -> rustix::io::Result<()> {
        epoll::add(epoll, &self.socket, EventData::new_u64(event_word::link(LISTENER)), EventFlags::IN)
    }

    /// When to call [`Listener::on_deadline`].
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Ends a pause that is over.
    pub(super) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.set_watched(epoll, true);
        }
    }

    /// Accepts a connection, unless a client is connected already (`occupied`): then it is refused.
    pub(super) fn accept(&mut self, occupied: bool, now: Instant, epoll: &OwnedFd) -> Option<OwnedFd> {
        let mut accepted = accept_with(&self.socket, SocketFlags::CLOEXEC);
        if let Err(Errno::MFILE | Errno::NFILE) = accepted {
            self.reserve = None;
            accepted = accept_with(&self.socket, SocketFlags::CLOEXEC);
        }
        let client = self.settle(accepted, occupied, now, epoll);
        if self.reserve.is_none() {
            self.reserve = reserve();
        }
        client
    }

    /// Decides what becomes of the result of accept(2).
    fn settle(
        &mut self,
        accepted: rustix::io::Result<OwnedFd>,
        occupied: bool,
        now: Instant,
        epoll: &OwnedFd,
    ) -> Option<OwnedFd> {
        let socket = match accepted {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
            Err(errno) => {
                log::warn!("can't accept a connection from a guest: {errno}");
                self.paused_until = Some(now + PAUSE);
                self.set_watched(epoll, false);
                return None;
            }
        };
        // 0: in another PID namespace.
        let pid = sys::sockopt::peer_pid(&socket).unwrap_or(0);
        if occupied {
            log::info!("another client is connected: discarding connection from PID {pid}");
            return None;
        }
        log::info!("accepted connection from PID {pid}");
        Some(socket)
    }

    fn set_watched(&self, epoll: &OwnedFd, watched: bool) {
        let events = if watched { EventFlags::IN } else { EventFlags::empty() };
        let word = EventData::new_u64(event_word::link(LISTENER));
        if let Err(errno) = epoll::modify(epoll, &self.socket, word, events) {
            log::warn!("can't watch the guest's socket: {errno}");
        }
    }
}

/// Something harmless to hold a descriptor with.
fn reserve() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

/// Where we listen if nobody says where, from the first on that is free (behaviour §9.2).
pub(crate) fn default_paths() -> impl Iterator<Item = PathBuf> {
    DEFAULT_SOCKETS.map(|number| default_socket(number).to_string().into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::event::Timespec;

    use super::*;

    /// Whether `epoll` reports the listening socket now.
    fn is_reported(epoll: &OwnedFd) -> bool {
        let mut events = Vec::with_capacity(1);
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default())).unwrap();
        !events.is_empty()
    }

    /// A connection that cannot be accepted stays pending. It must not wake the event loop again and again.
    #[test]
    fn a_connection_that_cannot_be_accepted_is_tried_again_after_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixListener::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut listener = Listener::new(socket.into());
        listener.watch(&epoll).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        for errno in [Errno::NOMEM, Errno::NOBUFS, Errno::MFILE, Errno::NFILE, Errno::PERM] {
            let now = Instant::from_micros(7);
            assert!(is_reported(&epoll));
            assert!(listener.settle(Err(errno), false, now, &epoll).is_none());
            assert!(!is_reported(&epoll), "{errno}");
            listener.on_deadline(now, &epoll);
            assert!(!is_reported(&epoll), "{errno}: too early");
            listener.on_deadline(listener.next_deadline().unwrap(), &epoll);
            assert_eq!(listener.next_deadline(), None);
        }
        assert!(is_reported(&epoll));
        assert!(listener.accept(false, Instant::from_micros(7), &epoll).is_some());
        assert!(!is_reported(&epoll));
        for errno in [Errno::AGAIN, Errno::INTR, Errno::CONNABORTED] {
            assert!(listener.settle(Err(errno), false, Instant::from_micros(7), &epoll).is_none());
            assert_eq!(listener.next_deadline(), None, "{errno}");
        }
    }
}
