//! Tests of single segments with data from the socket to the guest (behaviour §6.6): windows, loss, and a full link.

use std::time::Duration;

use testkit::stream::{CONNECTION_RESET, Closed};

use crate::script::{SYN, Script};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// `len` bytes of the peer arrive.
fn arrive(script: &mut Script, len: u64) {
    script.peer().arrive(len);
    script.settle();
}

#[test]
fn data_is_sent_in_super_frames_and_discarded_when_acknowledged() {
    let mut script = Script::connected();
    arrive(&mut script, 100_000);
    // The guest's window of 64 KiB has room for one super-frame of 44 whole segments.
    script.us(". 1:64241 ack 1");
    script.quiet();
    assert_eq!(script.peer().unread(), 100_000);
    script.guest(". 1:1 ack 64241 win 512");
    assert_eq!(script.peer().unread(), 100_000 - 64_240);
    script.us("P. 64241:100001 ack 1");
    script.guest(". 1:1 ack 100001 win 512");
    script.quiet();
    assert_eq!(script.peer().unread(), 0);
}

#[test]
fn the_last_available_segment_has_push_r82() {
    let mut script = Script::connected();
    arrive(&mut script, 10);
    assert_eq!(script.sent(), ["P. 1:11 ack 1 win 32768"]);
}

/// The last segment has the FIN, if the end is known and the bytes fit in one segment.
#[test]
fn the_fin_is_sent_with_the_last_bytes() {
    let mut script = Script::connected();
    script.peer().arrive(1000);
    script.peer().end();
    script.settle();
    script.us("FP. 1:1001 ack 1");
    script.quiet();
    // The guest has lost the segment. Then it acknowledges the data only, and later the FIN, too.
    script.pass(400 * MILLISECOND);
    script.us(". 1:1001 ack 1");
    script.us("F. 1001:1001 ack 1");
    script.guest(". 1:1 ack 1001");
    assert_eq!(script.peer().unread(), 0);
    script.guest(". 1:1 ack 1002");
    script.pass(SECOND);
    script.quiet();
}

#[test]
fn the_fin_is_sent_alone_after_a_super_frame() {
    let mut script = Script::connected();
    script.peer().arrive(3000);
    script.peer().end();
    script.settle();
    script.us("P. 1:3001 ack 1");
    script.us("F. 3001:3001 ack 1");
    script.quiet();
}

/// The stream of a failed socket has no end, even if a FIN came before the error.
#[test]
fn the_last_bytes_before_an_error_have_no_fin() {
    let mut script = Script::connected();
    script.set_link_full(true);
    script.peer().arrive(1000);
    script.peer().end();
    script.settle();
    script.peer().fail(CONNECTION_RESET);
    script.settle();
    script.set_link_full(false);
    script.us("P. 1:1001 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 1001");
    script.us("R. 1001:1001 ack 1");
}

#[test]
fn data_is_sent_when_a_full_link_has_room_again_r64() {
    let mut script = Script::connected();
    script.set_link_full(true);
    arrive(&mut script, 1000);
    script.guest("P. 1:51 ack 1");
    script.quiet();
    script.set_link_full(false);
    script.us("P. 1:1001 ack 51");
    script.quiet();
    assert_eq!(script.peer().state().sent, 50);
}

#[test]
fn fin_and_acknowledgment_are_sent_when_a_full_link_has_room_again_r64() {
    let mut script = Script::connected();
    script.set_link_full(true);
    script.peer().end();
    script.settle();
    script.set_link_full(false);
    script.us("F. 1:1 ack 1");
    script.set_link_full(true);
    script.guest("F. 1:1 ack 2");
    script.peer().acknowledge_all();
    script.settle();
    assert_eq!(script.peer().closed(), None, "the guest has not acknowledged it yet");
    script.set_link_full(false);
    script.us(". 2:2 ack 2");
    assert_eq!(script.peer().closed(), Some(Closed::Orderly));
}

#[test]
fn data_outside_a_window_that_shrinks_to_zero_is_sent_again_r66() {
    let mut script = Script::connected();
    arrive(&mut script, 20_000);
    script.us("P. 1:20001 ack 1");
    // The guest drops the data for which it has no room.
    script.guest(". 1:1 ack 1001 win 0");
    script.quiet();
    script.guest(". 1:1 ack 1001 win 512");
    script.us("P. 1001:20001 ack 1");
    script.quiet();
}

