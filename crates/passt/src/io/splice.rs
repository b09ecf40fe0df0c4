//! Pairs of stream sockets, between which bytes are forwarded (behaviour §6.11).
//!
//! Each transfer takes two system calls. A small transfer uses a buffer. A large transfer uses a pipe and splice(2),
//! which doesn't copy the bytes. A pair borrows a pipe only while the pipe contains the pair's bytes, so idle
//! connections have no pipe.
//!
//! Invariants: bytes that were taken from a socket are in the direction's `transit` until the other socket has accepted
//! them. No more bytes are taken before that. All pairs share the common buffer: bytes stay in this buffer only from
//! `take` to the next `give`, which sends the bytes or sets them aside.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use engine::flow::Endpoints;
use engine::forward::spec::Direction;
use engine::host::SocketError;
use engine::splice::{Conduit, Side, Taken};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice};

use crate::budgets::ledger::{Class, Ledger, Permit};
use crate::errno::{retry, stream_error};
use crate::event::rewatch;

/// Length of the buffer in bytes. A direction whose bytes fill it uses a pipe next.
const BUFFER_LEN: usize = 32 * 1024;
/// Requested capacity of a pipe, in bytes. If the kernel refuses it, half of it is requested, and so on.
const PIPE_LEN: usize = 1 << 20;
/// Maximum number of unused pipes to keep.
const SPARE_PIPES: usize = 32;

/// State that all pairs share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Watches the sockets of all pairs.
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
    /// Creates the state without any pipe. Pipes are made when they are needed.
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
        // The size of each pipe is limited, and so is the total size of a user's pipes (pipe(7)).
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
    /// The direction from the accepted socket to the other socket.
    direction: Direction,
    /// The address to which the second socket is connected.
    destination: IpAddr,
    /// The client and the destination, if the client is in the guest's namespace.
    guests: Option<Endpoints>,
    shared: Rc<RefCell<Shared>>,
    _permit: Permit,
}

/// The amount of data that a direction carries. It decides between buffer and pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Few bytes: use the buffer.
    Few,
    /// Many bytes: use a pipe.
    Many,
    /// Fewer bytes than before: use the buffer when the socket is empty.
    Slower,
}

/// The loopback address of the same family as `like`.
pub(crate) const fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The events that epoll reports for a socket.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// The word of the socket's events. `None`: the socket is not watched yet.
    word: Option<u64>,
    /// Also report when the socket has room to send. This event is not watched from the start: most sockets always have
    /// room, and each socket would cause two useless events.
    room: bool,
}

impl Watch {
    fn events(self) -> EventFlags {
        let events = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        if self.room { events | EventFlags::OUT } else { events }
    }
}

/// The location of a direction's bytes that were read from one socket and not yet written to the other.
#[derive(Debug)]
enum Transit {
    /// No bytes.
    Empty,
    /// This number of bytes, in the common buffer. The bytes must be sent or set aside before another direction takes
    /// bytes.
    Buffer(usize),
    /// The bytes from this offset on, set aside in a separate buffer: the other socket did not accept them.
    Aside(Vec<u8>, usize),
    /// The urgent byte.
    Urgent(u8),
    /// This number of bytes, in a pipe.
    Pipe(Pipe, usize),
}

