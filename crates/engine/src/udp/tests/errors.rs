//! Tests of errors that datagrams of the guest cause (behaviour §7.4).

use wire::{checksum::Sum, frame::Transport};

use super::*;
use crate::{
    guard::{Guard, Mode},
    host::Errno,
    policy::spec,
};

const ECONNREFUSED: SocketError = SocketError::Failed(Errno(111));
const ENETUNREACH: SocketError = SocketError::Failed(Errno(101));

fn queued(destination: &str, kind: u8, code: u8, mtu: u32, offender: &str) -> QueuedError {
    QueuedError {
        destination: destination.parse().unwrap(),
        local: None,
        report: Some(Report { kind, code, info: mtu }),
        refused: false,
        offender: offender.parse().ok(),
        quoted: 0,
    }
}

/// An ICMP error in a frame: its source, type, code and last four header bytes, and the quoted packet.
#[track_caller]
pub(super) fn icmp_error(frame: &[u8]) -> ((IpAddr, u8, u8, u32), Vec<u8>) {
    let packet = ip(frame);
    let Transport::Icmp(message) = packet.transport else { panic!("no ICMP") };
    let len = 8 + message.payload.len();
    let at = headroom(packet.source.is_ipv4()) - 8;
    let sum = match packet.source {
        IpAddr::V4(_) => Sum::new(),
        IpAddr::V6(_) => Sum::new().pseudo_header(packet.source, packet.destination, 58, len),
    };
    assert_eq!(sum.bytes(&frame[at..at + len]).finish(), 0, "checksum");
    let header = message.header;
    ((packet.source, header.kind, header.code, header.rest.get()), message.payload.to_vec())
}

/// A quoted packet as a frame, for the parser.
pub(super) fn quoted_frame(quote: &[u8]) -> Vec<u8> {
    let ethertype = if quote[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&[0; 12][..], &ethertype, quote].concat()
}

/// the guest gets an error with the same type, code and MTU, and a quote of its datagram. The source is the
/// error's sender as the guest sees it.
#[test]
pub(super) fn icmp_errors_are_rebuilt_r94() {
    let v4 = "203.0.113.1:8";
    let v6 = "[2001:db8:2::1]:8";
    let (hop4, hop6) = ("192.0.2.254", "2001:db8:ff::1");
    // Columns: the guest's destination, the same destination on the host's side, the error, the source that the guest
    // sees, ...
    let rows = [
        (v4, v4, queued(v4, 3, 3, 0, "203.0.113.1"), "203.0.113.1", 0),
        (v4, v4, queued(v4, 11, 0, 0, hop4), hop4, 0),
        (v4, v4, queued(v4, 3, 4, 1400, hop4), hop4, 1400),
        (v4, v4, queued(v4, 3, 1, 0, ""), "203.0.113.1", 0),
        (v4, v4, queued(v4, 3, 1, 0, "198.51.100.2"), "198.51.100.77", 0),
        (v6, v6, queued(v6, 1, 4, 0, "2001:db8:2::1"), "2001:db8:2::1", 0),
        (v6, v6, queued(v6, 2, 0, 1280, hop6), hop6, 1280),
        (v6, v6, queued(v6, 3, 0, 0, hop6), hop6, 0),
        // The gateway, which is mapped to the host's loopback.
        ("198.51.100.1:8", "127.0.0.1:8", queued("127.0.0.1:8", 3, 3, 0, "127.0.0.1"), "198.51.100.1", 0),
        ("[fe80::1]:8", "[::1]:8", queued("[::1]:8", 1, 4, 0, "::1"), "fe80::1", 0),
    ];
    for (remote, peer, error, shown, rest) in rows {
        let mut test = Test::new();
        let guest = if remote.starts_with('[') { GUEST6 } else { GUEST };
        test.guest_sends(guest, remote, b"question");
        let socket = test.opened(0);
        assert_eq!(socket.socket.sent()[0].destination, peer.parse().unwrap());
        socket.socket.error(error, b"question");
        test.ready(&socket, ERROR);
        let (frame, _) = test.world.frame();
        let report = error.report.unwrap();
        let (reported, quote) = icmp_error(&frame);
        assert_eq!(reported, (shown.parse().unwrap(), report.kind, report.code, rest), "{error:?}");
        assert_eq!(ip(&frame).destination, guest.parse::<SocketAddr>().unwrap().ip());
        assert_shown(&quoted_frame(&quote), guest, remote, b"question");
    }
}

