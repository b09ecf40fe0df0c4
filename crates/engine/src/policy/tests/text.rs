//! Tests of the parser.

use std::{format, string::ToString};

use super::super::spec::{Fault, File, FileError, LineFault, MAX_RULE_LEN, MAX_RULES, parse, parse_file};
use super::*;

fn allowed(what: &str) -> Rule {
    parse(Action::Allow, what).unwrap()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

#[test]
fn destinations() {
    let prefix = |text: &str| Destination::Prefix(text.parse().unwrap());
    for (what, expected) in [
        ("192.0.2.1", prefix("192.0.2.1/32")),
        ("192.0.2.0/24", prefix("192.0.2.0/24")),
        ("0.0.0.0/0", prefix("0.0.0.0/0")),
        ("2001:db8::1", prefix("2001:db8::1/128")),
        ("2001:db8::/32", prefix("2001:db8::/32")),
        ("[2001:db8::1]", prefix("2001:db8::1/128")),
        ("[2001:db8::/32]:443", prefix("2001:db8::/32")),
        ("[2001:db8::]/32:443", prefix("2001:db8::/32")),
        ("[192.0.2.1]:443", prefix("192.0.2.1/32")),
        ("::ffff:192.0.2.1", prefix("192.0.2.1/32")),
        ("::ffff:192.0.2.0/120", prefix("192.0.2.0/24")),
        ("::/0", prefix("::/0")),
        ("public", Destination::Group(Group::Public)),
        ("LinkLocal:1-2", Destination::Group(Group::LinkLocal)),
        ("tcp/all", Destination::Group(Group::All)),
        ("all.", Destination::Name(name("all"))),
        ("example.org", Destination::Name(name("example.org"))),
        ("Example.ORG.:443", Destination::Name(name("example.org"))),
        ("_dmarc.example_1.org", Destination::Name(name("_dmarc.example_1.org"))),
        ("udp/*.example.org", Destination::Below(name("example.org"))),
        ("*.org:1", Destination::Below(name("org"))),
        ("registry", Destination::Name(name("registry"))),
        ("r3---sn-4g5e.example", Destination::Name(name("r3---sn-4g5e.example"))),
        ("bücher.example", Destination::Name(name("xn--bcher-kva.example"))),
        ("*.BÜCHER.example", Destination::Below(name("xn--bcher-kva.example"))),
        ("faß.example", Destination::Name(name("xn--fa-hia.example"))),
        ("日本。example", Destination::Name(name("xn--wgv71a.example"))),
    ] {
        assert_eq!(allowed(what).destination, expected, "{what}");
    }
    assert_eq!(name("BÜCHER.example.").as_str(), "xn--bcher-kva.example");
}

#[test]
fn protocols() {
    for (what, expected) in [
        ("all", None),
        ("tcp/all", Some(Protocol::Tcp)),
        ("UDP/192.0.2.0/24", Some(Protocol::Udp)),
        ("icmp/2001:db8::/32", Some(Protocol::Icmp)),
        ("192.0.2.0/24", None),
    ] {
        assert_eq!(allowed(what).protocol, expected, "{what}");
    }
}

#[test]
fn ports() {
    for (what, inside, outside) in [
        ("all", &[1, 443, 65535][..], &[][..]),
        ("all:443", &[443], &[442, 444]),
        ("192.0.2.1:0443", &[443], &[444]),
        ("example.org:80,8000-8010", &[80, 8000, 8010], &[79, 81, 7999, 8011]),
        ("[2001:db8::1]:1-1000,~22", &[1, 21, 23, 1000], &[22, 1001]),
        ("all:~25,~1-10", &[11, 24, 26, 65535], &[1, 10, 25]),
        ("all:100-200,150-300", &[100, 175, 300], &[99, 301]),
    ] {
        let ports = allowed(what).ports;
        assert_eq!(ports.are_given(), what != "all", "{what}");
        assert!(inside.iter().all(|port| ports.contains(*port)), "{what}");
        assert!(!outside.iter().any(|port| ports.contains(*port)), "{what}");
    }
}

#[test]
fn the_text_is_kept() {
    assert_eq!(&*allowed(" tcp/Example.org:443 ").text, "allow tcp/Example.org:443");
    assert_eq!(parse(Action::Deny, "all").unwrap().to_string(), "deny all");
}

#[test]
fn invalid_rules() {
    let long = format!("{}:1", "a.".repeat(MAX_RULE_LEN / 2));
    let label = "x".repeat(64);
    let name = ["x".repeat(63).as_str(); 4].join(".");
    for (what, expected) in [
        (long.as_str(), Fault::TooLong),
        ("", Fault::NoDestination),
        ("tcp/", Fault::NoDestination),
        (":443", Fault::NoDestination),
        ("sctp/192.0.2.1", Fault::Protocol),
        ("tpc/example.org", Fault::Protocol),
        ("--", Fault::Destination),
        ("-x.example.org", Fault::Destination),
        ("example.org/24", Fault::Destination),
        ("/24", Fault::Destination),
        ("192.0.2", Fault::Destination),
        ("192.0.2.256", Fault::Destination),
        ("0x7f.1", Fault::Destination),
        ("a..b", Fault::Destination),
        (".", Fault::Destination),
        ("*.", Fault::Destination),
        ("a b", Fault::Destination),
        ("a@b", Fault::Destination),
        ("xn--a.example", Fault::Destination),
        ("a\u{202e}b.example", Fault::Destination),
        (&label, Fault::Destination),
        (&name, Fault::Destination),
        ("[example.org]:443", Fault::Destination),
        ("[2001:db8::1", Fault::Brackets),
        ("2001:db8::/32:443", Fault::Brackets),
        ("2001:db8:0:0:0:0:0:1:443", Fault::Brackets),
        ("1:2:3", Fault::Destination),
        ("example.org:1:2", Fault::Destination),
        ("192.0.2.0/33", Fault::PrefixLength),
        ("2001:db8::/129", Fault::PrefixLength),
        ("192.0.2.0/x", Fault::PrefixLength),
        ("192.0.2.0/", Fault::PrefixLength),
        ("192.0.2.0/1-2", Fault::PrefixLength),
        ("192.0.2.1/24", Fault::HostBits("192.0.2.0/24".parse().unwrap())),
        ("[2001:db8::1/64]:1", Fault::HostBits("2001:db8::/64".parse().unwrap())),
        ("fe80::1%eth0", Fault::Scope),
        ("[fe80::1%eth0]:22", Fault::Scope),
        ("any", Fault::NearGroup("any", "all")),
        ("tcp/Internet:443", Fault::NearGroup("internet", "public")),
        ("link-local", Fault::NearGroup("link-local", "linklocal")),
        ("localhost:80", Fault::NearGroup("localhost", "host")),
        ("https://example.org/", Fault::Url),
        ("tcp://192.0.2.1:443", Fault::Url),
        ("a.example,b.example", Fault::List),
        ("a.example:443,b.example:443", Fault::List),
        ("*", Fault::Star),
        ("a.*.example", Fault::Star),
        ("*a.example", Fault::Star),
        ("*.*.example", Fault::Star),
        ("all:", Fault::Ports),
        ("all:http", Fault::Ports),
        ("all:65536", Fault::Ports),
        ("all:2-1", Fault::Ports),
        ("all:80,", Fault::Ports),
        ("all:+80", Fault::Ports),
        ("[2001:db8::1]443", Fault::Destination),
        ("all:80,~80", Fault::NoPorts),
        ("all:0", Fault::NoPorts),
        ("icmp/all:80", Fault::IcmpPorts),
        ("tcp/multicast", Fault::TcpMulticast),
        ("tcp/224.0.0.0/4:1", Fault::TcpMulticast),
        ("tcp/[ff02::1]:1", Fault::TcpMulticast),
        ("2002::/16", Fault::Carries),
        ("64:ff9b::/96", Fault::Carries),
        ("64:ff9b:1::/48", Fault::Carries),
        ("2001::/32", Fault::Carries),
        ("2002:c000:201::1", Fault::Carries),
    ] {
        let error = parse(Action::Allow, what).expect_err(what);
        assert_eq!(error.fault, expected, "{what}");
        assert!(error.to_string().starts_with("Invalid rule '"), "{error}");
    }
}

#[test]
fn what_could_not_be_allowed_can_be_denied() {
    for what in ["2002::/16", "64:ff9b::/96", "2001::/32"] {
        assert!(parse(Action::Deny, what).is_ok(), "{what}");
    }
    assert!(parse(Action::Allow, "::1").is_ok());
    assert!(parse(Action::Allow, "2000::/3").is_ok());
}

#[test]
fn messages_name_the_rule_and_what_to_do() {
    let message = |what: &str| parse(Action::Allow, what).unwrap_err().to_string();
    assert_eq!(
        message("icmp/all:80"),
        "Invalid rule 'icmp/all:80': ICMP has no ports; leave them out, or use tcp or udp"
    );
    assert_eq!(
        message("192.0.2.1/24"),
        "Invalid rule '192.0.2.1/24': the address has bits beyond the prefix length; write 192.0.2.0/24"
    );
    assert!(message("\u{1b}[2J\u{202e}").contains(r"'\u{1b}[2J\u{202e}'"));
    assert!(message(&"x".repeat(2000)).len() < 250);
}

#[test]
fn files() {
    let text = "\u{feff}# who may do what\r\n\n  allow tcp/example.org:443   # the index\r\n\tdeny\tall#\ndefault allow";
    let file = parse_file(text).unwrap();
    let rules: Vec<&str> = file.rules.iter().map(|rule| &*rule.text).collect();
    assert_eq!(rules, ["allow tcp/example.org:443", "deny all"]);
    assert_eq!(file.default, Some(Action::Allow));
    assert_eq!(parse_file(""), Ok(File::default()));
}

#[test]
fn invalid_files() {
    let fault = |text: &str| parse_file(text).unwrap_err();
    for (text, line, expected) in [
        ("allow all\n\npermit all", 3, LineFault::Word("permit".into())),
        ("Allow all", 1, LineFault::Word("Allow".into())),
        ("allow a.example b.example", 1, LineFault::Rest("b.example".into())),
        ("default", 1, LineFault::Default),
        ("default maybe", 1, LineFault::Default),
        ("default deny\ndefault deny", 2, LineFault::SecondDefault),
        ("deny", 1, LineFault::Rule(parse(Action::Deny, "").unwrap_err())),
        ("#\ndeny icmp/all:1", 2, LineFault::Rule(parse(Action::Deny, "icmp/all:1").unwrap_err())),
        (&"deny all\n".repeat(MAX_RULES + 1), MAX_RULES + 1, LineFault::TooManyRules),
    ] {
        assert_eq!(fault(text), FileError { line, fault: expected });
    }
    assert_eq!(
        fault("\nallow icmp/all:1").to_string(),
        "line 2: Invalid rule 'icmp/all:1': ICMP has no ports; leave them out, or use tcp or udp"
    );
}
