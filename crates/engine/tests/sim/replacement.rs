//! Tests of rules that are replaced while the guest has connections (docs/guard.md).

use std::time::Duration;

use engine::{
    guard::{Ended, Guard, Mode},
    policy::{Policy, spec},
    timer::Instant,
};
use testkit::{
    hello::{client_hello, records, server_name},
    stream::Closed,
};
use wire::tcp::Flags;

use crate::script::{SYN, Script};

const NAME: &str = "files.example.org";
/// Another name with the same address.
const OTHER: &str = "other.example.com";
/// The fields of a segment of the guest, without its payload.
const DATA: &str = ". ack 1 win 512";

fn policy(rules: &str) -> Policy {
    let file = spec::parse_file(rules).unwrap();
    Policy::new(file.rules, file.default).unwrap()
}

/// A script whose guest connects to this port. Without `rules`, the guest may reach everything.
fn script(port: u16, rules: Option<&str>, audit: bool) -> Script {
    let mode = Mode { audit, ..Mode::default() };
    let mut script = Script::new();
    script.remote.set_port(port);
    *script.stack.guard_mut() = match rules {
        Some(rules) => Guard::new(policy(rules), mode, [1; 16]),
        None => Guard::without_rules(mode, [1; 16]),
    };
    learn(&mut script);
    script
}

/// The guest gets the remote's address as an answer for both names, if the guard has a table of names.
fn learn(script: &mut Script) {
    if let Some(names) = script.stack.guard_mut().names_mut() {
        for name in [NAME, OTHER] {
            assert!(names.learn("203.0.113.9".parse().unwrap(), name, 60, Instant::from_micros(0)));
        }
    }
}

fn connect(script: &mut Script) {
    script.guest(SYN);
    script.quiet();
    answer(script);
}

/// The peer accepts the connection.
fn answer(script: &mut Script) {
    script.peer().state().kept = Some(Vec::new());
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.guest(". 1:1 ack 1 win 512");
    script.quiet();
}

fn connected(port: u16, rules: Option<&str>) -> Script {
    let mut script = script(port, rules, false);
    connect(&mut script);
    script
}

/// Replaces the rules. Returns the number of connections that ended.
fn replace(script: &mut Script, rules: &str) -> u64 {
    let ended = script.engine(|round| round.replace_policy(policy(rules)));
    script.settle();
    assert_eq!(ended, Ended { tcp: ended.tcp, ..Ended::default() });
    ended.tcp
}

fn hello(name: &str) -> Vec<u8> {
    records(&client_hello(&[(0, &server_name(name.as_bytes()))]), 16_000)
}

fn say(script: &mut Script, position: usize, bytes: &[u8]) {
    let frame = script.bytes(DATA, position, bytes);
    script.frames(&[frame]);
}

/// Checks that the guest and the peer got a reset.
#[track_caller]
fn assert_ended(script: &mut Script) {
    let heard = script.heard();
    assert!(heard.last().is_some_and(|(flags, _)| flags.contains(Flags::RST)), "{heard:?}");
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
    assert!(script.stack.tcp().is_empty());
}

/// Checks that the guest can send more after `said`, and that the peer gets all of it.
#[track_caller]
fn assert_carries(script: &mut Script, said: &[u8]) {
    script.heard();
    say(script, said.len(), b"more");
    assert_eq!(script.peer().state().kept.clone().unwrap(), [said, b"more"].concat());
    assert_eq!(script.stack.tcp().len(), 1);
}

#[test]
fn a_connection_ends_if_new_rules_deny_it_and_stays_otherwise() {
    for (rules, ends) in [
        ("deny 203.0.113.0/24", true),
        ("deny tcp/203.0.113.9:80", true),
        ("allow 203.0.113.8", true),
        ("deny udp/203.0.113.9", false),
        ("deny 203.0.113.9:81", false),
        ("allow 203.0.113.9:80\ndeny all", false),
        ("", false),
    ] {
        for before in [None, Some("allow 203.0.113.0/24")] {
            let mut script = connected(80, before);
            say(&mut script, 0, b"first");
            script.heard();
            assert_eq!(replace(&mut script, rules), u64::from(ends), "{rules}");
            if ends {
                assert_ended(&mut script);
                script.another_port();
                script.guest(SYN);
                assert_eq!(script.heard(), [(Flags::RST | Flags::ACK, vec![])]);
            } else {
                script.quiet();
                assert_carries(&mut script, b"first");
            }
        }
    }
}

#[test]
fn a_connection_that_is_not_established_ends_as_well() {
    let mut script = script(80, None, false);
    script.guest(SYN);
    assert_eq!(replace(&mut script, "deny all"), 1);
    assert_ended(&mut script);
}

/// The rules are about connections that the guest begins, so published ports stay reachable.
#[test]
fn a_connection_from_outside_stays() {
    let mut script = Script::accepted();
    assert_eq!(replace(&mut script, "deny all"), 0);
    script.quiet();
    script.peer().arrive(10);
    script.settle();
    assert_eq!(script.heard().len(), 1);
    assert_eq!(script.stack.tcp().len(), 1);
}

#[test]
fn an_audit_ends_nothing_and_counts() {
    let mut script = script(80, Some("allow all"), true);
    connect(&mut script);
    assert_eq!(replace(&mut script, "deny all"), 1);
    script.quiet();
    assert_carries(&mut script, b"");
}