#[test]
fn data_outside_a_window_that_shrinks_is_sent_again_r66() {
    let mut script = Script::connected();
    arrive(&mut script, 20_000);
    script.us("P. 1:20001 ack 1");
    script.guest(". 1:1 ack 1001 win 32"); // 4096 bytes
    script.quiet();
    script.guest(". 1:1 ack 5097 win 512");
    script.us("P. 5097:20001 ack 1");
}

#[test]
fn rounding_by_the_window_scale_is_no_shrunk_window() {
    let mut script = Script::connected();
    arrive(&mut script, 200_000);
    script.us(". 1:64241 ack 1");
    // The guest has room for 64240 - 100 bytes. Its window is rounded down to 501 * 128 bytes, so the right edge moves
    // left.
    script.guest(". 1:1 ack 101 win 501");
    script.quiet();
    script.guest(". 1:1 ack 64241 win 512");
    script.us(". 64241:128481 ack 1");
}

#[test]
fn a_closed_window_is_probed_until_it_opens_r67() {
    let mut script = Script::connected();
    script.guest(". 1:1 ack 1 win 0");
    arrive(&mut script, 5000);
    script.quiet();
    for round in 1..5 {
        // The answers still advertise a window of zero.
        script.pass(round * 15 * SECOND);
        let probes = script.sent();
        assert!(!probes.is_empty() && probes.iter().all(|probe| probe.contains(" 1:2 ")), "{probes:?}");
        script.guest(". 1:1 ack 1 win 0");
    }
    script.guest(". 1:1 ack 1 win 512");
    script.us("P. 1:5001 ack 1");
    // Now the timeouts are those of retransmissions again.
    script.pass(2 * SECOND);
    assert!(!script.sent().is_empty());
}

#[test]
fn the_window_of_a_keep_alive_is_applied_r67() {
    let mut script = Script::connected();
    script.guest("P. 1:11 ack 1 win 0");
    arrive(&mut script, 5000);
    script.pass(10 * MILLISECOND);
    script.us(". 1:1 ack 11");
    script.guest(". 11:11 ack 1 win 0");
    script.quiet();
    script.guest(". 10:10 ack 1 win 512");
    script.us("P. 1:5001 ack 11");
}

#[test]
fn the_byte_of_an_accepted_probe_is_not_sent_again() {
    let mut script = Script::connected();
    script.guest(". 1:1 ack 1 win 0");
    arrive(&mut script, 5000);
    script.pass(300 * MILLISECOND);
    script.us(". 1:2 ack 1");
    script.guest(". 1:1 ack 2 win 512");
    script.us("P. 2:5001 ack 1");
    script.guest(". 1:1 ack 5001 win 512");
    script.quiet();
}

#[test]
fn the_byte_of_a_lost_probe_is_sent_again() {
    let mut script = Script::connected();
    script.guest(". 1:1 ack 1 win 0");
    arrive(&mut script, 5000);
    script.pass(300 * MILLISECOND);
    script.us(". 1:2 ack 1");
    script.guest(". 1:1 ack 1 win 512");
    script.us("P. 1:5001 ack 1");
}

#[test]
fn a_fin_needs_room_in_the_window_r68() {
    let mut script = Script::connected();
    script.peer().arrive(1024);
    script.peer().end();
    script.settle();
    script.us("F. 1:1025 ack 1");
    // The guest had no room. Then it has room for the data, but not for the FIN.
    script.guest(". 1:1 ack 1 win 0");
    script.guest(". 1:1 ack 1 win 8");
    script.us(". 1:1025 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 1025 win 8");
    script.us("F. 1025:1025 ack 1");
}

#[test]
fn the_newest_acknowledgment_has_the_newest_window() {
    let mut script = Script::connected();
    script.guest("P. 101:201 ack 1 win 512");
    script.us(". 1:1 ack 1 sack 101:201");
    arrive(&mut script, 200_000);
    script.us(". 1:64241 ack 1 sack 101:201");
    // The guest retransmits a segment. Its sequence number is old, but its acknowledgment and window are new.
    script.guest("P. 1:101 ack 64241 win 8");
    script.us(". 64241:65265 ack 201");
    script.quiet();
}

