//! Where a guest's client comes in: a UNIX socket (SPEC §9.2, §9.3).

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::bail;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with, getpeername, sockopt};
use wire::stream::{DEFAULT_SOCKETS, default_socket};

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

/// A listening socket, non-blocking, and a descriptor in reserve: without one, who knocks could be neither taken in nor
/// turned away, and would knock on.
pub(crate) struct Listener {
    socket: OwnedFd,
    reserve: RefCell<Option<OwnedFd>>,
}

impl Listener {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, reserve: RefCell::new(reserve()) }
    }

    fn accept(&self) -> rustix::io::Result<OwnedFd> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.reserve.take();
                accept_with(&self.socket, SocketFlags::CLOEXEC)
            }
            accepted => accepted,
        }
    }

    /// Has a descriptor in reserve again, if there is one to be had.
    fn restock(&self) {
        let mut held = self.reserve.borrow_mut();
        *held = held.take().or_else(reserve);
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Something harmless to hold a descriptor with.
fn reserve() -> Option<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC).ok()
}

/// Where we listen if nobody says where, from the first on that is free (SPEC §9.2).
pub(crate) fn default_paths() -> impl Iterator<Item = PathBuf> {
    DEFAULT_SOCKETS.map(|number| default_socket(number).to_string().into())
}

/// Takes in who knocks, unless somebody is there already.
pub(super) fn accept(listener: &Listener, occupied: bool) -> Option<OwnedFd> {
    let socket = listener.accept().ok()?;
    // 0: in another PID namespace.
    let pid = sys::sockopt::peer_pid(&socket).unwrap_or(0);
    if occupied {
        log::info!("another client is connected: discarding connection from PID {pid}");
        drop(socket);
        listener.restock();
        return None;
    }
    log::info!("accepted connection from PID {pid}");
    listener.restock();
    Some(socket)
}
