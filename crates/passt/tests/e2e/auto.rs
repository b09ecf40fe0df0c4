//! `auto`: what is in use in the guest is forwarded, for as long as it is (behaviour §8.4).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};

/// Whether a port is in use in a namespace, by its own tables: nothing is sent.
fn used(ns: &Ns, protocol: &str, port: u16) -> bool {
    !ns.sh(&format!("ss -Hln --{protocol} 'sport = :{port}'")).trim().is_empty()
}

/// Whether the host listens on a port.
fn listens(net: &Net, protocol: &str, port: u16) -> bool {
    used(&net.host, protocol, port)
}

/// Sockets that wait for peers, by their inodes.
fn sockets(ns: &Ns) -> String {
    ns.sh("ss -Hlne --tcp --udp | grep -o 'ino:[0-9]*' | sort")
}

fn until(net: &Net, protocol: &str, port: u16, open: bool) {
    wait_until(&format!("{protocol} port {port} open: {open}"), || listens(net, protocol, port) == open);
}

/// A connection from the peer arrives at a listener in the guest.
fn arrives(net: &Net, listener: &TcpListener, host: IpAddr, port: u16) {
    let mut client = net.peer.connect((host, port)).unwrap_or_else(|e| panic!("[{host}]:{port}: {e}"));
    let (mut server, _) = accept(listener);
    server.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
}

/// behaviour §8.4, the default: listeners of both protocols are followed as they come and go, those that were there before
/// us from the start. Connections outlive the forwarding of their port.
#[test]
fn services_come_and_go() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let early = net.guest.listen((any(HOST[0]), 7000));
    net.pasta(&[]);
    arrives(&net, &early, HOST[0], 7000);

    let listener = net.guest.listen((any(HOST[1]), 7001));
    let server = net.guest.udp((any(HOST[0]), 7002));
    until(&net, "tcp", 7001, true);
    until(&net, "udp", 7002, true);
    HOST.iter().for_each(|host| arrives(&net, &listener, *host, 7001));
    let client = net.peer.udp((PEER[0], 0));
    client.send_to(b"question", (HOST[0], 7002)).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (HOST[0], 7002).into()));

    let mut client = net.peer.connect((HOST[0], 7001)).unwrap();
    let (mut connected, _) = accept(&listener);
    drop((listener, early));
    until(&net, "tcp", 7001, false);
    until(&net, "tcp", 7000, false);
    assert!(listens(&net, "udp", 7002));
    connected.write_all(b"still here").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
}

/// behaviour §8.4 and R-105: UDP ports follow TCP listeners, and come and go with them.
#[test]
fn udp_follows_tcp_r105() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "none", "-u", "auto,~7003"]);
    for _ in 0..2 {
        let listeners = [7002, 7003].map(|port| net.guest.listen((any(HOST[0]), port)));
        until(&net, "udp", 7002, true);
        assert!(!listens(&net, "udp", 7003) && !listens(&net, "tcp", 7002));
        drop(listeners);
        until(&net, "udp", 7002, false);
    }
}

/// behaviour §2.4.3: ranges with `auto` are open where the port that they lead to is in use; excluded and ephemeral ports
/// never are.
#[test]
fn ranges_and_exclusions() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "auto,7000-7009:8000-8009,~7005", "-u", "none"]);
    let listeners = [7001, 8005, 8009, 8010].map(|port| net.guest.listen((any(HOST[0]), port)));
    until(&net, "tcp", 7009, true);
    arrives(&net, &listeners[2], HOST[0], 7009);
    for port in [7001, 7005, 7010, 8005, 8009, 8010] {
        assert!(!listens(&net, "tcp", port), "{port}");
    }
}

