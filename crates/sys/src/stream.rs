//! Stream sockets: peeking at received bytes, discarding them without a copy, urgent data.
//!
//! A flow leaves bytes in the socket until its other side has acknowledged them. So the receive queue of the socket is
//! the retransmission buffer. [`peek`] copies bytes out, and copies them again if they were lost. [`discard`] removes
//! acknowledged bytes.

use std::os::fd::{AsFd, AsRawFd};

use crate::errno::last_errno;
use crate::iov::{Iovecs, MAX_PIECES, Room, Source, message};
use rustix::io::{self, Errno};

/// The ioctl of sockatmark(3): whether the next byte to read is the urgent byte. The libc crate lacks this number.
pub const SIOCATMARK: libc::Ioctl =
    if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 0x4004_7307 } else { 0x8905 };

/// Maximum number of pieces of one recvmsg(2).
const UIO_MAXIOV: usize = 1024;

/// Makes the next peek start `offset` bytes after the oldest unread byte (`SO_PEEK_OFF`; TCP: Linux 6.9). Each peek
/// then increases the offset by the bytes that it returned, and each discard decreases it by the bytes that it removed.
///
/// # Errors
/// `EOPNOTSUPP` if the kernel does not support it.
pub fn set_peek_offset(fd: impl AsFd, offset: u32) -> io::Result<()> {
    let offset = libc::c_int::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: the pointer and length describe one int that lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw const offset).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Sends bytes without blocking; returns how many the kernel accepted. A closed stream is an error (`EPIPE`), not a
/// signal.
///
/// # Errors
/// `EAGAIN` if the kernel accepted no byte. The error of the socket.
pub fn send(fd: impl AsFd, bytes: Source<'_>) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let fd = fd.as_fd().as_raw_fd();
    let sent = match bytes.own() {
        // SAFETY: the pointer and length describe a slice that is borrowed until the call returns.
        Some(bytes) => unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) },
        None => {
            let mut pieces = Iovecs::<MAX_PIECES>::new();
            let _all_fit = pieces.add(bytes);
            let message = pieces.message();
            // SAFETY: `message` points to `pieces`, which point to memory that is mapped while `bytes` exists.
            unsafe { libc::sendmsg(fd, &raw const message, flags) }
        }
    };
    usize::try_from(sent).map_err(|_| last_errno())
}

/// Copies received bytes to `room` and leaves them in the socket. Returns the number of copied bytes, zero at the end
/// of the stream.
///
/// # Errors
/// `EAGAIN` if there are no received bytes. The error of the socket.
pub fn peek(fd: impl AsFd, mut room: Room<'_>) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    let fd = fd.as_fd().as_raw_fd();
    let len = match room.own() {
        // SAFETY: the pointer and length describe a slice that is borrowed until the call returns.
        Some(buffer) => unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) },
        None => {
            let mut pieces = Iovecs::<MAX_PIECES>::new();
            let _all_fit = pieces.add_room(&mut room);
            let mut message = pieces.message();
            // SAFETY: `message` points to `pieces`, which point to memory that is mapped and writable while `room`
            // exists.
            unsafe { libc::recvmsg(fd, &raw mut message, flags) }
        }
    };
    usize::try_from(len).map_err(|_| last_errno())
}

/// Like [`peek`], but starts `offset` bytes after the oldest unread byte. Use it on kernels without
/// [`set_peek_offset`]. The kernel copies the bytes before `offset`, too. They go to `scratch`, repeatedly, so
/// `scratch` can be shorter than `offset`.
///
/// # Errors
/// `EAGAIN` if there are no bytes after `offset`. `EINVAL` if `scratch` is too short. The error of the socket.
pub fn peek_at(fd: impl AsFd, offset: usize, scratch: &mut [u8], mut room: Room<'_>) -> io::Result<usize> {
    if offset == 0 {
        return peek(fd, room);
    }
    if scratch.is_empty() || offset.div_ceil(scratch.len()) + MAX_PIECES > UIO_MAXIOV {
        return Err(Errno::INVAL);
    }
    let mut pieces = Vec::with_capacity(offset.div_ceil(scratch.len()) + MAX_PIECES);
    let mut left = offset;
    while left > 0 {
        let len = left.min(scratch.len());
        pieces.push(libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: len });
        left -= len;
    }
    let mut after = Iovecs::<MAX_PIECES>::new();
    let _all_fit = after.add_room(&mut room);
    pieces.extend_from_slice(after.get(0..MAX_PIECES));
    let mut message = message(&pieces);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: every piece is inside `scratch` or `room`, which are both borrowed mutably until the call returns. Pieces
    // of `scratch` overlap, so the kernel writes the same bytes several times.
    let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    match usize::try_from(len).map_err(|_| last_errno())? {
        0 => Ok(0),
        // All received bytes are before `offset`. Either more bytes will arrive, or the stream has ended.
        len if len <= offset => end_or_nothing(fd, offset),
        len => Ok(len - offset),
    }
}

