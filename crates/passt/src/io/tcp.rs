//! TCP sockets of the host.

mod kept;

use std::cell::RefCell;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use engine::host::{Amount, Errno, Info, Path, SocketError, TcpSocket, Totals};
use engine::memory::Memory as _;
use rustix::io;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType, socket_with, sockopt,
};
use sys::sockopt::IpVersion;

use self::kept::{Buffers, Kept};
use crate::budgets::ledger::Permit;
use crate::errno::{retry, stream_error, take_pending, to_engine};
use crate::host::missing;
use crate::io::splice::reset_on_close;
use crate::memory::{Payload, Room, Vectored};

/// Length of the scratch buffer, in bytes. A kernel without `SO_PEEK_OFF` for TCP copies the bytes before the offset to
/// this buffer.
const SCRATCH_LEN: usize = 256 * 1024;

/// The method of peeking at received bytes from an offset.
#[derive(Debug)]
pub(crate) enum PeekMethod {
    /// The kernel keeps the offset (Linux 6.9).
    Offset,
    /// The bytes before the offset are copied to a scratch buffer.
    Scratch(RefCell<Vec<u8>>),
}

impl PeekMethod {
    /// Finds the best method that this kernel supports.
    pub(crate) fn probe() -> Self {
        let supported =
            stream_socket(true).is_ok_and(|socket| sys::stream::set_peek_offset(&socket, 0).is_ok());
        if supported && !missing::is_missing(missing::TCP_PEEK_OFFSET) {
            Self::Offset
        } else {
            log::debug!(
                "TCP sockets have no SO_PEEK_OFF: unacknowledged bytes are copied again at each read"
            );
            Self::scratch()
        }
    }

    /// The method for kernels before Linux 6.9.
    pub(crate) fn scratch() -> Self {
        Self::Scratch(RefCell::new(vec![0; SCRATCH_LEN]))
    }
}

/// Makes a non-blocking TCP socket that is not connected yet.
pub(crate) fn stream_socket(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?; // urgent data are part of the stream
    Ok(socket)
}

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Shared {
    method: PeekMethod,
    /// Buffers for small messages.
    buffers: Buffers,
}

impl Shared {
    pub(crate) fn new(method: PeekMethod) -> Rc<Self> {
        Rc::new(Self { method, buffers: Buffers::default() })
    }
}

/// A connected or connecting socket. There are as many as connections, so it is small.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
    /// The kernel's offset. `None`: the offset was not set, so the kernel peeks from the start.
    offset: Option<u32>,
    /// The first bytes of the stream that the guest has not acknowledged, if they were taken out of the socket. The
    /// kernel's offset counts from the end of these bytes.
    kept: Kept,
    /// Whether the peer seems to send small messages. Then the next new bytes are taken out of the socket.
    takes_out: Takes,
    /// The number of an error of the socket that was found together with bytes. The next peek returns it.
    failed: Option<NonZeroU16>,
    _permit: Option<Permit>,
}

/// Whether new bytes are taken out of the socket, or left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// They are taken out: the last ones were a small message.
    Out,
    /// They stay in the socket: the last ones were more.
    Bulk,
    /// They stay in the socket: the peer has sent an urgent byte. The kernel forgets the mark of an urgent byte that is
    /// taken out.
    Never,
}

impl Stream {
    /// Takes over a non-blocking socket.
    pub(crate) const fn new(fd: OwnedFd, shared: Rc<Shared>, permit: Option<Permit>) -> Self {
        let kept = Kept::new(shared);
        Self { fd, offset: None, kept, takes_out: Takes::Out, failed: None, _permit: permit }
    }

    /// Sets the kernel's offset to zero, if the offset is in use.
    fn rewind(&mut self) -> io::Result<()> {
        if self.offset.is_some() {
            sys::stream::set_peek_offset(&self.fd, 0)?;
            self.offset = Some(0);
        }
        Ok(())
    }

