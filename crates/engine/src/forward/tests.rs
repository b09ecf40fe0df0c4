//! Tests of specifiers and tables together. The tests compare text in the form of behaviour §1.8 and §2.4.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use proptest::prelude::*;

use super::{
    Enabled, Listen, MAX_RULES, MAX_SOCKETS, PortRange, Protocol, Refusal, Rule, Table,
    spec::{Context, Direction, Spec, SpecError, parse},
};

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

fn context() -> Context {
    Context {
        protocol: Protocol::Tcp,
        direction: Direction::Inbound,
        enabled: Enabled::ALL,
        ephemeral: range(32768, 60999),
    }
}

/// The rules that several specifiers make in one table, one rule per line. If there is an error, the text of the first
/// error.
fn rules_in(specs: &[&str], context: &Context) -> String {
    let mut table = Table::new();
    for spec in specs {
        let rules = match parse(spec, context) {
            Err(error) => return error.to_string(),
            Ok(Spec::None) => Vec::new(),
            Ok(Spec::Forward { rules, .. }) => rules,
        };
        for rule in rules {
            if let Err(error) = table.add(rule, context.enabled) {
                return error.to_string();
            }
        }
    }
    let lines: Vec<String> = table.rules().iter().map(|rule| rule.to_string().trim_end().into()).collect();
    lines.join("\n")
}

fn rules(spec: &str) -> String {
    rules_in(&[spec], &context())
}

/// Accepted specifiers (behaviour §2.4, §1.8): R-109 (`[::1]/22`), R-101 (port 65535).
#[test]
fn accepted_specifiers_r109_r101() {
    for (spec, expected) in [
        ("none", ""),
        ("22", "TCP [*]:22  =>  22"),
        ("/22", "TCP [*]:22  =>  22"),
        ("*/22", "TCP [*]:22  =>  22"),
        ("02222", "TCP [*]:2222  =>  2222"),
        ("65535", "TCP [*]:65535  =>  65535"),
        ("1-65535", "TCP [*]:1-65535  =>  1-65535"),
        ("%lo/22", "TCP [*]%lo:22  =>  22"),
        ("*%eth0.1/22", "TCP [*]%eth0.1:22  =>  22"),
        ("%abcdefghijklmno/22", "TCP [*]%abcdefghijklmno:22  =>  22"),
        ("127.0.0.1/22,23", "TCP [127.0.0.1]:22  =>  22 \nTCP [127.0.0.1]:23  =>  23"),
        ("127.0.0.1%lo/22", "TCP [127.0.0.1]%lo:22  =>  22"),
        ("[127.0.0.1]/22", "TCP [127.0.0.1]:22  =>  22"),
        ("::1/22", "TCP [::1]:22  =>  22"),
        ("[::1]/22", "TCP [::1]:22  =>  22"),
        ("[::1]%lo/22", "TCP [::1]%lo:22  =>  22"),
        ("::ffff:192.0.2.1/22", "TCP [192.0.2.1]:22  =>  22"),
        ("22:23", "TCP [*]:22  =>  23"),
        ("22:23-23", "TCP [*]:22  =>  23"),
        ("22-80:32-90", "TCP [*]:22-80  =>  32-90"),
        ("22-23:65534-65535", "TCP [*]:22-23  =>  65534-65535"),
        ("0.0.0.0/22:192.0.2.1", "TCP [0.0.0.0]:22  =>  192.0.2.1:22"),
        ("0.0.0.0/22-23:192.0.2.1/80-81", "TCP [0.0.0.0]:22-23  =>  192.0.2.1:80-81"),
        ("0.0.0.0/22:127.0.0.1", "TCP [0.0.0.0]:22  =>  127.0.0.1:22"),
        ("0.0.0.0/22:::ffff:192.0.2.1/22", "TCP [0.0.0.0]:22  =>  192.0.2.1:22"),
        ("0.0.0.0/22:0.0.0.0", "TCP [0.0.0.0]:22  =>  22"),
        ("[::]/2222:::1/22", "TCP [::]:2222  =>  [::1]:22"),
        ("::/2222:[::1]/22", "TCP [::]:2222  =>  [::1]:22"),
        ("22-24,~23", "TCP [*]:22  =>  22 \nTCP [*]:24  =>  24"),
        ("~23,22-24", "TCP [*]:22  =>  22 \nTCP [*]:24  =>  24"),
        ("10-20:30-40,~12", "TCP [*]:10-11  =>  30-31 \nTCP [*]:13-20  =>  33-40"),
        ("5-25,~10-20,~15-18,~20-21", "TCP [*]:5-9  =>  5-9 \nTCP [*]:22-25  =>  22-25"),
        ("22,~22", ""),
        ("65534-65535,~65535", "TCP [*]:65534  =>  65534"),
        ("2222,all", "TCP [*]:2222  =>  2222"),
        ("all,22", "TCP [*]:22  =>  22"),
        ("22,auto", "TCP [*]:22  =>  22  (auto-scan)"),
        ("~1-65535", ""),
    ] {
        let expected: Vec<&str> = expected.split('\n').map(str::trim_end).collect();
        let actual = rules(spec);
        let actual: Vec<&str> = actual.split('\n').map(str::trim_end).collect();
        assert_eq!(actual, expected, "{spec}");
    }
}

