//! `pesto policy` (docs/guard.md): it shows, replaces and suggests rules at run time.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use crate::harness::*;

/// Starts pasta with a control socket.
fn start<'a>(net: &'a Net, args: &[&str]) -> Daemon<'a> {
    net.pasta(&[&["-c", &net.path("s")], args].concat())
}

fn pesto(net: &Net, args: &[&str]) -> Finished {
    net.host.run(&[&[companion("pesto"), "policy"], args].concat())
}

/// The rules in force, without the comment in the first line.
fn shown(net: &Net) -> Vec<String> {
    let text = pesto(net, &["show", &net.path("s")]).ok();
    assert!(text.starts_with("# "), "{text}");
    text.lines().skip(1).map(String::from).collect()
}

/// Replaces the rules. Returns what pesto prints.
fn replace(net: &Net, rules: &str) -> String {
    std::fs::write(net.path("rules"), rules).unwrap();
    pesto(net, &["replace", &net.path("rules"), &net.path("s")]).ok()
}

/// A connection of the guest to `to`, where `server` listens at `real`.
fn connection(net: &Net, server: &Ns, to: IpAddr, real: IpAddr, port: u16) -> (TcpStream, TcpStream) {
    let listener: TcpListener = server.listen((real, port));
    let client = net.guest.connect((to, port)).unwrap();
    (client, accept(&listener).0)
}

#[track_caller]
fn assert_works((one, other): &mut (TcpStream, TcpStream)) {
    for (from, to) in [(&*one, &*other), (&*other, &*one)] {
        let (mut from, mut to) = (from, to);
        from.write_all(b"hello").unwrap();
        to.read_exact(&mut [0; 5]).unwrap();
    }
}

#[track_caller]
fn assert_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_rules_in_force_are_shown() {
    let Some(net) = Net::new() else { return };
    let path = net.path("file");
    std::fs::write(&path, "# for a test\nallow 198.51.100.0/24 # all of it\ndefault deny\n").unwrap();
    start(&net, &["--deny", "metadata", "--policy", &path]);
    assert_eq!(shown(&net), ["deny metadata", "allow 198.51.100.0/24", "default deny"]);
    // The output of `show` is valid input of `replace`, also from standard input.
    let script = "p=$1; s=$2; $p policy show $s | $p policy replace - $s";
    let report = net.host.run(&["sh", "-c", script, "sh", companion("pesto"), &net.path("s")]).ok();
    assert_eq!(report, "rules: 2, default deny; flows ended: TCP 0, UDP 0, ping 0\n");
    assert_eq!(shown(&net), ["deny metadata", "allow 198.51.100.0/24", "default deny"]);
    replace(&net, "");
    assert_eq!(shown(&net), ["default allow"]);
}

