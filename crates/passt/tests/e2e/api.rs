//! Tests of the API socket, `--api-socket` (docs/api.md). All answers and events are checked against the schema,
//! docs/api.schema.json.

mod capture;
mod changes;
mod clients;
mod commands;
mod failures;
mod http;
mod registry;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};

use crate::harness::*;

/// The schema of the lines that a server sends.
struct Schema {
    schemas: Schemas,
    compiler: Compiler,
}

impl Schema {
    fn new() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.schema.json");
        let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let mut compiler = Compiler::new();
        compiler.add_resource("file:///schema", schema).unwrap();
        Self { schemas: Schemas::new(), compiler }
    }

    /// Checks a value against the whole schema (`#`), or against a definition.
    #[track_caller]
    fn check(&mut self, part: &str, value: &Value) {
        let compiled = self.compiler.compile(&format!("file:///schema{part}"), &mut self.schemas);
        let index: SchemaIndex = compiled.unwrap_or_else(|error| panic!("{part}: {error}"));
        if let Err(error) = self.schemas.validate(value, index) {
            panic!("{part}: {error:#}\n{value:#}");
        }
    }
}

/// A client of the API socket.
struct Client {
    reader: BufReader<UnixStream>,
    schema: Schema,
    /// Events that came before an answer.
    events: Vec<Value>,
}

impl Client {
    /// Connects to the socket `s` of the test.
    fn new(net: &Net) -> Self {
        Self::of(UnixStream::connect(net.path("s")).unwrap())
    }

    fn of(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(stream), schema: Schema::new(), events: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// The next line. `None`: the server has closed the connection.
    #[track_caller]
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        let len = self.reader.read_line(&mut line).unwrap();
        if len == 0 {
            return None;
        }
        let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.schema.check("#", &value);
        Some(value)
    }

    /// The next answer. Events that come before it are kept.
    #[track_caller]
    fn answer(&mut self) -> Value {
        loop {
            let line = self.line().expect("an answer");
            if line.get("event").is_none() {
                return line;
            }
            self.events.push(line);
        }
    }

    /// Sends a request. Returns its result.
    #[track_caller]
    fn get(&mut self, name: &str, arguments: Value) -> Value {
        let request = json!({ "id": name, "request": name, "arguments": arguments });
        self.schema.check("#/$defs/request", &request);
        self.write(format!("{request}\n").as_bytes());
        let mut answer = self.answer();
        assert_eq!(answer["id"], name, "{answer}");
        let result = answer["result"].take();
        assert!(!result.is_null(), "{name}: {answer}");
        self.schema.check(&format!("#/$defs/{name}"), &result);
        result
    }

    /// Sends a request that fails. Returns the code and the message.
    #[track_caller]
    fn fail(&mut self, name: &str, arguments: Value) -> (String, String) {
        let request = json!({ "id": 7, "request": name, "arguments": arguments });
        self.write(format!("{request}\n").as_bytes());
        let answer = self.answer();
        assert_eq!(answer["id"], 7, "{answer}");
        let text = |field: &str| answer["error"][field].as_str().unwrap().to_owned();
        (text("code"), text("message"))
    }

    fn flows(&mut self, arguments: Value) -> Vec<Value> {
        self.get("flows", arguments)["flows"].as_array().unwrap().clone()
    }

    /// The only flow that meets these conditions, when there is one.
    fn flow(&mut self, conditions: Value) -> Value {
        let mut found = Vec::new();
        wait_until(&format!("a flow with {conditions}"), || {
            found = self.flows(conditions.clone());
            !found.is_empty()
        });
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    }

    /// Waits for an event with these fields.
    #[track_caller]
    fn event(&mut self, fields: &Value) -> Value {
        let has =
            |event: &Value| fields.as_object().unwrap().iter().all(|(field, value)| event[field] == *value);
        loop {
            if let Some(at) = self.events.iter().position(has) {
                return self.events.remove(at);
            }
            let line = self.line().unwrap_or_else(|| panic!("no event with {fields}"));
            self.events.push(line);
        }
    }
}

/// Checks that a value has these fields.
#[track_caller]
fn assert_fields(value: &Value, expected: &Value) {
    for (field, expected) in expected.as_object().unwrap() {
        assert_eq!(&value[field], expected, "{field} of {value:#}");
    }
}

