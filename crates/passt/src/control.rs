//! The server of the control socket (`--conf-path`, behaviour §8.9).
//!
//! The server serves one client at a time. A client can only delay other clients, and only for a limited time: the
//! server never blocks, and limits the time and the memory for a client. A policy can have up to 16 MiB. It is received
//! and sent in parts, so that traffic does not have to wait.

mod listing;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use engine::guard::Guard;
use engine::policy::{Policy, spec};
use engine::timer::Instant;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::errno::retry;
use crate::event::Source;
use control::message::{self, Announced, Decoded, Update};
use control::{policy, reply};
use listing::Listing;

/// The maximum time for one client, from accept to reply.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of bytes that one system call receives.
const STEP: usize = 64 * 1024;
/// Maximum number of system calls for one event. If more bytes are left, another event reports them.
const STEPS: usize = 4;

/// The rules of a policy file.
///
/// # Errors
/// A message for the user: the rules are invalid.
pub(crate) fn parse_policy(text: &str) -> Result<Policy, String> {
    let file = spec::parse_file(text).map_err(|error| error.to_string())?;
    Policy::new(file.rules, file.default).map_err(|error| error.to_string())
}

/// The server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: OwnedFd,
    client: Option<Client>,
    /// No client is accepted before this time.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    deadline: Instant,
    /// The bytes of the announcement or of `listing` that have not been sent yet.
    output: Vec<u8>,
    /// The part of the requested policy that comes after `output`.
    listing: Option<Listing>,
    input: Vec<u8>,
    /// The length of `input` at which the server tries to decode the input again.
    needs: usize,
}

/// The state of a client after its socket was ready.
enum Progress {
    /// Wait for the socket again.
    Pending,
    /// The client has sent a complete message.
    Message(Message),
    /// The client has closed its socket, or the socket has failed.
    Closed,
    /// The client has sent an invalid update.
    Refused(message::Error),
    /// The client has sent an invalid request about the policy.
    RefusedRequest(policy::Error),
}

/// A complete message of a client.
#[derive(Debug)]
pub(crate) enum Message {
    /// New forwarding rules. The caller must call [`Server::conclude`].
    Update(Update),
    /// A request about the policy ([`policy::decode`]). The caller must call [`Server::list`] or
    /// [`Server::conclude_request`].
    Request(Vec<u8>),
}

impl Server {
    /// Serves the clients of `listener`, which must be non-blocking and be watched as [`Source::Control`].
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self { listener, client: None, paused_until: None }
    }

    /// Returns the time at which [`Server::on_deadline`] must be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.client.as_ref().map(|client| client.deadline).or(self.paused_until)
    }

    /// Closes the client if its time has expired. Also ends a pause that has expired.
    pub(crate) fn on_deadline(&mut self, now: Instant, epoll: &OwnedFd) {
        if self.client.as_ref().is_some_and(|client| client.deadline <= now) {
            log::info!("Configuration client took too long, closed");
            self.end(epoll);
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            self.listen(epoll);
        }
    }

    /// Accepts a client, and prepares the announcement of `tables`.
    pub(crate) fn on_listener(
        &mut self,
        now: Instant,
        epoll: &OwnedFd,
        tables: impl FnOnce() -> Vec<Announced>,
    ) {
        if self.client.is_some() {
            return;
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match retry(|| accept_with(&self.listener, flags)) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::CONNABORTED) => return,
            Err(errno) => {
                log::warn!("can't accept a configuration client: {errno}");
                self.paused_until = Some(now + ACCEPT_PAUSE);
                self.listen(epoll);
                return;
            }
        };
        if let Err(errno) = Source::ControlClient.watch(epoll, &socket, EventFlags::IN | EventFlags::OUT) {
            log::warn!("can't watch a configuration client: {errno}");
            return;
        }
        let pid = sys::sockopt::peer_pid(&socket).unwrap_or(0);
        log::info!("Accepted configuration client, PID {pid}");
        self.client = Some(Client {
            socket,
            deadline: now + CLIENT_TIMEOUT,
            output: message::encode_announcement(&tables()),
            listing: None,
            input: Vec::new(),
            needs: 1,
        });
        self.listen(epoll);
    }

    /// Continues to serve the client when its socket is ready. `guard` has the rules that the client may have
    /// requested. Returns the client's message if it is complete.
    pub(crate) fn on_client(&mut self, epoll: &OwnedFd, guard: &Guard) -> Option<Message> {
        let client = self.client.as_mut()?;
        match client.send_output(epoll, guard).unwrap_or_else(|| client.receive()) {
            Progress::Pending => None,
            Progress::Message(message) => Some(message),
            Progress::Closed => {
                self.end(epoll);
                None
            }
            Progress::Refused(error) => {
                self.conclude(Err(&error.to_string()), epoll);
                None
            }
            Progress::RefusedRequest(error) => {
                self.conclude_request(Err(&error.to_string()), epoll);
                None
            }
        }
    }

    /// Sends the client the rules in force, and then closes the client's socket.
    pub(crate) fn list(&mut self, guard: &Guard, epoll: &OwnedFd) {
        let Some(client) = &mut self.client else { return };
        let (listing, output) = Listing::begin(guard);
        (client.listing, client.output) = (Some(listing), output);
        if Source::ControlClient.rewatch(epoll, &client.socket, EventFlags::OUT).is_err() {
            self.end(epoll);
        }
    }

    /// Tells the client the result of its request about the policy, and closes the client's socket.
    pub(crate) fn conclude_request(&mut self, outcome: Result<&str, &str>, epoll: &OwnedFd) {
        if let Err(error) = outcome {
            log::warn!("Request about the policy refused: {error}");
        }
        self.reply(&policy::encode_reply(outcome), epoll);
    }

    /// Tells the client whether its update was accepted, and closes the client's socket.
    pub(crate) fn conclude(&mut self, outcome: Result<&str, &str>, epoll: &OwnedFd) {
        if let Err(error) = outcome {
            log::warn!("Configuration update refused: {error}");
        }
        self.reply(&reply::encode(outcome), epoll);
    }

    fn reply(&mut self, reply: &[u8], epoll: &OwnedFd) {
        if let Some(client) = &self.client {
            // The reply is sent without waiting: it fits into an empty send buffer. Sending fails if the client has
            // closed its socket.
            let sent = send(&client.socket, reply, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            log::debug!("reply to configuration client: {sent:?}");
        }
        self.end(epoll);
    }

    fn end(&mut self, epoll: &OwnedFd) {
        self.client = None;
        self.listen(epoll);
    }

    /// Watches the listener only while a client may be accepted.
    fn listen(&self, epoll: &OwnedFd) {
        let ready = self.client.is_none() && self.paused_until.is_none();
        let events = if ready { EventFlags::IN } else { EventFlags::empty() };
        if let Err(errno) = Source::Control.rewatch(epoll, &self.listener, events) {
            log::warn!("can't watch the control socket: {errno}");
        }
    }
}

