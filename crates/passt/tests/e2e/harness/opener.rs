//! Opens sockets inside a namespace, and passes them to the test. A socket stays in the namespace in which it was
//! created, so no other code has to run in the namespace: tests use plain `std::net`.
//!
//! The opener is this test binary, executed inside the namespace with a UNIX socket as standard input. A request is one
//! byte, a [`Kind`]. An answer is an error number of four bytes in native byte order, with the descriptor.

use super::ns::Ns;
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, Protocol, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Stdio};

const ROLE: &str = "E2E_SOCKET_OPENER";

/// A kind of socket, in the request's encoding.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
    /// A socket that sends frames on the interface `eth0`. A virtio-net header comes before each frame.
    Frames,
    /// A new tap device `eth0`, without any offload.
    Tap,
}

/// The running process. It ends when this value is dropped.
pub(crate) struct Opener {
    socket: Option<OwnedFd>,
    process: Child,
}

impl Opener {
    pub(crate) fn start(ns: &Ns) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let exe = std::env::current_exe().unwrap();
        let mut command = ns.bare_command(&[
            exe.to_str().unwrap(),
            "--exact",
            "harness::opener::socket_opener",
            "--ignored",
            "--nocapture",
            "--quiet",
        ]);
        let process = command.env(ROLE, "1").stdin(theirs).stdout(Stdio::null()).spawn().unwrap();
        Opener { socket: Some(ours), process }
    }

    /// A new socket, neither bound nor connected.
    pub(crate) fn open(&self, kind: Kind) -> OwnedFd {
        let socket = self.socket.as_ref().unwrap();
        net::send(socket, &[kind as u8], SendFlags::empty()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut answer = [0; 4];
        let n =
            net::recvmsg(socket, &mut [IoSliceMut::new(&mut answer)], &mut control, RecvFlags::CMSG_CLOEXEC)
                .unwrap()
                .bytes;
        assert_eq!(n, 4, "the socket opener ended; can this namespace run the test binary?");
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                return fds.next().unwrap();
            }
        }
        panic!("socket: {}", std::io::Error::from_raw_os_error(i32::from_ne_bytes(answer)));
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.process.wait();
    }
}

/// Not a test, but the entry point of the process that [`Opener`] starts.
#[test]
#[ignore = "the entry point of a helper process"]
fn socket_opener() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let parent = rustix::stdio::stdin();
    let mut request = [0; 1];
    while let Ok((1, _)) = net::recv(parent, &mut request, RecvFlags::empty()) {
        match create(request[0]) {
            Ok(socket) => answer(parent, 0, Some(socket.as_fd())),
            Err(e) => answer(parent, e.raw_os_error(), None),
        }
    }
}

fn create(kind: u8) -> Result<OwnedFd, Errno> {
    let (domain, kind, protocol): (_, _, Option<Protocol>) = match kind {
        k if k == Kind::Tcp4 as u8 => (AddressFamily::INET, SocketType::STREAM, None),
        k if k == Kind::Tcp6 as u8 => (AddressFamily::INET6, SocketType::STREAM, None),
        k if k == Kind::Frames as u8 => {
            return sys::packet::sender("eth0").map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
        }
        k if k == Kind::Tap as u8 => {
            let device = sys::tap::TapDevice::create("eth0", sys::tap::Offloads::empty());
            return device.map(|device| device.fd).map_err(|_| Errno::ACCESS);
        }
        k if k == Kind::Udp4 as u8 => (AddressFamily::INET, SocketType::DGRAM, None),
        _ => (AddressFamily::INET6, SocketType::DGRAM, None),
    };
    net::socket_with(domain, kind, SocketFlags::CLOEXEC, protocol)
}

fn answer(parent: BorrowedFd<'_>, error: i32, socket: Option<BorrowedFd<'_>>) {
    let fds: Vec<_> = socket.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let _ = net::sendmsg(parent, &[IoSlice::new(&error.to_ne_bytes())], &mut control, SendFlags::empty());
}