/// behaviour §7.4: with its quote, the message has at most 576 (IPv4) or 1280 (IPv6) bytes.
#[test]
fn quotes_are_bounded() {
    for (guest, remote, kind, total) in
        [(GUEST, "203.0.113.1:8", 3, 576), (GUEST6, "[2001:db8:2::1]:8", 1, 1280)]
    {
        let mut test = Test::new();
        test.guest_sends(guest, remote, b"x");
        let socket = test.opened(0);
        socket.socket.error(queued(remote, kind, 0, 0, ""), &[7; 3000]);
        test.ready(&socket, ERROR);
        assert_eq!(test.world.frame().0.len(), wire::ethernet::HEADER_LEN + total);
    }
}

/// Errors of the host itself, errors without a flow, and a pending error without an entry are cleared and not reported
///
#[test]
fn errors_are_cleared_r95() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    socket.socket.error(QueuedError { report: None, ..queued("203.0.113.1:8", 0, 0, 0, "") }, b"");
    socket.socket.error(queued("203.0.113.2:8", 3, 3, 0, "203.0.113.2"), b"");
    test.ready(&socket, ERROR);
    socket.socket.mailbox().pending = Some(Errno(5));
    test.ready(&socket, ERROR);
    assert!(socket.socket.mailbox().errors.is_empty());
    assert_eq!(socket.socket.mailbox().pending, None);
    assert_eq!(test.world.frames().len(), 0);
    assert_eq!(test.udp.flows(), 1);
    // They are also cleared if the link is full.
    test.world.link.full = true;
    socket.socket.error(queued("203.0.113.1:8", 3, 3, 0, "203.0.113.1"), b"");
    test.ready(&socket, ERROR);
    assert!(socket.socket.mailbox().errors.is_empty());
}

/// A send that reports the error of an earlier datagram is repeated, so no datagram is lost.
#[test]
fn an_old_error_loses_no_new_datagram() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"one");
    let socket = test.opened(0);
    socket.socket.sent();
    socket.socket.mailbox().refusals.push_back(ECONNREFUSED);
    socket.socket.error(queued("203.0.113.1:8", 3, 3, 0, "203.0.113.1"), b"one");
    test.guest_sends(GUEST, "203.0.113.2:8", b"two");
    assert_eq!(socket.socket.sent()[0].payload, b"two");
    let (reported, quote) = icmp_error(&test.world.frame().0);
    assert_eq!(reported, ("203.0.113.1".parse().unwrap(), 3, 3, 0));
    assert_shown(&quoted_frame(&quote), GUEST, "203.0.113.1:8", b"one");
    assert_eq!(test.udp.counters().not_sent, 0);
}

/// If the host has no route, the guest gets an error from its gateway. There is no error about datagrams to groups (RFC
/// 1122 §3.2.2).
#[test]
fn refusals_of_the_host_are_reported() {
    for (guest, remote, gateway, kind) in
        [(GUEST, "203.0.113.1:8", "198.51.100.1", 3), (GUEST6, "[2001:db8:2::1]:8", "fe80::1", 1)]
    {
        let mut test = Test::new();
        test.guest_sends(guest, remote, b"x");
        let socket = test.opened(0);
        socket.socket.mailbox().refusals.extend([ENETUNREACH, ENETUNREACH]);
        test.guest_sends(guest, remote, b"question");
        let (reported, quote) = icmp_error(&test.world.frame().0);
        assert_eq!(reported, (gateway.parse().unwrap(), kind, 0, 0));
        assert_shown(&quoted_frame(&quote), guest, remote, b"question");
        assert_eq!(test.udp.counters().not_sent, 1);
    }
    let mut test = Test::new();
    test.guest_sends(GUEST, "239.1.1.1:8", b"x");
    let socket = test.opened(0);
    socket.socket.mailbox().refusals.extend([ENETUNREACH, ENETUNREACH]);
    test.guest_sends(GUEST, "239.1.1.1:8", b"x");
    socket.socket.mailbox().refusals.push_back(SocketError::WouldBlock);
    test.guest_sends(GUEST, "239.1.1.1:8", b"x");
    assert_eq!(test.world.frames().len(), 0);
    assert_eq!(test.udp.counters().not_sent, 2);
}

fn refused(destination: &str, kind: u8, code: u8, mtu: u32) -> QueuedError {
    QueuedError { refused: true, ..queued(destination, kind, code, mtu, "") }
}

const EMSGSIZE: SocketError = SocketError::Failed(Errno(90));

