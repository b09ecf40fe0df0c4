//! The commands of `pesto` that use the API socket.

use super::*;

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
