//! Tests of groups, verdicts, and verdicts on names. The tests of the parser and of the indexes have their own files.

mod index;
mod table;
mod text;

use std::{string::String, vec, vec::Vec};

use super::*;

/// A table of addresses and their names.
struct Table(Vec<(IpAddr, &'static str)>);

impl Lookup for Table {
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(own, _)| *own == address).map(|(_, name)| *name)
    }
}

/// A table in which `a.example` has the addresses 198.51.100.1, 2001:db8::1 and 64:ff9b::198.51.100.1. `b.a.example`
/// has the first of these addresses.
fn table() -> Table {
    let names = [
        ("198.51.100.1", "a.example"),
        ("198.51.100.1", "B.a.example."),
        ("2001:db8::1", "a.example"),
        ("64:ff9b::198.51.100.1", "a.example"),
        ("198.51.100.9", "c.example"),
    ];
    Table(names.into_iter().map(|(address, name)| (address.parse().unwrap(), name)).collect())
}

/// A policy from a text with rules. Lines or commas separate the rules.
pub(super) fn policy(text: &str) -> Policy {
    let file = spec::parse_file(&text.replace("; ", "\n")).unwrap();
    Policy::new(file.rules, file.default).unwrap()
}

fn question(protocol: &str, destination: &str) -> Question {
    let protocol = Protocol::ALL.into_iter().find(|(word, _)| *word == protocol).unwrap().1;
    let (destination, host) = match destination.strip_suffix(" (host)") {
        None => (destination, false),
        Some(destination) => (destination, true),
    };
    Question { protocol, destination: destination.parse().unwrap(), leads_to_host: host }
}

/// The verdict as text. `+0`: allowed by rule 0. `+`: allowed by default. `n0`: allowed by name, by rule 0. `N0`: as
/// `n0`, but also without a name in the first bytes. `-0`, `-`: denied. `!`: denied as another name service.
fn verdict(policy: &Policy, protocol: &str, destination: &str) -> String {
    shown(policy.verdict(&question(protocol, destination), &table()))
}

fn shown(verdict: Verdict) -> String {
    let with = |sign: &str, reason| match reason {
        Reason::Rule(index) => std::format!("{sign}{index}"),
        Reason::Default => sign.into(),
        Reason::NameService => "!".into(),
    };
    match verdict {
        Verdict::Allow(reason) => with("+", reason),
        Verdict::AllowNamed { rule, nameless: false } => with("n", Reason::Rule(rule)),
        Verdict::AllowNamed { rule, nameless: true } => with("N", Reason::Rule(rule)),
        Verdict::Deny(reason) => with("-", reason),
    }
}

#[track_caller]
fn check(rules: &str, rows: &[(&str, &str, &str)]) {
    let policy = policy(rules);
    for (protocol, destination, expected) in rows {
        assert_eq!(verdict(&policy, protocol, destination), *expected, "{protocol} {destination} by {rules}");
    }
}

#[test]
fn the_group_of_each_special_range() {
    let rows = [
        (Group::Host, "127.0.0.1 127.255.255.255 0.0.0.0 ::1 ::"),
        (Group::LinkLocal, "169.254.0.1 169.254.169.253 fe80::1 febf::1"),
        (Group::Multicast, "224.0.0.1 239.255.255.255 255.255.255.255 ff02::1 ff0e::1"),
        (Group::Private, "10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 192.168.255.255"),
        (Group::Private, "100.64.0.0 100.127.255.255 0.0.0.1 192.0.0.8 198.18.0.0 198.19.255.255"),
        (Group::Private, "240.0.0.0 255.255.255.254 fc00::1 fdff::1 fec0::1 100::1 2001::1 2001:1ff::1"),
        (Group::Private, "4000::1 200::1 ::2 5f00::1 64:ff9b::"),
        (Group::Metadata, "169.254.169.254 fd00:ec2::254 168.63.129.16 100.100.100.200 192.0.0.192"),
        (Group::Metadata, "fd20:ce::254 fe80::a9fe:a9fe fd00:c1::a9fe:a9fe 169.254.170.2 fd00:42::42"),
        (
            Group::Public,
            "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0",
        ),
        (Group::Public, "169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0"),
        (Group::Public, "198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.17 192.0.2.1 198.51.100.1"),
        (Group::Public, "203.0.113.1 2000:: 2001:200::1 2001:db8::1 2606::1 3fff::1 3fff:ffff::1"),
    ];
    for (group, addresses) in rows {
        for address in addresses.split(' ') {
            assert_eq!(Group::of(address.parse().unwrap()), group, "{address}");
        }
    }
}

