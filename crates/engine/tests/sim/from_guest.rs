//! Tests of single segments with data from the guest to the socket (behaviour §6.5): order, windows, and the end of the
//! stream.

use std::time::Duration;

use testkit::stream::{CONNECTION_RESET, Closed};

use crate::script::{SYN, Script};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn small_segments_have_delayed_acknowledgments() {
    let mut script = Script::connected();
    script.guest("P. 1:101 ack 1");
    assert_eq!(script.peer().state().sent, 100);
    script.quiet();
    script.pass(10 * MILLISECOND);
    script.us(". 1:1 ack 101");
    script.batch(&[". 101:1561 ack 1", ". 1561:3021 ack 1", "P. 3021:4481 ack 1"]);
    script.us(". 1:1 ack 4481");
    script.quiet();
}

#[test]
fn an_answer_carries_the_acknowledgment() {
    let mut script = Script::connected();
    script.guest("P. 1:101 ack 1");
    script.peer().arrive(20);
    script.settle();
    script.us("P. 1:21 ack 101");
    script.pass(100 * MILLISECOND);
    script.quiet();
}

#[test]
fn data_after_a_hole_is_kept_and_reported_by_sack() {
    // RFC 2018
    let mut script = Script::connected();
    script.guest(". 1461:2921 ack 1");
    script.us(". 1:1 ack 1 sack 1461:2921");
    script.guest(". 4381:5841 ack 1");
    script.us(". 1:1 ack 1 sack 4381:5841,1461:2921");
    script.guest(". 2921:4381 ack 1");
    script.us(". 1:1 ack 1 sack 1461:5841");
    assert_eq!(script.peer().state().sent, 0);
    script.guest(". 1:1461 ack 1");
    script.us(". 1:1 ack 5841");
    assert_eq!(script.peer().state().sent, 5840);
    script.quiet();
}

#[test]
fn a_guest_without_sack_permitted_gets_no_sack() {
    let mut script = Script::connected_by("S 0:0 win 65535 mss 1460 wscale 7");
    script.guest(". 1461:2921 ack 1");
    script.us(". 1:1 ack 1");
}

#[test]
fn reordering_within_a_round_is_not_visible() {
    let mut script = Script::connected();
    script.batch(&[". 1461:2921 ack 1", ". 1:1461 ack 1"]);
    assert_eq!(script.peer().state().sent, 2920);
    assert!(script.sent().last().unwrap().contains(" ack 2921 "));
}

#[test]
fn overlaps_are_trimmed_and_old_data_is_acknowledged() {
    let mut script = Script::connected();
    script.guest("P. 1:1001 ack 1");
    script.guest("P. 501:1501 ack 1");
    assert_eq!(script.peer().state().sent, 1500);
    script.sent();
    script.guest("P. 1:1001 ack 1");
    script.us(". 1:1 ack 1501");
    assert_eq!(script.peer().state().sent, 1500);
}

#[test]
fn data_that_a_full_socket_refused_is_queued_and_sent_later_r76() {
    let mut script = Script::connected();
    script.peer().state().send_capacity = 1000;
    script.guest("P. 1:1461 ack 1");
    assert_eq!(script.peer().state().sent, 1000);
    script.us(". 1:1 ack 1461"); // all bytes are in the queue: the guest need not repeat them
    script.peer().acknowledge_all();
    script.settle();
    assert_eq!(script.peer().state().sent, 1460);
}

#[test]
fn the_window_closes_with_the_queue_and_opens_again() {
    let mut script = Script::connected();
    script.peer().state().send_capacity = 3000;
    // The guest sends more than the window of 1 MiB and the socket's buffer together.
    let mut at = 1;
    let mut window = u64::MAX;
    while window > 0 {
        script.guest(&format!(". {at}:{} ack 1", at + 1024));
        at += 1024;
        let sent = script.sent();
        if let Some(last) = sent.last() {
            window = last.split(' ').skip_while(|word| *word != "win").nth(1).unwrap().parse().unwrap();
        }
        assert!(at < 2_000_000, "the window never closes: {sent:?}");
    }
    assert!(script.stack.tcp().queue_memory() <= (1 << 20) + 32_768);
    // A probe of the closed window is answered, and the byte of the probe is dropped.
    script.guest(&format!(". {at}:{} ack 1", at + 1));
    let answer = script.sent();
    assert!(answer[0].contains(" win 0"), "{answer:?}");
    // The window opens in one large step, when the peer has read half of it.
    let mut updates = Vec::new();
    for _ in 0..1000 {
        script.peer().acknowledge_all();
        script.settle();
        updates.extend(script.sent());
    }
    assert!((1..6).contains(&updates.len()), "{updates:?}");
    assert_eq!(script.stack.tcp().queue_memory(), 0);
    script.guest(&format!("P. {at}:{} ack 1", at + 1000));
    assert_eq!(script.peer().state().sent, at as u64 - 1 + 1000);
}

