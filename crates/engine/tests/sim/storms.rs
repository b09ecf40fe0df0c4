//! Storms: a guest that floods the engine with frames of one kind, beside an honest connection. The honest connection
//! gets its share, the state stays within its limits, and each round ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use testkit::{
    guest::{dhcp_header, fragments, headers, headers_of, icmp, segment, tcp, udp},
    settings::GUEST_MAC,
};
use wire::{
    arp,
    ethernet::{self, Mac},
    icmp::Header,
    offload::Offload,
    protocol,
    tcp::{Flags, Seq},
};
use zerocopy::IntoBytes;

use crate::script::Script;

/// Number of rounds of a storm.
const ROUNDS: usize = 100;
/// Number of frames of the storm in each round.
const FRAMES: usize = 63;
/// Bytes that the honest connection sends in each round, in each direction.
const BYTES: usize = 1000;
/// Number of frames that the link accepts in a round.
const ROOM: usize = 16;

/// A frame, and its offload metadata.
type Sent = (Vec<u8>, Offload);

/// The frames of a storm, by kind. The number distinguishes the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storm {
    /// Connections that are begun and never completed, from many addresses and ports.
    HalfOpen,
    /// Segments of connections that do not exist.
    Strays,
    /// A flow of one byte for each combination of ports.
    Datagrams,
    /// Echo requests with different identifiers.
    Pings,
    /// First fragments of datagrams that are never completed.
    Fragments,
    /// A DHCP client that asks for addresses with different hardware addresses.
    Dhcp,
    /// ARP requests, from different senders.
    Arp,
    /// Neighbour solicitations and advertisements, with different addresses.
    Ndp,
    /// Multicast memberships.
    Groups,
}

impl Storm {
    const ALL: [Self; 9] = [
        Self::HalfOpen,
        Self::Strays,
        Self::Datagrams,
        Self::Pings,
        Self::Fragments,
        Self::Dhcp,
        Self::Arp,
        Self::Ndp,
        Self::Groups,
    ];

    fn frame(self, number: u32) -> Sent {
        let low = number as u16;
        let guest = Ipv4Addr::new(198, 51, 100, 100 + (number % 100) as u8);
        let anywhere = Ipv4Addr::from(0xcb00_7200 + number % 251); // 203.0.114.0/24
        let from_guest = headers(IpAddr::V4(guest), IpAddr::V4(anywhere));
        match self {
            Self::HalfOpen | Self::Strays => {
                let flags = if self == Self::HalfOpen { Flags::SYN } else { Flags::ACK };
                let ports = (1024 + low % 30_000, 80 + (number >> 24) as u16);
                let header = wire::tcp::Header::new(ports, Seq(number), Seq(1), flags, 512, 0);
                (tcp(&from_guest, header, &[], 0, |_| ()).0, Offload::VERIFIED)
            }
            Self::Datagrams => udp(&from_guest, (low | 1, (number >> 8) as u16 | 1), &[1]),
            Self::Pings => {
                let rest = (u32::from(low) << 16 | 1).into();
                verified(icmp(&from_guest, Header { kind: 8, code: 0, checksum: 0.into(), rest }, b"x"))
            }
            Self::Fragments => {
                let from =
                    headers(IpAddr::V4(guest), IpAddr::V4(Ipv4Addr::from(0xcb00_0000 | number & 0xffff)));
                verified(fragments(&from, protocol::UDP, &[0; 1400], 1024).remove(0))
            }
            Self::Dhcp => {
                let mut message = dhcp_header().to_vec();
                message[28..32].copy_from_slice(&number.to_be_bytes());
                message.extend([53, 1, 1 + 2 * (number % 2) as u8, 255]);
                udp(&headers_of("0.0.0.0", "255.255.255.255"), (68, 67), &message)
            }
            Self::Arp => {
                let sender = (GUEST_MAC, Ipv4Addr::from(0xc633_6400 + number % 256));
                let target = (Mac([0; 6]), Ipv4Addr::from(0xc633_6400 + (number >> 8) % 256));
                let mut frame = vec![0xff; 6];
                frame.extend(GUEST_MAC.0);
                frame.extend([8, 6]);
                frame.extend(arp::Packet::new(1, sender, target).as_bytes());
                frame.resize(ethernet::MIN_FRAME_LEN, 0);
                verified(frame)
            }
            Self::Ndp => {
                let source = format!("fe80::{:x}:55", number & 0xffff);
                let kind = 135 + (number % 2) as u8;
                let target =
                    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, (number >> 17) as u16, (number >> 1) as u16);
                let mut body = target.octets().to_vec();
                body.extend([1, 1]);
                body.extend(GUEST_MAC.0);
                let mut headers = headers_of(&source, "ff02::1:ff00:1");
                headers.hop_limit = 255;
                verified(icmp(&headers, Header { kind, code: 0, checksum: 0.into(), rest: 0.into() }, &body))
            }
            Self::Groups => {
                let group = Ipv4Addr::from(0xe801_0000 | number & 0xffff);
                let mut headers = headers(IpAddr::V4(guest), IpAddr::V4(group));
                headers.hop_limit = 1;
                udp(&headers, (5000, 5000), &number.to_be_bytes())
            }
        }
    }
}

