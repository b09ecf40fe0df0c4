//! Tests of connections that only a rule by name allows: the client's first bytes decide (docs/guard.md).

use std::time::Duration;

use engine::{
    events::{How, Refused},
    guard::{Guard, Limits, Mode},
    policy::{Policy, spec},
    rate_limit::RateLimit,
    timer::Instant,
};
use proptest::prelude::*;
use testkit::{
    hello::{client_hello, long_client_hello, records, server_name},
    journal::Journal,
    stream::Closed,
};
use wire::tcp::Flags;

use crate::script::{SYN, Script};

const ALLOWED: &str = "files.example.org";
/// Another name with the same address. The guest has asked for it, too.
const OTHER: &str = "other.example.com";
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
/// The fields of a segment of the guest, without its payload.
const DATA: &str = ". ack 1 win 512";

fn guard(rules: &str, audit: bool) -> Guard {
    guard_within(Limits::default(), rules, audit)
}

fn guard_within(limits: Limits, rules: &str, audit: bool) -> Guard {
    let file = spec::parse_file(rules).unwrap();
    let mut guard = Guard::new(
        Policy::new(file.rules, file.default).unwrap(),
        Mode { audit, ..Mode::default() },
        [1; 16],
    );
    guard.limit(limits);
    let names = guard.names_mut().unwrap();
    for name in [ALLOWED, OTHER] {
        assert!(names.learn("203.0.113.9".parse().unwrap(), name, 300, Instant::from_micros(0)));
    }
    guard
}

/// A guest that has sent a SYN to this port, and has not acknowledged the SYN,ACK yet.
fn connecting_to(port: u16, guard: Guard) -> Script {
    let mut script = Script::new();
    script.remote.set_port(port);
    *script.stack.guard_mut() = guard;
    script.guest(SYN);
    script.quiet();
    script.peer().state().kept = Some(Vec::new());
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script
}

/// A guest that has opened a connection to this port.
fn connected_to(port: u16, guard: Guard) -> Script {
    let mut script = connecting_to(port, guard);
    script.guest(". 1:1 ack 1 win 512");
    script.quiet();
    script
}

fn connected() -> Script {
    connected_to(443, guard("allow *.example.org:443", false))
}

fn tls(name: &str) -> Vec<u8> {
    records(&client_hello(&[(0, &server_name(name.as_bytes()))]), 16_000)
}

fn say(script: &mut Script, position: usize, bytes: &[u8]) {
    let frame = script.bytes(DATA, position, bytes);
    script.frames(&[frame]);
}

fn sent(script: &Script) -> Vec<u8> {
    script.peer().state().kept.clone().unwrap()
}

/// Checks that the socket got no bytes, and the guest got a reset.
#[track_caller]
fn assert_reset(script: &mut Script) {
    let heard = script.heard();
    assert!(heard.last().is_some_and(|(flags, _)| flags.contains(Flags::RST)), "{heard:?}");
    assert!(heard.iter().all(|(_, payload)| payload.is_empty()), "{heard:?}");
    assert_eq!(sent(script), b"");
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
    assert!(script.stack.tcp().is_empty());
}

/// Checks that the socket got no bytes but was shut down, that the guest got these bytes and a FIN, and that both sides
/// close.
#[track_caller]
fn assert_farewell(script: &mut Script, said: usize, farewell: &[u8]) {
    let heard = script.heard();
    assert!(heard.iter().all(|(flags, _)| !flags.contains(Flags::RST)), "{heard:?}");
    let bytes: Vec<u8> = heard.iter().flat_map(|(_, payload)| payload.clone()).collect();
    assert_eq!(bytes, farewell);
    assert!(heard.last().unwrap().0.contains(Flags::FIN), "{heard:?}");
    assert_eq!(sent(script), b"");
    assert!(script.peer().state().shut, "the peer is not kept waiting");
    let ack = 2 + farewell.len();
    let fin = script.bytes(&format!("F. ack {ack} win 512"), said, &[]);
    script.frames(&[fin]);
    script.us(&format!(". {ack}:{ack} ack {}", said + 2));
    script.quiet();
    assert!(script.stack.tcp().is_empty());
    assert_eq!((sent(script), script.peer().closed()), (Vec::new(), Some(Closed::Reset)));
}

/// Checks that the connection carries data in both directions.
#[track_caller]
fn assert_open(script: &mut Script, said: &[u8]) {
    assert_eq!(sent(script), said);
    script.heard();
    say(script, said.len(), b"more");
    assert_eq!(sent(script), [said, b"more"].concat());
    script.peer().arrive(10);
    script.settle();
    let heard = script.heard();
    assert_eq!(heard.iter().map(|(_, payload)| payload.len()).sum::<usize>(), 10);
    assert_eq!(script.stack.guard().refused(), 0);
}