#[test]
fn the_fin_follows_all_data_inside_the_window_r68() {
    let mut script = Script::connected();
    script.guest(". 1:1 ack 1 win 8"); // 1024 bytes
    arrive(&mut script, 3000);
    script.peer().end();
    script.settle();
    script.us(". 1:1025 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 1025 win 0");
    script.quiet();
    script.guest(". 1:1 ack 1025 win 32");
    script.us("P. 1025:3001 ack 1");
    script.us("F. 3001:3001 ack 1");
    script.quiet();
}

#[test]
fn a_lost_fin_is_sent_again_r69() {
    let mut script = Script::connected();
    arrive(&mut script, 100);
    script.us("P. 1:101 ack 1");
    script.guest(". 1:1 ack 101");
    script.peer().end();
    script.settle();
    script.us("F. 101:101 ack 1");
    script.pass(300 * MILLISECOND);
    script.us("F. 101:101 ack 1");
    script.guest(". 1:1 ack 102");
    script.pass(20 * SECOND);
    assert!(!script.sent().iter().any(|segment| segment.starts_with('F')));
}

#[test]
fn three_duplicates_without_sack_repeat_one_segment_before_the_timeout_r71() {
    for half_closed in [false, true] {
        let mut script = Script::connected_by("S 0:0 win 65535 mss 1460 wscale 7");
        let mut at = 1;
        if half_closed {
            script.guest("F. 1:1 ack 1");
            script.us(". 1:1 ack 1");
            script.peer().acknowledge_all();
            script.settle();
            script.us(". 1:1 ack 2");
            at = 2;
        }
        arrive(&mut script, 14_600);
        script.us(&format!("P. 1:14601 ack {at}"));
        let duplicate = format!(". {at}:{at} ack 1461");
        script.guest(&duplicate);
        script.guest(&duplicate);
        script.guest(&duplicate);
        script.quiet();
        script.guest(&duplicate);
        script.us(&format!(". 1461:2921 ack {at}"));
        // Further duplicates are answers to segments that were sent before the retransmission.
        script.guest(&duplicate);
        script.quiet();
        script.guest(&format!(". {at}:{at} ack 14601"));
        script.quiet();
    }
}

#[test]
fn duplicates_do_not_add_up_over_time() {
    let mut script = Script::connected_by("S 0:0 win 65535 mss 1460 wscale 7");
    arrive(&mut script, 20_000);
    script.us("P. 1:20001 ack 1");
    for round in 1..10 {
        // Each acknowledgment arrives twice.
        script.guest(&format!(". 1:1 ack {}", round * 1460 + 1));
        script.guest(&format!(". 1:1 ack {}", round * 1460 + 1));
        script.quiet();
    }
}

#[test]
fn holes_that_the_guest_reports_are_filled() {
    // RFC 2018, RFC 6675
    let mut script = Script::connected();
    arrive(&mut script, 14_600);
    script.us("P. 1:14601 ack 1");
    script.guest(". 1:1 ack 1461 sack 2921:4381");
    script.guest(". 1:1 ack 1461 sack 2921:5841");
    script.quiet();
    script.guest(". 1:1 ack 1461 sack 7301:8761,2921:5841");
    script.us(". 1461:2921 ack 1");
    script.us(". 5841:7301 ack 1");
    script.quiet();
    // No hole is filled twice while the retransmission may be in flight, and nothing above the last block is sent.
    script.guest(". 1:1 ack 1461 sack 7301:14601,2921:5841");
    script.quiet();
    script.guest(". 1:1 ack 5841 sack 7301:14601");
    script.quiet();
    script.guest(". 1:1 ack 14601");
    script.pass(5 * SECOND);
    script.quiet();
}

#[test]
fn a_lost_retransmission_is_repeated_when_later_data_has_arrived() {
    let mut script = Script::connected();
    arrive(&mut script, 14_600);
    script.us("P. 1:14601 ack 1");
    script.guest(". 1:1 ack 1 sack 1461:14601");
    script.us(". 1:1461 ack 1");
    arrive(&mut script, 1460);
    script.us("P. 14601:16061 ack 1");
    script.guest(". 1:1 ack 1 sack 1461:16061");
    script.us(". 1:1461 ack 1");
    script.quiet();
}