fn start<'a>(net: &'a Net, args: &[&str]) -> Daemon<'a> {
    net.pasta(&[&["--api-socket", &net.path("s")], args].concat())
}

#[test]
fn settings_counts_and_neighbours() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "7001", "--mtu", "9000"]);
    let mut client = Client::new(&net);
    let config = client.get("config", json!({}));
    assert_fields(&config, &json!({ "program": "pasta", "link": "tap", "mtu": 9000, "policy": "none" }));
    assert_fields(
        &config["ipv4"],
        &json!({ "assigned": HOST[0], "gateway": GATEWAY[0], "prefix_length": 24 }),
    );
    assert_fields(&config["ipv6"], &json!({ "assigned": HOST[1] }));

    let listener = net.peer.listen((PEER[0], 7000));
    let connection = net.guest.connect((PEER[0], 7000)).unwrap();
    let _server = accept(&listener);
    let stats = client.get("stats", json!({}));
    assert_eq!((&stats["tcp"]["open"], &stats["tcp"]["opened"]), (&json!(1), &json!(1)));
    assert_eq!(stats["files"]["tcp_out"], 1);
    assert!(stats["frames"]["from_guest"].as_u64() > Some(1) && stats["loop"]["rounds"].as_u64() > Some(0));
    drop(connection);

    let list = client.get("neighbours", json!({}));
    let known = |address: IpAddr| {
        list["neighbours"].as_array().unwrap().iter().any(|neighbour| neighbour["address"] == json!(address))
    };
    assert!(known(PEER[0]) || known(GATEWAY[0]), "{list}");
}

/// Sends bytes in both directions.
fn exchange(mut client: impl Read + Write, mut server: impl Read + Write) {
    client.write_all(b"12345").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    server.write_all(b"abc").unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
}

#[test]
fn connections() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "7001", "-u", "none", "-T", "7002", "-U", "none", "--allow", "all"]);
    let mut client = Client::new(&net);
    assert_eq!(client.flows(json!({ "protocol": "tcp" })), [json!(null); 0]);

    let listener = net.peer.listen((PEER[1], 7000));
    let out = net.guest.connect((PEER[1], 7000)).unwrap();
    let far = accept(&listener).0;
    exchange(&out, &far);
    let flow = client.flow(json!({ "port": 7000 }));
    let expected = json!({
        "protocol": "tcp", "direction": "outbound", "guest": HOST[1], "peer": PEER[1], "peer_port": 7000,
        "guest_port": out.local_addr().unwrap().port(), "rule": "allow all", "state": "established",
        "host": HOST[1], "host_port": far.peer_addr().unwrap().port(), "bypass": null,
    });
    assert_fields(&flow, &expected);
    // The guest may not have acknowledged the bytes yet.
    wait_until("counts of bytes", || {
        let flow = client.flow(json!({ "port": 7000 }));
        flow["bytes_sent"] == 5 && flow["bytes_received"] == 3 && flow["rtt"].as_f64() > Some(0.0)
    });

    let inside = net.guest.listen((any(HOST[0]), 7001));
    let from_peer = net.peer.connect((HOST[0], 7001)).unwrap();
    let inbound = accept(&inside).0;
    let flow = client.flow(json!({ "direction": "inbound", "protocol": "tcp", "bypass": false }));
    assert_fields(&flow, &json!({ "guest_port": 7001, "rule": null }));

    let local = net.host.listen((LOOPBACK[0], 7002));
    let bypassing = net.guest.connect((LOOPBACK[0], 7002)).unwrap();
    let bypassing_far = accept(&local).0;
    exchange(&bypassing, &bypassing_far);
    let flow = client.flow(json!({ "bypass": true, "protocol": "tcp" }));
    assert_fields(&flow, &json!({ "bypass": true, "peer_port": 7002, "bytes_sent": 5, "bytes_received": 3 }));

    // A connection that is half closed.
    out.shutdown(Shutdown::Write).unwrap();
    let flow = client.flow(json!({ "state": "closing" }));
    assert_eq!(flow["peer_port"], 7000);
    drop((from_peer, inbound, bypassing, bypassing_far));
    wait_until("the ends of two connections", || client.flows(json!({ "protocol": "tcp" })).len() == 1);
}