#[test]
fn metadata_addresses_are_in_no_other_group() {
    for address in METADATA {
        for (word, group) in Group::ALL {
            let policy = policy(&std::format!("allow {word}"));
            let destination = SocketAddr::new(address, 80);
            let question = Question { protocol: Protocol::Tcp, destination, leads_to_host: false };
            let expected = matches!(group, Group::Metadata | Group::All);
            assert_eq!(!policy.verdict(&question, &NoNames).is_deny(), expected, "{address} {word}");
        }
    }
}

#[test]
fn carried_addresses() {
    let rows = [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::192.0.2.1", "192.0.2.1"),
        ("2002:c000:201::1", "192.0.2.1"),
        ("64:ff9b::192.0.2.1", "192.0.2.1"),
        ("2001:0:c633:6401:0:ffff:3fff:fdfe", "192.0.2.1"),
        // Prefixes of 96, 64, 56 and 48 bits (RFC 6052 §2.2).
        ("64:ff9b:1::192.0.2.1", "192.0.2.1"),
        ("64:ff9b:1:0:c0:2:100:0", "192.0.2.1 1.0.0.0"),
        ("64:ff9b:1:c0:0:201::", "192.0.2.1"),
        ("64:ff9b:1:7f00:0:100::", "127.0.0.1"),
        ("64:ff9b:1:c000:2:100::", "192.0.2.1 2.1.0.0"),
        ("64:ff9b:1::", "0.0.0.0"),
        ("::1", ""),
        ("::", ""),
        ("64:ff9b::1:0:0", ""),
        ("64:ff9b:2::1", ""),
        ("2001:db8::1", ""),
        ("2001:1::1", ""),
    ];
    for (address, expected) in rows {
        let found: Vec<String> =
            group::carried(address.parse().unwrap()).map(|found| std::format!("{found}")).collect();
        assert_eq!(found.join(" "), expected, "{address}");
    }
}

#[test]
fn addresses_and_prefixes() {
    check(
        "allow 192.0.2.1; deny 192.0.2.0/25; allow 192.0.2.0/24; allow 2001:db8::/32",
        &[
            ("tcp", "192.0.2.1:443", "+0"),
            ("icmp", "192.0.2.1:0", "+0"),
            ("udp", "192.0.2.2:443", "-1"),
            ("udp", "192.0.2.200:443", "+2"),
            ("udp", "192.0.3.0:443", "-"),
            ("tcp", "[2001:db8::9]:1", "+3"),
            ("tcp", "[2001:db9::9]:1", "-"),
            ("tcp", "[::ffff:192.0.2.1]:1", "+0"),
        ],
    );
    check("deny 0.0.0.0/0", &[("tcp", "192.0.2.1:1", "-0"), ("tcp", "[2001:db8::1]:1", "+")]);
    check("allow ::/0", &[("tcp", "192.0.2.1:1", "-"), ("tcp", "[2001:db8::1]:1", "+0")]);
}

#[test]
fn the_first_rule_decides_whatever_its_kind() {
    let by_prefix_first = "allow 10.0.0.0/8:22; deny private; deny 10.1.0.0/16; allow all";
    check(
        by_prefix_first,
        &[
            ("tcp", "10.1.0.1:22", "+0"),
            ("tcp", "10.1.0.1:23", "-1"),
            ("icmp", "10.1.0.1:22", "-1"),
            ("tcp", "192.0.2.1:22", "+3"),
        ],
    );
    check("deny all; allow 192.0.2.1", &[("tcp", "192.0.2.1:1", "-0"), ("icmp", "[ff02::1]:0", "-0")]);
}

#[test]
fn protocols_and_ports() {
    check(
        "allow tcp/192.0.2.1; allow udp/192.0.2.2:53,1000-2000; allow 192.0.2.3:443; allow icmp/192.0.2.4",
        &[
            ("tcp", "192.0.2.1:9", "+0"),
            ("udp", "192.0.2.1:9", "-"),
            ("icmp", "192.0.2.1:0", "-"),
            ("udp", "192.0.2.2:53", "+1"),
            ("udp", "192.0.2.2:1000", "+1"),
            ("udp", "192.0.2.2:2000", "+1"),
            ("udp", "192.0.2.2:2001", "-"),
            ("tcp", "192.0.2.2:53", "-"),
            ("tcp", "192.0.2.3:443", "+2"),
            ("udp", "192.0.2.3:443", "+2"),
            ("icmp", "192.0.2.3:443", "-"),
            ("icmp", "192.0.2.4:0", "+3"),
            ("tcp", "192.0.2.4:443", "-"),
        ],
    );
    check("deny all:~443", &[("tcp", "192.0.2.1:443", "+"), ("tcp", "192.0.2.1:442", "-0")]);
}

