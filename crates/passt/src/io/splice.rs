//! Pairs of stream sockets, and what bytes go through between them (behaviour §6.11).
//!
//! Few bytes go through a buffer: that takes two system calls, as many as a pipe. Many go through a pipe, by splice(2),
//! which doesn't copy them. A pipe is borrowed while there are bytes in it, so that idle connections have none.

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
/// What a pipe is asked to hold, in bytes. Half of it, and so on, if that is refused.
const PIPE_LEN: usize = 1 << 20;
/// Most pipes to keep while no pair uses them.
const SPARE_PIPES: usize = 32;

/// What all pairs share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Watches their sockets.
    epoll: Rc<OwnedFd>,
    buffer: Vec<u8>,
    pipes: Vec<Pipe>,
    /// What a new pipe is asked to hold.
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

/// Two sockets.
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

/// How much a direction has to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// A buffer is enough.
    Few,
    /// A pipe pays.
    Many,
    /// It paid, but no longer does.
    Slower,
}

/// The loopback address of the same family.
pub(crate) const fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// What is reported of a socket.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// What its events carry, from when it is watched on.
    word: Option<u64>,
    /// That it can send, too. Most sockets never refuse bytes: watched from the start, each would cause two events for
    /// nothing.
    room: bool,
}

impl Watch {
    fn events(self) -> EventFlags {
        let events = EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET;
        if self.room { events | EventFlags::OUT } else { events }
    }
}

/// Where the bytes of a direction are.
#[derive(Debug)]
enum Transit {
    /// There are none.
    Empty,
    /// That many, in the common buffer, but only until they are given.
    Buffer(usize),
    /// Set aside, from some offset on.
    Aside(Vec<u8>, usize),
    /// The urgent byte.
    Urgent(u8),
    /// That many, in a pipe.
    Pipe(Pipe, usize),
}

impl Pair {
    /// Of an accepted and a connecting socket, both non-blocking. The latter leads in `direction` to `destination`.
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

    /// Copies the next bytes of a side to `buffer`, without taking them. Returns how many; none if that is not known.
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

    /// Watches a socket for room to send. If it has room by now, that is reported as well.
    fn await_room(&mut self, side: Side) -> io::Result<()> {
        let watch = &mut self.watches[side as usize];
        if std::mem::replace(&mut watch.room, true) {
            return Ok(());
        }
        let Some(word) = watch.word else { return Ok(()) };
        let (epoll, data) = (&self.shared.borrow().epoll, EventData::new_u64(word));
        epoll::modify(&**epoll, &self.sockets[side as usize], data, watch.events())
    }

    /// Takes what a buffer holds, up to the urgent byte, or from there on. Only if it fills the buffer there may be more:
    /// what made a read end early, or arrives later, is reported.
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

    /// Takes what a pipe holds, up to the urgent byte. If that is next, there is nothing to take, and after the end of the
    /// stream it looks as if nothing followed: zero.
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
                // Not before there is nothing left: a read that began at the urgent byte would not notice it.
                if *pace == Pace::Slower {
                    *pace = Pace::Few;
                }
                self.shared.borrow_mut().give_back(pipe);
            }
        }
        taken
    }

    /// Takes what a buffer holds, and the urgent byte by itself. With `ended`, nothing more is expected to arrive.
    fn take_up_to_mark(&mut self, from: Side, ended: bool) -> Result<Taken, SocketError> {
        let socket = &self.sockets[from as usize];
        // What arrives from here on, with an urgent byte perhaps, lies beyond these bytes.
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
        // No descriptor left, for example.
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
        // On a socket that has failed nothing will ever be acknowledged.
        sys::stream::unacknowledged(&self.sockets[side as usize]).unwrap_or(0)
    }

    fn reset_on_close(&mut self) {
        self.sockets.iter().for_each(reset_on_close);
    }
}

/// Makes the coming close of a stream socket a reset.
pub(crate) fn reset_on_close(socket: &OwnedFd) {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO)).ok();
}

/// A call on a stream socket or pipe, called again if a signal interrupts it.
fn call<T>(call: impl FnMut() -> io::Result<T>) -> Result<T, SocketError> {
    retry(call).map_err(stream_error)
}

#[cfg(test)]
mod tests;
