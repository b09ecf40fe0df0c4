//! Datagrams above the guest's MTU (behaviour §4.7).

use smoltcp::wire::TcpControl;

use crate::harness::*;
use crate::udp::deliver;
use crate::vhost_user;

/// Datagrams of the guest's kernel in fragments, just above the MTU and up to the largest.
fn from_guest(net: &Net, mtu: usize) {
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.peer.udp((peer, 7000));
        let client = net.guest.udp((any(peer), 0));
        let (fits, largest) = if peer.is_ipv4() { (mtu - 28, 65_507) } else { (mtu - 48, 65_487) };
        for len in [fits, fits + 1, fits + 9, 3000, 9000, largest] {
            let source = deliver(&client, (peer, 7000), &server, &payload(len as u64, len));
            assert_eq!(source, (host, port(&client)).into());
        }
    }
}

#[test]
fn fragments_of_the_guest_mtu_1500() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    from_guest(&net, 1500);
}

#[test]
fn fragments_of_the_guest_mtu_1280() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1280"]);
    from_guest(&net, 1280);
}

/// To a socket of the guest that a rule leads to, and back.
#[test]
fn fragments_of_an_answer() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500", "-u", "7001"]);
    for (host, peer) in HOST.into_iter().zip(PEER) {
        let server = net.guest.udp((any(host), 7001));
        let client = net.peer.udp((peer, 0));
        let source = deliver(&client, (host, 7001), &server, b"question");
        assert_eq!(deliver(&server, source, &client, &payload(1, 20_000)), (host, 7001).into());
    }
}

#[test]
fn fragments_of_a_machine() {
    let Some(net) = Net::new() else { return };
    let path = net.path("guest.socket");
    let _passt = net.passt(&["--socket", &path, "--mtu", "1500"]);
    let _machine = net.machine(1500).plug(std::os::unix::net::UnixStream::connect(path).unwrap());
    from_guest(&net, 1500);
}

/// `ping -s 3000`, there and back.
#[test]
fn large_echo() {
    need!("ping");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    for to in PEER {
        net.guest.sh(&format!("ping -n -w 60 -c 2 -i 0.1 -s 3000 {to}"));
    }
}

/// No kernel cuts TCP, but a network behind the guest may.
#[test]
fn a_tcp_segment_in_fragments() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&["--mtu", "1500"]);
    let listener = net.peer.listen((PEER[0], 7000));
    let raw = Raw::open(&net);
    let segment = |control, seq, ack| Segment {
        src_port: 40_000,
        dst_port: 7000,
        control,
        seq,
        ack,
        payload: Vec::new(),
    };
    let send = |segment, room| {
        let frame = raw.tcp_frame(PEER[0], &segment, 0);
        fragments_of(&frame, room).iter().for_each(|fragment| raw.send(fragment));
    };
    send(segment(TcpControl::Syn, 1, None), 8);
    let answer = raw.expect_tcp("SYN,ACK", |segment| segment.control == TcpControl::Syn);
    send(segment(TcpControl::None, 2, Some(answer.seq + 1)), 16);
    assert_eq!(accept(&listener).1.ip(), HOST[0]);
}

/// Fragments in memory that the guest shares.
#[test]
fn fragments_by_vhost_user() {
    let Some(net) = Net::new() else { return };
    let (_daemon, path) = vhost_user::passt(&net, &["--mtu", "1500"]);
    let mut front_end = FrontEnd::new(&path, Wishes::default());
    let payload = vec![0x5a; 3000];
    for fragment in fragments_of(&vhost_user::echo_request(vhost_user::PEER4, &payload), 1480) {
        assert!(front_end.queues[1].send([0; HEADER], &fragment));
    }
    vhost_user::expect(&mut front_end, "an echo reply", |frame| {
        vhost_user::is_echo_reply(&frame.bytes, &payload)
    });
}