#[test]
fn a_transfer_in_progress_ends_and_others_continue() {
    need!("curl");
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "7003", "-T", "7004"]);
    assert_eq!(shown(&net), ["default allow"]);
    let listener = net.peer.listen((PEER[0], 7000));
    let body = net.path("body");
    let url = format!("http://{}:7000/", PEER[0]);
    let curl = net.guest.start(&["curl", "-sS", "-o", &body, &url]);
    let (mut server, _) = accept(&listener);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    server.write_all(&[b'x'; 100_000]).unwrap();
    wait_until("the first bytes", || std::fs::metadata(&body).is_ok_and(|body| body.len() > 0));

    let mut other = connection(&net, &net.peer, PEER[1], PEER[1], 7001);
    let mut bypass = connection(&net, &net.host, LOOPBACK[0], LOOPBACK[0], 7004);
    let inside = net.guest.listen((any(HOST[0]), 7003));
    let mut inbound = (net.peer.connect((HOST[0], 7003)).unwrap(), accept(&inside).0);
    let report = replace(&net, "deny 198.51.100.3\ndeny tcp/host:7004\n");
    assert_eq!(report, "rules: 2, default allow; flows ended: TCP 2, UDP 0, ping 0\n");

    let curl = curl.wait();
    // 56 is CURLE_RECV_ERROR.
    assert_eq!(curl.code(), 56, "{curl:?}");
    assert_reset(&mut server);
    assert_reset(&mut bypass.0);
    assert_reset(&mut bypass.1);
    assert_works(&mut other);
    assert_works(&mut inbound);
    let error = net.guest.connect((PEER[0], 7000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_udp_flow_ends_and_the_guest_learns_it_by_its_next_datagram() {
    let Some(net) = Net::new() else { return };
    start(&net, &[]);
    let server = net.peer.udp((PEER[0], 7000));
    let client = net.guest.udp((any(PEER[0]), 0));
    client.connect((PEER[0], 7000)).unwrap();
    client.send(b"question").unwrap();
    let (_, from) = recv_from(&server);
    assert!(replace(&net, "deny 198.51.100.3").ends_with("TCP 0, UDP 1, ping 0\n"));
    server.send_to(b"answer", from).unwrap();
    client.send(b"again").unwrap();
    client.set_nonblocking(true).unwrap();
    let mut error = None;
    wait_until("an error", || {
        error = client.take_error().unwrap();
        error.is_some()
    });
    assert_eq!(error.unwrap().kind(), ErrorKind::HostUnreachable);
    assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// A policy with a fault is refused as a whole. The rules in force stay.
#[test]
fn a_policy_with_a_fault_changes_nothing() {
    let Some(net) = Net::new() else { return };
    start(&net, &["--deny", "203.0.113.0/24"]);
    let mut connection = connection(&net, &net.peer, PEER[0], PEER[0], 7000);
    let path = net.path("rules");
    for (text, expected) in [
        ("deny all\n\n\n\n\n\npermit all\n", "line 7: 'permit' is not known here"),
        (
            "deny all\nallow icmp/192.0.2.1:80\n",
            "line 2: Invalid rule 'icmp/192.0.2.1:80': ICMP has no ports",
        ),
        (
            "deny all\nallow a.example\ndeny udp/198.51.100.3:53\n",
            "can't be honoured together with rules by name",
        ),
        ("deny all\n\u{0}", "line 2"),
    ] {
        std::fs::write(&path, text).unwrap();
        let end = pesto(&net, &["replace", &path, &net.path("s")]);
        assert_eq!(end.code(), 1, "{end:?}");
        assert!(end.stderr.starts_with(&path) && end.stderr.contains(expected), "{end:?}");
        // pesto has checked the file. The server must check it, too.
        let reply = request(&net, &control::policy::encode(&control::policy::Request::Replace(text)));
        let control::reply::Reply::Refused(reason) = reply else { panic!("{reply:?}") };
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(shown(&net), ["deny 203.0.113.0/24", "default allow"]);
    assert_works(&mut connection);
    let missing = pesto(&net, &["replace", "/nonexistent/rules", &net.path("s")]);
    assert_eq!(missing.code(), 1);
    assert_eq!(missing.stderr, "/nonexistent/rules: No such file or directory (os error 2)\n");
}

/// Sends bytes to the control socket, and reads the reply to a request about the policy.
fn request(net: &Net, bytes: &[u8]) -> control::reply::Reply {
    let mut client = UnixStream::connect(net.path("s")).unwrap();
    let mut announcement = Vec::new();
    loop {
        use control::message::{Decoded, decode_announcement};
        match decode_announcement(&announcement).unwrap() {
            Decoded::Whole(_) => break,
            Decoded::Needs(needs) => {
                let have = announcement.len();
                announcement.resize(needs, 0);
                client.read_exact(&mut announcement[have..]).unwrap();
            }
        }
    }
    client.write_all(bytes).unwrap();
    control::policy::read_reply(&client).unwrap()
}

/// Rules by group need the host's addresses. passt watches the addresses from its start, also without such rules, since
/// the sandbox allows no netlink socket later.
#[test]
fn rules_by_group_and_by_name_can_come_later() {
    let Some(net) = Net::new() else { return };
    start(&net, &["-t", "none", "-u", "none"]);
    net.host.sh("ip address add 192.0.2.77/32 dev lo");
    let late: IpAddr = "192.0.2.77".parse().unwrap();
    let mut own = connection(&net, &net.host, late, late, 7000);
    let mut named = connection(&net, &net.peer, PEER[0], PEER[0], 443);
    assert!(replace(&net, "deny host").ends_with("TCP 1, UDP 0, ping 0\n"));
    assert_reset(&mut own.0);
    assert_works(&mut named);
    // The guest has not asked for a name that has this address.
    assert!(replace(&net, "allow files.example").ends_with("TCP 1, UDP 0, ping 0\n"));
    assert_reset(&mut named.0);
    assert_eq!(shown(&net), ["allow files.example", "default deny"]);
}

/// With `--policy-audit`, `pesto policy suggest` makes rules from the log or the flow log. These rules are only audited, too.
#[test]
fn an_audit_becomes_rules() {
    let Some(net) = Net::new() else { return };
    let (log, flows) = (net.path("log"), net.path("flows"));
    start(&net, &["--policy-audit", "--log-file", &log, "--flow-log", &flows]);
    replace(&net, "deny 203.0.113.0/24\nallow 192.0.2.200\n");
    for _ in 0..2 {
        connection(&net, &net.peer, PEER[0], PEER[0], 7000);
    }
    connection(&net, &net.peer, PEER[1], PEER[1], 7001);
    let mut denied = connection(&net, &net.far, FAR[0], FAR[0], 7002);
    let text = pesto(&net, &["suggest", &log]).ok();
    // Lines of the flow log are written after the round in which the guest is answered.
    wait_until("the flow log", || pesto(&net, &["suggest", &flows]).stdout == text);
    assert_eq!(pesto(&net, &["suggest", &flows]).stderr, "");
    let lines: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines[1..],
        [
            "allow tcp/198.51.100.3:7000 # 2",
            "allow tcp/[2001:db8:1::3]:7001 # 1",
            "# No rule is suggested for these:",
            "# 1: tcp/203.0.113.2:7002 (deny 203.0.113.0/24)",
        ]
    );
    let report = replace(&net, &text);
    assert!(report.starts_with("rules: 2, default deny; flows that would end: TCP "), "{report}");
    assert_works(&mut denied);
    assert!(pesto(&net, &["show", &net.path("s")]).ok().starts_with("# --policy-audit: nothing is refused"));
    let missing = pesto(&net, &["suggest", "/nonexistent/log"]);
    assert_eq!((missing.code(), missing.stderr.contains("/nonexistent/log: ")), (1, true));
}

/// The largest policy has 65,536 rules, in a file of 16 MiB.
#[test]
fn the_largest_policy() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &[]);
    let mut connection = connection(&net, &net.peer, PEER[0], PEER[0], 7000);
    let count = 1 << 16;
    let mut rules = String::new();
    for number in 0..count {
        rules += &format!("deny 10.{}.{}.0/24 # {:200}\n", number >> 8, number & 255, "");
    }
    let comment = (16 << 20) - rules.len() - 1;
    rules += &format!("{}\n", "#".repeat(comment));
    let report = replace(&net, &rules);
    assert!(report.starts_with(&format!("rules: {count}, default allow")), "{report}");
    assert_eq!(shown(&net).len(), count + 1);
    assert_works(&mut connection);
    std::fs::write(net.path("rules"), format!("{rules} ")).unwrap();
    let end = pesto(&net, &["replace", &net.path("rules"), &net.path("s")]);
    assert_eq!((end.code(), end.stderr.contains("it has more than 16777216 bytes")), (1, true), "{end:?}");
    replace(&net, "deny 10.0.0.0/8");
    assert_eq!(shown(&net), ["deny 10.0.0.0/8", "default allow"]);
    assert!(pasta.runs());
}

/// Clients send garbage, or close the connection in the middle of a policy.
#[test]
fn invalid_requests_do_not_disturb_traffic() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &["--deny", "203.0.113.0/24"]);
    let mut connection = connection(&net, &net.peer, PEER[0], PEER[0], 7000);
    let head = |verb: u32, len: u32| [&b"\xffpolicy1"[..], &verb.to_be_bytes(), &len.to_be_bytes()].concat();
    for garbage in [&b"\xff"[..], b"\xffpolicy9verblen.", &head(9, 0), &head(2, u32::MAX), &head(2, 16 << 20)]
    {
        let mut client = UnixStream::connect(net.path("s")).unwrap();
        // The server may close the connection before all bytes are written.
        drop(client.write_all(garbage));
        drop(client.write_all(b"deny all"));
    }
    assert_works(&mut connection);
    assert_eq!(shown(&net), ["deny 203.0.113.0/24", "default allow"]);
    assert!(pasta.runs());
}

