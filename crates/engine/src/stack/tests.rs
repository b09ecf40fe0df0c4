//! Fragments of the guest through the whole stack (behaviour §4.7).

mod events;
mod guard;
mod listing;
mod membership;
mod replacement;
mod virtual_network;

use alloc::{vec, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use wire::{
    ethernet, fragment,
    frame::{self, MAX_LEN, Outgoing, Transport},
    icmp::{Header, Message},
    ipv4,
    offload::{Offload, PartialChecksum},
    segment::complete_checksum,
};

use zerocopy::FromBytes;

use super::*;
use crate::{
    pressure::Pressure,
    testkit::{
        self,
        datagram::Opened,
        guest::{headers, ip},
        host::VirtualHost,
        link::{Capture, Kept, Virtual},
        settings::{START, guest, limits, settings},
    },
};

const GUEST: &str = "198.51.100.55:4000";
const GUEST6: &str = "[2001:db8:1::55]:4000";
const PEER: &str = "203.0.113.1:7";
const PEER6: &str = "[2001:db8:2::1]:7";

struct Test {
    stack: Stack<Virtual<Kept>>,
    host: VirtualHost,
    link: Capture,
    now: Instant,
}

impl Test {
    fn new() -> Self {
        let settings = settings();
        let guest = guest(&settings);
        let mut limits = limits();
        limits.udp.endpoints.most = 600;
        limits.udp.idle = Duration::from_secs(300);
        limits.udp.idle_stream = Duration::from_secs(300);
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [7; 16], query_secret: [8; 16], advertisement: 1 };
        Self {
            stack: Stack::new(settings, guest, limits, seeds, START),
            host: VirtualHost::default(),
            link: Capture::default(),
            now: START,
        }
    }

    fn round(&mut self) -> Round<'_, Virtual<Kept>> {
        self.stack.round(self.now, &mut self.host, &mut self.link)
    }

    fn receive(&mut self, frame: &[u8], offload: &Offload) {
        let mut round = self.round();
        round.frame(frame::head(frame), frame, offload);
        assert_eq!(round.finish(), Pressure::None);
    }

    fn receive_all(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.receive(frame, &Offload::default()));
    }

    /// Advances the time and handles deadlines. Returns the frames sent, without router advertisements.
    fn wait(&mut self, time: Duration) -> Vec<Vec<u8>> {
        self.now = self.now + time;
        assert_eq!(self.round().finish(), Pressure::None);
        let frames = core::mem::take(&mut self.link.frames).into_iter().map(|(frame, _)| frame);
        frames.filter(|frame| !ip(frame).destination.is_multicast()).collect()
    }

    #[track_caller]
    fn socket(&self) -> &Opened {
        assert_eq!(self.host.opened.len(), 1);
        &self.host.opened[0]
    }
}

fn outgoing(from: SocketAddr, to: SocketAddr) -> Outgoing {
    Outgoing { hop_limit: 9, traffic_class: 0xb8, ..headers(from.ip(), to.ip()) }
}

/// A UDP datagram of the guest with a complete checksum.
fn datagram(from: &str, to: &str, payload: &[u8]) -> (Outgoing, Vec<u8>) {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let headers = outgoing(from, to);
    let (mut frame, offload) = testkit::guest::udp(&headers, (from.port(), to.port()), payload);
    complete_checksum(&mut frame, &offload);
    frame.truncate(headers.headroom(8) + payload.len());
    (headers, frame)
}

fn fragments(from: &str, to: &str, payload: &[u8]) -> Vec<Vec<u8>> {
    let (headers, frame) = datagram(from, to, payload);
    testkit::guest::fragments(&headers, 17, &frame[headers.headroom(0)..], 1448)
}

const BOTH: [(&str, &str); 2] = [(GUEST, PEER), (GUEST6, PEER6)];

/// The host's socket sends a datagram above the guest's MTU as one datagram. The order of the fragments does not
/// matter.
#[test]
fn a_datagram_in_fragments_is_sent_whole() {
    for (guest, peer) in BOTH {
        for len in [1449 - 8, 3000, 65_507 - 20, 40_000] {
            let payload: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
            for reverse in [false, true] {
                let mut test = Test::new();
                let mut frames = fragments(guest, peer, &payload);
                assert!(frames.len() > 1);
                if reverse {
                    frames.reverse();
                }
                test.receive_all(&frames);
                let sent = test.socket().socket.sent();
                assert_eq!(sent.len(), 1, "{len}");
                assert!(sent[0].payload == payload);
                assert_eq!((sent[0].hop_limit, sent[0].traffic_class), (9, 0xb8));
                assert_eq!(sent[0].destination, peer.parse().unwrap());
                assert_eq!(test.stack.counters().total(), 0);
            }
        }
    }
}

