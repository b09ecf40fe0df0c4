//! The UNIX socket to which a guest connects, and the connected guest (behaviour §9.2, §9.3).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use engine::timer::Instant;
use rustix::event::epoll::{self, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with, getpeername, sockopt};
use wire::stream::{DEFAULT_SOCKETS, default_socket};

use super::change::Change;
use crate::event::Source;

/// The number of the listening socket among a link's descriptors.
pub(super) const LISTENER: u32 = 0;
/// The number of the connected client's socket among a link's descriptors.
pub(super) const CLIENT: u32 = 1;
/// Time to wait after a connection could not be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// The socket of a guest.
pub(crate) enum GuestSocket {
    /// A listening socket, non-blocking. It accepts one client at a time.
    Listening {
        /// The listening socket.
        socket: OwnedFd,
        /// Whether no client is accepted after the first client (`--one-off`).
        one_off: bool,
    },
    /// A connected socket that the process inherited (`--fd`). It is the only client.
    Connected(OwnedFd),
}

impl GuestSocket {
    /// Takes over a socket that is connected already.
    ///
    /// # Errors
    /// The socket is not a stream socket, or it is not connected.
    pub(crate) fn connected(socket: OwnedFd) -> anyhow::Result<Self> {
        if sockopt::socket_type(&socket)? != SocketType::STREAM {
            bail!("not a stream socket");
        }
        getpeername(&socket)?;
        Ok(Self::Connected(socket))
    }
}

/// The state that a link keeps for one connection.
pub(super) trait Client: AsFd + Sized {
    /// The events for which the client's socket is watched at first.
    const EVENTS: EventFlags;

    /// Takes over a socket that has just connected.
    ///
    /// # Errors
    /// The system lacks resources for the client.
    fn new(socket: OwnedFd) -> io::Result<Self>;
}

/// Accepts one client at a time.
///
/// ```text
///  Listening:  Vacant <----> Occupied     one-off: Vacant ----> Occupied ----> Closed
///  Connected:  Inherited --watch()--> Occupied ----> Closed
/// ```
pub(super) struct Door<C> {
    listener: Option<Listener>,
    /// Whether the present or next client is the last client.
    one_off: bool,
    state: State<C>,
}

enum State<C> {
    /// No client is connected.
    Vacant,
    /// The socket was connected from the start, and is not watched yet: a child of this process may run the event loop.
    Inherited(OwnedFd),
    /// A client is connected.
    Occupied(C),
    /// The last client has disconnected.
    Closed,
}

impl<C: Client> Door<C> {
    /// Creates a door with this socket.
    pub(super) fn new(socket: GuestSocket) -> Self {
        match socket {
            GuestSocket::Listening { socket, one_off } => {
                Self { listener: Some(Listener::new(socket)), one_off, state: State::Vacant }
            }
            GuestSocket::Connected(socket) => {
                Self { listener: None, one_off: true, state: State::Inherited(socket) }
            }
        }
    }

    /// Makes `epoll` watch the door. Returns whether a client is connected already.
    ///
    /// # Errors
    /// The system refuses to watch the socket.
    pub(super) fn watch(&mut self, epoll: &OwnedFd) -> anyhow::Result<bool> {
        if let Some(listener) = &self.listener {
            listener.watch(epoll).context("can't watch the guest's socket")?;
        }
        match std::mem::replace(&mut self.state, State::Vacant) {
            State::Inherited(socket) => {
                self.state = admit(socket, epoll).context("can't watch the guest's socket")?;
            }
            state => self.state = state,
        }
        Ok(self.client().is_some())
    }

    /// The connected client.
    pub(super) const fn client(&self) -> Option<&C> {
        if let State::Occupied(client) = &self.state { Some(client) } else { None }
    }

    /// The connected client.
    pub(super) const fn client_mut(&mut self) -> Option<&mut C> {
        if let State::Occupied(client) = &mut self.state { Some(client) } else { None }
    }

    /// Whether the last client has disconnected.
    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Handles a connection that the listening socket reports. If no client is connected, the connection is accepted,
    /// else it is refused. Returns whether there is a new client.
    pub(super) fn accept(&mut self, now: Instant, epoll: &OwnedFd) -> bool {
        let Some(listener) = &mut self.listener else { return false };
        let occupied = match &self.state {
            State::Vacant => false,
            // The last frames of the present client must be received first. The listener reports the new connection
            // again.
            State::Occupied(client) if has_hung_up(client) => return false,
            State::Occupied(_) | State::Inherited(_) | State::Closed => true,
        };
        let Some(socket) = listener.accept(occupied, now, epoll) else { return false };
        match admit(socket, epoll) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(error) => {
                log::warn!("can't watch the connection: {error}");
                false
            }
        }
    }

    /// Changes the events for which the client's socket is watched. Events that have occurred already are reported
    /// again, even if they are edge-triggered.
    pub(super) fn rewatch(&self, events: EventFlags, epoll: &OwnedFd) -> io::Result<()> {
        let Some(client) = self.client() else { return Ok(()) };
        Ok(Source::Link(CLIENT).rewatch(epoll, client, events)?)
    }

    /// Ends the client's connection.
    pub(super) fn disconnect(&mut self, epoll: &OwnedFd) -> Change {
        if let Some(client) = self.client() {
            // It is not enough to close the descriptor: another process may have a copy.
            let _ = epoll::delete(epoll, client);
        }
        self.state = if self.one_off { State::Closed } else { State::Vacant };
        Change { room: true, down: true, over: self.one_off, ..Change::default() }
    }

    /// Returns the time at which [`Door::on_deadline`] must be called.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.listener.as_ref()?.paused_until
    }

    /// Watches the listening socket again after a pause.
    pub(super) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        if let Some(listener) = &mut self.listener {
            listener.on_deadline(now, epoll);
        }
    }
}

