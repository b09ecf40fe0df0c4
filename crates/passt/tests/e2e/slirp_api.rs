//! Tests of the API socket of slirp4netns (behaviour §13.1.4).

use crate::harness::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::IpAddr;

/// The reason in an error reply.
fn error(reply: &Value) -> &str {
    reply["error"]["desc"].as_str().unwrap_or_else(|| panic!("no error: {reply}"))
}

/// Connects from the peer to a port of the host, and checks that bytes reach `listener` in the guest and return.
fn assert_forwarded(net: &Net, host: IpAddr, port: u16, listener: &std::net::TcpListener) {
    let mut client = net.peer.connect((host, port)).unwrap_or_else(|e| panic!("{host} {port}: {e}"));
    let (mut server, from) = accept(listener);
    assert!(from.ip().is_ipv4() == host.is_ipv4());
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn slirp_api_forwards_tcp_ports() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&[]);
    assert_eq!(slirp.forwards(), json!([]));
    let listener = net.guest.listen((any(HOST[0]), 80));
    let arguments = json!({"proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80});
    assert_eq!(slirp.forward(arguments.clone()), json!({"return": {"id": 1}}));
    assert_forwarded(&net, HOST[0], 8080, &listener);
    let mut entry = arguments;
    entry["id"] = json!(1);
    assert_eq!(slirp.forwards(), json!([entry]));

    // Without the addresses, the defaults are used. A connection continues when its port is removed.
    assert_eq!(
        slirp.forward(json!({"proto": "tcp", "host_port": 8081, "guest_port": 80}))["return"]["id"],
        2
    );
    let mut client = net.peer.connect((HOST[0], 8081)).unwrap();
    let (mut server, _) = accept(&listener);
    assert_eq!(slirp.unforward(2), json!({"return": {}}));
    assert!(net.peer.connect((HOST[0], 8081)).is_err());
    client.write_all(b"q").unwrap();
    server.read_exact(&mut [0; 1]).unwrap();
    assert_forwarded(&net, HOST[0], 8080, &listener);

    // Connections of the host's own loopback come from the gateway.
    let _client = net.host.connect((LOOPBACK[0], 8080)).unwrap();
    assert_eq!(accept(&listener).1.ip().to_string(), "10.0.2.2");
}

#[test]
fn slirp_api_forwards_udp_ports() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&["--cidr=10.9.0.0/16"]);
    assert_eq!(
        slirp.forward(json!({"proto": "udp", "host_port": 5300, "guest_port": 53})),
        json!({"return": {"id": 1}})
    );
    let server = net.guest.udp((any(HOST[0]), 53));
    let client = net.peer.udp((PEER[0], 0));
    client.send_to(b"question", (HOST[0], 5300)).unwrap();
    let (question, from) = recv_from(&server);
    assert_eq!((question.as_slice(), from.ip()), (&b"question"[..], PEER[0]));
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (HOST[0], 5300).into()));
    assert_eq!(slirp.forwards()[0]["guest_addr"], "10.9.0.100");
    assert_eq!(slirp.unforward(1), json!({"return": {}}));
    assert_eq!(slirp.forwards(), json!([]));
}

#[test]
fn slirp_api_forwards_ipv6_ports() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&["--enable-ipv6"]);
    let listener = net.guest.listen((any(HOST[1]), 80));
    assert_eq!(
        slirp.forward(json!({"proto": "tcp6", "host_port": 8080, "guest_port": 80})),
        json!({"return": {"id": 1}})
    );
    assert_forwarded(&net, HOST[1], 8080, &listener);
    assert_eq!(
        slirp.forward(json!({"proto": "tcp", "host_port": 8080, "guest_port": 80})),
        json!({"return": {"id": 2}})
    );
    assert_forwarded(&net, HOST[0], 8080, &listener);
}

/// A whole range of ports, as a container engine publishes it.
#[test]
fn slirp_api_forwards_many_ports() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&[]);
    for port in 9000..9300 {
        assert!(
            slirp.forward(json!({"proto": "tcp", "host_port": port, "guest_port": port}))["return"]["id"]
                .is_u64()
        );
    }
    assert_eq!(slirp.forwards().as_array().unwrap().len(), 300);
    for port in [9000, 9150, 9299] {
        assert_forwarded(&net, HOST[0], port, &net.guest.listen((any(HOST[0]), port)));
    }
}