/// Without an included range, all ports except the ephemeral ports are forwarded, best effort (behaviour §2.4.2,
/// §2.4.3, §8.7).
#[test]
fn everything_but_ephemeral_ports() {
    let all =
        "TCP [*]:1-32767  =>  1-32767  (best effort)\nTCP [*]:61000-65535  =>  61000-65535  (best effort)";
    for spec in ["all", "all,all", "~0", "~32768-60999", "~40000", "*/all"] {
        assert_eq!(rules(spec), all, "{spec}");
    }
    assert_eq!(rules("auto"), all.replace("effort)", "effort) (auto-scan)"));
    assert_eq!(rules("auto,all"), rules("auto"));
    assert_eq!(rules("0.0.0.0/all:192.0.2.1").lines().count(), 2);
    assert!(rules("0.0.0.0/all:192.0.2.1").starts_with("TCP [0.0.0.0]:1-32767  =>  192.0.2.1:1-32767 "));
    assert_eq!(rules("~25").lines().next(), Some("TCP [*]:1-24  =>  1-24  (best effort)"));

    let whole = Context { ephemeral: PortRange::RFC6335_DYNAMIC, ..context() };
    assert_eq!(rules_in(&["all"], &whole), "TCP [*]:1-49151  =>  1-49151  (best effort)");
}

/// Invalid specifiers (behaviour §2.4, "Errors").
#[test]
fn invalid_specifiers() {
    for spec in [
        "",
        ",",
        "22,",
        ",22",
        "22,,23",
        "22-21",
        "65536",
        "99999999999999999999",
        "-1",
        "22-",
        "-22",
        " 22",
        "22 ",
        "+22",
        "0x16",
        "xyz",
        "22:",
        ":22",
        "22:23:24",
        "22-23:22",
        "22:22-23",
        "22-23:65535",
        "22:65536",
        "22/23",
        "22/",
        "/",
        "a/22/22",
        "127.0.0.1/22/22",
        "1.2.3/22",
        "127.0.0.1%/22",
        "%/22",
        "%a b/22",
        "%./22",
        "%../22",
        "%abcdefghijklmnop/22",
        "[]/22",
        "[::1/22",
        "::1]/22",
        "[*]/22",
        "fe80::1%eth0",
        "lo/22",
        "127.0.0.1/none",
        "22,none",
        "none,22",
        "all:22",
        "all:22-23",
        "all:",
        "auto:22",
        "auto:127.0.0.1",
        "~",
        "~70000",
        "~22:23",
        "~all",
        "0.0.0.0/22:192.0.2.1/23-24",
        "0.0.0.0/22:192.0.2.1/",
        "é",
    ] {
        assert_eq!(rules(spec), format!("Invalid port specifier '{spec}'"));
    }
}

/// The notation of container engines is refused, and the error has ours.
#[test]
fn the_error_says_what_may_be_meant() {
    for (spec, near) in [
        ("127.0.0.1:8080:80", "127.0.0.1/8080:80"),
        ("[::1]:8080:80", "[::1]/8080:80"),
        ("127.0.0.1:8080", "127.0.0.1/8080"),
    ] {
        assert_eq!(rules(spec), format!("Invalid port specifier '{spec}'; did you mean '{near}'?"));
    }
}

