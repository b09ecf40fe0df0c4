//! Network namespaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `NS_GET_USERNS` of `<linux/nsfs.h>`: `_IO(0xb7, 1)`.
const NS_GET_USERNS: u16 = 0xb701;

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

/// The user namespace that owns the network namespace open at `network`: rights in it are rights over the network
/// namespace (user_namespaces(7)). It need not be the user namespace of any process in the network namespace.
///
/// # Errors
/// `EPERM` if the owner is neither our user namespace nor below it; `ENOTTY` if `network` is no namespace.
pub fn owner(network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument, so the kernel reads and writes no memory of ours.
    let result = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS.into()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this request returns a new descriptor, which nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// The request is the one for the owner, and what it returns is a user namespace. The machine's first network
    /// namespace may be owned from outside of a container.
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
