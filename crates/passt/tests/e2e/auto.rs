//! Tests of `auto`: a port is forwarded while it is in use in the guest (behaviour §8.4).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};

/// Whether a port is in use in a namespace, according to the kernel's tables. So the test need not send anything.
fn is_in_use(ns: &Ns, protocol: &str, port: u16) -> bool {
    !ns.sh(&format!("ss -Hln --{protocol} 'sport = :{port}'")).trim().is_empty()
}

/// Whether the host listens on a port.
fn host_listens(net: &Net, protocol: &str, port: u16) -> bool {
    is_in_use(&net.host, protocol, port)
}

/// Listening TCP sockets and unconnected UDP sockets, by their inodes.
fn sockets(ns: &Ns) -> String {
    ns.sh("ss -Hlne --tcp --udp | grep -o 'ino:[0-9]*' | sort")
}

fn wait_until_open(net: &Net, protocol: &str, port: u16, open: bool) {
    wait_until(&format!("{protocol} port {port} open: {open}"), || host_listens(net, protocol, port) == open);
}

/// Checks that a connection from the peer arrives at a listener in the guest.
fn assert_arrives(net: &Net, listener: &TcpListener, host: IpAddr, port: u16) {
    let mut client = net.peer.connect((host, port)).unwrap_or_else(|e| panic!("[{host}]:{port}: {e}"));
    let (mut server, _) = accept(listener);
    server.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
}

/// behaviour §8.4: this is the default, for both protocols. Listeners that exist at the start are forwarded from the
/// start. Connections continue when their port is no longer forwarded.
#[test]
fn services_are_followed_as_they_come_and_go() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let early = net.guest.listen((any(HOST[0]), 7000));
    net.pasta(&[]);
    assert_arrives(&net, &early, HOST[0], 7000);

    let listener = net.guest.listen((any(HOST[1]), 7001));
    let server = net.guest.udp((any(HOST[0]), 7002));
    wait_until_open(&net, "tcp", 7001, true);
    wait_until_open(&net, "udp", 7002, true);
    HOST.iter().for_each(|host| assert_arrives(&net, &listener, *host, 7001));
    let client = net.peer.udp((PEER[0], 0));
    client.send_to(b"question", (HOST[0], 7002)).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (HOST[0], 7002).into()));

    let mut client = net.peer.connect((HOST[0], 7001)).unwrap();
    let (mut connected, _) = accept(&listener);
    drop((listener, early));
    wait_until_open(&net, "tcp", 7001, false);
    wait_until_open(&net, "tcp", 7000, false);
    assert!(host_listens(&net, "udp", 7002));
    connected.write_all(b"still here").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
}

/// behaviour §8.4, R-105: a UDP port is open while a TCP listener has the same port.
#[test]
fn udp_ports_follow_tcp_listeners_r105() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "none", "-u", "auto,~7003"]);
    for _ in 0..2 {
        let listeners = [7002, 7003].map(|port| net.guest.listen((any(HOST[0]), port)));
        wait_until_open(&net, "udp", 7002, true);
        assert!(!host_listens(&net, "udp", 7003) && !host_listens(&net, "tcp", 7002));
        drop(listeners);
        wait_until_open(&net, "udp", 7002, false);
    }
}

/// behaviour §2.4.3: a port of a range is open if its target port is in use. Excluded ports are never open.
#[test]
fn auto_respects_ranges_and_exclusions() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "auto,7000-7009:8000-8009,~7005", "-u", "none"]);
    let listeners = [7001, 8005, 8009, 8010].map(|port| net.guest.listen((any(HOST[0]), port)));
    wait_until_open(&net, "tcp", 7009, true);
    assert_arrives(&net, &listeners[2], HOST[0], 7009);
    for port in [7001, 7005, 7010, 8005, 8009, 8010] {
        assert!(!host_listens(&net, "tcp", port), "{port}");
    }
}

/// behaviour §8.4: without sock_diag, the tables in /proc/net show the same ports. They are opened before the program has
/// lost access to files.
#[test]
fn ports_are_found_without_sock_diag() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    if !net.can_lack_features() {
        return;
    }
    net.pasta_lacking("sock-diag", &["-t", "auto", "-u", "none", "-T", "auto", "-U", "none"]);
    let in_guest = net.guest.listen((any(HOST[0]), 7001));
    wait_until_open(&net, "tcp", 7001, true);
    assert_arrives(&net, &in_guest, HOST[0], 7001);
    let on_host = net.host.listen((LOOPBACK[0], 7101));
    wait_until("7101 in the guest", || is_in_use(&net.guest, "tcp", 7101));
    drop((in_guest, on_host));
    wait_until_open(&net, "tcp", 7001, false);
    wait_until("7101 to be closed in the guest", || !is_in_use(&net.guest, "tcp", 7101));
}