    /// The IP version of the socket's packets. The local address shows the version: a dual-stack socket may have
    /// either.
    fn version(&self) -> Option<IpVersion> {
        Some(if self.local()?.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 })
    }

    /// Copies bytes of the stream to `room`, beginning `offset` bytes after the oldest one that is not discarded.
    fn read_at(&mut self, offset: u32, mut room: Room<'_>) -> io::Result<usize> {
        let kept = self.kept.len();
        if (offset as usize) < kept {
            let copied = room.0.put(0, self.kept.from(offset as usize));
            return self.read_on(copied, kept as u32, room);
        }
        if let Some(errno) = self.take_failure() {
            return Err(errno);
        }
        let taken = match self.takes_out {
            Takes::Out if offset as usize == kept => self.kept.receive(&self.fd, room.0.len()),
            _ => None,
        };
        let Some(taken) = taken else {
            let len = self.peek_at(offset - kept as u32, room)?;
            self.note_len(len);
            return Ok(len);
        };
        let (len, full) = taken?;
        self.offset = self.offset.map(|offset| offset.saturating_sub(len as u32));
        room.0.put(0, self.kept.from(kept));
        let len = if full { self.read_on(len, offset + len as u32, room)? } else { len };
        self.note_len(len);
        Ok(len)
    }

    /// Fills the part of `room` after the first `len` bytes from the socket, where `offset` is the end of the kept
    /// bytes. Returns the number of all bytes in `room`.
    fn read_on(&mut self, len: usize, offset: u32, mut room: Room<'_>) -> io::Result<usize> {
        let rest = Room(room.0.after(len));
        // A read that begins at the urgent byte does not stop there, so the bytes before it are a read of their own.
        let at_mark = || self.takes_out == Takes::Never && sys::stream::is_at_mark(&self.fd).unwrap_or(false);
        if rest.0.is_empty() || at_mark() {
            return Ok(len);
        }
        match self.peek_at(offset - self.kept.len() as u32, rest) {
            Ok(more) => Ok(len + more),
            Err(io::Errno::AGAIN) => Ok(len),
            Err(errno) => {
                self.failed = u16::try_from(errno.raw_os_error()).ok().and_then(NonZeroU16::new);
                Ok(len)
            }
        }
    }

    fn take_failure(&mut self) -> Option<io::Errno> {
        self.failed.take().map(|number| io::Errno::from_raw_os_error(number.get().into()))
    }

    /// Notes how many new bytes the socket had.
    fn note_len(&mut self, len: usize) {
        if self.takes_out != Takes::Never && len > 0 {
            self.takes_out = if len < kept::LEN { Takes::Out } else { Takes::Bulk };
        }
    }

    fn peek_at(&mut self, offset: u32, room: Room<'_>) -> io::Result<usize> {
        match &self.kept.shared.method {
            PeekMethod::Offset => {
                if self.offset.unwrap_or(0) != offset {
                    sys::stream::set_peek_offset(&self.fd, offset)?;
                    self.offset = Some(offset);
                }
                let len = sys::stream::peek(&self.fd, room.0)?;
                self.offset = self.offset.map(|offset| offset + len as u32);
                Ok(len)
            }
            PeekMethod::Scratch(scratch) => {
                sys::stream::peek_at(&self.fd, offset as usize, &mut scratch.borrow_mut(), room.0)
            }
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl TcpSocket for Stream {
    type Memory = Vectored;
    const MAX_PIECES: usize = 32;

    fn send(&mut self, payload: Payload<'_>) -> Result<usize, SocketError> {
        retry(|| sys::stream::send(&self.fd, payload.0)).map_err(stream_error)
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        let mut slices = [IoSlice::new(&[]); Self::MAX_PIECES];
        let count = pieces.len().min(Self::MAX_PIECES);
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let pieces = &slices[..count];
        retry(|| rustix::net::sendmsg(&self.fd, pieces, &mut SendAncillaryBuffer::default(), flags))
            .map_err(stream_error)
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL | SendFlags::OOB;
        retry(|| rustix::net::send(&self.fd, &[byte], flags)).map(drop).map_err(stream_error)
    }

    fn peek(&mut self, offset: u32, mut room: Room<'_>) -> Result<usize, SocketError> {
        retry(|| self.read_at(offset, Vectored::part(&mut room, usize::MAX))).map_err(stream_error)
    }

    fn unread(&mut self) -> Option<u32> {
        sys::stream::unread(&self.fd).ok().map(|unread| unread + self.kept.len() as u32)
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        self.rewind().ok()?;
        let mark = sys::stream::urgent_mark(&self.fd).ok()?;
        self.rewind().ok()?;
        self.takes_out = if mark.is_some() { Takes::Never } else { self.takes_out };
        mark.map(|mark| mark + self.kept.len() as u32)
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let mut gone = self.kept.discard(len as usize) as u32;
        while gone < len {
            match retry(|| sys::stream::discard(&self.fd, (len - gone) as usize)) {
                Ok(0) => break,
                // The call returns fewer bytes than requested if the urgent byte is next.
                Ok(some) => {
                    let some = (some as u32).min(len - gone);
                    self.offset = self.offset.map(|offset| offset.saturating_sub(some));
                    gone += some;
                }
                Err(_) if gone > 0 => break,
                Err(errno) => return Err(stream_error(errno)),
            }
        }
        Ok(gone)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        rustix::net::shutdown(&self.fd, Shutdown::Write).map_err(stream_error)
    }

    fn unacknowledged(&mut self) -> u32 {
        // The call fails only for a failed socket. On a failed socket, nothing will be acknowledged. Its error is
        // reported elsewhere.
        sys::stream::unacknowledged(&self.fd).unwrap_or(0)
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.take_failure().map(to_engine).or_else(|| take_pending(&self.fd))
    }

    fn has_error(&self) -> bool {
        self.failed.is_some()
    }

    fn keep_alive(&mut self) {
        // If the kernel refuses the option, the engine's timers still end a dead connection.
        sockopt::set_socket_keepalive(&self.fd, true).ok();
    }

    fn set_traffic_class(&mut self, class: u8) {
        // Best effort: if this fails, packets are sent with class 0.
        match self.version() {
            Some(IpVersion::V4) => sockopt::set_ip_tos(&self.fd, class).ok(),
            Some(IpVersion::V6) => sockopt::set_ipv6_tclass(&self.fd, class.into()).ok(),
            None => None,
        };
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        sys::sockopt::traffic_class_of_syn(&self.fd).ok()?
    }

    fn local(&self) -> Option<SocketAddr> {
        let local = SocketAddr::try_from(rustix::net::getsockname(&self.fd).ok()?).ok()?;
        Some(SocketAddr::new(local.ip().to_canonical(), local.port()))
    }

    fn reset_on_close(&mut self) {
        reset_on_close(&self.fd);
    }

    fn info(&mut self) -> Option<Info> {
        let info = sys::stream::info(&self.fd).ok()??;
        let amount = |bytes, packets: u32| Amount { bytes, packets: Some(packets.into()) };
        let totals = Totals {
            sent: amount(info.bytes_sent, info.segments_sent),
            received: amount(info.bytes_received, info.segments_received),
        };
        let path =
            Path { rtt: Duration::from_micros(info.rtt.into()), retransmissions: info.retransmissions };
        Some(Info { totals, path: Some(path) })
    }
}

#[cfg(test)]
mod tests;
