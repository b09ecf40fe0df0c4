use std::net::{TcpListener, TcpStream, UdpSocket};

use engine::forward::scan::{InUse, PortSet};
use engine::forward::spec::{self, Context, Direction, Spec};
use engine::forward::{Enabled, PortRange, Protocol};
use engine::udp::Udp;
use rustix::event::epoll;

use super::*;
use crate::budgets::ledger::plenty;
use crate::forward::accept::Acceptors;
use crate::forward::listen;
use crate::io::Sockets;
use crate::io::outbound::Outbound;
use crate::isolated::isolated;
use crate::plan;

/// The owners of listening sockets, in the namespace of the test.
struct World {
    acceptors: Acceptors,
    udp: Udp<crate::io::world::Linux>,
    sockets: Sockets,
    scanner: Scanner,
}

impl World {
    fn new() -> Self {
        let any = plan::Outbound { address: None, interface: None };
        let any6 = plan::Outbound { address: None, interface: None };
        let outbound = Outbound::new(&any, &any6, false).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut scanner = Scanner::open();
        let all: PortSet = (1..=u16::MAX).collect();
        scanner.look_for(InUse { tcp: all.clone(), udp: all });
        let (budgets, ledger) = plenty();
        let limits = budgets.limits(Duration::from_secs(30), Duration::from_secs(120));
        Self {
            acceptors: Acceptors::new(),
            udp: Udp::new(limits.udp, [7; 16]),
            sockets: Sockets::new(epoll.into(), outbound, crate::io::Sources::default(), ledger),
            scanner,
        }
    }

    fn rx(&mut self) -> Receivers<'_> {
        Receivers { acceptors: &mut self.acceptors, udp: &mut self.udp, sockets: &mut self.sockets }
    }

    fn side(&mut self, specs: &[(Protocol, &str)]) -> Side {
        let opening = Opening { direction: Direction::Inbound, freebind: false, spare: usize::MAX };
        let table = table(specs);
        let (listeners, _) = opening.rules(&table, |_, _| false).unwrap();
        Side::new(table, opening, listeners, &mut self.rx()).unwrap()
    }

    /// Ports in use now, of both protocols.
    fn in_use(&mut self) -> (Vec<u16>, Vec<u16>) {
        self.scanner.scan();
        let InUse { tcp, udp } = self.scanner.in_use();
        (tcp.iter().collect(), udp.iter().collect())
    }

    /// Waits until exactly these ports are in use. A process that another test is starting may hold a copy of a closed
    /// socket for a short time.
    #[track_caller]
    fn expect_in_use(&mut self, tcp: &[u16], udp: &[u16]) {
        let expected = (tcp.to_vec(), udp.to_vec());
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while self.in_use() != expected && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.in_use(), expected);
    }
}

impl Side {
    /// Puts other rules in force, on this side only.
    fn apply(&mut self, table: Table, rx: &mut Receivers<'_>) -> Result<Vec<String>, listen::Error> {
        self.prepare(table, usize::MAX, rx).map(|prepared| self.commit(prepared, rx))
    }
}

