use alloc::vec::Vec;

use super::*;
use crate::{policy::spec, testkit::settings::START};

fn policy(rules: &str) -> Policy {
    let file = spec::parse_file(rules).unwrap();
    Policy::new(file.rules, file.default).unwrap()
}

fn opening(protocol: Protocol, remote: &str) -> Opening {
    let remote = remote.parse().unwrap();
    let ends = Endpoints { guest: "198.51.100.2:40000".parse().unwrap(), remote };
    Opening { protocol, ends, destination: remote, asks_resolver: false }
}

fn stays(guard: &mut Guard, flow: &Opening) -> bool {
    guard.still_admits_unread(flow, START, |_| false)
}

#[test]
fn ends_are_counted_by_protocol_since_the_latest_rules() {
    for audit in [false, true] {
        let mut guard = Guard::without_rules(Mode { audit, ..Mode::default() }, [1; 16]);
        let flows = Protocol::ALL.map(|(_, protocol)| opening(protocol, "192.0.2.1:80"));
        assert!(guard.policy().is_none() && flows.iter().all(|flow| stays(&mut guard, flow)));
        guard.replace(policy("deny tcp/192.0.2.1\ndeny icmp/192.0.2.1"));
        let stayed: Vec<bool> = flows.iter().map(|flow| stays(&mut guard, flow)).collect();
        let denied = |flow: &Opening| flow.protocol != Protocol::Udp && !audit;
        assert_eq!(stayed, flows.iter().map(|flow| !denied(flow)).collect::<Vec<_>>());
        assert_eq!(guard.ended(), Ended { tcp: 1, udp: 0, icmp: 1 });
        assert_eq!(guard.refused(), 0);
        guard.replace(policy("allow all"));
        assert_eq!(guard.ended(), Ended::default());
    }
}

#[test]
fn the_names_stay_and_questions_are_judged_while_there_are_rules_by_name() {
    let mut guard = Guard::without_rules(Mode::default(), [1; 16]);
    assert!(!guard.judges_questions() && guard.names_mut().is_none());
    guard.replace(policy("allow a.example"));
    assert!(guard.judges_questions());
    let address = "192.0.2.1".parse().unwrap();
    assert!(guard.names_mut().unwrap().learn(address, "a.example", 60, START));
    let hold = guard.hold(address, START).unwrap();
    guard.replace(policy("allow 192.0.2.2"));
    assert!(!guard.judges_questions());
    guard.replace(policy("allow icmp/a.example"));
    assert!(stays(&mut guard, &opening(Protocol::Icmp, "192.0.2.1:0")));
    guard.release(hold);
}

#[test]
fn the_name_that_was_sent_stands_for_all_names_of_the_address() {
    let mut guard = Guard::without_rules(Mode::default(), [1; 16]);
    let said = HostName::parse(b"a.example").unwrap();
    let flow = opening(Protocol::Tcp, "192.0.2.1:443");
    for (rules, expected) in [
        ("allow a.example", Admission::AdmitByName),
        ("allow *.example", Admission::AdmitByName),
        ("allow 192.0.2.1\nallow a.example", Admission::Admit),
        ("allow b.example", Admission::Refuse),
        ("allow a.example:80", Admission::Refuse),
        ("deny a.example\nallow all", Admission::Refuse),
    ] {
        guard.replace(policy(rules));
        assert_eq!(guard.still_admits(&flow, Some(&said), START, |_| false), expected, "{rules}");
    }
}

/// With rules by name, the engine must judge all questions, so no flow may carry questions.
#[test]
fn flows_to_name_servers_end_when_questions_are_judged() {
    let mut guard = Guard::without_rules(Mode::default(), [1; 16]);
    for (rules, expected) in [("allow all", true), ("allow all\nallow a.example", false)] {
        guard.replace(policy(rules));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            assert_eq!(stays(&mut guard, &opening(protocol, "192.0.2.1:53")), expected);
            assert!(stays(&mut guard, &opening(protocol, "192.0.2.1:54")));
        }
        assert!(stays(&mut guard, &opening(Protocol::Icmp, "192.0.2.1:53")));
    }
}
