//! Tests at resource limits (behaviour §6.10). New flows are refused and counted, old flows continue without a lost
//! byte, and the program does not end and does not grow.

use crate::harness::*;
use rustix::net::{SendFlags, send as send_frame};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use wire::ethernet::Mac;
use wire::frame::Outgoing;
use wire::tcp::{Flags, Header, Seq};

/// Maximum number of open files of the program.
const LIMIT: usize = 1024;
const ATTEMPTS: usize = 10_000;
/// The allowed growth of memory, in KiB.
const GROWTH_KIB: u64 = 24 * 1024;
/// Number of bytes that an old connection sends in a turn, and receives again.
const TURN: u64 = 20_000;

/// A path through the program: a client, the address that it connects to, and the listener behind it.
pub(crate) struct Route<'a> {
    pub(crate) name: &'static str,
    client: &'a Ns,
    to: SocketAddr,
    pub(crate) listener: TcpListener,
}

/// The routes through the tap device, and those that bypass the link, in both directions.
pub(crate) fn routes(net: &Net) -> Vec<Route<'_>> {
    let route = |name, client, to: (IpAddr, u16), server: &Ns, at: (IpAddr, u16)| Route {
        name,
        client,
        to: to.into(),
        listener: server.listen(at),
    };
    let ([host, _], [peer, _], [loopback, _]) = (HOST, PEER, LOOPBACK);
    vec![
        route("out", &net.guest, (peer, 7000), &net.peer, (peer, 7000)),
        route("in", &net.peer, (host, 7001), &net.guest, (host, 7001)),
        route("bypass, in", &net.host, (loopback, 7002), &net.guest, (any(host), 7002)),
        route("bypass, out", &net.guest, (loopback, 7003), &net.host, (loopback, 7003)),
    ]
}

/// Starts a pasta in the foreground that has a limit of open files and prints its counters. Returns it and its process
/// ID.
pub(crate) fn limited(net: &Net, limit: usize, args: &[&str]) -> (Running, u32) {
    let pid_file = net.path("pasta.pid");
    let all =
        [&["-f", "--stats", "1", "--config-net", "--pid", &pid_file, "--netns", "/run/netns/guest"], args];
    let limit = format!("--nofile={limit}");
    let argv = [vec!["prlimit".to_owned(), limit], net.pasta_argv(&all.concat())].concat();
    let running = net.host.start(&argv.iter().map(String::as_str).collect::<Vec<_>>());
    let pid = || std::fs::read_to_string(&pid_file).ok()?.strip_suffix('\n')?.parse().ok();
    wait_until("the PID file", || pid().is_some());
    (running, pid().unwrap())
}

/// The value of a counter in the last line of the program's counters. Columns with the same name are added.
pub(crate) fn count(pasta: &mut Running, name: &str) -> u64 {
    let text = pasta.stderr();
    let names: Vec<&str> = text.lines().find(|line| line.contains("opened")).unwrap().split("  ").collect();
    let names: Vec<&str> = names.into_iter().map(str::trim).filter(|name| !name.is_empty()).collect();
    let is_counts = |line: &&str| line.split_whitespace().all(|word| word.parse::<u64>().is_ok());
    let counts: Vec<u64> = text
        .lines()
        .rfind(is_counts)
        .unwrap_or_default()
        .split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    names.iter().zip(counts).filter(|(column, _)| **column == name).map(|(_, count)| count).sum()
}

/// Exchanges bytes over an established connection until `over`.
fn old_connection(client: TcpStream, server: TcpStream, seed: u64, over: &AtomicBool, turns: &AtomicUsize) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                send(&client, seed, TURN);
                receive(&client, seed, TURN);
                turns.fetch_add(1, Ordering::Relaxed);
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let (mut from, mut to) = (&server, &server);
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer).unwrap() {
                0 => break,
                len => to.write_all(&buffer[..len]).unwrap(),
            }
        }
    });
}

