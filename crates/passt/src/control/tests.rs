use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use engine::forward::{Listen, PortRange, Protocol, Rule};

use super::*;
use crate::io::unix_socket::listen_at;
use control::message::{Capabilities, Pif, encode_announcement, encode_update};
use control::reply::{self, Reply};

/// A server in an event loop of its own, and a clock that goes only when it is told to.
struct World {
    folder: tempfile::TempDir,
    epoll: OwnedFd,
    server: Server,
    now: Instant,
    /// What clients have asked for.
    updates: Vec<Update>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen_at(&folder.path().join("s")).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &listener, EventData::new_u64(Source::Control.word()), EventFlags::IN).unwrap();
        let server = Server::new(listener);
        Self { folder, epoll, server, now: Instant::from_micros(0), updates: Vec::new() }
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("s")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    /// Handles events until there are none; true if there were any. `verdict` is what becomes of updates.
    fn turn(&mut self, verdict: Result<&str, &str>) -> bool {
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
                    _ => {
                        if let Some(update) = self.server.on_client(&self.epoll) {
                            self.updates.push(update);
                            self.server.conclude(verdict, &self.epoll);
                        }
                    }
                }
            }
        }
    }

    fn serves(&self) -> bool {
        self.server.client.is_some()
    }

    /// Lets time pass.
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

/// Reads what is announced.
fn announced(mut client: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; encode_announcement(&tables()).len()];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// behaviour §8.9: tables are told, an update is taken and answered, and the next client has its turn.
#[test]
fn one_after_the_other() {
    let mut world = World::new();
    let (mut first, mut second) = (world.connect(), world.connect());
    world.turn(Ok(""));
    assert_eq!(announced(&first), encode_announcement(&tables()));
    first.write_all(&update()).unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    world.turn(Ok("a remark"));
    assert_eq!(reply::read(&first).unwrap(), Reply::Holds("a remark".into()));
    assert_eq!(world.updates, [Update(vec![(Pif::HOST, vec![rule(80), rule(81)])])]);

    world.turn(Ok(""));
    announced(&second);
    second.write_all(&update()).unwrap();
    world.turn(Err("no such port"));
    assert_eq!(reply::read(&second).unwrap(), Reply::Refused("no such port".into()));
    assert!(!world.serves());
}

/// The C implementation's client shuts down both halves behind its update, and is not told.
#[test]
fn a_client_that_does_not_listen() {
    let mut world = World::new();
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    client.write_all(&update()).unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    world.turn(Ok(""));
    assert_eq!((world.updates.len(), world.serves()), (1, false));
    // One that only looks wants nothing.
    let client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    drop(client);
    world.turn(Ok(""));
    assert_eq!((world.updates.len(), world.serves()), (1, false));
}

/// An update comes byte by byte, and half of one is none.
#[test]
fn pieces() {
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

/// Garbage is refused as soon as it is seen, with a word why; no more is read than the protocol asks for.
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
    // What follows a whole update is left unread, which the C implementation's server answers by a reset, too.
    let mut client = world.connect();
    world.turn(Ok(""));
    announced(&client);
    client.write_all(&[update(), b"garbage".to_vec()].concat()).unwrap();
    world.turn(Ok(""));
    assert_eq!(reply::read(&client).unwrap(), Reply::Holds("".into()));
    assert_eq!(world.updates.len(), 1);
}

/// A silent or slow client has its time, and no more; until then nothing is done in vain.
#[test]
fn silence() {
    let mut world = World::new();
    let (silent, other) = (world.connect(), world.connect());
    assert_eq!(world.server.next_deadline(), None);
    world.turn(Ok(""));
    announced(&silent);
    world.wait(Duration::from_secs(9));
    assert!(!world.turn(Ok("")), "a client that waits, and one that says nothing, make no event");
    assert!(world.serves());
    world.wait(Duration::from_secs(1));
    assert_eq!(reply::read(&silent).unwrap(), Reply::Silence);
    world.turn(Ok(""));
    announced(&other);

    // Nor does it help to say a little now and then.
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
