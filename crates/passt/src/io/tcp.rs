//! TCP sockets of the host.

use std::cell::RefCell;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use engine::host::{Errno, SocketError, TcpSocket};
use engine::memory::Memory as _;
use rustix::io;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sockopt};
use sys::sockopt::IpVersion;

use crate::budgets::ledger::Permit;
use crate::errno::{retry, stream_error, take_pending};
use crate::host::missing;
use crate::memory::{Payload, Room, Vectored};

/// What is peeked over on kernels without `SO_PEEK_OFF` for TCP goes here, again and again.
const SCRATCH_LEN: usize = 256 * 1024;

/// How received bytes are looked at from some offset on.
#[derive(Clone, Debug)]
pub(crate) enum PeekMethod {
    /// The kernel keeps the offset (Linux 6.9).
    Offset,
    /// What lies before is copied to a scratch buffer.
    Scratch(Rc<RefCell<Vec<u8>>>),
}

impl PeekMethod {
    /// The best method of this kernel.
    pub(crate) fn probe() -> Self {
        let supported =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
                .is_ok_and(|socket| sys::stream::set_peek_offset(&socket, 0).is_ok());
        if supported && !missing::is_missing(missing::TCP_PEEK_OFFSET) {
            Self::Offset
        } else {
            log::debug!("TCP sockets have no SO_PEEK_OFF: sent bytes are copied again to be skipped");
            Self::scratch()
        }
    }

    /// The method for kernels before 6.9.
    pub(crate) fn scratch() -> Self {
        Self::Scratch(Rc::new(RefCell::new(vec![0; SCRATCH_LEN])))
    }
}

/// A connected or connecting socket.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: OwnedFd,
    method: PeekMethod,
    /// The kernel's offset; none while it is not in use, which means zero.
    offset: Option<u32>,
    _permit: Option<Permit>,
}

impl Stream {
    /// Takes over a non-blocking socket.
    pub(crate) fn new(fd: OwnedFd, method: PeekMethod, permit: Option<Permit>) -> Self {
        Self { fd, method, offset: None, _permit: permit }
    }

    /// Has the kernel's offset, if it is in use, be zero.
    fn rewind(&mut self) -> io::Result<()> {
        if self.offset.is_some() {
            sys::stream::set_peek_offset(&self.fd, 0)?;
            self.offset = Some(0);
        }
        Ok(())
    }

    /// The version of its packets: one of both families may have either.
    fn version(&self) -> Option<IpVersion> {
        Some(if self.local()?.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 })
    }

    fn peek_at(&mut self, offset: u32, room: Room<'_>) -> io::Result<usize> {
        match &self.method {
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
        retry(|| self.peek_at(offset, Vectored::part(&mut room, usize::MAX))).map_err(stream_error)
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        self.rewind().ok()?;
        let mark = sys::stream::urgent_mark(&self.fd).ok()?;
        self.rewind().ok()?;
        mark
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let mut gone = 0;
        while gone < len {
            match retry(|| sys::stream::discard(&self.fd, (len - gone) as usize)) {
                Ok(0) => break,
                // Not all, if the urgent byte is next.
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
        // On a socket that has failed nothing will ever be acknowledged; its error is reported otherwise.
        sys::stream::unacknowledged(&self.fd).unwrap_or(0)
    }

    fn take_error(&mut self) -> Option<Errno> {
        take_pending(&self.fd)
    }

    fn keep_alive(&mut self) {
        // If the kernel will not, our own timers still end a dead connection.
        sockopt::set_socket_keepalive(&self.fd, true).ok();
    }

    fn set_traffic_class(&mut self, class: u8) {
        // It is a wish, and no packet is lost for it.
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
        sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO)).ok();
    }
}

#[cfg(test)]
mod tests;
