//! Changes by clients of the API socket: rules, the policy, flows, the log level.

use std::net::TcpStream;

use super::*;

/// Opens a connection from the peer through `port` of the host to a listener in the guest.
fn works(net: &Net, listener: &std::net::TcpListener, port: u16) -> bool {
    match net.peer.connect((HOST[0], port)) {
        Ok(client) => {
            exchange(client, accept(listener).0);
            true
        }
        Err(_) => false,
    }
}

#[test]
fn forwarding_rules() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "7000", "-u", "none", "-T", "none", "-U", "none"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let mut client = Client::new(&net);
    let mut watcher = Client::new(&net);
    watcher.get("subscribe", json!({ "events": ["rules"] }));
    let rule =
        |ports: &str| json!({ "rules": [{ "direction": "inbound", "protocol": "tcp", "ports": ports }] });
    let firsts = |client: &mut Client| -> Vec<u64> {
        let tables = client.get("rules", json!({}));
        assert_fields(&tables["tables"][0], &json!({ "name": "HOST", "direction": "inbound" }));
        assert_fields(&tables["tables"][1], &json!({ "name": "SPLICE", "rules": [] }));
        let rules = tables["tables"][0]["rules"].as_array().unwrap().clone();
        rules.iter().map(|rule| rule["first"].as_u64().unwrap()).collect()
    };
    assert_eq!(firsts(&mut client), [7000]);
    client.get("rules.add", rule("7001:7000"));
    watcher.event(&json!({ "event": "rules" }));
    assert!(works(&net, &listener, 7001) && works(&net, &listener, 7000));
    client.get("rules.delete", rule("7000"));
    assert!(works(&net, &listener, 7001) && !works(&net, &listener, 7000));
    client.get("rules.replace", rule("7002:7000"));
    assert!(works(&net, &listener, 7002) && !works(&net, &listener, 7001));
    assert_eq!(firsts(&mut client), [7002]);

    // Nothing changes if a part can't be applied.
    let _busy = net.host.listen((any(HOST[0]), 7009));
    for (request, arguments, code, message) in [
        ("rules.add", rule("7003,7009"), "refused", IN_USE),
        ("rules.delete", rule("7000"), "refused", "Couldn't find forwarding rule"),
        ("rules.add", rule("x"), "refused", "Invalid"),
        ("rules.replace", json!({}), "invalid-arguments", "missing field `rules`"),
        ("rules.add", json!({ "rules": [{ "direction": "in" }] }), "invalid-arguments", "missing field"),
        (
            "rules.change",
            json!({ "changes": [{ "clear": "HOST" }, rule("7009")["rules"][0]] }),
            "invalid-arguments",
            "expected map with a single key",
        ),
        ("rules.change", json!({ "changes": ["reset"] }), "invalid-arguments", "unknown variant `reset`"),
        (
            "rules.change",
            json!({ "changes": [{ "clear": "HOST" }, { "rule": rule("7009")["rules"][0] }] }),
            "refused",
            IN_USE,
        ),
        ("rules.change", json!({ "changes": [{ "clear": "TAP" }] }), "refused", "Unsupported pif name TAP"),
    ] {
        let (failed, text) = client.fail(request, arguments);
        assert!(failed == code && text.contains(message), "{request}: {failed}: {text}");
    }
    assert_eq!(firsts(&mut client), [7002]);
    client.get("rules.replace", json!({ "rules": [] }));
    assert_eq!(firsts(&mut client), [0; 0]);
}

