//! Tests of the server with a packet thread that the test plays.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use engine::events::{Basis, Flow, Start};
use engine::flow::{Endpoints, FlowId, Protocol};
use engine::forward::spec::Direction;
use engine::host::Totals;
use engine::listing::{Detail, Listed, State};
use engine::timer::Instant;
use rustix::event::Timespec;
use serde_json::{Value, json};

use super::ask::{Place, SLOTS};
use super::channel::{Content, Note, ShardEnd, channel};
use super::server::Server;
use super::{About, Answer, Ask, Entry, Limits, budget};
use crate::io::unix_socket;

/// A server, and the channel to it.
struct World {
    folder: tempfile::TempDir,
    server: Server,
    shard: ShardEnd,
    /// The asks so far.
    asks: usize,
    /// The TCP connections of the packet thread: slot N has flow N + 1, which began at N microseconds.
    flows: u32,
    /// The numbers of flows whose sockets were looked at.
    looked_at: Vec<u64>,
}

impl World {
    fn new(most: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::at(unix_socket::listen_at(&folder.path().join("s"))).unwrap();
        let (end, shard) = channel(usize::MAX).unwrap();
        let about =
            About { program: "pasta", link: "tap", guest: String::new(), pid: 1, limits: Limits::DEFAULT };
        let server = Server::new(Some(entry), None, end, about, most).unwrap();
        Self { folder, server, shard, asks: 0, flows: 0, looked_at: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn connect(&mut self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.turn();
        BufReader::new(stream)
    }

    /// Lets the server handle all present events, without an answer to its asks.
    fn turn(&mut self) {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        (0..50).for_each(|_| self.server.turn(Some(&none)).unwrap());
    }

    /// Answers one ask, if there is one. Returns whether there was one.
    fn answer(&mut self) -> bool {
        let Some(ask) = self.shard.next() else { return false };
        self.asks += 1;
        let answer = match ask {
            Ask::Neighbours => Answer::Neighbours(Vec::new()),
            Ask::Names(first) => Answer::Names(Vec::new(), (first < 64).then_some(first + 32)),
            Ask::Change { .. } => Answer::Changed(Err("no such port".into())),
            Ask::Flows(place, _, detail) => self.flows_from(place, detail),
            Ask::Complete(mut flows) => {
                self.look_at(&mut flows);
                Answer::Complete { now: Instant::from_micros(1_000_000), flows }
            }
            other => panic!("{other:?}"),
        };
        self.shard.answer(answer);
        self.turn();
        true
    }

    fn flows_from(&mut self, place: Place, detail: Detail) -> Answer {
        let end = self.flows.min(place.slot + SLOTS);
        let mut flows: Vec<Listed> = (place.slot..end).map(listed).collect();
        if detail == Detail::Sockets {
            self.look_at(&mut flows);
        }
        let next = (end < self.flows).then_some(Place { slot: end, ..place });
        Answer::Flows { now: Instant::from_micros(1_000_000), flows, next }
    }

    fn look_at(&mut self, flows: &mut [Listed]) {
        for listed in flows {
            self.looked_at.push(listed.flow.number);
            listed.totals = Some(Totals::bytes(1, 1));
        }
    }

    /// Asks for flows, and returns the result.
    fn list(&mut self, client: &mut BufReader<UnixStream>, arguments: &Value) -> Value {
        let request = json!({ "request": "flows", "arguments": arguments });
        writeln!(client.get_mut(), "{request}").unwrap();
        self.turn();
        let mut text = String::new();
        while !text.ends_with('\n') {
            self.answer();
            self.turn();
            // The part of a line that has arrived stays in `text`.
            let _ = client.read_line(&mut text);
        }
        serde_json::from_str::<Value>(&text).unwrap()["result"].take()
    }

    fn note(&self) {
        self.shard.publish(Content::Note(Note::Rules("r".into())), 1.0, Instant::from_micros(0));
    }
}

/// The connection in a slot.
fn listed(slot: u32) -> Listed {
    let [guest, remote] = ["198.51.100.2:40000", "203.0.113.1:443"].map(|end| end.parse().unwrap());
    let start = Start::of(Protocol::Tcp, Direction::Outbound, Endpoints { guest, remote });
    let (number, begun) = (u64::from(slot) + 1, Instant::from_micros(slot.into()));
    Listed {
        id: FlowId::from_bits(1 << 56 | u64::from(slot)).unwrap(),
        flow: Flow { number, begun, start, basis: Basis::default(), memory: Default::default() }.into(),
        name: None,
        state: State::Established,
        idle: Some(Duration::from_micros(slot.into())),
        local: None,
        totals: None,
        path: None,
    }
}

fn send(client: &mut BufReader<UnixStream>, id: u64, name: &str) {
    writeln!(client.get_mut(), "{}", json!({ "id": id, "request": name })).unwrap();
}

/// The lines that have arrived.
fn lines(client: &mut BufReader<UnixStream>) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut line = String::new();
    while client.read_line(&mut line).is_ok_and(|len| len > 0) {
        lines.push(serde_json::from_str(&line).unwrap());
        line.clear();
    }
    lines
}

/// One request of each client in turn, and one ask at a time.
#[test]
fn clients_take_turns() {
    let mut world = World::new(64);
    let mut clients = [world.connect(), world.connect(), world.connect()];
    for (client, count) in clients.iter_mut().zip([3, 1, 2]) {
        (0..count).for_each(|id| send(client, id, "neighbours"));
    }
    world.turn();
    let mut order = Vec::new();
    while world.answer() {
        for (number, client) in clients.iter_mut().enumerate() {
            order.extend(lines(client).iter().map(|answer| (number, answer["id"].as_u64().unwrap())));
        }
    }
    assert_eq!(order, [(0, 0), (1, 0), (2, 0), (0, 1), (2, 1), (0, 2)]);
    assert_eq!(world.asks, 6);
}

/// A request may need several asks. An answer whose client is gone is dropped, and the next request gets its own.
#[test]
fn an_answer_belongs_to_its_request() {
    let mut world = World::new(64);
    let (mut gone, mut other) = (world.connect(), world.connect());
    send(&mut gone, 1, "dns");
    world.turn();
    send(&mut other, 2, "neighbours");
    drop(gone);
    world.turn();
    while world.answer() {}
    assert_eq!(lines(&mut other), [json!({ "id": 2, "result": { "neighbours": [] } })]);
    assert_eq!(world.asks, 2, "the list of names was not continued");

    send(&mut other, 3, "dns");
    world.turn();
    while world.answer() {}
    assert_eq!(lines(&mut other), [json!({ "id": 3, "result": { "addresses": [] } })]);
    assert_eq!(world.asks, 5);
    writeln!(
        other.get_mut(),
        "{}",
        json!({ "id": 4, "request": "rules.replace", "arguments": { "rules": [] } })
    )
    .unwrap();
    world.turn();
    while world.answer() {}
    assert_eq!(lines(&mut other)[0]["error"], json!({ "code": "refused", "message": "no such port" }));
}

fn numbers(list: &Value) -> Vec<u64> {
    let flows = list["flows"].as_array().unwrap();
    assert!(flows.iter().all(|flow| flow["bytes_sent"] == 1), "the host was asked about each");
    flows.iter().map(|flow| flow["flow"].as_u64().unwrap()).collect()
}

/// The host is asked about each flow at most once, however the list is divided. If the key does not depend on it, it is
/// asked only about flows that are listed.
#[test]
fn the_host_is_asked_about_listed_flows() {
    let mut world = World::new(64);
    world.flows = 6000;
    let mut client = world.connect();
    for (arguments, expected) in [
        (json!({ "sort": "idle", "ascending": true, "limit": 1000 }), (1..=1000).collect::<Vec<_>>()),
        (json!({ "sort": "age", "limit": 700 }), (1..=700).collect()),
        (json!({ "sort": "flow", "limit": 1 }), vec![6000]),
    ] {
        world.looked_at.clear();
        let list = world.list(&mut client, &arguments);
        assert_eq!((numbers(&list), &list["more"]), (expected.clone(), &json!(true)), "{arguments}");
        assert_eq!(world.looked_at, expected, "{arguments}");
    }

    world.looked_at.clear();
    let by_bytes = world.list(&mut client, &json!({ "sort": "bytes", "limit": 10 }));
    assert_eq!((numbers(&by_bytes), world.looked_at.len()), ((1..=10).collect(), 6000));

    // A list of more than 1 MiB has several parts. Each ends within a batch.
    world.looked_at.clear();
    let (mut all, mut arguments, mut parts) = (Vec::new(), json!({ "limit": 10_000 }), 0);
    loop {
        let part = world.list(&mut client, &arguments);
        all.extend(numbers(&part));
        parts += 1;
        if part["more"] == false {
            break;
        }
        arguments["after"] = part["next"].clone();
    }
    assert!(parts == 2 && all == (1..=6000).collect::<Vec<_>>(), "{parts}, {}", all.len());
    assert!(world.looked_at.len() <= 6000 + 2 * SLOTS as usize, "{}", world.looked_at.len());
}

/// Events reach subscribers only, also while a request waits for its answer.
#[test]
fn events_reach_subscribers() {
    let mut world = World::new(64);
    let (mut subscriber, mut other) = (world.connect(), world.connect());
    world.note();
    send(&mut subscriber, 1, "subscribe");
    world.turn();
    send(&mut subscriber, 2, "neighbours");
    world.turn();
    world.note();
    world.turn();
    let event = json!({ "time": 1.0, "event": "rules", "remark": "r" });
    let received = lines(&mut subscriber);
    assert_eq!((received.len(), &received[1]), (2, &event), "{received:?}");
    assert_eq!(lines(&mut other), [json!(null); 0]);
    assert!(world.answer());
    assert_eq!(lines(&mut subscriber)[0]["id"], 2);

    // The last subscriber is gone: events are not queued any more.
    drop(subscriber);
    world.turn();
    assert!(!world.shard.is_subscribed());
    // The packet thread ends.
    let World { folder: _folder, mut server, shard, .. } = world;
    drop(shard);
    send(&mut other, 5, "neighbours");
    (0..9).for_each(|_| server.turn(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap());
    assert_eq!(lines(&mut other)[0]["error"]["code"], "internal");
}

#[test]
fn surplus_clients_are_refused() {
    let mut world = World::new(2);
    let _first = world.connect();
    let second = world.connect();
    let mut third = world.connect();
    assert_eq!(lines(&mut third)[0]["error"]["code"], "busy");
    drop(second);
    world.turn();
    let mut fourth = world.connect();
    send(&mut fourth, 1, "neighbours");
    world.turn();
    world.answer();
    assert_eq!(lines(&mut fourth)[0]["id"], 1);
}

/// The table of docs/design/api.md.
#[test]
fn files_of_the_api_socket() {
    for (files, most, registered) in
        [(0, 5, 5), (24, 5, 5), (256, 32, 5), (544, 68, 8), (1024, 68, 12), (1 << 20, 68, 12)]
    {
        assert_eq!((budget(files, true), budget(files, false)), (most, registered), "{files}");
    }
}