/// Refused rules (behaviour §2.4.6, "Errors"); R-101: port 0 is refused.
#[test]
fn refused_rules_r101() {
    for (spec, reason) in [
        ("0", "Forwarding rule attempts to map from port 0"),
        ("0-5", "Forwarding rule attempts to map from port 0"),
        ("22:0", "Forwarding rule attempts to map to port 0"),
        ("22-23:0-1", "Forwarding rule attempts to map to port 0"),
        (
            "22:127.0.0.1",
            "Dual stack forward to IPv4 address 127.0.0.1 unsupported\nDid you mean 0.0.0.0/... instead?",
        ),
        ("2222:::1/22", "Dual stack forward to IPv6 address ::1 unsupported\nDid you mean [::]/... instead?"),
        ("0.0.0.0/22:::1", "Forward from IPv4 (0.0.0.0) to IPv6 (::1) unsupported"),
        ("::1/22:192.0.2.1", "Forward from IPv6 (::1) to IPv4 (192.0.2.1) unsupported"),
        ("0.0.0.0/22:224.0.0.1", "Multicast target address 224.0.0.1 for forwarding rule"),
        ("0.0.0.0/22:255.255.255.255", "Multicast target address 255.255.255.255 for forwarding rule"),
        ("::/22:ff02::1", "Multicast target address ff02::1 for forwarding rule"),
    ] {
        let text = rules(spec);
        let (actual, rest) = text.rsplit_once('\n').unwrap();
        assert_eq!(actual, reason, "{spec}");
        assert!(rest.starts_with("Unable to add rule TCP ["), "{spec}: {rest}");
    }
}

/// Rules for disabled families and protocols (behaviour §2.4.5, §2.4 "Errors"; R-107).
#[test]
fn disabled_families_and_protocols_r107() {
    let v4 = Context { enabled: Enabled { ipv6: false, ..Enabled::ALL }, ..context() };
    let v6 = Context { enabled: Enabled { ipv4: false, ..Enabled::ALL }, ..context() };
    let udp = Context { enabled: Enabled { tcp: false, ..Enabled::ALL }, ..context() };
    for (context, spec, expected) in [
        (v4, "22", "TCP [0.0.0.0]:22  =>  22"),
        (v6, "22", "TCP [::]:22  =>  22"),
        (v4, "%lo/22", "TCP [0.0.0.0]%lo:22  =>  22"),
        (v4, "22:192.0.2.1", "TCP [0.0.0.0]:22  =>  192.0.2.1:22"),
        (v6, "22:::1", "TCP [::]:22  =>  [::1]:22"),
        (v4, "::1/22", "IPv6 forward, but IPv6 not enabled\nUnable to add rule TCP [::1]:22  =>  22 "),
        (
            v6,
            "0.0.0.0/22",
            "IPv4 forward, but IPv4 not enabled\nUnable to add rule TCP [0.0.0.0]:22  =>  22 ",
        ),
        (udp, "22", "Can't add TCP forwarding rule, TCP not enabled\nUnable to add rule TCP [*]:22  =>  22 "),
        (udp, "none", ""),
    ] {
        assert_eq!(rules_in(&[spec], &context), expected, "{spec}");
    }
}

/// Outbound rules listen on loopback (behaviour §2.4.7).
#[test]
fn outbound_rules_listen_on_loopback() {
    let context = Context { direction: Direction::Outbound, ..context() };
    assert_eq!(rules_in(&["22"], &context), "TCP [*]%lo:22  =>  22");
    for spec in ["127.0.0.1/22", "%lo/22", "/22"] {
        assert_eq!(parse(spec, &context), Err(SpecError::ListenNotAllowed(spec.into())));
    }
}

