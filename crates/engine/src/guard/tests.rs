use alloc::vec::Vec;
use core::{net::SocketAddr, time::Duration};

use super::*;
use crate::{names::MIN_LIFE, policy::spec, testkit::settings::START};

fn guard(rules: &[&str]) -> Guard {
    let file = spec::parse_file(&rules.join("\n")).unwrap();
    Guard::new(Policy::new(file.rules, file.default).unwrap(), Mode::default(), [1; 16])
}

fn opening(protocol: Protocol, remote: &str, destination: &str) -> Opening {
    let [remote, destination]: [SocketAddr; 2] = [remote, destination].map(|text| text.parse().unwrap());
    let ends = Endpoints { guest: "198.51.100.2:40000".parse().unwrap(), remote };
    Opening { protocol, ends, destination, asks_resolver: false }
}

#[test]
fn without_rules_everything_is_admitted() {
    let mut guard = Guard::default();
    let flow = opening(Protocol::Tcp, "192.0.2.1:80", "127.0.0.1:80");
    assert_eq!(guard.admits(&flow, START, |_| panic!("no rule depends on it")), Admission::Admit);
    assert_eq!(guard.refused(), 0);
}

#[test]
fn rules_mean_the_address_that_the_guest_wrote_and_host_means_where_it_leads() {
    let gateway = opening(Protocol::Tcp, "192.0.2.1:80", "127.0.0.1:80");
    let second = opening(Protocol::Tcp, "203.0.113.7:80", "203.0.113.7:80");
    for (rules, gateway_admitted, second_admitted) in [
        (&["deny 192.0.2.1"][..], false, true),
        (&["deny 127.0.0.1"], true, true),
        (&["deny host"], false, false),
        (&["allow 192.0.2.1"], true, false),
        (&["allow host"], true, true),
        (&["allow public"], false, false),
    ] {
        let mut guard = guard(rules);
        assert_eq!(guard.admits_unread(&gateway, START, |_| false), gateway_admitted, "{rules:?}");
        assert_eq!(guard.admits_unread(&second, START, |_| true), second_admitted, "{rules:?}");
        assert_eq!(guard.refused(), u64::from(!gateway_admitted) + u64::from(!second_admitted), "{rules:?}");
    }
}

#[test]
fn addresses_of_the_host_are_looked_up_only_for_groups() {
    let flow = opening(Protocol::Udp, "192.0.2.1:80", "192.0.2.1:80");
    assert!(guard(&["deny 192.0.2.2"]).admits_unread(&flow, START, |_| panic!("no rule depends on it")));
}

#[test]
fn a_resolver_in_a_denied_group_may_be_asked_if_names_may() {
    let flow = Opening { asks_resolver: true, ..opening(Protocol::Udp, "10.0.0.53:53", "10.0.0.53:53") };
    let admitted: Vec<bool> = [
        &["deny private"][..],
        &["deny 10.0.0.53"],
        &["allow public"],
        &["allow 192.0.2.1"],
        &["deny private", "default deny"],
    ]
    .iter()
    .map(|rules| guard(rules).admits_unread(&flow, START, |_| false))
    .collect();
    assert_eq!(admitted, [true, false, true, false, false]);
    let other = opening(Protocol::Udp, "10.0.0.53:53", "10.0.0.53:53");
    assert!(!guard(&["deny private"]).admits_unread(&other, START, |_| false));
}

#[test]
fn an_audit_refuses_nothing_and_counts() {
    let policy = guard(&["deny all"]).policy().unwrap().clone();
    let mut audit = Guard::new(policy, Mode { audit: true, ..Mode::default() }, [1; 16]);
    assert!(audit.admits_unread(&opening(Protocol::Icmp, "192.0.2.1:0", "192.0.2.1:0"), START, |_| false));
    assert_eq!(audit.refused(), 1);
}

#[test]
fn the_answer_alone_can_be_enough() {
    for (rules, expected) in [("allow a.example:443", true), ("allow b.example:443", false)] {
        let policy = guard(&[rules]).policy().unwrap().clone();
        let mode = Mode { by_answer_alone: true, ..Mode::default() };
        let mut guard = Guard::new(policy, mode, [1; 16]);
        let names = guard.names_mut().unwrap();
        assert!(names.learn("192.0.2.1".parse().unwrap(), "a.example", 60, START));
        let flow = opening(Protocol::Udp, "192.0.2.1:443", "192.0.2.1:443");
        let admission = guard.admits(&flow, START, |_| false);
        assert_eq!(admission, if expected { Admission::AdmitByName } else { Admission::Refuse }, "{rules}");
    }
}

#[test]
fn an_encrypted_hello_can_be_refused() {
    let policy = guard(&["allow a.example:443"]).policy().unwrap().clone();
    for ech in [Ech::OuterName, Ech::Refuse] {
        let mut guard = Guard::new(policy.clone(), Mode { ech, ..Mode::default() }, [1; 16]);
        assert!(guard.names_mut().unwrap().learn("192.0.2.1".parse().unwrap(), "a.example", 60, START));
        let flow = opening(Protocol::Tcp, "192.0.2.1:443", "192.0.2.1:443");
        let Admission::Named(claim) = guard.admits(&flow, START, |_| false) else { panic!() };
        assert_eq!(claim.ech, ech, "the reader of first bytes gets it");
    }
}

