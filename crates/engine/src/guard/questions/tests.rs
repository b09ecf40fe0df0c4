use alloc::{format, vec};

use super::*;
use crate::{
    guard::Mode,
    names::{Address, Target},
    policy::{Policy, spec},
    testkit::settings::START,
};

const SEARCH: &str = "corp.example.org";

struct Test {
    guard: Guard,
    now: Instant,
}

impl Test {
    fn new(rules: &str) -> Self {
        Self::with(rules, false)
    }

    fn with(rules: &str, audit: bool) -> Self {
        let file = spec::parse_file(rules).unwrap();
        let policy = Policy::new(file.rules, file.default).unwrap();
        Self { guard: Guard::new(policy, Mode { audit, ..Mode::default() }, [1; 16]), now: START }
    }

    /// The decision about a question, as text.
    fn ask(&mut self, name: &str, kind: Type) -> String {
        let search = [SEARCH.into()];
        let asked = asked(name, kind, &search);
        let local = |address| address == IpAddr::from([10, 0, 2, 3]);
        match self.guard.admits_question(&asked, local, self.now) {
            Ok(()) => "asked".into(),
            Err(Refused { name_exists: true, text }) => format!("no data: {text}"),
            Err(Refused { name_exists: false, text }) => format!("no name: {text}"),
        }
    }

    /// Passes an answer for `name` to the guard.
    fn answered(&mut self, name: &str, addresses: &[&str], targets: &[&str]) -> Result<(), Refused> {
        let given = |address: &&str| Address { address: address.parse().unwrap(), ttl: 300 };
        let answers = Answers {
            addresses: addresses.iter().map(given).collect(),
            targets: targets.iter().map(|&name| Target { name: name.into(), ttl: 300 }).collect(),
        };
        let own = |address: IpAddr| address == IpAddr::from([203, 0, 113, 7]);
        self.guard.admits_answer(&asked(name, Type::A, &[]), &answers, own, self.now)
    }

    fn names_of(&self, address: &str) -> Vec<String> {
        let names = self.guard.names.as_ref().unwrap();
        names.lookup(address.parse().unwrap(), self.now).map(String::from).collect()
    }
}

fn asked<'a>(name: &'a str, kind: Type, search: &'a [String]) -> Asked<'a> {
    let useless = (kind == Type::NULL).then_some("useless");
    Asked { client: "198.51.100.2:4000".parse().unwrap(), name, kind, useless, search }
}

#[test]
fn names_that_no_rule_allows_are_not_asked_for() {
    let mut test = Test::new("allow example.org:443\nallow *.files.example.org:443");
    for (name, expected) in [
        ("example.org", "asked"),
        ("a.files.example.org", "asked"),
        ("a.b.files.example.org", "asked"),
        ("files.example.org", "no data: default deny"),
        ("org", "no data: default deny"),
        ("www.example.org", "no name: default deny"),
        ("example.org.evil.test", "no name: default deny"),
        ("data.evil.test", "no name: default deny"),
        (".", "no data: default deny"),
    ] {
        assert_eq!(test.ask(name, Type::A), expected, "{name}");
    }
    assert_eq!(test.guard.refused(), 6);
}

#[test]
fn types_of_no_use_are_refused_for_allowed_names_as_well() {
    let mut test = Test::new("allow example.org");
    assert_eq!(test.ask("example.org", Type::NULL), "no data: useless");
    assert_eq!(test.ask("evil.test", Type::NULL), "no name: default deny");
}

#[test]
fn services_count_as_their_name() {
    let mut test = Test::new("allow example.org\ndeny bad.example\nallow all");
    assert_eq!(test.ask("_https._tcp.example.org", Type::SRV), "asked");
    assert_eq!(test.ask("_https._tcp.bad.example", Type::SRV), "no data: deny bad.example");
    let mut test = Test::new("allow example.org");
    assert_eq!(test.ask("_https._tcp.example.org", Type::SRV), "asked");
    assert_eq!(test.ask("_https._tcp.evil.test", Type::SRV), "no name: default deny");
    assert_eq!(test.ask("x._tcp.example.org", Type::SRV), "no name: default deny");
}

#[test]
fn targets_of_an_allowed_name_may_be_asked_for_and_stand_for_it() {
    let mut test = Test::new("allow example.org\ndeny ads.test");
    assert_eq!(test.ask("cdn.test", Type::A), "no name: default deny");
    test.answered("example.org", &[], &["cdn.test", "ads.test"]).unwrap();
    assert_eq!(test.ask("cdn.test", Type::A), "asked");
    assert_eq!(test.ask("ads.test", Type::A), "no name: deny ads.test");
    test.answered("cdn.test", &["192.0.2.1"], &["far.test"]).unwrap();
    assert_eq!(test.names_of("192.0.2.1"), ["example.org"]);
    assert_eq!(test.ask("far.test", Type::A), "asked");
    test.now = test.now + Duration::from_secs(302);
    assert_eq!(test.ask("cdn.test", Type::A), "no name: default deny");
}