/// The same applies to echo requests, such as `ping -s 3000` at an MTU of 1500.
#[test]
fn an_echo_request_in_fragments_is_sent_whole() {
    for (guest, peer, protocol, kind) in [(GUEST, PEER, 1, 8), (GUEST6, PEER6, 58, 128)] {
        let headers = outgoing(guest.parse().unwrap(), peer.parse().unwrap());
        let mut frame = vec![0x5a; MAX_LEN];
        let header = Header::new(kind, 0, 0x0007_0001);
        let written = headers.icmp(&mut frame, header, 3000).unwrap();
        let mut test = Test::new();
        test.receive_all(&testkit::guest::fragments(
            &headers,
            protocol,
            &frame[headers.headroom(0)..written.len],
            1448,
        ));
        let sent = test.socket().socket.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].payload.len(), 3008);
    }
}

/// The checksum of a fragmented datagram is verified after reassembly, since no link can verify it.
#[test]
fn the_checksum_is_verified_after_reassembly() {
    for (guest, peer) in BOTH {
        let mut test = Test::new();
        let mut frames = fragments(guest, peer, &[1; 3000]);
        *frames[1].last_mut().unwrap() ^= 1;
        test.receive_all(&frames);
        assert_eq!((test.host.opened.len(), test.stack.counters().checksums), (0, 1));
        // The checksum may be missing only over IPv4 (RFC 768, RFC 8200 §8.1).
        let mut frames = fragments(guest, peer, &[1; 3000]);
        let at = if guest == GUEST { 14 + 20 + 6 } else { 14 + 48 + 6 };
        frames[0][at..at + 2].fill(0);
        test.receive_all(&frames);
        assert_eq!(test.host.opened.len(), usize::from(guest == GUEST));
    }
}

/// The header of each fragment has its own checksum.
#[test]
fn a_fragment_with_a_wrong_header_checksum_is_dropped() {
    let mut test = Test::new();
    let mut frames = fragments(GUEST, PEER, &[1; 3000]);
    frames[1][22] ^= 1; // TTL
    test.receive_all(&frames);
    assert_eq!((test.host.opened.len(), test.stack.counters().checksums), (0, 1));
}

/// A fragment with a partial checksum is dropped, since the checksum covers the whole datagram.
#[test]
fn a_fragment_has_no_partial_checksum() {
    let mut test = Test::new();
    let frames = fragments(GUEST, PEER, &[1; 3000]);
    for start in [34, 42, 100] {
        let checksum = Some(PartialChecksum { start, offset: 6 });
        test.receive(&frames[0], &Offload { checksum, ..Offload::default() });
    }
    test.receive_all(&frames[1..]);
    assert_eq!((test.host.opened.len(), test.stack.counters().malformed), (0, 3));
}

/// RFC 8200 §4.5, RFC 792: after 60 s, the guest gets "time exceeded", which quotes the first fragment.
#[test]
fn missing_fragments_are_reported() {
    for ((guest, peer), (router, kind)) in BOTH.into_iter().zip([("198.51.100.1", 11), ("fe80::1", 3)]) {
        let mut test = Test::new();
        let frames = fragments(guest, peer, &[1; 5000]);
        test.receive_all(&frames[..2]);
        assert_eq!(test.wait(Duration::from_secs(59)), Vec::<Vec<u8>>::new());
        assert!(test.stack.next_deadline().unwrap() <= test.now + Duration::from_secs(1));
        let errors = test.wait(Duration::from_secs(1));
        assert_eq!(errors.len(), 1);
        let packet = ip(&errors[0]);
        assert_eq!(packet.source, router.parse::<core::net::IpAddr>().unwrap());
        let Transport::Icmp(Message { header, payload: quote }) = packet.transport else { panic!() };
        assert_eq!((header.kind, header.code, header.rest.get()), (kind, 1, 0));
        // The quote is the part of the first fragment that fits.
        let quoted = [&frames[0][..14], quote].concat();
        let (quoted, first) = (ip_cut(&quoted), ip_cut(&frames[0]));
        assert_eq!(quoted.0, first.0);
        assert_eq!(quoted.1, first.1[..quoted.1.len()]);
        assert!(quoted.1.len() >= 8 + 512);
        assert!(errors[0].len() <= 14 + if guest == GUEST { 576 } else { 1280 });
        assert_eq!(test.stack.counters().fragments, 1);
        // The last fragment is too late.
        test.receive_all(&frames[2..]);
        assert_eq!(test.host.opened.len(), 0);
    }
}

