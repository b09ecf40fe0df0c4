use std::net::{TcpListener, TcpStream, UdpSocket};

use engine::forward::{Enabled, PortRange};
use rustix::net::getsockname;

use super::*;
use crate::isolated::{add_link, isolated, sysctl};

fn rule(protocol: Protocol, listen: &str, ports: (u16, u16)) -> Rule {
    let (address, interface) = listen.split_once('%').unwrap_or((listen, ""));
    Rule {
        protocol,
        listen: Listen { addr: address.parse().ok(), interface: interface.parse().ok() },
        ports: PortRange::new(ports.0, ports.1).unwrap(),
        target_addr: None,
        target_first: ports.0,
        best_effort: false,
        scan: false,
    }
}

fn table(rules: impl IntoIterator<Item = Rule>) -> Table {
    let mut table = Table::new();
    for rule in rules {
        table.add(rule, Enabled::ALL).unwrap();
    }
    table
}

fn open(table: &Table, freebind: bool) -> Result<Vec<Listener>, Error> {
    open_within(table, freebind, usize::MAX)
}

fn open_within(table: &Table, freebind: bool, spare: usize) -> Result<Vec<Listener>, Error> {
    Opening { direction: Direction::Inbound, freebind, spare }
        .rules(table, |_, _| false)
        .map(|(listeners, _)| listeners)
}

fn bound(listener: &Listener) -> SocketAddr {
    getsockname(&listener.socket).unwrap().try_into().unwrap()
}

/// behaviour §8.1, R-101, R-108: each port has one socket, with exactly the address families of the rule.
#[test]
fn sockets_of_rules_r101_r108() {
    isolated(|| {
        sysctl("net/ipv6/bindv6only", "1");
        let rules = [
            rule(Protocol::Tcp, "*", (65534, 65535)),
            rule(Protocol::Tcp, "0.0.0.0", (80, 80)),
            rule(Protocol::Tcp, "::", (80, 80)),
            rule(Protocol::Udp, "*%lo", (65535, 65535)),
            rule(Protocol::Udp, "127.0.0.1", (80, 80)),
        ];
        let listeners = open(&table(rules), false).unwrap();
        let got: Vec<_> =
            listeners.iter().map(|l| (l.rule, l.port, l.protocol, bound(l).to_string())).collect();
        let want = [
            (0, 65534, Protocol::Tcp, "[::]:65534"),
            (0, 65535, Protocol::Tcp, "[::]:65535"),
            (1, 80, Protocol::Tcp, "0.0.0.0:80"),
            (2, 80, Protocol::Tcp, "[::]:80"),
            (3, 65535, Protocol::Udp, "[::]:65535"),
            (4, 80, Protocol::Udp, "127.0.0.1:80"),
        ];
        assert_eq!(
            got,
            want.map(|(rule, port, protocol, address)| (rule, port, protocol, address.to_owned()))
        );
        TcpStream::connect("127.0.0.1:65535").unwrap();
        TcpStream::connect("[::1]:65535").unwrap();
    });
}

/// accepted connections send small writes at once. No extra system call is needed for each connection.
#[test]
fn no_delay_is_inherited_r81() {
    isolated(|| {
        let rules = [rule(Protocol::Tcp, "*", (80, 80)), rule(Protocol::Tcp, "127.0.0.1", (81, 81))];
        for listener in open(&table(rules), false).unwrap() {
            let _client = TcpStream::connect(("127.0.0.1", listener.port)).unwrap();
            let (accepted, _) = TcpListener::from(listener.socket).accept().unwrap();
            assert!(accepted.nodelay().unwrap());
        }
    });
}

/// a busy port is fatal. An interface or an address that does not exist is fatal, too. The message names the
/// port.
#[test]
fn a_port_that_cant_be_had_is_fatal_r102() {
    isolated(|| {
        let _tcp = TcpListener::bind("0.0.0.0:81").unwrap();
        let _udp = UdpSocket::bind("0.0.0.0:81").unwrap();
        for (listen, protocol, message) in [
            ("*", Protocol::Tcp, "Listen failed for HOST TCP port */81: Address already in use"),
            ("*", Protocol::Udp, "Listen failed for HOST UDP port */81: Address already in use"),
            (
                "192.0.2.1",
                Protocol::Tcp,
                "Listen failed for HOST TCP port 192.0.2.1/80: Cannot assign requested",
            ),
            (
                "*%none",
                Protocol::Tcp,
                "Listen failed for HOST TCP port *%none/80: SO_BINDTODEVICE failed: No such device",
            ),
        ] {
            let error = open(&table([rule(protocol, listen, (80, 82))]), false).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
            assert!(error.ends_with("\nCouldn't listen on requested ports"), "{error}");
        }
        // with --freebind, the address may be added later.
        open(
            &table([rule(Protocol::Tcp, "192.0.2.1", (90, 90)), rule(Protocol::Udp, "192.0.2.1", (90, 90))]),
            true,
        )
        .unwrap();
    });
}

