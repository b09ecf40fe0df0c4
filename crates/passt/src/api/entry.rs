//! How clients reach the API socket.

use std::os::fd::OwnedFd;

use anyhow::{Context, ensure};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::registry;
use crate::causes::Causes;

/// The socket by which clients come.
#[derive(Debug)]
pub(crate) enum Entry {
    /// A listening socket.
    Listening(OwnedFd),
    /// A socket that is connected to the only client.
    Connected(OwnedFd),
    /// A listening socket of the registry.
    Registered(registry::Listening),
}

impl Entry {
    /// The socket of `--api-socket`.
    ///
    /// # Errors
    /// There is no socket.
    pub(crate) fn at(socket: anyhow::Result<OwnedFd>) -> anyhow::Result<Self> {
        socket.map(Self::Listening).context("--api-socket")
    }

    /// Listens in the registry, if there can be a socket of this process in it.
    pub(crate) fn registered() -> Option<Self> {
        registry::Listening::open(std::env::var_os("XDG_RUNTIME_DIR"))
            .inspect_err(|error| log::debug!("No API socket: {}", Causes(error)))
            .ok()
            .map(Self::Registered)
    }

    /// The file in the registry, if it is a socket of the registry.
    pub(crate) fn file(&mut self) -> Option<&mut registry::Registered> {
        match self {
            Self::Registered(listening) => Some(&mut listening.file),
            Self::Listening(_) | Self::Connected(_) => None,
        }
    }

    /// Takes over a socket that the caller of this process has opened.
    ///
    /// # Errors
    /// It is not a UNIX stream socket.
    pub(crate) fn inherited(socket: OwnedFd) -> anyhow::Result<Self> {
        let is_stream = sockopt::socket_domain(&socket).is_ok_and(|family| family == AddressFamily::UNIX)
            && sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
        ensure!(is_stream, "--api-fd: the descriptor is not a UNIX stream socket");
        let flags = fcntl_getfl(&socket).context("--api-fd: can't read the flags of the socket")?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)
            .context("--api-fd: can't set the flags of the socket")?;
        let listens = sockopt::socket_acceptconn(&socket).context("--api-fd: can't examine the socket")?;
        Ok(if listens { Self::Listening(socket) } else { Self::Connected(socket) })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn only_stream_sockets_of_unix_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(matches!(Entry::inherited(listener.into()), Ok(Entry::Listening(_))));
        let (one, _other) = UnixStream::pair().unwrap();
        let Ok(Entry::Connected(socket)) = Entry::inherited(one.into()) else { panic!() };
        assert!(fcntl_getfl(&socket).unwrap().contains(OFlags::NONBLOCK));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let file = tempfile::tempfile().unwrap();
        for other in [tcp.into(), UnixDatagram::unbound().unwrap().into(), OwnedFd::from(file)] {
            let error = Entry::inherited(other).unwrap_err().to_string();
            assert!(error.starts_with("--api-fd: "), "{error}");
        }
    }
}
