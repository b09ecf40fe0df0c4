//! `GET /metrics` by HTTP (`--metrics`). A connection has one request, which has no body, and one answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, recv, send,
    socket_with, sockopt,
};

use super::line::Outcome;
use super::metrics::Format;
use crate::errno::retry;
use crate::event::rewatch;

/// Maximum number of connections. Others wait in the kernel.
pub(super) const MAX_VISITORS: usize = 8;
/// Maximum number of connections that wait in the kernel.
const BACKLOG: i32 = 16;
/// Maximum length in bytes of the request line and the headers.
const MAX_HEAD: usize = 8 << 10;
/// Maximum number of headers.
const MAX_HEADERS: usize = 64;
/// How long a request may take to arrive.
const TO_ASK: Duration = Duration::from_secs(10);
/// How long an answer may take to be read.
const TO_READ: Duration = Duration::from_secs(30);
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens at the address of `--metrics`.
///
/// # Errors
/// The address can't be used.
pub(crate) fn listen_at(address: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listen_at = || {
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &address)?;
        listen(&socket, BACKLOG)?;
        Ok::<_, Errno>(socket)
    };
    listen_at()
        .with_context(|| format!("--metrics: can't listen at {address}; choose another address or port"))
}

/// The connections, and the socket that accepts them.
#[derive(Debug)]
pub(super) struct Visitors {
    listener: OwnedFd,
    /// The word of the listener in the epoll set.
    word: u64,
    watched: bool,
    /// The listener is not watched until then, since a connection could not be accepted.
    paused: Option<Instant>,
    all: BTreeMap<u64, Visitor>,
}

#[derive(Debug)]
struct Visitor {
    socket: OwnedFd,
    /// The request so far, then the answer.
    bytes: Vec<u8>,
    sent: usize,
    state: State,
    deadline: Instant,
    watched: EventFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The request is not complete.
    Asks,
    /// It asks for metrics.
    Waits(Format),
    /// The metrics are being collected.
    Served(Format),
    /// The answer is being sent.
    Reads,
    /// The connection is to be closed.
    Over,
}

impl Visitors {
    /// Watches the listener with this word.
    pub(super) fn new(listener: OwnedFd, epoll: &OwnedFd, word: u64) -> rustix::io::Result<Self> {
        epoll::add(epoll, &listener, EventData::new_u64(word), EventFlags::IN)?;
        Ok(Self { listener, word, watched: true, paused: None, all: BTreeMap::new() })
    }