/// scans do not reopen sockets. A port that is not available is reported once. When it is free, it is opened.
#[test]
fn a_busy_port_is_reported_once_and_used_when_free_r104() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let busy = net.host.listen((any(HOST[0]), 7000));
    let _guest = [7000, 7001].map(|port| net.guest.listen((any(HOST[0]), port)));
    let pid_file = net.path("pasta.pid");
    let arguments = ["--config-net", "-f", "--pid", &pid_file, "--netns", "/run/netns/guest"];
    let pasta = net.start_pasta(&arguments);
    wait_until_open(&net, "tcp", 7001, true);
    // Later scans close and reopen no socket.
    wait_until_open(&net, "udp", 7001, true);
    let before = sockets(&net.host);
    let other = net.guest.listen((any(HOST[0]), 7002));
    wait_until_open(&net, "udp", 7002, true);
    drop(other);
    wait_until_open(&net, "udp", 7002, false);
    wait_until_open(&net, "tcp", 7002, false);
    assert_eq!(sockets(&net.host), before);
    drop(busy);
    // After any change, pasta tries again.
    let _other = net.guest.listen((any(HOST[0]), 7003));
    wait_until_open(&net, "tcp", 7000, true);
    net.host.sh(&format!("kill $(cat {pid_file})"));
    let end = pasta.wait();
    let failures: Vec<_> =
        end.stderr.lines().filter(|line| line.contains("Listen failed for HOST")).collect();
    let [failure] = failures[..] else { panic!("{end:?}") };
    assert!(failure.contains("TCP port 7000 (auto): ") && failure.ends_with(IN_USE), "{end:?}");
}

/// If the guest sends from a port before a scan finds the port, the flow's socket already has this port on the host.
/// This is not reported as a failure, and datagrams of any sender to the port reach the guest.
#[test]
fn a_service_that_sends_first_is_reachable() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let pid_file = net.path("pasta.pid");
    let arguments = ["--config-net", "-f", "--pid", &pid_file, "--netns", "/run/netns/guest"];
    let pasta = net.start_pasta(&arguments);
    let first = net.guest.udp((any(HOST[0]), 7000));
    wait_until_open(&net, "udp", 7000, true);
    drop(first);
    wait_until_open(&net, "udp", 7000, false);
    // A scan may find a port before the guest sends, so the test tries several ports.
    let peer = net.peer.udp((PEER[0], 9));
    let services: Vec<_> = (7001..7020).map(|port| net.guest.udp((any(HOST[0]), port))).collect();
    for service in &services {
        service.send_to(b"announcement", (PEER[0], 9)).unwrap();
        recv_from(&peer);
    }
    let (_last, stranger) = (net.guest.udp((any(HOST[0]), 7020)), net.peer.udp((PEER_ALIAS[0], 0)));
    wait_until_open(&net, "udp", 7020, true);
    for (service, port) in services.iter().zip(7001..) {
        stranger.send_to(b"question", (HOST[0], port)).unwrap();
        assert_eq!(recv_from(service).0, b"question");
    }
    net.host.sh(&format!("kill $(cat {pid_file})"));
    let end = pasta.wait();
    assert!(!end.stderr.contains("Listen failed"), "{end:?}");
}

/// Listeners start and end a thousand times on both sides, several at once. After that, only the forwarded ports of the
/// remaining listeners are open.
#[test]
fn a_thousand_changes_leave_nothing_behind() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let descriptors = pasta.descriptors();
    let mut open = Vec::new();
    for round in 0..500_u16 {
        if round % 3 == 2 {
            open.clear();
        }
        open.push((
            net.guest.listen((any(HOST[0]), 7000 + round)),
            net.host.listen((any(HOST[0]), 8000 + round)),
        ));
    }
    wait_until_open(&net, "tcp", 7499, true);
    wait_until("the host's last port in the guest", || is_in_use(&net.guest, "tcp", 8499));
    let last = open.pop();
    open.clear();
    // Each side has its own listener, and forwards TCP and UDP to the other side's listener.
    for ns in [&net.host, &net.guest] {
        wait_until("only the last ports to be open", || ns.sh("ss -Hln --tcp --udp | wc -l").trim() == "3");
    }
    assert_arrives(&net, &last.as_ref().unwrap().0, HOST[0], 7499);
    drop(last);
    for ns in [&net.host, &net.guest] {
        wait_until("no port to be open", || ns.sh("ss -Hln --tcp --udp").trim().is_empty());
    }
    wait_until("no descriptor to be left", || pasta.descriptors() == descriptors);
}