/// Creates the state of a new connection.
fn admit<C: Client>(socket: OwnedFd, epoll: &OwnedFd) -> io::Result<State<C>> {
    let client = C::new(socket)?;
    Source::Link(CLIENT).watch(epoll, &client, C::EVENTS)?;
    Ok(State::Occupied(client))
}

/// Whether the client has closed its end. Such a client sends nothing more, but unread bytes may wait in the socket.
fn has_hung_up(client: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(client, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
}

/// A listening socket, and a spare descriptor. Without the spare descriptor, a pending connection could be neither
/// accepted nor refused while the process has no free descriptor.
///
/// A connection that can't be accepted stays pending, and the socket stays readable. So the event loop does not watch
/// the socket until the next attempt is due.
struct Listener {
    socket: OwnedFd,
    reserve: Option<OwnedFd>,
    /// The socket is not watched before this time.
    paused_until: Option<Instant>,
}

impl Listener {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, reserve: reserve(), paused_until: None }
    }

    /// Makes `epoll` watch the socket as [`LISTENER`].
    fn watch(&self, epoll: &OwnedFd) -> rustix::io::Result<()> {
        Source::Link(LISTENER).watch(epoll, &self.socket, EventFlags::IN)
    }

    /// Ends a pause that has expired.
    fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.set_watched(epoll, true);
        }
    }

    /// Accepts a connection. If a client is connected already (`occupied`), the connection is refused.
    fn accept(&mut self, occupied: bool, now: Instant, epoll: &OwnedFd) -> Option<OwnedFd> {
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

    /// Handles the result of accept(2).
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
        // 0: the client is in another PID namespace.
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
        if let Err(errno) = Source::Link(LISTENER).rewatch(epoll, &self.socket, events) {
            log::warn!("can't watch the guest's socket: {errno}");
        }
    }
}

/// Opens a spare descriptor.
fn reserve() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

/// The paths to listen at if `--socket` is not given. The first path that is free is used (behaviour §9.2).
pub(crate) fn default_paths() -> impl Iterator<Item = PathBuf> {
    DEFAULT_SOCKETS.map(|number| default_socket(number).to_string().into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    impl Client for UnixStream {
        const EVENTS: EventFlags = EventFlags::IN;

        fn new(socket: OwnedFd) -> io::Result<Self> {
            Ok(socket.into())
        }
    }

    const NOW: Instant = Instant::from_micros(7);

    /// A door at a path, and the epoll set that watches it.
    fn door(folder: &tempfile::TempDir, one_off: bool) -> (Door<UnixStream>, OwnedFd, PathBuf) {
        let path = folder.path().join("socket");
        let socket = UnixListener::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut door = Door::new(GuestSocket::Listening { socket: socket.into(), one_off });
        assert!(!door.watch(&epoll).unwrap());
        (door, epoll, path)
    }

    /// Whether the door has closed the connection.
    fn is_refused(client: &UnixStream) -> bool {
        has_hung_up(client)
    }

    #[test]
    fn one_client_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let (mut door, epoll, path) = door(&folder, false);
        assert!(!door.accept(NOW, &epoll), "nothing is pending");
        let first = UnixStream::connect(&path).unwrap();
        assert!(door.accept(NOW, &epoll));
        let second = UnixStream::connect(&path).unwrap();
        assert!(!door.accept(NOW, &epoll));
        assert!(is_refused(&second) && !is_refused(&first));
        let third = UnixStream::connect(&path).unwrap();
        drop(first);
        assert!(!door.accept(NOW, &epoll), "what the first has sent comes before");
        assert!(!is_refused(&third), "still pending");
        let change = door.disconnect(&epoll);
        assert_eq!(change, Change { room: true, down: true, ..Change::default() });
        assert!(!door.is_closed() && door.client().is_none());
        assert!(door.accept(NOW, &epoll) && !is_refused(&third));
    }

    #[test]
    fn the_first_client_of_a_one_off_is_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let (mut door, epoll, path) = door(&folder, true);
        let _first = UnixStream::connect(&path).unwrap();
        assert!(door.accept(NOW, &epoll) && !door.is_closed());
        assert!(door.disconnect(&epoll).over && door.is_closed());
        let second = UnixStream::connect(&path).unwrap();
        assert!(!door.accept(NOW, &epoll) && is_refused(&second));
    }

    #[test]
    fn an_inherited_client_is_connected_once_watched() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (_client, ours) = UnixStream::pair().unwrap();
        let mut door = Door::<UnixStream>::new(GuestSocket::connected(ours.into()).unwrap());
        assert!(door.client().is_none());
        assert!(door.watch(&epoll).unwrap() && door.client().is_some());
        assert!(!door.accept(NOW, &epoll) && door.next_deadline().is_none());
        assert!(door.disconnect(&epoll).over && door.is_closed());
    }

    /// Whether `epoll` reports the listening socket now.
    fn is_reported(epoll: &OwnedFd) -> bool {
        let mut events = Vec::with_capacity(1);
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default())).unwrap();
        !events.is_empty()
    }

    /// A connection that cannot be accepted stays pending. It must not wake the event loop repeatedly.
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
            listener.on_deadline(listener.paused_until.unwrap(), &epoll);
            assert_eq!(listener.paused_until, None);
        }
        assert!(is_reported(&epoll));
        assert!(listener.accept(false, Instant::from_micros(7), &epoll).is_some());
        assert!(!is_reported(&epoll));
        for errno in [Errno::AGAIN, Errno::INTR, Errno::CONNABORTED] {
            assert!(listener.settle(Err(errno), false, Instant::from_micros(7), &epoll).is_none());
            assert_eq!(listener.paused_until, None, "{errno}");
        }
    }
}
