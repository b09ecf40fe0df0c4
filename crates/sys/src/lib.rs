//! Linux system calls that rustix lacks, with a safe interface.
//!
//! ```text
//!                    callers: no unsafe code
//!                              |
//!   +--------------------------+--------------------------------------+
//!   | frames    tap (ioctls of /dev/net/tun), packet (AF_PACKET)      |
//!   | streams   stream (peek, discard, urgent data)                   |
//!   | datagrams mmsg (sendmmsg, recvmsg) with cmsg (control messages) |
//!   |           address (sockaddr), sockopt, iov (struct iovec)       |
//!   | processes spawn (fork, clone, exec), signal (signalfd), netns,  |
//!   |           ptrace (seccomp filters), passwd (getpwnam_r)         |
//!   | memory    heap, pages, shared_memory (SIGBUS)                   |
//!   +--------------------------+--------------------------------------+
//!                              |
//!                     libc, rustix, the kernel
//! ```
//!
//! # Contract
//!
//! - **This is the only crate of the project with `unsafe` code.** A comment at every block says why the block is
//!   sound. A public function is safe to call with any arguments: a wrong descriptor or length is an error, never
//!   undefined behaviour.
//! - **Errors are the kernel's**, as [`rustix::io::Errno`] from calls on sockets, else as [`std::io::Error`]. Unless
//!   its documentation says otherwise, a function does not retry on `EINTR`. Signals are blocked and read from a
//!   descriptor ([`signal`]), so calls are not interrupted.
//! - **Calls that move payload do not block**, whatever the flags of the descriptor: on `EAGAIN`, the caller tries
//!   again when epoll reports the descriptor.
//! - **Descriptors** that are created here are closed on exec.
//! - **Shared memory**, which a guest can change, is never borrowed as a Rust slice: [`iov`] passes it to the kernel by
//!   address and length.
//! - **Byte order.** Addresses, ports and numbers are in host byte order, or in the types of [`std::net`].
//!
//! # Examples
//!
//! The first example sends a datagram with a hop limit that differs from the socket's. The receiver gets the hop limit
//! in a control message:
//!
//! ```
//! use std::net::UdpSocket;
//! use sys::address::RawAddress;
//! use sys::cmsg::{Control, SendInfo};
//! use sys::mmsg;
//! use sys::sockopt::{IpVersion, Metadata, request_metadata};
//!
//! let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
//! request_metadata(&receiver, IpVersion::V4, Metadata::HOP_LIMIT)?;
//!
//! let info = SendInfo { hop_limit: Some(9), ..SendInfo::default() };
//! let to = RawAddress::new(receiver.local_addr()?, false);
//! mmsg::send(&sender, &to, &[b"hello"[..].into()], &Control::to_send(&info, true))?;
//!
//! let mut buffer = [0; 64];
//! let arrival = mmsg::receive(&receiver, (&mut buffer[..]).into())?;
//! assert_eq!(&buffer[..arrival.len], b"hello");
//! assert_eq!(arrival.info.hop_limit, Some(9));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The second example creates a tap device with all offloads that the kernel grants, in a new network namespace. It
//! needs CAP_SYS_ADMIN and CAP_NET_ADMIN, for example in a new user namespace:
//!
//! ```no_run
//! use sys::tap::{Offloads, TapDevice};
//!
//! sys::netns::enter_new()?;
//! let tap = TapDevice::create("tap%d", Offloads::all())?;
//! println!("{}: {:?}", tap.name, tap.offloads);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod address;
pub mod cmsg;
mod errno;
#[cfg(feature = "failing-allocator")]
pub mod failing_allocator;
pub mod heap;
pub mod iov;
pub mod mmsg;
pub mod netns;
pub mod packet;
pub mod pages;
pub mod passwd;
pub mod ptrace;
pub mod shared_memory;
pub mod signal;
pub mod sockopt;
pub mod spawn;
pub mod stream;
pub mod tap;
