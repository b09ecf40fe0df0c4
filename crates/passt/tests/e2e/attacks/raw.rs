//! Attacks by frames that a kernel would not send, and by segments in an unusual order.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpControl, UdpPacket};
use testkit::hello::{SERVER_NAME, client_hello, records, server_name};
use testkit::message::{Data::Bytes, Message};
use wire::dns::Type;

use super::fort::{ANY_SERVER, Attempt, Fort, Outcome, Outcome::*, attempt, question};
use crate::harness::*;

const WWW: IpAddr = FAR[0];
const ISS: u32 = 0xffff_fff0; // close to the wrap-around
/// An address on the guest's network that its kernel does not have.
const RAW_IP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x55);
const UDP: u8 = 17;
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const OTHER: &[&str] = &["tcp 198.51.100.55:", "-> 203.0.113.2:443: asked for www.exfilxx.test"];

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { panic!("{address}") };
    address
}

/// An IPv4 packet with these options. The length of the options must be a multiple of four bytes.
fn packet4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], upper: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let len = (header + upper.len()) as u16;
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 7, 0, 0, 64, protocol, 0, 0]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend([options, upper].concat());
    Ipv4Packet::new_unchecked(&mut packet).fill_checksum();
    packet
}

fn packet6(from: Ipv6Addr, to: Ipv6Addr, next: u8, upper: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((upper.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(upper);
    Ipv6Packet::new_unchecked(&packet).check_len().unwrap();
    packet
}

fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram =
        [from.1.to_be_bytes(), to.1.to_be_bytes(), (8 + payload.len() as u16).to_be_bytes()].concat();
    datagram.extend([0, 0]);
    datagram.extend(payload);
    UdpPacket::new_unchecked(&mut datagram).fill_checksum(&from.0.into(), &to.0.into());
    datagram
}

/// A UDP packet of IPv4 from [`RAW_IP`].
fn udp4(port: u16, to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let from = IpAddr::V4(RAW_IP);
    packet4(RAW_IP, v4(to.0), UDP, &[], &datagram((from, port), to, payload))
}

impl Fort<'_> {
    /// Sends a packet. Returns the outcome that the ICMP error about it reports.
    fn packet(&self, packet: &[u8]) -> Outcome {
        self.raw().send(&self.raw().frame(packet));
        self.error_about(packet)
    }

    /// Waits for the ICMP error about a packet. The error must quote the first bytes after the packet's IP header.
    fn error_about(&self, packet: &[u8]) -> Outcome {
        let v4 = packet[0] >> 4 == 4;
        let header = if v4 { usize::from(packet[0] & 0xf) * 4 } else { 40 };
        let (start, protocol) = (&packet[header..header + 4], if v4 { packet[9] } else { packet[6] });
        self.raw().expect("an ICMP error", |frame| {
            let (protocol_at, icmp, quote) = if v4 { (23, 34, 20) } else { (20, 54, 40) };
            if frame.get(14)? >> 4 != packet[0] >> 4 || *frame.get(protocol_at)? != if v4 { 1 } else { 58 } {
                return None;
            }
            let (kind, quoted) = (frame.get(icmp..icmp + 2)?, frame.get(icmp + 8..)?);
            let quoted_protocol = *quoted.get(if v4 { 9 } else { 6 })?;
            if quoted.get(quote..quote + 4)? != start || quoted_protocol != protocol {
                return None;
            }
            match (v4, kind) {
                (true, [3, 13]) | (false, [1, 1]) => Some(Prohibited),
                (true, [3, 2]) | (false, [4, 1]) => Some(Unsupported),
                _ => None,
            }
        })
    }

    /// Sends frames to which there is no answer.
    fn unanswered(&self, frames: &[Vec<u8>]) -> Outcome {
        frames.iter().for_each(|frame| self.raw().send(frame));
        self.raw().flush();
        Nothing
    }

    /// Sends a packet to which there is no answer.
    fn dropped(&self, packet: &[u8]) -> Outcome {
        self.unanswered(&[self.raw().frame(packet)])
    }
}

/// A connection from [`RAW_IP`].
struct Client<'f> {
    raw: &'f Raw,
    to: IpAddr,
    ports: (u16, u16),
    /// The next sequence number of the connection's other side, which is the program under test.
    ack: u32,
}

