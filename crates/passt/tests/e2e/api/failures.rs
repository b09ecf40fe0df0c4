//! Why flows fail: the reason is in the log (`--debug`), in the flow log, in the events of the API socket and in the
//! answer of `why` (docs/troubleshooting.md).

use std::net::{TcpListener, TcpStream};

use rustix::io::Errno;

use super::*;

/// A pasta that logs debug messages, and a client that is subscribed to events.
struct Watched<'a> {
    net: &'a Net,
    client: Client,
    _pasta: Daemon<'a>,
}

impl<'a> Watched<'a> {
    fn start(net: &'a Net, args: &[&str]) -> Self {
        let (log, flows) = (net.path("log"), net.path("flows"));
        let pasta = start(net, &[&["--debug", "--log-file", &log, "--flow-log", &flows], args].concat());
        let mut client = Client::new(net);
        client.get("subscribe", json!({ "events": ["end", "failure", "refusal"] }));
        Self { net, client, _pasta: pasta }
    }

    /// Waits for an event with these fields. The reason in it must begin with `reason`, and must be in both logs, too.
    #[track_caller]
    fn expect(&mut self, fields: &Value, reason: &str) -> Value {
        let event = self.client.event(fields);
        let text = event["reason"].as_str().unwrap_or_else(|| panic!("no reason: {event:#}")).to_owned();
        assert!(text.starts_with(reason), "{event:#}");
        let (log, flows) = (self.net.path("log"), self.net.path("flows"));
        let peer = event["peer"].as_str().unwrap_or_default();
        wait_until(&format!("{peer}: {text}"), || {
            let text_of = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
            text_of(&log).lines().any(|line| line.contains(peer) && line.contains(&format!("failed: {text}")))
                && text_of(&flows).contains(&format!("\"reason\":\"{text}\""))
        });
        event
    }

    /// Checks the last outcome that `why` and `pesto why` report.
    #[track_caller]
    fn expect_last(&mut self, protocol: &str, to: (IpAddr, u16), reason: &str) {
        let (address, port) = to;
        let mut arguments = json!({ "protocol": protocol, "address": address });
        let mut operand = format!("{protocol}/{address}");
        if protocol != "icmp" {
            arguments["port"] = json!(port);
            operand = format!("{protocol}/{}", SocketAddr::from(to));
        }
        let last = self.client.get("why", arguments)["last"].clone();
        assert!(last["reason"].as_str().is_some_and(|text| text.starts_with(reason)), "{operand}: {last}");
        let text = self.net.host.run(&[companion("pesto"), "why", &operand, &self.net.path("s")]).ok();
        let line = text.lines().find(|line| line.trim_start().starts_with("last flow")).unwrap_or_default();
        assert!(line.contains(&format!("ago: {reason}")), "{text}");
    }

    /// The guest tries to reach `to` by each protocol. Each attempt fails with this error for this reason.
    #[track_caller]
    fn all_fail(&mut self, to: IpAddr, errno: Errno, reason: &str) {
        self.net.guest.connect((to, 7000)).unwrap_err();
        let number = errno.raw_os_error();
        self.expect(
            &json!({ "event": "end", "protocol": "tcp", "peer": to, "how": "failed", "errno": number }),
            reason,
        );
        self.expect_last("tcp", (to, 7000), reason);
        self.datagrams_fail(to, errno, reason);
        if has_tool("ping") {
            self.net.guest.run(&["ping", "-n", "-c", "1", "-w", "60", "-W", "60", &to.to_string()]);
            self.expect(
                &json!({ "event": "failure", "protocol": "icmp", "peer": to, "errno": number }),
                reason,
            );
            self.expect_last("icmp", (to, 0), reason);
        }
    }

    /// The same for UDP alone.
    #[track_caller]
    fn datagrams_fail(&mut self, to: IpAddr, errno: Errno, reason: &str) {
        let errno = errno.raw_os_error();
        let guest = if to.is_ipv4() { HOST[0] } else { HOST[1] };
        let sender = self.net.guest.udp((guest, 0));
        sender.send_to(b"x", (to, 7001)).unwrap();
        self.expect(&json!({ "event": "failure", "protocol": "udp", "peer": to, "errno": errno }), reason);
        self.expect_last("udp", (to, 7001), reason);
    }
}

