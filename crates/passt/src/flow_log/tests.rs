use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::events::{Basis, End, Event, Events, Flow, How, Refusal, Refused, Start};
use engine::flow::{Endpoints, Protocol};
use engine::forward::spec::Direction;
use engine::host::{Amount, Errno, Totals};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const BEGUN: Instant = Instant::from_micros(5_000_000);

fn flow(protocol: Protocol, guest: &str, remote: &str, peer: &str) -> Flow {
    let ends = Endpoints { guest: guest.parse().unwrap(), remote: remote.parse().unwrap() };
    let start = Start { peer: peer.parse().ok(), ..Start::of(protocol, Direction::Outbound, ends) };
    Flow { number: 17, begun: BEGUN, start, basis: Basis::default(), memory: Default::default() }
}

fn line(event: &Event, now: Instant) -> Value {
    let mut text = String::new();
    Line::of(event, 1_796_121_234.123_456, now).add_to(&mut text);
    assert_eq!((text.lines().count(), text.pop()), (1, Some('\n')));
    serde_json::from_str(&text).unwrap()
}

/// The example of docs/flow-log.md. The order of the fields is that of the documentation.
#[test]
fn an_end_in_full() {
    let basis = Basis { rule: Some("allow *.example.org:443".into()), names: vec!["www.example.org".into()] };
    let flow = flow(Protocol::Tcp, "192.0.2.10:40234", "203.0.113.9:443", "203.0.113.9:443");
    let amount = |bytes, packets| Amount { bytes, packets: Some(packets) };
    let end = Event::End(End {
        opened: true,
        failure: None,
        flow: Arc::new(Flow { basis, ..flow }),
        name: Some("www.example.org".into()),
        how: How::Closed,
        totals: Some(Totals { sent: amount(1933, 14), received: amount(48_210, 41) }),
    });
    let mut text = String::new();
    Line::of(&end, 1_796_121_234.123_456, BEGUN + Duration::from_micros(2_500_001)).add_to(&mut text);
    let documented = include_str!("../../../../docs/flow-log.md");
    assert!(documented.contains(&text), "{text}");
}

#[test]
fn fields_that_do_not_apply_are_left_out() {
    let ping = flow(Protocol::Icmp, "[2001:db8::2]:17", "[fe80::1]:0", "[::1]:0");
    assert_eq!(
        line(&Event::Begin(Arc::new(ping)), BEGUN),
        json!({
            "time": 1_796_121_234.123_456, "event": "begin", "flow": 17, "protocol": "icmp",
            "direction": "outbound", "guest": "2001:db8::2", "echo_id": 17, "peer": "fe80::1", "translated": "::1",
        })
    );
    let failed = flow(Protocol::Tcp, "127.0.0.1:4000", "[::ffff:127.0.0.1]:80", "127.0.0.1:80");
    let start = Start { bypasses: true, direction: Direction::Inbound, ..failed.start };
    let flow = Arc::new(Flow { start, ..failed });
    let end = End {
        flow,
        name: None,
        how: How::Failed(Errno(111)),
        opened: true,
        failure: None,
        totals: Some(Totals::bytes(1, 2)),
    };
    assert_eq!(
        line(&Event::End(end), BEGUN),
        json!({
            "time": 1_796_121_234.123_456, "event": "end", "flow": 17, "protocol": "tcp",
            "direction": "inbound", "bypass": true, "guest": "127.0.0.1", "guest_port": 4000, "peer": "127.0.0.1",
            "peer_port": 80, "how": "failed", "errno": 111,
            "reason": "refused by the guest: nothing listens at this address and port", "seconds": 0.0, "bytes_sent": 1, "bytes_received": 2,
        })
    );
}

#[test]
fn refusals() {
    let ends = Endpoints { guest: "192.0.2.1:4000".parse().unwrap(), remote: "10.0.0.1:22".parse().unwrap() };
    let refusal = |what, audit| {
        let basis = Basis { rule: Some("deny private".into()), names: Vec::new() };
        line(&Event::Refusal(Refusal { what, basis, audit }), BEGUN)
    };
    assert_eq!(
        refusal(Refused::Flow { protocol: Protocol::Udp, ends }, false),
        json!({
            "time": 1_796_121_234.123_456, "event": "refusal", "refused": "flow", "protocol": "udp",
            "direction": "outbound", "guest": "192.0.2.1", "guest_port": 4000, "peer": "10.0.0.1", "peer_port": 22,
            "rule": "deny private",
        })
    );
    let claimed = Err("no server name".into());
    let nameless = refusal(Refused::FirstBytes { protocol: Protocol::Tcp, ends, claimed }, true);
    assert_eq!((&nameless["refused"], &nameless["audit"]), (&json!("first-bytes"), &json!(true)));
    assert_eq!((&nameless["name"], &nameless["reason"]), (&Value::Null, &json!("no server name")));
    let client = ends.guest;
    let (name, kind) = ("x.example".into(), "AAAA".into());
    let question = refusal(Refused::Question { client, name, kind, answered: true }, false);
    assert_eq!((&question["refused"], &question["protocol"]), (&json!("answer"), &json!("dns")));
    assert_eq!((&question["name"], &question["type"]), (&json!("x.example"), &json!("AAAA")));
}