/// Q9: `--no-udp` needs no `-u none`.
#[test]
fn a_disabled_protocol_is_not_followed_q9() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--no-udp"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    wait_until_open(&net, "tcp", 7000, true);
    assert_arrives(&net, &listener, HOST[0], 7000);
    assert!(!host_listens(&net, "udp", 7000));
}

/// An idle pasta makes only a few system calls per second, for scans.
#[test]
fn scans_make_few_system_calls() {
    need!("strace");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let _listener = net.guest.listen((any(HOST[0]), 7000));
    wait_until_open(&net, "udp", 7000, true);
    let file = net.path("strace");
    for _ in 0..10 {
        net.host.sh(&format!("timeout 4 strace -f -o {file} -p {} || [ $? = 124 ]", pasta.pid));
        let calls = std::fs::read_to_string(&file).unwrap();
        let known =
            ["epoll_pwait", "epoll_wait", "sendto", "recvfrom", "clock_gettime", "<unfinished", "resumed"];
        let idle = calls
            .lines()
            .all(|line| known.iter().any(|known| line.contains(known)) || line.contains("detached"));
        // A scan makes a send and two receives for each of eight tables, and a wait. There are at most five scans.
        let count = calls.lines().filter(|line| !line.contains("resumed")).count();
        if idle && (10..=5 * 26 + 2).contains(&count) {
            return;
        }
    }
    panic!("never idle: {}", std::fs::read_to_string(&file).unwrap());
}

/// behaviour §8.4, R-104: with `-t auto -T auto`, ports of the host are opened on the guest's loopback, and ports of
/// the guest on the host. pasta's own listeners are not forwarded back, and not closed and reopened.
#[test]
fn forwarded_tcp_ports_are_not_forwarded_back_r104() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let early = net.host.listen((LOOPBACK[0], 7100));
    net.pasta(&["-t", "auto", "-u", "none", "-T", "auto,~7105", "-U", "none"]);
    let reaches = |listener: &TcpListener, port: u16| {
        let mut client = net.guest.connect((LOOPBACK[0], port)).unwrap_or_else(|e| panic!("{port}: {e}"));
        let (mut server, _) = accept(listener);
        server.write_all(b"welcome").unwrap();
        client.read_exact(&mut [0; 7]).unwrap();
    };
    reaches(&early, 7100);
    let listening = |ns: &Ns, port: u16| is_in_use(ns, "tcp", port);
    for round in 0..3 {
        let before = (sockets(&net.host), sockets(&net.guest));
        let on_host = [7101, 7105].map(|port| net.host.listen((any(HOST[0]), port)));
        let in_guest = net.guest.listen((any(HOST[0]), 7102));
        wait_until("7101 in the guest", || listening(&net.guest, 7101));
        wait_until("7102 on the host", || listening(&net.host, 7102));
        reaches(&on_host[0], 7101);
        assert_arrives(&net, &in_guest, HOST[0], 7102);
        assert!(!listening(&net.guest, 7105), "excluded");
        drop((on_host, in_guest));
        wait_until("7101 to be closed in the guest", || !listening(&net.guest, 7101));
        wait_until("7102 to be closed on the host", || !listening(&net.host, 7102));
        assert_eq!((sockets(&net.host), sockets(&net.guest)), before, "round {round}");
    }
    drop(early);
    wait_until("7100 to be closed in the guest", || !listening(&net.guest, 7100));
}

/// Checks that a server answers a datagram to a port of a loopback address.
fn assert_answered(client: &UdpSocket, to: (IpAddr, u16), server: &UdpSocket) {
    client.send_to(b"question", to).unwrap();
    let (question, from) = recv_from(server);
    assert_eq!(question, b"question");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(client), (b"answer".to_vec(), to.into()));
}

