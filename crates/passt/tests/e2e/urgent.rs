//! Tests of TCP urgent data. They are forwarded as urgent data (RFC 9293 §3.8.5), and the stream has exactly the bytes
//! that were sent.

use crate::harness::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, sockopt};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

const LEN: usize = 8 << 20;

/// Sends one byte as urgent.
fn send_urgent(to: &TcpStream, byte: u8) {
    assert_eq!(rustix::net::send(to, &[byte], SendFlags::OOB).unwrap(), 1);
}

/// Sends the sequence `seed` with some urgent bytes, and ends the stream.
fn send_with_marks(mut to: &TcpStream, seed: u64, len: usize) {
    let bytes = payload(seed, len);
    let (mut at, mut random) = (0, seed);
    while at < len {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The number of bytes between urgent bytes varies from none to some hundred thousand. Small numbers are as
        // frequent as large ones.
        let next = (random >> 32) as usize % (1 << (random >> 40 & 0xf) << 3);
        let end = len.min(at + next);
        to.write_all(&bytes[at..end]).unwrap();
        if let Some(byte) = bytes.get(end) {
            send_urgent(to, *byte);
        }
        at = end + 1;
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Waits until urgent data are reported.
fn await_urgent(stream: &TcpStream) {
    let wait = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let mut fds = [PollFd::new(stream, PollFlags::PRI)];
    poll(&mut fds, Some(&wait)).unwrap();
    assert!(fds[0].revents().contains(PollFlags::PRI), "no urgent data");
}

/// Checks that an urgent byte arrives as an urgent byte. `inline`: the receiver reads it in the stream (SO_OOBINLINE).
fn assert_urgent_byte_arrives(mut from: &TcpStream, mut to: &TcpStream, inline: bool) {
    sockopt::set_socket_oobinline(to, inline).unwrap();
    from.write_all(b"before").unwrap();
    send_urgent(from, b'!');
    await_urgent(to);
    from.write_all(b"after").unwrap();
    if !inline {
        let mut byte = [0];
        rustix::net::recv(to, &mut byte, RecvFlags::OOB).unwrap();
        assert_eq!(byte, [b'!']);
    }
    let mut bytes = Vec::new();
    while !sys::stream::is_at_mark(to).unwrap() {
        let mut byte = [0];
        to.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    assert_eq!(bytes, b"before");
    let mut rest = if inline { vec![0; 6] } else { vec![0; 5] };
    to.read_exact(&mut rest).unwrap();
    assert_eq!(rest, if inline { &b"!after"[..] } else { b"after" });
}

/// Checks single urgent bytes, and then many urgent bytes in bulk data, in both directions at once.
fn assert_urgent_data_arrives(one: &TcpStream, other: &TcpStream) {
    for (from, to) in [(one, other), (other, one)] {
        for inline in [false, true] {
            assert_urgent_byte_arrives(from, to, inline);
        }
    }
    for stream in [one, other] {
        sockopt::set_socket_oobinline(stream, true).unwrap();
    }
    thread::scope(|scope| {
        for (from, to, seed) in [(one, other, 1), (other, one, 2)] {
            scope.spawn(move || send_with_marks(from, seed, LEN));
            scope.spawn(move || receive_all(to, seed, LEN as u64));
        }
    });
}

/// Opens outbound and inbound (port 7001) connections of the guest, over both families. Returns the guest's end and the
/// other end of each.
fn connections(net: &Net) -> Vec<(TcpStream, TcpStream)> {
    let mut all = Vec::new();
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let listener = net.peer.listen((peer, 7000));
        let guest = net.guest.connect((peer, 7000)).unwrap();
        all.push((guest, accept(&listener).0));
        let listener = net.guest.listen((any(host), 7001));
        let outside = net.peer.connect((host, 7001)).unwrap();
        all.push((accept(&listener).0, outside));
    }
    all
}

#[test]
fn urgent_data_arrive_through_a_tap() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7001"]);
    connections(&net).iter().for_each(|(guest, outside)| assert_urgent_data_arrives(guest, outside));
}

#[test]
fn urgent_data_arrive_through_a_tap_mtu_1500() {
    let Some(net) = Net::with_mtu(1500) else { return };
    net.pasta(&["-t", "7001"]);
    connections(&net).iter().for_each(|(guest, outside)| assert_urgent_data_arrives(guest, outside));
}

/// The kernel has no `SO_PEEK_OFF` for TCP.
#[test]
fn urgent_data_arrive_without_a_peek_offset() {
    let Some(net) = Net::new() else { return };
    // A program inherits the filter of the thread that starts it.
    thread::scope(|scope| {
        let pasta = scope.spawn(|| {
            refuse_peek_offset();
            net.pasta(&["-t", "7001"]);
        });
        pasta.join().unwrap();
    });
    connections(&net).iter().for_each(|(guest, outside)| assert_urgent_data_arrives(guest, outside));
}

/// Makes the kernel refuse `SO_PEEK_OFF` to this thread and the programs that it starts.
fn refuse_peek_offset() {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
        SeccompFilter, SeccompRule,
    };
    let is =
        |index, value: libc::c_int| SeccompCondition::new(index, Len::Dword, Op::Eq, value as u64).unwrap();
    let rule = SeccompRule::new(vec![is(1, libc::SOL_SOCKET), is(2, libc::SO_PEEK_OFF)]).unwrap();
    let rules = [(libc::SYS_setsockopt, vec![rule])].into();
    let refuse = SeccompAction::Errno(libc::EOPNOTSUPP as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

#[test]
fn urgent_data_arrive_through_a_stream_socket() {
    let Some(net) = Net::with_mtu(1500) else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--socket", &path, "--mtu", "1500", "-t", "7001"]);
    let _machine = net.machine(1500).plug(UnixStream::connect(&path).unwrap());
    connections(&net).iter().for_each(|(guest, outside)| assert_urgent_data_arrives(guest, outside));
}

#[test]
fn urgent_data_arrive_through_vhost_user() {
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--vhost-user", "--socket", &path, "-t", "7001"]);
    let front_end = FrontEnd::new(path.as_ref(), DriverConfig::default());
    let mut guest = SmolGuest::new(front_end, 1500, address(), GATEWAY[0]);
    guest.port.marks = true;

    let listener = net.peer.listen((PEER[0], 7000));
    let up = guest.connect((PEER[0], 7000));
    let sink = thread::spawn(move || {
        let (stream, _) = accept(&listener);
        sockopt::set_socket_oobinline(&stream, true).unwrap();
        receive(&stream, 1, LEN as u64 - 1);
        await_urgent(&stream);
        assert!(sys::stream::is_at_mark(&stream).unwrap());
        receive_all_of(&stream, &payload(1, LEN)[LEN - 1..]);
    });
    let (data, mut sent) = (payload(1, LEN), 0);
    guest.run("upload", up, |socket| {
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        if sent == LEN {
            socket.close();
        }
        sent == LEN && socket.send_queue() == 0
    });
    sink.join().unwrap();

    let down = guest.listen(7001);
    let source = net.peer.connect((HOST[0], 7001)).unwrap();
    let source = thread::spawn(move || send_with_marks(&source, 2, LEN));
    let mut got = Vec::new();
    guest.run("download", down, |socket| {
        let _ = socket.recv(|bytes| {
            got.extend_from_slice(bytes);
            (bytes.len(), ())
        });
        got.len() == LEN
    });
    source.join().unwrap();
    assert!(got == payload(2, LEN));
    assert!(guest.port.urgent_segments > 0);
}

#[test]
fn urgent_data_arrive_on_the_bypass() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000", "-T", "7001"]);
    for (loopback, host) in LOOPBACK.into_iter().zip(HOST) {
        for (from, port, into, at) in
            [(&net.host, 7000, &net.guest, any(host)), (&net.guest, 7001, &net.host, loopback)]
        {
            let listener = into.listen((at, port));
            let client = from.connect((loopback, port)).unwrap();
            assert_urgent_data_arrives(&client, &accept(&listener).0);
        }
    }
}

/// rlogin(1) servers send an urgent byte first.
#[test]
fn the_first_and_last_byte_can_be_urgent_on_the_bypass() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-t", "7000"]);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    for round in 0..20 {
        let client = net.host.connect((LOOPBACK[0], 7000)).unwrap();
        send_urgent(&client, b'!');
        let (server, _) = accept(&listener);
        await_urgent(&server);
        sockopt::set_socket_oobinline(&server, true).unwrap();
        assert!(sys::stream::is_at_mark(&server).unwrap(), "round {round}");
        let mut byte = [0];
        (&server).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [b'!']);
        send(&server, 3, 200_000);
        send_urgent(&server, b'?');
        drop(server);
        sockopt::set_socket_oobinline(&client, true).unwrap();
        receive(&client, 3, 200_000);
        await_urgent(&client);
        assert!(sys::stream::is_at_mark(&client).unwrap());
        receive_all_of(&client, b"?");
    }
}