/// nothing flaps, and a port that can't be had is told once. When it is free, it is had.
#[test]
fn busy_ports_r104() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let busy = net.host.listen((any(HOST[0]), 7000));
    let _guest = [7000, 7001].map(|port| net.guest.listen((any(HOST[0]), port)));
    let pid_file = net.path("pasta.pid");
    let arguments = ["--config-net", "-f", "--pid", &pid_file, "--netns", "/run/netns/guest"];
    let pasta = net.start_pasta(&arguments);
    until(&net, "tcp", 7001, true);
    // None is closed and opened again by the scans that follow.
    until(&net, "udp", 7001, true);
    let before = sockets(&net.host);
    let other = net.guest.listen((any(HOST[0]), 7002));
    until(&net, "udp", 7002, true);
    drop(other);
    until(&net, "udp", 7002, false);
    until(&net, "tcp", 7002, false);
    assert_eq!(sockets(&net.host), before);
    drop(busy);
    // Any change is an occasion.
    let _other = net.guest.listen((any(HOST[0]), 7003));
    until(&net, "tcp", 7000, true);
    net.host
        .sh("kill $(pidof -s pasta) 2>/dev/null || kill $(cat /proc/self/task/*/children) 2>/dev/null || :");
    let end = pasta.wait();
    let failure = "Listen failed for HOST TCP port 7000 (auto): Address already in use";
    assert_eq!(end.stderr.matches(failure).count(), 1, "{end:?}");
    assert_eq!(end.stderr.matches("Listen failed for HOST").count(), 1, "{end:?}");
}

/// A guest that sends from its port before that is found: we hold the port for it already. That is no failure worth a
/// word, and whoever writes to the port reaches the guest.
#[test]
fn services_that_speak_first() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let pid_file = net.path("pasta.pid");
    let arguments = ["--config-net", "-f", "--pid", &pid_file, "--netns", "/run/netns/guest"];
    let pasta = net.start_pasta(&arguments);
    let first = net.guest.udp((any(HOST[0]), 7000));
    until(&net, "udp", 7000, true);
    drop(first);
    until(&net, "udp", 7000, false);
    // The listener of a scan may be earlier by chance, so several.
    let peer = net.peer.udp((PEER[0], 9));
    let services: Vec<_> = (7001..7020).map(|port| net.guest.udp((any(HOST[0]), port))).collect();
    for service in &services {
        service.send_to(b"announcement", (PEER[0], 9)).unwrap();
        recv_from(&peer);
    }
    let (_last, stranger) = (net.guest.udp((any(HOST[0]), 7020)), net.peer.udp((PEER_ALIAS[0], 0)));
    until(&net, "udp", 7020, true);
    for (service, port) in services.iter().zip(7001..) {
        stranger.send_to(b"question", (HOST[0], port)).unwrap();
        assert_eq!(recv_from(service).0, b"question");
    }
    net.host.sh(&format!("kill $(cat {pid_file})"));
    let end = pasta.wait();
    assert!(!end.stderr.contains("Listen failed"), "{end:?}");
}

/// Listeners come and go a thousand times on both sides, several at once, and all that is left is what leads to those
/// that are left.
#[test]
fn a_thousand_changes() {
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
    until(&net, "tcp", 7499, true);
    wait_until("the host's last port in the guest", || used(&net.guest, "tcp", 8499));
    let last = open.pop();
    open.clear();
    // Each side's own, and what leads to the other's, with UDP.
    for ns in [&net.host, &net.guest] {
        wait_until("only the last ports to be open", || ns.sh("ss -Hln --tcp --udp | wc -l").trim() == "3");
    }
    arrives(&net, &last.as_ref().unwrap().0, HOST[0], 7499);
    drop(last);
    for ns in [&net.host, &net.guest] {
        wait_until("no port to be open", || ns.sh("ss -Hln --tcp --udp").trim().is_empty());
    }
    wait_until("no descriptor to be left", || pasta.descriptors() == descriptors);
}

/// Q9: a protocol that is switched off is not followed, and needs no `none`.
#[test]
fn protocols_switched_off_q9() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--no-udp"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    until(&net, "tcp", 7000, true);
    arrives(&net, &listener, HOST[0], 7000);
    assert!(!listens(&net, "udp", 7000));
}