#[test]
fn after_the_first_timeout_data_that_the_guest_holds_is_not_sent_again() {
    let mut script = Script::connected();
    arrive(&mut script, 14_600);
    script.us("P. 1:14601 ack 1");
    script.guest(". 1:1 ack 1 sack 1461:8761");
    script.us(". 1:1461 ack 1");
    script.pass(300 * MILLISECOND);
    script.pass(SECOND);
    let sent = script.sent();
    assert_eq!(sent[0], ". 1:1461 ack 1 win 32768", "{sent:?}");
    // After the second timeout, the data is sent again: the guest may have discarded it (RFC 2018 §8).
    script.pass(4 * SECOND);
    let sent = script.sent();
    assert!(sent.iter().any(|segment| segment.contains(" 1:5841 ")), "{sent:?}");
    script.guest(". 1:1 ack 14601");
    script.quiet();
}

#[test]
fn a_window_below_the_segment_size_does_not_stop_the_stream_r75() {
    let mut script = Script::connected_by("S 0:0 win 1000 mss 1460");
    script.guest(". 1:1 ack 1 win 1000");
    arrive(&mut script, 2500);
    script.us(". 1:1001 ack 1");
    script.guest(". 1:1 ack 1001 win 1000");
    script.us(". 1001:2001 ack 1");
    script.guest(". 1:1 ack 2001 win 1000");
    script.us("P. 2001:2501 ack 1");
}

#[test]
fn a_connection_to_a_silent_guest_is_aborted() {
    // behaviour §6.6, R-78
    let mut script = Script::connected();
    arrive(&mut script, 100);
    script.pass(1200 * SECOND);
    let sent = script.sent();
    assert!(sent.last().unwrap().starts_with("R. "), "{sent:?}");
    assert!((5..20).contains(&sent.len()), "{sent:?}");
    assert_eq!(script.peer().closed(), Some(Closed::Reset));
}

#[test]
fn a_reset_of_the_peer_follows_its_data() {
    // behaviour §6.7
    let mut script = Script::connected();
    script.peer().arrive(100);
    script.peer().fail(CONNECTION_RESET);
    script.settle();
    script.us("P. 1:101 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 101");
    script.us("R. 101:101 ack 1");
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn a_reset_of_the_peer_after_its_fin_is_forwarded() {
    let mut script = Script::connected();
    script.peer().end();
    script.settle();
    script.us("F. 1:1 ack 1");
    script.guest(". 1:1 ack 2");
    script.peer().fail(CONNECTION_RESET);
    script.settle();
    script.us("R. 2:2 ack 1");
    assert!(script.stack.tcp().is_empty());
}

#[test]
fn connections_take_turns() {
    let mut script = Script::new();
    for port in [40_001, 40_002] {
        script.guest.set_port(port);
        script.our_iss = None;
        script.connect_by("S 0:0 win 65535 mss 1460 wscale 14");
        script.guest(". 1:1 ack 1 win 60000");
    }
    // Both connections have much to send, and become ready together.
    script.set_link_full(true);
    for peer in script.host.peers.clone() {
        peer.arrive(4_000_000);
    }
    script.settle();
    script.set_link_full(false);
    let mut turns = script.sent_ports();
    assert!(turns.len() > 100, "{turns:?}");
    turns.dedup();
    assert!(turns.len() > 12, "one connection sends while the other waits: {turns:?}");
}

#[test]
fn our_sequence_numbers_wrap() {
    // Initial sequence numbers are a function of the ends, plus a clock with a period of 4 us. The clock runs until
    // they are near the wrap-around.
    let mut script = Script::new();
    script.guest(SYN);
    script.peer().connect();
    script.settle();
    script.us("S. 0:0");
    let first = script.our_iss.unwrap();
    script.guest("R. 1:1 ack 1");

    script.pass(Duration::from_micros(4 * u64::from(u32::MAX - first - 3000)));
    script.our_iss = None;
    script.connect_by(SYN);
    let iss = script.our_iss.unwrap();
    assert!(u32::MAX - iss <= 3000, "{iss}");
    arrive(&mut script, 10_000);
    script.us("P. 1:10001 ack 1");
    script.guest(". 1:1 ack 1461 sack 2921:10001");
    script.us(". 1461:2921 ack 1");
    script.guest(". 1:1 ack 10001");
    script.peer().end();
    script.settle();
    script.us("F. 10001:10001 ack 1");
    script.guest(". 1:1 ack 10002");
    script.quiet();
    assert_eq!(script.peer().unread(), 0);
}
