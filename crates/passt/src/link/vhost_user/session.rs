//! A connection to a front-end. The connection carries messages of the vhost-user protocol, and the session handles
//! them in order.
//!
//! The crate `vhost` reads, checks and answers the messages. Its reads and writes block, but the event loop must not
//! block. So `vhost` is called only when a whole message has arrived and the socket has room for an answer.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use thiserror::Error;
use vhost::vhost_user::message::{FrontendReq, MAX_MSG_SIZE};
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError, VhostUserBackendReqHandlerMut};

use super::device::Device;
use crate::errno::retry;
use crate::link::door::Client;

/// Maximum number of messages that are handled before other sources are served.
const MESSAGES: usize = 64;

const HEADER_LEN: usize = 12;
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// The reason to end a connection.
#[derive(Debug, Error)]
pub(in crate::link) enum Ended {
    /// The front-end has closed the connection.
    #[error("the front-end has closed it")]
    Closed,
    /// The socket has no room for an answer.
    #[error("the front-end does not read answers")]
    NotReading,
    /// The received bytes are not a message.
    #[error("bad message header: request {request}, flags {flags:#x}, {size} bytes")]
    Header {
        /// Request number of the received header.
        request: u32,
        /// Flags of the received header.
        flags: u32,
        /// Size in the received header.
        size: u32,
    },
    /// A request failed, and its sender did not request an answer.
    #[error("{name}: {error}")]
    Request {
        /// The name of the request, or its number.
        name: String,
        /// The error of the request.
        error: ProtocolError,
    },
    /// The front-end has shortened a file that it shares.
    #[error("it has shortened a file of the guest's memory or of its log")]
    MemoryLost,
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] io::Error),
}

/// A connection to a front-end.
pub(in crate::link) struct Session {
    socket: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
    /// Contains the device while a message is handled.
    lent: Arc<Mutex<Device>>,
}

/// The head of a message.
#[derive(Clone, Copy)]
struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Client for Session {
    /// Each arrival causes one event: part of a message may stay in the socket.
    const EVENTS: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

    fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        let lent = Arc::<Mutex<Device>>::default();
        let handler = BackendReqHandler::from_stream(socket.try_clone()?, Arc::clone(&lent));
        Ok(Self { socket, handler, lent })
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Session {
    /// Handles the messages that have arrived. Returns false if more messages may be available.
    pub(super) fn handle(&mut self, device: &mut Device) -> Result<bool, Ended> {
        for _ in 0..MESSAGES {
            let Some(header) = self.next()? else { return Ok(true) };
            match self.handle_one(header, device) {
                Err(Ended::Request { name, error: error @ ProtocolError::ReqHandlerError(_) })
                    if header.flags & NEED_REPLY != 0 && device.acknowledges() =>
                {
                    // The sender has received an answer with this error.
                    log::warn!("Request refused: {name}: {error}");
                }
                result => result?,
            }
        }
        Ok(false)
    }

    /// Returns the head of the next message, if the whole message has arrived.
    fn next(&self) -> Result<Option<Header>, Ended> {
        let mut bytes = [0; HEADER_LEN];
        // The message that has arrived causes no other event: an interrupted call is repeated.
        let peek = || recv(&self.socket, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let read = match retry(peek) {
            Ok((0, _)) => return Err(Ended::Closed),
            Ok((read, _)) => read,
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(Ended::Socket(errno.into())),
        };
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Header { request: word(0), flags: word(4), size: word(8) };
        let Header { request, flags, size } = header;
        let whole = read == HEADER_LEN;
        if whole && (size as usize > MAX_MSG_SIZE || flags & VERSION_MASK != VERSION || flags & REPLY != 0) {
            return Err(Ended::Header { request, flags, size });
        }
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT | PollFlags::RDHUP)];
        retry(|| poll(&mut fds, Some(&Timespec::default()))).map_err(io::Error::from)?;
        let events = fds[0].revents();
        let there = rustix::io::ioctl_fionread(&self.socket).map_err(io::Error::from)?;
        if !whole || there < HEADER_LEN as u64 + u64::from(size) {
            let over = events.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR);
            return if over { Err(Ended::Closed) } else { Ok(None) };
        }
        if !events.contains(PollFlags::OUT) {
            return Err(Ended::NotReading);
        }
        Ok(Some(header))
    }

    fn handle_one(&mut self, header: Header, device: &mut Device) -> Result<(), Ended> {
        let known = FrontendReq::try_from(header.request);
        let name =
            known.map_or_else(|_| format!("request {}", header.request), |request| format!("{request:?}"));
        log::trace!("{name}, flags {:#x}, {} bytes", header.flags, header.size);
        match known {
            Ok(FrontendReq::SET_VRING_ENABLE) => return self.enable(header, &name, device),
            // These messages need no action, and `vhost` does not support them: no switch must learn the guest's
            // location, and no process waits for the log.
            Ok(FrontendReq::SEND_RARP | FrontendReq::SET_LOG_FD) => {
                self.take(header)?;
                return Ok(self.acknowledge(header, device, true)?);
            }
            _ => {}
        }
        self.lend(device);
        let result = self.handler.handle_request();
        self.lend(device);
        match result {
            Ok(()) => Ok(()),
            Err(ProtocolError::Disconnected) => Err(Ended::Closed),
            Err(error) => Err(Ended::Request { name, error }),
        }
    }

    /// Exchanges `device` and the device that the handler uses.
    fn lend(&self, device: &mut Device) {
        std::mem::swap(device, &mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// `vhost` refuses this request before features are set. QEMU may set features later.
    fn enable(&mut self, header: Header, name: &str, device: &mut Device) -> Result<(), Ended> {
        let body = self.take(header)?;
        let word = |at: usize| body.get(at..at + 4)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        let result = match (header.size, word(0), word(4)) {
            (8, Some(index), Some(enable @ 0..=1)) => device.set_vring_enable(index, enable == 1),
            _ => Err(ProtocolError::InvalidMessage),
        };
        self.acknowledge(header, device, result.is_ok())?;
        result.map_err(|error| Ended::Request { name: name.to_owned(), error })
    }

    /// Reads the next message, which has arrived completely. Returns the message's body.
    fn take(&self, header: Header) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; HEADER_LEN + header.size as usize];
        retry(|| recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT))?;
        Ok(bytes.split_off(HEADER_LEN))
    }

    /// Answers a request with its result, if the sender requested an answer.
    fn acknowledge(&mut self, header: Header, device: &Device, success: bool) -> io::Result<()> {
        if header.flags & NEED_REPLY == 0 || !device.acknowledges() {
            return Ok(());
        }
        let mut reply = [0; HEADER_LEN + 8];
        reply[..4].copy_from_slice(&header.request.to_ne_bytes());
        reply[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        reply[8..12].copy_from_slice(&8_u32.to_ne_bytes());
        reply[12..].copy_from_slice(&u64::from(!success).to_ne_bytes());
        self.socket.write_all(&reply)
    }
}