/// The changes are made in their order, as the options of `pesto`.
#[test]
fn an_ordered_list_of_changes() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "7000", "-u", "7000", "-T", "none", "-U", "none"]);
    let mut client = Client::new(&net);
    let rule = |direction: &str, protocol: &str, ports: &str| json!({ "rule": { "direction": direction, "protocol": protocol, "ports": ports } });
    let shown = |tables: &Value, table: usize| -> Vec<String> {
        let rules = tables[table]["rules"].as_array().unwrap().iter();
        rules.map(|rule| format!("{} {} {}", rule["protocol"], rule["first"], rule["target_first"])).collect()
    };
    let before = client.get("rules", json!({}))["tables"].take();
    assert!(before[0]["capabilities"].as_array().unwrap().contains(&json!("scan")), "{before}");

    // Without "add", the first rule for a table empties it.
    let changes = json!([
        rule("inbound", "tcp", "7001:7002"),
        rule("inbound", "tcp", "7003"),
        "delete",
        rule("inbound", "tcp", "7003"),
        "add",
        rule("outbound", "udp", "7004"),
    ]);
    let changed = client.get("rules.change", json!({ "changes": changes }));
    assert_fields(&changed, &json!({ "remark": "", "previous": before }));
    assert_eq!(shown(&changed["tables"], 0), ["\"tcp\" 7001 7002"]);
    assert_eq!(shown(&changed["tables"], 1), ["\"udp\" 7004 7004"]);
    assert_eq!(client.get("rules", json!({}))["tables"], changed["tables"]);

    let changed = client.get("rules.change", json!({ "changes": [{ "clear": "HOST" }] }));
    assert_eq!((shown(&changed["tables"], 0).len(), shown(&changed["tables"], 1).len()), (0, 1));
    let unchanged = client.get("rules.change", json!({ "changes": [] }));
    assert_eq!(unchanged["tables"], changed["tables"]);
}

#[test]
fn the_policy_and_what_it_means() {
    let Some(net) = Net::new() else { return };
    start(&net, &["--deny", "host"]);
    let mut client = Client::new(&net);
    client.get("subscribe", json!({ "events": ["policy"] }));
    let policy = client.get("policy", json!({}));
    assert_fields(
        &policy,
        &json!({ "exists": true, "default": "allow", "rules": ["deny host"], "audit": false }),
    );

    let why = |client: &mut Client, address: IpAddr, port: u16| {
        client.get("why", json!({ "address": address, "port": port }))
    };
    let gateway = why(&mut client, GATEWAY[0], 22);
    let expected = json!({
        "verdict": "refused", "rule": "deny host", "translated": LOOPBACK[0], "guest": HOST[0], "source": LOOPBACK[0],
    });
    assert_fields(&gateway, &expected);
    let peer = why(&mut client, PEER[1], 443);
    let expected = json!({
        "verdict": "allowed", "rule": "default allow", "translated": null, "peer_port": 443, "source": HOST[1],
    });
    assert_fields(&peer, &expected);
    let (code, message) = client.fail("why", json!({ "address": "0.0.0.0" }));
    assert!(code == "refused" && !message.is_empty());
    // Nothing was counted as refused.
    assert_eq!(client.get("stats", json!({}))["refusals"], 0);

    let listener = net.peer.listen((PEER[0], 7000));
    let mut out = net.guest.connect((PEER[0], 7000)).unwrap();
    let _far = accept(&listener).0;
    let rules: Vec<String> = (0..600).map(|n| format!("deny 203.0.113.7:{}", n + 1001)).collect();
    let text = format!("{}\nallow www.example.com\ndefault deny\n", rules.join("\n"));
    let remark = client.get("policy.replace", json!({ "text": text }));
    assert_eq!(remark["remark"], "rules: 601, default deny; flows ended: TCP 1, UDP 0, ping 0");
    client.event(&json!({ "event": "policy" }));
    assert!(out.read(&mut [0]).is_err());
    let policy = client.get("policy", json!({ "first": 599 }));
    assert_fields(
        &policy,
        &json!({ "default": "deny", "rules": ["deny 203.0.113.7:1600", "allow www.example.com"] }),
    );
    assert_eq!(client.get("policy", json!({}))["rules"].as_array().unwrap().len(), 601);
    assert_fields(&why(&mut client, PEER[0], 53), &json!({ "verdict": "questions" }));
    assert_eq!(client.get("dns", json!({}))["addresses"], json!([]));
    let (code, message) = client.fail("policy.replace", json!({ "text": "permit all" }));
    assert!(code == "refused" && message.contains("line 1"), "{message}");
}