/// behaviour §8.4, R-104, R-105: UDP ports that are bound on the host, and the ports of TCP listeners, are opened as
/// UDP ports on the guest's loopback. pasta's listeners and the sockets of its flows do not count as services.
#[test]
fn forwarded_udp_ports_are_not_forwarded_back_r104_r105() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let early = net.host.udp((LOOPBACK[1], 7100));
    net.pasta(&["-t", "none", "-u", "auto", "-T", "none", "-U", "auto,~7105"]);
    assert_answered(&net.guest.udp((LOOPBACK[1], 0)), (LOOPBACK[1], 7100), &early);
    let peer = net.peer.udp((PEER[0], 9));
    for round in 0..3 {
        let before = (sockets(&net.host), sockets(&net.guest));
        let server = net.host.udp((LOOPBACK[0], 7101));
        let excluded = net.host.udp((LOOPBACK[0], 7105));
        let listener = net.host.listen((any(HOST[0]), 7102));
        wait_until("7101 in the guest", || is_in_use(&net.guest, "udp", 7101));
        wait_until("7102 in the guest", || is_in_use(&net.guest, "udp", 7102));
        assert!(!is_in_use(&net.guest, "tcp", 7102) && !is_in_use(&net.guest, "udp", 7105));

        // Sockets of flows hold these ports on the host.
        let (speaker, client) = (net.guest.udp((any(HOST[0]), 7110)), net.guest.udp((LOOPBACK[1], 7111)));
        speaker.send_to(b"announcement", (PEER[0], 9)).unwrap();
        recv_from(&peer);
        assert_answered(&client, (LOOPBACK[1], 7100), &early);
        drop((speaker, client));
        // When a second marker port is open after the first, a complete scan has happened between them.
        for marker in [7120, 7121] {
            let _marker = net.host.udp((any(HOST[0]), marker));
            wait_until("a marker in the guest", || is_in_use(&net.guest, "udp", marker));
            assert!(
                !is_in_use(&net.guest, "udp", 7110) && !is_in_use(&net.guest, "udp", 7111),
                "round {round}"
            );
        }
        drop((server, listener, excluded));
        for port in [7101, 7102, 7120, 7121] {
            wait_until("a port to be closed in the guest", || !is_in_use(&net.guest, "udp", port));
        }
        let ours = |(host, guest): (String, String)| {
            // The flow's socket on the host stays open for some time.
            let stands = net.host.sh("ss -Hlne --udp 'sport = :7110' | grep -o 'ino:[0-9]*' || :");
            (
                host.lines().filter(|line| !stands.contains(*line)).map(str::to_owned).collect::<Vec<_>>(),
                guest,
            )
        };
        let now = (sockets(&net.host), sockets(&net.guest));
        assert_eq!(ours(now), ours(before), "round {round}");
    }
}

/// behaviour §8.4: a port that both sides use is not forwarded.
#[test]
fn all_four_options_are_auto_by_default() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let (tcp, udp) = (net.host.listen((LOOPBACK[0], 7100)), net.host.udp((LOOPBACK[1], 7101)));
    let both = [&net.host, &net.guest].map(|ns| ns.listen((any(HOST[0]), 7102)));
    net.pasta(&[]);
    let mut client = net.guest.connect((LOOPBACK[0], 7100)).unwrap();
    accept(&tcp).0.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    assert_answered(&net.guest.udp((LOOPBACK[1], 0)), (LOOPBACK[1], 7101), &udp);
    let (tcp, udp) = (net.guest.listen((any(HOST[0]), 7103)), net.guest.udp((any(HOST[0]), 7104)));
    wait_until_open(&net, "tcp", 7103, true);
    wait_until_open(&net, "udp", 7104, true);
    assert_arrives(&net, &tcp, HOST[0], 7103);
    assert_answered(&net.peer.udp((PEER[0], 0)), (HOST[0], 7104), &udp);
    for (ns, listener) in [&net.host, &net.guest].into_iter().zip(&both) {
        let _client = ns.connect((LOOPBACK[0], 7102)).unwrap();
        accept(listener);
    }
}

/// behaviour §8.3: the pasta of an ordinary user can't open ports below 1024 on the host, and reports each of them
/// once. In the namespace, it can open them. Other ports are forwarded.
#[test]
fn low_ports_need_privileges_on_the_host_only() {
    need!("ss");
    let Some(net) = Net::with(Options { user: User::Ordinary, ..Options::default() }) else { return };
    let (_target, pid) = crate::start::target(&net, "--user --map-root-user --net");
    let target = pid.to_string();
    let guest = net.host.inner(&["nsenter", "-t", &target, "--user", "--preserve-credentials", "--net"]);
    let (pid_file, host) = (net.path("pasta.pid"), net.host.listen((LOOPBACK[0], 81)));
    let _early = guest.listen((any(HOST[0]), 79));
    let pasta = net.start_pasta(&["--config-net", "-f", "--pid", &pid_file, &target]);
    wait_until("81 in the guest", || is_in_use(&guest, "tcp", 81));
    let _guests = [80, 7000].map(|port| guest.listen((any(HOST[0]), port)));
    wait_until_open(&net, "tcp", 7000, true);
    let mut client = guest.connect((LOOPBACK[0], 81)).unwrap();
    accept(&host).0.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    assert!(!host_listens(&net, "tcp", 80));
    net.host.sh(&format!("kill $(cat {pid_file})"));
    let end = pasta.wait();
    for port in [79, 80] {
        let failure =
            format!("Listen failed for HOST TCP port {port}, UDP port {port} (auto): Permission denied");
        assert_eq!(end.stderr.matches(&failure).count(), 1, "{end:?}");
    }
    assert_eq!(end.stderr.matches("Listen failed").count(), 2, "{end:?}");
}