/// Puts new rules in force. Tries again after a failure: a process that another test is starting may hold a copy of a
/// closed socket for a short time. Port 90 is an exception: the tests keep it in use.
fn apply(
    side: &mut Side,
    specs: &[(Protocol, &str)],
    world: &mut World,
) -> Result<Vec<String>, listen::Error> {
    let end = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let result = side.apply(table(specs), &mut world.rx());
        let busy = !matches!(result, Ok(_) | Err(listen::Error::Port { port: 90, .. }));
        if !busy || std::time::Instant::now() > end {
            return result;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn table(specs: &[(Protocol, &str)]) -> Table {
    let mut table = Table::new();
    for (protocol, spec) in specs {
        let ephemeral = PortRange::new(100, 65535).unwrap();
        let direction = Direction::Inbound;
        let context = Context { protocol: *protocol, direction, enabled: Enabled::ALL, ephemeral };
        let Ok(Spec::Forward { rules, .. }) = spec::parse(spec, &context) else { panic!("{spec}") };
        rules.into_iter().for_each(|rule| table.add(rule, Enabled::ALL).unwrap());
    }
    table
}

fn ports(ports: &[u16]) -> InUse {
    InUse { tcp: ports.iter().copied().collect(), udp: Default::default() }
}

use Protocol::{Tcp, Udp as UdpRule};

/// behaviour §8.4, R-104: ports that are followed are opened and closed. A port that is still needed stays open all the
/// time.
#[test]
fn following_r104() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "auto,~85,~90"), (UdpRule, "auto,~85"), (Tcp, "127.0.0.2/90")]);
        world.expect_in_use(&[90], &[]);
        side.follow(&ports(&[80, 81, 85, 300]), &InUse::default(), &mut world.rx());
        world.expect_in_use(&[80, 81, 90], &[80, 81]);
        // The connection waits in the backlog of a port that stays open. If the port were closed, even for a short
        // time, the connection would be reset.
        let waiting = TcpStream::connect("127.0.0.1:80").unwrap();
        side.follow(&ports(&[80, 82]), &ports(&[82]), &mut world.rx());
        world.expect_in_use(&[80, 90], &[80]);
        side.follow(&ports(&[80, 82]), &InUse::default(), &mut world.rx());
        world.expect_in_use(&[80, 82, 90], &[80, 82]);
        waiting.set_nonblocking(true).unwrap();
        assert_eq!(waiting.peek(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        side.follow(&InUse::default(), &InUse::default(), &mut world.rx());
        world.expect_in_use(&[90], &[]);
        let held = side.held();
        assert_eq!((held.tcp.iter().collect::<Vec<_>>(), held.udp.is_empty()), (vec![90], true));
    });
}

/// Services start and end a thousand times. The open ports are always the ports that are in use and can be bound, and
/// at the end no port is left.
#[test]
fn a_thousand_changes() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "auto,~7"), (UdpRule, "auto")]);
        let _busy = TcpListener::bind("127.0.0.1:3").unwrap();
        let mut random: u32 = 1;
        for _ in 0..1000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let services: Vec<u16> = (1..16).filter(|bit| random >> 16 & 1 << bit != 0).collect();
            side.follow(&ports(&services), &InUse::default(), &mut world.rx());
            let expected: Vec<u16> =
                (1..16).filter(|port| *port == 3 || *port != 7 && services.contains(port)).collect();
            world.expect_in_use(&expected, &services);
            assert!(!side.held().tcp.contains(3));
        }
        side.follow(&InUse::default(), &InUse::default(), &mut world.rx());
        world.expect_in_use(&[3], &[]);
    });
}

/// A port that can't be bound is bound when it is free.
#[test]
fn busy_ports_are_tried_again() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "auto")]);
        let busy = TcpListener::bind("127.0.0.1:80").unwrap();
        side.follow(&ports(&[80]), &InUse::default(), &mut world.rx());
        drop(busy);
        world.expect_in_use(&[], &[]);
        side.follow(&ports(&[80]), &InUse::default(), &mut world.rx());
        TcpStream::connect("127.0.0.1:80").unwrap();
    });
}

/// A failure may be over a moment later (lack of memory), or last (a service of the user).
#[test]
fn busy_ports_are_tried_again_soon_and_then_rarely() {
    let due: Vec<u32> = (1..=64).filter(|scans| binds_again(*scans)).collect();
    assert_eq!(due, [1, 3, 7, 15, 31, 47, 63]);
    assert!(binds_again(0), "at a change");
}

/// behaviour §8.9: new rules replace the old rules. Sockets that both need are never closed.
#[test]
fn new_rules_keep_what_they_have_in_common_with_the_old() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "80-82"), (Tcp, "127.0.0.1/70"), (UdpRule, "53")]);
        let waiting = TcpStream::connect("127.0.0.1:81").unwrap();
        let new = [(UdpRule, "53:54,55"), (Tcp, "81-83:91-93"), (Tcp, "70")];
        assert!(apply(&mut side, &new, &mut world).unwrap().is_empty());
        world.expect_in_use(&[70, 81, 82, 83], &[53, 55]);
        waiting.set_nonblocking(true).unwrap();
        assert_eq!(waiting.peek(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        // Port 70 is open at every address now.
        TcpStream::connect("127.0.0.2:70").unwrap();
        side.apply(Table::new(), &mut world.rx()).unwrap();
        world.expect_in_use(&[], &[]);
        apply(&mut side, &new, &mut world).unwrap();
        world.expect_in_use(&[70, 81, 82, 83], &[53, 55]);
    });
}

