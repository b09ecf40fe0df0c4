//! Tests with a hostile guest (behaviour §10.6): for any frames of the guest, the program continues and does not grow.
//! This file has tests with mutated frames, some of them for the services of the program. `flood` has a test of the
//! transport protocols, with other flows at the same time.

use crate::harness::*;
use smoltcp::wire::TcpControl;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

/// Frames of a guest that configures itself and opens a connection. They are seeds for mutation.
fn ordinary_frames(raw: &Raw) -> Vec<Vec<u8>> {
    let segment = |control, ack, payload: &[u8]| Segment {
        src_port: 40000,
        dst_port: 7000,
        control,
        seq: 1000,
        ack,
        payload: payload.to_vec(),
    };
    let to = PEER[0];
    let mut frames = vec![
        raw.tcp_frame(to, &segment(TcpControl::Syn, None, b""), 0),
        raw.tcp_frame(to, &segment(TcpControl::Psh, Some(1), b"data"), 2),
        raw.tcp_frame(to, &segment(TcpControl::Fin, Some(1), b""), 6),
        raw.tcp_frame(to, &segment(TcpControl::Rst, Some(1), b""), 6),
        raw.probe_frame("198.51.100.77".parse().unwrap()),
    ];
    frames.extend(RECORDED.iter().map(|hex| unhex(hex)));
    frames
}

/// Recorded frames, for which the test has no builder. Their source is 02:00:5e:10:00:09, and their destination is the
/// program's MAC address or a group.
const RECORDED: [&str; 5] = [
    // UDP 198.51.100.2:5000 -> 198.51.100.3:7000, "hello"
    "9a559a559a5502005e100009080045000021000040004011e65fc6336402c633640313881b58000d000068656c6c6f",
    // ICMP echo request to 198.51.100.3
    "9a559a559a5502005e100009080045000020000040004001_e670c6336402c633640308008f940001000168690000",
    // DHCPDISCOVER with a parameter list
    "ffffffffffff02005e10000908004500011600000000401179d800000000ffffffff00440043010200000101060012345678\
     0000000000000000000000000000000000000000_02005e100009_00000000000000000000_*192_63825363_350101_37040103061a_ff",
    // ICMPv6 neighbour solicitation for 2001:db8:1::1
    "3333ff00000102005e10000986dd6000000000203aff20010db8000100000000000000000002ff0200000000000000000001\
     ff0000018700be0d_00000000_20010db8000100000000000000000001_010102005e100009",
    // DHCPv6 SOLICIT with a client identifier and IA_NA
    "33330001000202005e10000986dd60000000003011_01fe80000000000000_00005efffe100009ff020000000000000000000000010002\
     0222022300300aff_01123456_0001000a00030001_02005e100009_0003000c000000010000000000000000_00080002_0000",
];

/// Checks that the seeds are valid: each request gets its reply.
fn assert_answered(raw: &Raw, seeds: &[Vec<u8>]) {
    let mut missing =
        vec!["ARP reply", "echo reply", "DHCP offer", "neighbour advertisement", "DHCPv6 advertise"];
    seeds.iter().for_each(|frame| raw.send(frame));
    raw.expect("answers to the seeds", |frame| {
        let what = match (&frame[12..14], frame.get(23), frame.get(34..36), frame.get(54..56)) {
            ([8, 6], ..) if frame[21] == 2 => "ARP reply",
            ([8, 0], Some(1), Some([0, _]), _) => "echo reply",
            ([8, 0], Some(17), Some([0, 67]), _) => "DHCP offer",
            ([0x86, 0xdd], .., Some([136, _])) => "neighbour advertisement",
            ([0x86, 0xdd], .., Some([2, 35])) => "DHCPv6 advertise",
            _ => return None,
        };
        missing.retain(|name| *name != what);
        missing.is_empty().then_some(())
    });
}

/// Parses a hexadecimal text. `_` and blanks are ignored, `*N` means N zeros.
fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split(|c: char| c == '_' || c.is_whitespace()) {
        match word.strip_prefix('*') {
            Some(count) => bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), 0),
            None => bytes
                .extend((0..word.len()).step_by(2).map(|i| u8::from_str_radix(&word[i..i + 2], 16).unwrap())),
        }
    }
    bytes
}

