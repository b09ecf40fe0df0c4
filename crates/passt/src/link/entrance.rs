//! Where a guest's client comes in: a UNIX socket (SPEC §9.2, §9.3).

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::bail;
use rustix::net::{SocketFlags, SocketType, accept_with, getpeername, sockopt};

/// Where clients come from.
pub(crate) enum Entrance {
    /// A listening socket, for one after the other.
    Listener {
        /// Non-blocking.
        socket: OwnedFd,
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

/// Where we listen if nobody says where, from the first on that is free (SPEC §9.2).
pub(crate) fn default_paths() -> impl Iterator<Item = PathBuf> {
    (1..100).map(|number| format!("/tmp/passt_{number}.socket").into())
}

/// Takes in who knocks, unless somebody is there already.
pub(super) fn accept(listener: &OwnedFd, occupied: bool) -> Option<OwnedFd> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    // 0: in another PID namespace.
    let pid = sys::sockopt::peer_pid(&socket).unwrap_or(0);
    if occupied {
        log::info!("another client is connected: discarding connection from PID {pid}");
        return None;
    }
    log::info!("accepted connection from PID {pid}");
    Some(socket)
}