impl Pair {
    /// Makes a pair of two non-blocking sockets. `connecting` is being connected to `destination`, in `direction`.
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
            guests: None,
            shared,
            _permit: permit,
        }
    }

    /// Notes the client and the destination of a connection whose client is in the guest's namespace.
    pub(crate) const fn begun_by_guest(mut self, ends: Option<Endpoints>) -> Self {
        self.guests = ends;
        self
    }

    /// The client and the destination, if the client is in the guest's namespace.
    pub(crate) const fn guests_ends(&self) -> Option<Endpoints> {
        self.guests
    }

    /// The address that sent the bytes of this side. Clients have a loopback address.
    pub(crate) const fn source(&self, side: Side) -> IpAddr {
        match side {
            Side::Connected => self.destination,
            Side::Accepted => loopback(self.destination),
        }
    }

    /// Copies the next bytes of a side to `buffer`. The bytes stay in the socket. Returns the number of bytes, or 0
    /// after an error.
    pub(crate) fn peek(&self, side: Side, buffer: &mut [u8]) -> usize {
        recv(&self.sockets[side as usize], buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)
            .map_or(0, |(copied, _)| copied)
    }

    /// Watches a socket. Its events carry `word`. With `room`, room to send is also an event.
    pub(crate) fn watch(&mut self, side: Side, word: u64, room: bool) -> io::Result<()> {
        let watch = &mut self.watches[side as usize];
        *watch = Watch { word: Some(word), room: watch.room || room };
        let data = EventData::new_u64(word);
        epoll::add(&*self.shared.borrow().epoll, &self.sockets[side as usize], data, watch.events())
    }

    /// Watches a socket for room to send. Room that exists already is reported, too.
    fn await_room(&mut self, side: Side) -> io::Result<()> {
        let watch = &mut self.watches[side as usize];
        if std::mem::replace(&mut watch.room, true) {
            return Ok(());
        }
        let Some(word) = watch.word else { return Ok(()) };
        let epoll = &self.shared.borrow().epoll;
        rewatch(&**epoll, &self.sockets[side as usize], word, watch.events())
    }

    /// Takes bytes by the buffer: up to the urgent byte, or from the urgent byte on. More bytes can be in the socket
    /// only if as many bytes were taken as possible. Epoll reports the reason for a shorter read, and bytes that arrive
    /// later.
    fn take_by_buffer(&mut self, from: Side, at_most: usize) -> Result<Taken, SocketError> {
        let mut shared = self.shared.borrow_mut();
        let at_most = at_most.min(shared.buffer.len());
        let (len, _) =
            call(|| recv(&self.sockets[from as usize], &mut shared.buffer[..at_most], RecvFlags::DONTWAIT))?;
        if len > 0 {
            self.transit[from as usize] = Transit::Buffer(len);
        }
        if len == shared.buffer.len() {
            self.pace[from as usize] = Pace::Many;
        }
        Ok(Taken { len, more: len == at_most })
    }

    /// Takes bytes by a pipe, up to the urgent byte. If the urgent byte is next, splice(2) returns EAGAIN; if the
    /// stream has ended after it, splice(2) returns 0, as at the end of the stream.
    fn take_by_pipe(&mut self, from: Side, pipe: Pipe, at_most: usize) -> Result<usize, SocketError> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let at_most = at_most.min(pipe.capacity);
        let taken = call(|| splice(&self.sockets[from as usize], None, &pipe.write, None, at_most, flags));
        let pace = &mut self.pace[from as usize];
        match taken {
            Ok(len @ 1..) => {
                self.transit[from as usize] = Transit::Pipe(pipe, len);
                let many = len >= self.shared.borrow().buffer.len() / 2;
                *pace = if many { Pace::Many } else { Pace::Slower };
            }
            _ => {
                // The direction returns to the buffer only now, when the socket is empty: a read that begins at the
                // urgent byte does not stop at this byte.
                if *pace == Pace::Slower {
                    *pace = Pace::Few;
                }
                self.shared.borrow_mut().give_back(pipe);
            }
        }
        taken
    }

    /// Takes bytes by the buffer, and takes the urgent byte alone. With `ended`, the stream may have ended, so a read
    /// is tried even if there are no unread bytes.
    fn take_up_to_mark(&mut self, from: Side, ended: bool, at_most: usize) -> Result<Taken, SocketError> {
        let socket = &self.sockets[from as usize];
        // The number of unread bytes is read first. Bytes that arrive later, possibly with an urgent byte, come after
        // these bytes.
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
        self.take_by_buffer(from, unread.max(1).min(at_most)).map(|taken| Taken { more: true, ..taken })
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
    fn direction(&self, from: Side) -> Direction {
        match from {
            Side::Accepted => self.direction,
            Side::Connected => self.direction.reverse(),
        }
    }

    fn take(&mut self, from: Side, urgent: bool, at_most: usize) -> Result<Taken, SocketError> {
        if self.pace[from as usize] == Pace::Few {
            // This asks for the unread bytes only, so a read of all of them does not show that there are many.
            if urgent {
                return self.take_up_to_mark(from, false, at_most);
            }
            let taken = self.take_by_buffer(from, at_most)?;
            if taken.more {
                self.pace[from as usize] = Pace::Many;
            }
            return Ok(taken);
        }
        let pipe = self.shared.borrow_mut().pipe();
        // Without a pipe (for example, if no descriptor is left), the buffer is used.
        let Ok(pipe) = pipe else { return self.take_up_to_mark(from, true, at_most) };
        match self.take_by_pipe(from, pipe, at_most) {
            Ok(0) => self.take_up_to_mark(from, true, at_most),
            Ok(len) => Ok(Taken { len, more: true }),
            Err(SocketError::WouldBlock) if urgent => self.take_up_to_mark(from, false, at_most),
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

    fn abandon(&mut self, side: Side) {
        // This fails only for a socket that has ended already.
        rustix::net::shutdown(&self.sockets[side as usize], Shutdown::Read).ok();
    }

    fn unacknowledged(&mut self, side: Side) -> u32 {
        // The call fails only for a failed socket. On a failed socket, nothing will be acknowledged.
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

/// Makes a call on a stream socket or pipe. Repeats the call if a signal interrupted it.
fn call<T>(call: impl FnMut() -> io::Result<T>) -> Result<T, SocketError> {
    retry(call).map_err(stream_error)
}

#[cfg(test)]
mod tests;