/// A queue that passed more than [`engine::host::TcpSocket::MAX_PIECES`] pieces in one call would stall. The socket
/// would accept only that many pieces, and report no event, since it is not full.
#[test]
fn a_long_queue_is_emptied_by_one_event() {
    let mut script = Script::connected();
    script.peer().state().send_capacity = 3000;
    let total = 300 * 1024;
    for at in (1..total).step_by(1024) {
        script.guest(&format!(". {at}:{} ack 1", at + 1024));
    }
    assert!(script.stack.tcp().queue_memory() > 10 * (16 << 10));
    script.peer().acknowledge_all();
    script.peer().state().send_capacity = 1 << 20;
    script.settle();
    assert_eq!(script.peer().state().sent, total);
    assert_eq!(script.stack.tcp().queue_memory(), 0);
}

#[test]
fn an_acknowledgment_at_the_right_edge_of_the_window_is_acceptable() {
    let mut script = Script::connected();
    script.peer().arrive(1000);
    script.settle();
    script.us("P. 1:1001 ack 1");
    // The guest has filled the whole window. A segment without payload at the window's right edge arrives first.
    let edge = 1 + (1 << 20);
    script.guest(&format!(". {edge}:{edge} ack 1001"));
    assert_eq!(script.peer().unread(), 0);
    script.quiet();
}

#[test]
fn a_fin_after_a_hole_waits_until_it_is_filled_r72() {
    let mut script = Script::connected();
    script.guest("FP. 101:201 ack 1");
    script.us(". 1:1 ack 1 sack 101:201");
    assert!(!script.peer().state().shut);
    script.guest(". 1:101 ack 1");
    assert_eq!(script.peer().state().sent, 200);
    assert!(script.peer().state().shut);
}

#[test]
fn data_after_the_fin_is_dropped_r72() {
    let mut script = Script::connected();
    script.guest("F. 1:101 ack 1");
    script.guest(". 101:301 ack 1");
    script.guest(". 102:302 ack 1");
    assert_eq!(script.peer().state().sent, 100);
    script.sent();
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 1:1 ack 102");
}

#[test]
fn the_fin_is_acknowledged_when_the_peer_has_everything_r73() {
    // If a close succeeds in the guest, the peer has acknowledged all bytes.
    let mut script = Script::connected();
    script.guest("F. 1:101 ack 1");
    assert!(script.peer().state().shut);
    script.us(". 1:1 ack 101");
    script.guest("F. 1:101 ack 1"); // the guest repeats its FIN
    script.us(". 1:1 ack 101");
    script.pass(5 * SECOND);
    script.quiet();
    script.peer().acknowledge(100);
    script.settle();
    script.quiet(); // all bytes are acknowledged, but not the end of the stream
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 1:1 ack 102");
    // the FIN is acknowledged once, and again only if the guest repeats it.
    script.pass(SECOND);
    script.quiet();
    script.guest("F. 101:101 ack 1");
    script.us(". 1:1 ack 102");
}

#[test]
fn after_a_half_close_of_the_guest_the_other_direction_continues_r70() {
    let mut script = Script::connected();
    script.guest("F. 1:1 ack 1");
    script.us(". 1:1 ack 1");
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 1:1 ack 2");
    for round in 0..5 {
        script.pass(20 * SECOND);
        script.peer().arrive(1000);
        script.settle();
        script.us(&format!("P. {}:{} ack 2", round * 1000 + 1, round * 1000 + 1001));
        script.guest(&format!(". 2:2 ack {}", round * 1000 + 1001));
    }
    script.peer().end();
    script.settle();
    script.us("F. 5001:5001 ack 2");
    script.guest(". 2:2 ack 5002");
    script.quiet();
    assert_eq!(script.peer().closed(), Some(Closed::Orderly));
}

#[test]
fn after_a_half_close_of_the_peer_the_other_direction_continues_r70() {
    let mut script = Script::connected();
    script.peer().end();
    script.settle();
    script.us("F. 1:1 ack 1");
    script.guest(". 1:1 ack 2");
    for round in 0..5 {
        script.pass(20 * SECOND);
        script.guest(&format!("P. {}:{} ack 2", round * 1000 + 1, round * 1000 + 1001));
        script.pass(10 * MILLISECOND);
        script.us(&format!(". 2:2 ack {}", round * 1000 + 1001));
    }
    assert_eq!(script.peer().state().sent, 5000);
    script.guest("F. 5001:5001 ack 2");
    script.us(". 2:2 ack 5001");
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 2:2 ack 5002");
    assert_eq!(script.peer().closed(), Some(Closed::Orderly));
}

#[test]
fn both_ends_close_at_once() {
    let mut script = Script::connected();
    script.peer().end();
    script.settle();
    script.us("F. 1:1 ack 1");
    script.guest("F. 1:1 ack 1");
    script.us(". 2:2 ack 1");
    script.peer().acknowledge_all();
    script.settle();
    script.us(". 2:2 ack 2");
    assert_eq!(script.peer().closed(), None);
    script.guest(". 2:2 ack 2");
    assert_eq!(script.peer().closed(), Some(Closed::Orderly));
}

