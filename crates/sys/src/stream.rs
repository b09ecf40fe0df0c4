//! Stream sockets: looking at received bytes without taking them, throwing them away without copying them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::iov::{Iovecs, MAX_PIECES, Room, Source, message};

/// Asks a stream socket whether the next byte to read is the urgent one (sockatmark(3)). The libc crate lacks it.
pub const SIOCATMARK: libc::Ioctl =
    if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 0x4004_7307 } else { 0x8905 };

/// Most pieces of one receive.
const UIO_MAXIOV: usize = 1024;

/// Starts peeking at `offset` bytes behind the oldest unread one; each peek then moves on, each discard moves back
/// (`SO_PEEK_OFF`; TCP from Linux 6.9 on).
///
/// # Errors
/// `EOPNOTSUPP` from kernels that can't.
pub fn set_peek_offset(fd: impl AsFd, offset: u32) -> io::Result<()> {
    let offset = libc::c_int::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
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
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends bytes without blocking, and without a signal if the stream is closed; returns how many were taken.
///
/// # Errors
/// `EAGAIN` if none were, or the socket's error.
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
            // SAFETY: `message` points to `pieces`, and these to memory that is mapped for as long as `bytes` lives.
            unsafe { libc::sendmsg(fd, &raw const message, flags) }
        }
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Copies received bytes to `room` without taking them; returns how many, zero at the end of the stream.
///
/// # Errors
/// `EAGAIN` if there are none, or the socket's error.
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
            // SAFETY: `message` points to `pieces`, and these to memory that is mapped, and may be written, for as
            // long as `room` lives.
            unsafe { libc::recvmsg(fd, &raw mut message, flags) }
        }
    };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Like [`peek`], from `offset` bytes behind the oldest unread one, for kernels without [`set_peek_offset`]: what
