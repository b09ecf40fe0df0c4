//! Tests of `passt` at a UNIX stream socket (behaviour §9.2, §9.3), with a virtual machine and with other clients.

use crate::harness::*;
use crate::limits::count;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const LEN: u64 = 64 << 20;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Starts `passt`, and connects to it.
fn start<'a>(net: &'a Net, args: &[&str]) -> (Daemon<'a>, UnixStream) {
    let path = net.path("guest.socket");
    let passt = net.passt(&[&["--socket", &path], args].concat());
    (passt, connect(net))
}

fn connect(net: &Net) -> UnixStream {
    let socket = UnixStream::connect(net.path("guest.socket")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Ends the connection at once, even if a process that another test starts has a copy of the descriptor.
fn disconnect(socket: UnixStream) {
    socket.shutdown(Shutdown::Both).unwrap();
    drop(socket);
}

fn exchange(client: &mut TcpStream, server: &mut TcpStream) {
    let mut buf = [0; 8];
    client.write_all(b"question").unwrap();
    server.read_exact(&mut buf).unwrap();
    server.write_all(b"answer..").unwrap();
    client.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"answer..");
}

/// Opens connections in both directions. Returns the guest's end and the other end of each.
fn connections(net: &Net) -> Vec<(TcpStream, TcpStream)> {
    let mut all = Vec::new();
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let listener = net.peer.listen((peer, 7000));
        let guest = net.guest.connect((peer, 7000)).unwrap();
        let (outside, from) = accept(&listener);
        assert_eq!(from.ip(), host);
        all.push((guest, outside));
        let listener = net.guest.listen((any(host), 7001));
        let outside = net.peer.connect((host, 7001)).unwrap();
        all.push((accept(&listener).0, outside));
    }
    all
}

/// Checks TCP in both directions and families, byte by byte, UDP with several lengths, and ping.
fn assert_traffic_arrives(mtu: u32) {
    let Some(net) = Net::with_mtu(mtu) else { return };
    let (_passt, socket) = start(&net, &["--mtu", &mtu.to_string(), "-t", "7001"]);
    let _machine = net.machine(mtu).plug(socket);
    for (mut guest, mut outside) in connections(&net) {
        exchange(&mut guest, &mut outside);
        for (from, to) in [(&guest, &outside), (&outside, &guest)] {
            thread::scope(|scope| {
                scope.spawn(|| {
                    send(from, 1, LEN);
                    from.shutdown(Shutdown::Write).unwrap();
                });
                receive_all(to, 1, LEN);
            });
        }
    }
    for peer in PEER {
        let server = net.peer.udp((peer, 7002));
        let client = net.guest.udp((any(peer), 0));
        for len in [0, 1, 17, 1000, mtu as usize - 48] {
            let data = payload(len as u64, len);
            client.send_to(&data, (peer, 7002)).unwrap();
            let (got, from) = recv_from(&server);
            assert!(got == data, "{len} bytes");
            server.send_to(&data, from).unwrap();
            assert!(recv_from(&client).0 == data, "{len} bytes back");
        }
        if has_tool("ping") {
            net.guest.run(&["ping", "-c", "1", "-W", "30", &peer.to_string()]).ok();
        }
    }
}

#[test]
fn traffic_arrives_mtu_65520_r54() {
    assert_traffic_arrives(65520);
}

#[test]
fn traffic_arrives_mtu_1500() {
    assert_traffic_arrives(1500);
}

/// There are several connections at once. So one read returns frames of several connections, and the socket is often
/// full.
#[test]
fn full_duplex_transfers_are_complete() {
    let Some(net) = Net::new() else { return };
    let (_passt, socket) = start(&net, &["--mtu", "1500", "-t", "7001"]);
    let _machine = net.machine(1500).plug(socket);
    let all = connections(&net);
    thread::scope(|scope| {
        for (guest, outside) in &all {
            for (seed, from, to) in [(1, guest, outside), (2, outside, guest)] {
                scope.spawn(move || {
                    send(from, seed, LEN / 4);
                    from.shutdown(Shutdown::Write).unwrap();
                });
                scope.spawn(move || receive_all(to, seed, LEN / 4));
            }
        }
    });
}

/// behaviour §9.2: data that is sent while the guest is disconnected arrives after the guest has reconnected.
#[test]
fn connections_survive_a_reconnect_r55() {
    let Some(net) = Net::new() else { return };
    let (passt, socket) = start(&net, &["-t", "7001"]);
    let mut machine = net.machine(65520).plug(socket);
    let mut all = connections(&net);
    for _ in 0..3 {
        all.iter_mut().for_each(|(guest, outside)| exchange(guest, outside));
        let unplugged = machine.unplug();
        for (guest, outside) in &mut all {
            guest.write_all(b"up").unwrap();
            outside.write_all(b"down").unwrap();
        }
        machine = unplugged.plug(connect(&net));
        for (guest, outside) in &mut all {
            let (mut up, mut down) = ([0; 2], [0; 4]);
            outside.read_exact(&mut up).unwrap();
            guest.read_exact(&mut down).unwrap();
            assert_eq!((&up, &down), (b"up", b"down"));
        }
    }
    assert!(passt.runs());
}