impl Client {
    /// Sends the bytes that have not been sent yet. `None`: all bytes are sent, and the client's message can be
    /// received.
    fn send_output(&mut self, epoll: &OwnedFd, guard: &Guard) -> Option<Progress> {
        if self.output.is_empty() && self.listing.is_none() {
            return None;
        }
        if let Some(listing) = &mut self.listing {
            listing.fill(guard, &mut self.output, STEP);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match retry(|| send(self.socket.as_fd(), &self.output, flags)) {
            Ok(sent) => drop(self.output.drain(..sent)),
            Err(Errno::AGAIN) => {}
            Err(_) => return Some(Progress::Closed),
        }
        match &self.listing {
            Some(listing) if self.output.is_empty() && listing.is_over(guard) => Some(Progress::Closed),
            Some(_) => Some(Progress::Pending),
            // Input is read later: a client must know the tables before it changes a table.
            None if !self.output.is_empty() => Some(Progress::Pending),
            None => {
                let watched = Source::ControlClient.rewatch(epoll, &self.socket, EventFlags::IN);
                watched.err().map(|_| Progress::Closed)
            }
        }
    }

    /// Receives a message. Reads no more bytes than the protocol needs.
    fn receive(&mut self) -> Progress {
        for _ in 0..STEPS {
            let have = self.input.len();
            self.input.resize(self.needs.min(have + STEP), 0);
            let received = retry(|| recv(self.socket.as_fd(), &mut self.input[have..], RecvFlags::DONTWAIT));
            let count = received.map_or(0, |(_, count)| count);
            self.input.truncate(have + count);
            match received {
                Ok(_) if count == 0 => return Progress::Closed,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Progress::Pending,
                Err(_) => return Progress::Closed,
            }
            if self.input.len() >= self.needs
                && let Some(progress) = self.decode()
            {
                return progress;
            }
        }
        Progress::Pending
    }

    /// Decodes the input. `None`: the message needs more bytes.
    fn decode(&mut self) -> Option<Progress> {
        let needs = if policy::is_request(&self.input) {
            match policy::decode(&self.input) {
                Ok(Decoded::Whole(_)) => {
                    return Some(Progress::Message(Message::Request(std::mem::take(&mut self.input))));
                }
                Ok(Decoded::Needs(needs)) => needs,
                Err(error) => return Some(Progress::RefusedRequest(error)),
            }
        } else {
            match message::decode_update(&self.input) {
                Ok(Decoded::Whole(update)) => return Some(Progress::Message(Message::Update(update))),
                Ok(Decoded::Needs(needs)) => needs,
                Err(error) => return Some(Progress::Refused(error)),
            }
        };
        self.needs = needs;
        None
    }
}

#[cfg(test)]
mod tests;
