use std::net::SocketAddrV6;

use engine::forward::IfName;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::getsockname,
};

use super::*;
use crate::budgets::ledger::{Class, plenty};
use crate::{
    isolated::{add_link, add_v6_address, ip, isolated, sysctl},
    plan,
};

fn outbound(source: Option<Ipv4Addr>, interface: Option<&str>, freebind: bool) -> Arc<Outbound> {
    let interface: Option<IfName> = interface.map(|name| name.parse().unwrap());
    let v4 = plan::Outbound { address: source, interface };
    let v6 = plan::Outbound { address: None, interface: None };
    Arc::new(Outbound::new(&v4, &v6, freebind).unwrap())
}

fn plain() -> Arc<Outbound> {
    outbound(None, None, false)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(socket: &UdpSocket) -> u16 {
    SocketAddr::try_from(getsockname(&socket.fd).unwrap()).unwrap().port()
}

fn listener(text: Option<&str>, port: u16, outbound: &Arc<Outbound>) -> io::Result<UdpSocket> {
    let listen = text.map(address);
    let fd = prepare_listener(listen, outbound.freebind)?;
    bind(&fd, &SocketAddr::new(listen.unwrap_or(address("::")), port))?;
    let permit = plenty().1.take_anyway(Class::Listener);
    Ok(UdpSocket::from_listener(fd, listen, outbound, permit))
}

fn datagram<'a>(to: &str, port: u16, payload: &'a [u8]) -> OutboundDatagram<Payload<'a>> {
    OutboundDatagram {
        destination: SocketAddr::new(address(to), port),
        source: None,
        hop_limit: 64,
        traffic_class: 0,
        dont_fragment: false,
        payload: payload.into(),
        segment_size: None,
    }
}

/// Waits for a datagram (bounded), and receives it.
#[track_caller]
fn receive(socket: &mut UdpSocket) -> (Received, Vec<u8>) {
    wait(socket, PollFlags::IN);
    let mut buffer = vec![0; 65535];
    let received = socket.receive((&mut buffer[..]).into()).unwrap();
    buffer.truncate(received.len);
    (received, buffer)
}