/// Conflicts between rules (behaviour §2.4.9). Q20: rules on different interfaces do not conflict.
#[test]
fn conflicts() {
    let conflict =
        |specs: &[&str]| rules_in(specs, &context()).contains("Forwarding configuration conflict: ");
    for pair in [
        ["22", "22"],
        ["22", "127.0.0.1/22"],
        ["127.0.0.1/22", "22"],
        ["0.0.0.0/22", "127.0.0.1/22"],
        ["::1/22", "::/22"],
        ["10-20", "15-25"],
        ["auto", "8000"],
        ["%lo/22", "22"],
        ["%lo/22", "127.0.0.1%lo/22"],
        ["22:80", "22:81"],
    ] {
        assert!(conflict(&pair), "{pair:?}");
    }
    for pair in [
        ["127.0.0.1/22", "127.0.0.2/22"],
        ["0.0.0.0/22", "::/22"],
        ["0.0.0.0/22", "::1/22"],
        ["%lo/22", "%eth0/22"],
        ["127.0.0.1%lo/22", "127.0.0.1%eth0/22"],
        ["10-20", "21-30"],
    ] {
        assert!(!conflict(&pair), "{pair:?}");
    }
    assert_eq!(
        rules_in(&["22", "127.0.0.1/20-30"], &context()),
        "Forwarding configuration conflict: TCP [127.0.0.1]:20-30  =>  20-30  versus TCP [*]:22  =>  22 \n\
         Unable to add rule TCP [127.0.0.1]:20-30  =>  20-30 "
    );
    let udp = Rule { protocol: Protocol::Udp, ..rule(22, 22) };
    assert!(!udp.conflicts_with(&rule(22, 22)));
}

fn rule(first: u16, last: u16) -> Rule {
    Rule {
        protocol: Protocol::Tcp,
        listen: Listen::ANY,
        ports: range(first, last),
        target_addr: None,
        target_first: first,
        best_effort: false,
        scan: false,
    }
}

/// The limits of behaviour §2.4.10, and a specifier that would make an unlimited number of rules.
#[test]
fn limits() {
    let mut table = Table::new();
    for port in 1..=255 {
        table.add(rule(port, port), Enabled::ALL).unwrap();
    }
    let refusal = table.add(rule(256, 256), Enabled::ALL).unwrap_err().reason;
    assert_eq!(refusal, Refusal::TooManyRules);
    assert_eq!((table.rules().len(), table.sockets()), (MAX_RULES, 255));

    let mut table = Table::new();
    for host in 1..=5 {
        let addr = IpAddr::from([127, 0, 0, host]);
        let listen = Listen { addr: Some(addr), interface: None };
        table.add(Rule { listen, ..rule(1, 65535) }, Enabled::ALL).unwrap();
    }
    assert_eq!(table.sockets(), MAX_SOCKETS - 5);
    table.add(Rule { protocol: Protocol::Udp, ..rule(1, 5) }, Enabled::ALL).unwrap();
    let one_more = Rule { protocol: Protocol::Udp, ..rule(6, 6) };
    assert_eq!(table.add(one_more, Enabled::ALL).unwrap_err().reason, Refusal::TooManySockets);

    let holes: Vec<String> = (1..3000).map(|port| format!("~{}", 2 * port)).collect();
    let spec = format!("{},{}", holes.join(","), "1-65535,".repeat(3000).trim_end_matches(','));
    assert_eq!(parse(&spec, &context()), Err(SpecError::TooManyRules));
}

/// A rule that no specifier can make, but that the control socket can carry (behaviour §8.9).
#[test]
fn target_range_beyond_the_last_port() {
    let wrapping = Rule { target_first: 65535, ..rule(22, 23) };
    assert_eq!(wrapping.target_port(23), None);
    assert_eq!(Table::new().add(wrapping, Enabled::ALL).unwrap_err().reason, Refusal::ToPortZero);
}

/// A lookup returns the first rule that matches protocol, address, port and interface (behaviour §8.5).
#[test]
fn lookup() {
    let mut table = Table::new();
    for spec in ["127.0.0.1/80:8080", "192.0.2.1%eth0/80:8081", "::/80:8082", "0.0.0.0%lo/90-99:190-199"] {
        let Ok(Spec::Forward { rules, .. }) = parse(spec, &context()) else { panic!("{spec}") };
        for rule in rules {
            table.add(rule, Enabled::ALL).unwrap();
        }
    }
    let find = |addr: &str, port, interface| {
        let found = table.lookup(Protocol::Tcp, addr.parse().unwrap(), port, interface);
        found.map(|(index, rule)| (index, rule.target_port(port).unwrap()))
    };
    assert_eq!(find("127.0.0.1", 80, None), Some((0, 8080)));
    assert_eq!(find("127.0.0.1", 80, Some("lo")), Some((0, 8080)));
    assert_eq!(find("127.0.0.1", 81, None), None);
    assert_eq!(find("192.0.2.1", 80, None), None);
    assert_eq!(find("192.0.2.1", 80, Some("eth1")), None);
    assert_eq!(find("192.0.2.1", 80, Some("eth0")), Some((1, 8081)));
    assert_eq!(find("2001:db8::1", 80, None), Some((2, 8082)));
    assert_eq!(find("192.0.2.9", 95, Some("lo")), Some((3, 195)));
    assert_eq!(table.lookup(Protocol::Udp, "127.0.0.1".parse().unwrap(), 80, None), None);
}

