//! A synthetic guest at native speed: the kernel of a namespace, whose tap is bridged to the socket of passt.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use sys::tap::{Offloads, TapDevice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// The end-to-end tests have a front-end and a driver, which are used here, too.
#[allow(dead_code, reason = "the tests need more of it")]
#[allow(clippy::unwrap_used, reason = "the measurement fails if the back-end breaks the protocol")]
#[path = "../../../crates/passt/tests/e2e/harness/front_end.rs"]
mod front_end;

use front_end::{
    AVAILABLE, DriverConfig, FrontEnd, GUEST_CSUM, GUEST_TSO, HEADER, MRG_RXBUF, Queue, VERSION_1,
};

/// Offload to the device: checksums, TCP over IPv4 and IPv6 (virtio 1.2 §5.1.3).
const HOST_OFFLOADS: u64 = 1 | 3 << 11;
/// Flags in the virtio-net header.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// Maximum length of a frame, with a virtio-net header.
const MAX_FRAME: usize = HEADER + 14 + 65535;
/// Frames for one `write` to the socket are collected up to this length, in bytes.
const BATCH: usize = 256 << 10;
/// Number of frames for one notification of the back-end.
const FRAMES: usize = 64;
/// Maximum time until passt accepts a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// `xtask bridge KIND SOCKET TAP`. Prints a line when the tap exists, and ends with its standard input or with the
/// connection to the socket.
pub(crate) fn main(arguments: &[&str]) -> anyhow::Result<()> {
    let [kind, socket, tap] = *arguments else { bail!("bridge: wrong arguments") };
    let offloads = match kind {
        "vhost-user" => Offloads::VNET_HDR,
        "vhost-user-tso" => Offloads::VNET_HDR | Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6,
        _ => Offloads::empty(),
    };
    let tap = File::from(TapDevice::create(tap, offloads)?.fd);
    let features = VERSION_1 | MRG_RXBUF | GUEST_CSUM;
    let (end, ended) = mpsc::channel();
    match kind {
        "stream" => on_stream(connect(socket)?, tap, &end)?,
        "listen" => {
            let (listener, end) = (UnixListener::bind(socket)?, end.clone());
            thread::spawn(move || on_stream(listener.accept()?.0, tap, &end));
        }
        "vhost-user" => on_rings(socket, tap, features, &end)?,
        "vhost-user-tso" => on_rings(socket, tap, features | GUEST_TSO | HOST_OFFLOADS, &end)?,
        _ => bail!("no such bridge: {kind}"),
    }
    println!("ready");
    start(&end, || std::io::stdin().read_to_end(&mut Vec::new()));
    ended.recv()?;
    Ok(())
}

/// Runs `work` on a thread. The bridge ends with it.
fn start<T>(end: &Sender<()>, work: impl FnOnce() -> T + Send + 'static) {
    let end = end.clone();
    thread::spawn(move || {
        let _result = work();
        // Another thread has ended before, and nothing receives any more.
        let _late = end.send(());
    });
}

fn connect(socket: &str) -> anyhow::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
            result => return result.with_context(|| format!("can't connect to {socket}")),
        }
    }
}

/// For `front_end`: polls `condition` until it is true.
fn wait_until(_what: &str, mut condition: impl FnMut() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Bridges the tap to a stream socket, on which each frame follows its length.
fn on_stream(socket: UnixStream, tap: File, end: &Sender<()>) -> anyhow::Result<()> {
    let (from, to) = (socket.try_clone()?, tap.try_clone()?);
    start(end, move || tap_to_stream(&tap, from));
    start(end, move || stream_to_tap(socket, &to));
    Ok(())
}

fn tap_to_stream(tap: &File, mut socket: UnixStream) -> std::io::Result<()> {
    let mut buffer = vec![0; BATCH + 4 + MAX_FRAME];
    loop {
        let mut len = 0;
        while len < BATCH {
            match read(tap, &mut buffer[len + 4..])? {
                Some(frame) => {
                    buffer[len..len + 4].copy_from_slice(&(frame as u32).to_be_bytes());
                    len += 4 + frame;
                }
                None if len > 0 => break,
                None => wait(tap, PollFlags::IN)?,
            }
        }
        socket.write_all(&buffer[..len])?;
    }
}

fn stream_to_tap(mut socket: UnixStream, tap: &File) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut held = 0;
    loop {
        match socket.read(&mut buffer[held..])? {
            0 => return Ok(()),
            len => held += len,
        }
        let mut at = 0;
        while let Some(frame) = next_frame(&buffer[at..held]) {
            write(tap, frame)?;
            at += 4 + frame.len();
        }
        buffer.copy_within(at..held, 0);
        held -= at;
    }
}

/// The first frame of a stream, if all of it has arrived.
fn next_frame(bytes: &[u8]) -> Option<&[u8]> {
    let (len, rest) = bytes.split_first_chunk()?;
    rest.get(..u32::from_be_bytes(*len) as usize)
}

