//! Tests of `--memory`: whatever the guest sends, the program stays within its budget, and other flows continue
//! (docs/design/memory.md).

use crate::harness::*;
use crate::limits::limited;
use rustix::net::{SendFlags, send as send_frame};
use rustix::process::{Resource, getrlimit};
use smoltcp::wire::TcpControl;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use wire::ethernet::Mac;
use wire::frame::{Outgoing, Written};
use wire::icmp;
use wire::offload::Offload;
use wire::tcp::{Flags, Header, Seq};

/// The smallest budget, in MiB.
const BUDGET: u64 = 16;
/// The private memory that comes to a budget, in MiB: fixed buffers, and what the start leaves.
const FIXED: u64 = 6;
/// Limit of open files. It allows several times as many connections as the budget does.
const FILES: usize = 16_000;
/// Number of frames of each flood.
const FRAMES: u32 = 12_000;
/// Number of connections with holes. Without a budget, their queues would use 32 MiB.
const HOLED: u16 = 500;
const RESOLVER: IpAddr = MAPPED[0];

/// Sends the frame of this number.
type SendFrame = fn(&mut Flood, u32);

/// A guest that writes frames to its interface.
struct Flood {
    mac: Mac,
    frames: OwnedFd,
    buffer: Vec<u8>,
}

impl Flood {
    /// Sends a frame whose headers and payload `write` writes.
    fn send(&mut self, destination: IpAddr, write: impl FnOnce(&Outgoing, &mut [u8]) -> Option<Written>) {
        let headers = Outgoing {
            source_mac: self.mac,
            destination_mac: Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]),
            source: HOST[0],
            destination,
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let (start, frame) = self.buffer.split_at_mut(sys::packet::VNET_HDR_LEN);
        let Written { len, offload } = write(&headers, frame).unwrap();
        // The checksum is partial.
        start.copy_from_slice(&offload.to_virtio()[..sys::packet::VNET_HDR_LEN]);
        // A frame for which the kernel has no room is lost.
        let _ = send_frame(&self.frames, &self.buffer[..sys::packet::VNET_HDR_LEN + len], SendFlags::empty());
    }

    fn syn(&mut self, number: u32) {
        let ports = (1024 + (number % 50_000) as u16, 9);
        let header = Header::new(ports, Seq(number), Seq(0), Flags::SYN, 0xffff, 0);
        self.send(nobody(number), |to, frame| to.tcp(frame, header, &[], 0, None));
    }

    fn datagram(&mut self, number: u32) {
        let ports = (1024 + (number % 50_000) as u16, 1024 + (number % 60_000) as u16);
        self.send(nobody(number), |to, frame| to.udp(frame, ports, 1, None));
    }

    fn question(&mut self, number: u32) {
        let name = format!("{number:08x}");
        let head = [&(number as u16).to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8]].concat();
        let message = [&head[..], name.as_bytes(), b"\x04test\0\0\x01\0\x01"].concat();
        let ports = (1024 + (number % 50_000) as u16, 53);
        self.send(RESOLVER, |to, frame| {
            let start = to.headroom(wire::udp::HEADER_LEN);
            frame[start..start + message.len()].copy_from_slice(&message);
            to.udp(frame, ports, message.len(), None)
        });
    }

    fn ping(&mut self, number: u32) {
        let header = icmp::Header::new(icmp::v4::ECHO_REQUEST, 0, number << 16 | 1);
        self.send(nobody(number), |to, frame| to.icmp(frame, header, 56));
    }

    /// The first fragment of a datagram of 4000 bytes, or its last one.
    fn fragment(&mut self, number: u32) {
        let last = number.is_multiple_of(2);
        self.send(nobody(number), |to, frame| {
            let Written { len, .. } = to.udp(frame, (5000, 5000), 1400, None)?;
            let packet = &mut frame[14..len];
            let field = if last { 60_000 / 8 } else { 0x2000_u16 };
            packet[4..6].copy_from_slice(&(number as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&field.to_be_bytes());
            smoltcp::wire::Ipv4Packet::new_unchecked(packet).fill_checksum();
            Some(Written { len, offload: Offload::default() })
        });
    }
}

/// An address at which no host answers.
fn nobody(number: u32) -> IpAddr {
    let IpAddr::V4(first) = NOBODY[0] else { panic!() };
    Ipv4Addr::from(u32::from(first) + number % 50).into()
}