/// behaviour §8.8: an orchestrator may probe whether the guest runs by a connection to a port. While no guest runs, the
/// connection is refused, but passt keeps the port bound.
#[test]
fn connections_are_refused_until_the_guest_has_sent_a_frame() {
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--socket", &path, "-t", "7001"]);
    let refused = |when: &str| {
        for host in HOST {
            let error = net.peer.connect((host, 7001)).map(drop).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{when}");
        }
    };
    let taken = || {
        let bind = "import socket; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('0.0.0.0', 7001))";
        !net.host.run(&["python3", "-c", bind]).status.success()
    };
    for _ in 0..2 {
        refused("before a client");
        assert!(!has_tool("python3") || taken());
        let mut socket = connect(&net);
        refused("before a frame");
        socket.write_all(&question()).unwrap();
        expect_answers(&mut socket, 1);
        drop(net.peer.connect((HOST[0], 7001)).unwrap());
        drop(socket);
        wait_until("the end of the client", || net.peer.connect((HOST[0], 7001)).is_err());
    }
}

// The following tests use clients that are not virtual machines.

/// An ARP request for the gateway, with its length field.
fn question() -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(MAC),
        source_protocol_addr: Ipv4Addr::new(198, 51, 100, 2),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: Ipv4Addr::new(198, 51, 100, 1),
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(MAC),
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; 4 + ethernet.buffer_len() + arp.buffer_len()];
    let len = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut bytes[4..]));
    arp.emit(&mut ArpPacket::new_unchecked(&mut bytes[4 + ethernet.buffer_len()..]));
    bytes
}

fn is_answer(frame: &[u8]) -> bool {
    EthernetFrame::new_checked(frame).is_ok_and(|ethernet| {
        ethernet.ethertype() == EthernetProtocol::Arp
            && ArpPacket::new_checked(ethernet.payload())
                .is_ok_and(|arp| arp.operation() == ArpOperation::Reply)
    })
}

/// Reads frames until `count` replies to [`question`] have arrived.
fn expect_answers(socket: &mut UnixStream, count: usize) {
    let (mut stream, mut chunk, mut answers) = (Vec::new(), vec![0; 70_000], 0);
    while answers < count {
        let len = socket.read(&mut chunk).unwrap_or_else(|e| panic!("{answers} of {count} answers: {e}"));
        assert!(len > 0, "closed after {answers} of {count} answers");
        stream.extend_from_slice(&chunk[..len]);
        let mut at = 0;
        while let Some(frame) = next_frame(&stream[at..]) {
            assert!(frame.len() >= 60, "a short frame: {frame:?}");
            at += 4 + frame.len();
            answers += usize::from(is_answer(frame));
        }
        stream.drain(..at);
    }
    assert_eq!((answers, stream.len()), (count, 0));
}

fn expect_closed(socket: &mut UnixStream) {
    // The kernel resets a connection that is closed with unread data.
    let end = socket.read_to_end(&mut Vec::new());
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

/// many frames may also arrive at once.
#[test]
fn frames_can_arrive_in_pieces_of_any_length_r51() {
    let Some(net) = Net::new() else { return };
    let (_passt, mut socket) = start(&net, &[]);
    let question = question();
    for cut in 1..question.len() {
        let (first, second) = question.split_at(cut);
        socket.write_all(first).unwrap();
        thread::sleep(Duration::from_millis(2)); // probably two reads: the result must be the same
        socket.write_all(second).unwrap();
        expect_answers(&mut socket, 1);
    }
    for byte in &question {
        socket.write_all(std::slice::from_ref(byte)).unwrap();
    }
    expect_answers(&mut socket, 1);
    // Lengths up to 65535 are valid for any content of the frame.
    let mut many = question.repeat(500);
    for len in [14_u32, 60, 65535] {
        many.extend_from_slice(&len.to_be_bytes());
        many.resize(many.len() + len as usize, 0xee);
        many.extend_from_slice(&question);
    }
    let mut reader = socket.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| expect_answers(&mut reader, 503));
        socket.write_all(&many).unwrap();
    });
}