/// No error is sent if the fragment with the ports is missing, or about datagrams to a group (RFC 1122 §3.2.2).
#[test]
fn later_fragments_and_groups_are_not_reported() {
    for (guest, peer, from) in [(GUEST, PEER, 1), (GUEST6, PEER6, 1), (GUEST, "239.1.1.1:7", 0)] {
        let mut test = Test::new();
        test.receive_all(&fragments(guest, peer, &[1; 5000])[from..2]);
        assert_eq!(test.wait(Duration::from_secs(61)), Vec::<Vec<u8>>::new());
        assert_eq!((test.stack.counters().fragments, test.stack.reassembly.next()), (1, None));
    }
}

/// RFC 8200 §4.5: the length is not a multiple of eight, or the end is beyond the longest packet.
#[test]
fn invalid_fragments_of_ipv6_are_reported() {
    let (headers, datagram) = datagram(GUEST6, PEER6, &[1; 100]);
    for (offset, more, len, pointer) in [(0, true, 99, 4), (65_528, false, 8, 42)] {
        let mut frame = vec![0; 62];
        frame.extend_from_slice(&datagram[54..54 + len]);
        let fields = fragment::Fields { protocol: 17, id: 1, offset, more };
        let _ = headers.fragment(&mut frame, &fields, len).unwrap();
        let mut test = Test::new();
        test.receive(&frame, &Offload::default());
        let errors = test.wait(Duration::ZERO);
        let Transport::Icmp(Message { header, .. }) = ip(&errors[0]).transport else { panic!() };
        assert_eq!((errors.len(), header.kind, header.code, header.rest.get()), (1, 4, 0, pointer));
        assert_eq!(test.stack.counters().fragments, 1);
    }
    // IPv4 has no such error.
    let (headers, datagram) = datagram4();
    let mut frame = datagram[..14 + 20 + 99].to_vec();
    let fields = fragment::Fields { protocol: 17, id: 1, offset: 0, more: true };
    let _ = headers.fragment(&mut frame, &fields, 99).unwrap();
    let mut test = Test::new();
    test.receive(&frame, &Offload::default());
    assert_eq!((test.wait(Duration::ZERO).len(), test.stack.counters().fragments), (0, 1));
}

fn datagram4() -> (Outgoing, Vec<u8>) {
    datagram(GUEST, PEER, &[1; 200])
}