/// Makes one to eight changes to a frame: a byte, a bit or the length.
fn mutate(frame: &mut Vec<u8>, random: &[u8]) {
    for change in random[1..].chunks_exact(5).take(usize::from(random[0] % 8) + 1) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % frame.len();
        match change[2] % 8 {
            0..=2 => frame[at] = change[3],
            3..=4 => frame[at] ^= 1 << (change[3] % 8),
            5 => frame.truncate(at.max(1)),
            6 => frame.extend(std::iter::repeat_n(change[3], usize::from(change[4]))),
            _ => frame[at] = [0, 1, 0x7f, 0x80, 0xff][usize::from(change[3] % 5)],
        }
    }
    // The guest's interface sends no shorter or longer frames.
    frame.resize(frame.len().clamp(14, 1514), 0);
}

fn assert_forwards(net: &Net, to: SocketAddr) {
    let listener = net.peer.listen(to);
    let mut client = net.guest.connect(to).unwrap();
    let (mut server, _) = accept(&listener);
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0; 1]).unwrap();
    let server = net.peer.udp(to);
    let client = net.guest.udp((any(to.ip()), 0));
    client.send_to(b"question", to).unwrap();
    let (_, from) = recv_from(&server);
    server.send_to(b"answer", from).unwrap();
    assert_eq!(recv_from(&client).0, b"answer");
}

/// The guest sends valid frames with random changes (from a fixed seed). `E2E_MUTATED_FRAMES` sets their number. The
/// program does not end, leaks no memory, and still forwards.
#[test]
fn mutated_frames_do_no_harm() {
    need!("socat");
    let count = std::env::var("E2E_MUTATED_FRAMES").map_or(40_000, |count| count.parse().unwrap());
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let raw = Raw::open(&net);
    let seeds = ordinary_frames(&raw);
    assert_answered(&raw, &seeds);
    let mut settled = 0;
    for i in 0..count {
        let random = payload(0x0bad_f00d + i, 48);
        let mut frame = seeds[usize::from(random[47]) % seeds.len()].clone();
        mutate(&mut frame, &random);
        raw.send(&frame);
        if i == count / 4 {
            settled = pasta.memory_kib();
        }
    }
    // The mutated frames may have claimed wrong addresses for the guest. Traffic of the guest's kernel corrects this.
    drop(raw);
    for peer in PEER {
        assert_forwards(&net, (peer, 7001).into());
    }
    assert!(pasta.runs());
    let now = pasta.memory_kib();
    assert!(now <= settled + 16 * 1024, "{settled} KiB after a quarter, {now} KiB at the end");
}

const GUEST_PORT: u16 = 40000;
const PEER_PORT: u16 = 7000;
const ISS: u32 = 1000;

fn segment(control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Segment {
    Segment { src_port: GUEST_PORT, dst_port: PEER_PORT, control, seq, ack, payload: payload.to_vec() }
}

/// invalid frames have no effect, and the next connection works.
#[test]
fn invalid_frames_are_ignored_r77_r100() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    let pasta = net.pasta(&[]);
    let peer = PEER[0];
    let (listener, raw) = (net.peer.listen((peer, PEER_PORT)), Raw::open(&net));
    let good = raw.tcp_frame(peer, &segment(TcpControl::Syn, ISS, None, b""), 0);
    (14..good.len()).for_each(|len| raw.send(&good[..len])); // truncated to every length
    for byte in 12..good.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[byte] = value;
            bad[37] = 0; // to a closed port, or to port 0
            raw.send(&bad);
        }
    }
    let to_port_zero = Segment { dst_port: 0, ..segment(TcpControl::Syn, ISS, None, b"") };
    raw.send_tcp(peer, &to_port_zero);
    let (broadcast, multicast) = ("255.255.255.255".parse::<IpAddr>().unwrap(), "224.0.0.1".parse().unwrap());
    for to in [broadcast, multicast] {
        raw.send_tcp(to, &segment(TcpControl::Syn, ISS, None, b""));
    }
    let other_port = |control, seq, ack, payload: &[u8]| Segment {
        src_port: 41000,
        ..segment(control, seq, ack, payload)
    };
    raw.send_tcp(peer, &other_port(TcpControl::Syn, ISS, None, b""));
    let answer = raw.expect_tcp("SYN,ACK", |s| s.control == TcpControl::Syn && s.dst_port == 41000);
    let next = answer.seq.wrapping_add(1);
    raw.send_tcp(peer, &other_port(TcpControl::None, ISS.wrapping_add(1), Some(next), b""));
    raw.send_tcp(peer, &other_port(TcpControl::Psh, ISS.wrapping_add(1), Some(next), b"x"));
    let (mut outside, _) = accept(&listener);
    outside.read_exact(&mut [0; 1]).unwrap();
    assert!(pasta.runs());
}