fn receive_all_of(mut from: impl Read, expected: &[u8]) {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

/// Sends data with urgent bytes to a peer that does not read, until all buffers are full.
fn fill(to: &TcpStream) {
    to.set_nonblocking(true).unwrap();
    let bytes = payload(1, 50_000);
    let mut futile = 0;
    wait_until("full buffers", || {
        let mut sent = 0;
        while let Ok(len) = rustix::net::send(to, &bytes, SendFlags::empty()) {
            sent += len + rustix::net::send(to, &bytes[..1], SendFlags::OOB).unwrap_or(0);
        }
        futile = if sent > 0 { 0 } else { futile + 1 };
        futile > 20
    });
}

/// The kernel reports unread urgent data repeatedly. pasta must not spin.
#[test]
fn unread_urgent_data_use_no_processor_time() {
    let Some(net) = Net::new() else { return };
    let daemon = net.pasta(&["-t", "7000,7001"]);
    let tap = connections(&net).remove(0);
    let listener = net.guest.listen((any(HOST[0]), 7000));
    let client = net.host.connect((LOOPBACK[0], 7000)).unwrap();
    let past = (accept(&listener).0, client);
    for (guest, outside) in [&tap, &past] {
        fill(guest);
        fill(outside);
    }
    let mut before = String::new();
    wait_until("pasta to wait", || {
        thread::sleep(std::time::Duration::from_millis(200));
        let now = net.host.sh(&format!("cut -d' ' -f14,15 /proc/{}/stat", daemon.pid));
        std::mem::replace(&mut before, now.clone()) == now
    });
}
