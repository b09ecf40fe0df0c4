use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;
use crate::isolated::isolated;

impl Scanner {
    fn open_for_all() -> Self {
        let mut scanner = Self::open();
        let all: PortSet = (1..=u16::MAX).collect();
        scanner.look_for(InUse { tcp: all.clone(), udp: all });
        scanner
    }
}

/// Waits until dropped sockets are closed. A process that another test is starting holds copies of all descriptors of
/// this process until it calls execve(2).
fn closed_everywhere(mut closed: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !closed() {
        assert!(Instant::now() < end, "still open");
        std::thread::yield_now();
    }
}

/// Both sources find the same ports, of both families, and only ports in use.
#[test]
fn ports_in_use_are_found() {
    isolated(|| {
        let mut diag = Scanner::open_for_all();
        assert!(matches!((&diag.tcp, &diag.udp), (Some(Source::Diag(_)), Some(Source::Diag(_)))));
        let tables = |protocol| Some(Source::Proc(Proc::open(protocol).unwrap()));
        let mut proc =
            Scanner { tcp: tables(Protocol::Tcp), udp: tables(Protocol::Udp), ..Scanner::open_for_all() };

        let mut both = |tcp: &[u16], udp: &[u16], changed| {
            for scanner in [&mut diag, &mut proc] {
                assert_eq!(scanner.scan(), changed);
                assert_eq!(scanner.in_use().tcp.iter().collect::<Vec<_>>(), tcp);
                assert_eq!(scanner.in_use().udp.iter().collect::<Vec<_>>(), udp);
            }
        };
        both(&[], &[], false);
        let _any = TcpListener::bind("[::]:65535").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:80").unwrap();
        let _v6 = TcpListener::bind("[::1]:81").unwrap();
        let _udp = UdpSocket::bind("127.0.0.1:53").unwrap();
        let udp6 = UdpSocket::bind("[::1]:54").unwrap();
        both(&[80, 81, 65535], &[53, 54], true);
        both(&[80, 81, 65535], &[53, 54], false);
        // Connections and sockets with a peer are not services.
        let _client = TcpStream::connect("127.0.0.1:80").unwrap();
        let (_server, _) = tcp.accept().unwrap();
        udp6.connect("[::1]:1").unwrap();
        both(&[80, 81, 65535], &[53], true);
        let mut found = Diag::open(Protocol::Tcp).unwrap();
        drop(tcp);
        closed_everywhere(|| {
            let mut ports = PortSet::default();
            found.read(&mut ports).unwrap();
            !ports.contains(80)
        });
        both(&[81, 65535], &[53], true);
    });
}

/// Lists of several datagrams are read completely.
#[test]
fn many_ports() {
    isolated(|| {
        let mut scanner = Scanner::open_for_all();
        let listeners: Vec<_> =
            (10_000..10_900).map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap()).collect();
        assert!(scanner.scan());
        assert_eq!(scanner.in_use().tcp.iter().collect::<Vec<_>>(), (10_000..10_900).collect::<Vec<_>>());
        drop(listeners);
        closed_everywhere(|| {
            scanner.scan();
            scanner.in_use().tcp.is_empty()
        });
    });
}

/// a scanner without any source finds no port in use.
#[test]
fn a_scanner_without_sources_finds_nothing_r105() {
    let mut scanner = Scanner { tcp: None, udp: None, ..Scanner::open_for_all() };
    assert!(!scanner.scan());
    assert!(scanner.in_use().tcp.is_empty() && scanner.in_use().udp.is_empty());
}

#[test]
fn a_scanner_scans_the_namespace_it_was_opened_in() {
    isolated(|| {
        let mut outer = Scanner::open_for_all();
        let _here = TcpListener::bind("0.0.0.0:80").unwrap();
        let mut inner = None;
        std::thread::scope(|scope| {
            let enter = || {
                sys::netns::enter_new().unwrap();
                inner = Some(Scanner::open_for_all());
            };
            scope.spawn(enter).join().unwrap();
        });
        assert!(outer.scan());
        assert!(!inner.unwrap().scan(), "nothing is in use there");
    });
}

/// Neither source finds ports other than the ports to look for. The kernel does not even list other ports.
#[test]
fn some_ports() {
    isolated(|| {
        let _listeners = [80, 81, 90, 100, 65535].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let _sockets = [53, 80].map(|port| UdpSocket::bind(("::1", port)).unwrap());
        let mut scanners = [Scanner::open_for_all(), Scanner::open_for_all()];
        scanners[1].tcp = Some(Source::Proc(Proc::open(Protocol::Tcp).unwrap()));
        for scanner in &mut scanners {
            for (looked_for, found) in [(vec![80, 90, 95, 65535], vec![80, 90, 65535]), (vec![], vec![])] {
                let relevant = InUse { tcp: looked_for.iter().copied().collect(), udp: PortSet::default() };
                scanner.look_for(relevant);
                scanner.scan();
                assert_eq!(scanner.in_use().tcp.iter().collect::<Vec<_>>(), found);
                assert!(scanner.in_use().udp.is_empty());
            }
        }
        let mut diag = Diag::open(Protocol::Tcp).unwrap();
        diag.look_for(&[80, 81, 82, 100].into_iter().collect());
        let mut listed = PortSet::default();
        diag.read(&mut listed).unwrap();
        assert_eq!(listed.iter().collect::<Vec<_>>(), [80, 81, 100], "the kernel leaves out the others");
    });
}

/// A lookup of a single port finds a port that has come into use since the last scan, for both protocols and families,
/// at the given address or at the wildcard address.
#[test]
fn single_ports() {
    isolated(|| {
        let mut scanner = Scanner::open_for_all();
        let _known = TcpListener::bind("127.0.0.1:70").unwrap();
        scanner.scan();
        let _tcp = ["127.0.0.1:80", "[::]:81"].map(|at| TcpListener::bind(at).unwrap());
        let _udp = ["127.0.0.1:53", "[::1]:54"].map(|at| UdpSocket::bind(at).unwrap());
        for (address, port, found) in [
            ("127.0.0.1", 70, false),
            ("127.0.0.1", 80, true),
            ("127.0.0.2", 80, false),
            ("::1", 80, false),
            ("127.0.0.1", 81, true),
            ("::1", 81, true),
            ("127.0.0.1", 53, true),
            ("127.0.0.2", 53, false),
            ("::1", 54, true),
            ("127.0.0.1", 55, false),
        ] {
            assert_eq!(scanner.has_opened(address.parse().unwrap(), port), found, "{address} {port}");
        }
    });
}