/// The result of a peek that found only `seen` bytes before its offset: zero if the stream has ended, else `EAGAIN`.
fn end_or_nothing(fd: impl AsFd, seen: usize) -> io::Result<usize> {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd is passed, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    let ended = ready > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0;
    if ended && unread(fd).is_ok_and(|unread| unread as usize <= seen) { Ok(0) } else { Err(Errno::AGAIN) }
}

/// Removes the oldest `len` received bytes of a TCP socket, without copying them; returns how many were removed. The
/// caller must have read these bytes with [`peek`].
///
/// # Errors
/// The error of the socket.
pub fn discard(fd: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP writes nothing through the pointer (tcp(7)).
    let len = unsafe { libc::recv(fd.as_fd().as_raw_fd(), std::ptr::null_mut(), len, flags) };
    usize::try_from(len).map_err(|_| last_errno())
}

/// The offset of the urgent byte from the oldest unread byte, in bytes, for a TCP socket with `SO_OOBINLINE`. None if
/// no received byte is urgent. The offset of [`set_peek_offset`] must be zero before the call, and is unspecified after
/// the call.
///
/// A read that does not begin at the urgent byte stops before it (tcp(7)). So if a peek returns fewer bytes than are
/// unread, the next byte is the urgent byte.
///
/// # Errors
/// The error of the socket.
pub fn urgent_mark(fd: impl AsFd) -> io::Result<Option<u32>> {
    // Bytes that arrive after this call are not counted in `unread`. An urgent byte among them is not reported.
    let unread = unread(&fd)?;
    if unread == 0 {
        return Ok(None);
    }
    if is_at_mark(&fd)? {
        return Ok(Some(0));
    }
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP writes nothing through the pointer (tcp(7)).
    let len = unsafe { libc::recv(fd.as_fd().as_raw_fd(), std::ptr::null_mut(), unread as usize, flags) };
    let len = u32::try_from(len).map_err(|_| last_errno())?;
    Ok((len < unread).then_some(len))
}

/// Whether the next byte to read is the urgent byte. It may not have arrived yet.
///
/// # Errors
/// `ENOTTY` if the socket does not support urgent data.
pub fn is_at_mark(fd: impl AsFd) -> io::Result<bool> {
    ask(&fd, SIOCATMARK).map(|answer| answer != 0)
}

/// Number of received bytes that are unread (`SIOCINQ`).
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unread(fd: impl AsFd) -> io::Result<u32> {
    ask(&fd, libc::FIONREAD).map(|bytes| u32::try_from(bytes).unwrap_or(0))
}

/// Number of bytes, plus one for a FIN, that a TCP socket has queued or sent and that the peer has not acknowledged
/// (`SIOCOUTQ`).
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<u32> {
    ask(&fd, libc::TIOCOUTQ).map(|bytes| u32::try_from(bytes).unwrap_or(0))
}

/// What the kernel knows about a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Bytes that were sent, each counted once.
    pub bytes_sent: u64,
    /// Bytes that were received in order.
    pub bytes_received: u64,
    /// Segments that were sent, modulo 2^32.
    pub segments_sent: u32,
    /// Segments that were received, modulo 2^32.
    pub segments_received: u32,
    /// Smoothed round-trip time, in microseconds.
    pub rtt: u32,
    /// Segments that were sent again, modulo 2^32.
    pub retransmissions: u32,
}

