//! Pairs of stream sockets, between which bytes are forwarded (behaviour §6.11).
//!
//! Each transfer takes two system calls. Small ones use a buffer. Large ones use a pipe and splice(2), which doesn't copy the
//! bytes. A pair borrows a pipe only while it has bytes in it, so idle connections have none.
//!
//! Invariants: bytes that were taken from a socket are in its `transit` until the other socket has accepted them, and no more
//! are taken before that. The common buffer is shared by all pairs: bytes stay in it only from `take` to the next `give`, which
//! sends them or sets them aside.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use engine::forward::spec::Direction;
use engine::host::SocketError;
use engine::splice::{Conduit, Side, Taken};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use crate::budgets::ledger::{Class, Ledger, Permit};
use crate::errno::{retry, stream_error};

/// Length of the buffer in bytes. A direction whose bytes fill it uses a pipe next.
const BUFFER_LEN: usize = 32 * 1024;
/// Requested capacity of a pipe, in bytes. If the kernel refuses it, half of it is requested, and so on.
const PIPE_LEN: usize = 1 << 20;
/// Maximum number of unused pipes to keep.
const SPARE_PIPES: usize = 32;

/// State that all pairs share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Watches their sockets.
    epoll: Rc<OwnedFd>,
    buffer: Vec<u8>,
    pipes: Vec<Pipe>,
    /// Requested capacity of the next pipe.
    pipe_len: usize,
    ledger: Rc<Ledger>,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    _permit: Permit,
}

impl Shared {
    /// No pipe yet: pipes are made when they are needed.
    pub(crate) fn new(epoll: Rc<OwnedFd>, ledger: Rc<Ledger>) -> Rc<RefCell<Self>> {
        Self::with(epoll, BUFFER_LEN, PIPE_LEN, ledger)
    }

    fn with(epoll: Rc<OwnedFd>, buffer_len: usize, pipe_len: usize, ledger: Rc<Ledger>) -> Rc<RefCell<Self>> {
        let (buffer, pipes) = (vec![0; buffer_len], Vec::new());
        Rc::new(RefCell::new(Self { epoll, buffer, pipes, pipe_len, ledger }))
    }

    fn pipe(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Ok(pipe);
        }
        let permit = self.ledger.take(Class::Pipe).ok_or(io::Errno::MFILE)?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // There is a limit for each pipe, and one for all of a user's (pipe(7)).
        while fcntl_setpipe_size(&write, self.pipe_len).is_err() && self.pipe_len > self.buffer.len() {
            self.pipe_len /= 2;
        }
        let capacity = fcntl_getpipe_size(&write)?;
        Ok(Pipe { read, write, capacity, _permit: permit })
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.pipes.len() < SPARE_PIPES {
            self.pipes.push(pipe);
        }
    }
}

/// An accepted socket and the socket that is connected for it.
#[derive(Debug)]
pub(crate) struct Pair {
    sockets: [OwnedFd; 2],
    watches: [Watch; 2],
    transit: [Transit; 2],
    pace: [Pace; 2],
    /// From the accepted socket to the other one.
    direction: Direction,
    /// What the second socket is connected to.
    destination: IpAddr,
    shared: Rc<RefCell<Shared>>,
    _permit: Permit,
}

/// How much a direction carries, which decides between buffer and pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Little: use the buffer.
    Few,
    /// Much: use a pipe.
    Many,
    /// Less than before: use the buffer when the socket is empty.
    Slower,
}

/// The loopback address of the same family.
pub(crate) const fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The events that are reported of a socket.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// The word of its events. `None`: it is not watched yet.
    word: Option<u64>,
    /// Also report when it has room to send. This is not watched from the start: most sockets always have room, and each
    /// would cause two useless events.
    room: bool,
}

impl Watch {
    fn events(self) -> EventFlags {
        let events = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        if self.room { events | EventFlags::OUT } else { events }
    }
}

/// Where the bytes of a direction are, between the sockets.
#[derive(Debug)]
enum Transit {
    /// No bytes.
    Empty,
    /// This many, in the common buffer. They must be sent or set aside before another direction takes bytes.
    Buffer(usize),
    /// Set aside in a buffer of their own, from this offset on, as the other socket did not accept them.
    Aside(Vec<u8>, usize),
    /// The urgent byte.
    Urgent(u8),
    /// This many, in a pipe.
    Pipe(Pipe, usize),
}

