//! Errors of system calls. Functions here repeat a call that a signal interrupts, and convert errors to the engine's
//! types.
//!
//! The program uses [`rustix::io::Errno`]. The engine has no operating system, and represents an error by a number.
//! Only the functions of this module convert errors.

use std::os::fd::AsFd;

use engine::host::SocketError;
use rustix::io::Errno;
use rustix::net::sockopt;

/// Repeats the call as long as a signal interrupts it.
///
/// # Errors
/// All errors of the call, except `EINTR`.
pub(crate) fn retry<T, E: Interruption>(mut call: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match call() {
            Err(error) if error.is_interruption() => {}
            result => return result,
        }
    }
}

/// An error that may mean that a signal interrupted the call.
pub(crate) trait Interruption {
    /// Whether a signal interrupted the call.
    fn is_interruption(&self) -> bool;
}

impl Interruption for Errno {
    fn is_interruption(&self) -> bool {
        *self == Self::INTR
    }
}

impl Interruption for std::io::Error {
    fn is_interruption(&self) -> bool {
        self.kind() == std::io::ErrorKind::Interrupted
    }
}

/// Converts an error to the engine's type.
pub(crate) const fn to_engine(errno: Errno) -> engine::host::Errno {
    engine::host::Errno(errno.raw_os_error())
}

/// Converts an error from the engine's type.
pub(crate) fn from_engine(errno: engine::host::Errno) -> Errno {
    Errno::from_raw_os_error(errno.0)
}

/// What an error means for a stream socket.
pub(crate) fn stream_error(errno: Errno) -> SocketError {
    match errno {
        Errno::AGAIN => SocketError::WouldBlock,
        errno => SocketError::Failed(to_engine(errno)),
    }
}

/// What an error means for a datagram. A full queue of the kernel is not a failure of the socket: the queue will have
/// room later.
pub(crate) fn datagram_error(errno: Errno) -> SocketError {
    match errno {
        Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM => SocketError::WouldBlock,
        errno => SocketError::Failed(to_engine(errno)),
    }
}

/// Returns and clears the pending error of a socket (`SO_ERROR`).
pub(crate) fn take_pending(fd: impl AsFd) -> Option<engine::host::Errno> {
    match sockopt::socket_error(fd) {
        Ok(Err(errno)) | Err(errno) => Some(to_engine(errno)),
        Ok(Ok(())) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// a call is repeated if a signal interrupted it, and for no other error.
    #[test]
    fn interrupted_calls_are_repeated_r86() {
        let mut results = [Err(Errno::INTR), Err(Errno::INTR), Ok(5), Ok(6)].into_iter();
        assert_eq!(retry(|| results.next().unwrap()), Ok(5));
        assert_eq!(results.next(), Some(Ok(6)), "not once more");
        let mut results = [Err(Errno::INTR), Err::<(), _>(Errno::AGAIN)].into_iter();
        assert_eq!(retry(|| results.next().unwrap()), Err(Errno::AGAIN));
        let interrupted = || Err(std::io::ErrorKind::Interrupted.into());
        let mut results = [interrupted(), Ok::<_, std::io::Error>(7)].into_iter();
        assert_eq!(retry(|| results.next().unwrap()).unwrap(), 7);
    }

    #[test]
    fn full_queues_are_no_failure() {
        assert_eq!(stream_error(Errno::AGAIN), SocketError::WouldBlock);
        assert_eq!(stream_error(Errno::CONNRESET), SocketError::Failed(to_engine(Errno::CONNRESET)));
        for full in [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(datagram_error(full), SocketError::WouldBlock);
        }
        assert_eq!(datagram_error(Errno::CONNREFUSED), SocketError::Failed(to_engine(Errno::CONNREFUSED)));
        assert_eq!(from_engine(to_engine(Errno::MFILE)), Errno::MFILE);
    }
}
