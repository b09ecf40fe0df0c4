//! Tests of a process that does not run for a while, such as one stopped by SIGSTOP or a machine that was suspended: all
//! deadlines of this time are reached at once.

use std::time::Duration;

use crate::script::{SYN, Script};

const TEN_MINUTES: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);

fn arrive(script: &mut Script, len: u64) {
    script.peer().arrive(len);
    script.settle();
}

/// Both ways of the connection work.
fn works(script: &mut Script, sent: usize, received: usize) {
    arrive(script, 10);
    script.us(&format!("P. {}:{} ack {}", received + 1, received + 11, sent + 1));
    script.guest(&format!("P. {}:{} ack {}", sent + 1, sent + 11, received + 11));
    script.pass(SECOND);
    script.us(&format!(". {}:{} ack {}", received + 11, received + 11, sent + 11));
    script.quiet();
    assert_eq!(script.peer().state().sent, sent as u64 + 10);
    assert_eq!(script.peer().closed(), None);
}

#[test]
fn segments_without_an_answer_are_repeated_once() {
    let mut script = Script::connected();
    arrive(&mut script, 3000);
    script.us("P. 1:3001 ack 1");
    script.stop(TEN_MINUTES, &[]);
    script.us("P. 1:3001 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 3001 win 512");
    script.quiet();
    works(&mut script, 0, 3000);
}

/// An acknowledgment that has waited on the link counts, though the deadline of its segment was reached before.
#[test]
fn what_has_arrived_counts_before_deadlines() {
    let mut script = Script::connected();
    arrive(&mut script, 3000);
    script.us("P. 1:3001 ack 1");
    script.stop(TEN_MINUTES, &[". 1:1 ack 3001 win 512"]);
    script.quiet();
    works(&mut script, 0, 3000);
}

#[test]
fn an_idle_connection_is_asked_once_and_stays() {
    let mut script = Script::connected();
    script.stop(TEN_MINUTES, &[]);
    assert!(script.sent().len() <= 1);
    works(&mut script, 0, 0);
}

#[test]
fn a_connection_that_was_used_meanwhile_does_not_count_as_inactive() {
    let mut script = Script::connected();
    script.stop(Duration::from_secs(3 * 3600), &["P. 1:11 ack 1 win 512"]);
    script.pass(SECOND);
    script.us(". 1:1 ack 11");
    script.quiet();
    works(&mut script, 10, 0);
}

/// The guest repeats its SYN, as it has for ten minutes; the connection is opened once.
#[test]
fn a_handshake_that_was_stopped_goes_on() {
    let mut script = Script::new();
    script.guest(SYN);
    script.quiet();
    script.stop(TEN_MINUTES, &[SYN, SYN, SYN]);
    assert_eq!(script.host.peers.len(), 1);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.guest(". 1:1 ack 1 win 512");
    script.quiet();
    works(&mut script, 0, 0);
}