#[test]
fn datagrams_and_pings() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    start(&net, &["-T", "none", "-U", "7003"]);
    let mut client = Client::new(&net);
    let server = net.peer.udp((PEER[0], 7000));
    let sender = net.guest.udp((HOST[0], 7005));
    sender.send_to(b"question", (PEER[0], 7000)).unwrap();
    let (_, from) = recv_from(&server);
    let flow = client.flow(json!({ "protocol": "udp", "address": "198.51.100.3/32", "bypass": false }));
    let expected = json!({ "state": "unanswered", "guest_port": 7005, "bytes_sent": 8, "packets_sent": 1 });
    assert_fields(&flow, &expected);
    server.send_to(b"answer", from).unwrap();
    recv_from(&sender);
    let flow = client.flow(json!({ "state": "answered", "port": 7005 }));
    assert_fields(&flow, &json!({ "bytes_received": 6, "packets_received": 1 }));

    let local = net.host.udp((LOOPBACK[0], 7003));
    let bypassing_udp = net.guest.udp((LOOPBACK[0], 0));
    bypassing_udp.send_to(b"question", (LOOPBACK[0], 7003)).unwrap();
    recv_from(&local);
    let flow = client.flow(json!({ "bypass": true, "protocol": "udp" }));
    assert_fields(&flow, &json!({ "peer_port": 7003, "bytes_sent": 8, "state": "unanswered" }));

    net.guest.sh(&format!("ping -c 1 -W 60 {}", PEER[0]));
    let flow = client.flow(json!({ "protocol": "icmp" }));
    assert_fields(
        &flow,
        &json!({ "peer": PEER[0], "state": "answered", "packets_sent": 1, "packets_received": 1 }),
    );
    assert!(flow["echo_id"].is_u64() && flow["guest_port"].is_null());
}