/// Refusals are reported on the terminal of the command, also if there were no rules at the start.
#[test]
fn refusals_of_later_rules_are_on_the_terminal_of_the_command() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let (socket, go) = (net.path("s"), net.path("go"));
    let script = format!("until [ -e {go} ]; do :; done; ping -n -c 1 -w 60 203.0.113.2");
    let running = net.start_pasta(&["--config-net", "-c", &socket, "--", "sh", "-c", &script]);
    wait_until("the control socket", || pesto(&net, &["show", &socket]).code() == 0);
    replace(&net, "deny 203.0.113.0/24");
    std::fs::write(&go, "").unwrap();
    let end = running.wait();
    assert!(end.stdout.contains("filtered"), "{end:?}");
    let expected = "pasta: warning: refused: ping 198.51.100.2 -> 203.0.113.2 (deny 203.0.113.0/24)";
    assert!(end.stderr.contains(expected), "{end:?}");
}

/// A command sees the socket. The processes of a namespace that pasta connects may not see it.
#[test]
fn a_control_socket_that_the_command_can_reach_is_a_warning() {
    let Some(net) = Net::new() else { return };
    let socket = net.path("s");
    let warning =
        format!("warning: --conf-path: the command sees the socket {socket} and can replace its own rules");
    for rules in [&["--deny", "metadata"][..], &["--allow", "index.example.org"], &[]] {
        let end = net.spawn(&[rules, &["-c", &socket]].concat(), &["sh", "-c", &format!("[ -S {socket} ]")]);
        assert_eq!(end.code(), 0, "{end:?}");
        assert_eq!(end.stderr.contains(&warning), !rules.is_empty(), "{rules:?}: {end:?}");
    }
    let end = net.spawn(&["--deny", "metadata"], &["true"]);
    assert_eq!((end.code(), &*end.stderr), (0, ""));
    let end =
        net.run_pasta(&["--config-net", "--deny", "metadata", "-c", &socket, "--netns", "/run/netns/guest"]);
    assert_eq!((end.code(), end.stderr.contains("--conf-path")), (0, false), "{end:?}");
}

/// pesto does not send the request to a server of the C implementation.
#[test]
fn servers_without_policies_are_told_apart() {
    let Some(theirs) = crate::pesto::reference("pasta") else { return };
    let Some(net) = Net::new() else { return };
    let path = net.path("s");
    let command = "--config-net --runas 0 --netns /run/netns/guest -t 7000 -u none -T none -U none -c";
    let argv: Vec<&str> = [&theirs[..]].into_iter().chain(command.split(' ')).chain([&path[..]]).collect();
    net.host.run(&argv).ok();
    let end = pesto(&net, &["show", &path]);
    let expected = format!("{path}: this server can't show or replace a policy");
    assert_eq!((end.code(), end.stderr.starts_with(&expected)), (1, true), "{end:?}");
    net.host.run(&[companion("pesto"), &path]).ok();
}