#[test]
fn a_name_that_is_allowed_opens_the_way() {
    let mut script = connected();
    let hello = tls("Files.Example.org.");
    say(&mut script, 0, &hello);
    assert_open(&mut script, &hello);
}

#[test]
fn a_hello_in_segments_is_sent_when_its_name_is_known() {
    let hello = records(&long_client_hello(ALLOWED, 2000), 700);
    for reverse in [false, true] {
        let mut script = connected();
        let mut parts: Vec<_> = hello.chunks(1000).enumerate().collect();
        if reverse {
            parts.reverse();
        }
        for (at, part) in parts {
            assert_eq!(sent(&script), b"");
            say(&mut script, at * 1000, part);
        }
        assert_open(&mut script, &hello);
    }
}

/// First bytes are parsed in a bounded amount of memory. A connection for which there is not enough is refused.
#[test]
fn first_bytes_without_memory_are_refused() {
    let hello = tls(ALLOWED);
    let enough = 3 * hello.len();
    for first_bytes in [enough, enough - 1] {
        let limits = Limits { first_bytes, ..Limits::default() };
        let mut script = connected_to(443, guard_within(limits, "allow *.example.org:443", false));
        say(&mut script, 0, &hello);
        if first_bytes == enough {
            assert_open(&mut script, &hello);
        } else {
            assert_reset(&mut script);
        }
    }
}

/// docs/flow-log.md: the report of the beginning has the rule and the names. The report of the end has the name that
/// the client has sent.
#[test]
fn names_are_reported() {
    let mut journal = Journal::default();
    for (name, how) in [(ALLOWED, How::GuestReset), (OTHER, How::Refused)] {
        let mut guard = guard("allow *.example.org:443", false);
        guard.report_to(journal.events.clone());
        let mut script = connected_to(443, guard);
        journal.read();
        let flow = journal.open().next().unwrap().clone();
        assert_eq!(flow.basis.rule.as_deref(), Some("allow *.example.org:443"));
        assert_eq!(flow.basis.names, [ALLOWED.into(), OTHER.into()]);
        let hello = tls(name);
        say(&mut script, 0, &hello);
        if how == How::Refused {
            assert_farewell(&mut script, hello.len(), &ALERT);
        } else {
            script.heard();
            let reset = script.bytes("R.", hello.len(), &[]);
            script.frames(&[reset]);
        }
        journal.read();
        let end = journal.ends.last().unwrap();
        assert_eq!((end.name.as_deref(), end.how), (Some(name), how));
    }
    let [refusal] = &journal.refusals[..] else { panic!("{:?}", journal.refusals) };
    let Refused::FirstBytes { claimed, ends, .. } = &refusal.what else { panic!("{refusal:?}") };
    assert_eq!((claimed, ends.remote.port()), (&Ok(OTHER.into()), 443));
    assert_eq!(refusal.basis.rule.as_deref(), Some("default deny"));
    assert_eq!(refusal.basis.names.len(), 2);
}

#[test]
fn another_name_at_an_allowed_address_gets_an_alert() {
    let mut script = connected();
    let hello = tls(OTHER);
    say(&mut script, 0, &hello);
    assert_farewell(&mut script, hello.len(), &ALERT);
    assert_eq!(script.stack.guard().refused(), 1);
}