#[test]
fn slirp_api_explains_errors() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&[]);
    for (request, reason) in [
        (r#"{"execute": "foo"}"#, "unknown execute"),
        (r#"{"execute": 5}"#, "no execute found"),
        ("foo", "cannot parse JSON"),
        ("", "cannot parse JSON"),
        (r#"{"execute": "list_hostfwd""#, "cannot parse JSON"),
        (r#"{"execute": "add_hostfwd"}"#, "arguments.proto"),
        (r#"{"execute": "add_hostfwd", "arguments": 5}"#, "arguments.proto"),
        (r#"{"execute": "add_hostfwd", "arguments": {"host_port": 1, "guest_port": 2}}"#, "arguments.proto"),
        (r#"{"execute": "remove_hostfwd", "arguments": {"id": 1}}"#, "arguments.id"),
        (
            r#"{"execute": "add_hostfwd", "arguments": {"proto": "tcp6", "host_port": 1, "guest_port": 2}}"#,
            "--enable-ipv6",
        ),
    ] {
        let reply = slirp.ask(request);
        assert!(error(&reply).contains(reason), "{request}: {reply}");
    }
    let reply = slirp.ask(&format!(r#"{{"execute": "list_hostfwd"}}{}"#, " ".repeat(4096 - 27)));
    assert!(error(&reply).contains("too large"), "{reply}");
    // The program still serves, also a port that the host uses.
    let _taken = net.host.listen((any(HOST[0]), 8080));
    let reply = slirp.forward(json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}));
    assert!(error(&reply).contains("8080"), "{reply}");
    let reply = slirp
        .forward(json!({"proto": "tcp", "host_addr": "203.0.113.77", "host_port": 8081, "guest_port": 80}));
    assert!(error(&reply).contains("203.0.113.77"), "{reply}");
    assert_eq!(slirp.forwards(), json!([]));
    assert_eq!(
        slirp.forward(json!({"proto": "tcp", "host_port": 8081, "guest_port": 80})),
        json!({"return": {"id": 1}})
    );
    let reply = slirp.forward(json!({"proto": "tcp", "host_port": 8081, "guest_port": 81}));
    assert!(error(&reply).contains("8081"), "{reply}");
}

/// The list has the form of the C program, and also the form of its manual.
#[test]
fn slirp_api_lists_in_both_known_forms() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&[]);
    slirp.forward(json!({"proto": "udp4", "host_addr": "127.0.0.1", "host_port": 8080, "guest_port": 80}));
    let reply = slirp.ask("{\"execute\": \"list_hostfwd\"}\n");
    let entry = json!({"id": 1, "proto": "udp", "host_addr": "127.0.0.1", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80});
    assert_eq!(reply["entries"], json!([entry]));
    assert_eq!(reply["return"]["entries"], json!([entry]));
}

/// A client that sends nothing, or a part of a request, delays neither others nor the traffic.
#[test]
fn slirp_api_serves_clients_side_by_side() {
    let Some(net) = Net::new() else { return };
    let slirp = net.slirp_with_api(&[]);
    let _silent = slirp.client();
    let mut slow = slirp.client();
    slow.write_all(br#"{"execute": "list_"#).unwrap();
    let _ended = slirp.client().shutdown(std::net::Shutdown::Write);
    assert_eq!(slirp.forwards(), json!([]));
    let listener = net.host.listen((LOOPBACK[0], 7000));
    let _client = net.guest.connect(("10.0.2.2".parse::<IpAddr>().unwrap(), 7000)).unwrap();
    accept(&listener);
    // The client does not close its side. The request is complete with its last byte.
    slow.write_all(br#"hostfwd"}"#).unwrap();
    assert_eq!(reply(slow)["entries"], json!([]));
    // More clients than are served at the same time.
    let silent: Vec<_> = (0..40).map(|_| slirp.client()).collect();
    drop(silent);
    assert_eq!(slirp.forwards(), json!([]));
}

/// An ordinary user can't listen on a port below 1024. Root can, even though the program gives up root's rights.
#[test]
fn slirp_api_forwards_privileged_ports_for_root_only() {
    let Some(net) = Net::with(Options { user: User::PlainRoot, ..Options::default() }) else { return };
    let slirp = net.slirp_with_api(&["--enable-sandbox"]);
    let listener = net.guest.listen((any(HOST[0]), 80));
    assert_eq!(
        slirp.forward(json!({"proto": "tcp", "host_port": 80, "guest_port": 80})),
        json!({"return": {"id": 1}})
    );
    assert_forwarded(&net, HOST[0], 80, &listener);
}

#[test]
fn slirp_api_refuses_privileged_ports_without_the_right() {
    let Some(net) = Net::new() else { return };
    let holder = "unshare --user --map-root-user --net sh -c 'echo $$; exec sleep 1000' >@ & until [ -s @ ]; do sleep 0.02; done; cat @";
    let pid = net.host.sh(&holder.replace('@', &net.path("holder")));
    // The process joins the inner user namespace, which has no rights over the host's ports.
    let slirp = net.slirp_with(&["-c", "-a", &net.path("api"), pid.trim(), "tap0"]);
    let reply = slirp.forward(json!({"proto": "tcp", "host_port": 80, "guest_port": 80}));
    assert!(error(&reply).contains("80") && error(&reply).contains("ermission"), "{reply}");
    assert_eq!(
        slirp.forward(json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}))["return"]["id"],
        1
    );
}

/// behaviour §9.2: a socket without a listener is replaced. Anything else at the path stays.
#[test]
fn slirp_api_socket_replaces_only_a_stale_socket() {
    let Some(net) = Net::new() else { return };
    let path = net.path("api");
    let run = |path: &str| net.run_slirp(&[&["-c", "-a", path], &SLIRP_GUEST[..]].concat());
    std::fs::write(&path, "text").unwrap();
    let end = run(&path);
    assert!(end.code() == 1 && end.stderr.contains("is not a socket"), "{end:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    std::fs::remove_file(&path).unwrap();
    let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let end = run(&path);
    assert!(end.code() == 1 && end.stderr.contains("already in use"), "{end:?}");
    drop(live);
    assert_eq!(net.slirp_with_api(&[]).forwards(), json!([]));
    let end = run(&format!("/tmp/{}", "x".repeat(110)));
    assert!(end.code() == 1 && end.stderr.contains("too long (>= 108)"), "{end:?}");
}