/// What the kernel knows about a TCP socket, also if it has failed (`TCP_INFO`). None if the kernel does not count sent
/// bytes (before Linux 4.19).
///
/// # Errors
/// As getsockopt(2).
pub fn info(fd: impl AsFd) -> io::Result<Option<Info>> {
    // The first part of struct tcp_info in linux/tcp.h. The kernel only adds fields at the end.
    let mut info = [0; 216];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the pointers describe a buffer and its length, which live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result < 0 {
        return Err(last_errno());
    }
    let info = info.get(..len as usize).unwrap_or(&info);
    let long = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let short = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
    let known = || {
        let (sent, sent_again) = (long(200)?, long(208)?);
        Some(Info {
            bytes_sent: sent.saturating_sub(sent_again),
            bytes_received: long(128)?,
            segments_sent: short(136)?,
            segments_received: short(140)?,
            rtt: short(68)?,
            retransmissions: short(100)?,
        })
    };
    Ok(known())
}

/// Calls ioctl(2) with one of the requests above.
fn ask(fd: &impl AsFd, request: libc::Ioctl) -> io::Result<libc::c_int> {
    let mut answer: libc::c_int = 0;
    // SAFETY: FIONREAD (SIOCINQ), TIOCOUTQ (SIOCOUTQ) and SIOCATMARK each write one int through the pointer. The
    // callers use no other requests.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut answer) };
    if result < 0 { Err(last_errno()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::iov::Pieces;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn retry(mut look: impl FnMut() -> rustix::io::Result<usize>) -> usize {
        loop {
            match look() {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                result => return result.unwrap(),
            }
        }
    }

    #[test]
    fn peeked_bytes_stay_until_they_are_discarded() {
        let (mut near, mut far) = pair();
        near.write_all(b"one two three").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut buffer = [0; 64];
        while retry(|| peek(&far, (&mut buffer[..]).into())) < 13 {}
        let mut scratch = [0; 3];
        assert_eq!(retry(|| peek_at(&far, 4, &mut scratch, (&mut buffer[..]).into())), 9);
        assert_eq!(&buffer[..9], b"two three");
        assert_eq!(retry(|| peek_at(&far, 13, &mut scratch, (&mut buffer[..]).into())), 0); // the end of the stream
        if set_peek_offset(&far, 4).is_ok() {
            assert_eq!(retry(|| peek(&far, (&mut buffer[..3]).into())), 3);
            assert_eq!(&buffer[..3], b"two");
            assert_eq!(retry(|| peek(&far, (&mut buffer[..]).into())), 6); // the offset has increased
        }
        assert_eq!(discard(&far, 8).unwrap(), 8);
        let mut rest = String::new();
        far.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "three");
    }

    #[test]
    fn peek_without_new_bytes_is_not_the_end() {
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let mut buffer = [0; 8];
        while retry(|| peek(&far, (&mut buffer[..]).into())) < 3 {}
        let mut scratch = [0; 8];
        let error = peek_at(&far, 3, &mut scratch, (&mut buffer[..]).into()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn both_ends_count_the_same_bytes() {
        let (mut near, mut far) = pair();
        near.write_all(b"one two three").unwrap();
        far.write_all(b"four").unwrap();
        far.read_exact(&mut [0; 13]).unwrap();
        near.read_exact(&mut [0; 4]).unwrap();
        let [near_info, far_info] = [&near, &far].map(|end| info(end).unwrap().unwrap());
        assert_eq!((near_info.bytes_sent, near_info.bytes_received), (13, 4));
        assert_eq!((far_info.bytes_sent, far_info.bytes_received), (4, 13));
        // SYN, ACK of SYN, data.
        assert!(near_info.segments_sent >= 3 && near_info.segments_received >= 2, "{near_info:?}");
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        assert_eq!(info(&near).unwrap().unwrap().bytes_sent, 13);
        assert!(info(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }

    /// Bytes are sent from, and received into, several pieces of shared memory.
    #[test]
    fn shared_memory() {
        let (near, far) = pair();
        let mut bytes = *b"one two three";
        let mut pieces = Pieces::default();
        let (a, b) = bytes.split_at_mut(5);
        let source = pieces.source([VolatileSlice::from(a), b.into()]).unwrap();
        assert_eq!(send(&near, source.slice(1..12)).unwrap(), 11);
        let mut buffer = [0; 20];
        let (a, b) = buffer.split_at_mut(3);
        let mut room = pieces.room([VolatileSlice::from(a), b.into()]).unwrap();
        while retry(|| peek(&far, room.first(20))) < 11 {}
        assert_eq!(retry(|| peek_at(&far, 4, &mut [0; 3], room.first(5))), 5);
        assert_eq!(&buffer, b"wo tho thre\0\0\0\0\0\0\0\0\0");
    }
}