/// The order and the parts of a list of a thousand connections.
#[test]
fn a_thousand_flows() {
    const COUNT: usize = 1000;
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let mut client = Client::new(&net);
    let listener = net.peer.listen((PEER[0], 7000));
    let ends: Vec<_> =
        (0..COUNT).map(|_| (net.guest.connect((PEER[0], 7000)).unwrap(), accept(&listener).0)).collect();
    let ports = |flows: &[Value]| -> Vec<u64> {
        let mut ports: Vec<u64> = flows.iter().map(|flow| flow["guest_port"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        ports
    };
    let mut all: Vec<u64> = ends.iter().map(|(one, _)| one.local_addr().unwrap().port().into()).collect();
    all.sort_unstable();
    let connections = |extra: Value| {
        let mut arguments = json!({ "port": 7000 });
        arguments.as_object_mut().unwrap().append(&mut extra.as_object().unwrap().clone());
        arguments
    };
    assert_eq!(ports(&client.flows(connections(json!({})))), all);

    let parts = in_parts(&mut client, &connections(json!({ "limit": 300 })));
    assert_eq!((ports(&parts), parts.len()), (all, COUNT));

    let (mut busy, mut server) = (&ends[7].0, &ends[7].1);
    busy.write_all(&[7; 5000]).unwrap();
    server.read_exact(&mut [0; 5000]).unwrap();
    let part = client.get("flows", connections(json!({ "sort": "bytes", "limit": 2 })));
    assert_eq!(
        (part["flows"].as_array().unwrap().len(), &part["more"], part.get("next")),
        (2, &json!(true), None)
    );
    assert_fields(
        &part["flows"][0],
        &json!({ "bytes_sent": 5000, "guest_port": busy.local_addr().unwrap().port() }),
    );
    let numbers = |sort: Value| -> Vec<u64> {
        let list = Client::new(&net).flows(connections(sort));
        list.iter().map(|flow| flow["flow"].as_u64().unwrap()).collect()
    };
    // The sockets are asked after the list was sorted.
    let idle = Client::new(&net).flows(connections(json!({ "sort": "idle", "limit": 900 })));
    assert!(
        idle.len() == 900 && idle.iter().all(|flow| flow["rtt"].is_f64() && flow["host"] == json!(HOST[0]))
    );
    let oldest = numbers(json!({ "sort": "age", "limit": 5 }));
    assert!(oldest.is_sorted(), "{oldest:?}");
    assert_eq!(numbers(json!({ "sort": "flow", "ascending": true, "limit": 5 })), oldest);
    let newest = numbers(json!({ "sort": "flow", "limit": 5 }));
    assert!(newest.is_sorted_by(|one, other| one > other) && newest[4] > oldest[4], "{newest:?}");
}

/// Lists flows in parts of at most 300.
fn in_parts(client: &mut Client, arguments: &Value) -> Vec<Value> {
    let (mut parts, mut next) = (Vec::new(), json!(null));
    loop {
        let mut arguments = arguments.clone();
        if !next.is_null() {
            arguments["after"] = next;
        }
        let part = client.get("flows", arguments);
        let flows = part["flows"].as_array().unwrap();
        assert!(flows.len() <= 300);
        parts.extend(flows.iter().cloned());
        next = part["next"].clone();
        assert_eq!(part["more"], !next.is_null());
        if next.is_null() {
            return parts;
        }
    }
}

#[test]
fn invalid_arguments_of_flows() {
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let mut client = Client::new(&net);
    for (wrong, message) in [
        (json!({ "protocol": "sctp" }), "protocol: one of tcp, udp, icmp"),
        (json!({ "state": "open" }), "state: one of connecting, "),
        (json!({ "sort": "size" }), "sort: one of flow, age, "),
        (json!({ "address": "host" }), "address: an IP address or a prefix"),
        (json!({ "limit": 0 }), "limit: from 1 to 10000"),
        (json!({ "limit": 10_001 }), "limit: from 1 to 10000"),
        (json!({ "after": "tcp.x" }), "after: "),
        (json!({ "after": "tcp.0", "sort": "age" }), "after can't be used with sort"),
        (json!({ "ascending": true }), "ascending can only be used with sort"),
        (json!({ "port": 70_000 }), "invalid value"),
        (json!({ "prot": "tcp" }), "unknown field `prot`"),
    ] {
        let (code, text) = client.fail("flows", wrong);
        assert!(code == "invalid-arguments" && text.contains(message), "{code}: {text}");
    }
    // A place beyond the end of the table.
    assert_eq!(client.get("flows", json!({ "after": "tcp-bypass.4294967295" }))["more"], false);
}

#[test]
fn events_begin_end_and_refusal() {
    let Some(net) = Net::new() else { return };
    start(&net, &["--deny", "tcp/198.51.100.3:7009"]);
    let mut client = Client::new(&net);
    let mut other = Client::new(&net);
    let all = client.get("subscribe", json!({}));
    assert_eq!(all["events"], json!(["begin", "end", "refusal", "rules", "policy", "failure"]));
    assert_eq!(other.get("subscribe", json!({ "events": ["refusal"] }))["events"], json!(["refusal"]));

    let listener = net.peer.listen((PEER[0], 7000));
    let out = net.guest.connect((PEER[0], 7000)).unwrap();
    let far = accept(&listener).0;
    exchange(&out, &far);
    let begin = client.event(&json!({ "event": "begin", "peer_port": 7000 }));
    drop((out, far));
    let end = client.event(&json!({ "event": "end", "flow": begin["flow"] }));
    assert!(end["time"].as_f64() >= begin["time"].as_f64(), "{begin} {end}");
    assert!(net.guest.connect((PEER[0], 7009)).is_err());
    let refusal = client.event(&json!({ "event": "refusal", "peer_port": 7009 }));
    assert_fields(&refusal, &json!({ "refused": "flow", "rule": "deny tcp/198.51.100.3:7009" }));
    // The other client gets refusals only.
    other.event(&json!({ "event": "refusal", "peer_port": 7009 }));
    assert!(other.events.is_empty(), "{:?}", other.events);

    let left = client.get("unsubscribe", json!({ "events": ["end"] }));
    assert_eq!(left["events"], json!(["begin", "refusal", "rules", "policy", "failure"]));
    assert_eq!(client.get("unsubscribe", json!({}))["events"], json!([]));
    let (code, message) = client.fail("subscribe", json!({ "events": ["packet"] }));
    assert!(code == "invalid-arguments" && message.contains("begin, end, refusal"), "{message}");
}

/// The socket of `--api-fd` may listen, or be connected. `passt` has another filter of system calls than `pasta`.
#[test]
fn inherited_sockets() {
    let Some(net) = Net::new() else { return };
    let (guest, pid_file, path) = (net.path("guest"), net.path("passt.pid"), net.path("s"));
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    for (socket, client) in [(listener.into(), None), (std::os::fd::OwnedFd::from(theirs), Some(ours))] {
        let script = format!("exec \"$0\" --quiet -s {guest} --pid {pid_file} --api-fd 9 9<&0");
        let mut command = net.host.bare_command(&["sh", "-c", &script, env!("CARGO_BIN_EXE_passt")]);
        let end = command.stdin(Stdio::from(socket)).output().unwrap();
        assert!(end.status.success(), "{end:?}");
        let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let mut client = client.map_or_else(|| Client::new(&net), Client::of);
        assert_eq!(client.get("config", json!({}))["program"], "passt");
        assert_eq!(client.get("metrics", json!({}))["text"].as_str().unwrap().lines().last(), Some("# EOF"));
        drop(client);
        assert!(runs(&net.host, pid));
        net.host.sh(&format!("kill {pid}"));
        wait_until("the end of passt", || !runs(&net.host, pid));
        std::fs::remove_file(&guest).unwrap();
    }
    for (script, reason) in [
        ("exec \"$0\" -f --api-fd 9 9<&-", "can't use descriptor 9 (--api-fd)"),
        ("exec \"$0\" -f --api-fd 9 9</dev/null", "--api-fd: the descriptor is not a UNIX stream socket"),
    ] {
        let end = net.host.run(&["sh", "-c", script, env!("CARGO_BIN_EXE_passt")]);
        assert!(end.code() == 1 && end.stderr.contains(reason), "{end:?}");
    }
}

/// Samples of metrics: name with labels, and value.
fn samples(text: &str) -> Vec<(String, f64)> {
    let mut families = Vec::new();
    let mut samples: Vec<(String, f64)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert!(!families.iter().any(|(known, _)| *known == name), "{name} twice");
            families.push((name, kind));
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let (family, kind) = families.last().unwrap();
            let name = sample.split('{').next().unwrap();
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let fits = match *kind {
                "gauge" => suffix.is_empty(),
                "counter" => suffix == "_total",
                _ => ["_bucket", "_sum", "_count"].contains(&suffix),
            };
            assert!(fits, "{line} in {family}");
            assert!(!samples.iter().any(|(known, _)| known == sample), "{sample} twice");
            samples.push((sample.into(), value.parse().unwrap()));
        }
    }
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
    samples
}

