//! Tests of log messages and counters while the program runs (behaviour §1.7, §1.10).

use crate::harness::*;
use std::io::{Read, Write};
use std::net::SocketAddr;

/// behaviour §1.7.7: there is a line at the start of each flow, with its endpoints on both sides, and a line at its
/// end.
#[test]
fn debug_logs_the_start_and_end_of_flows() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    let log = net.path("log");
    let pasta = net.pasta(&["--debug", "--log-file", &log, "-t", "7001"]);
    let text = || net.host.sh(&format!("cat {log}"));
    let [host, _] = HOST;
    let [peer, _] = PEER;

    let listener = net.peer.listen((peer, 7000));
    let guest = net.guest.connect((peer, 7000)).unwrap();
    let (server, from) = accept(&listener);
    let line = format!("{} -> {peer}:7000 (host {from} -> {peer}:7000)", guest.local_addr().unwrap());
    wait_until("the line of a connection", || text().contains(&line));
    let flow =
        text().lines().find_map(|l| Some(l.split_once("Flow ")?.1.split_once(&line)?.0.to_owned())).unwrap();
    assert_eq!(flow, "0 (TCP): ");
    drop((guest, server));
    wait_until("the line of its end", || text().contains("Flow 0 (TCP): ended"));

    let listener = net.guest.listen((host, 7001));
    let outside = net.peer.connect((host, 7001)).unwrap();
    let (_inside, _) = accept(&listener);
    let line = format!("{host}:7001 <- {} (host {host}:7001)", outside.local_addr().unwrap());
    wait_until("the line of a forwarded connection", || text().contains(&line));

    let server = net.peer.udp((peer, 7002));
    let client = net.guest.udp((host, 7003));
    client.send_to(b"question", SocketAddr::new(peer, 7002)).unwrap();
    recv_from(&server);
    let line = format!("(UDP): {host}:7003 <-> {peer}:7002 (host {peer}:7002)");
    wait_until("the line of a UDP flow", || text().contains(&line));

    net.guest.sh(&format!("ping -c 1 {peer}"));
    wait_until("the line of a ping", || {
        let text = text();
        text.lines().any(|line| {
            line.contains(&format!("(ping): {host} id ")) && line.ends_with(&format!("-> {peer}"))
        })
    });
    pasta.terminate();
}

/// behaviour §1.7.5: the limit also holds with a line for every frame. R-10: after SIGTERM, the log has the last lines.
#[test]
fn the_log_file_keeps_its_size_limit_r10() {
    const LIMIT: u64 = 40960;
    let Some(net) = Net::new() else { return };
    let log = net.path("log");
    let pasta = net.pasta(&["--trace", "--log-file", &log, "--log-size", &LIMIT.to_string()]);
    let server = net.peer.udp((PEER[0], 7000));
    let client = net.guest.udp((any(PEER[0]), 0));
    let size = || std::fs::metadata(&log).unwrap().len();
    for number in 0..2000_usize {
        client.send_to(&vec![0; number % 1000], (PEER[0], 7000)).unwrap();
        recv_from(&server);
        assert!(size() <= LIMIT, "{}", size());
    }
    // A frame is logged before it is forwarded.
    client.send_to(&[0; 1234], (PEER[0], 7000)).unwrap();
    assert_eq!(recv_from(&server).0.len(), 1234);
    pasta.terminate();
    let text = net.host.sh(&format!("cat {log}"));
    assert!(text.lines().next().unwrap().contains(" - log truncated at "));
    assert!(text.contains(&format!("-> {}:7000 len 1234", PEER[0])), "{text}");
    assert!(text.ends_with('\n') && text.len() as u64 <= LIMIT && text.len() as u64 > LIMIT / 2);
}

/// behaviour §1.10: the program prints a table of counters, with a new line after a change.
/// Lines that a full disk has not taken are counted when it takes lines again.
#[test]
fn lines_that_are_missing_are_counted() {
    let Some(net) = Net::new() else { return };
    let disk = net.path("disk");
    net.host.sh(&format!("mkdir {disk}; mount -t tmpfs -o size=64k tmpfs {disk}; chmod 777 {disk}"));
    let log = format!("{disk}/log");
    let pasta = net.pasta(&["--debug", "--log-file", &log]);
    let text = || net.host.sh(&format!("cat {log}"));
    let listener = net.peer.listen((PEER[0], 7000));
    let flow = || {
        let client = net.guest.connect((PEER[0], 7000)).unwrap();
        drop(accept(&listener));
        client.local_addr().unwrap().to_string()
    };
    net.host.sh(&format!("dd if=/dev/zero of={disk}/other bs=1k count=64 2>/dev/null || true"));
    // The last block of the log has room for some lines.
    let lost: Vec<String> = (0..60).map(|_| flow()).collect();
    net.host.sh(&format!("rm {disk}/other"));
    wait_until("a line after the gap", || {
        flow();
        text().contains(" lines are missing: the file could not be written to")
    });
    let text = text();
    assert!(!text.contains(lost.last().unwrap()), "{text}");
    assert_eq!(text.matches("lines are missing").count(), 1, "{text}");
    pasta.terminate();
}

#[test]
fn stats_prints_counters_of_flows() {
    let Some(net) = Net::new() else { return };
    let pid = net.path("pasta.pid");
    let pasta = net.start_pasta(&[
        "-f",
        "--stats",
        "1",
        "--quiet",
        "--pid",
        &pid,
        "--config-net",
        "--netns",
        "/run/netns/guest",
    ]);
    wait_until("the PID file", || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
    let listener = net.peer.listen((PEER[0], 7000));
    let mut guest = net.guest.connect((PEER[0], 7000)).unwrap();
    let (mut server, _) = accept(&listener);
    guest.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // The last line is at most one interval old, so it eventually shows all of these flows.
    let mut last = Vec::new();
    wait_until("a line with the connection", || {
        let text = pasta.stderr();
        let mut lines = text.lines().skip(1);
        let Some(names) = lines.next() else { return false };
        let Some(counts) = lines.last() else { return false };
        let counts = counts.split_whitespace().map(|count| count.parse::<u64>().unwrap());
        last = names.split_whitespace().map(str::to_owned).zip(counts).collect();
        last.iter().any(|(name, count)| name == "now" && *count == 1)
    });
    let count = |wanted: &str| last.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert!(count("from") >= 3 && count("to") >= 2, "{last:?}");
    assert_eq!((count("opened"), count("refused"), count("reset")), (1, 0, 0), "{last:?}");
    net.host.sh(&format!("kill $(cat {pid})"));
    let end = pasta.wait();
    assert_eq!(end.code(), 0, "{end:?}");
}
