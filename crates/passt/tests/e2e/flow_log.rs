//! Tests of the flow log, `--flow-log` (docs/flow-log.md).

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::{Value, json};

use crate::harness::*;

/// The lines of the log so far. Each line is a JSON object.
fn lines(net: &Net, path: &str) -> Vec<Value> {
    let text = net.host.sh(&format!("cat {path}"));
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines[0]["event"], "log", "{text}");
    assert!(lines.iter().all(|line| line["time"].as_f64().is_some_and(|time| time > 1e9)), "{text}");
    lines
}

/// Waits for a line of this event in which `field` has this value. There must be only one such line.
fn line(net: &Net, path: &str, event: &str, (field, value): (&str, Value)) -> Value {
    let mut found = Vec::new();
    wait_until(&format!("{event} with {field} {value}"), || {
        found = lines(net, path);
        found.retain(|line| line["event"] == event && line[field] == value);
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

/// Checks that a line has these fields.
#[track_caller]
fn assert_fields(line: &Value, expected: &Value) {
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&line[field], value, "{field} of {line:#}");
    }
}

/// Sends 5 bytes in one direction and 3 in the other, and closes the connection.
fn exchange(mut client: TcpStream, mut server: TcpStream) {
    client.write_all(b"12345").unwrap();
    server.read_exact(&mut [0; 5]).unwrap();
    server.write_all(b"abc").unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn connections_through_the_link() {
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    let daemon = net.pasta(&["--flow-log", &log, "-t", "7001"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let listener = net.peer.listen((peer, 7000));
        let client = net.guest.connect((peer, 7000)).unwrap();
        let guest = client.local_addr().unwrap();
        let begin = line(&net, &log, "begin", ("guest_port", json!(guest.port())));
        let expected = json!({
            "protocol": "tcp", "direction": "outbound", "guest": host, "peer": peer, "peer_port": 7000,
        });
        assert_fields(&begin, &expected);
        exchange(client, accept(&listener).0);
        let end = line(&net, &log, "end", ("flow", begin["flow"].clone()));
        assert_fields(&end, &expected);
        assert_fields(&end, &json!({ "how": "closed", "bytes_sent": 5, "bytes_received": 3 }));
        assert!(
            end["packets_sent"].as_u64().unwrap() >= 3 && end["seconds"].as_f64().unwrap() > 0.0,
            "{end}"
        );
        // Without rules, the line has no rule.
        assert_fields(&end, &json!({ "rule": null, "names": null, "name": null, "bypass": null }));

        let listener = net.guest.listen((any(host), 7001));
        let client = net.peer.connect((host, 7001)).unwrap();
        let from = client.local_addr().unwrap();
        exchange(client, accept(&listener).0);
        let end = line(&net, &log, "end", ("peer_port", json!(from.port())));
        let expected = json!({
            "direction": "inbound", "guest": host, "guest_port": 7001, "peer": from.ip(), "how": "closed",
            "bytes_sent": 3, "bytes_received": 5,
        });
        assert_fields(&end, &expected);
    }
    let refused = net.guest.connect((PEER[0], 7009));
    assert!(refused.is_err());
    let end = line(&net, &log, "end", ("peer_port", json!(7009)));
    assert_fields(&end, &json!({ "how": "failed", "errno": 111, "bytes_sent": 0 }));
    // The gateway's address leads to the host's loopback.
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let client = net.guest.connect((GATEWAY[0], 7000)).unwrap();
    drop(accept(&listener));
    drop(client);
    let end = line(&net, &log, "end", ("translated", json!("127.0.0.1")));
    assert_fields(&end, &json!({ "peer": GATEWAY[0], "translated_port": 7000 }));
    assert!(daemon.runs());
}

#[test]
fn connections_that_bypass_the_link() {
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    net.pasta(&["--flow-log", &log, "-t", "7001", "-T", "7002", "-U", "7003"]);
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let client = net.host.connect((LOOPBACK[0], 7001)).unwrap();
    let from = client.local_addr().unwrap();
    exchange(client, accept(&listener).0);
    let end = line(&net, &log, "end", ("peer_port", json!(from.port())));
    let expected = json!({
        "protocol": "tcp", "direction": "inbound", "bypass": true, "guest_port": 7001, "peer": "127.0.0.1",
        "how": "closed", "bytes_sent": 3, "bytes_received": 5, "packets_sent": null,
    });
    assert_fields(&end, &expected);

    let listener = net.host.listen((LOOPBACK[0], 7002));
    let client = net.guest.connect((LOOPBACK[0], 7002)).unwrap();
    let from = client.local_addr().unwrap();
    exchange(client, accept(&listener).0);
    let end = line(&net, &log, "end", ("guest_port", json!(from.port())));
    let expected = json!({
        "direction": "outbound", "bypass": true, "guest": "127.0.0.1", "peer": "127.0.0.1", "peer_port": 7002,
        "how": "closed", "bytes_sent": 5, "bytes_received": 3,
    });
    assert_fields(&end, &expected);

    let server = net.host.udp((LOOPBACK[0], 7003));
    let client = net.guest.udp((LOOPBACK[0], 0));
    client.send_to(b"question", (LOOPBACK[0], 7003)).unwrap();
    recv_from(&server);
    let begin = line(&net, &log, "begin", ("peer_port", json!(7003)));
    assert_fields(&begin, &json!({ "protocol": "udp", "direction": "outbound", "bypass": true }));
}

/// If flows are open when the program ends, their ends are logged, too.
#[test]
fn datagrams_and_pings_until_the_program_ends() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    let daemon = net.pasta(&["--flow-log", &log, "-T", "7001"]);
    let server = net.peer.udp((PEER[0], 7000));
    let client = net.guest.udp((HOST[0], 7003));
    for payload in [&b"question"[..], b"", b"another"] {
        client.send_to(payload, (PEER[0], 7000)).unwrap();
        recv_from(&server);
    }
    server.send_to(b"answer", (HOST[0], 7003)).unwrap();
    recv_from(&client);
    for peer in [PEER[0], PEER_ALIAS[0], PEER[1]] {
        // With -w, ping would send more than two if a reply were late.
        net.guest.sh(&format!("ping -n -c 2 -i 0.01 -s 56 -W 60 {peer}"));
    }
    let listener = net.peer.listen((PEER[0], 7000));
    let guest = net.guest.connect((PEER[0], 7000)).unwrap();
    let _server = accept(&listener);
    let local = net.host.listen((LOOPBACK[0], 7001));
    let _bypassing = net.guest.connect((LOOPBACK[0], 7001)).unwrap();
    let _accepted = accept(&local);
    line(&net, &log, "begin", ("guest_port", json!(guest.local_addr().unwrap().port())));
    daemon.terminate();

    let all = lines(&net, &log);
    let numbers = |event: &str| {
        let mut numbers: Vec<_> =
            all.iter().filter(|line| line["event"] == event).map(|line| line["flow"].as_u64()).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(numbers("begin"), numbers("end"));
    assert_eq!(numbers("end").len(), 6, "{all:#?}");
    let end = line(&net, &log, "end", ("guest_port", json!(7003)));
    let expected = json!({
        "protocol": "udp", "how": "exit", "bytes_sent": 15, "packets_sent": 3, "bytes_received": 6,
        "packets_received": 1,
    });
    assert_fields(&end, &expected);
    for peer in [PEER[0], PEER_ALIAS[0], PEER[1]] {
        let pings: Vec<_> =
            all.iter().filter(|line| line["event"] == "end" && line["protocol"] == "icmp").collect();
        let ping = pings.iter().find(|line| line["peer"] == json!(peer)).unwrap();
        let expected = json!({
            "how": "exit", "bytes_sent": 112, "packets_sent": 2, "bytes_received": 112, "packets_received": 2,
            "guest_port": null, "peer_port": null,
        });
        assert_fields(ping, &expected);
        assert!(ping["echo_id"].is_u64(), "{ping}");
    }
}

#[test]
fn refusals_have_the_rule() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    let far = FAR[0];
    net.pasta(&["--flow-log", &log, "--allow", "198.51.100.0/24", "--deny", "tcp/203.0.113.0/24:7000-7001"]);
    assert!(net.guest.connect((far, 7000)).is_err());
    let client = net.guest.udp((any(far), 7005));
    client.send_to(b"refused", (far, 7002)).unwrap();
    assert!(!net.guest.run(&["ping", "-n", "-c", "1", "-w", "60", &far.to_string()]).status.success());
    let line_of = |protocol: &str| line(&net, &log, "refusal", ("protocol", json!(protocol)));
    let deny = "deny tcp/203.0.113.0/24:7000-7001";
    let tcp = json!({ "refused": "flow", "peer": far, "peer_port": 7000, "rule": deny, "audit": null });
    assert_fields(&line_of("tcp"), &tcp);
    let udp = json!({ "guest": HOST[0], "guest_port": 7005, "peer_port": 7002, "rule": "default deny" });
    assert_fields(&line_of("udp"), &udp);
    assert_fields(&line_of("icmp"), &json!({ "peer": far, "rule": "default deny", "flow": null }));

    let listener = net.peer.listen((PEER[0], 7000));
    drop(net.guest.connect((PEER[0], 7000)).unwrap());
    drop(accept(&listener));
    let end = line(&net, &log, "end", ("peer", json!(PEER[0])));
    assert_fields(&end, &json!({ "rule": "allow 198.51.100.0/24" }));
}

/// The line of a query to the host's resolver has the name. The server does not answer.
/// The guest's kernel reports its memberships itself, and repeats the reports.
#[test]
fn memberships_that_are_refused() {
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    net.pasta(&["--flow-log", &log, "--multicast", "--deny", "multicast"]);
    let index = net.guest.ifindex("eth0");
    let (v4, v6) = (net.guest.udp((any(PEER[0]), 0)), net.guest.udp((any(PEER[1]), 0)));
    v4.join_multicast_v4(&"239.1.2.3".parse().unwrap(), &"198.51.100.2".parse().unwrap()).unwrap();
    v6.join_multicast_v6(&"ff05::1234".parse().unwrap(), index).unwrap();
    for (protocol, group) in [("igmp", "239.1.2.3"), ("mld", "ff05::1234")] {
        let mut found = None;
        wait_until(group, || {
            found = lines(&net, &log).into_iter().find(|line| line["peer"] == group);
            found.is_some()
        });
        let expected = json!({
            "event": "refusal", "refused": "membership", "protocol": protocol, "direction": "outbound",
            "rule": "no rule allows it", "audit": null, "guest_port": null,
        });
        assert_fields(&found.unwrap(), &expected);
    }
}

#[test]
fn queries_have_the_name() {
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    net.pasta(&["--flow-log", &log, "--dns-forward", "10.0.0.53", "--dns-host", "198.51.100.3"]);
    let server = net.peer.udp((PEER[0], 53));
    let client = net.guest.udp((any(PEER[0]), 0));
    let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04Name\x04test\0\0\x01\0\x01";
    client.send_to(question, "10.0.0.53:53").unwrap();
    let (question, from) = recv_from(&server);
    let mut answer = question.clone();
    answer[2] |= 0x80;
    server.send_to(&answer, from).unwrap();
    recv_from(&client);
    let end = line(&net, &log, "end", ("peer", json!("10.0.0.53")));
    let len = question.len();
    let expected = json!({
        "protocol": "udp", "peer_port": 53, "name": "name.test", "how": "closed", "bytes_sent": len,
        "bytes_received": len,
    });
    assert_fields(&end, &expected);
}

/// A guest can open any number of flows, but the size of the file is limited.
#[test]
fn the_log_keeps_its_size_limit() {
    const LIMIT: u64 = 40_960;
    let Some(net) = Net::new() else { return };
    let log = net.path("flows");
    let daemon =
        net.pasta(&["--flow-log", &log, "--log-size", &LIMIT.to_string(), "--deny", "203.0.113.0/24"]);
    let size = || std::fs::metadata(&log).unwrap().len();
    for _ in 0..600 {
        assert!(net.guest.connect((FAR[0], 7000)).is_err());
        assert!(size() <= LIMIT, "{}", size());
    }
    daemon.terminate();
    let all = lines(&net, &log);
    assert_eq!(all[0]["truncated"], true);
    assert!(all.len() > 80 && size() > LIMIT / 2, "{}", all.len());
}

/// The file was opened with the caller's rights, so it is written although the process has changed its user and root
/// directory.
#[test]
fn a_command_of_root_and_of_a_user() {
    need!("curl");
    for user in [User::PlainRoot, User::UsernsRoot, User::Ordinary] {
        let Some(net) = Net::with(Options { user, ..Options::default() }) else { continue };
        let log = net.path("flows");
        let finished = net.spawn(
            &["--flow-log", &log, "--deny", "203.0.113.0/24"],
            &["curl", "-s", "-m", "60", "http://203.0.113.2:7000/"],
        );
        assert_eq!(finished.code(), 7, "{finished:#?}");
        let refusal = line(&net, &log, "refusal", ("peer_port", json!(7000)));
        assert_fields(&refusal, &json!({ "protocol": "tcp", "rule": "deny 203.0.113.0/24" }));
        let heading = &lines(&net, &log)[0];
        assert_fields(
            heading,
            &json!({ "program": "pasta", "version": env!("CARGO_PKG_VERSION"), "truncated": null }),
        );
    }
}

/// The same for `passt`, which has another filter of system calls.
#[test]
fn a_virtual_machine() {
    let Some(net) = Net::with_mtu(1500) else { return };
    let (path, log) = (net.path("guest.socket"), net.path("flows"));
    let passt = net.passt(&["--socket", &path, "--flow-log", &log, "--log-size", "40960", "--mtu", "1500"]);
    let socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let _machine = net.machine(1500).plug(socket);
    for round in 0..100 {
        let listener = net.peer.listen((PEER[0], 7000 + round));
        let client = net.guest.connect((PEER[0], 7000 + round)).unwrap();
        exchange(client, accept(&listener).0);
    }
    let last = line(&net, &log, "end", ("peer_port", json!(7099)));
    assert_fields(&last, &json!({ "how": "closed", "bytes_sent": 5, "bytes_received": 3 }));
    assert_fields(&lines(&net, &log)[0], &json!({ "program": "passt", "truncated": true }));
    assert!(passt.runs());
}
