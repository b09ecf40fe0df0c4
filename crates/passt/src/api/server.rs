//! The API thread: its event loop, its clients, and their turns.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use engine::events::Event;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};
use serde::Deserialize;
use serde_json::{Value, json};
use sys::sockopt::netns_cookie;

use super::ask::{About, Ask};
use super::capture::{self, Sink};
use super::channel::{ApiEnd, Batch, Content, Note};
use super::client::{Client, Line};
use super::entry::Entry;
use super::http::Visitors;
use super::job::{Context, Job, Step, no_capture};
use super::line::{Failure, Outcome, Request, answer};
use super::metrics::Shown;
use super::registry::{Listening, Registered};
use super::{Limits, MAX_DESCRIPTORS};
use crate::errno::retry;
use crate::event::rewatch;
use crate::flow_log::{Line as LogLine, since_epoch};
use crate::link::live::Live;

/// Words of epoll events. Greater words are clients.
const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const METRICS: u64 = 2;
/// How long to wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of events that are taken from the kernel at a time.
const EVENTS: usize = 16;
/// The error for a client of another network namespace.
const ELSEWHERE: &str = "this socket serves only the network namespace in which the program was started: start it with \
                         --api-socket for other clients";
/// The kinds of events, each with its bit in [`Client::subscribed`].
const KINDS: [(&str, u8); 6] =
    [("begin", 1), ("end", 2), ("refusal", 4), ("rules", 8), ("policy", 16), ("failure", 32)];

/// The state of the thread.
pub(super) struct Server {
    epoll: Arc<OwnedFd>,
    listener: Option<OwnedFd>,
    /// The file of a listener in the registry. It is removed with the server.
    _file: Option<Registered>,
    /// The cookie of the only network namespace that may have clients.
    only: Option<u64>,
    /// The listener is not watched for a time, since a connection could not be accepted.
    paused: bool,
    end: ApiEnd,
    about: About,
    /// Maximum number of clients.
    most: usize,
    clients: BTreeMap<u64, Client>,
    /// The clients of `--metrics`.
    visitors: Option<Visitors>,
    /// The capture of a client. There is one at a time.
    capture: Option<Sink>,
    /// There is more to write to its file, which is not full.
    more: bool,
    /// The word of the next client.
    next: u64,
    /// The client whose request was handled last.
    served: u64,
    /// The request that is being answered, with its ID and its client.
    job: Option<(u64, Value, Job)>,
    /// Whether an ask is not answered yet. Its job may be gone.
    asked: bool,
    shown: Shown,
}

impl Server {
    pub(super) fn new(
        entry: Option<Entry>,
        metrics: Option<OwnedFd>,
        end: ApiEnd,
        about: About,
        most: usize,
    ) -> rustix::io::Result<Self> {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        epoll::add(&epoll, &end, EventData::new_u64(WAKE), EventFlags::IN)?;
        let visitors = metrics.map(|socket| Visitors::new(socket, &epoll, METRICS)).transpose()?;
        let mut server = Self {
            epoll,
            listener: None,
            _file: None,
            only: None,
            paused: false,
            end,
            about,
            most,
            clients: BTreeMap::new(),
            visitors,
            capture: None,
            more: false,
            next: capture::WORD + 1,
            served: 0,
            job: None,
            asked: false,
            shown: Shown::default(),
        };
        let listener = match entry {
            None => return Ok(server),
            Some(Entry::Listening(socket)) => socket,
            Some(Entry::Registered(Listening { socket, cookie, file })) => {
                (server.only, server._file) = (Some(cookie), Some(file));
                socket
            }
            Some(Entry::Connected(socket)) => {
                server.admit(socket);
                return Ok(server);
            }
        };
        epoll::add(&server.epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        server.listener = Some(listener);
        Ok(server)
    }

    pub(super) fn run(&mut self) -> rustix::io::Result<()> {
        while !self.end.is_over() {
            let patience = self.visitors.as_ref().and_then(Visitors::patience);
            let pause = self.paused.then_some(ACCEPT_PAUSE);
            let now = self.more.then_some(Duration::ZERO);
            let timeout = patience.into_iter().chain(pause).chain(now).min().map(|timeout| Timespec {
                tv_sec: timeout.as_secs() as i64,
                tv_nsec: timeout.subsec_nanos().into(),
            });
            self.turn(timeout.as_ref())?;
        }
        self.capture.take().map(Sink::finish);
        Ok(())
    }

    /// Waits for events, at most for `timeout`, and handles them.
    pub(super) fn turn(&mut self, timeout: Option<&Timespec>) -> rustix::io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if events.is_empty() && self.paused {
            self.pause(false);
        }
        for event in events {
            match event.data.u64() {
                WAKE => {
                    self.end.clear();
                    self.distribute();
                }
                LISTENER => self.accept(),
                METRICS => {
                    let accept = |visitors: &mut Visitors| visitors.accept(&self.epoll, self.next);
                    self.next += u64::from(self.visitors.as_mut().is_some_and(accept));
                }
                capture::WORD => {
                    self.capture.iter_mut().for_each(|sink| sink.on_event(event.flags));
                }
                word => {
                    if let Some(client) = self.clients.get_mut(&word) {
                        client.on_event(event.flags);
                        self.bound_descriptors(word);
                    } else if let Some(visitors) = &mut self.visitors {
                        visitors.on_event(word, event.flags);
                    }
                }
            }
        }
        loop {
            self.work();
            self.settle();
            if self.write_capture() {
                self.settle();
            }
            if self.job.is_some() || self.asked || self.next_ready().is_none() {
                return Ok(());
            }
        }
    }

