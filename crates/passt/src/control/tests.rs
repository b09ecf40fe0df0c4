mod requests;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use engine::forward::{Listen, PortRange, Protocol, Rule};

use rustix::event::epoll;

use super::*;
use crate::io::unix_socket::listen_at;
use control::message::{Capabilities, Pif, encode_announcement, encode_update};
use control::policy::Request;
use control::reply::{self, Reply};

/// A server in a separate event loop, with a virtual clock.
struct World {
    folder: tempfile::TempDir,
    epoll: OwnedFd,
    server: Server,
    now: Instant,
    /// The updates of clients.
    updates: Vec<Update>,
    /// The policy files of clients.
    policies: Vec<String>,
    guard: Guard,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_at(&folder.path().join("s")).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        Source::Control.watch(&epoll, &listener, EventFlags::IN).unwrap();
        let server = Server::new(listener);
        Self {
            folder,
            epoll,
            server,
            now: Instant::from_micros(0),
            updates: Vec::new(),
            policies: Vec::new(),
            guard: Guard::default(),
        }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("s")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    /// Handles events until there are none. Returns true if there were any. The reply to every update and every policy
    /// is `outcome`.
    fn turn(&mut self, outcome: Result<&str, &str>) -> bool {
        let mut any = false;
        loop {
            let mut events = Vec::with_capacity(8);
            let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&none)).unwrap();
            if events.is_empty() {
                return any;
            }
            any = true;
            for event in events {
                match Source::of(event.data.u64()) {
                    Some(Source::Control) => self.server.on_listener(self.now, &self.epoll, tables),
                    _ => match self.server.on_client(&self.epoll, &self.guard) {
                        Some(Message::Update(update)) => {
                            self.updates.push(update);
                            self.server.conclude(outcome, &self.epoll);
                        }
                        Some(Message::Request(message)) => self.on_request(&message, outcome),
                        None => {}
                    },
                }
            }
        }
    }

    fn on_request(&mut self, message: &[u8], outcome: Result<&str, &str>) {
        match policy::decode(message) {
            Ok(Decoded::Whole(Request::Show)) => self.server.list(&self.guard, &self.epoll),
            Ok(Decoded::Whole(Request::Replace(text))) => {
                self.policies.push(text.into());
                self.server.conclude_request(outcome, &self.epoll);
            }
            other => panic!("{other:?}"),
        }
    }

    fn serves(&self) -> bool {
        self.server.client.is_some()
    }

    /// Advances the clock.
    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
        if self.server.next_deadline().is_some_and(|due| due <= self.now) {
            self.server.on_deadline(self.now, &self.epoll);
        }
    }
}

fn rule(first: u16) -> Rule {
    Rule {
        protocol: Protocol::Tcp,
        listen: Listen::ANY,
        ports: PortRange::single(first),
        target_addr: None,
        target_first: first,
        best_effort: false,
        scan: false,
    }
}

fn tables() -> Vec<Announced> {
    let capabilities = Capabilities::IPV4 | Capabilities::TCP;
    vec![Announced { pif: Pif::HOST, name: "HOST".into(), capabilities, rules: vec![rule(22)] }]
}

fn update() -> Vec<u8> {
    encode_update(&Update(vec![(Pif::HOST, vec![rule(80), rule(81)])]))
}

/// Reads the announcement.
fn announced(mut client: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; encode_announcement(&tables()).len()];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// behaviour §8.9: tables are announced, an update is accepted and answered, and then the next client is served.
#[test]
fn clients_are_served_one_after_the_other() {
    let mut world = World::new();
    let (mut first, mut second) = (world.connect(), world.connect());
    world.turn(Ok(""));
    assert_eq!(announced(&first), encode_announcement(&tables()));
    first.write_all(&update()).unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    world.turn(Ok("a remark"));
    assert_eq!(reply::read(&first).unwrap(), Reply::Applied("a remark".into()));
    assert_eq!(world.updates, [Update(vec![(Pif::HOST, vec![rule(80), rule(81)])])]);

    world.turn(Ok(""));
    announced(&second);
    second.write_all(&update()).unwrap();
    world.turn(Err("no such port"));
    assert_eq!(reply::read(&second).unwrap(), Reply::Refused("no such port".into()));
    assert!(!world.serves());
}

