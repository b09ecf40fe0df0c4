//! The server's end of the control socket (`--conf-path`, behaviour §8.9).
//!
//! A client can hold up nobody but other clients, and those not for long: it is never waited for, what it may send is
//! bounded, and so is its time.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use engine::timer::Instant;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::errno::retry;
use crate::event::Source;
use control::message::{self, Announced, Decoded, Update};
use control::reply;

/// How long a client may take, from the beginning to the end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to let clients wait if none can be accepted.
const PAUSE: Duration = Duration::from_secs(1);

/// The server's end.
#[derive(Debug)]
pub(crate) struct Server {
    listener: OwnedFd,
    client: Option<Client>,
    /// No client is accepted before.
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    deadline: Instant,
    /// What it is told, less what it was told already.
    output: Vec<u8>,
    input: Vec<u8>,
    /// So many bytes of input are worth looking at.
    needs: usize,
}

/// What a client has come to.
enum Progress {
    Waits,
    Wants(Update),
    /// It is gone, or to be gone.
    Ends,
    Refused(message::Error),
}

impl Server {
    /// Serves clients of a listening socket, which is non-blocking, and watched as [`Source::Control`].
    pub(crate) fn new(listener: OwnedFd) -> Self {
        Self { listener, client: None, paused_until: None }
    }

    /// When to call [`Server::on_deadline`] next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.client.as_ref().map(|client| client.deadline).or(self.paused_until)
    }

    /// Ends the time of a client, or a pause.
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

    /// Accepts a client, and begins to tell it `tables`.
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
                self.paused_until = Some(now + PAUSE);
                self.listen(epoll);
                return;
            }
        };
        let events = EventFlags::IN | EventFlags::OUT;
        if let Err(errno) =
            epoll::add(epoll, &socket, EventData::new_u64(Source::ControlClient.word()), events)
        {
            log::warn!("can't watch a configuration client: {errno}");
            return;
        }
        let pid = sys::sockopt::peer_pid(&socket).unwrap_or(0);
        log::info!("Accepted configuration client, PID {pid}");
        self.client = Some(Client {
            socket,
            deadline: now + PATIENCE,
            output: message::encode_announcement(&tables()),
            input: Vec::new(),
            needs: 1,
        });
        self.listen(epoll);
    }

    /// The client's socket is ready. Returns what it wants, once that is known: [`Server::conclude`] is to follow.
    pub(crate) fn on_client(&mut self, epoll: &OwnedFd) -> Option<Update> {
        let client = self.client.as_mut()?;
        match client.tell(epoll).unwrap_or_else(|| client.hear()) {
            Progress::Waits => None,
            Progress::Wants(update) => Some(update),
            Progress::Ends => {
                self.end(epoll);
                None
            }
            Progress::Refused(error) => {
                self.conclude(Err(&error.to_string()), epoll);
                None
            }
        }
    }

    /// Tells the client whether its update holds, and ends with it.
    pub(crate) fn conclude(&mut self, outcome: Result<&str, &str>, epoll: &OwnedFd) {
        if let Err(error) = outcome {
            log::warn!("Configuration update refused: {error}");
        }
        if let Some(client) = &self.client {
            // It may be gone, and has room for this else.
            let reply = reply::encode(outcome);
            let sent = send(&client.socket, &reply, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            log::debug!("reply to configuration client: {sent:?}");
        }
        self.end(epoll);
    }

    fn end(&mut self, epoll: &OwnedFd) {
        self.client = None;
        self.listen(epoll);
    }

    /// Watches for clients if one may be accepted.
    fn listen(&self, epoll: &OwnedFd) {
        let ready = self.client.is_none() && self.paused_until.is_none();
        let events = if ready { EventFlags::IN } else { EventFlags::empty() };
        if let Err(errno) =
            epoll::modify(epoll, &self.listener, EventData::new_u64(Source::Control.word()), events)
        {
            log::warn!("can't watch the control socket: {errno}");
        }
    }
}

impl Client {
    /// Sends what is left to tell. None if that is all.
    fn tell(&mut self, epoll: &OwnedFd) -> Option<Progress> {
        if self.output.is_empty() {
            return None;
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match retry(|| send(self.socket.as_fd(), &self.output, flags)) {
            Ok(sent) => drop(self.output.drain(..sent)),
            Err(Errno::AGAIN) => {}
            Err(_) => return Some(Progress::Ends),
        }
        if !self.output.is_empty() {
            // Input waits: the client has to know what it changes.
            return Some(Progress::Waits);
        }
        let watched = epoll::modify(
            epoll,
            &self.socket,
            EventData::new_u64(Source::ControlClient.word()),
            EventFlags::IN,
        );
        watched.err().map(|_| Progress::Ends)
    }

    /// Receives as much as the protocol asks for, and no byte more.
    fn hear(&mut self) -> Progress {
        loop {
            let have = self.input.len();
            self.input.resize(self.needs, 0);
            let received = retry(|| recv(self.socket.as_fd(), &mut self.input[have..], RecvFlags::DONTWAIT));
            let count = received.map_or(0, |(_, count)| count);
            self.input.truncate(have + count);
            match received {
                Ok(_) if count == 0 => return Progress::Ends,
                Ok(_) => {}
                Err(Errno::AGAIN) => return Progress::Waits,
                Err(_) => return Progress::Ends,
            }
            if self.input.len() < self.needs {
                continue;
            }
            match message::decode_update(&self.input) {
                Ok(Decoded::Whole(update)) => return Progress::Wants(update),
                Ok(Decoded::Needs(needs)) => self.needs = needs,
                Err(error) => return Progress::Refused(error),
            }
        }
    }
}

#[cfg(test)]
mod tests;