#[test]
fn reverse_names_of_known_addresses_may_be_asked_for() {
    let mut test = Test::new("allow example.org\nallow 192.0.2.0/24:80");
    test.answered("example.org", &["203.0.113.1"], &[]).unwrap();
    for (name, expected) in [
        ("7.2.0.192.in-addr.arpa", "asked"),
        ("1.113.0.203.in-addr.arpa", "asked"),
        ("3.2.0.10.in-addr.arpa", "asked"),
        ("4.2.0.10.in-addr.arpa", "no name: default deny"),
        ("2.113.0.203.in-addr.arpa", "no name: default deny"),
        ("data.7.2.0.192.in-addr.arpa", "no name: default deny"),
    ] {
        assert_eq!(test.ask(name, Type::PTR), expected, "{name}");
    }
    assert_eq!(test.ask("7.2.0.192.in-addr.arpa", Type::TXT), "no name: default deny");
}

/// A client that validates signatures needs the keys of all zones above a name.
#[test]
fn keys_of_the_zones_above_an_allowed_name_may_be_asked_for() {
    let mut test = Test::new("allow www.example.org");
    for kind in [Type::DS, Type::DNSKEY] {
        assert_eq!(
            ["www.example.org", "example.org", "org", "."].map(|name| test.ask(name, kind)),
            ["asked"; 4].map(String::from)
        );
        assert_eq!(test.ask("example.com", kind), "no name: default deny");
    }
    assert_eq!(test.ask("example.org", Type::A), "no data: default deny");
}

/// After a refusal, stub resolvers try the domains of their search list. If a wildcard allows such a domain, the
/// refused name would leave the guest as a part of the new name.
#[test]
fn a_refused_name_is_not_asked_for_with_a_search_domain() {
    let mut test = Test::new("allow *.example.org");
    let searched = format!("data.evil.test.{SEARCH}");
    assert_eq!(test.ask(&searched, Type::A), "asked");
    assert_eq!(test.ask("data.evil.test", Type::A), "no name: default deny");
    assert_eq!(test.ask(&searched, Type::A), "no data: a refused name and a search domain");
    assert_eq!(test.ask(&format!("other.evil.test.{SEARCH}"), Type::A), "asked");
    assert_eq!(test.ask(&format!("www.{SEARCH}"), Type::A), "asked");
    // A refused name is remembered even after many other refusals.
    for number in 0..MOST_RECENT - 2 {
        test.ask(&format!("{number}.evil.test"), Type::A);
    }
    assert_eq!(test.ask(&searched, Type::A), "no data: a refused name and a search domain");
    assert_eq!(test.guard.recent.names.len(), MOST_RECENT, "bounded");
    test.now = test.now + RECENT;
    assert_eq!(test.ask(&searched, Type::A), "asked");
}

#[test]
fn answers_that_lead_into_private_networks_are_refused() {
    for (rules, address, expected) in [
        ("allow example.org", "192.0.2.1", true),
        ("allow example.org", "10.1.2.3", false),
        ("allow example.org", "127.0.0.1", false),
        ("allow example.org", "169.254.169.254", false),
        ("allow example.org", "::1", false),
        ("allow example.org", "fe80::1", false),
        ("allow example.org", "0.0.0.0", false),
        ("allow example.org", "::ffff:10.0.0.1", false),
        ("allow example.org", "203.0.113.7", false), // an address of the host
        ("allow example.org\nallow host", "203.0.113.7", true),
        ("allow example.org\nallow 10.1.2.0/24:443", "10.1.2.3", true),
        ("allow all\ndeny example.test", "10.1.2.3", true),
        ("deny private\nallow all\ndeny example.test", "10.1.2.3", false),
    ] {
        let mut test = Test::new(rules);
        let answered = test.answered("example.org", &["192.0.2.9", address], &["cdn.test"]);
        assert_eq!(answered.is_ok(), expected, "{rules}: {address}");
        // Nothing is learned from a refused answer.
        if rules.starts_with("allow example.org") {
            assert_eq!(test.names_of("192.0.2.9").len(), usize::from(expected), "{rules}: {address}");
            assert_eq!(test.ask("cdn.test", Type::A) == "asked", expected);
        }
    }
}

#[test]
fn only_names_that_a_rule_is_about_are_learned_except_in_an_audit() {
    for (audit, expected) in [(false, vec![]), (true, vec!["other.test"])] {
        let mut test = Test::with("deny tcp/bad.test:25\nallow all", audit);
        test.answered("other.test", &["192.0.2.1"], &[]).unwrap();
        test.answered("bad.test", &["192.0.2.2"], &[]).unwrap();
        assert_eq!(test.names_of("192.0.2.1"), expected);
        assert_eq!(test.names_of("192.0.2.2"), ["bad.test"]);
    }
}

#[test]
fn an_audit_refuses_no_question_and_no_answer() {
    let mut test = Test::with("allow example.org", true);
    assert_eq!(test.ask("evil.test", Type::NULL), "asked");
    assert_eq!(test.guard.refused(), 1);
    test.answered("evil.test", &["10.0.0.1"], &[]).unwrap();
    assert_eq!(test.guard.refused(), 2);
    assert_eq!(test.names_of("10.0.0.1"), ["evil.test"], "for the log");
}
