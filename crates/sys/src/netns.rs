//! Network namespaces.

use std::io;

/// Moves the calling thread into a new network namespace, which has nothing but a loopback interface that is down. The
/// namespace goes with its last thread, socket or device.
///
/// # Errors
/// As unshare(2): `EPERM` without CAP_SYS_ADMIN.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: with this flag alone, unshare leaves memory, descriptors and files of the process as they are.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
