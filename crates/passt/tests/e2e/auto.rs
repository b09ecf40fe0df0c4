//! `auto`: what is in use in the guest is forwarded, for as long as it is (SPEC §8.4).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};

/// Whether the host listens on a port, by its own tables: nothing is sent.
fn listens(net: &Net, protocol: &str, port: u16) -> bool {
    !net.host.sh(&format!("ss -Hln --{protocol} 'sport = :{port}'")).trim().is_empty()
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

/// SPEC §8.4, the default: listeners of both protocols are followed as they come and go, those that were there before
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

/// SPEC §8.4 and R-105: UDP ports follow TCP listeners, and come and go with them.
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

/// SPEC §2.4.3: ranges with `auto` are open where the port that they lead to is in use; excluded and ephemeral ports
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
    // Sockets of ours, with their inodes: none is closed and opened again by the scans that follow.
    let sockets = || net.host.sh("ss -Hlne --tcp --udp | grep -o 'ino:[0-9]*' | sort");
    until(&net, "udp", 7001, true);
    let before = sockets();
    let other = net.guest.listen((any(HOST[0]), 7002));
    until(&net, "udp", 7002, true);
    drop(other);
    until(&net, "udp", 7002, false);
    until(&net, "tcp", 7002, false);
    assert_eq!(sockets(), before);
    drop(busy);
    // Any change is an occasion.
    let _other = net.guest.listen((any(HOST[0]), 7003));
    until(&net, "tcp", 7000, true);
    net.host
        .sh("kill $(pidof -s pasta) 2>/dev/null || kill $(cat /proc/self/task/*/children) 2>/dev/null || :");
    let end = pasta.wait();
    assert_eq!(end.stderr.matches("Address already in use").count(), 1, "{end:?}");
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

/// Listeners come and go a hundred times, several at once, and all that is left is what is left in the guest.
#[test]
fn many_changes() {
    need!("ss");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let descriptors = pasta.descriptors();
    let mut open = Vec::new();
    for round in 0..100_u16 {
        if round % 3 == 2 {
            open.clear();
        }
        open.push(net.guest.listen((any(HOST[0]), 7000 + round)));
    }
    until(&net, "tcp", 7099, true);
    let last = open.pop();
    open.clear();
    wait_until("only the last port to be open", || net.host.sh("ss -Hln --tcp --udp | wc -l").trim() == "2");
    arrives(&net, last.as_ref().unwrap(), HOST[0], 7099);
    drop(last);
    until(&net, "tcp", 7099, false);
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
        // A send and two receipts for each of four tables, and the wait: five times at most.
        let count = calls.lines().filter(|line| !line.contains("resumed")).count();
        if idle && (10..=5 * 14 + 2).contains(&count) {
            return;
        }
    }
    panic!("never idle: {}", std::fs::read_to_string(&file).unwrap());
}

/// SPEC §8.4 and R-104, both ways at once: what the host listens on is found at the guest's loopback and the other way
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
    let sockets = |ns: &Ns| ns.sh("ss -Hlnte | sed 's/.*ino:\\([0-9]*\\).*/\\1/' | sort");
    let listening = |ns: &Ns, port: u16| !ns.sh(&format!("ss -Hlnt 'sport = :{port}'")).trim().is_empty();
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