/// Ends the threads of a test, even if it fails.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Opens a connection to a server that sends a greeting. None if the connection is refused.
pub(crate) fn attempt(route: &Route<'_>) -> Option<TcpStream> {
    let refused = |kind| {
        matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
    };
    let mut client = match route.client.connect(route.to) {
        Ok(client) => client,
        Err(error) if refused(error.kind()) => return None,
        Err(error) => panic!("{}: {error}", route.name),
    };
    match client.read(&mut [0]) {
        Ok(0) => None,
        Ok(_) => Some(client),
        Err(error) if refused(error.kind()) => None,
        Err(error) => panic!("{}: {error}", route.name),
    }
}

/// Accepts and greets connections until `over`.
pub(crate) fn greet(listener: &TcpListener, over: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut guest, _)) => {
                // The connection may have been reset in the meantime.
                let _ = guest.write_all(b"!");
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_micros(200)),
        }
    }
}

/// There are 10000 attempts at a limit of 1024 files. Open connections lose no bytes.
#[test]
fn old_connections_continue_when_new_ones_are_refused() {
    let Some(net) = Net::new() else { return };
    let (mut pasta, pid) =
        limited(&net, LIMIT, &["-t", "7001,7002", "-T", "7003", "-u", "none", "-U", "none"]);
    let routes = routes(&net);
    let before = descriptors(&net.host, pid);
    let (over, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut held, mut refused) = (Vec::new(), [0; 4]);

    std::thread::scope(|scope| {
        let _over = Over(&over);
        for (seed, route) in routes.iter().enumerate() {
            let client = route.client.connect(route.to).unwrap();
            let server = accept(&route.listener).0;
            let (over, turns) = (&over, &turns);
            scope.spawn(move || old_connection(client, server, seed as u64, over, turns));
        }
        for route in &routes {
            scope.spawn(|| greet(&route.listener, &over));
        }
        let memory = memory_kib(&net.host, pid);
        for number in 0..ATTEMPTS {
            let place = number % routes.len();
            match attempt(&routes[place]) {
                Some(client) => held.push(client),
                None => refused[place] += 1,
            }
        }
        let (grown, turned) = (memory_kib(&net.host, pid), turns.load(Ordering::Relaxed));
        let all: u64 = refused.iter().sum();
        wait_until("the count of refusals", || {
            count(&mut pasta, "refused") + count(&mut pasta, "nofile") >= all
        });
        wait_until("a turn after all of it", || turns.load(Ordering::Relaxed) > turned + 8);
        let lines = pasta.stderr().lines().filter(|line| line.contains("is refused")).count() as u64;
        eprintln!(
            "{} held, {refused:?} refused of {ATTEMPTS}; {turned} turns of {TURN} bytes on the old; {memory}, {grown} KiB; {before}, {} descriptors; {lines} lines",
            held.len(),
            descriptors(&net.host, pid)
        );
        assert!(refused.iter().all(|count| *count > ATTEMPTS as u64 / 8), "{refused:?}");
        assert!(held.len() > LIMIT / 4 && turned > 0);
        assert!(grown <= memory + GROWTH_KIB, "from {memory} to {grown} KiB");
        assert!(lines > 0 && lines < all / 2, "{lines} lines for {all} refusals");

        // When descriptors are free, new connections succeed again.
        held.clear();
        for route in &routes {
            wait_until(route.name, || attempt(route).is_some());
        }
    });
    wait_until("descriptors", || descriptors(&net.host, pid) <= before + 2 * 64);
    net.host.sh(&format!("kill {pid}"));
    assert_eq!(pasta.wait().code(), 0);
}

