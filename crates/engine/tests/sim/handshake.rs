//! Tests of single segments at the beginning of connections (behaviour §6.1, §6.2).

use std::time::Duration;

use testkit::stream::{CONNECTION_REFUSED, Closed};

use crate::script::{SYN, Script};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_syn_is_answered_when_the_peer_has_answered() {
    let mut script = Script::new();
    script.guest(SYN);
    script.quiet();
    assert_eq!(script.peer().state().destination, Some(script.remote));
    script.pass(3 * SECOND);
    script.quiet();
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1 win 65535 mss 1460 wscale 5 sackok");
    script.guest(". 1:1 ack 1");
    script.quiet();
}

#[test]
fn options_that_the_guest_lacks_are_not_offered() {
    let mut script = Script::new();
    script.guest("S 0:0 win 8000");
    script.peer().connect();
    script.settle();
    assert_eq!(script.sent(), ["S. 0:0 ack 1 win 65535 mss 1460"]);
    // Without the options, windows are not scaled in either direction, and the guest's segments have 536 bytes.
    script.guest(". 1:1 ack 1 win 1000");
    script.peer().arrive(5000);
    script.settle();
    script.us(". 1:537 ack 1 win 65535");
    script.quiet();
}

#[test]
fn a_repeated_syn_is_ignored_while_connecting_r60() {
    let mut script = Script::new();
    script.guest(SYN);
    script.guest(SYN);
    script.pass(SECOND);
    script.guest(SYN);
    script.quiet();
    assert_eq!(script.host.peers.len(), 1);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.quiet();
}

#[test]
fn q2_the_syn_ack_is_repeated_unchanged() {
    let mut script = Script::new();
    script.guest(SYN);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1 win 65535 mss 1460 wscale 5 sackok");
    for _ in 0..3 {
        script.pass(SECOND + Duration::from_millis(10));
        script.us("S. 0:0 ack 1 win 65535 mss 1460 wscale 5 sackok");
        script.quiet();
    }
    // The guest repeats its SYN, since the answer was lost.
    script.guest(SYN);
    script.us("S. 0:0 ack 1 win 65535 mss 1460 wscale 5 sackok");
    script.guest(". 1:1 ack 1");
    script.pass(10 * SECOND);
    script.quiet();
}

#[test]
fn an_inbound_syn_is_repeated_unchanged_while_the_guest_boots_r61() {
    let mut script = Script::new();
    script.accept();
    script.us("S 0:0 win 65535 mss 1460 wscale 5 sackok");
    script.pass(30 * SECOND);
    let again = script.sent();
    assert!((7..12).contains(&again.len()), "{again:?}");
    assert!(again.iter().all(|syn| syn == "S 0:0 win 65535 mss 1460 wscale 5 sackok"), "{again:?}");
    assert_eq!(script.peer().closed(), None);
    script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
    script.us(". 1:1 ack 1");
    script.peer().arrive(100);
    script.settle();
    script.us("P. 1:101 ack 1");
}

