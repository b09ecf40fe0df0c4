//! A substitute for a virtual machine at passt's stream socket: a tap device in the guest namespace, and a thread that
//! forwards its frames over the socket.

use super::PATIENCE;
use super::net::Net;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A machine that is not connected to passt.
pub(crate) struct Unplugged {
    tap: OwnedFd,
}

/// A machine that is connected to passt.
pub(crate) struct Machine {
    socket: UnixStream,
    bridge: JoinHandle<OwnedFd>,
}

impl Net {
    /// A machine with the addresses and routes that `passt` would give it.
    pub(crate) fn machine(&self, mtu: u32) -> Unplugged {
        let tap = self.guest.tap();
        self.guest.sh(&format!(
            "ip -batch - <<'END'
link set eth0 mtu {mtu} txqueuelen 10000 up
addr add 198.51.100.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
route add default via 198.51.100.1
route add default via 2001:db8:1::1
END"
        ));
        Unplugged { tap }
    }
}

impl Unplugged {
    /// Connects the machine with a socket that is connected to passt.
    pub(crate) fn plug(self, socket: UnixStream) -> Machine {
        let ours = socket.try_clone().unwrap();
        let bridge = std::thread::Builder::new().name("bridge".into());
        let bridge = bridge.spawn(move || {
            run(&self.tap, socket);
            self.tap
        });
        Machine { socket: ours, bridge: bridge.unwrap() }
    }
}

impl Machine {
    /// Disconnects the machine.
    pub(crate) fn unplug(self) -> Unplugged {
        self.socket.shutdown(Shutdown::Both).unwrap();
        Unplugged { tap: self.bridge.join().unwrap() }
    }
}

/// Forwards frames in both directions until the socket is closed.
fn run(tap: &OwnedFd, mut socket: UnixStream) {
    let (mut stream, mut frame) = (Vec::new(), vec![0; 70_000]);
    loop {
        let wait = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut fds = [PollFd::new(tap, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        poll(&mut fds, Some(&wait)).unwrap();
        if !fds[1].revents().is_empty() {
            match socket.read(&mut frame) {
                Ok(0) | Err(_) => return,
                Ok(len) => stream.extend_from_slice(&frame[..len]),
            }
            let mut at = 0;
            while let Some(next) = next_frame(&stream[at..]) {
                // A frame that the guest's kernel refuses is lost.
                let _ = rustix::io::write(tap, next);
                at += 4 + next.len();
            }
            stream.drain(..at);
        }
        let mut out = Vec::new();
        while out.len() < 200_000
            && let Ok(len) = rustix::io::read(tap, &mut frame[..])
        {
            out.extend_from_slice(&(len as u32).to_be_bytes());
            out.extend_from_slice(&frame[..len]);
        }
        if socket.write_all(&out).is_err() {
            return;
        }
    }
}

/// The first frame of a stream (behaviour §9.2), without its length field. None if it is not complete.
pub(crate) fn next_frame(stream: &[u8]) -> Option<&[u8]> {
    let (len, rest) = stream.split_first_chunk::<4>()?;
    rest.get(..u32::from_be_bytes(*len) as usize)
}