/// The client of the C implementation shuts down both directions after its update, and gets no reply.
#[test]
fn a_client_that_does_not_wait_for_the_reply() {
    let mut world = World::new();
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    client.write_all(&update()).unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    world.turn(Ok(""));
    assert_eq!((world.updates.len(), world.serves()), (1, false));
    // A client that reads the announcement and closes its socket sends no update.
    let client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    drop(client);
    world.turn(Ok(""));
    assert_eq!((world.updates.len(), world.serves()), (1, false));
}

/// An update may arrive byte by byte. An incomplete update is ignored.
#[test]
fn partial_updates() {
    let mut world = World::new();
    let mut client = world.connect();
    for byte in update() {
        client.write_all(&[byte]).unwrap();
        world.turn(Ok(""));
    }
    assert_eq!(world.updates.len(), 1);
    let mut client = world.connect();
    client.write_all(&update()[..100]).unwrap();
    drop(client);
    world.turn(Ok(""));
    assert_eq!((world.updates.len(), world.serves()), (1, false));
}

/// Invalid input is refused at once, with the reason. No more bytes are read than the protocol needs.
#[test]
fn garbage() {
    let mut world = World::new();
    for (garbage, reason) in [
        (vec![1, 255, 255, 255, 255], "Too many forwarding rules (4294967295, max 255)"),
        ([&[1, 0, 0, 0, 1], &[0xff; 56][..]].concat(), "Rule 1 of table 1: unknown flags"),
        (vec![1, 0, 0, 0, 0, 1], "Received duplicate interface identifier 1"),
        ((1..=9).flat_map(|pif| [pif, 0, 0, 0, 0]).collect(), "Too many forwarding tables (max 8)"),
    ] {
        let mut client = world.connect();
        world.turn(Ok(""));
        announced(&client);
        client.write_all(&[&garbage[..], &[0; 1000]].concat()).unwrap();
        world.turn(Ok(""));
        assert_eq!(reply::read(&client).unwrap(), Reply::Refused(reason.into()));
        assert!(!world.serves());
    }
    // Bytes after a complete update stay unread, so closing the socket resets the connection. The C implementation does
    // the same.
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    client.write_all(&[update(), b"garbage".to_vec()].concat()).unwrap();
    world.turn(Ok(""));
    assert_eq!(reply::read(&client).unwrap(), Reply::Applied("".into()));
    assert_eq!(world.updates.len(), 1);
}

/// A silent or slow client is closed when its time expires. Before that, the client causes no events.
#[test]
fn a_silent_or_slow_client_times_out() {
    let mut world = World::new();
    let (silent, other) = (world.connect(), world.connect());
    assert_eq!(world.server.next_deadline(), None);
    world.turn(Ok(""));
    announced(&silent);
    world.wait(Duration::from_secs(9));
    assert!(!world.turn(Ok("")), "neither the silent client nor the waiting one makes an event");
    assert!(world.serves());
    world.wait(Duration::from_secs(1));
    assert_eq!(reply::read(&silent).unwrap(), Reply::Unsupported);
    world.turn(Ok(""));
    announced(&other);

    // Input does not extend the deadline.
    let mut slow = other;
    for byte in update().iter().take(9) {
        world.wait(Duration::from_secs(1));
        slow.write_all(&[*byte]).unwrap();
        world.turn(Ok(""));
    }
    assert!(world.serves());
    world.wait(Duration::from_secs(1));
    assert!(!world.serves());
    assert_eq!(world.server.next_deadline(), None);
}
