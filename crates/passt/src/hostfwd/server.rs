//! The clients of the API socket.
//!
//! The server never blocks: a client that sends nothing delays nobody. The number of clients, the length of a request
//! and the time for it are limited.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use serde_json::{Value, json};

use super::forwards::Forwards;
use super::request::{Defaults, Parsed, Request, parse};
use crate::errno::retry;
use crate::event::Source;

/// Maximum number of clients at the same time. Others wait to be accepted.
const MOST_CLIENTS: usize = 16;
/// Maximum time for one client, from accept to reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// A request must be shorter than this, in bytes.
const REQUEST_LIMIT: usize = 4096;

/// The server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: OwnedFd,
    /// The clients, each at the number with which its events are reported.
    clients: [Option<Client>; MOST_CLIENTS],
    /// No client is accepted before this time.
    paused_until: Option<Instant>,
    defaults: Defaults,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    deadline: Instant,
    input: Vec<u8>,
    /// The part of the reply that has not been sent yet.
    output: Vec<u8>,
}

/// The state of a client after its socket was ready.
enum Progress {
    /// Wait for the socket again.
    Pending,
    /// The client has sent a request.
    Whole(Result<Request, String>),
    /// The client's socket has failed, or the reply is complete.
    Over,
}

impl Server {
    /// Serves the clients of `listener`, which must be non-blocking.
    pub(crate) fn new(listener: OwnedFd, defaults: Defaults, epoll: impl AsFd) -> rustix::io::Result<Self> {
        Source::HostFwd.watch(epoll, &listener, EventFlags::IN)?;
        Ok(Self { listener, clients: [const { None }; MOST_CLIENTS], paused_until: None, defaults })
    }

    /// What requests may leave out.
    pub(crate) const fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Returns the time at which [`Server::on_deadline`] must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let deadlines = self.clients.iter().flatten().map(|client| client.deadline);
        deadlines.chain(self.paused_until).min()
    }

    /// Closes the clients whose time has expired. Also ends a pause that has expired.
    pub(crate) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        for client in &mut self.clients {
            if client.as_ref().is_some_and(|client| client.deadline <= now) {
                log::info!("A client of the API socket took too long, closed");
                *client = None;
            }
        }
        self.paused_until = self.paused_until.filter(|until| *until > now);
        self.listen(epoll);
    }

    /// Accepts a client.
    pub(crate) fn on_listener(&mut self, now: Instant, epoll: &OwnedFd) {
        let Some(number) = self.clients.iter().position(Option::is_none) else { return };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match retry(|| accept_with(&self.listener, flags)) {
            Ok(socket) => {
                let watched = Source::HostFwdClient(number as u32).watch(epoll, &socket, EventFlags::IN);
                if let Err(errno) = watched {
                    log::warn!("can't watch a client of the API socket: {errno}");
                } else {
                    let deadline = now + CLIENT_TIMEOUT;
                    self.clients[number] =
                        Some(Client { socket, deadline, input: Vec::new(), output: Vec::new() });
                }
            }
            Err(Errno::AGAIN | Errno::CONNABORTED) => return,
            Err(errno) => {
                log::warn!("can't accept a client of the API socket: {errno}");
                self.paused_until = Some(now + ACCEPT_PAUSE);
            }
        }
        self.listen(epoll);
    }

    /// Continues to serve a client whose socket is ready. Returns a request. The caller must call [`Server::reply`].
    pub(crate) fn on_client(&mut self, number: u32, epoll: &OwnedFd) -> Option<Result<Request, String>> {
        let defaults = self.defaults;
        let client = self.clients.get_mut(number as usize)?.as_mut()?;
        let progress =
            if client.output.is_empty() { client.receive(&defaults) } else { client.send_output() };
        match progress {
            Progress::Pending => None,
            Progress::Whole(request) => Some(request),
            Progress::Over => {
                self.end(number, epoll);
                None
            }
        }
    }

    /// Sends a reply to a client, and closes the client's socket when the reply is sent.
    pub(crate) fn reply(&mut self, number: u32, reply: Vec<u8>, epoll: &OwnedFd) {
        let Some(client) = self.clients.get_mut(number as usize).and_then(Option::as_mut) else { return };
        client.output = reply;
        let over = match client.send_output() {
            Progress::Pending => {
                Source::HostFwdClient(number).rewatch(epoll, &client.socket, EventFlags::OUT).is_err()
            }
            Progress::Over | Progress::Whole(_) => true,
        };
        if over {
            self.end(number, epoll);
        }
    }

    fn end(&mut self, number: u32, epoll: &OwnedFd) {
        if let Some(client) = self.clients.get_mut(number as usize) {
            *client = None;
        }
        self.listen(epoll);
    }

    /// Watches the listener only while a client may be accepted.
    fn listen(&self, epoll: &OwnedFd) {
        let ready = self.paused_until.is_none() && self.clients.iter().any(Option::is_none);
        let events = if ready { EventFlags::IN } else { EventFlags::empty() };
        if let Err(errno) = Source::HostFwd.rewatch(epoll, &self.listener, events) {
            log::warn!("can't watch the API socket: {errno}");
        }
    }
}

impl Client {
    /// Receives a request.
    fn receive(&mut self, defaults: &Defaults) -> Progress {
        let have = self.input.len();
        self.input.resize(REQUEST_LIMIT, 0);
        let received = retry(|| recv(self.socket.as_fd(), &mut self.input[have..], RecvFlags::DONTWAIT));
        let count = received.map_or(0, |(_, count)| count);
        self.input.truncate(have + count);
        match received {
            Err(Errno::AGAIN) => return Progress::Pending,
            Err(_) => return Progress::Over,
            Ok(_) => {}
        }
        if self.input.len() >= REQUEST_LIMIT {
            return Progress::Whole(Err("too large message".into()));
        }
        match parse(&self.input, count == 0, defaults) {
            Parsed::Incomplete => Progress::Pending,
            Parsed::Whole(request) => Progress::Whole(request),
        }
    }

    fn send_output(&mut self) -> Progress {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match retry(|| send(self.socket.as_fd(), &self.output, flags)) {
            Ok(sent) => drop(self.output.drain(..sent)),
            Err(Errno::AGAIN) => {}
            Err(_) => return Progress::Over,
        }
        if self.output.is_empty() { Progress::Over } else { Progress::Pending }
    }
}

/// The reply to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A port is forwarded. Its number.
    Added(u64),
    /// A port is no longer forwarded.
    Removed,
    /// All forwarded ports.
    List,
    /// The request is refused.
    Error(String),
}

impl Reply {
    /// The reply in JSON. The C program sends `entries` without `return`, unlike its manual, so both forms are sent.
    pub(crate) fn encode(&self, forwards: &Forwards) -> Vec<u8> {
        let value: Value = match self {
            Self::Added(id) => json!({"return": {"id": id}}),
            Self::Removed => json!({"return": {}}),
            Self::List => {
                let entries = json!(forwards.list());
                json!({"return": {"entries": entries}, "entries": entries})
            }
            Self::Error(why) => json!({"error": {"desc": format!("bad request: {why}")}}),
        };
        value.to_string().into_bytes()
    }
}