/// The name that the client has sent decides, even after the answer's time to live.
#[test]
fn a_connection_by_name_is_judged_by_the_name_that_its_client_has_sent() {
    for (rules, ends) in [
        ("allow files.example.org", false),
        ("allow *.example.org:443", false),
        ("allow 203.0.113.9", false),
        ("allow other.example.com", true),
        ("deny files.example.org\nallow all", true),
        ("deny other.example.com\nallow all", false),
    ] {
        let mut script = connected(443, Some("allow *.example.org:443\nallow other.example.com"));
        let hello = hello(NAME);
        say(&mut script, 0, &hello);
        script.heard();
        script.pass(Duration::from_secs(40));
        script.guest(". 1:1 ack 1 win 512");
        script.pass(Duration::from_secs(30));
        script.heard();
        assert_eq!(replace(&mut script, rules), u64::from(ends), "{rules}");
        if ends {
            assert_ended(&mut script);
        } else {
            assert_carries(&mut script, &hello);
        }
    }
}

/// If a rule by address allowed the connection, its first bytes were not read.
#[test]
fn a_connection_whose_name_is_not_known_stays_only_if_it_needs_none() {
    for (port, ends) in [(443, true), (22, false)] {
        let rules = "allow files.example.org:22,443";
        let mut script = connected(port, Some("allow 203.0.113.9\nallow unused.example"));
        say(&mut script, 0, b"first");
        script.heard();
        assert_eq!(replace(&mut script, rules), u64::from(ends));
        if ends {
            assert_ended(&mut script);
        } else {
            assert_carries(&mut script, b"first");
        }
    }
    // Without earlier rules by name, no names are known.
    let mut script = connected(22, None);
    assert_eq!(replace(&mut script, "allow files.example.org:22"), 1);
    assert_ended(&mut script);
}

/// The names of an address are kept until their time to live is over, and as long as there are connections to the
/// address.
#[test]
fn names_are_known_while_connections_last() {
    let rules = "allow files.example.org:22";
    let mut script = connected(22, Some(rules));
    say(&mut script, 0, b"first");
    for _ in 0..3 {
        script.pass(Duration::from_secs(40));
        script.guest(". 6:6 ack 1 win 512");
    }
    script.heard();
    assert_eq!(replace(&mut script, rules), 0);
    assert_carries(&mut script, b"first");
    script.guest("R 10:10");
    assert!(script.stack.tcp().is_empty());
    script.another_port();
    script.guest(SYN);
    assert_eq!(script.heard(), [(Flags::RST | Flags::ACK, vec![])]);
}

/// A connection without payload so far is treated like a new one: its client has to send an allowed name.
#[test]
fn a_client_that_has_sent_nothing_has_to_send_a_name() {
    for (name, ends) in [(NAME, false), (OTHER, true)] {
        let mut script = script(443, Some("allow 203.0.113.9\nallow unused.example"), false);
        script.guest(SYN);
        assert_eq!(replace(&mut script, "allow files.example.org"), 0);
        answer(&mut script);
        let hello = hello(name);
        say(&mut script, 0, &hello);
        let passed = script.peer().state().kept.clone().unwrap();
        assert_eq!(passed, if ends { vec![] } else { hello.clone() });
        if !ends {
            assert_carries(&mut script, &hello);
        }
    }
}

#[test]
fn a_client_whose_name_is_awaited_is_judged_by_the_new_rules() {
    let hello = hello(OTHER);
    for (rules, passes) in [
        ("allow other.example.com", true),
        ("allow *.example.com:443\nallow files.example.org", true),
        ("allow 203.0.113.9", true),
        ("allow *.example.org", false),
    ] {
        let mut script = connected(443, Some("allow files.example.org"));
        say(&mut script, 0, &hello[..20]);
        script.heard();
        assert_eq!(replace(&mut script, rules), 0, "{rules}");
        script.heard();
        say(&mut script, 20, &hello[20..]);
        let sent = script.peer().state().kept.clone().unwrap();
        assert_eq!(sent, if passes { hello.clone() } else { vec![] }, "{rules}");
        if passes {
            assert_carries(&mut script, &hello);
        }
    }
    let mut script = connected(443, Some("allow files.example.org"));
    say(&mut script, 0, &hello[..20]);
    script.heard();
    assert_eq!(replace(&mut script, "deny 203.0.113.9"), 1);
    assert_ended(&mut script);
}

/// If the new rules need no name, bytes that waited for a name are sent. The rules may also be replaced during the
/// handshake.
#[test]
fn a_client_that_needs_no_name_any_more_does_not_wait() {
    let mut script = script(443, Some("allow files.example.org"), false);
    script.guest(SYN);
    assert_eq!(replace(&mut script, "allow all"), 0);
    answer(&mut script);
    say(&mut script, 0, b"no hello");
    assert_carries(&mut script, b"no hello");

    let mut script = connected(443, Some("allow files.example.org"));
    say(&mut script, 0, &hello(OTHER)[..20]);
    assert_eq!(replace(&mut script, ""), 0);
    assert_carries(&mut script, &hello(OTHER)[..20]);
}

/// With rules by name, each question must be judged. So a connection ends whose questions were forwarded without a
/// verdict.
#[test]
fn connections_to_name_servers_end_when_questions_begin_to_be_judged_and_when_they_cease_to_be() {
    let mut script = connected(53, None);
    assert_eq!(replace(&mut script, "allow all\nallow files.example.org"), 1);
    assert_ended(&mut script);
    script.another_port();
    script.guest(SYN);
    script.us("S. 0:0 ack 1");
    assert_eq!(replace(&mut script, "allow files.example.org"), 0);
    assert_eq!(script.stack.tcp().len(), 1);
    replace(&mut script, "allow all");
    assert!(script.stack.tcp().is_empty());
}
