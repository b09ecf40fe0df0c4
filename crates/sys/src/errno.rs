//! The error of the last system call.

use rustix::io::Errno;

/// The calling thread's `errno`. Only meaningful directly after a call of libc that has failed.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