fn verified(frame: Vec<u8>) -> Sent {
    (frame, Offload::VERIFIED)
}

/// An honest connection, and what it has transferred.
struct Honest {
    script: Script,
    sent: usize,
    /// The guest has received, in order, this many bytes.
    received: usize,
}

impl Honest {
    fn new() -> Self {
        let mut script = Script::connected();
        let services = &mut script.stack.settings_mut().services;
        (services.udp, services.icmp, services.multicast) = (true, true, true);
        Self { script, sent: 0, received: 0 }
    }

    /// A round with frames of a storm, and data of the honest connection in both directions.
    fn round(&mut self, storm: &[Sent]) {
        self.script.peer_of_first().arrive(BYTES as u64);
        let line =
            format!("P. {}:{} ack {} win 512", 1 + self.sent, 1 + self.sent + BYTES, 1 + self.received);
        let honest = verified(self.script.write(&line));
        self.sent += BYTES;
        self.script.limit_link(ROOM);
        let (before, after) = storm.split_at(storm.len() / 2);
        self.script.many(before.iter().chain([&honest]).chain(after));
        self.take_frames();
        self.script.peer_of_first().acknowledge_all();
        self.script.limit_link(usize::MAX);
        self.script.settle();
        self.take_frames();
        self.script.pass(std::time::Duration::from_millis(1));
        self.take_frames();
    }

    fn take_frames(&mut self) {
        let our_iss = self.script.our_iss.unwrap();
        for frame in self.script.sent_frames() {
            let Some((packet, segment)) = segment(&frame) else { continue };
            let is_honest = packet.destination == self.script.guest.ip()
                && segment.header.destination_port.get() == self.script.guest.port();
            if is_honest {
                assert!(!segment.flags().contains(Flags::RST), "the honest connection is reset");
                let start = segment.seq().0.wrapping_sub(our_iss + 1) as usize;
                if start <= self.received {
                    self.received = self.received.max(start + segment.payload.len());
                }
            }
        }
    }

    /// The honest connection has at least half of its share. All state is within its limits.
    fn check(&mut self, what: &dyn std::fmt::Debug) {
        let wanted = (ROUNDS * BYTES) as u64;
        let peer = self.script.peer_of_first();
        assert!(peer.closed().is_none(), "{what:?}: the honest connection has ended");
        assert!(peer.state().sent >= wanted / 2, "{what:?}: {} bytes of {wanted} sent", peer.state().sent);
        assert!(self.received as u64 >= wanted / 2, "{what:?}: {} bytes of {wanted}", self.received);
        let stack = &self.script.stack;
        assert!(stack.tcp().len() <= 4 && stack.udp().flows() <= 40, "{what:?}");
        assert!(stack.tcp().queue_memory() <= 1 << 20, "{what:?}");
        assert!(stack.timers().len() <= 64, "{what:?}: {} deadlines", stack.timers().len());
        // After it, the guest gets new flows of all kinds, when the old ones have expired.
        self.script.pass(std::time::Duration::from_secs(200));
        self.script.host.peers.truncate(1);
        assert!(stack_is_quiet(&self.script), "{what:?}");
    }
}

/// Only deadlines of connections are left.
fn stack_is_quiet(script: &Script) -> bool {
    script.stack.udp().flows() == 0 && script.stack.timers().len() <= script.stack.tcp().len()
}

#[test]
fn an_honest_connection_has_its_share_in_each_storm() {
    for storm in Storm::ALL {
        let mut honest = Honest::new();
        for round in 0..ROUNDS {
            let number = |index: usize| (round * FRAMES + index) as u32;
            let frames: Vec<Sent> = (0..FRAMES).map(|index| storm.frame(number(index))).collect();
            honest.round(&frames);
        }
        honest.check(&storm);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    /// Frames of all kinds, in any order, and some with a wrong byte.
    #[test]
    fn an_honest_connection_has_its_share_in_mixed_storms(
        kinds in prop::collection::vec((0..Storm::ALL.len(), any::<u32>(), prop::option::of((any::<prop::sample::Index>(), any::<u8>()))), 500),
    ) {
        let mut honest = Honest::new();
        for round in 0..ROUNDS {
            let frames = (0..FRAMES).map(|index| {
                let (kind, number, change) = &kinds[(round * 37 + index) % kinds.len()];
                let (mut frame, offload) = Storm::ALL[*kind].frame(number ^ round as u32);
                if let Some((at, byte)) = change
                    && !frame.is_empty()
                {
                    // Never the addresses of the Ethernet header: they are those of the guest.
                    let at = 12 + at.index(frame.len() - 12);
                    frame[at] = *byte;
                }
                (frame, offload)
            });
            honest.round(&frames.collect::<Vec<_>>());
        }
        honest.check(&"mixed");
    }
}