impl<'f> Client<'f> {
    /// Sends a SYN with data, and waits for the SYN,ACK. The handshake is not complete then.
    fn begin(fort: &'f Fort<'_>, ports: (u16, u16), data: &[u8]) -> Self {
        let mut client = Client { raw: fort.raw(), to: WWW, ports, ack: 0 };
        client.raw.send_tcp(WWW, &client.segment(TcpControl::Syn, ISS, None, data));
        let answer = client.raw.expect_tcp("SYN,ACK", |segment| {
            segment.control == TcpControl::Syn && segment.dst_port == ports.0
        });
        assert_eq!(answer.ack, Some(ISS.wrapping_add(1)), "nothing of the data was taken");
        client.ack = answer.seq.wrapping_add(1);
        client
    }

    fn segment(&self, control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Segment {
        let (src_port, dst_port) = self.ports;
        Segment { src_port, dst_port, control, seq, ack, payload: payload.to_vec() }
    }

    /// Sends bytes whose position in the stream is `position`.
    fn say(&self, position: usize, bytes: &[u8]) {
        let seq = ISS.wrapping_add(1 + position as u32);
        self.raw.send_tcp(self.to, &self.segment(TcpControl::Psh, seq, Some(self.ack), bytes));
    }

    /// Waits for the TLS alert.
    fn end(&self) -> Outcome {
        self.raw
            .expect_tcp("an alert", |segment| segment.dst_port == self.ports.0 && segment.payload == ALERT);
        Alert
    }
}

fn hello(name: &[u8; 16]) -> Vec<u8> {
    records(&client_hello(&[(SERVER_NAME, &server_name(name))]), 16_000)
}

/// Two ClientHellos that differ only in the server's name.
fn hellos() -> [Vec<u8>; 2] {
    [hello(b"www.exfilxx.test"), hello(b"www.allowed.test")]
}

/// The server of `www.allowed.test` sends data before the client has acknowledged the SYN,ACK.
fn server_first(fort: &mut Fort<'_>) -> Outcome {
    let port = 40_005;
    let ack = Client::begin(fort, (port, 443), b"").ack;
    let mut servers = Vec::new();
    wait_until("a connection", || {
        servers.extend(fort.sinks.accept());
        !servers.is_empty()
    });
    servers[0].write_all(b"welcome").unwrap();
    wait_until("the host to have it", || sys::stream::unacknowledged(&servers[0]).unwrap() == 0);
    // Wait until the program under test has handled the server's data, too.
    fort.raw().flush();
    fort.raw().flush();
    let client = Client { raw: fort.raw(), to: WWW, ports: (port, 443), ack };
    client.say(0, &hellos()[0]);
    client.end()
}

pub(super) const SEGMENTS: &[Attempt] = &[
    attempt("data in the SYN", Alert, OTHER, |f| {
        let client = Client::begin(f, (40_001, 443), b"exfil");
        client.say(0, &hellos()[0]);
        client.end()
    }),
    attempt("the second part first", Alert, OTHER, |f| {
        let client = Client::begin(f, (40_002, 443), b"");
        let [hello, _] = hellos();
        client.say(50, &hello[50..]);
        client.say(0, &hello[..50]);
        client.end()
    }),
    attempt("other bytes at the second time", Alert, OTHER, |f| {
        let client = Client::begin(f, (40_003, 443), b"");
        let [hello, allowed] = hellos();
        let cut = hello.len() - 2;
        client.say(0, &hello[..cut]);
        client.say(0, &allowed[..cut]);
        client.say(0, &allowed);
        client.end()
    }),
    attempt("other bytes in an overlap", Alert, OTHER, |f| {
        let client = Client::begin(f, (40_004, 443), b"");
        let [hello, allowed] = hellos();
        let cut = hello.len() - 2;
        client.say(0, &hello[..cut]);
        client.say(20, &allowed[20..]);
        client.end()
    }),
    attempt("a server that speaks first", Alert, OTHER, server_first),
    attempt("bytes before the handshake", Alert, OTHER, |f| {
        let mut client = Client { raw: f.raw(), to: WWW, ports: (40_006, 443), ack: 0 };
        let [hello, _] = hellos();
        client.raw.send_tcp(WWW, &client.segment(TcpControl::Syn, ISS, None, b""));
        client.say(0, &hello);
        let answer = client.raw.expect_tcp("SYN,ACK", |segment| {
            segment.control == TcpControl::Syn && segment.dst_port == 40_006
        });
        client.ack = answer.seq.wrapping_add(1);
        client.say(0, &hello);
        client.end()
    }),
    attempt("bytes of no connection", Reset, &[], |f| {
        let client = Client { raw: f.raw(), to: WWW, ports: (40_007, 443), ack: 1 };
        client.say(0, b"exfil");
        client
            .raw
            .expect_tcp("RST", |segment| segment.control == TcpControl::Rst && segment.dst_port == 40_007);
        Reset
    }),
    attempt("TCP to a group", Nothing, &["tcp", "-> 224.0.0.1:80", "not unicast"], |f| {
        let client =
            Client { raw: f.raw(), to: IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)), ports: (40_008, 80), ack: 0 };
        f.unanswered(&[client.raw.tcp_frame(
            client.to,
            &client.segment(TcpControl::Syn, ISS, None, b"exfil"),
            0,
        )])
    }),
];