fn any_range() -> impl Strategy<Value = PortRange> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| range(a.min(b), a.max(b)))
}

proptest! {
    /// No argument panics, and an invalid specifier is quoted in the error.
    #[test]
    fn any_text_is_accepted_or_refused(spec in "[0-9a-z:/,.~%*\\[\\]-]{0,24}|\\PC{0,12}") {
        match parse(&spec, &context()) {
            Ok(_) => {}
            Err(SpecError::Near(quoted, near)) => {
                prop_assert_eq!(quoted, spec);
                prop_assert!(parse(&near, &context()).is_ok(), "{}", near);
            }
            Err(error) => prop_assert_eq!(error.to_string(), format!("Invalid port specifier '{spec}'")),
        }
    }

    /// Rules cover the included ports without the excluded ports. Each port is covered once, at a constant offset
    /// (behaviour §2.4.1).
    #[test]
    fn expansion_is_set_difference(
        included in any_range(),
        offset in any::<u16>(),
        excluded in prop::collection::vec(any_range(), 0..6),
    ) {
        let target_first = offset.min(u16::MAX - (included.last() - included.first()));
        let mut spec = format!("{included}:{}", range(target_first, target_first + (included.last() - included.first())));
        for hole in &excluded {
            spec = format!("~{hole},{spec}");
        }
        let Ok(Spec::Forward { rules, auto: false }) = parse(&spec, &context()) else { panic!("{spec}") };

        let mut ports = rules.iter().flat_map(|rule| rule.ports.iter().map(move |port| (port, rule.target_port(port))));
        for port in included.iter().filter(|port| !excluded.iter().any(|hole| hole.contains(*port))) {
            prop_assert_eq!(ports.next(), Some((port, Some(target_first + (port - included.first())))));
        }
        prop_assert_eq!(ports.next(), None);
    }

    /// `all` covers all ports that are not excluded (behaviour §2.4.2).
    #[test]
    fn all_is_everything_else(excluded in prop::collection::vec(any_range(), 0..6)) {
        let holes: String = excluded.iter().map(|hole| format!("~{hole},")).collect();
        let Ok(Spec::Forward { rules, .. }) = parse(&format!("{holes}all"), &context()) else { panic!() };
        let mut ports = rules.iter().flat_map(|rule| rule.ports.iter());
        let wanted = (1..=u16::MAX).filter(|port| {
            !context().ephemeral.contains(*port) && !excluded.iter().any(|hole| hole.contains(*port))
        });
        for port in wanted {
            prop_assert_eq!(ports.next(), Some(port));
        }
        prop_assert_eq!(ports.next(), None);
    }

    /// Two rules conflict if and only if both cover some address, port and interface.
    #[test]
    fn conflict_is_symmetric(a in rule_strategy(), b in rule_strategy()) {
        prop_assert_eq!(a.conflicts_with(&b), b.conflicts_with(&a));
        prop_assert!(a.conflicts_with(&a));
        let common = ["127.0.0.1", "192.0.2.1", "::1"].iter().any(|addr| {
            let addr = addr.parse().unwrap();
            let port = a.ports.first().max(b.ports.first());
            let interfaces_meet = a.listen.interface.is_none()
                || b.listen.interface.is_none()
                || a.listen.interface == b.listen.interface;
            interfaces_meet && a.matches(Protocol::Tcp, addr, port) && b.matches(Protocol::Tcp, addr, port)
        });
        prop_assert_eq!(a.conflicts_with(&b), common);
    }
}

fn rule_strategy() -> impl Strategy<Value = Rule> {
    let addr = prop::sample::select(&[None, Some("0.0.0.0"), Some("127.0.0.1"), Some("::"), Some("::1")][..]);
    let interface = prop::sample::select(&[None, Some("lo"), Some("eth0")][..]);
    (addr, interface, 1u16..9, 0u16..3).prop_map(|(addr, interface, first, more)| Rule {
        listen: Listen {
            addr: addr.map(|addr| addr.parse().unwrap()),
            interface: interface.map(|name| name.parse().unwrap()),
        },
        ..rule(first, first + more)
    })
}