#[test]
fn groups() {
    check(
        "allow public; allow tcp/private:22; allow linklocal; allow udp/multicast; allow metadata:80",
        &[
            ("tcp", "192.0.2.1:1", "+0"),
            ("udp", "[2001:db8::1]:1", "+0"),
            ("tcp", "192.168.0.1:22", "+1"),
            ("tcp", "[fd00::1]:22", "+1"),
            ("tcp", "192.168.0.1:23", "-"),
            ("icmp", "169.254.0.1:0", "+2"),
            ("icmp", "[fe80::1%7]:0", "+2"),
            ("udp", "224.0.0.251:1900", "+3"),
            ("tcp", "169.254.169.254:80", "+4"),
            ("tcp", "169.254.169.254:81", "-"),
            ("tcp", "127.0.0.1:80", "-"),
        ],
    );
    check("deny private", &[("tcp", "100.100.100.200:80", "+"), ("tcp", "100.100.100.201:80", "-0")]);
}

#[test]
fn what_leads_to_the_host_is_in_its_group() {
    let rows = |on_link, host| [("tcp", "192.168.0.1:22", on_link), ("tcp", "192.168.0.1:22 (host)", host)];
    check("allow private", &rows("+0", "-"));
    check("deny private", &rows("-0", "-0"));
    check("allow host", &rows("-", "+0"));
    check("deny host", &rows("+", "-0"));
    check("allow all", &rows("+0", "+0"));
    check("allow 192.168.0.1", &rows("+0", "+0"));
    let rows = |on_link, host| [("tcp", "192.0.2.1:22", on_link), ("tcp", "192.0.2.1:22 (host)", host)];
    check("allow public", &rows("+0", "-"));
    check("deny public", &rows("-0", "+"));
    check("deny host", &[("tcp", "127.0.0.1:22", "-0"), ("tcp", "[::1]:22", "-0")]);
}

#[test]
fn carried_addresses_decide() {
    let carriers = [
        "[::ffff:10.0.0.1]:443",
        "[64:ff9b::10.0.0.1]:443",
        "[64:ff9b:1::10.0.0.1]:443",
        "[2002:a00:1::1]:443",
        "[2001:0:c633:6401:0:ffff:f5ff:fffe]:443",
    ];
    for carrier in carriers {
        check("deny private", &[("tcp", carrier, "-0")]);
        check("deny 10.0.0.1", &[("udp", carrier, "-0")]);
        check("deny tcp/10.0.0.0/8:443", &[("tcp", carrier, "-0"), ("udp", carrier, "+")]);
        check("allow public; allow ::/0", &[("tcp", carrier, "-")]);
        check("allow 10.0.0.0/8", &[("tcp", carrier, "+0")]);
        check("deny metadata", &[("tcp", carrier, "+")]);
    }
    check(
        "deny metadata; deny host",
        &[("tcp", "[64:ff9b::169.254.169.254]:80", "-0"), ("tcp", "[2002:7f00:1::]:80", "-1")],
    );
    // The rule matches the IPv6 address that carries the IPv4 address.
    check("deny 2002::/16; allow all", &[("tcp", "[2002:a00:1::1]:1", "-0"), ("tcp", "10.0.0.1:1", "+1")]);
    // The rule matches the IPv4 address at one of several positions.
    check("deny 192.0.2.1", &[("tcp", "[64:ff9b:1:c000:2:100::]:1", "-0")]);
    check("allow 192.0.2.1", &[("tcp", "[64:ff9b:1:c000:2:100::]:1", "-")]);
    check("allow 192.0.2.1; allow 2.1.0.0", &[("tcp", "[64:ff9b:1:c000:2:100::]:1", "+0")]);
}

#[test]
fn names_of_addresses() {
    check(
        "allow a.example:443",
        &[
            ("tcp", "198.51.100.1:443", "n0"),
            ("udp", "198.51.100.1:443", "n0"),
            ("tcp", "198.51.100.1:80", "-"),
            ("icmp", "198.51.100.1:0", "-"),
            ("tcp", "198.51.100.2:443", "-"),
            ("tcp", "[2001:db8::1]:443", "n0"),
            ("tcp", "[64:ff9b::198.51.100.1]:443", "n0"),
            // This address was not in an answer, although 198.51.100.1 was.
            ("tcp", "[2002:c633:6401::1]:443", "-"),
        ],
    );
    check("allow a.example", &[("icmp", "198.51.100.1:0", "+0"), ("tcp", "198.51.100.1:1", "n0")]);
    check("allow *.a.example", &[("tcp", "198.51.100.1:1", "n0"), ("tcp", "[2001:db8::1]:1", "-")]);
    check("allow *.example", &[("tcp", "198.51.100.1:1", "n0"), ("tcp", "[2001:db8::1]:1", "n0")]);
    check(
        "deny tcp/a.example:25",
        &[
            ("tcp", "198.51.100.1:25", "-0"),
            ("tcp", "198.51.100.1:26", "+"),
            ("tcp", "[2002:c633:6401::1]:25", "-0"),
        ],
    );
}