/// The names that the guest was given, and what they mean for a flow.
#[test]
fn names_of_addresses() {
    const ROWS: &[Row] = &[("index.example.org", wire::dns::Type::A, crate::names::AT_FAR)];
    need!("getent");
    let Some(net) = crate::names::net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    start(&net, &["--allow", "index.example.org"]);
    let mut client = Client::new(&net);
    let why = json!({ "address": FAR[0] });
    assert_fields(&client.get("why", why.clone()), &json!({ "verdict": "refused", "rule": "default deny" }));
    assert_eq!(net.guest.run(&["getent", "ahostsv4", "index.example.org"]).code(), 0);
    let list = client.get("dns", json!({}));
    assert_fields(&list["addresses"][0], &json!({ "address": FAR[0], "flows": 0 }));
    assert_fields(&list["addresses"][0]["names"][0], &json!({ "name": "index.example.org" }));
    let expected = json!({
        "verdict": "checked", "rule": "allow index.example.org", "names": ["index.example.org"],
    });
    assert_fields(&client.get("why", why), &expected);
}

/// Only the flow with the number ends, of each kind.
#[test]
fn a_flow_is_ended_and_no_other() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-T", "7002", "-U", "none"]);
    let mut client = Client::new(&net);
    client.get("subscribe", json!({ "events": ["end"] }));
    let pairs = |at: IpAddr, port: u16, from: &Ns| -> Vec<(TcpStream, TcpStream)> {
        let listener =
            if at == LOOPBACK[0] { net.host.listen((at, port)) } else { net.peer.listen((at, port)) };
        (0..3).map(|_| (from.connect((at, port)).unwrap(), accept(&listener).0)).collect()
    };
    for (at, port) in [(PEER[0], 7000), (LOOPBACK[0], 7002)] {
        let pairs = pairs(at, port, &net.guest);
        let middle = pairs[1].0.local_addr().unwrap().port();
        let flow = client.flow(json!({ "port": middle }));
        assert_eq!(client.get("flow.end", json!({ "flow": flow["flow"] }))["flow"], flow["flow"]);
        assert_fields(&client.event(&json!({ "flow": flow["flow"] })), &json!({ "how": "requested" }));
        for (index, (mut one, mut other)) in pairs.iter().map(|(one, other)| (one, other)).enumerate() {
            if index == 1 {
                assert!(one.read(&mut [0]).is_err() && other.read(&mut [0]).is_err());
            } else {
                exchange(&mut one, &mut other);
            }
        }
        let (code, _) = client.fail("flow.end", json!({ "flow": flow["flow"] }));
        assert_eq!(code, "not-found");
    }
    let server = net.peer.udp((PEER[0], 7000));
    let senders: Vec<_> = [7010, 7011].map(|port| net.guest.udp((HOST[0], port))).into();
    for sender in &senders {
        sender.send_to(b"question", (PEER[0], 7000)).unwrap();
        recv_from(&server);
    }
    let flow = client.flow(json!({ "port": 7010, "protocol": "udp" }));
    client.get("flow.end", json!({ "flow": flow["flow"] }));
    assert_eq!(client.flows(json!({ "port": 7010, "protocol": "udp" })), [json!(null); 0]);
    client.flow(json!({ "port": 7011, "protocol": "udp" }));
    // The next datagram begins a new flow.
    senders[0].send_to(b"again", (PEER[0], 7000)).unwrap();
    assert_eq!(recv_from(&server).0, b"again");
    assert!(client.flow(json!({ "port": 7010, "protocol": "udp" }))["flow"].as_u64() > flow["flow"].as_u64());
}

#[test]
fn the_log_level() {
    let Some(net) = Net::new() else { return };
    let log = net.path("log");
    start(&net, &["--log-file", &log]);
    let mut client = Client::new(&net);
    assert_eq!(client.get("log.level", json!({}))["level"], "info");
    let has_debug = || net.host.sh(&format!("cat {log}")).contains("Flow ");
    let connect = || drop(net.guest.connect((PEER[0], 7000)));
    connect();
    assert!(!has_debug());
    assert_eq!(client.get("log.level", json!({ "level": "debug" }))["level"], "debug");
    connect();
    wait_until("a debug line", has_debug);
    assert_eq!(client.get("log.level", json!({ "level": "quiet" }))["level"], "quiet");
    let (code, _) = client.fail("log.level", json!({ "level": "loud" }));
    assert_eq!(code, "invalid-arguments");
}