impl Pair {
    /// A pair of non-blocking sockets. `connecting` connects to `destination`, in `direction`.
    pub(crate) fn new(
        accepted: OwnedFd,
        connecting: OwnedFd,
        direction: Direction,
        destination: IpAddr,
        shared: Rc<RefCell<Shared>>,
        permit: Permit,
    ) -> Self {
        Self {
            sockets: [accepted, connecting],
            watches: [Watch::default(); 2],
            transit: [Transit::Empty, Transit::Empty],
            pace: [Pace::Few; 2],
            direction,
            destination,
            shared,
            _permit: permit,
        }
    }

    /// The direction of the bytes that a side receives.
    pub(crate) const fn direction(&self, side: Side) -> Direction {
        match side {
            Side::Accepted => self.direction,
            Side::Connected => self.direction.reverse(),
        }
    }

    /// The address that the bytes of a side come from: clients have a loopback address.
    pub(crate) const fn source(&self, side: Side) -> IpAddr {
        match side {
            Side::Connected => self.destination,
            Side::Accepted => loopback(self.destination),
        }
    }

    /// Copies the next bytes of a side to `buffer`. They stay in the socket. Returns how many; 0 after an error.
    pub(crate) fn peek(&self, side: Side, buffer: &mut [u8]) -> usize {
        recv(&self.sockets[side as usize], buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .map_or(0, |(copied, _)| copied)
    }

    /// Watches a socket, with events that carry `word`; with `room`, also for room to send.
    pub(crate) fn watch(&mut self, side: Side, word: u64, room: bool) -> io::Result<()> {
        let watch = &mut self.watches[side as usize];
        *watch = Watch { word: Some(word), room: watch.room || room };
        let data = EventData::new_u64(word);
        epoll::add(&*self.shared.borrow().epoll, &self.sockets[side as usize], data, watch.events())
    }

    /// Watches a socket for room to send. Room that it has already is reported, too.
    fn await_room(&mut self, side: Side) -> io::Result<()> {
        let watch = &mut self.watches[side as usize];
        if std::mem::replace(&mut watch.room, true) {
            return Ok(());
        }
        let Some(word) = watch.word else { return Ok(()) };
        let (epoll, data) = (&self.shared.borrow().epoll, EventData::new_u64(word));
        epoll::modify(&**epoll, &self.sockets[side as usize], data, watch.events())
    }

    /// Takes bytes by the buffer: up to the urgent byte, or from there on. There may be more only if they fill the buffer. Epoll
    /// reports what ended a shorter read, and what arrives later.
    fn take_by_buffer(&mut self, from: Side, at_most: usize) -> Result<Taken, SocketError> {
        let mut shared = self.shared.borrow_mut();
        let at_most = at_most.min(shared.buffer.len());
        let (len, _) =
            call(|| recv(&self.sockets[from as usize], &mut shared.buffer[..at_most], RecvFlags::DONTWAIT))?;
        let full = len == shared.buffer.len();
        if len > 0 {
            self.transit[from as usize] = Transit::Buffer(len);
            self.pace[from as usize] = if full { Pace::Many } else { Pace::Few };
        }
        Ok(Taken { len, more: full })
    }

    /// Takes bytes by a pipe, up to the urgent byte. If the urgent byte is next, splice(2) returns EAGAIN; if the stream has
    /// ended after it, splice(2) returns 0, as at the end of the stream.
    fn take_by_pipe(&mut self, from: Side, pipe: Pipe) -> Result<usize, SocketError> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let taken =
            call(|| splice(&self.sockets[from as usize], None, &pipe.write, None, pipe.capacity, flags));
        let pace = &mut self.pace[from as usize];
        match taken {
            Ok(len @ 1..) => {
                self.transit[from as usize] = Transit::Pipe(pipe, len);
                let many = len >= self.shared.borrow().buffer.len() / 2;
                *pace = if many { Pace::Many } else { Pace::Slower };
            }
            _ => {
                // Back to the buffer only now, when the socket is empty: a read that begins at the urgent byte does not stop
                // at it.
                if *pace == Pace::Slower {
                    *pace = Pace::Few;
                }
                self.shared.borrow_mut().give_back(pipe);
            }
        }
        taken
    }

