//! Network namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `NS_GET_USERNS` of `<linux/nsfs.h>`: `_IO(0xb7, 1)`.
const NS_GET_USERNS: u16 = 0xb701;

/// Moves the calling thread into a new network namespace. The namespace has only a loopback interface, which is down.
/// The kernel removes the namespace when no thread, socket or descriptor uses it.
///
/// # Errors
/// As unshare(2): `EPERM` without CAP_SYS_ADMIN.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: with only this flag, unshare does not change the memory or descriptors of the process.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The user namespace that owns the network namespace `network`. Capabilities in it apply to the network namespace
/// (user_namespaces(7)). Processes in the network namespace may be in other user namespaces.
///
/// # Errors
/// `EPERM` if the owner is neither the user namespace of the caller nor a descendant of it; `ENOTTY` if `network` is
/// not a namespace.
pub fn owner(network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument, so the kernel accesses no memory of this process.
    let result = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS.into()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request returns a new descriptor, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// The request returns a user namespace. In a container, the owner may be a namespace of the host (`EPERM`).
    #[test]
    fn owner_of_a_network_namespace() {
        let network = File::open("/proc/self/ns/net").unwrap();
        match owner(network.as_fd()) {
            Ok(owner) => {
                let link = std::fs::read_link(format!("/proc/self/fd/{}", owner.as_raw_fd())).unwrap();
                assert!(link.to_str().unwrap().starts_with("user:["), "{link:?}");
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        let other = File::open("/proc/self/status").unwrap();
        assert_eq!(owner(other.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