#[test]
fn refused_by_the_peer() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &["-T", "7003", "-U", "7003"]);
    for peer in PEER {
        net.guest.connect((peer, 7000)).unwrap_err();
        let refused =
            json!({ "event": "end", "protocol": "tcp", "peer": peer, "how": "failed", "errno": 111 });
        watched.expect(&refused, "refused by the peer: ");
        watched.expect_last("tcp", (peer, 7000), "refused by the peer: ");
        let sender = net.guest.udp((any(peer), 0));
        sender.send_to(b"x", (peer, 7000)).unwrap();
        watched.expect(
            &json!({ "event": "failure", "protocol": "udp", "peer": peer, "errno": 111 }),
            "refused by the peer: ",
        );
    }

    // Local flows that bypass the link.
    let [loopback, _] = LOOPBACK;
    net.guest.connect((loopback, 7003)).map(|mut client| client.read(&mut [0]).ok()).ok();
    let bypassing = json!({ "event": "end", "bypass": true, "protocol": "tcp", "errno": 111 });
    watched.expect(&bypassing, "refused by the peer: ");
    net.guest.udp((loopback, 0)).send_to(b"x", (loopback, 7003)).unwrap();
    let bypassing = json!({ "event": "failure", "bypass": true, "protocol": "udp", "errno": 111 });
    watched.expect(&bypassing, "refused by the peer: ");

    // A flow that succeeds afterwards is the last one.
    let listener = net.peer.listen((PEER[0], 7000));
    exchange(net.guest.connect((PEER[0], 7000)).unwrap(), accept(&listener).0);
    watched.client.event(&json!({ "event": "end", "peer_port": 7000, "how": "closed" }));
    let why = watched.client.get("why", json!({ "address": PEER[0], "port": 7000 }));
    assert!(why["last"]["ago"].is_f64() && why["last"]["reason"].is_null(), "{why}");
}

#[test]
fn refused_by_the_guest() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &["-t", "7001"]);
    let reset = |client: std::io::Result<TcpStream>| client.map(|mut client| client.read(&mut [0]).ok()).ok();
    reset(net.peer.connect((HOST[0], 7001)));
    watched.expect(
        &json!({ "event": "end", "direction": "inbound", "bypass": null, "how": "reset-by-guest" }),
        "refused by the guest: ",
    );
    reset(net.host.connect((LOOPBACK[0], 7001)));
    watched.expect(
        &json!({ "event": "end", "direction": "inbound", "bypass": true, "errno": 111 }),
        "refused by the guest: ",
    );
}

#[test]
fn no_route() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &[]);
    net.host.sh("ip route del default; ip -6 route del default");
    for far in FAR {
        watched.all_fail(far, Errno::NETUNREACH, "no route: ");
    }
}

#[test]
fn host_unreachable() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &[]);
    net.host.sh("ip route add unreachable 203.0.113.0/24; ip -6 route add unreachable 2001:db8:2::/64");
    for far in FAR {
        watched.all_fail(far, Errno::HOSTUNREACH, "host unreachable: ");
    }
}

/// A route of the host forbids it, then a firewall rule of the host.
#[test]
fn not_permitted_by_the_host() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &[]);
    net.host.sh("ip route add prohibit 203.0.113.0/24; ip -6 route add prohibit 2001:db8:2::/64");
    for far in FAR {
        watched.all_fail(far, Errno::ACCESS, "not permitted: ");
    }
    need!("nft");
    let rules = "nft 'add table inet t'
        nft 'add chain inet t out { type filter hook output priority 0; }'
        nft 'add rule inet t out ip daddr 198.51.100.4 drop'
        nft 'add rule inet t out ip6 daddr 2001:db8:1::4 drop'";
    net.host.sh(rules);
    for alias in PEER_ALIAS {
        // The kernel reports a dropped SYN as a time-out only, and a dropped ping not always.
        watched.datagrams_fail(alias, Errno::PERM, "not permitted: ");
    }
}