/// Unanswered connections, from the guest and from the peer, use only the budget of TCP. Old connections continue, and
/// new connections succeed after that.
#[test]
fn syn_floods_use_only_the_budget_of_tcp() {
    const LIMIT: usize = 256;
    let host_setup = "echo 1 >/proc/sys/net/ipv4/tcp_syn_retries\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    let (mut pasta, pid) =
        limited(&net, LIMIT, &["-t", "7001,7002", "-u", "none", "-T", "none", "-U", "none"]);
    let before = descriptors(&net.host, pid);
    let (over, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    let frames = net.guest.frames();
    let mac = Mac(net.guest_mac());
    let listeners = [net.peer.listen((PEER[0], 7000)), net.guest.listen((any(HOST[0]), 7002))];
    let olds = [net.guest.connect((PEER[0], 7000)).unwrap(), net.host.connect((LOOPBACK[0], 7002)).unwrap()];

    std::thread::scope(|scope| {
        let _over = Over(&over);
        for ((seed, client), listener) in olds.into_iter().enumerate().zip(&listeners) {
            let server = accept(listener).0;
            let (over, turns) = (&over, &turns);
            scope.spawn(move || old_connection(client, server, seed as u64, over, turns));
        }
        let memory = memory_kib(&net.host, pid);
        for number in 0..20_000_u32 {
            let ports = (1024 + number as u16 % 50_000, 9);
            let header = Header::new(ports, Seq(number), Seq(0), Flags::SYN, 1000, 0);
            let outgoing = Outgoing {
                source_mac: mac,
                destination_mac: Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]),
                source: HOST[0],
                destination: NOBODY[0],
                hop_limit: 64,
                traffic_class: 0,
                flow_label: 0,
            };
            let mut frame = vec![0; sys::packet::VNET_HDR_LEN + 200];
            let (vnet_header, rest) = frame.split_at_mut(sys::packet::VNET_HDR_LEN);
            let written = outgoing.tcp(rest, header, &[], 0, None).unwrap();
            // The checksum is partial.
            vnet_header.copy_from_slice(&written.offload.to_virtio()[..sys::packet::VNET_HDR_LEN]);
            // A frame for which the kernel has no room is lost.
            let _ =
                send_frame(&frames, &frame[..sys::packet::VNET_HDR_LEN + written.len], SendFlags::empty());
        }
        wait_until("refusals", || count(&mut pasta, "refused") > 1000);
        assert!(descriptors(&net.host, pid) <= LIMIT);

        // The guest does not answer the SYNs to it, because it has no route back.
        net.guest.sh("ip route add blackhole 198.51.100.3");
        net.peer.sh("ip route replace 198.51.100.0/24 dev eth0 proto kernel scope link src 198.51.100.3");
        let outside: Vec<_> = (0..2 * LIMIT).map(|_| net.peer.start_connect((HOST[0], 7001))).collect();
        wait_until("refusals of those from outside", || count(&mut pasta, "nofile") > 0);
        let grown = memory_kib(&net.host, pid);
        assert!(grown <= memory + GROWTH_KIB, "from {memory} to {grown} KiB");
        drop(outside);
        net.guest.sh("ip route del blackhole 198.51.100.3");

        let turned = turns.load(Ordering::Relaxed);
        wait_until("turns after all of it", || turns.load(Ordering::Relaxed) > turned + 8);
        wait_until("a new connection", || net.guest.connect((PEER[0], 7000)).is_ok());
    });
    wait_until("descriptors", || descriptors(&net.host, pid) <= before + 64);
    net.host.sh(&format!("kill {pid}"));
    assert_eq!(pasta.wait().code(), 0);
}

/// If accept4 fails because there is no memory, the pending connection is reset and does not hang. Other connections
/// continue.
#[test]
fn a_failed_accept_refuses_the_connection() {
    let Some(net) = Net::new() else { return };
    let rules = BTreeMap::from([(libc::SYS_accept4, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::ENOMEM.cast_unsigned());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    // The filter applies to this thread and its children.
    thread::scope(|scope| {
        let start = || {
            seccompiler::apply_filter(&filter).unwrap();
            net.pasta(&["-t", "7001"]);
        };
        scope.spawn(start).join().unwrap();
    });
    let listener = net.peer.listen((PEER[0], 7000));
    let mut old = net.guest.connect((PEER[0], 7000)).unwrap();
    let (mut server, _) = accept(&listener);
    let _inside = net.guest.listen((HOST[0], 7001));
    for (from, to) in [(&net.peer, HOST[0]), (&net.host, LOOPBACK[0])] {
        for _ in 0..3 {
            // Between the reset and the next listen(2), the kernel itself refuses.
            let mut pending = None;
            wait_until("a pending connection", || {
                pending = from.connect((to, 7001)).ok();
                pending.is_some()
            });
            let end = pending.unwrap().read(&mut [0]);
            assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
        }
    }
    server.write_all(b"alive").unwrap();
    old.read_exact(&mut [0; 5]).unwrap();
}