/// behaviour §9.2.4: a frame shorter than an Ethernet header is dropped and counted. The stream and the connection
/// continue.
#[test]
fn a_short_frame_is_dropped_and_counted() {
    let Some(net) = Net::new() else { return };
    let (path, pid) = (net.path("guest.socket"), net.path("passt.pid"));
    let program = passt_path();
    let mut passt = net.host.start(&[&program, "-f", "--stats", "1", "--pid", &pid, "--socket", &path]);
    wait_until("the PID file", || std::fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
    let mut socket = connect(&net);
    for len in 0..14_u32 {
        let short = [&len.to_be_bytes()[..], &vec![0xee; len as usize]].concat();
        socket.write_all(&[short, question()].concat()).unwrap();
        expect_answers(&mut socket, 1);
    }
    // Many such frames may also arrive at once.
    socket.write_all(&[vec![0; 4 * 10_000], question()].concat()).unwrap();
    expect_answers(&mut socket, 1);
    let mut counted = 0;
    wait_until("the counts", || {
        counted = count(&mut passt, "useless");
        counted >= 10_014
    });
    assert_eq!(counted, 10_014);
}

/// R-52, behaviour §9.2.4: a length above the limit only ends the connection. Frames before it are processed.
#[test]
fn an_invalid_length_ends_the_connection_r52() {
    let Some(net) = Net::new() else { return };
    let (passt, socket) = start(&net, &[]);
    disconnect(socket);
    for len in [65536_u32, 70_000, 1 << 24, u32::MAX] {
        let mut socket = connect(&net);
        socket.write_all(&question()).unwrap();
        expect_answers(&mut socket, 1);
        socket.write_all(&[&len.to_be_bytes()[..], &[0; 100]].concat()).unwrap();
        expect_closed(&mut socket);
        assert!(passt.runs(), "after length {len}");
    }
    let mut socket = connect(&net);
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
}

/// A client disconnects within a frame, or within its length.
#[test]
fn the_next_client_is_not_affected_by_a_partial_frame() {
    let Some(net) = Net::new() else { return };
    let (_passt, mut socket) = start(&net, &[]);
    for cut in [1, 3, 4, 5, 30] {
        socket.write_all(&question()[..cut]).unwrap();
        disconnect(socket);
        socket = connect(&net);
        socket.write_all(&question()).unwrap();
        expect_answers(&mut socket, 1);
    }
    // A client that disconnects with much unread data does not affect the next client either.
    let mut reader = socket.try_clone().unwrap();
    socket.write_all(&question().repeat(2000)).unwrap();
    reader.read_exact(&mut [0; 10]).unwrap();
    drop(reader);
    disconnect(socket);
    let mut socket = connect(&net);
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
}

/// behaviour §9.2: passt serves one client at a time. It closes the connection of a second client.
#[test]
fn a_second_client_is_refused() {
    let Some(net) = Net::new() else { return };
    let (_passt, mut first) = start(&net, &[]);
    first.write_all(&question()).unwrap();
    expect_answers(&mut first, 1);
    for _ in 0..3 {
        expect_closed(&mut connect(&net));
    }
    first.write_all(&question()).unwrap();
    expect_answers(&mut first, 1);
}

/// While a client does not read, frames that do not fit are dropped whole, and passt continues to read.
#[test]
fn a_slow_reader_gets_whole_frames() {
    let Some(net) = Net::new() else { return };
    let (passt, mut socket) = start(&net, &["-u", "7003"]);
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
    let flood = net.peer.udp((PEER[0], 0));
    let before = passt.memory_kib();
    for len in (0..4000).map(|n| n * 7919 % 60_000) {
        flood.send_to(&payload(1, len), (HOST[0], 7003)).unwrap();
        socket.write_all(&question()).unwrap(); // does not block: passt reads, although the test does not
    }
    assert!(passt.memory_kib() < before + 16 * 1024, "{before} KiB before");
    // The test reads all bytes that were sent. Each frame starts where the last one ended.
    let mut reader = socket.try_clone().unwrap();
    reader.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let (mut stream, mut chunk) = (Vec::new(), vec![0; 1 << 20]);
    while let Ok(len @ 1..) = reader.read(&mut chunk) {
        stream.extend_from_slice(&chunk[..len]);
        let mut at = 0;
        while let Some(frame) = next_frame(&stream[at..]) {
            let destination = [&MAC[..], &[0xff; 6]].contains(&&frame[..6]);
            assert!(destination && [8, 0x86].contains(&frame[12]), "out of step: {:?}", &frame[..14]);
            at += 4 + frame.len();
        }
        stream.drain(..at);
    }
    assert!(stream.is_empty(), "{stream:?}");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
}

/// behaviour §9.2: a socket file that no process serves is replaced.
#[test]
fn a_socket_in_use_is_not_replaced() {
    let Some(net) = Net::new() else { return };
    let (passt, _socket) = start(&net, &[]);
    let path = net.path("guest.socket");
    let second = net.host.run(&[&passt_path(), "-f", "--socket", &path]);
    assert_eq!(second.code(), 1);
    assert!(second.stderr.contains(&format!("Socket path {path} already in use")), "{}", second.stderr);
    passt.terminate();
    assert!(std::path::Path::new(&path).exists(), "behaviour §1.3.7");
    let (_passt, mut socket) = start(&net, &[]);
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
}

/// Inbound connections must leave a descriptor for the guest.
#[test]
fn a_guest_can_connect_at_the_limit_of_open_files() {
    need!("prlimit");
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let passt = net.passt(&["--socket", &path, "-t", "7001"]);
    net.host.sh(&format!("prlimit --pid {} --nofile=60:60", passt.pid));
    // Inbound connections are refused before a guest has sent a frame.
    let mut first = connect(&net);
    first.write_all(&question()).unwrap();
    expect_answers(&mut first, 1);
    let _waiting: Vec<_> = (0..100).map(|_| net.peer.start_connect((HOST[0], 7001))).collect();
    wait_until("the limit", || passt.descriptors() >= 60);
    drop(first);
    wait_until("the end of the first client", || net.peer.connect((HOST[1], 7001)).is_err());
    let mut socket = connect(&net);
    socket.write_all(&question()).unwrap();
    expect_answers(&mut socket, 1);
}

// The following tests start passt like other programs.

/// behaviour §2.3: libvirt starts passt in this way. behaviour §1.9: passt ends when its client disconnects.
#[test]
fn one_off_works_as_libvirt_uses_it() {
    let Some(net) = Net::new() else { return };
    let arguments = "--one-off --mac-addr 52:54:00:12:34:56 --interface eth0 --address 198.51.100.9 --netmask 24 \
                     --tcp-ports 198.51.100.2/2001:22,3000-3005 --udp-ports 127.0.0.1/15000-15020,~15010-15015";
    let (passt, mut socket) = start(&net, &arguments.split_whitespace().collect::<Vec<_>>());
    socket.write_all(&question()).unwrap();
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    for port in [15000, 15009, 15016, 15020] {
        let taken = net.host.run(&["sh", "-c", &format!("grep -i ':{port:04X} ' /proc/net/udp")]);
        assert!(taken.status.success(), "port {port}");
    }
    let free = net.host.run(&["sh", "-c", &format!("grep -i ':{:04X} ' /proc/net/udp", 15010)]);
    assert!(!free.status.success());
    drop(socket);
    wait_until("the end of passt", || !passt.runs());
}

/// behaviour §2.3, §9.3: QEMU passes a socket. R-12: any descriptor number works. passt goes to the background with
/// status 0 and a PID file, and ends when its client disconnects.
#[test]
fn an_inherited_socket_works_as_qemu_uses_it_r12() {
    let Some(net) = Net::new() else { return };
    for number in [3, 0, 7] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pid_file = net.path("pid");
        let script = format!("exec \"$0\" --quiet --pid {pid_file} --fd {number} {number}<&0");
        let mut command = net.host.bare_command(&["sh", "-c", &script, env!("CARGO_BIN_EXE_passt")]);
        let end = command.stdin(OwnedFd::from(theirs)).output().unwrap();
        assert!(end.status.success(), "--fd {number}: {end:?}");
        assert_eq!(String::from_utf8_lossy(&end.stderr), "", "--fd {number}");
        let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        assert!(runs(&net.host, pid), "--fd {number}");
        let mut ours = ours;
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        ours.write_all(&question()).unwrap();
        expect_answers(&mut ours, 1);
        drop(ours);
        wait_until("the end of passt", || !runs(&net.host, pid));
    }
}

/// A closed descriptor, a file and a datagram socket are refused.
#[test]
fn a_descriptor_that_is_no_stream_socket_is_an_error() {
    let Some(net) = Net::new() else { return };
    for (script, what) in
        [("exec \"$0\" -f --fd 9 9<&-", "descriptor 9"), ("exec \"$0\" -f --fd 9 9</dev/null", "--fd")]
    {
        let end = net.host.run(&["sh", "-c", script, env!("CARGO_BIN_EXE_passt")]);
        assert_eq!(end.code(), 1, "{script}");
        assert!(end.stderr.contains(what), "{script}: {}", end.stderr);
    }
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    assert!(datagrams.as_raw_fd() > 2);
    let mut command =
        net.host.bare_command(&["sh", "-c", "exec \"$0\" -f --fd 0", env!("CARGO_BIN_EXE_passt")]);
    let end = command.stdin(OwnedFd::from(datagrams)).output().unwrap();
    assert_eq!(end.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&end.stderr).contains("stream socket"), "{end:?}");
}