/// Identification, offset and payload of the fragment in a frame, or in a truncated quote of a frame.
fn ip_cut(frame: &[u8]) -> ((u32, u16, bool), Vec<u8>) {
    let mut frame = frame.to_vec();
    let len = frame.len() - 14;
    if frame[14] >> 4 == 4 {
        frame[16..18].copy_from_slice(&(len as u16).to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    }
    let Transport::Fragment(fragment) = ip(&frame).transport else { panic!() };
    ((fragment.id, fragment.offset, fragment.more), fragment.payload.to_vec())
}

/// The guest's "don't fragment" applies to the host's socket. Datagrams to groups are an exception, since no error is
/// sent about them.
#[test]
fn dont_fragment_is_carried() {
    let sent = |from, to, clear: bool, fragments: bool| {
        let mut test = Test::new();
        let (headers, mut frame) = datagram(from, to, &[1; 1000]);
        if clear {
            frame[20] &= !0x40;
            ipv4::Header::mut_from_prefix(&mut frame[14..]).unwrap().0.update_checksum();
        }
        let frames = if fragments {
            testkit::guest::fragments(&headers, 17, &frame[headers.headroom(0)..], 504)
        } else {
            vec![frame]
        };
        test.receive_all(&frames);
        test.socket().socket.sent()[0].dont_fragment
    };
    assert!(sent(GUEST, PEER, false, false));
    assert!(!sent(GUEST, PEER, true, false));
    assert!(!sent(GUEST, PEER, false, true));
    assert!(sent(GUEST6, PEER6, false, false));
    assert!(!sent(GUEST6, PEER6, false, true));
    for group in ["239.1.1.1:7", "255.255.255.255:7"] {
        assert!(!sent(GUEST, group, false, false));
    }
    assert!(!sent(GUEST6, "[ff02::fb]:7", false, false));
}

/// If a datagram is too long for a probe of the path's MTU, the host may fragment it, although the guest has set "don't
/// fragment". A datagram that fills the guest's link is a probe, and is not fragmented.
#[test]
fn dont_fragment_of_long_datagrams() {
    for ((from, to), headers) in BOTH.into_iter().zip([28, 48]) {
        for (len, dont_fragment) in
            [(1500, true), (1501, false), (9000, false), (65_520 - 1, false), (65_520, true)]
        {
            let mut test = Test::new();
            let (_, frame) = datagram(from, to, &vec![1; len - headers]);
            test.receive(&frame, &Offload::default());
            assert_eq!(test.socket().socket.sent()[0].dont_fragment, dont_fragment, "{from} {len}");
        }
    }
}

/// A packet of the guest with this protocol and arbitrary content.
fn packet_of(protocol: u8, from: &str, to: &str) -> Vec<u8> {
    let headers = outgoing(from.parse().unwrap(), to.parse().unwrap());
    let mut frame = vec![7; 102];
    let header = Header::new(7, 7, 0x0707_0707);
    let _ = headers.icmp(&mut frame, header, 40).unwrap();
    if from == GUEST {
        frame[14 + 9] = protocol;
        frame[14 + 10..14 + 12].fill(0);
        let sum = wire::checksum::Sum::new().bytes(&frame[14..34]).finish();
        frame[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[14 + 6] = protocol;
    }
    frame
}

/// RFC 1122 §3.2.2.1, RFC 4443 §3.4: unsupported protocols such as SCTP get an error with a quote, at a limited rate.
#[test]
fn protocols_that_are_not_carried_are_answered() {
    for ((guest, peer), (router, kind, code, rest)) in
        BOTH.into_iter().zip([("198.51.100.1", 3, 2, 0), ("fe80::1", 4, 1, 6)])
    {
        let mut test = Test::new();
        let frame = packet_of(132, guest, peer);
        test.receive(&frame, &Offload::default());
        let answers = test.wait(Duration::ZERO);
        assert_eq!(answers.len(), 1);
        let packet = ip(&answers[0]);
        assert_eq!(packet.source, router.parse::<core::net::IpAddr>().unwrap());
        let Transport::Icmp(Message { header, payload: quote }) = packet.transport else { panic!() };
        assert_eq!((header.kind, header.code, header.rest.get()), (kind, code, rest));
        let quoted = [&frame[..14], quote].concat();
        let Transport::Other(132, carried) = ip(&quoted).transport else { panic!() };
        assert_eq!(carried[8..], [7; 40]);
        // The limit allows a burst of ten, then ten per second.
        (0..100).for_each(|_| test.receive(&frame, &Offload::default()));
        assert_eq!(test.wait(Duration::from_secs(1)).len(), 9);
        (0..100).for_each(|_| test.receive(&frame, &Offload::default()));
        assert_eq!(test.wait(Duration::from_millis(300)).len(), 10);
        (0..100).for_each(|_| test.receive(&frame, &Offload::default()));
        assert_eq!(test.wait(Duration::ZERO).len(), 3);
        assert_eq!(test.stack.counters().unsupported, 301);
    }
}

/// No error is sent about packets to groups, from invalid sources, without a payload, or in fragments.
#[test]
fn some_packets_are_never_answered() {
    let mut test = Test::new();
    for frame in [
        packet_of(2, GUEST, "224.0.0.22:7"),
        packet_of(132, GUEST, "255.255.255.255:7"),
        packet_of(132, GUEST6, "[ff02::16]:7"),
        packet_of(59, GUEST6, PEER6),
    ] {
        test.receive(&frame, &Offload::default());
    }
    let headers = outgoing(GUEST.parse().unwrap(), PEER.parse().unwrap());
    test.receive_all(&testkit::guest::fragments(&headers, 132, &[1; 3000], 1480));
    assert_eq!(test.wait(Duration::ZERO), Vec::<Vec<u8>>::new());
    assert_eq!(test.stack.counters().unsupported, 5);
}

/// Protocols that an option has switched off get the same errors.
#[test]
fn protocols_that_are_off_are_answered() {
    let mut test = Test::new();
    test.stack.settings_mut().services.udp = false;
    let (_, frame) = datagram(GUEST, PEER, &[1; 100]);
    test.receive(&frame, &Offload::default());
    let answers = test.wait(Duration::ZERO);
    let Transport::Icmp(Message { header, .. }) = ip(&answers[0]).transport else { panic!() };
    assert_eq!((answers.len(), header.kind, header.code), (1, 3, 2));
}