#[test]
fn refusals_of_packets_of_no_flow() {
    let [source, destination] = ["192.0.2.1", "10.0.0.1"].map(|text| text.parse().unwrap());
    let [group4, group6] = ["239.1.2.3", "ff05::1234"].map(|text| text.parse().unwrap());
    for (what, expected) in [
        (
            Refused::Protocol { number: 132, source, destination },
            json!({ "refused": "protocol", "protocol": "ip", "ip_protocol": 132, "peer": "10.0.0.1" }),
        ),
        (
            Refused::Fragments { source, destination },
            json!({ "refused": "fragments", "protocol": "ip", "peer": "10.0.0.1" }),
        ),
        (
            Refused::Membership { member: source, group: group4 },
            json!({ "refused": "membership", "protocol": "igmp", "peer": "239.1.2.3" }),
        ),
        (
            Refused::Membership { member: source, group: group6 },
            json!({ "refused": "membership", "protocol": "mld", "peer": "ff05::1234" }),
        ),
    ] {
        let basis = Basis { rule: Some("why".into()), names: Vec::new() };
        let found = line(&Event::Refusal(Refusal { what, basis, audit: false }), BEGUN);
        let mut expected = expected;
        let common = json!({
            "time": 1_796_121_234.123_456, "event": "refusal", "direction": "outbound", "guest": "192.0.2.1",
            "rule": "why",
        });
        expected.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        assert_eq!(found, expected);
    }
}

/// Names in a line come from the guest and from servers, so they can have any characters. A rule may be long.
#[test]
fn any_text_is_one_line_of_json() {
    let name = "quo\"te\\ back\n\0\u{1b}[31m é \u{2028}";
    let rule = "é".repeat(100_000);
    let flow = flow(Protocol::Tcp, "192.0.2.1:1", "192.0.2.2:2", "");
    let basis = Basis { rule: Some(rule.into()), names: vec![name.into(); 8] };
    let (how, totals) = (How::Exit, None);
    let event = Event::End(End {
        flow: Arc::new(Flow { basis, ..flow }),
        name: Some(name.into()),
        how,
        opened: true,
        failure: None,
        totals,
    });
    let line = line(&event, BEGUN);
    assert_eq!((&line["name"], &line["names"][7]), (&json!(name), &json!(name)));
    let rule = line["rule"].as_str().unwrap();
    assert!(rule.starts_with("éé") && rule.ends_with("é…") && rule.len() < 1010);
    assert!(serde_json::to_string(&line).unwrap().len() < 12 << 10);
}

fn log(limit: u64) -> (TempDir, PathBuf, FlowLog) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flows");
    let log = FlowLog::create(&path, limit, "pasta").unwrap();
    (dir, path, log)
}

fn begin(events: &Events) {
    let mut guard = engine::guard::Guard::default();
    guard.report_to(events.clone());
    let ends = Endpoints { guest: "192.0.2.1:1".parse().unwrap(), remote: "192.0.2.2:2".parse().unwrap() };
    guard.begin_unjudged(Start::of(Protocol::Tcp, Direction::Outbound, ends), BEGUN).close(How::Closed);
}

/// The file never exceeds its limit. All lines are JSON objects. The last lines are there without a gap.
#[test]
fn a_full_log_loses_nothing_but_the_oldest() {
    const LIMIT: u64 = 40_960;
    let (_dir, path, mut log) = log(LIMIT);
    let events = Events::new();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut most = 0;
    for round in 0..300 {
        (0..round % 100).for_each(|_| begin(&events));
        log.write(&events.take(), BEGUN);
        let size = path.metadata().unwrap().len();
        assert!(size <= LIMIT, "{size}");
        most = most.max(size);
    }
    assert!(most > LIMIT - 2 * CHUNK as u64);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["truncated"]), (&json!("log"), &json!(true)));
    let numbers: Vec<u64> = lines[1..].iter().map(|line| line["flow"].as_u64().unwrap()).collect();
    let last = *numbers.last().unwrap();
    assert_eq!(last, (0..300).map(|round| round % 100).sum::<u64>());
    let expected: Vec<u64> = (0..numbers.len() as u64).rev().map(|back| last - back / 2).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_log_that_can_not_be_created_says_why() {
    let dir = tempfile::tempdir().unwrap();
    for (path, why) in
        [(dir.path().to_owned(), "Is a directory"), (dir.path().join("no/flows"), "No such file")]
    {
        let Err(error) = FlowLog::create(&path, 40_960, "pasta") else { panic!("{}", path.display()) };
        let text = format!("{error:#}");
        assert!(text.contains("--flow-log") && text.contains(why), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
}