/// Looking for ports costs a few system calls a second, and nothing else is done.
#[test]
fn idle_costs_little() {
    need!("strace");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let _listener = net.guest.listen((any(HOST[0]), 7000));
    until(&net, "udp", 7000, true);
    let file = net.path("strace");
    for _ in 0..10 {
        net.host.sh(&format!("timeout 4 strace -f -o {file} -p {} || [ $? = 124 ]", pasta.pid));
        let calls = std::fs::read_to_string(&file).unwrap();
        let known =
            ["epoll_pwait", "epoll_wait", "sendto", "recvfrom", "clock_gettime", "<unfinished", "resumed"];
        let idle = calls
            .lines()
            .all(|line| known.iter().any(|known| line.contains(known)) || line.contains("detached"));
        // A send and two receipts for each of eight tables, and the wait: five times at most.
        let count = calls.lines().filter(|line| !line.contains("resumed")).count();
        if idle && (10..=5 * 26 + 2).contains(&count) {
            return;
        }
    }
    panic!("never idle: {}", std::fs::read_to_string(&file).unwrap());
}

/// behaviour §8.4 and R-104, both ways at once: what the host listens on is found at the guest's loopback and the other way
/// round, and no port that we hold ourselves is carried back, nor closed and opened again.
#[test]
fn both_ways_r104() {
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
    let listening = |ns: &Ns, port: u16| used(ns, "tcp", port);
    for round in 0..3 {
        let before = (sockets(&net.host), sockets(&net.guest));
        let on_host = [7101, 7105].map(|port| net.host.listen((any(HOST[0]), port)));
        let in_guest = net.guest.listen((any(HOST[0]), 7102));
        wait_until("7101 in the guest", || listening(&net.guest, 7101));
        wait_until("7102 on the host", || listening(&net.host, 7102));
        reaches(&on_host[0], 7101);
        arrives(&net, &in_guest, HOST[0], 7102);
        assert!(!listening(&net.guest, 7105), "excluded");
        drop((on_host, in_guest));
        wait_until("7101 to be closed in the guest", || !listening(&net.guest, 7101));
        wait_until("7102 to be closed on the host", || !listening(&net.host, 7102));
        assert_eq!((sockets(&net.host), sockets(&net.guest)), before, "round {round}");
    }
    drop(early);
    wait_until("7100 to be closed in the guest", || !listening(&net.guest, 7100));
}

/// A datagram to a port of a loopback address is answered by a server.
fn answered(client: &UdpSocket, to: (IpAddr, u16), server: &UdpSocket) {
    client.send_to(b"question", to).unwrap();
    let (question, from) = recv_from(server);
    assert_eq!(question, b"question");
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(client), (b"answer".to_vec(), to.into()));
}

