//! Tests of changes of rules at run time: `--conf-path` and `pesto` (behaviour §8.9).
//!
//! `PASST_REFERENCE` names the directory of the C implementation's programs. Without it, the tests with these programs
//! are skipped. The unit tests have a record of the bytes that these programs send.

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

/// Runs a `pesto` of the host on the control socket `s` of the test.
fn run(net: &Net, program: &str, args: &[&str]) -> Finished {
    net.host.run(&[&[program], args, &[&net.path("s")]].concat())
}

fn pesto(net: &Net, args: &[&str]) -> Finished {
    run(net, companion("pesto"), args)
}

/// The lines that `pesto` has printed, except the first line.
fn rules(finished: Finished) -> Vec<String> {
    finished.ok().lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
}

fn start<'a>(net: &'a Net, args: &[&str]) -> Daemon<'a> {
    net.pasta(&[&["-T", "none", "-U", "none"], args, &["-c", &net.path("s")]].concat())
}

/// Opens a connection from the peer through `port` of the host to a listener in the guest.
fn connection(net: &Net, listener: &TcpListener, port: u16) -> (TcpStream, TcpStream) {
    let client = net.peer.connect((HOST[0], port)).unwrap_or_else(|e| panic!("{port}: {e}"));
    let (server, _) = accept(listener);
    (client, server)
}

fn assert_works((client, server): &mut (TcpStream, TcpStream)) {
    server.write_all(b"welcome").unwrap();
    client.read_exact(&mut [0; 7]).unwrap();
    client.write_all(b"thanks").unwrap();
    server.read_exact(&mut [0; 6]).unwrap();
}

fn assert_refused(net: &Net, port: u16) {
    assert!(net.peer.connect((HOST[0], port)).is_err(), "{port} is open");
}

