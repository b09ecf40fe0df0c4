//! Tests with a real virtual machine: QEMU, with a guest that `.ci/guest` has built in the folder `E2E_GUEST`. The
//! tests are ignored by default, because they need further packages and take a minute. `.ci/run` runs them.

use crate::harness::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::thread;

/// QEMU's options for a link to `passt`, and the options of `passt`.
fn link(mode: &str, path: &str) -> (Vec<String>, &'static [&'static str]) {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    match mode {
        "stream" => (words(format!("-netdev stream,id=s,server=off,addr.type=unix,addr.path={path}")), &[]),
        "vhost-user" => (
            words(format!("-chardev socket,id=c,path={path} -netdev vhost-user,id=s,chardev=c")),
            &["--vhost-user"],
        ),
        other => panic!("unknown mode {other}"),
    }
}

fn assert_machine_works(mode: &str) {
    let guest = std::env::var("E2E_GUEST").expect("E2E_GUEST names no folder: see .ci/run");
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let (netdev, options) = link(mode, &path);
    let _passt = net.passt(&[&["--socket", &path, "-t", "7001:22,7002:23"], options].concat());
    let tcp = net.peer.listen((PEER[0], 7000));
    let tftp = net.peer.udp((PEER[0], 6969));

    let console = net.path("console");
    // No message-signalled interrupts (vectors=0): QEMU 7.2.22, of Debian 12, crashes without KVM when a guest enables
    // those of a vhost-user device.
    let mut qemu = format!(
        "qemu-system-x86_64 -M q35,accel=tcg,memory-backend=mem -m 256 -cpu max -nodefaults -display none \
         -object memory-backend-memfd,id=mem,size=256M,share=on -serial file:{console} \
         -kernel {guest}/kernel -initrd {guest}/initrd -device virtio-net-pci,netdev=s,vectors=0"
    )
    .split_whitespace()
    .map(str::to_owned)
    .collect::<Vec<_>>();
    qemu.extend(["-append".into(), format!("console=ttyS0 quiet panic=-1 net.ifnames=0 peer={}", PEER[0])]);
    qemu.extend(netdev);
    let _qemu = net.host.start(&qemu.iter().map(String::as_str).collect::<Vec<_>>());

    // The machine starts twice: the second time is a restart.
    for round in 1..=2 {
        assert_eq!(receive_text(&tcp), "hello by TCP\n", "round {round}");
        serve_tftp(&net, &tftp, b"hello by UDP\n");
        assert_eq!(receive_text(&tcp), "hello by UDP\n", "round {round}");
        // A connection from the peer waits until the machine's service runs.
        let echo = net.peer.connect((HOST[0], 7001)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&echo, 1, 1 << 20);
                echo.shutdown(Shutdown::Write).unwrap();
            });
            receive_all(&echo, 1, 1 << 20);
        });
        drop(net.peer.connect((HOST[0], 7002)).unwrap());
    }
    let console = std::fs::read_to_string(&console).unwrap();
    assert!(console.contains("198.51.100.2/24 by DHCP, MTU 65520"), "{console}");
}

/// The text that the guest sends over a connection.
fn receive_text(listener: &TcpListener) -> String {
    let (mut stream, from) = accept(listener);
    assert_eq!(from.ip(), HOST[0]);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    stream.flush().unwrap();
    text
}

/// Answers one request for a file (RFC 1350). As usual in TFTP, the answer comes from another port.
fn serve_tftp(net: &Net, server: &std::net::UdpSocket, file: &[u8]) {
    let (request, client) = recv_from(server);
    assert_eq!(request[..2], [0, 1], "a read request");
    let data = net.peer.udp((PEER[0], 0));
    data.send_to(&[&[0, 3, 0, 1], file].concat(), client).unwrap();
    assert_eq!(recv_from(&data), (vec![0, 4, 0, 1], client));
}

#[test]
#[ignore = "needs QEMU and a guest: see .ci/run"]
fn a_qemu_guest_works_by_stream_socket() {
    assert_machine_works("stream");
}

#[test]
#[ignore = "needs QEMU and a guest: see .ci/run"]
fn a_qemu_guest_works_by_vhost_user() {
    assert_machine_works("vhost-user");
}