    /// Takes bytes by the buffer, and the urgent byte alone. With `ended`, the stream may have ended, so a read is tried even
    /// without unread bytes.
    fn take_up_to_mark(&mut self, from: Side, ended: bool) -> Result<Taken, SocketError> {
        let socket = &self.sockets[from as usize];
        // Read the number first: bytes that arrive later, possibly with an urgent byte, come after these.
        let unread = sys::stream::unread(socket).unwrap_or(0) as usize;
        if unread == 0 && !ended {
            return Err(SocketError::WouldBlock);
        }
        if unread > 0 && sys::stream::is_at_mark(socket).unwrap_or(false) {
            let mut byte = [0];
            let (len, _) = call(|| recv(socket, &mut byte, RecvFlags::DONTWAIT))?;
            if len > 0 {
                self.transit[from as usize] = Transit::Urgent(byte[0]);
            }
            return Ok(Taken { len, more: true });
        }
        self.take_by_buffer(from, unread.max(1)).map(|taken| Taken { more: true, ..taken })
    }

    fn send(&mut self, from: Side) -> Result<usize, SocketError> {
        let sink = &self.sockets[from.other() as usize];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let transit = &mut self.transit[from as usize];
        match transit {
            Transit::Empty => Ok(0),
            Transit::Buffer(len) => {
                let shared = self.shared.borrow();
                let bytes = &shared.buffer[..*len];
                let sent = call(|| send(sink, bytes, flags));
                *transit = match sent {
                    Ok(sent) if sent >= *len => Transit::Empty,
                    Ok(sent) => Transit::Aside(bytes[sent..].to_vec(), 0),
                    Err(SocketError::WouldBlock) => Transit::Aside(bytes.to_vec(), 0),
                    Err(SocketError::Failed(_)) => Transit::Empty,
                };
                sent
            }
            Transit::Aside(bytes, start) => {
                let sent = call(|| send(sink, &bytes[*start..], flags))?;
                *start += sent;
                if *start >= bytes.len() {
                    *transit = Transit::Empty;
                }
                Ok(sent)
            }
            Transit::Urgent(byte) => {
                let sent = call(|| send(sink, &[*byte], flags | SendFlags::OOB))?;
                *transit = Transit::Empty;
                Ok(sent)
            }
            Transit::Pipe(pipe, len) => {
                let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
                let sent = call(|| splice(&pipe.read, None, sink, None, *len, flags))?;
                *len = len.saturating_sub(sent);
                if *len == 0
                    && let Transit::Pipe(pipe, _) = std::mem::replace(transit, Transit::Empty)
                {
                    self.shared.borrow_mut().give_back(pipe);
                }
                Ok(sent)
            }
        }
    }
}

impl Conduit for Pair {
    fn take(&mut self, from: Side, urgent: bool) -> Result<Taken, SocketError> {
        if self.pace[from as usize] == Pace::Few {
            return if urgent {
                self.take_up_to_mark(from, false)
            } else {
                self.take_by_buffer(from, usize::MAX)
            };
        }
        let pipe = self.shared.borrow_mut().pipe();
        // Without a pipe (no descriptor is left, for example), the buffer is used.
        let Ok(pipe) = pipe else { return self.take_up_to_mark(from, true) };
        match self.take_by_pipe(from, pipe) {
            Ok(0) => self.take_up_to_mark(from, true),
            Ok(len) => Ok(Taken { len, more: true }),
            Err(SocketError::WouldBlock) if urgent => self.take_up_to_mark(from, false),
            Err(error) => Err(error),
        }
    }

    fn give(&mut self, from: Side) -> Result<usize, SocketError> {
        let given = self.send(from);
        if given == Err(SocketError::WouldBlock) {
            self.await_room(from.other()).map_err(stream_error)?;
        }
        given
    }

    fn shutdown_write(&mut self, side: Side) -> Result<(), SocketError> {
        call(|| rustix::net::shutdown(&self.sockets[side as usize], Shutdown::Write))
    }

    fn unacknowledged(&mut self, side: Side) -> u32 {
        // The call fails only for a failed socket, on which nothing will be acknowledged.
        sys::stream::unacknowledged(&self.sockets[side as usize]).unwrap_or(0)
    }

    fn reset_on_close(&mut self) {
        self.sockets.iter().for_each(reset_on_close);
    }
}

/// Makes close(2) of a stream socket reset the connection.
pub(crate) fn reset_on_close(socket: &OwnedFd) {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO)).ok();
}

/// A call on a stream socket or pipe, called again if a signal interrupts it.
fn call<T>(call: impl FnMut() -> io::Result<T>) -> Result<T, SocketError> {
    retry(call).map_err(stream_error)
}

#[cfg(test)]
mod tests;
