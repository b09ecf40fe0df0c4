//! Packet sockets: they send any frame on an interface. Tests use them to act as hostile guests.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Length of the virtio-net header before each frame, in bytes: the layout without `num_buffers`, in native byte order.
pub const VNET_HDR_LEN: usize = 10;

/// A socket that sends frames on `interface` in the network namespace of the calling thread. The caller puts a
/// virtio-net header before each frame. The socket receives nothing.
///
/// # Errors
/// As packet(7): `EPERM` without CAP_NET_RAW, `ENODEV` if there is no such interface.
pub fn sender(interface: &str) -> io::Result<OwnedFd> {
    // SAFETY: socket reads no memory. The descriptor is new, so nothing else owns it.
    let socket = unsafe {
        match libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    let on: libc::c_int = 1;
    // SAFETY: `sockaddr_ll` is plain data, for which all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: both calls read a value of the given size, which lives until they return.
    let results = unsafe {
        [
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            ),
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            ),
        ]
    };
    if results.iter().any(|&result| result < 0) { Err(io::Error::last_os_error()) } else { Ok(socket) }
}
