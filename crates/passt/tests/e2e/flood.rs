//! A test with a hostile guest that sends as many frames as it can, while other flows continue (behaviour §10.6).
//!
//! `E2E_FLOOD_FRAMES=5000000 cargo test -p passt --test e2e flood -- --nocapture` runs for about a minute.

use crate::harness::*;
use rustix::net::{self, SendFlags, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::random::Random;
use wire::ethernet::{self, Mac};
use wire::frame::Outgoing;
use wire::icmp;
use wire::tcp::{self, Flags, Seq};

const FRAMES: u64 = 60_000;
/// The allowed growth of memory, in KiB. A full table of flows takes less.
const GROWTH_KIB: u64 = 48 * 1024;
const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// Maximum length of a frame that need not be segmented, with its header.
const MTU: usize = 1514;
/// Ports of the peer: the first has a server that closes each connection at once, the second is closed.
const SINK: u16 = 7002;
const CLOSED: u16 = 9;

/// A seeded generator of hostile frames.
struct FrameGenerator {
    random: Random,
    mac: Mac,
}

impl FrameGenerator {
    fn next(&mut self) -> u64 {
        self.random.next()
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.below(n)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.random.bytes(len)
    }

    /// A source and a destination. The source is the guest's own address, so that its kernel answers packets to it.
    fn ends(&mut self) -> (IpAddr, IpAddr) {
        let family = self.below(2);
        let groups: [IpAddr; 4] = [
            Ipv4Addr::new(224, 0, 0, 251).into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb).into(),
            Ipv4Addr::BROADCAST.into(),
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2).into(),
        ];
        let others = [
            PEER,
            PEER,
            FAR,
            GATEWAY,
            NOBODY,
            HOST,
            LOOPBACK,
            [groups[0], groups[1]],
            [groups[2], groups[3]],
        ];
        (HOST[family], self.pick(&others)[family])
    }

    /// A virtio-net header and a frame.
    fn frame(&mut self) -> Vec<u8> {
        let mut header = vec![0; sys::packet::VNET_HDR_LEN];
        let mut frame = match self.below(12) {
            0..5 => self.segment(),
            5..7 => self.datagram(),
            7..9 => self.message(),
            9 => self.arp(),
            10 => self.super_frame(&mut header),
            _ => {
                let len = 14 + self.below(600);
                let mut frame = self.bytes(len);
                let ethertype = self.pick(&[0x0800_u16, 0x0806, 0x86dd, 0x8100]);
                frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
                frame
            }
        };
        if self.below(3) == 0 {
            self.mutate(&mut frame);
        }
        header.extend_from_slice(&frame);
        header
    }

    fn write(
        &mut self,
        ends: (IpAddr, IpAddr),
        write: impl FnOnce(&Outgoing, &mut [u8]) -> Option<usize>,
    ) -> Vec<u8> {
        let headers = Outgoing {
            source_mac: self.mac,
            destination_mac: OUR_MAC,
            source: ends.0,
            destination: ends.1,
            hop_limit: self.pick(&[64, 255, 1, 0]),
            traffic_class: self.next() as u8,
            flow_label: self.next() as u32,
        };
        let mut frame = vec![0xee; 66_000];
        let len = write(&headers, &mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    fn header(&mut self, options_len: usize) -> tcp::Header {
        let flags = [
            Flags::SYN,
            Flags::SYN,
            Flags::ACK,
            Flags::ACK | Flags::PSH,
            Flags::FIN | Flags::ACK,
            Flags::RST | Flags::ACK,
            Flags::SYN | Flags::ACK,
            Flags::from_bits_retain(self.next() as u8),
        ];
        let ports = (1 + self.below(64) as u16, self.pick(&[SINK, SINK, CLOSED, 53, 0]));
        let (seq, ack) = (Seq(self.next() as u32), Seq(self.next() as u32));
        tcp::Header::new(ports, seq, ack, self.pick(&flags), self.next() as u16, options_len)
    }

    fn segment(&mut self) -> Vec<u8> {
        let ends = self.ends();
        let options_len = 4 * self.below(11);
        let options = self.bytes(options_len);
        let header = self.header(options.len());
        let len = self.pick(&[0, 0, 1, 536, 1400]);
        self.write(ends, |to, buffer| to.tcp(buffer, header, &options, len, None).map(|written| written.len))
    }

    /// A frame that must be segmented (GSO). The kernel forwards the frames that match their virtio-net header.
    fn super_frame(&mut self, vnet_header: &mut [u8]) -> Vec<u8> {
        let ends = self.ends();
        let header = self.header(0);
        let (len, size) = (self.pick(&[2000, 30_000, 65_000]), self.pick(&[1, 536, 1460, 40_000]));
        let udp = self.below(3) == 0;
        let mut offload = [0; wire::offload::VIRTIO_NET_HEADER_LEN];
        let frame = self.write(ends, |to, buffer| {
            let written = match udp {
                true => to.udp(buffer, (9, SINK), len, Some(size)),
                false => to.tcp(buffer, header, &[], len, Some(size)),
            }?;
            offload = written.offload.to_virtio();
            Some(written.len)
        });
        vnet_header.copy_from_slice(&offload[..sys::packet::VNET_HDR_LEN]);
        if self.below(3) == 0 {
            // Other flags and kinds of segmentation, including UFO and ECN.
            vnet_header[0] = self.pick(&[0, 1, 2, 3]);
            vnet_header[1] = self.pick(&[0, 1, 3, 4, 5, 0x81, 0x83, 0x84, 0x85]);
        }
        frame
    }

    fn datagram(&mut self) -> Vec<u8> {
        let ends = self.ends();
        let ports = (1 + self.below(64) as u16, self.pick(&[SINK, CLOSED, 53, 67, 67, 547, 547, 0]));
        let len = self.pick(&[0, 1, 4, 100, 300, 1400]);
        let kind = self.below(12) as u8;
        self.write(ends, |to, buffer| {
            if ports.1 == 67 {
                // The message has the fields that the server needs before it parses options.
                let start = to.headroom(wire::udp::HEADER_LEN);
                buffer[start] = 1;
                buffer[start + 236..start + 243].copy_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
            }
            to.udp(buffer, ports, len, None).map(|written| written.len)
        })
    }

    fn message(&mut self) -> Vec<u8> {
        let ends = self.ends();
        let echo = if ends.0.is_ipv4() { icmp::v4::ECHO_REQUEST } else { icmp::v6::ECHO_REQUEST };
        let discovery = icmp::v6::ROUTER_SOLICITATION + self.below(5) as u8;
        let other = self.next() as u8;
        let kind = self.pick(&[echo, echo, discovery, discovery, other]);
        let header = icmp::Header::new(kind, self.pick(&[0, 0, 0, 1]), self.below(64) as u32);
        let len = self.pick(&[0, 16, 24, 56, 1400]);
        self.write(ends, |to, buffer| to.icmp(buffer, header, len).map(|written| written.len))
    }

    fn arp(&mut self) -> Vec<u8> {
        let mut frame = [&OUR_MAC.0[..], &self.mac.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0]].concat();
        frame.extend(self.bytes(39));
        frame
    }

    /// Changes some bytes of the headers, or the length. The source MAC address is never changed: replies of the other
    /// flows need it.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..1 + self.below(3) {
            let at = 14 + self.below(90);
            let value = self.next() as u8;
            // The source IP address is not changed either: no kernel would reset connections from another address.
            let sender = if frame[12] == 8 { 26..30 } else { 22..38 };
            if at < frame.len() && !sender.contains(&at) {
                frame[at] = value;
            }
        }
        match self.below(6) {
            0 => frame.truncate(ethernet::HEADER_LEN + self.next() as usize % frame.len()),
            1 if frame.len() < MTU => frame.resize((frame.len() + 40).min(MTU), 0),
            _ => {}
        }
    }
}