/// lies before is copied to `scratch`, over and over.
///
/// # Errors
/// `EAGAIN` if there is nothing behind `offset`; `EINVAL` if `scratch` is too small for it; the socket's error.
pub fn peek_behind(
    fd: impl AsFd,
    offset: usize,
    scratch: &mut [u8],
    mut room: Room<'_>,
) -> io::Result<usize> {
    if offset == 0 {
        return peek(fd, room);
    }
    if scratch.is_empty() || offset.div_ceil(scratch.len()) + MAX_PIECES > UIO_MAXIOV {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut pieces = Vec::with_capacity(offset.div_ceil(scratch.len()) + MAX_PIECES);
    let mut left = offset;
    while left > 0 {
        let len = left.min(scratch.len());
        pieces.push(libc::iovec { iov_base: scratch.as_mut_ptr().cast(), iov_len: len });
        left -= len;
    }
    let mut behind = Iovecs::<MAX_PIECES>::new();
    let _all_fit = behind.add_room(&mut room);
    pieces.extend_from_slice(behind.get(0..MAX_PIECES));
    let mut message = message(&pieces);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: every piece lies within `scratch` or `room`, both borrowed mutably until the call returns; that
    // pieces overlap means only that the kernel writes the same bytes again.
    let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    match usize::try_from(len).map_err(|_| io::Error::last_os_error())? {
        0 => Ok(0),
        // The end of the stream can't be told from its bytes having been seen before: ask for nothing else.
        len if len <= offset => end_or_nothing(fd, offset),
        len => Ok(len - offset),
    }
}

/// With nothing behind the bytes seen before: whether that is because the stream has ended.
fn end_or_nothing(fd: impl AsFd, seen: usize) -> io::Result<usize> {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd is passed, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    let ended = ready > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0;
    if ended && unread(fd).is_ok_and(|unread| unread as usize <= seen) {
        Ok(0)
    } else {
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }
}

/// Throws away the oldest `len` received bytes of a TCP socket, which must be there, without copying them.
/// Returns how many went.
///
/// # Errors
/// The socket's error.
pub fn discard(fd: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP writes nothing through the pointer (tcp(7)).
    let len = unsafe { libc::recv(fd.as_fd().as_raw_fd(), std::ptr::null_mut(), len, flags) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// Where the urgent byte of a TCP socket with `SO_OOBINLINE` is: its offset from the oldest unread byte. None if no
/// received byte is urgent. An offset by [`set_peek_offset`] has to be zero, and is undefined afterwards.
///
/// A read stops before that byte, unless it begins there (tcp(7)). So where less is read than there was, there it is.
///
/// # Errors
/// The socket's error.
pub fn urgent_mark(fd: impl AsFd) -> io::Result<Option<u32>> {
    // What arrives from here on lies beyond these bytes, and so does an urgent byte among it.
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
    let len = u32::try_from(len).map_err(|_| io::Error::last_os_error())?;
    Ok((len < unread).then_some(len))
}

/// Whether the next byte to read is, or will be, the urgent one.
///
/// # Errors
/// `ENOTTY` if the socket knows no urgent data.
pub fn is_at_mark(fd: impl AsFd) -> io::Result<bool> {
    ask(&fd, SIOCATMARK).map(|answer| answer != 0)
}

/// Received bytes that are not read yet (`SIOCINQ`).
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unread(fd: impl AsFd) -> io::Result<u32> {
    ask(&fd, libc::FIONREAD).map(|bytes| u32::try_from(bytes).unwrap_or(0))
}

/// Bytes, and the FIN, that were sent on a TCP socket but are not yet acknowledged by the peer (`SIOCOUTQ`).
///
/// # Errors
/// `EINVAL` on a listening socket.
pub fn unacknowledged(fd: impl AsFd) -> io::Result<u32> {
    ask(&fd, libc::TIOCOUTQ).map(|bytes| u32::try_from(bytes).unwrap_or(0))
}

/// Calls ioctl(2) with one of the requests above.
fn ask(fd: &impl AsFd, request: libc::Ioctl) -> io::Result<libc::c_int> {
    let mut answer: libc::c_int = 0;
    // SAFETY: each of FIONREAD (SIOCINQ), TIOCOUTQ (SIOCOUTQ) and SIOCATMARK writes one int through the pointer, and
    // nothing else is asked for.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut answer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
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

    fn retry(mut look: impl FnMut() -> io::Result<usize>) -> usize {
        loop {
            match look() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                result => return result.unwrap(),
            }
        }
    }

    #[test]
    fn bytes_are_seen_again_until_they_are_discarded() {
        let (mut near, mut far) = pair();
        near.write_all(b"one two three").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let mut buffer = [0; 64];
        while retry(|| peek(&far, (&mut buffer[..]).into())) < 13 {}
        let mut scratch = [0; 3];
        assert_eq!(retry(|| peek_behind(&far, 4, &mut scratch, (&mut buffer[..]).into())), 9);
        assert_eq!(&buffer[..9], b"two three");
        assert_eq!(retry(|| peek_behind(&far, 13, &mut scratch, (&mut buffer[..]).into())), 0); // the end
        if set_peek_offset(&far, 4).is_ok() {
            assert_eq!(retry(|| peek(&far, (&mut buffer[..3]).into())), 3);
            assert_eq!(&buffer[..3], b"two");
            assert_eq!(retry(|| peek(&far, (&mut buffer[..]).into())), 6); // it moved on
        }
        assert_eq!(discard(&far, 8).unwrap(), 8);
        let mut rest = String::new();
        far.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "three");
    }

    #[test]
    fn nothing_behind_is_told_from_the_end() {
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let mut buffer = [0; 8];
        while retry(|| peek(&far, (&mut buffer[..]).into())) < 3 {}
        let mut scratch = [0; 8];
        let error = peek_behind(&far, 3, &mut scratch, (&mut buffer[..]).into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    /// Bytes go out of several pieces of shared memory, and come in to several.
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
        assert_eq!(retry(|| peek_behind(&far, 4, &mut [0; 3], room.first(5))), 5);
        assert_eq!(&buffer, b"wo tho thre\0\0\0\0\0\0\0\0\0");
    }
}