#[test]
fn ports_let_other_first_bytes_pass() {
    check("allow a.example:22", &[("tcp", "198.51.100.1:22", "N0")]);
    check(
        "allow a.example:1-1000",
        &[
            ("tcp", "198.51.100.1:22", "N0"),
            ("tcp", "198.51.100.1:80", "n0"),
            ("tcp", "198.51.100.1:443", "n0"),
        ],
    );
    check("allow a.example", &[("tcp", "198.51.100.1:22", "n0")]);
}

#[test]
fn what_an_address_allows_too_is_not_allowed_by_name_alone() {
    let at = |expected| [("tcp", "198.51.100.1:443", expected)];
    check("allow a.example; allow public", &at("+0"));
    check("allow a.example; default allow", &at("+0"));
    check("allow a.example; deny 198.51.100.0/24; allow public", &at("n0"));
    check("allow a.example; deny b.a.example; allow public", &at("n0"));
    check("allow public; allow a.example", &at("+0"));
    check("deny 198.51.100.1; allow a.example", &at("-0"));
}

#[test]
fn a_claim_is_checked_against_rules_and_answers() {
    let policy = policy("allow a.example; allow c.example; deny b.a.example");
    let question = question("tcp", "198.51.100.1:443");
    assert_eq!(shown(policy.verdict(&question, &table())), "n0");
    for (name, expected) in
        [("a.example", "n0"), ("A.Example.", "n0"), ("b.a.example", "-2"), ("c.example", "-"), ("", "-")]
    {
        assert_eq!(shown(policy.claim_verdict(&question, name, &table())), expected, "{name}");
    }
}

#[test]
fn other_name_services_are_refused_with_rules_by_name() {
    let rows = [
        ("tcp", "192.0.2.1:853", "!"),
        ("udp", "192.0.2.1:853", "!"),
        ("udp", "224.0.0.251:5353", "!"),
        ("udp", "[ff02::1:3]:5355", "!"),
        ("udp", "192.0.2.1:53", "!"),
        ("icmp", "192.0.2.1:853", "+1"),
    ];
    check("allow a.example; allow all", &rows);
    check("deny host; allow all", &rows.map(|(protocol, to, _)| (protocol, to, "+1")));
}

#[track_caller]
fn check_names(rules: &str, rows: &[(&str, &str)]) {
    let policy = policy(rules);
    for (name, expected) in rows {
        let with = |sign: &str, reason| match reason {
            Reason::Rule(index) => std::format!("{sign}{index}"),
            _ => sign.into(),
        };
        // `-`: NXDOMAIN. `~`: NODATA, since names below this name may be allowed.
        let found = match policy.name_verdict(name) {
            NameVerdict::Allow(reason) => with("+", reason),
            NameVerdict::Deny { reason, names_below: false } => with("-", reason),
            NameVerdict::Deny { reason, names_below: true } => with("~", reason),
        };
        assert_eq!(found, *expected, "{name:?} by {rules}");
    }
}

#[test]
fn questions_for_names() {
    check_names(
        "allow index.example.org:443; allow *.files.example.org",
        &[
            ("index.example.org", "+0"),
            ("INDEX.example.ORG.", "+0"),
            ("x.index.example.org", "-"),
            ("xindex.example.org", "-"),
            ("files.example.org", "~"),
            ("a.files.example.org", "+1"),
            ("a.b.files.example.org", "+1"),
            ("a-files.example.org", "-"),
            ("example.org", "~"),
            ("org", "~"),
            ("", "~"),
            (".", "~"),
            ("test", "-"),
        ],
    );
    check_names(
        "deny example.org; default allow",
        &[("example.org", "~0"), ("www.example.org", "+"), ("org", "+")],
    );
    check_names(
        "deny *.example.org; deny example.org",
        &[("example.org", "-1"), ("a.example.org", "-0"), ("b.a.example.org", "-0")],
    );
    check_names(
        "allow x.a.example.org; deny *.example.org",
        &[("a.example.org", "~1"), ("b.example.org", "-1")],
    );
    check_names(
        "allow a.example; deny *.a.example; allow *.example",
        &[("a.example", "+0"), ("x.a.example", "-1"), ("b.example", "+2")],
    );
}

