//! The error of the last system call.

use rustix::io::Errno;

/// The calling thread's `errno`. It is only meaningful directly after a failed call of libc.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