/// The host has lost the address from which flows leave (`--outbound`).
#[test]
fn no_source_address() {
    let Some(net) = Net::with(crate::harness::Options { host_setup: ALIASES, ..Default::default() }) else {
        return;
    };
    let [v4, v6] = HOST_ALIAS.map(|alias| alias.to_string());
    let mut watched = Watched::start(&net, &[&PINNED[..], &["-o", &v4, "-o", &v6]].concat());
    net.host.sh(&format!("ip addr del {v4}/32 dev eth0; ip addr del {v6}/128 dev eth0"));
    let reason = "no source: ";
    for peer in PEER {
        net.guest.connect((peer, 7000)).unwrap_err();
        watched.expect(&json!({ "event": "end", "protocol": "tcp", "peer": peer, "how": "failed" }), reason);
        watched.expect_last("tcp", (peer, 7000), reason);
        net.guest.udp((any(peer), 0)).send_to(b"x", (peer, 7001)).unwrap();
        watched.expect(&json!({ "event": "end", "protocol": "udp", "peer": peer, "how": "failed" }), reason);
        watched.expect_last("udp", (peer, 7001), reason);
    }
}

/// Connections of both directions use all files of their budgets.
#[test]
fn descriptor_budgets() {
    let Some(net) = Net::new() else { return };
    let socket = net.path("s");
    let args = ["--api-socket", &socket, "-t", "7001", "-T", "none", "-u", "none", "-U", "none"];
    let (_pasta, _) = crate::limits::limited(&net, 512, &args);
    wait_until("the API socket", || UnixStream::connect(&socket).is_ok());
    let mut client = Client::new(&net);
    client.get("subscribe", json!({ "events": ["end"] }));
    let listeners = [net.peer.listen((PEER[0], 7000)), net.guest.listen((any(HOST[0]), 7001))];
    let mut held: Vec<(TcpStream, TcpStream)> = Vec::new();
    let mut fill = |ns: &Ns, to: (IpAddr, u16), listener: &TcpListener| {
        listener.set_nonblocking(true).unwrap();
        for _ in 0..512 {
            let Ok(mut near) = ns.connect(to) else { return };
            let mut far = None;
            near.set_nonblocking(true).unwrap();
            wait_until("a connection or its end", || {
                far = far.take().or_else(|| listener.accept().ok());
                let ended = near
                    .read(&mut [0])
                    .map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |_| true);
                far.is_some() || ended
            });
            match far {
                Some((far, _)) => held.push((near, far)),
                None => return,
            }
        }
        panic!("no limit");
    };
    fill(&net.guest, (PEER[0], 7000), &listeners[0]);
    let full =
        |direction: &str| json!({ "event": "end", "direction": direction, "how": "failed", "errno": 24 });
    let reason =
        |event: Value| event["reason"].as_str().is_some_and(|text| text.starts_with("descriptor budget: "));
    assert!(reason(client.event(&full("outbound"))));
    fill(&net.peer, (HOST[0], 7001), &listeners[1]);
    assert!(reason(client.event(&full("inbound"))));
}

#[test]
fn refused_by_a_rule() {
    let Some(net) = Net::new() else { return };
    let mut watched = Watched::start(&net, &["--deny", "198.51.100.4"]);
    let to = PEER_ALIAS[0];
    net.guest.connect((to, 7000)).unwrap_err();
    net.guest.udp((HOST[0], 0)).send_to(b"x", (to, 7001)).unwrap();
    for (protocol, port) in [("tcp", 7000), ("udp", 7001)] {
        let refusal = json!({ "event": "refusal", "protocol": protocol, "rule": "deny 198.51.100.4" });
        watched.client.event(&refusal);
        watched.expect_last(protocol, (to, port), "policy: ");
    }
    wait_until("a line in the log", || {
        std::fs::read_to_string(net.path("log")).is_ok_and(|text| text.contains("deny 198.51.100.4"))
    });
}

/// The peer's router is silent: the host's kernel gives the handshake up.
#[test]
fn the_peer_does_not_answer() {
    let setup = "echo 1 >/proc/sys/net/ipv4/tcp_syn_retries\n";
    let Some(net) = Net::with(crate::harness::Options { host_setup: setup, ..Default::default() }) else {
        return;
    };
    // A router that drops without an error.
    net.peer.sh("ip route add blackhole 203.0.113.77/32");
    let mut watched = Watched::start(&net, &[]);
    let to = "203.0.113.77".parse().unwrap();
    let _pending = net.guest.start_connect((to, 7000));
    let failed = json!({ "event": "end", "protocol": "tcp", "how": "failed", "errno": 110 });
    watched.expect(&failed, "time-out: the peer does not answer the handshake");
    watched.expect_last("tcp", (to, 7000), "time-out: ");
}