/// Private memory of a process, in MiB, rounded up.
fn private(host: &Ns, pid: u32) -> u64 {
    let status = host.sh(&format!("cat /proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap().div_ceil(1024)
}

fn ask(client: &mut TcpStream, server: &mut TcpStream) {
    let mut got = [0; 8];
    client.write_all(b"question").unwrap();
    server.read_exact(&mut got).unwrap();
    server.write_all(b"answered").unwrap();
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"answered");
}

/// Opens connections to a server that does not read, and sends bytes that come after holes: each takes a chunk of a queue.
fn leave_holes(net: &Net, server: (IpAddr, u16)) {
    const ISS: u32 = 1000;
    let raw = Raw::open(net);
    for src_port in 40_000..40_000 + HOLED {
        let segment = |control, offset: u32, ack, payload: &[u8]| Segment {
            src_port,
            dst_port: server.1,
            control,
            seq: ISS + offset,
            ack,
            payload: payload.to_vec(),
        };
        raw.send_tcp(server.0, &segment(TcpControl::Syn, 0, None, b""));
        let answer = raw
            .expect_tcp("SYN,ACK", |answer| answer.control == TcpControl::Syn && answer.dst_port == src_port);
        let ack = Some(answer.seq.wrapping_add(1));
        // The window without scaling has four chunks.
        for chunk in 0..4 {
            raw.send_tcp(server.0, &segment(TcpControl::Psh, 2 + chunk * 16_000, ack, b"x"));
        }
    }
    raw.flush();
}

/// With floods of each protocol and connections to a server that does not read, the memory stays within the budget. An old
/// connection, a new one from outside, and a new UDP flow work beside each flood.
#[test]
fn a_budget_is_kept_under_floods() {
    if getrlimit(Resource::Nofile).maximum.is_some_and(|most| most < FILES as u64) {
        return skipped("the limit of open files is too low");
    }
    // The host gives up unanswered connections before the test's time limit.
    let host_setup = "echo 2 >/proc/sys/net/ipv4/tcp_syn_retries\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    let budget = format!("{BUDGET}M");
    let resolver = RESOLVER.to_string();
    let nameserver = NOBODY[0].to_string();
    let rules = ["-t", "7001", "-u", "none", "-T", "none", "-U", "none", "--memory", &budget];
    let names = ["--dns-forward", &resolver, "--dns", &nameserver];
    let (pasta, pid) = limited(&net, FILES, &[&rules[..], &names].concat());
    let listeners = [net.peer.listen((PEER[0], 7000)), net.guest.listen((HOST[0], 7001))];
    let deaf = net.peer.listen((PEER[0], 7009));
    let server = net.peer.udp((PEER[0], 6000));
    let mut old = net.guest.connect((PEER[0], 7000)).unwrap();
    let mut other = accept(&listeners[0]).0;
    let mut flood = Flood { mac: Mac(net.guest_mac()), frames: net.guest.frames(), buffer: vec![0; 4096] };
    let mut held: Vec<_> =
        (0..40).map(|_| (net.guest.connect((PEER[0], 7009)).unwrap(), accept(&deaf))).collect();
    for (client, _) in &mut held {
        client.set_nonblocking(true).unwrap();
        while client.write(&[7; 1 << 16]).is_ok() {}
    }

    leave_holes(&net, (PEER[0], 7009));
    let most = private(&net.host, pid);
    eprintln!("holes: {most} MiB private");
    assert!(most <= BUDGET + FIXED, "{most} MiB");

    let floods: [(&str, SendFrame); 5] = [
        ("SYN", |flood, number| flood.syn(number)),
        ("UDP", |flood, number| flood.datagram(number)),
        ("DNS", |flood, number| flood.question(number)),
        ("ping", |flood, number| flood.ping(number)),
        ("fragments", |flood, number| flood.fragment(number)),
    ];
    let mut connections = 0;
    for (name, send) in floods {
        let mut most = 0;
        for number in 0..FRAMES {
            send(&mut flood, number);
            if number.is_multiple_of(FRAMES / 4) {
                most = most.max(private(&net.host, pid));
                connections = connections.max(descriptors(&net.host, pid));
                ask(&mut old, &mut other);
            }
        }
        let mut incoming = net.peer.connect((HOST[0], 7001)).unwrap();
        ask(&mut incoming, &mut accept(&listeners[1]).0);
        let client = net.guest.udp((any(HOST[0]), 0));
        client.send_to(b"question", (PEER[0], 6000)).unwrap();
        let (got, from) = recv_from(&server);
        server.send_to(&got, from).unwrap();
        assert_eq!(recv_from(&client).0, b"question", "beside {name}");
        most = most.max(private(&net.host, pid));
        eprintln!("{name}: {most} MiB private, {connections} descriptors");
        assert!(most <= BUDGET + FIXED, "{name}: {most} MiB");
    }
    assert!((1000..4000).contains(&connections), "{connections} descriptors: the budget refuses connections");
    let log = pasta.stderr();
    assert!(
        log.lines().any(|line| line.contains("A TCP connection of") && line.contains("--memory")),
        "{log}"
    );
}