    /// Accepts a connection, which gets the word `next`. Returns whether there is one.
    pub(super) fn accept(&mut self, epoll: &OwnedFd, next: u64) -> bool {
        if self.all.len() >= MAX_VISITORS {
            return false;
        }
        match retry(|| accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)) {
            Ok(socket) => {
                let watched = EventFlags::IN;
                if let Err(errno) = epoll::add(epoll, &socket, EventData::new_u64(next), watched) {
                    log::warn!("can't watch a client of --metrics: {errno}");
                    return false;
                }
                let deadline = Instant::now() + TO_ASK;
                let visitor =
                    Visitor { socket, bytes: Vec::new(), sent: 0, state: State::Asks, deadline, watched };
                self.all.insert(next, visitor);
                true
            }
            Err(Errno::AGAIN | Errno::CONNABORTED) => false,
            Err(errno) => {
                log::warn!("can't accept a client of --metrics: {errno}");
                self.paused = Some(Instant::now() + ACCEPT_PAUSE);
                false
            }
        }
    }

    /// Handles an event of a connection.
    pub(super) fn on_event(&mut self, word: u64, flags: EventFlags) {
        let Some(visitor) = self.all.get_mut(&word) else { return };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            visitor.state = State::Over;
        } else if flags.contains(EventFlags::IN) && visitor.state == State::Asks {
            visitor.receive();
        }
    }

    /// The connections that ask for metrics.
    pub(super) fn ready(&self) -> impl Iterator<Item = u64> {
        let ready = self.all.iter().filter(|(_, visitor)| matches!(visitor.state, State::Waits(_)));
        ready.map(|(word, _)| *word)
    }

    /// Takes the request of a connection: the format.
    pub(super) fn take(&mut self, word: u64) -> Option<Format> {
        let visitor = self.all.get_mut(&word)?;
        let State::Waits(format) = visitor.state else { return None };
        visitor.state = State::Served(format);
        Some(format)
    }

    /// Whether a connection with this word is open.
    pub(super) fn has(&self, word: u64) -> bool {
        self.all.contains_key(&word)
    }

    /// Answers a connection: the text of the metrics, or why there is none.
    pub(super) fn conclude(&mut self, word: u64, outcome: &Outcome) {
        let Some(visitor) = self.all.get_mut(&word) else { return };
        match (visitor.state, outcome) {
            (State::Served(format), Ok(text)) => {
                visitor.answer("200 OK", format.content_type(), "", Some(text))
            }
            (_, Ok(_)) => {}
            (_, Err(failure)) => visitor.refuse("503 Service Unavailable", &failure.message),
        }
    }

    /// Sends what can be sent, closes connections that are over or too slow, and watches the other ones.
    pub(super) fn settle(&mut self, epoll: &OwnedFd) {
        let now = Instant::now();
        self.all.retain(|word, visitor| {
            if visitor.deadline <= now {
                visitor.expire();
            }
            visitor.flush();
            let wanted = match visitor.state {
                State::Over => return false,
                State::Asks => EventFlags::IN,
                State::Waits(_) | State::Served(_) => EventFlags::empty(),
                State::Reads => EventFlags::OUT,
            };
            if wanted == visitor.watched {
                return true;
            }
            visitor.watched = wanted;
            rewatch(epoll, &visitor.socket, *word, wanted).is_ok()
        });
        self.paused.take_if(|until| *until <= now);
        let watched = self.all.len() < MAX_VISITORS && self.paused.is_none();
        if watched != self.watched {
            let events = if watched { EventFlags::IN } else { EventFlags::empty() };
            match rewatch(epoll, &self.listener, self.word, events) {
                Ok(()) => self.watched = watched,
                Err(errno) => log::warn!("can't watch the socket of --metrics: {errno}"),
            }
        }
    }

    /// How long to wait at most until the next call of [`Visitors::settle`].
    pub(super) fn patience(&self) -> Option<Duration> {
        let deadlines = self.all.values().map(|visitor| visitor.deadline).chain(self.paused);
        deadlines.min().map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Visitor {
    fn receive(&mut self) {
        // One byte more than fits shows that the head is too long. What is left unread would reset the connection when it
        // is closed, so more is read.
        let mut buffer = [0; 2 * MAX_HEAD];
        match retry(|| recv(&self.socket, &mut buffer, RecvFlags::DONTWAIT)) {
            Ok((_, 0)) => self.state = State::Over,
            Ok((_, count)) => {
                self.bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
                self.parse();
            }
            Err(Errno::AGAIN) => {}
            Err(_) => self.state = State::Over,
        }
    }

    fn parse(&mut self) {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let head = self.bytes.get(..self.bytes.len().min(MAX_HEAD)).unwrap_or_default();
        let outcome = match request.parse(head) {
            Ok(httparse::Status::Complete(_)) => decide(&request),
            Ok(httparse::Status::Partial) if self.bytes.len() <= MAX_HEAD => return,
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                Err(("431 Request Header Fields Too Large", "the request is too long"))
            }
            Err(_) => Err(("400 Bad Request", "this is not a request of HTTP/1")),
        };
        self.deadline = Instant::now() + TO_READ;
        match outcome {
            Ok((format, true)) => self.state = State::Waits(format),
            Ok((format, false)) => self.answer("200 OK", format.content_type(), "", None),
            Err((status, message)) => self.refuse(status, message),
        }
    }

    /// The time has passed.
    fn expire(&mut self) {
        if self.state == State::Asks && !self.bytes.is_empty() {
            self.refuse("408 Request Timeout", "the request took too long");
            self.flush();
        }
        self.state = State::Over;
    }

    fn refuse(&mut self, status: &str, message: &str) {
        let more = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
        self.answer(status, "text/plain; charset=utf-8", more, Some(&format!("{message}\n")));
    }

    /// Sends an answer. Without a body, it is that to HEAD.
    fn answer(&mut self, status: &str, content_type: &str, more: &str, body: Option<&str>) {
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{length}{more}Connection: close\r\n\r\n"
        );
        self.bytes = [head.as_bytes(), body.unwrap_or_default().as_bytes()].concat();
        self.state = State::Reads;
    }

    fn flush(&mut self) {
        while self.state == State::Reads {
            let rest = self.bytes.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                self.state = State::Over;
                return;
            }
            match retry(|| send(&self.socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return,
                Err(_) => self.state = State::Over,
            }
        }
    }
}

/// The format of the metrics that a request asks for, and whether it asks for them, not only for the headers (HEAD).
fn decide(request: &httparse::Request<'_, '_>) -> Result<(Format, bool), (&'static str, &'static str)> {
    let (path, _) =
        request.path.and_then(|path| path.split_once('?')).unwrap_or((request.path.unwrap_or(""), ""));
    let wants_body = match request.method {
        _ if path != "/metrics" => return Err(("404 Not Found", "metrics are at /metrics")),
        Some("GET") => true,
        Some("HEAD") => false,
        _ => return Err(("405 Method Not Allowed", "only GET and HEAD are allowed")),
    };
    let accepts = |header: &httparse::Header<'_>| {
        header.name.eq_ignore_ascii_case("accept")
            && std::str::from_utf8(header.value)
                .is_ok_and(|value| value.contains("application/openmetrics-text"))
    };
    let format = if request.headers.iter().any(accepts) { Format::OpenMetrics } else { Format::Prometheus };
    Ok((format, wants_body))
}