    /// Closes the descriptor of a client if there are too many that no request has used.
    fn bound_descriptors(&mut self, word: u64) {
        let held = self.clients.values().filter(|client| client.has_descriptor()).count();
        if held > MAX_DESCRIPTORS
            && let Some(client) = self.clients.get_mut(&word)
        {
            drop(client.take_descriptor());
        }
    }

    /// Writes captured frames. Ends the capture if the file can't be written to, which is reported to the client, or if the
    /// client is gone. Returns whether it was reported.
    fn write_capture(&mut self) -> bool {
        let Some(sink) = &mut self.capture else { return false };
        self.more = sink.write();
        let (failed, reason) = (sink.has_failed(), sink.reason());
        let client = self.clients.get_mut(&sink.client);
        if !failed && client.is_some() {
            return false;
        }
        self.more = false;
        let counts = self.capture.take().map(Sink::finish);
        match (client, counts) {
            (Some(client), Some(mut event)) => {
                event["time"] = json!(since_epoch());
                event["event"] = json!("capture");
                event["reason"] = json!(reason);
                client.report(&format!("{event}\n"));
                true
            }
            _ => false,
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match retry(|| accept_with(listener, flags)) {
            Ok(socket) if !self.may_serve(&socket) => {
                refuse(&socket, "forbidden", ELSEWHERE);
            }
            Ok(socket) if self.clients.len() < self.most => self.admit(socket),
            Ok(socket) => refuse(&socket, "busy", format!("there are {} clients already", self.most)),
            Err(Errno::AGAIN | Errno::CONNABORTED) => {}
            Err(errno) => {
                log::warn!("can't accept a client of the API socket: {errno}");
                self.pause(true);
            }
        }
    }

    /// Whether the client is in the network namespace that may have clients. A namespace that is unknown may not.
    fn may_serve(&self, socket: &OwnedFd) -> bool {
        self.only.is_none_or(|only| netns_cookie(socket) == Ok(only))
    }

    fn admit(&mut self, socket: OwnedFd) {
        let client = Client::new(socket, self.about.limits.events);
        match epoll::add(&self.epoll, &client, EventData::new_u64(self.next), client.watched) {
            Ok(()) => {
                log::debug!("client {} of the API socket", self.next);
                self.clients.insert(self.next, client);
                self.next += 1;
            }
            Err(errno) => log::warn!("can't watch a client of the API socket: {errno}"),
        }
    }

    /// Stops watching the listener, or watches it again.
    fn pause(&mut self, paused: bool) {
        let events = if paused { EventFlags::empty() } else { EventFlags::IN };
        self.paused = paused;
        if let Some(listener) = &self.listener
            && let Err(errno) = rewatch(&self.epoll, listener, LISTENER, events)
        {
            log::warn!("can't watch the API socket: {errno}");
        }
    }

    /// Passes events on to the clients that are subscribed to them.
    fn distribute(&mut self) {
        while let Some(Batch { time, now, content, .. }) = self.end.batch() {
            match content {
                Content::Flows(events) => {
                    for event in &events {
                        let mut line = String::new();
                        LogLine::of(event, time, now).add_to(&mut line);
                        self.report(kind_of(event), &line);
                    }
                }
                Content::Note(note) => {
                    let (name, remark) = match note {
                        Note::Rules(remark) => ("rules", remark),
                        Note::Policy(remark) => ("policy", remark),
                    };
                    let line = json!({ "time": time, "event": name, "remark": remark });
                    self.report(name, &format!("{line}\n"));
                }
            }
        }
        let lost = self.end.lost();
        if lost > 0 {
            let subscribers = self.clients.values_mut().filter(|client| client.subscribed != 0);
            subscribers.for_each(|client| client.note_lost(lost));
        }
    }

    fn report(&mut self, kind: &str, line: &str) {
        let bit = bit_of(kind).unwrap_or(0);
        let subscribers = self.clients.values_mut().filter(|client| client.subscribed & bit != 0);
        subscribers.for_each(|client| client.report(line));
    }

    /// Continues the present request, and begins others, one of each client in turn.
    fn work(&mut self) {
        loop {
            if self.asked {
                let Some(answer) = self.end.answer() else { return };
                self.asked = false;
                if let Some((client, id, mut job)) = self.job.take() {
                    if let Some(ask) = job.ahead(&answer) {
                        self.asked = self.end.ask(ask);
                    }
                    let mut cx =
                        Context { about: &self.about, shown: &mut self.shown, capture: &mut self.capture };
                    let step = job.step(answer, &mut cx);
                    self.advance(client, id, job, step);
                }
                continue;
            }
            let Some(word) = self.next_ready() else { return };
            self.served = word;
            if let Some(format) = self.visitors.as_mut().and_then(|visitors| visitors.take(word)) {
                match Job::scrape(format) {
                    Ok((job, step)) => self.advance(word, Value::Null, job, step),
                    Err(failure) => self.conclude(word, &Value::Null, &Err(failure)),
                }
                continue;
            }
            let Some(line) = self.clients.get_mut(&word).and_then(Client::next_line) else { return };
            match line {
                Line::TooLong => {
                    let message = format!("a request has at most {} bytes", Limits::REQUEST);
                    self.conclude(word, &Value::Null, &Err(Failure::new("too-long", message)));
                }
                Line::Whole(line) if line.trim_ascii().is_empty() => {}
                Line::Whole(line) => match Request::parse(&line) {
                    Ok(request) => self.begin(word, request),
                    Err((id, failure)) => self.conclude(word, &id, &Err(failure)),
                },
            }
            // The answers of one client are sent before the next request of this client.
            if let Some(client) = self.clients.get_mut(&word) {
                client.flush();
            }
        }
    }

    /// The next client whose request can be handled. After that with the greatest word comes that with the smallest one.
    fn next_ready(&self) -> Option<u64> {
        let clients = self.clients.iter().filter(|(_, client)| client.is_ready()).map(|(word, _)| *word);
        let visitors = self.visitors.iter().flat_map(Visitors::ready);
        clients.chain(visitors).min_by_key(|word| (*word <= self.served, *word))
    }

    fn has(&self, word: u64) -> bool {
        self.clients.contains_key(&word) || self.visitors.as_ref().is_some_and(|all| all.has(word))
    }

    fn begin(&mut self, word: u64, request: Request) {
        match &request.name[..] {
            "subscribe" | "unsubscribe" => {
                let outcome = self.subscribe(word, &request);
                self.conclude(word, &request.id, &outcome);
            }
            "capture.start" => match self.start_capture(word, &request) {
                Ok(live) => {
                    self.advance(word, request.id, Job::Captures, Step::Ask(Ask::Capture(Some(live))))
                }
                Err(failure) => self.conclude(word, &request.id, &Err(failure)),
            },
            "capture.stop" if self.capture.as_ref().is_some_and(|sink| sink.client == word) => {
                self.advance(word, request.id, Job::Captured, Step::Ask(Ask::Capture(None)));
            }
            "capture.stop" => self.conclude(word, &request.id, &Err(no_capture())),
            _ => {
                let (job, step) = Job::begin(&request, &self.about);
                self.advance(word, request.id, job, step);
            }
        }
    }

    fn start_capture(&mut self, word: u64, request: &Request) -> Result<Box<Live>, Failure> {
        let file = self.clients.get_mut(&word).and_then(Client::take_descriptor);
        if self.capture.is_some() {
            return Err(Failure::new("refused", "there is a capture already"));
        }
        let (live, sink) =
            Sink::new(request, word, file, self.end.wake(), self.epoll.clone(), self.about.limits.capture)?;
        self.capture = Some(sink);
        Ok(Box::new(live))
    }

    fn advance(&mut self, word: u64, id: Value, mut job: Job, step: Step) {
        let ask = match step {
            Step::Done(outcome) => return self.conclude(word, &id, &outcome),
            // Nobody waits for the answer any more.
            _ if !self.has(word) => return,
            Step::Ask(ask) => Some(ask),
            Step::Continue if self.asked => None,
            Step::Continue => job.ask(),
        };
        if let Some(ask) = ask {
            self.asked = self.end.ask(ask);
        }
        if self.asked {
            self.job = Some((word, id, job));
        } else {
            self.conclude(word, &id, &Err(Failure::new("internal", "the program is about to end")));
        }
    }

    fn conclude(&mut self, word: u64, id: &Value, outcome: &Outcome) {
        if let Some(client) = self.clients.get_mut(&word) {
            client.answer(&answer(id, outcome));
        } else if let Some(visitors) = &mut self.visitors {
            visitors.conclude(word, outcome);
        }
    }

    fn subscribe(&mut self, word: u64, request: &Request) -> Outcome {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Kinds {
            events: Option<Vec<String>>,
        }
        let Kinds { events } = request.arguments()?;
        let mut bits = 0;
        for name in events.iter().flatten() {
            bits |= bit_of(name).ok_or_else(|| {
                let names = KINDS.map(|(name, _)| name).join(", ");
                Failure::new("invalid-arguments", format!("events: a list of {names}"))
            })?;
        }
        if events.is_none() {
            bits = KINDS.iter().fold(0, |all, (_, bit)| all | bit);
        }
        let Some(client) = self.clients.get_mut(&word) else { return Ok("{}".into()) };
        match &request.name[..] {
            "subscribe" => client.subscribed |= bits,
            _ => client.subscribed &= !bits,
        }
        let names: Vec<&str> =
            KINDS.iter().filter(|(_, bit)| client.subscribed & bit != 0).map(|(name, _)| *name).collect();
        self.update_subscription();
        Ok(json!({ "events": names }).to_string())
    }

    fn update_subscription(&self) {
        self.end.subscribe(self.clients.values().any(|client| client.subscribed != 0));
    }

    /// Sends what can be sent, closes clients that are over, and watches the other ones.
    fn settle(&mut self) {
        let before = self.clients.len();
        let busy = self.job.as_ref().map(|(word, _, _)| *word);
        let epoll = &self.epoll;
        self.clients.retain(|word, client| {
            client.flush();
            if client.is_over() && (busy != Some(*word) || client.has_failed()) {
                // Closing the socket also removes it from the epoll set.
                return false;
            }
            let wanted = client.wants();
            if wanted != client.watched {
                client.watched = wanted;
                return rewatch(epoll, client.as_fd(), *word, wanted).is_ok();
            }
            true
        });
        if let Some(visitors) = &mut self.visitors {
            visitors.settle(&self.epoll);
        }
        if self.clients.len() < before {
            self.update_subscription();
        }
        if self.job.as_ref().is_some_and(|(word, _, _)| !self.has(*word)) {
            self.job = None;
        }
    }
}

/// Sends an error to a client that is not admitted.
fn refuse(socket: &OwnedFd, code: &'static str, message: impl Into<String>) {
    let line = answer(&Value::Null, &Err(Failure::new(code, message)));
    // An empty send buffer takes the line at once.
    let _ = send(socket, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn kind_of(event: &Event) -> &'static str {
    match event {
        Event::Begin(_) => "begin",
        Event::End(_) => "end",
        Event::Failure(_) => "failure",
        Event::Refusal(_) => "refusal",
    }
}

fn bit_of(kind: &str) -> Option<u8> {
    KINDS.iter().find(|(name, _)| *name == kind).map(|(_, bit)| *bit)
}