/// behaviour §8.4, R-104, R-105, for UDP both ways: what is bound on the host is found at the guest's loopback, and so is UDP
/// at the port of a TCP listener. What we hold ourselves is nobody's service: neither our listeners, nor sockets that
/// stand for the guest's on the host or the other way round.
#[test]
fn udp_both_ways_r104_r105() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let early = net.host.udp((LOOPBACK[1], 7100));
    net.pasta(&["-t", "none", "-u", "auto", "-T", "none", "-U", "auto,~7105"]);
    answered(&net.guest.udp((LOOPBACK[1], 0)), (LOOPBACK[1], 7100), &early);
    let peer = net.peer.udp((PEER[0], 9));
    for round in 0..3 {
        let before = (sockets(&net.host), sockets(&net.guest));
        let server = net.host.udp((LOOPBACK[0], 7101));
        let excluded = net.host.udp((LOOPBACK[0], 7105));
        let listener = net.host.listen((any(HOST[0]), 7102));
        wait_until("7101 in the guest", || used(&net.guest, "udp", 7101));
        wait_until("7102 in the guest", || used(&net.guest, "udp", 7102));
        assert!(!used(&net.guest, "tcp", 7102) && !used(&net.guest, "udp", 7105));

        // On the host, these ports are held by sockets that stand for the guest's.
        let (speaker, client) = (net.guest.udp((any(HOST[0]), 7110)), net.guest.udp((LOOPBACK[1], 7111)));
        speaker.send_to(b"announcement", (PEER[0], 9)).unwrap();
        recv_from(&peer);
        answered(&client, (LOOPBACK[1], 7100), &early);
        drop((speaker, client));
        // Two markers in a row: whatever a scan sees of these ports, the next ones see it, too.
        for marker in [7120, 7121] {
            let _marker = net.host.udp((any(HOST[0]), marker));
            wait_until("a marker in the guest", || used(&net.guest, "udp", marker));
            assert!(!used(&net.guest, "udp", 7110) && !used(&net.guest, "udp", 7111), "round {round}");
        }
        drop((server, listener, excluded));
        for port in [7101, 7102, 7120, 7121] {
            wait_until("a port to be closed in the guest", || !used(&net.guest, "udp", port));
        }
        let ours = |(host, guest): (String, String)| {
            // What stands for the guest on the host lives on for a while.
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

/// behaviour §8.4: by default all four, and what both sides have stays with each.
#[test]
fn by_default_all_four() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let (tcp, udp) = (net.host.listen((LOOPBACK[0], 7100)), net.host.udp((LOOPBACK[1], 7101)));
    let both = [&net.host, &net.guest].map(|ns| ns.listen((any(HOST[0]), 7102)));
    net.pasta(&[]);
    let mut client = net.guest.connect((LOOPBACK[0], 7100)).unwrap();
    accept(&tcp).0.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    answered(&net.guest.udp((LOOPBACK[1], 0)), (LOOPBACK[1], 7101), &udp);
    let (tcp, udp) = (net.guest.listen((any(HOST[0]), 7103)), net.guest.udp((any(HOST[0]), 7104)));
    until(&net, "tcp", 7103, true);
    until(&net, "udp", 7104, true);
    arrives(&net, &tcp, HOST[0], 7103);
    answered(&net.peer.udp((PEER[0], 0)), (HOST[0], 7104), &udp);
    for (ns, listener) in [&net.host, &net.guest].into_iter().zip(&both) {
        let _client = ns.connect((LOOPBACK[0], 7102)).unwrap();
        accept(listener);
    }
}

/// behaviour §8.3: ports that need a privilege are told once where it is lost, on the host, and had where it is kept, in the
/// namespace. Others are forwarded all the same.
#[test]
fn low_ports_of_an_ordinary_user() {
    need!("ss");
    let Some(net) = Net::with(Options { who: Who::OrdinaryUser, ..Options::default() }) else { return };
    let (_target, pid) = crate::start::target(&net, "--user --map-root-user --net");
    let target = pid.to_string();
    let guest = net.host.inner(&["nsenter", "-t", &target, "--user", "--preserve-credentials", "--net"]);
    let (pid_file, host) = (net.path("pasta.pid"), net.host.listen((LOOPBACK[0], 81)));
    let _early = guest.listen((any(HOST[0]), 79));
    let pasta = net.start_pasta(&["--config-net", "-f", "--pid", &pid_file, &target]);
    wait_until("81 in the guest", || used(&guest, "tcp", 81));
    let _guests = [80, 7000].map(|port| guest.listen((any(HOST[0]), port)));
    until(&net, "tcp", 7000, true);
    let mut client = guest.connect((LOOPBACK[0], 81)).unwrap();
    accept(&host).0.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    assert!(!listens(&net, "tcp", 80));
    net.host.sh(&format!("kill $(cat {pid_file})"));
    let end = pasta.wait();
    for port in [79, 80] {
        let failure =
            format!("Listen failed for HOST TCP port {port}, UDP port {port} (auto): Permission denied");
        assert_eq!(end.stderr.matches(&failure).count(), 1, "{end:?}");
    }
    assert_eq!(end.stderr.matches("Listen failed").count(), 2, "{end:?}");
}