/// behaviour §8.9: connections and UDP flows that exist before a change continue.
#[test]
fn rules_are_added_changed_and_removed() {
    let Some(net) = Net::new() else { return };
    let _pasta = start(&net, &["-t", "7000", "-u", "7002"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let other = net.guest.listen((any(HOST[0]), 7001));
    let mut early = connection(&net, &listener, 7000);

    assert_eq!(
        rules(pesto(&net, &[])),
        ["  HOST", "    TCP [*]:7000  =>  7000", "    UDP [*]:7002  =>  7002", "  SPLICE"]
    );
    assert_eq!(pesto(&net, &["-A", "-t", "7001"]).ok(), "");
    assert_works(&mut connection(&net, &other, 7001));
    assert_works(&mut early);

    // A change of the target keeps the port open.
    pesto(&net, &["-D", "-t", "7000", "-A", "-t", "7000:7001"]).ok();
    assert_works(&mut connection(&net, &other, 7000));
    assert_works(&mut early);
    pesto(&net, &["-C", "HOST", "-u", "7002"]).ok();
    assert_refused(&net, 7000);
    assert_refused(&net, 7001);
    assert_works(&mut early);

    // The flows of a removed UDP port continue. In the meantime, the port can be added again, even at another address.
    let server = net.guest.udp((any(HOST[0]), 7002));
    let client = net.peer.udp((PEER[0], 0));
    let ask = || {
        client.send_to(b"question", (HOST[0], 7002)).unwrap();
        let (_, from) = recv_from(&server);
        server.send_to(b"answer", from).unwrap();
        assert_eq!(recv_from(&client), (b"answer".to_vec(), (HOST[0], 7002).into()));
    };
    ask();
    pesto(&net, &["-t", "none"]).ok();
    assert_eq!(rules(pesto(&net, &[])), ["  HOST", "  SPLICE"]);
    ask();
    pesto(&net, &["-u", "7002"]).ok();
    ask();
    pesto(&net, &["-u", &format!("{}/7002", HOST[0])]).ok();
    let stranger = net.peer.udp((PEER[0], 0));
    stranger.send_to(b"hello", (HOST[0], 7002)).unwrap();
    assert_eq!(recv_from(&server).0, b"hello");
}

/// Q16: an update that can't be applied completely changes nothing. It reports the reason, and pesto's exit status is
/// 1.
#[test]
fn an_update_applies_completely_or_not_at_all() {
    let Some(net) = Net::new() else { return };
    let _pasta = start(&net, &["-t", "7000", "-u", "none"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let _busy = net.host.listen((HOST[0], 7009));
    let before = rules(pesto(&net, &[]));

    let end = pesto(&net, &["-s", "-t", "7005-7009"]);
    assert_eq!(end.code(), 1, "{end:?}");
    let first = end.stderr.lines().next().unwrap();
    assert!(
        first.starts_with("Listen failed for HOST TCP port */7009: ") && first.ends_with(IN_USE),
        "{end:?}"
    );
    assert!(!end.stdout.contains("Updated"), "{end:?}");
    assert_eq!(rules(pesto(&net, &[])), before);
    assert_refused(&net, 7005);
    assert_works(&mut connection(&net, &listener, 7000));

    // A rule that conflicts with a new one is kept if the update fails.
    let end = pesto(&net, &["-t", "0.0.0.0/7000", "-t", "7009"]);
    assert_eq!(end.code(), 1, "{end:?}");
    assert_eq!(rules(pesto(&net, &[])), before);
    assert_works(&mut connection(&net, &listener, 7000));
    // If the update succeeds, the conflicting rule is replaced.
    pesto(&net, &["-t", "0.0.0.0/7000"]).ok();
    assert_works(&mut connection(&net, &listener, 7000));
    assert!(net.peer.connect((HOST[1], 7000)).is_err());

    // A best-effort rule is applied, and the ports that are not available are reported.
    let end = pesto(&net, &["-t", "~1-6999,~7010-65535"]);
    assert_eq!(end.code(), 0, "{end:?}");
    assert!(end.stderr.starts_with("Listen failed for 1 of 10 HOST TCP ports */7000-7009"), "{end:?}");
}

/// behaviour §8.4: `auto` can be added on both sides, even if no rule was `auto` at the start.
#[test]
fn auto_can_be_added_later() {
    let Some(net) = Net::new() else { return };
    let _pasta = start(&net, &["-t", "none", "-u", "none"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let hosts = net.host.listen((LOOPBACK[0], 7001));
    pesto(&net, &["-t", "auto"]).ok();
    assert_works(&mut connection(&net, &listener, 7000));
    pesto(&net, &["-T", "auto", "-U", "auto"]).ok();
    assert_works(&mut outward(&net, &hosts, 7001));
    assert_works(&mut connection(&net, &listener, 7000));
    pesto(&net, &["-t", "none"]).ok();
    assert_refused(&net, 7000);
    assert_works(&mut outward(&net, &hosts, 7001));
    pesto(&net, &["-C", "SPLICE"]).ok();
    assert!(net.guest.connect((LOOPBACK[0], 7001)).is_err());
}

/// Opens a connection from the guest's loopback to a listener on the host's loopback.
fn outward(net: &Net, listener: &TcpListener, port: u16) -> (TcpStream, TcpStream) {
    let client = net.guest.connect((LOOPBACK[0], port)).unwrap_or_else(|e| panic!("{port}: {e}"));
    let (server, _) = accept(listener);
    (client, server)
}

/// behaviour §8.9: rules of the namespace change like rules of the host. Existing connections continue.
#[test]
fn rules_of_the_namespace_are_added_changed_and_removed() {
    let Some(net) = Net::new() else { return };
    let _pasta = start(&net, &["-t", "7000", "-u", "none", "-T", "7010", "-U", "7012"]);
    let listeners = [7010, 7011].map(|port| net.host.listen((LOOPBACK[0], port)));
    let mut early = outward(&net, &listeners[0], 7010);
    let host = ["  HOST", "    TCP [*]:7000  =>  7000", "  SPLICE"];
    let splice = |lines: &[&'static str]| [&host[..], lines].concat();
    let before = ["    TCP [*]%lo:7010  =>  7010", "    UDP [*]%lo:7012  =>  7012"];
    assert_eq!(rules(pesto(&net, &[])), splice(&before));

    pesto(&net, &["-A", "-T", "7011"]).ok();
    assert_works(&mut outward(&net, &listeners[1], 7011));
    pesto(&net, &["-D", "-T", "7010", "-A", "-T", "7010:7011"]).ok();
    assert_works(&mut outward(&net, &listeners[1], 7010));
    assert_works(&mut early);
    let server = net.host.udp((LOOPBACK[1], 7013));
    let client = net.guest.udp((LOOPBACK[1], 0));
    pesto(&net, &["-U", "7012:7013"]).ok();
    assert_eq!(rules(pesto(&net, &[])), splice(&["    UDP [*]%lo:7012  =>  7013"]));
    client.send_to(b"question", (LOOPBACK[1], 7012)).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client), (b"answer".to_vec(), (LOOPBACK[1], 7012).into()));
    assert!(net.guest.connect((LOOPBACK[0], 7010)).is_err());
    assert_works(&mut early);
}

/// Q16: if a rule of one table can't be applied, neither table changes.
#[test]
fn an_update_applies_to_both_tables_or_neither() {
    let Some(net) = Net::new() else { return };
    let _pasta = start(&net, &["-t", "7000", "-u", "none", "-T", "7010"]);
    let (inside, outside) = (net.guest.listen((any(HOST[0]), 7000)), net.host.listen((LOOPBACK[0], 7010)));
    let _busy = (net.host.listen((any(HOST[0]), 7009)), net.guest.listen((any(HOST[0]), 7019)));
    let before = rules(pesto(&net, &[]));
    let attempts = [
        (["-t", "0.0.0.0/7000,7005", "-T", "7010,7019"], "Listen failed for SPLICE TCP port *%lo/7019: "),
        (["-t", "7005,7009", "-T", "7015"], "Listen failed for HOST TCP port */7009: "),
        (["-C", "HOST", "-T", "7015,7019"], "Listen failed for SPLICE TCP port *%lo/7019: "),
        (["-t", "7005,7009", "-C", "SPLICE"], "Listen failed for HOST TCP port */7009: "),
    ];
    for (change, reason) in attempts {
        let end = pesto(&net, &change);
        assert_eq!(end.code(), 1, "{end:?}");
        let first = end.stderr.lines().next().unwrap();
        assert!(first.starts_with(reason) && first.ends_with(IN_USE), "{end:?}");
        assert_eq!(rules(pesto(&net, &[])), before);
        assert_refused(&net, 7005);
        assert!(net.guest.connect((LOOPBACK[0], 7015)).is_err());
        assert_works(&mut connection(&net, &inside, 7000));
        assert_works(&mut outward(&net, &outside, 7010));
    }
}

/// The clients send nothing, or invalid bytes.
#[test]
fn invalid_clients_do_not_disturb_traffic() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &["-t", "7000", "-u", "none"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    for garbage in [&[0xff; 4096][..], &[1, 0, 0, 0, 255], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = UnixStream::connect(net.path("s")).unwrap();
        // The connection may be reset before all bytes are written.
        drop(client.write_all(garbage));
    }
    let silent = UnixStream::connect(net.path("s")).unwrap();
    assert_works(&mut connection(&net, &listener, 7000));
    drop(silent);
    assert_eq!(rules(pesto(&net, &[])), ["  HOST", "    TCP [*]:7000  =>  7000", "  SPLICE"]);
    assert!(pasta.runs());
}

/// behaviour §9.2: a socket file that no process serves is replaced.
#[test]
fn a_control_socket_in_use_is_not_replaced() {
    let Some(net) = Net::new() else { return };
    let pasta = start(&net, &["-t", "7000", "-u", "none"]);
    let path = net.path("s");
    let second = net.run_pasta(&["-c", &path, "--", "true"]);
    assert_eq!(second.code(), 1);
    assert!(second.stderr.contains(&format!("Socket path {path} already in use")), "{second:?}");
    pasta.terminate();
    let end = pesto(&net, &[]);
    assert_eq!(end.code(), 1);
    assert_eq!(end.stderr, format!("Failed to connect to {path}: Connection refused\n"));
    net.spawn(&["-c", &path], &["true"]).ok();
}

/// behaviour §8.9: passt can neither listen on a virtual machine's loopback nor see its ports in use.
#[test]
fn a_virtual_machine_has_one_table() {
    let Some(net) = Net::new() else { return };
    let (guest, control, pid) = (net.path("guest"), net.path("s"), net.path("passt.pid"));
    let ours = passt_path();
    for passt in [Some(ours), reference("passt")].into_iter().flatten() {
        net.host.run(&[&passt, "-s", &guest, "-c", &control, "-P", &pid, "-t", "7000"]).ok();
        assert_eq!(rules(pesto(&net, &["-A", "-u", "7001"])), [""; 0]);
        assert_eq!(
            rules(pesto(&net, &[])),
            ["  HOST", "    TCP [*]:7000  =>  7000", "    UDP [*]:7001  =>  7001"]
        );
        for (change, reason) in [
            (["-T", "22"], "Can't use -T, no outbound interface\n"),
            (["-t", "auto"], "'auto' port forwarding is only allowed for pasta\n"),
            (["-C", "SPLICE"], "Unsupported pif name SPLICE\n"),
        ] {
            let end = pesto(&net, &change);
            assert_eq!((end.code(), &end.stderr[..]), (1, reason), "{passt}");
        }
        let pid: u32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        net.host.sh(&format!("kill {pid}"));
        wait_until("the end of passt", || !runs(&net.host, pid));
    }
}

/// A program of the C implementation.
pub(crate) fn reference(name: &str) -> Option<String> {
    let Some(folder) = std::env::var_os("PASST_REFERENCE") else {
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let line = format!("SKIPPED: {test}: PASST_REFERENCE names no directory of the C programs\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return None;
    };
    let path = std::path::Path::new(&folder).join(name);
    assert!(path.exists(), "{} does not exist", path.display());
    Some(path.to_str().unwrap().to_owned())
}

/// behaviour §8.9: with our pasta, the C implementation's `pesto` prints the same lines as our `pesto`.
#[test]
fn the_pesto_of_the_c_implementation_works_with_our_pasta() {
    let Some(theirs) = reference("pesto") else { return };
    let Some(net) = Net::new() else { return };
    let _pasta =
        start(&net, &["-t", "7000-7002:8000-8002", "-t", "127.0.0.1%lo/80:10.0.0.1/8080", "-u", "53,auto"]);
    let listener = net.guest.listen((any(HOST[0]), 7003));
    for args in [&[][..], &["-s"], &["-C", "TAP"], &["-t", "22,"], &["-T", "22"], &["-D", "-t", "1"]] {
        let (a, b) = (run(&net, &theirs, args), pesto(&net, args));
        assert_eq!((a.code(), &a.stdout, &a.stderr), (b.code(), &b.stdout, &b.stderr), "{args:?}");
    }
    let shown = run(&net, &theirs, &["-s", "-A", "-t", "7003"]).ok();
    assert_eq!(
        rules(pesto(&net, &[])),
        shown.rsplit("Updated").next().unwrap().lines().skip(1).map(str::trim_end).collect::<Vec<_>>()
    );
    assert_works(&mut connection(&net, &listener, 7003));
    run(&net, &theirs, &["-C", "HOST"]).ok();
    assert_refused(&net, 7003);

    // For the other table, the same change has the same result.
    let hosts = net.host.listen((LOOPBACK[0], 7011));
    for args in [
        &["-s", "-T", "7010:7011"][..],
        &["-s", "-A", "-U", "auto"],
        &["-s", "-D", "-T", "7000"],
        &["-s", "-C", "SPLICE", "-C", "HOST"],
        &["-D", "-T", "1"],
        &["-A", "-T", "7000"],
        &["-T", "127.0.0.1/22"],
        &["-s", "-U", "1-3:11-13", "-T", "none", "-u", "7099"],
    ] {
        let [theirs, ours] = [&theirs[..], companion("pesto")].map(|program| {
            pesto(&net, &["-t", "7000", "-T", "7000"]).ok();
            let end = run(&net, program, args);
            (end.code(), end.stdout, end.stderr, rules(pesto(&net, &[])))
        });
        assert_eq!(theirs, ours, "{args:?}");
    }
    run(&net, &theirs, &["-T", "7010:7011"]).ok();
    assert_works(&mut outward(&net, &hosts, 7010));
    run(&net, &theirs, &["-T", "auto"]).ok();
    assert_works(&mut outward(&net, &hosts, 7011));
}

/// behaviour §8.9: our `pesto` works with the C implementation's pasta.
#[test]
fn our_pesto_works_with_the_pasta_of_the_c_implementation() {
    let Some(theirs) = reference("pasta") else { return };
    let Some(net) = Net::new() else { return };
    let path = net.path("s");
    let command = "--config-net --runas 0 --netns /run/netns/guest -t 7000 -u none -T 22 -U none -c";
    let argv: Vec<&str> = [&theirs[..]].into_iter().chain(command.split(' ')).chain([&path[..]]).collect();
    net.host.run(&argv).ok();
    let listener = net.guest.listen((any(HOST[0]), 7001));
    let splice = ["  SPLICE", "    TCP [*]%lo:22  =>  22"];
    assert_eq!(rules(pesto(&net, &[])), [&["  HOST", "    TCP [*]:7000  =>  7000"], &splice[..]].concat());
    pesto(&net, &["-A", "-t", "7001", "-D", "-t", "7000"]).ok();
    assert_eq!(rules(pesto(&net, &[])), [&["  HOST", "    TCP [*]:7001  =>  7001"], &splice[..]].concat());
    assert_works(&mut connection(&net, &listener, 7001));
    // For the C implementation, one port on two interfaces is a conflict (Q20). It closes the connection without a
    // message.
    let end = pesto(&net, &["-t", "%lo/7001", "-t", "%eth0/7001"]);
    assert_eq!((end.code(), &end.stderr[..]), (1, "The server has refused the update\n"));

    let hosts = net.host.listen((LOOPBACK[0], 7011));
    pesto(&net, &["-A", "-T", "7010:7011", "-U", "auto", "-D", "-T", "22"]).ok();
    assert_works(&mut outward(&net, &hosts, 7010));
    let shown = rules(pesto(&net, &[]));
    assert_eq!(shown[2..4], ["  SPLICE", "    TCP [*]%lo:7010  =>  7011"]);
    assert!(shown[4].starts_with("    UDP [*]%lo:1-") && shown[4].ends_with("(auto-scan)"), "{shown:?}");
    assert_works(&mut connection(&net, &listener, 7001));
    pesto(&net, &["-C", "SPLICE"]).ok();
    assert_eq!(rules(pesto(&net, &[])), ["  HOST", "    TCP [*]:7001  =>  7001", "  SPLICE"]);
    assert!(net.guest.connect((LOOPBACK[0], 7010)).is_err());
}