#[test]
fn keep_alives_are_answered_and_enable_those_of_the_host_r74() {
    let mut script = Script::connected();
    script.guest("P. 1:11 ack 1");
    script.pass(10 * MILLISECOND);
    script.us(". 1:1 ack 11");
    assert!(!script.peer().state().keep_alive);
    script.guest(". 10:10 ack 1");
    script.us(". 1:1 ack 11");
    assert!(script.peer().state().keep_alive);
    script.guest(". 10:11 ack 1"); // a keep-alive with a byte, as in old systems
    script.us(". 1:1 ack 11");
    assert_eq!(script.peer().state().sent, 10);
}

#[test]
fn a_silent_guest_is_probed() {
    // behaviour §6.9
    let mut script = Script::connected();
    script.pass(61 * SECOND);
    script.us(". 0:0 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 1");
    script.quiet();
    script.pass(61 * SECOND);
    script.us(". 0:0 ack 1");
    script.guest("R 1:1"); // the guest no longer knows the connection
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
}

#[test]
fn a_connection_without_any_activity_is_aborted_r78() {
    let mut script = Script::connected();
    script.pass(7100 * SECOND);
    assert_eq!(script.peer().closed(), None);
    script.pass(8000 * SECOND);
    let sent = script.sent();
    assert!(sent.last().unwrap().starts_with("R. 1:1 ack 1"), "{:?}", sent.last());
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn an_idle_connection_causes_no_work_r65() {
    let mut script = Script::connected();
    script.peer().arrive(100);
    script.settle();
    script.us("P. 1:101 ack 1");
    let calls = script.peer().state().calls;
    script.pass(200 * MILLISECOND);
    assert_eq!(script.peer().state().calls, calls);
    script.guest(". 1:1 ack 101");
    let calls = script.peer().state().calls;
    script.pass(20 * SECOND);
    assert_eq!(script.peer().state().calls, calls);
}

#[test]
fn a_reset_of_the_guest_resets_the_socket_in_every_state() {
    let reset = |script: &mut Script, seq: u32| {
        script.guest(&format!("R. {seq}:{seq} ack 1"));
        assert_eq!(script.peer().closed(), Some(Closed::Reset));
        assert!(script.stack.tcp().is_empty());
        script.quiet();
    };
    reset(&mut Script::connected(), 1);
    reset(&mut Script::accepted(), 1);
    let mut half_closed_by_peer = Script::connected();
    half_closed_by_peer.peer().end();
    half_closed_by_peer.settle();
    half_closed_by_peer.us("F. 1:1 ack 1");
    reset(&mut half_closed_by_peer, 1);
    let mut half_closed_by_guest = Script::connected();
    half_closed_by_guest.guest("F. 1:1 ack 1");
    half_closed_by_guest.us(". 1:1 ack 1");
    half_closed_by_guest.peer().acknowledge_all();
    half_closed_by_guest.settle();
    half_closed_by_guest.us(". 1:1 ack 2");
    reset(&mut half_closed_by_guest, 2);
    let mut syn_received = Script::new();
    syn_received.guest(SYN);
    syn_received.peer().connect();
    syn_received.settle();
    syn_received.us("S. 0:0");
    reset(&mut syn_received, 1);
}

#[test]
fn a_reset_outside_the_window_is_ignored() {
    let mut script = Script::connected();
    script.guest("R. 2000000:2000000 ack 1");
    assert_eq!(script.peer().closed(), None);
    script.quiet();
}

#[test]
fn data_to_a_peer_that_has_reset_is_answered_with_a_reset() {
    let mut script = Script::connected();
    script.peer().state().send_capacity = 10;
    script.guest("P. 1:101 ack 1");
    script.us(". 1:1 ack 101");
    script.peer().fail(CONNECTION_RESET);
    script.settle();
    script.us("R. 1:1 ack 101");
    assert!(script.stack.tcp().is_empty());
    assert_eq!(script.stack.tcp().queue_memory(), 0);
}

#[test]
fn a_segment_that_acknowledges_unsent_data_is_answered_and_dropped() {
    let mut script = Script::connected();
    script.guest("P. 1:101 ack 500");
    script.us(". 1:1 ack 1");
    assert_eq!(script.peer().state().sent, 0);
}

#[test]
fn the_guests_sequence_numbers_wrap() {
    let mut script = Script::new();
    script.guest_iss = u32::MAX - 1000;
    script.connect_by(SYN);
    script.guest(". 1461:2921 ack 1");
    script.us(". 1:1 ack 1 sack 1461:2921");
    script.guest(". 1:1461 ack 1");
    script.us(". 1:1 ack 2921");
    script.guest("FP. 2921:3001 ack 1");
    assert_eq!(script.peer().state().sent, 3000);
    script.peer().acknowledge_all();
    script.settle();
    assert!(script.sent().last().unwrap().contains(" ack 3002 "));
}