pub(super) const PACKETS: &[Attempt] = &[
    attempt("another source", Prohibited, &["udp 198.51.100.55:41001 -> 203.0.113.2:7000"], |f| {
        f.packet(&udp4(41_001, (WWW, 7000), b"exfil"))
    }),
    attempt("fragments", Prohibited, &["udp 198.51.100.55:41002 -> 203.0.113.2:7000"], |f| {
        let packet = udp4(41_002, (WWW, 7000), &b"exfil".repeat(600));
        fragments_of(&f.raw().frame(&packet), 1480).iter().for_each(|frame| f.raw().send(frame));
        f.error_about(&packet)
    }),
    attempt("fragments in reverse", Prohibited, &["udp 198.51.100.55:41003 -> 203.0.113.2:7000"], |f| {
        let packet = udp4(41_003, (WWW, 7000), &b"exfil".repeat(600));
        fragments_of(&f.raw().frame(&packet), 8).iter().rev().for_each(|frame| f.raw().send(frame));
        f.error_about(&packet)
    }),
    attempt("fragments that overlap", Nothing, &[], |f| {
        let packet = udp4(41_004, (WWW, 443), &b"exfil".repeat(600));
        let mut fragments = fragments_of(&f.raw().frame(&packet), 1480);
        let mut other = fragments[0].clone();
        other[40..].fill(b'x');
        fragments.insert(1, other);
        f.unanswered(&fragments)
    }),
    attempt("a route in the packet", Prohibited, &["udp 198.51.100.55:41005 -> 203.0.113.2:7000"], |f| {
        let from = (IpAddr::V4(RAW_IP), 41_005);
        let route = [131, 7, 4, 198, 51, 100, 3, 0];
        let upper = datagram(from, (WWW, 7000), b"exfil");
        f.packet(&packet4(RAW_IP, v4(WWW), UDP, &route, &upper))
    }),
    attempt(
        "a source that no host has",
        Nothing,
        &["udp 127.0.0.1:41006 -> 203.0.113.2:443: invalid source"],
        |f| {
            let from = (LOOPBACK[0], 41_006);
            f.dropped(&packet4(v4(LOOPBACK[0]), v4(WWW), UDP, &[], &datagram(from, (WWW, 443), b"exfil")))
        },
    ),
    attempt(
        "a question from port 0",
        Nothing,
        &["udp 198.51.100.55:0 -> 203.0.113.2:53: invalid source"],
        |f| f.dropped(&udp4(0, (WWW, 53), &question("exfil.evil.test", Type::A))),
    ),
    attempt(
        "a loopback address on the link",
        Nothing,
        &["udp", "-> 127.0.0.1:7000: loopback destination"],
        |f| f.dropped(&udp4(41_007, (LOOPBACK[0], 7000), b"exfil")),
    ),
    attempt("no address", Nothing, &["udp", "-> 0.0.0.0:7000: unspecified destination"], |f| {
        f.dropped(&udp4(41_008, (Ipv4Addr::UNSPECIFIED.into(), 7000), b"exfil"))
    }),
    attempt("the host's own address", Prohibited, &["udp 198.51.100.55:41009 -> 198.51.100.2:7000"], |f| {
        f.packet(&udp4(41_009, (HOST[0], 7000), b"exfil"))
    }),
    attempt("a mapped address", Nothing, &["udp", "-> [::ffff:203.0.113.2]:443: IPv4-mapped"], |f| {
        let (from, to) = ((RAW_IP6.into(), 41_010), (v4(WWW).to_ipv6_mapped().into(), 443));
        f.dropped(&packet6(RAW_IP6, v4(WWW).to_ipv6_mapped(), UDP, &datagram(from, to, b"exfil")))
    }),
    attempt("options before UDP", Prohibited, &["udp [2001:db8:1::55]:41011 -> [2001:db8:2::2]:7000"], |f| {
        let IpAddr::V6(far) = FAR[1] else { panic!() };
        let upper = datagram((RAW_IP6.into(), 41_011), (FAR[1], 7000), b"exfil");
        let options = [UDP, 0, 0x3e, 4, b'e', b'x', b'f', b'i'];
        f.raw().send(&f.raw().frame(&packet6(RAW_IP6, far, 60, &[&options[..], &upper].concat())));
        f.error_about(&packet6(RAW_IP6, far, UDP, &upper))
    }),
    attempt("SCTP", Unsupported, &["IP protocol 132 198.51.100.55 -> 203.0.113.2"], |f| {
        f.packet(&packet4(RAW_IP, v4(WWW), 132, &[], b"exfil, by SCTP"))
    }),
    attempt("GRE", Unsupported, &["IP protocol 47 198.51.100.55 -> 203.0.113.2"], |f| {
        f.packet(&packet4(RAW_IP, v4(WWW), 47, &[], b"exfil, by GRE"))
    }),
    attempt("IP in IP", Unsupported, &["IP protocol 4 198.51.100.55 -> 203.0.113.2"], |f| {
        f.packet(&packet4(RAW_IP, v4(WWW), 4, &[], &udp4(41_012, (WWW, 443), b"exfil")))
    }),
    attempt("UDP-Lite", Unsupported, &["IP protocol 136 198.51.100.55 -> 203.0.113.2"], |f| {
        f.packet(&packet4(RAW_IP, v4(WWW), 136, &[], b"exfil, by UDP-Lite"))
    }),
    attempt(
        "a number that means nothing",
        Unsupported,
        &["IP protocol 253 2001:db8:1::55 -> 2001:db8:2::2"],
        |f| {
            let IpAddr::V6(far) = FAR[1] else { panic!() };
            f.packet(&packet6(RAW_IP6, far, 253, b"exfil, by nothing"))
        },
    ),
    attempt("membership of a group", Nothing, &["IP protocol 2 198.51.100.55 -> 224.0.0.22"], |f| {
        let report = [0x22, 0, 0xed, 0xd5, 0, 0, 0, 1, 4, 0, 0, 0, 239, b'e', b'x', b'f'];
        f.dropped(&packet4(RAW_IP, Ipv4Addr::new(224, 0, 0, 22), 2, &[], &report))
    }),
    attempt("other messages of ICMP", Nothing, &[], |f| {
        let messages = [13, 17, 5, 3, 0].map(|kind| {
            let mut message = [&[kind, 0, 0, 0, 0, 7, 0, 1][..], b"exfil---"].concat();
            let sum = wire::checksum::Sum::new().bytes(&message).finish();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            f.raw().frame(&packet4(RAW_IP, v4(WWW), 1, &[], &message))
        });
        f.unanswered(&messages)
    }),
    attempt("frames of other protocols", Nothing, &[], |f| {
        let frame = f.raw().frame(&udp4(41_013, (WWW, 443), b"exfil"));
        let with_tag = [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
        let mut unknown = frame.clone();
        unknown[12..14].copy_from_slice(&[0x88, 0xb5]);
        f.unanswered(&[with_tag, unknown])
    }),
    Attempt {
        name: "an answer that the guest forges",
        outcome: Prohibited,
        log: &["udp 198.51.100.3:53 -> 198.51.100.2:", "(default deny)"],
        asks: true,
        run: |f| forged_answer(f),
    },
];

/// The guest forges the answer to a query for which the host's resolver has not answered yet. It knows the query's ID
/// and port.
fn forged_answer(fort: &Fort<'_>) -> Outcome {
    let name = "www.allowed.test";
    let asked = fort.resolver.asked().len();
    fort.script.hold(true);
    let client = fort.net.guest.udp((any(WWW), 0));
    client.send_to(&question(name, Type::A), ANY_SERVER).unwrap();
    wait_until("the query", || fort.resolver.asked().len() > asked);
    let query = fort.resolver.asked().pop().unwrap().message;
    let mut forged =
        Message::response(name, Type::A).answer(name, Type::A, &[Bytes(&[198, 51, 100, 3])]).bytes();
    forged[..2].copy_from_slice(&query[..2]);
    let upper = datagram((PEER[0], 53), (HOST[0], port_of(fort, &query)), &forged);
    let outcome = fort.packet(&packet4(v4(PEER[0]), v4(HOST[0]), UDP, &[], &upper));
    fort.script.hold(false);
    let (answer, _) = recv_from(&client);
    assert!(answer.ends_with(&v4(WWW).octets()), "the resolver's answer");
    assert_eq!(fort.tell("198.51.100.3:443", &[b"exfil"]), Refused);
    outcome
}

/// The port of the host from which a query over IPv4 was sent.
fn port_of(fort: &Fort<'_>, query: &[u8]) -> u16 {
    let frames = fort.capture.as_ref().unwrap().frames();
    let frame = frames.iter().find(|frame| frame.ends_with(query)).unwrap();
    u16::from_be_bytes([frame[34], frame[35]])
}