/// A name that expires while a client connects still allows the flow.
#[test]
fn names_are_those_of_the_time_when_the_flow_began() {
    let mut guard = guard(&["allow *.example.org"]);
    let names = guard.names_mut().unwrap();
    for name in ["a.example.org", "other.example"] {
        assert!(names.learn("192.0.2.1".parse().unwrap(), name, 60, START));
    }
    let flow = opening(Protocol::Tcp, "192.0.2.1:443", "192.0.2.1:443");
    let Admission::Named(claim) = guard.admits(&flow, START, |_| false) else { panic!() };
    assert!(!claim.server_first);
    let name = |text: &str| HostName::parse(text.as_bytes()).unwrap();
    assert!(guard.admits_name(&claim, &name("a.example.org")));
    assert!(!guard.admits_name(&claim, &name("other.example")), "no rule allows it");
    assert!(!guard.admits_name(&claim, &name("b.example.org")), "the address was no answer for it");
    assert!(!guard.admits_nameless(&claim, &"no name"));
    assert_eq!(guard.refused(), 3);
    let late = START + MIN_LIFE * 2;
    assert_eq!(guard.admits(&flow, late, |_| false), Admission::Refuse);
    assert!(guard.admits_name(&claim, &name("a.example.org")));
}

/// No flow holds the names of a ping's address. Instead, each ping prolongs the life of the names.
#[test]
fn each_ping_prolongs_the_life_of_names() {
    let mut guard = guard(&["allow a.example"]);
    let names = guard.names_mut().unwrap();
    assert!(names.learn("192.0.2.1".parse().unwrap(), "a.example", 60, START));
    let ping = opening(Protocol::Icmp, "192.0.2.1:0", "192.0.2.1:0");
    let second = |number| START + Duration::from_secs(number);
    for number in [50, 100, 150, 200] {
        assert!(guard.admits_unread(&ping, second(number), |_| false), "{number}");
    }
    assert!(!guard.admits_unread(&ping, second(270), |_| false));
    assert!(!guard.admits_unread(&ping, second(271), |_| false), "a refusal prolongs nothing");
}

#[test]
fn a_hold_ends_with_its_flow() {
    let mut guard = guard(&["allow a.example"]);
    assert!(guard.names_mut().unwrap().learn("192.0.2.1".parse().unwrap(), "a.example", 60, START));
    let address = "192.0.2.1".parse().unwrap();
    assert_eq!(guard.hold("192.0.2.2".parse().unwrap(), START), None);
    let hold = guard.hold(address, START).unwrap();
    let late = START + MIN_LIFE * 2;
    let flow = opening(Protocol::Tcp, "192.0.2.1:443", "192.0.2.1:443");
    assert!(matches!(guard.admits(&flow, late, |_| false), Admission::Named(_)));
    guard.release(hold);
    assert_eq!(guard.admits(&flow, late, |_| false), Admission::Refuse);
    assert_eq!(Guard::default().hold(address, START), None);
}

/// The outlook is the verdict on a real flow, without its effects.
#[test]
fn the_outlook_is_the_verdict() {
    let flow = opening(Protocol::Tcp, "203.0.113.7:443", "203.0.113.7:443");
    let question = opening(Protocol::Udp, "203.0.113.7:53", "203.0.113.7:53");
    for (rules, outlook, rule) in [
        (&["deny 203.0.113.7"][..], Outlook::Refused, "deny 203.0.113.7"),
        (&["allow 203.0.113.7"], Outlook::Allowed, "allow 203.0.113.7"),
        (&["allow example.com"], Outlook::Refused, "default deny"),
    ] {
        let mut guard = guard(rules);
        let (explained, basis) = guard.explain(&flow, None, START, |_| false);
        assert_eq!((explained, basis.rule.as_deref()), (outlook, Some(rule)));
        assert_eq!(guard.refused(), 0);
        assert_eq!(guard.admits_unread(&flow, START, |_| false), outlook == Outlook::Allowed);
    }
    let mut named = guard(&["allow example.com"]);
    named.names_mut().unwrap().learn("203.0.113.7".parse().unwrap(), "example.com", 60, START);
    let (outlook, basis) = named.explain(&flow, None, START, |_| false);
    assert_eq!((outlook, &basis.names[..]), (Outlook::Checked, &["example.com".into()][..]));
    assert_eq!(named.explain(&question, None, START, |_| false).0, Outlook::Questions);
}

/// A verdict as if the guest had been given the address for a name.
#[test]
fn the_outlook_for_a_name() {
    let flow = opening(Protocol::Tcp, "203.0.113.7:443", "203.0.113.7:443");
    let name = |text: &str| Name::parse(text).unwrap();
    let rules = ["deny tcp/203.0.113.7:80", "deny bad.example.com", "allow *.example.com"];
    for (told, outlook, rule, withheld) in [
        ("www.Example.com.", Outlook::Checked, "allow *.example.com", None),
        ("bad.example.com", Outlook::Refused, "deny bad.example.com", Some("deny bad.example.com")),
        ("example.org", Outlook::Refused, "default deny", Some("default deny")),
    ] {
        let guard = guard(&rules);
        let (explained, basis) = guard.explain(&flow, Some(&name(told)), START, |_| false);
        assert_eq!((explained, basis.rule.as_deref()), (outlook, Some(rule)), "{told}");
        let address = flow.ends.remote.ip();
        assert_eq!(guard.withholds(&name(told), address, |_| false, START).as_deref(), withheld, "{told}");
        // Nothing was learned or counted.
        assert_eq!(guard.explain(&flow, None, START, |_| false).0, Outlook::Refused);
        assert_eq!(guard.refused(), 0);
    }
    let named = guard(&rules);
    let private = "10.0.0.1".parse().unwrap();
    assert_eq!(
        named.withholds(&name("www.example.com"), private, |_| false, START).as_deref(),
        Some("its address 10.0.0.1 is not public, and no rule allows it")
    );
    assert!(named.withholds(&name("www.example.com"), flow.ends.remote.ip(), |_| true, START).is_some());
    // Without rules by name, questions are not judged.
    assert_eq!(guard(&["deny all"]).withholds(&name("example.org"), private, |_| false, START), None);
}