/// The text is valid OpenMetrics. Bytes count while a connection lives and after its end, once.
#[test]
fn metrics_count_flows_and_bytes() {
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let mut client = Client::new(&net);
    let mut value = |name: &str| {
        let text = client.get("metrics", json!({}))["text"].as_str().unwrap().to_owned();
        let samples = samples(&text);
        samples.iter().find(|(sample, _)| sample == name).map(|(_, value)| *value)
    };
    const BYTES: &str = "passt_bytes_total{protocol=\"tcp\",direction=\"from_guest\"}";
    const OPEN: &str = "passt_flows{protocol=\"tcp\",bypass=\"false\",state=\"established\"}";
    assert_eq!((value(BYTES), value(OPEN)), (Some(0.0), None));
    let listener = net.peer.listen((PEER[0], 7000));
    let out = net.guest.connect((PEER[0], 7000)).unwrap();
    let far: SocketAddr = out.local_addr().unwrap();
    let server = accept(&listener).0;
    exchange(&out, &server);
    wait_until(&format!("5 bytes of {far}"), || value(BYTES) == Some(5.0));
    assert_eq!(value(OPEN), Some(1.0));
    assert_eq!(value("passt_files{class=\"tcp_out\"}"), Some(1.0));
    assert!(value("passt_round_seconds_count") > Some(0.0));
    drop((out, server));
    wait_until("the end of the connection", || value(OPEN).is_none());
    assert_eq!(value(BYTES), Some(5.0));
    assert_eq!(value("passt_connections_total{path=\"link\",event=\"opened\"}"), Some(1.0));
}