#[track_caller]
fn wait(socket: &UdpSocket, what: PollFlags) {
    let mut polled = [PollFd::new(socket, what)];
    poll(&mut polled, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
    assert!(polled[0].revents().contains(what), "nothing in 5 s");
}

/// Q7, Q8: the socket has the guest's port if this port is free, else any port.
#[test]
fn q_7_same_port_or_any() {
    isolated(|| {
        for family in ["198.51.100.2", "2001:db8::2"] {
            let first = UdpSocket::open(&plain(), address(family), 5353).unwrap();
            assert_eq!((port(&first), first.keeps_port()), (5353, true));
            let second = UdpSocket::open(&plain(), address(family), 5353).unwrap();
            assert_ne!(port(&second), 5353);
            assert_eq!(second.refused_port(), Some(io::Errno::ADDRINUSE));
        }
    });
}

/// Datagrams are sent from a port that other programs share for a group. No datagram for the other programs is
/// received.
#[test]
fn a_shared_port_sends_only() {
    isolated(|| {
        add_link("out0", "10.0.1.1/24");
        sysctl("net/ipv6/conf/out0/disable_ipv6", "0");
        add_v6_address("2001:db8::1", "out0");
        ip("route add 224.0.0.0/4 dev out0");
        let index = rustix::net::netdevice::name_to_index(new(false).unwrap(), "out0").unwrap();
        let groups = [("224.0.0.251", "0.0.0.0", "10.0.1.1"), ("ff02::fb", "::", "2001:db8::1")];
        for (group, wildcard, own) in groups {
            let scope = |text| match SocketAddr::new(address(text), 5353) {
                SocketAddr::V6(v6) if text == group => SocketAddrV6::new(*v6.ip(), 5353, 0, index).into(),
                other => other,
            };
            let daemon = prepare_listener(Some(address(wildcard)), false).unwrap();
            sockopt::set_socket_reuseaddr(&daemon, true).unwrap();
            bind(&daemon, &SocketAddr::new(address(wildcard), 5353)).unwrap();
            match address(group) {
                IpAddr::V4(group) => sockopt::set_ip_add_membership(&daemon, &group, &Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(group) => sockopt::set_ipv6_add_membership(&daemon, &group, index),
            }
            .unwrap();
            let permit = plenty().1.take_anyway(Class::Listener);
            let mut daemon = UdpSocket::from_listener(daemon, Some(address(wildcard)), &plain(), permit);
            let mut shared = UdpSocket::share(&plain(), scope(group), 5353).unwrap();
            let response =
                |to, payload| OutboundDatagram { destination: scope(to), ..datagram(to, 5353, payload) };
            shared.send(&response(group, b"from the guest")).unwrap();
            let (received, payload) = receive(&mut daemon);
            assert_eq!((received.from.port(), &payload[..]), (5353, &b"from the guest"[..]));
            let mut other = UdpSocket::open(&plain(), address(own), 7000).unwrap();
            for to in [own, group] {
                other.send(&response(to, b"to the daemon")).unwrap();
                assert_eq!(receive(&mut daemon).1, b"to the daemon");
                let mut room = [0; 100];
                assert_eq!(shared.receive((&mut room[..]).into()), Err(SocketError::WouldBlock), "{to}");
            }
        }
        // This port is not shared.
        let _own = UdpSocket::open(&plain(), address("127.0.0.1"), 1900).unwrap();
        UdpSocket::share(&plain(), "224.0.0.251:1900".parse().unwrap(), 1900).unwrap_err();
    });
}

/// behaviour §7.3, Q21: hop limit, traffic class and empty datagrams, over both families.
#[test]
fn metadata_is_carried() {
    isolated(|| {
        for (family, loopback) in [("198.51.100.2", "127.0.0.1"), ("2001:db8::2", "::1")] {
            let mut a = UdpSocket::open(&plain(), address(family), 7001).unwrap();
            let mut b = UdpSocket::open(&plain(), address(family), 7002).unwrap();
            for (hop_limit, traffic_class) in [(64, 0), (9, 0xb9), (1, 2), (255, 0)] {
                let out = OutboundDatagram { hop_limit, traffic_class, ..datagram(loopback, 7002, b"") };
                a.send(&out).unwrap();
                let (received, payload) = receive(&mut b);
                assert_eq!((received.hop_limit, received.traffic_class), (Some(hop_limit), traffic_class));
                assert_eq!((received.from, payload.len()), (SocketAddr::new(address(loopback), 7001), 0));
            }
            assert_eq!(b.receive((&mut [0; 10][..]).into()), Err(SocketError::WouldBlock));
        }
    });
}

/// The kernel segments and joins trains. If the kernel can't segment a train, the datagrams are sent nevertheless.
#[test]
fn trains() {
    isolated(|| {
        let train: Vec<u8> = (0..50_000_u32).map(|i| (i % 251) as u8).collect();
        for (family, loopback) in [("198.51.100.2", "127.0.0.1"), ("2001:db8::2", "::1")] {
            let mut a = UdpSocket::open(&plain(), address(family), 7001).unwrap();
            let mut b = UdpSocket::open(&plain(), address(family), 7002).unwrap();
            a.send(&OutboundDatagram { segment_size: Some(1400), ..datagram(loopback, 7002, &train) })
                .unwrap();
            let (received, payload) = receive(&mut b);
            assert_eq!((received.segment_size, payload == train), (Some(1400), true));
        }
        // More datagrams than the kernel accepts at once, and datagrams that exceed the path's MTU.
        ip("link set lo mtu 1280");
        let mut a = UdpSocket::open(&plain(), address("198.51.100.2"), 7003).unwrap();
        let mut b = UdpSocket::open(&plain(), address("198.51.100.2"), 7004).unwrap();
        for (size, len) in [(40, 5000), (1400, 20_000)] {
            let out =
                OutboundDatagram { segment_size: Some(size), ..datagram("127.0.0.1", 7004, &train[..len]) };
            a.send(&out).unwrap();
            let mut got = Vec::new();
            while got.len() < len {
                let (received, payload) = receive(&mut b);
                assert!(
                    received.segment_size.is_some_and(|s| s == size) || payload.len() <= usize::from(size)
                );
                got.extend_from_slice(&payload);
            }
            assert_eq!(got, train[..len]);
        }
    });
}

/// a dual-stack listener reports the destination address of a datagram, and answers from this
/// address, even if the host's default is another address. With `--freebind`, it also answers from an address that was
/// added later.
#[test]
fn listeners_answer_from_what_was_written_to_r93_r98_r108() {
    isolated(|| {
        sysctl("net/ipv6/bindv6only", "1");
        let mut host = listener(None, 5300, &plain()).unwrap();
        for (family, hit) in [("198.51.100.2", "127.0.0.7"), ("2001:db8::2", "::1")] {
            let mut client = UdpSocket::open(&plain(), address(family), 7001).unwrap();
            client.send(&datagram(hit, 5300, b"question")).unwrap();
            let (received, _) = receive(&mut host);
            assert_eq!((received.destination, received.local), (Some(address(hit)), Some(address(hit))));
            let answer = OutboundDatagram {
                destination: received.from,
                source: received.local,
                ..datagram(hit, 0, b"a")
            };
            host.send(&answer).unwrap();
            assert_eq!(receive(&mut client).0.from, SocketAddr::new(address(hit), 5300));
        }
        let foreign = "192.0.2.77";
        assert_eq!(listener(Some(foreign), 5301, &plain()).unwrap_err(), io::Errno::ADDRNOTAVAIL);
        let mut free = listener(Some(foreign), 5301, &outbound(None, None, true)).unwrap();
        ip(&format!("address add {foreign}/24 dev lo"));
        let mut client = UdpSocket::open(&plain(), address("127.0.0.1"), 7001).unwrap();
        client.send(&datagram(foreign, 5301, b"question")).unwrap();
        let (received, _) = receive(&mut free);
        let answer = OutboundDatagram {
            destination: received.from,
            source: received.local,
            ..datagram(foreign, 0, b"a")
        };
        free.send(&answer).unwrap();
        assert_eq!(receive(&mut client).0.from, SocketAddr::new(address(foreign), 5301));
    });
}

/// `--outbound` and `--outbound-if4` set the source and the interface of the guest's datagrams, but not of datagrams to
/// loopback. They also apply to a listener.
#[test]
fn outbound_source_and_interface() {
    isolated(|| {
        add_link("out0", "10.0.1.1/24");
        add_link("out1", "10.0.2.1/24");
        ip("route add default dev out1");
        // Without ARP, packets are sent without an ARP reply.
        ip("link set out0 arp off");
        ip("link set out1 arp off");
        let source = Ipv4Addr::new(10, 0, 1, 1);
        let out = outbound(Some(source), Some("out0"), false);
        let index = out.egress(source.into()).interface_index("203.0.113.1:8".parse().unwrap());
        assert_ne!(index, 0);
        assert_eq!(out.egress(address("127.0.0.1")).interface_index("127.0.0.1:8".parse().unwrap()), 0);
        let mut receiver = UdpSocket::open(&plain(), address("127.0.0.1"), 7002).unwrap();
        let mut socket = UdpSocket::open(&out, address("198.51.100.2"), 7001).unwrap();
        socket.send(&datagram("127.0.0.1", 7002, b"x")).unwrap();
        assert_eq!(receive(&mut receiver).0.from, SocketAddr::new(source.into(), 7001));
        let mut through = listener(None, 5300, &out).unwrap();
        let info = through.send_info(&datagram("203.0.113.1", 8, b"x"));
        assert_eq!((info.source, info.interface), (Some(source.into()), index));
        // The default route uses the other interface. An answer of a pinned flow follows this route.
        let (sent0, sent1) = (sent_by("out0"), sent_by("out1"));
        through.send(&datagram("203.0.113.1", 8, b"x")).unwrap();
        assert_eq!((sent_by("out0"), sent_by("out1")), (sent0 + 1, sent1));
        through
            .send(&OutboundDatagram { source: Some(source.into()), ..datagram("203.0.113.1", 8, b"x") })
            .unwrap();
        assert_eq!((sent_by("out0"), sent_by("out1")), (sent0 + 1, sent1 + 1));
    });
}

/// How many packets an interface of the thread's namespace has sent.
fn sent_by(interface: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let mut fields = table.lines().map(str::split_whitespace);
    let mut line = fields.find(|line| line.clone().next() == Some(&format!("{interface}:"))).unwrap();
    line.nth(10).unwrap().parse().unwrap()
}

/// behaviour §7.4, R-95: the error queue reports a closed port. The next send fails once. Then sending works again.
#[test]
fn refused_datagrams_are_told_r95() {
    isolated(|| {
        for (family, loopback, kind, code) in
            [("198.51.100.2", "127.0.0.1", 3, 3), ("2001:db8::2", "::1", 1, 4)]
        {
            let mut socket = UdpSocket::open(&plain(), address(family), 7001).unwrap();
            let out = datagram(loopback, 7009, b"question");
            socket.send(&out).unwrap();
            wait(&socket, PollFlags::ERR);
            assert!(matches!(socket.send(&out), Err(SocketError::Failed(Errno(111)))));
            let mut quote = [0; 100];
            let error = socket.take_queued_error(&mut quote).unwrap();
            assert_eq!(error.destination, SocketAddr::new(address(loopback), 7009));
            assert_eq!(error.report, Some(Report { kind, code, info: 0 }));
            assert_eq!(error.offender, Some(address(loopback)));
            assert_eq!(&quote[..error.quoted], b"question");
            assert_eq!(socket.take_queued_error(&mut quote), None);
            assert_eq!(socket.take_error(), None);
            socket.send(&out).unwrap();
        }
    });
}

/// Errors are reported for an IPv4 peer of a dual-stack socket, too.
#[test]
fn errors_of_a_dual_stack_socket() {
    isolated(|| {
        let mut host = listener(None, 5300, &plain()).unwrap();
        host.send(&datagram("127.0.0.1", 7009, b"answer")).unwrap();
        wait(&host, PollFlags::ERR);
        let mut quote = [0; 100];
        let error = host.take_queued_error(&mut quote).unwrap();
        assert_eq!(error.destination, SocketAddr::new(address("127.0.0.1"), 7009));
        assert_eq!(error.report, Some(Report { kind: 3, code: 3, info: 0 }));
        assert_eq!((error.offender, error.quoted), (Some(address("127.0.0.1")), 6));
    });
}

/// A datagram that exceeds the path's MTU is refused if it must not be fragmented, and the error contains the MTU. If
/// it may be fragmented, it is sent. The test uses a socket of each family and a dual-stack socket.
#[test]
fn dont_fragment_is_set_when_it_has_to_change() {
    isolated(|| {
        ip("link set lo mtu 1300");
        let sockets = [
            (UdpSocket::open(&plain(), address("198.51.100.2"), 7001).unwrap(), "127.0.0.1"),
            (UdpSocket::open(&plain(), address("2001:db8::2"), 7001).unwrap(), "::1"),
            (listener(None, 5300, &plain()).unwrap(), "127.0.0.1"),
            (listener(None, 5301, &plain()).unwrap(), "::1"),
        ];
        for (mut socket, to) in sockets {
            let mut server = UdpSocket::open(&plain(), address(to), 7009).unwrap();
            let large = [1; 3000];
            let out = |dont_fragment, segment_size| OutboundDatagram {
                dont_fragment,
                segment_size,
                ..datagram(to, 7009, &large)
            };
            for _ in 0..2 {
                for train in [None, Some(1400)] {
                    let failure = Err(SocketError::Failed(Errno(io::Errno::MSGSIZE.raw_os_error())));
                    assert_eq!(socket.send(&out(true, train)), failure, "{to}");
                    let error = socket.take_queued_error(&mut [0; 100]).unwrap();
                    let (kind, code) = if to == "::1" { (2, 0) } else { (3, 4) };
                    assert_eq!(error.report, Some(Report { kind, code, info: 1300 }));
                    assert_eq!((error.refused, error.destination.ip()), (true, address(to)));
                    assert!(socket.take_queued_error(&mut [0; 100]).is_none());
                }
                socket.send(&out(false, None)).unwrap();
                assert_eq!(receive(&mut server).1, large);
                // Each datagram of the train fits, so the train is sent.
                socket.send(&out(true, Some(1000))).unwrap();
                let mut got = 0;
                while got < large.len() {
                    got += receive(&mut server).1.len();
                }
            }
        }
    });
}

/// Q10: broadcast is not refused.
#[test]
fn q_10_broadcast() {
    isolated(|| {
        add_link("out0", "10.0.1.1/24");
        let mut socket = UdpSocket::open(&plain(), address("10.0.1.2"), 7001).unwrap();
        socket.send(&datagram("10.0.1.255", 7009, b"x")).unwrap();
        let group = OutboundDatagram { hop_limit: 1, ..datagram("239.1.1.1", 7009, b"x") };
        ip("route add 239.0.0.0/8 dev out0");
        socket.send(&group).unwrap();
    });
}

/// behaviour §7.2: the timeouts are those of the host's connection tracking. A value that would end flows at once is
/// not used.
#[test]
fn timeouts() {
    for (text, seconds) in [("30\n", Some(30)), ("7", Some(7)), ("0\n", None), ("", None), ("x\n", None)] {
        assert_eq!(parse_timeout(text), seconds.map(Duration::from_secs), "{text:?}");
    }
    let (idle, idle_stream) = super::timeouts();
    assert!(!idle.is_zero() && !idle_stream.is_zero());
}
