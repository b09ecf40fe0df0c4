//! The commands of `pesto` that use the API socket.

use super::*;
use crate::names::{AT_FAR, AT_FAR6};
use wire::dns::Type;

fn pesto(net: &Net, args: &[&str]) -> Finished {
    net.host.run(&[&[companion("pesto")], args].concat())
}

#[test]
fn flows_metrics_and_why() {
    let Some(net) = Net::new() else { return };
    let path = net.path("s");
    start(&net, &["--deny", "198.51.100.4"]);
    let listener = net.peer.listen((PEER[0], 7000));
    let out = net.guest.connect((PEER[0], 7000)).unwrap();
    let _far = accept(&listener).0;
    let text = pesto(&net, &["flows", &path, "port=7000"]).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("FLOW"), "{text}");
    let ends = format!("{}  ->  {}:7000", out.local_addr().unwrap(), PEER[0]);
    assert!(lines[1].contains(&ends) && lines[1].ends_with("default allow"), "{text}");
    let list: Value = serde_json::from_str(&pesto(&net, &["--json", "flows", &path]).ok()).unwrap();
    assert!(list["flows"].as_array().unwrap().iter().any(|flow| flow["peer_port"] == 7000));

    let metrics = pesto(&net, &["metrics", &path]).ok();
    assert!(samples(&metrics).iter().any(|(name, _)| name.starts_with("passt_flows{")), "{metrics}");
    let why = pesto(&net, &["why", "198.51.100.4:443", &path]).ok();
    assert!(why.contains("refused, by: deny 198.51.100.4\n"), "{why}");
    let why: Value =
        serde_json::from_str(&pesto(&net, &["--json", "why", "udp/198.51.100.3:9", &path]).ok()).unwrap();
    assert_fields(
        &why,
        &json!({ "verdict": "allowed", "protocol": "udp", "peer_port": 9, "source": HOST[0] }),
    );

    let end = pesto(&net, &["flows", &path, "state=open"]);
    assert!(end.code() == 1 && end.stderr.contains("state: one of "), "{end:?}");
    let end = pesto(&net, &["metrics", &net.path("nothing")]);
    assert!(end.code() == 1 && end.stderr.contains("Failed to connect to the API socket"), "{end:?}");
}

/// A name is resolved on the host, and judged as if the guest had been given each address for it.
#[test]
fn why_for_a_name() {
    const ROWS: &[Row] = &[
        ("index.example.org", Type::A, AT_FAR),
        ("index.example.org", Type::AAAA, AT_FAR6),
        ("other.example.org", Type::A, AT_FAR),
        ("xn--bcher-kva.example", Type::A, AT_FAR),
        ("private.example.org", Type::A, &[testkit::message::Data::Bytes(&[10, 0, 0, 1])]),
    ];
    let Some(net) = crate::names::net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    let path = net.path("s");
    let rules = ["index.example.org:443", "bücher.example", "private.example.org"];
    start(&net, &rules.map(|rule| ["--allow", rule]).concat());
    let why = |destination: &str| -> Value {
        serde_json::from_str(&pesto(&net, &["--json", "why", destination, &path]).ok()).unwrap()
    };

    let found = why("Index.example.org.");
    let addresses = found["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 2, "{found}");
    for (route, address) in addresses.iter().zip([FAR[0], FAR[1]]) {
        let peer = addresses.iter().any(|route| route["peer"] == json!(address));
        assert!(peer, "{found}");
        assert_fields(
            route,
            &json!({
                "name": "index.example.org", "verdict": "checked", "rule": "allow index.example.org:443", "names": [],
                "withheld": null,
            }),
        );
    }
    for (destination, expected) in [
        (
            "BÜCHER.example:8080",
            json!({ "verdict": "checked", "rule": "allow bücher.example", "peer_port": 8080 }),
        ),
        ("index.example.org:80", json!({ "verdict": "refused", "rule": "default deny", "withheld": null })),
        ("other.example.org", json!({ "verdict": "refused", "withheld": "default deny" })),
        (
            "private.example.org",
            json!({ "peer": "10.0.0.1", "withheld": "its address 10.0.0.1 is not public, and no rule allows it" }),
        ),
    ] {
        assert_fields(&why(destination)["addresses"][0], &expected);
    }
    // Nothing was learned, and nothing counted.
    let mut client = Client::new(&net);
    assert_eq!(client.get("dns", json!({}))["addresses"], json!([]));
    assert_eq!(client.get("stats", json!({}))["refusals"], 0);
    let (code, message) = client.fail("why", json!({ "address": FAR[0], "name": "a b" }));
    assert!(code == "invalid-arguments" && message.contains("no domain name"), "{message}");

    let text = pesto(&net, &["why", "other.example.org", &path]).ok();
    assert!(text.contains(" for other.example.org\n") && text.contains("would not be given"), "{text}");
    let end = pesto(&net, &["why", "missing.example.org", &path]);
    let named = end.stderr.starts_with("the host finds no address of missing.example.org: ");
    assert!(end.code() == 1 && named, "{end:?}");
}

#[test]
fn the_log_shows_events_as_they_happen() {
    let Some(net) = Net::new() else { return };
    let (path, file) = (net.path("s"), net.path("events"));
    start(&net, &[]);
    let script = format!("exec {} --json log {path} >{file}", companion("pesto"));
    let _log = net.host.start(&["sh", "-c", &script]);
    let sender = net.guest.udp((HOST[0], 0));
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        // The last line may be incomplete.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    // Each datagram begins another flow, until the client is subscribed.
    let mut port = 10_000;
    wait_until("an event", || {
        port += 1;
        sender.send_to(b"x", (PEER[0], port)).unwrap();
        lines().iter().any(|event| event["event"] == "begin" && event["protocol"] == "udp")
    });
}