/// Bridges the tap to virtio rings, with those of `features` that passt offers.
fn on_rings(socket: &str, tap: File, features: u64, end: &Sender<()>) -> anyhow::Result<()> {
    use vhost::VhostBackend;
    let driver = DriverConfig { features, ..DriverConfig::default() };
    let mut front_end = FrontEnd::connect(Path::new(socket), driver);
    let offered = front_end.frontend.get_features()?;
    front_end.negotiate(features & offered);
    front_end.share_memory();
    front_end.start();
    let (Some(from_guest), Some(to_guest)) = (front_end.queues.pop(), front_end.queues.pop()) else {
        bail!("no queues")
    };
    start(end, move || await_end(&front_end));
    let to = tap.try_clone()?;
    start(end, move || tap_to_ring(&tap, from_guest));
    start(end, move || ring_to_tap(to_guest, &to));
    Ok(())
}

/// Waits until the back-end closes the connection.
fn await_end(front_end: &FrontEnd) -> std::io::Result<()> {
    let (epoll, wanted) = (Epoll::new()?, EpollEvent::new(EventSet::READ_HANG_UP, 0));
    epoll.ctl(ControlOperation::Add, front_end.frontend.as_raw_fd(), wanted)?;
    loop {
        match epoll.wait(-1, &mut [EpollEvent::default()]) {
            Ok(0) => {}
            // The process was stopped, and continues.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            ended => return ended.map(drop),
        }
    }
}

fn tap_to_ring(tap: &File, mut queue: Queue) -> std::io::Result<()> {
    let mut buffer = vec![0; MAX_FRAME];
    stop_calls(&queue);
    loop {
        let (before, mut count) = (queue.available, 0);
        while count < FRAMES && queue.has_room() {
            let Some(len) = read(tap, &mut buffer)? else { break };
            queue.put(&[&buffer[..len]]);
            count += 1;
        }
        if count > 0 {
            queue.kick_if_wanted(before);
        } else if queue.has_room() {
            wait(tap, PollFlags::IN)?;
        } else {
            queue.wait(Duration::from_millis(100));
            stop_calls(&queue);
        }
    }
}

fn ring_to_tap(mut queue: Queue, tap: &File) -> std::io::Result<()> {
    let mut frame = Vec::with_capacity(MAX_FRAME);
    loop {
        stop_calls(&queue);
        let mut count = 0;
        while count < FRAMES && queue.receive_into(&mut frame) {
            trust_checksum(&mut frame);
            write(tap, &frame)?;
            count += 1;
        }
        queue.refill();
        if count == 0 {
            queue.wait(Duration::from_secs(1));
        }
    }
}

/// Asks passt not to notify of used buffers, until the next [`Queue::wait`].
fn stop_calls(queue: &Queue) {
    const NO_INTERRUPT: u16 = 1;
    queue.memory.word(queue.at + AVAILABLE).store(NO_INTERRUPT.to_le(), Ordering::Relaxed);
}

/// Marks a checksum that passt calls valid as open: a driver accepts the first, a tap only the second. `frame` has a
/// virtio-net header.
fn trust_checksum(frame: &mut [u8]) {
    let Some((header, frame)) = frame.split_first_chunk_mut::<HEADER>() else { return };
    let (Some(ip), Some(ethertype)) = (frame.get(14..), frame.get(12..14)) else { return };
    if header[0] & DATA_VALID == 0 || ip.len() < 20 {
        return;
    }
    let (protocol, len) =
        if ethertype == [0x86, 0xdd] { (ip[6], 40) } else { (ip[9], 4 * u16::from(ip[0] & 15)) };
    let offset: Option<u16> = match protocol {
        6 => Some(16),
        17 => Some(6),
        _ => None,
    };
    header[0] = if offset.is_some() { NEEDS_CSUM } else { 0 };
    header[6..8].copy_from_slice(&(14 + len).to_le_bytes());
    header[8..10].copy_from_slice(&offset.unwrap_or_default().to_le_bytes());
}

/// Reads a frame. None if there is none.
fn read(mut tap: &File, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
    match tap.read(buffer) {
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a frame. The kernel drops what it does not accept, like a network.
fn write(mut tap: &File, frame: &[u8]) -> std::io::Result<()> {
    while let Err(error) = tap.write(frame) {
        match error.kind() {
            ErrorKind::WouldBlock => wait(tap, PollFlags::OUT)?,
            ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    Ok(())
}

fn wait(tap: &File, events: PollFlags) -> std::io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(tap.as_fd(), events)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_a_stream() {
        let stream = [0, 0, 0, 2, 7, 8, 0, 0, 0, 1, 9];
        assert_eq!(next_frame(&stream), Some(&[7, 8][..]));
        assert_eq!(next_frame(&stream[6..]), Some(&[9][..]));
        assert_eq!(next_frame(&stream[6..10]), None);
        assert_eq!(next_frame(&stream[..3]), None);
    }

    #[test]
    fn valid_checksums_are_marked_as_open() {
        let mut frame = [0; HEADER + 14 + 40];
        frame[0] = DATA_VALID;
        (frame[HEADER + 12], frame[HEADER + 14], frame[HEADER + 14 + 9]) = (8, 0x45, 6);
        trust_checksum(&mut frame);
        assert_eq!((frame[0], frame[6], frame[8]), (NEEDS_CSUM, 34, 16));
        let mut ping = frame;
        (ping[0], ping[HEADER + 14 + 9]) = (DATA_VALID, 1);
        trust_checksum(&mut ping);
        assert_eq!(ping[0], 0);
        let mut open = frame;
        (open[6], open[8]) = (50, 6);
        let before = open;
        trust_checksum(&mut open);
        assert_eq!(open, before);
    }
}