/// behaviour §8.9, Q16: an update is refused as a whole if one of its strict rules can't be put in force. For an
/// incomplete best-effort rule, the missing ports are reported.
#[test]
fn q_16_new_rules_hold_whole_or_not_at_all() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "127.0.0.1/80"), (UdpRule, "127.0.0.1/53")]);
        let _busy = (TcpListener::bind("127.0.0.1:90").unwrap(), UdpSocket::bind("127.0.0.1:90").unwrap());
        let before = world.in_use();
        for refused in [[(Tcp, "80"), (Tcp, "90")], [(UdpRule, "53"), (UdpRule, "90")]] {
            let error = apply(&mut side, &refused, &mut world).unwrap_err();
            assert!(matches!(error, listen::Error::Port { port: 90, .. }), "{error}");
            world.expect_in_use(&before.0, &before.1);
            TcpStream::connect("127.0.0.1:80").unwrap();
            TcpStream::connect("127.0.0.2:80").unwrap_err();
        }
        let notes = apply(&mut side, &[(Tcp, "~1-79,~91-99")], &mut world).unwrap();
        assert_eq!(
            notes,
            [
                "Listen failed for 1 of 11 HOST TCP ports */80-90 (port 90: Address already in use (os error 98))"
            ]
        );
        world.expect_in_use(&(80..=90).collect::<Vec<_>>(), &[90]);
    });
}

/// Q16: sockets that make room for new rules keep their ports until the new rules are in force. Otherwise another
/// program could take a port, or this program might lack the right to bind the port again.
#[test]
fn q_16_old_sockets_keep_their_ports_until_the_new_rules_stand() {
    isolated(|| {
        let mut world = World::new();
        let mut side = world.side(&[(Tcp, "127.0.0.1/80"), (UdpRule, "127.0.0.1/53")]);
        let _busy = TcpListener::bind("127.0.0.1:90").unwrap();
        let before = (inodes("tcp", 80), inodes("udp", 53));
        assert_eq!((before.0.len(), before.1.len()), (1, 1));
        for refused in [[(Tcp, "0.0.0.0/80"), (Tcp, "90")], [(UdpRule, "0.0.0.0/53"), (Tcp, "90")]] {
            side.apply(table(&refused), &mut world.rx()).unwrap_err();
            let now = (inodes("tcp", 80), inodes("udp", 53));
            assert!(
                before.0.iter().all(|old| now.0.contains(old))
                    && before.1.iter().all(|old| now.1.contains(old))
            );
            TcpStream::connect("127.0.0.1:80").unwrap();
        }
        // No other program can bind a socket to these ports, either beside the old sockets or beside the sockets that
        // replace them.
        let taken = || {
            let socket = crate::io::udp::prepare_listener("127.0.0.1".parse().ok(), false).unwrap();
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true).unwrap();
            let address: std::net::SocketAddr = "127.0.0.1:53".parse().unwrap();
            rustix::net::bind(&socket, &address).is_err()
        };
        assert!(taken());
        side.apply(table(&[(Tcp, "0.0.0.0/80"), (UdpRule, "0.0.0.0/53")]), &mut world.rx()).unwrap();
        assert!(taken());
        TcpStream::connect("127.0.0.2:80").unwrap();
    });
}

/// The sockets at an IPv4 port, by their inodes.
fn inodes(protocol: &str, port: u16) -> Vec<String> {
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).unwrap();
    let columns = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // Connections have another state, and they have a peer.
    let here = columns.filter(|c| c[1].ends_with(&format!(":{port:04X}")) && c[2].ends_with(":0000"));
    here.map(|c| c[9].to_owned()).collect()
}

/// two sides follow each other over the same ports, and each scan sees all open ports. No port of this program
/// is forwarded back.
#[test]
fn sides_in_turn_r104() {
    isolated(|| {
        let mut world = World::new();
        let (mut inbound, mut outbound) = (world.side(&[(Tcp, "auto")]), world.side(&[(Tcp, "auto")]));
        for _ in 0..3 {
            let (tcp, _) = world.in_use();
            let scanned = ports(&[tcp.as_slice(), &[80]].concat());
            inbound.follow(&scanned, &outbound.held(), &mut world.rx());
            outbound.follow(&scanned, &inbound.held(), &mut world.rx());
            assert_eq!(inbound.held(), ports(&[80]));
            assert!(outbound.held().tcp.is_empty());
        }
    });
}