/// If the host refuses a datagram that exceeds the path's MTU, the guest gets one error with the MTU from its gateway.
#[test]
fn a_datagram_above_the_paths_mtu_is_reported() {
    for (guest, remote, gateway, kind, code) in
        [(GUEST, "203.0.113.1:8", "198.51.100.1", 3, 4), (GUEST6, "[2001:db8:2::1]:8", "fe80::1", 2, 0)]
    {
        let mut test = Test::new();
        test.guest_sends(guest, remote, b"x");
        let socket = test.opened(0);
        socket.socket.sent();
        socket.socket.mailbox().refusals.push_back(EMSGSIZE);
        // For IPv4, the kernel does not report the port.
        let destination = remote.replace("203.0.113.1:8", "203.0.113.1:0");
        socket.socket.error(refused(&destination, kind, code, 1400), b"");
        test.guest_sends(guest, remote, &[7; 300]);
        let (reported, quote) = icmp_error(&test.world.frame().0);
        assert_eq!(reported, (gateway.parse().unwrap(), kind, code, 1400));
        assert_shown(&quoted_frame(&quote), guest, remote, &[7; 300]);
        assert_eq!((socket.socket.sent().len(), test.udp.counters().not_sent), (0, 1));
        assert!(socket.socket.mailbox().errors.is_empty());
        // The next datagram, which fits, is sent.
        test.guest_sends(guest, remote, b"y");
        assert_eq!((socket.socket.sent().len(), test.world.frames().len()), (1, 0));
    }
}

/// An older error and a refusal are both reported. Only the older error makes the engine repeat the call.
#[test]
fn an_old_error_and_a_refusal() {
    let mut test = Test::new();
    test.guest_sends(GUEST, "203.0.113.1:8", b"x");
    let socket = test.opened(0);
    socket.socket.sent();
    socket.socket.mailbox().refusals.extend([ECONNREFUSED, EMSGSIZE]);
    socket.socket.error(queued("203.0.113.1:8", 3, 3, 0, "203.0.113.1"), b"x");
    test.guest_sends(GUEST, "203.0.113.1:8", &[7; 100]);
    let frames = test.world.frames();
    let reported: Vec<_> = frames.iter().map(|(frame, _)| icmp_error(frame).0).collect();
    let of = |source: &str, code, mtu| (source.parse::<IpAddr>().unwrap(), 3, code, mtu);
    // There is no entry for the refusal, so the MTU is not known.
    assert_eq!(reported, [of("203.0.113.1", 3, 0), of("198.51.100.1", 4, 0)]);
}

/// A reported MTU is never below the minimum of IPv6 (RFC 8201 §4).
#[test]
fn the_least_mtu_of_ipv6() {
    for (number, said) in [(0, 1280), (1279, 1280), (1280, 1280), (1281, 1281)] {
        let mut test = Test::new();
        test.guest_sends(GUEST6, "[2001:db8:2::1]:8", b"x");
        let socket = test.opened(0);
        socket.socket.error(queued("[2001:db8:2::1]:8", 2, 0, number, "2001:db8:2::1"), b"x");
        test.ready(&socket, ERROR);
        assert_eq!(icmp_error(&test.world.frame().0).0.3, said);
    }
}

/// A report about a train quotes only its first datagram. It does not matter whether the host or a router has refused
/// the train.
#[test]
fn a_report_about_a_train_quotes_its_first_datagram() {
    let offload = Offload {
        segmentation: Some(Segmentation { kind: SegmentKind::Udp, size: 200, ecn: false }),
        ..Offload::default()
    };
    let train: Vec<u8> = (0..700_u32).map(|at| (at / 100) as u8).collect();
    for (guest, remote) in [(GUEST, "203.0.113.1:8"), (GUEST6, "[2001:db8:2::1]:8")] {
        for by_guard in [false, true] {
            let mut test = Test::new();
            if by_guard {
                let file = spec::parse_file("deny all").unwrap();
                let policy = crate::policy::Policy::new(file.rules, file.default).unwrap();
                test.world.guard = Guard::new(policy, Mode::default(), [1; 16]);
            } else {
                test.guest_sends(guest, remote, b"x");
                test.opened(0).socket.mailbox().refusals.extend([ENETUNREACH, ENETUNREACH]);
            }
            test.guest_sends_as(guest, remote, &train, 64, 0, &offload);
            let (_, quote) = icmp_error(&test.world.frame().0);
            assert_shown(&quoted_frame(&quote), guest, remote, &train[..200]);
        }
    }
}