#[test]
fn the_alert_is_repeated_until_the_client_has_it() {
    let mut script = connected();
    let hello = tls(OTHER);
    say(&mut script, 0, &hello);
    assert_eq!(script.heard().len(), 2);
    script.pass(Duration::from_secs(2));
    let heard = script.heard();
    assert_eq!(heard[0], (Flags::ACK, ALERT.to_vec()));
    // The connection ends if the client does not answer.
    script.pass(Duration::from_secs(10));
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn a_hello_without_a_name_is_refused() {
    for hello in [records(&client_hello(&[]), 16_000), tls("203.0.113.9")] {
        let mut script = connected();
        say(&mut script, 0, &hello);
        assert_farewell(&mut script, hello.len(), &ALERT);
        assert_eq!(script.stack.guard().refused(), 1);
    }
}

#[test]
fn the_host_of_a_request_decides_also_in_its_second_segment() {
    for (host, allowed) in [(ALLOWED, true), (OTHER, false)] {
        let mut script = connected_to(80, guard("allow *.example.org", false));
        let first = b"GET /a HTTP/1.1\r\nAccept: */*\r\n";
        say(&mut script, 0, first);
        assert_eq!(sent(&script), b"");
        let second = format!("Host: {host}\r\n\r\n");
        say(&mut script, first.len(), second.as_bytes());
        if allowed {
            assert_open(&mut script, &[first, second.as_bytes()].concat());
        } else {
            assert_reset(&mut script);
            assert_eq!(script.stack.guard().refused(), 1);
        }
    }
}

#[test]
fn only_the_first_hello_is_read() {
    let mut script = connected();
    let hellos = [tls(ALLOWED), tls(OTHER)].concat();
    say(&mut script, 0, &hellos);
    assert_open(&mut script, &hellos);

    let mut script = connected();
    let hellos = [tls(OTHER), tls(ALLOWED)].concat();
    say(&mut script, 0, &hellos);
    assert_farewell(&mut script, hellos.len(), &ALERT);
}

/// The judged bytes are the bytes that are sent. A guest can't replace them by a retransmission with other bytes.
#[test]
fn bytes_that_were_judged_are_those_that_are_sent() {
    let hello = tls(ALLOWED);
    let other = vec![b'x'; hello.len()];
    let cut = hello.len() / 2;
    let mut script = connected();
    say(&mut script, 0, &hello[..cut]);
    say(&mut script, 0, &other[..cut]);
    say(&mut script, 0, &[&other[..cut], &hello[cut..]].concat());
    assert_open(&mut script, &hello);

    // Bytes after a hole may be replaced, since they were not judged yet. The last bytes are judged and sent.
    let mut script = connected();
    say(&mut script, cut, &other[cut..]);
    say(&mut script, cut, &hello[cut..]);
    say(&mut script, 0, &hello[..cut]);
    assert_open(&mut script, &hello);
}

#[test]
fn a_full_socket_gets_the_judged_bytes_later() {
    let hello = records(&long_client_hello(ALLOWED, 2000), 16_000);
    let mut script = connected();
    script.peer().state().send_capacity = 300;
    say(&mut script, 0, &hello[..1000]);
    say(&mut script, 1000, &hello[1000..]);
    assert_eq!(sent(&script), hello[..300]);
    say(&mut script, 0, &vec![b'x'; 1000]);
    while sent(&script).len() < hello.len() {
        script.peer().acknowledge_all();
        script.settle();
    }
    assert_eq!(sent(&script), hello);
}

#[test]
fn who_says_nothing_in_time_is_reset() {
    let mut script = connected();
    script.pass(Duration::from_millis(9900));
    assert!(!script.stack.tcp().is_empty());
    script.pass(Duration::from_millis(200));
    assert_reset(&mut script);
    assert_eq!(script.stack.guard().refused(), 1);

    let mut script = connected();
    say(&mut script, 0, &tls(ALLOWED)[..50]);
    script.heard();
    script.pass(Duration::from_millis(10_010));
    assert_farewell(&mut script, 50, &ALERT);
}

#[test]
fn who_closes_without_a_word_is_let_go() {
    let mut script = connected();
    script.guest("F. 1:1 ack 1 win 512");
    script.us("F. 1:1 ack 2");
    script.guest(". 2:2 ack 2 win 512");
    assert!(script.stack.tcp().is_empty());
    assert_eq!((sent(&script), script.stack.guard().refused()), (Vec::new(), 0));
}

#[test]
fn who_closes_before_a_name_is_refused() {
    let mut script = connected();
    let frame = script.bytes("F. ack 1 win 512", 0, b"GET / HTTP/1.1\r\n");
    script.frames(&[frame]);
    assert_reset(&mut script);
}

#[test]
fn the_end_after_the_name_is_passed_on() {
    let mut script = connected();
    let hello = tls(ALLOWED);
    let frame = script.bytes("F. ack 1 win 512", 0, &hello);
    script.frames(&[frame]);
    assert_eq!(sent(&script), hello);
    assert!(script.peer().state().shut);
}

#[test]
fn unknown_protocols_and_urgent_data_are_refused() {
    let mut script = connected();
    say(&mut script, 0, b"SSH-2.0-client\r\n");
    assert_reset(&mut script);

    let mut script = connected();
    let frame = script.bytes("U. ack 1 win 512 urg 20", 0, &tls(ALLOWED));
    script.frames(&[frame]);
    assert_eq!((sent(&script), script.stack.guard().refused()), (Vec::new(), 1));
}

#[test]
fn a_server_that_speaks_first_waits_for_the_name() {
    let mut script = connected();
    script.peer().arrive(20);
    script.settle();
    script.pass(Duration::from_secs(1));
    script.quiet();
    let hello = tls(ALLOWED);
    say(&mut script, 0, &hello);
    let heard = script.heard();
    assert_eq!(heard.iter().map(|(_, payload)| payload.len()).sum::<usize>(), 20);
    assert_eq!(sent(&script), hello);
}

/// The guest can delay its acknowledgment of the SYN,ACK until the server has spoken. The event that reports the
/// server's bytes also says that the socket is writable.
#[test]
fn an_event_before_the_guests_acknowledgment_does_not_end_the_check() {
    for (port, rules) in [(443, "allow *.example.org:443"), (22, "allow files.example.org:22")] {
        let mut script = connecting_to(port, guard(rules, false));
        script.peer().arrive(20);
        script.settle();
        say(&mut script, 0, &tls(OTHER));
        assert_eq!((sent(&script), script.stack.guard().refused()), (Vec::new(), 1), "{rules}");
    }
}

#[test]
fn a_rule_with_another_port_allows_other_protocols() {
    let rules = "allow files.example.org:22";
    let mut script = connected_to(22, guard(rules, false));
    script.peer().arrive(20);
    script.settle();
    script.us(". 1:21 ack 1");
    let frame = script.bytes(". ack 21 win 512", 0, b"SSH-2.0-client\r\n");
    script.frames(&[frame]);
    assert_eq!(sent(&script), b"SSH-2.0-client\r\n");

    // The rule does not allow another name.
    let mut script = connected_to(22, guard(rules, false));
    say(&mut script, 0, &tls(OTHER));
    assert_reset(&mut script);

    // A client that sends no name may continue.
    let mut script = connected_to(22, guard(rules, false));
    script.pass(Duration::from_secs(11));
    say(&mut script, 0, b"a");
    assert_open(&mut script, b"a");
}

#[test]
fn a_syn_with_data_says_nothing_yet() {
    let mut script = Script::new();
    script.remote.set_port(443);
    *script.stack.guard_mut() = guard("allow *.example.org", false);
    let hello = tls(OTHER);
    let mut syn = script.write(&format!("S 0:{} win 65535 mss 1460", hello.len()));
    let start = syn.len() - hello.len();
    syn[start..].copy_from_slice(&hello);
    script.frames(&[syn]);
    script.peer().state().kept = Some(Vec::new());
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    say(&mut script, 0, &hello);
    assert_farewell(&mut script, hello.len(), &ALERT);
}

#[test]
fn an_audit_counts_and_passes() {
    let mut script = connected_to(443, guard("allow *.example.org", true));
    let hello = tls(OTHER);
    say(&mut script, 0, &hello);
    assert_eq!((sent(&script), script.stack.guard().refused()), (hello, 1));
}

/// While a client has a connection, it may open another one to the same address after the answer's time to live.
#[test]
fn a_connection_keeps_the_names_of_its_address() {
    let mut script = connected();
    say(&mut script, 0, &tls(ALLOWED));
    script.pass(Duration::from_secs(400));
    script.another_port();
    script.guest(SYN);
    assert_eq!((script.host.peers.len(), script.stack.guard().refused()), (2, 0));
    // The guest resets the second connection while its socket connects. The peer resets the first one.
    script.guest("R 1:1");
    script.host.peers[0].fail(testkit::stream::CONNECTION_RESET);
    script.settle();
    assert!(script.stack.tcp().is_empty());
    script.another_port();
    script.guest(SYN);
    assert_eq!((script.host.peers.len(), script.stack.guard().refused()), (2, 1));
}

#[test]
fn a_failing_server_resets_the_waiting_guest() {
    let mut script = connected();
    say(&mut script, 0, b"GET / HTTP/1.1\r\n");
    script.heard();
    script.peer().fail(testkit::stream::CONNECTION_RESET);
    script.settle();
    assert!(script.heard().last().unwrap().0.contains(Flags::RST));
    assert!(script.stack.tcp().is_empty());
}

proptest! {
    /// The bytes are cut, ordered and repeated in any way. No byte reaches the socket before the name is complete. If
    /// the name is allowed, exactly these bytes reach the socket then. Otherwise no byte reaches the socket.
    #[test]
    fn no_byte_is_sent_before_the_verdict(
        allowed: bool,
        http: bool,
        server_is_early: bool,
        cuts in prop::collection::vec((0usize..2000, 1usize..700, any::<bool>()), 0..30),
    ) {
        let name = if allowed { ALLOWED } else { OTHER };
        let stream = if http {
            format!("GET /{} HTTP/1.1\r\nHost: {name}\r\n\r\n", "a".repeat(1200)).into_bytes()
        } else {
            records(&long_client_hello(name, 1500), 400)
        };
        let mut script = connecting_to(443, guard("allow *.example.org", false));
        if server_is_early {
            script.peer().arrive(20);
            script.settle();
        }
        script.guest(". 1:1 ack 1 win 512");
        // `known` has the bytes of the stream that have arrived. Some segments have false copies of bytes that were
        // judged.
        let mut ready = 0;
        let mut known = vec![false; stream.len()];
        // At the end, all bytes were sent.
        let rest = (0..stream.len()).step_by(600).map(|start| (start, 600, false));
        for (start, len, lies) in cuts.into_iter().chain(rest) {
            let start = start % stream.len();
            let end = (start + len).min(stream.len());
            let mut bytes = stream[start..end].to_vec();
            if lies {
                // Only bytes that are in order are judged.
                let judged = ready.max(start).min(end) - start;
                bytes[..judged].fill(b'x');
            }
            known[start..end].fill(true);
            ready = known.iter().position(|known| !known).unwrap_or(stream.len());
            say(&mut script, start, &bytes);
            if ready < stream.len() {
                prop_assert_eq!(sent(&script), b"");
            }
        }
        prop_assert_eq!(sent(&script), if allowed { stream } else { Vec::new() });
        prop_assert_eq!(script.stack.guard().refused(), u64::from(!allowed));
    }
}

/// A segment that a guest may send after it was refused: flags as bits, position, length, acknowledgment, window.
fn any_segment() -> impl Strategy<Value = (u8, i64, i64, i64, u16)> {
    let flags =
        prop_oneof![6 => Just(0x10u8), 3 => Just(0x11), 1 => Just(0x12), 1 => Just(0x04), 2 => any::<u8>()];
    let near = || prop_oneof![6 => 0i64..400, 1 => any::<u32>().prop_map(i64::from)];
    let window = prop_oneof![3 => Just(512u16), 1 => Just(0), 1 => any::<u16>()];
    (flags, near(), prop_oneof![Just(0i64), 0i64..1400], prop_oneof![3 => 0i64..12, 1 => near()], window)
}

proptest! {
    /// For any segments of a guest that was refused or not judged yet, nothing panics, the socket gets no byte, and the
    /// connection ends.
    #[test]
    fn a_refused_guest_reaches_nothing(
        refused: bool,
        segments in prop::collection::vec((any_segment(), 0u64..3000, any::<bool>()), 1..30),
    ) {
        let mut script = connected();
        let hello = tls(OTHER);
        say(&mut script, 0, if refused { &hello } else { &hello[..30] });
        for ((flags, at, len, ack, window), millis, full) in segments {
            let all = [(1, 'F'), (2, 'S'), (4, 'R'), (8, 'P'), (16, '.'), (32, 'U')];
            let letters = all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, letter)| letter);
            let letters: String = core::iter::once(&'-').chain(letters).collect();
            script.set_link_full(full);
            // A SYN is left out, since it opens a new connection.
            if flags & 0x16 != 0x02 {
                script.guest(&format!("{letters} {at}:{} ack {ack} win {window}", at + len));
            }
            script.peer().arrive_unless_ended(10);
            script.settle();
            script.pass(Duration::from_millis(millis));
        }
        script.set_link_full(false);
        prop_assert_eq!(sent(&script), b"");
        script.pass(Duration::from_secs(30));
        prop_assert!(script.stack.tcp().is_empty());
        prop_assert_eq!(sent(&script), b"");
    }
}

/// The bytes wait for the verdict, and then for tokens.
#[test]
fn under_a_limit_bytes_are_held_until_the_verdict() {
    let mut script = Script::new();
    script.remote.set_port(443);
    *script.stack.guard_mut() = guard("allow *.example.org:443", false);
    let rate = Some("64k".parse().unwrap());
    *script.stack.rate_limit_mut() = RateLimit::new(rate, rate, Instant::from_micros(0));
    script.connect_by(SYN);
    script.peer().state().kept = Some(Vec::new());
    let stream = records(&long_client_hello(ALLOWED, 8000), 16_000);
    let (start, end) = stream.split_at(7990);
    say(&mut script, 0, start);
    script.pass(Duration::from_secs(5));
    assert_eq!(sent(&script), b"");
    say(&mut script, start.len(), end);
    let at_once = sent(&script).len();
    assert!((1..=4096).contains(&at_once), "{at_once} bytes at once");
    script.pass(Duration::from_secs(1));
    assert_eq!(sent(&script), stream);
}