#[test]
fn rules_by_address_and_questions_for_names() {
    let name = |expected| [("b.example", expected)];
    check_names("deny a.example; allow public", &name("+1"));
    check_names("deny a.example; allow tcp/0.0.0.0/0:443", &name("+1"));
    check_names("allow a.example; allow private", &name("-"));
    check_names("allow a.example; allow 192.0.2.0/24", &name("-"));
    check_names("allow a.example; deny all; default allow", &name("-1"));
    check_names("allow a.example; deny tcp/all; default allow", &name("+"));
    check_names("allow a.example; deny public; default allow", &name("+"));
    check_names("deny all; allow b.example", &name("-0"));
    // A rule that denies some ports of a name does not refuse DNS questions for the name.
    check_names("deny b.example:25; default allow", &name("+"));
    check_names("deny private", &name("+"));
}

#[test]
fn answers_into_private_networks_are_refused() {
    let check = |rules: &str, address: &str, host: bool, expected: bool| {
        let policy = policy(rules);
        assert_eq!(policy.may_answer(address.parse().unwrap(), host), expected, "{address} by {rules}");
    };
    for address in [
        "10.0.0.1",
        "127.0.0.1",
        "169.254.1.1",
        "169.254.169.254",
        "fe80::1",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::1",
        "224.0.0.1",
    ] {
        check("allow a.example", address, false, false);
        check("deny all", address, false, false);
        check("allow a.example; allow all", address, false, true);
    }
    for address in ["192.0.2.1", "2001:db8::1", "64:ff9b::192.0.2.1"] {
        check("allow a.example", address, false, true);
        check("allow a.example", address, true, false);
        check("allow a.example; allow host", address, true, true);
    }
    check("allow a.example; allow 10.0.0.1:443", "10.0.0.1", false, true);
    check("allow a.example; allow 10.0.0.1:443", "10.0.0.2", false, false);
    check("allow a.example; deny private; allow 10.0.0.1", "10.0.0.1", false, false);
    check("deny a.example", "10.0.0.1", false, true);
    check("deny a.example; deny tcp/private", "10.0.0.1", false, true);
    check("deny a.example; deny private", "10.0.0.1", false, false);
    check("deny a.example; deny 64:ff9b::/96", "64:ff9b::10.0.0.1", false, false);
}

#[test]
fn the_default_follows_from_the_rules() {
    for (rules, expected) in [
        ("", Action::Allow),
        ("deny all", Action::Allow),
        ("allow 192.0.2.1", Action::Deny),
        ("allow 192.0.2.1; default allow", Action::Allow),
        ("default deny", Action::Deny),
    ] {
        assert_eq!(policy(rules).default_action(), expected, "{rules}");
    }
}

#[test]
fn rules_that_contradict_each_other_are_refused() {
    let new = |rules: &[&str]| {
        let file = spec::parse_file(&rules.join("\n")).unwrap();
        Policy::new(file.rules, None).map(drop)
    };
    for rule in
        ["allow udp/192.0.2.1:53", "allow all:53", "allow dns.example:853", "allow udp/multicast:5353,5355"]
    {
        let expected = Err(PolicyError::NameService(rule.into()));
        assert_eq!(new(&["deny a.example", rule]), expected);
        assert_eq!(new(&["allow *.a.example", rule]), expected);
    }
    assert!(new(&["allow a.example", "deny udp/192.0.2.1:53"]).is_err());
    for rule in
        ["allow all:1-1000", "allow 192.0.2.1", "deny all:853", "allow icmp/192.0.2.1", "deny all:5353"]
    {
        assert_eq!(new(&["allow a.example", rule]), Ok(()));
    }
    assert_eq!(new(&["allow udp/192.0.2.1:53"]), Ok(()));
    let rule = spec::parse(Action::Deny, "all").unwrap();
    assert_eq!(Policy::new(vec![rule.clone(); MAX_RULES + 1], None).err(), Some(PolicyError::TooManyRules));
    assert!(Policy::new(vec![rule; MAX_RULES], None).is_ok());
}

#[test]
fn reasons_have_a_text() {
    let policy = policy("deny  tcp/all:25  # mail");
    assert_eq!(policy.text(Reason::Rule(0)), "deny tcp/all:25");
    assert_eq!(policy.text(Reason::Default), "default allow");
    assert_eq!(policy.text(Reason::Rule(1)), "");
    assert!(!policy.text(Reason::NameService).is_empty());
}