/// Sends frames as fast as the kernel accepts them. Returns the number of accepted frames.
fn attack(socket: &OwnedFd, generator: &mut FrameGenerator, count: u64) -> u64 {
    // A frame that the kernel refuses, or has no room for, is lost.
    (0..count).filter(|_| net::send(socket, &generator.frame(), SendFlags::empty()).is_ok()).count() as u64
}

/// Serves connections until `end`.
fn serve(listener: &TcpListener, end: &AtomicBool, serve: impl Fn(TcpStream)) {
    sockopt::set_socket_timeout(listener, sockopt::Timeout::Recv, Some(Duration::from_millis(100))).unwrap();
    while !end.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => serve(stream),
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted), "{e}")
            }
        }
    }
}

/// Echoes a connection until its end.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    stream.set_read_timeout(Some(PATIENCE)).unwrap(); // the listener's timeout is inherited
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..len]).unwrap();
    }
}

fn ask(client: &mut TcpStream) {
    let mut answer = [0; 8];
    client.write_all(b"question").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"question");
}

/// The program continues, its memory is bounded, other flows continue, and no descriptor remains.
#[test]
fn hostile_frames_do_not_disturb_other_flows() {
    // With this setting, the host gives up unanswered connections before the test's time limit.
    let host_setup = "echo 1 >/proc/sys/net/ipv4/tcp_syn_retries\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    let pasta = net.pasta(&[]);
    let count = std::env::var("E2E_FLOOD_FRAMES").map_or(FRAMES, |count| count.parse().unwrap());
    let echoes = PEER.map(|peer| net.peer.listen((peer, 7000)));
    let sinks = PEER.map(|peer| net.peer.listen((peer, SINK)));
    let (descriptors, start) = (pasta.descriptors(), pasta.memory_kib());
    let frames = net.guest.frames();
    let mut generator = FrameGenerator { random: Random::new(1), mac: Mac(net.guest_mac()) };
    let (over, end, asked) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));

    std::thread::scope(|scope| {
        for listener in &echoes {
            scope.spawn(|| serve(listener, &end, |stream| drop(std::thread::spawn(|| echo(stream)))));
        }
        for listener in &sinks {
            scope.spawn(|| serve(listener, &end, drop));
        }
        let clients = PEER.map(|peer| {
            let (net, over, asked) = (&net, &over, &asked);
            scope.spawn(move || {
                let mut old = net.guest.connect((peer, 7000)).unwrap();
                while !over.load(Ordering::Relaxed) {
                    ask(&mut old);
                    ask(&mut net.guest.connect((peer, 7000)).unwrap());
                    asked.fetch_add(2, Ordering::Relaxed);
                }
            })
        });
        // The first frames fill tables whose memory stays allocated.
        attack(&frames, &mut generator, count / 10);
        let (before, begun) = (pasta.memory_kib(), Instant::now());
        let sent = attack(&frames, &mut generator, count - count / 10);
        let after = pasta.memory_kib();
        over.store(true, Ordering::Relaxed);
        let results = clients.map(|client| client.join());
        end.store(true, Ordering::Relaxed);
        eprintln!(
            "{sent} of {count} frames sent in {:.1?}; {} questions answered; {start}, {before}, {after} KiB; {descriptors}, {} descriptors",
            begun.elapsed(),
            asked.load(Ordering::Relaxed),
            pasta.descriptors()
        );
        assert!(pasta.runs(), "the program has ended");
        assert!(results.iter().all(Result::is_ok), "others were disturbed");
        assert!(sent > count / 4, "only {sent} of {count} frames were sent");
        assert!(after <= before + GROWTH_KIB, "from {before} to {after} KiB");
    });
    // Ping flows end last, after a minute. One socket for each family remains, for lookups of source addresses.
    const PROBES: usize = 2;
    let end = Instant::now() + 2 * PATIENCE;
    while pasta.descriptors() > descriptors + PROBES {
        assert!(Instant::now() < end, "{descriptors} descriptors before, {} after", pasta.descriptors());
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Further connections are refused. When descriptors are free again, new connections succeed.
#[test]
fn without_descriptors_old_connections_continue() {
    const LIMIT: usize = 64;
    let Some(net) = Net::new() else { return };
    let pid_file = net.path("pasta.pid");
    // There are no `auto` rules, because the test counts sockets.
    let rules = "-t 7001 -u none -T none -U none".split(' ');
    let args = ["--config-net", "--pid", &pid_file, "--netns", "/run/netns/guest"];
    let args: Vec<&str> = args.into_iter().chain(rules).collect();
    let limit = format!("--nofile={LIMIT}");
    let argv = [vec!["prlimit".to_owned(), limit], net.pasta_argv(&args)].concat();
    net.host.run(&argv.iter().map(String::as_str).collect::<Vec<_>>()).ok();
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let pid = pid.trim();
    let descriptors = || net.host.sh(&format!("ls /proc/{pid}/fd | wc -l")).trim().parse::<usize>().unwrap();
    let before = descriptors();

    let (outside, inside) = (net.peer.listen((PEER[0], 7000)), net.guest.listen((HOST[0], 7001)));
    let mut old = net.guest.connect((PEER[0], 7000)).unwrap();
    let (server, _) = accept(&outside);
    let echoing = std::thread::spawn(|| echo(server));
    ask(&mut old);
    // Connections of the guest succeed until no descriptor is left. Then they are refused at once.
    let mut held = Vec::new();
    let refusal = loop {
        match net.guest.connect((PEER[0], 7000)) {
            Ok(client) => held.push((client, accept(&outside))),
            Err(refusal) => break refusal,
        }
        assert!(held.len() < LIMIT);
    };
    assert_eq!(refusal.kind(), ErrorKind::ConnectionRefused);
    // Inbound connections have their own budget. When it is used up, they are refused, and do not hang.
    let mut accepted = Vec::new();
    for _ in 0..8 {
        let client = net.peer.connect((HOST[0], 7001)).unwrap();
        if let Some(server) = server_or_reset(&client, &inside) {
            accepted.push((client, server));
        }
    }
    assert!((1..4).contains(&accepted.len()), "{} connections from outside", accepted.len());
    drop(accepted);
    ask(&mut old);
    drop(held);
    wait_until("descriptors for others", || descriptors() <= before + 1);
    let client = net.peer.connect((HOST[0], 7001)).unwrap();
    assert!(server_or_reset(&client, &inside).is_some());
    ask(&mut old);
    drop(old);
    echoing.join().unwrap();
}

/// Waits until a connection is established or reset. Returns the server's end, or None after a reset.
fn server_or_reset(client: &TcpStream, listener: &TcpListener) -> Option<TcpStream> {
    client.set_nonblocking(true).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut server = None;
    wait_until("a connection or a reset", || {
        server = listener.accept().ok().map(|(server, _)| server);
        let (mut client, mut byte) = (client, [0]);
        server.is_some() || !matches!(client.read(&mut byte), Err(e) if e.kind() == ErrorKind::WouldBlock)
    });
    server
}