#[test]
fn a_denied_port_names_the_setting() {
    let shown = |errno| Reason::from(errno).to_string();
    assert!(shown(Errno::ACCESS).starts_with(&Errno::ACCESS.to_string()), "{}", shown(Errno::ACCESS));
    assert!(shown(Errno::ACCESS).contains("net.ipv4.ip_unprivileged_port_start"));
    assert_eq!(shown(Errno::ADDRINUSE), Errno::ADDRINUSE.to_string());
}

/// An error that is part of the message is not printed again as its cause.
#[test]
fn no_cause_is_printed_twice() {
    let failed = || std::io::Error::from_raw_os_error(13);
    let netlink = || crate::host::Error::from(failed());
    for error in [
        anyhow::Error::from(Error::from(failed())),
        netlink().into(),
        crate::pasta::configure::Error::from(netlink()).into(),
    ] {
        let shown = format!("{error:#}");
        assert_eq!(shown.matches(&failed().to_string()).count(), 1, "{shown}");
    }
}

/// Two UDP listeners never share a port without an error.
#[test]
fn a_second_instance_gets_no_udp_port() {
    isolated(|| {
        let rules = table([rule(Protocol::Udp, "*", (80, 80))]);
        let _first = open(&rules, false).unwrap();
        assert!(open(&rules, false).is_err());
    });
}

/// behaviour §8.2, Q13: a best-effort rule opens the ports that can be opened. It fails only if no port can be opened.
/// It leaves descriptors for other uses.
#[test]
fn q_13_best_effort() {
    isolated(|| {
        let best_effort = |first, last| Rule { best_effort: true, ..rule(Protocol::Tcp, "*", (first, last)) };
        let _busy = TcpListener::bind("[::]:81").unwrap();
        let ports = |listeners: Vec<Listener>| listeners.iter().map(|l| l.port).collect::<Vec<_>>();
        assert_eq!(ports(open(&table([best_effort(80, 83)]), false).unwrap()), [80, 82, 83]);
        let error = open(&table([best_effort(81, 81)]), false).unwrap_err().to_string();
        assert!(
            error.starts_with("All listens failed for HOST TCP */81-81: Address already in use"),
            "{error}"
        );

        // First no socket may be opened, then some. Sockets of other rules count, too.
        assert_eq!(ports(open_within(&table([best_effort(100, 60000)]), false, 0).unwrap()), [0; 0]);
        let some = [best_effort(100, 60000), best_effort(60001, 60002)];
        assert_eq!(ports(open_within(&table(some), false, 1000).unwrap()), (100..1100).collect::<Vec<_>>());
        // These ports were not used above: a child that another test forks may hold the ports above for a short time.
        let both = [rule(Protocol::Tcp, "*", (90, 92)), best_effort(2000, 60000)];
        assert_eq!(ports(open_within(&table(both), false, 5).unwrap()), [90, 91, 92, 2000, 2001]);
        // The limit does not apply to strict rules.
        assert_eq!(open_within(&table([rule(Protocol::Tcp, "*", (84, 85))]), false, 0).unwrap().len(), 2);
    });
}

/// Rules that follow a scan open no socket here (behaviour §8.4). Q20: two rules may use the same port on two
/// interfaces.
#[test]
fn scan_rules_wait_and_interfaces_are_told_apart() {
    isolated(|| {
        let scan = Rule { scan: true, ..rule(Protocol::Tcp, "*", (1, 60000)) };
        assert!(open(&table([scan]), false).unwrap().is_empty());
        add_link("out0", "10.0.1.1/24");
        let rules = [rule(Protocol::Tcp, "*%lo", (80, 80)), rule(Protocol::Tcp, "*%out0", (80, 80))];
        assert_eq!(open(&table(rules), false).unwrap().len(), 2);
    });
}