#[test]
fn an_inbound_connection_that_the_guest_never_answers_is_reset() {
    let mut script = Script::new();
    script.accept();
    script.pass(300 * SECOND);
    let sent = script.sent();
    assert!(sent.last().unwrap().starts_with("R 1:1"), "{sent:?}");
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn an_inbound_connection_that_the_guest_refuses_is_reset() {
    let mut script = Script::new();
    script.accept();
    script.us("S 0:0");
    script.guest("R. 0:0 ack 1");
    script.quiet();
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn a_reset_that_does_not_acknowledge_our_syn_is_of_another_connection() {
    let mut script = Script::new();
    script.accept();
    script.us("S 0:0");
    script.guest("R. 0:0 ack 77");
    // An old acknowledgment is answered with a reset, and the SYN stays valid (RFC 9293 §3.5.2).
    script.guest(". 500:500 ack 77");
    script.us("R 77:77");
    script.quiet();
    assert_eq!(script.peer().closed(), None);
    script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
    script.us(". 1:1 ack 1");
}

#[test]
fn the_guests_syn_ack_is_acknowledged_again_if_that_was_lost() {
    let mut script = Script::accepted();
    script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
    script.us(". 1:1 ack 1");
    script.quiet();
}

#[test]
fn q3_data_and_fin_on_the_last_acknowledgment_of_the_handshake_are_processed() {
    let mut script = Script::new();
    script.guest(SYN);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.guest("FP. 1:101 ack 1");
    assert_eq!(script.peer().state().sent, 100);
    assert!(script.peer().state().shut);
    script.us(". 1:1 ack 101");
}

#[test]
fn the_last_acknowledgment_of_the_handshake_may_be_lost() {
    let mut script = Script::new();
    script.guest(SYN);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.peer().arrive(50);
    script.settle();
    script.quiet(); // nothing is sent before the guest is connected
    script.guest("P. 1:11 ack 1");
    script.us("P. 1:51 ack 11");
    assert_eq!(script.peer().state().sent, 10);
}

#[test]
fn a_refused_connection_is_refused_with_the_right_numbers() {
    let mut script = Script::new();
    script.guest(SYN);
    script.peer().fail(CONNECTION_REFUSED);
    script.settle();
    let sent = script.sent();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].starts_with("R. ") && sent[0].contains(" ack 1 "), "{sent:?}");
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn the_guest_resets_before_the_peer_has_answered() {
    let mut script = Script::new();
    script.guest(SYN);
    script.guest("R 1:1");
    script.quiet();
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
}

#[test]
fn segments_of_no_connection_are_reset_r59() {
    let mut script = Script::new();
    script.our_iss = Some(0);
    script.guest(". 10:20 ack 4711");
    script.us("R 4711:4711");
    script.guest("F 10:20");
    script.us("R. 0:0 ack 21");
    script.guest("R. 10:10 ack 4711");
    script.quiet();
}

#[test]
fn a_syn_right_after_a_reset_opens_a_new_connection_r62() {
    let mut script = Script::connected();
    let (reset, syn) = ("R. 1:1 ack 1", "S 5000:5000 win 65535 mss 1460 wscale 7 sackok");
    script.batch(&[reset, syn]);
    assert_eq!(script.host.peers.len(), 2);
    assert_eq!(script.host.peers[0].closed(), Some(Closed::Reset));
    script.our_iss = None;
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 5001");
}

#[test]
fn a_syn_right_after_the_last_acknowledgment_opens_a_new_connection_r62() {
    let mut script = Script::connected();
    script.peer().end();
    script.settle();
    script.us("F. 1:1 ack 1");
    script.guest("F. 1:1 ack 2");
    script.us(". 2:2 ack 1"); // the peer has not acknowledged the FIN yet
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 2:2 ack 2");
    assert_eq!(script.peer().closed(), Some(Closed::Orderly));

    let mut script = Script::connected();
    script.guest("F. 1:1 ack 1");
    script.us(". 1:1 ack 1");
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 1:1 ack 2");
    script.peer().end();
    script.settle();
    script.us("F. 1:1 ack 2");
    script.batch(&[". 2:2 ack 2", "S 5000:5000 win 65535 mss 1460 wscale 7 sackok"]);
    assert_eq!(script.host.peers.len(), 2);
    assert_eq!(script.host.peers[0].closed(), Some(Closed::Orderly));
}

#[test]
fn a_syn_in_the_window_is_challenged() {
    // RFC 5961 §4
    let mut script = Script::connected();
    script.guest("S 100:100 win 65535");
    script.us(". 1:1 ack 1");
    script.quiet();
    script.guest("R 1:1"); // the guest no longer knows the connection
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
}

/// behaviour §6.5.6: the socket has the traffic class of the guest's segments, from the SYN on. The socket is called
/// only if the class changes.
#[test]
fn traffic_class_of_the_guest() {
    let mut script = Script::new();
    script.guest("S 0:0 win 65535 mss 1460 tos 138"); // without the ECN bits
    script.peer().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.guest(". 1:1 ack 1 tos 136");
    script.guest(". 1:101 ack 1 tos 139");
    script.guest(". 101:201 ack 1 tos 72");
    script.guest(". 201:301 ack 1 tos 72");
    script.guest(". 301:401 ack 1");
    assert_eq!(script.peer().state().classes, [136, 72, 0]);
}

/// behaviour §6.6.9: all segments have the traffic class of the client's SYN.
#[test]
fn traffic_class_of_a_client() {
    let mut script = Script::new();
    script.host.peer_class = Some(0x8a);
    script.accept();
    script.us("S 0:0 tos 136");
    script.guest("S. 0:0 ack 1 win 65535 mss 1460 wscale 7 sackok");
    script.us(". 1:1 ack 1 tos 136");
    script.peer().arrive(100);
    script.settle();
    script.us(". 1:101 ack 1 tos 136");
}
