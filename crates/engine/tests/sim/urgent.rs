//! Tests of urgent data in both directions (RFC 9293 §3.8.5): no byte is lost or added, and the urgent mark is at the
//! right byte.

use std::time::Duration;

use testkit::network::Impairments;

use crate::{
    script::Script,
    world::{Opener, Scenario},
};

/// Bytes of the peer arrive. The last byte is urgent.
fn arrive_urgent(script: &mut Script, len: u64) {
    script.peer().arrive_urgent(len);
    script.settle();
}

/// Positions of the urgent bytes in the guest's stream.
fn urgent_sent(script: &Script) -> Vec<u64> {
    script.peer().state().urgent_sent.clone()
}

#[test]
fn an_urgent_byte_of_the_guest_is_sent_as_one() {
    let mut script = Script::connected();
    script.guest("UP. 1:11 ack 1 urg 4");
    assert_eq!(script.peer().state().sent, 10);
    assert_eq!(urgent_sent(&script), [3]);
    // A segment without payload announces the urgent byte before it is sent.
    script.guest("U. 11:11 ack 1 urg 11");
    script.guest("U. 11:16 ack 1 urg 11");
    script.guest(". 16:31 ack 1");
    assert_eq!(script.peer().state().sent, 30);
    assert_eq!(urgent_sent(&script), [3, 20]);
    // An announcement after the urgent byte was sent is ignored.
    script.guest("U. 11:31 ack 1 urg 11");
    script.guest("U. 31:32 ack 1");
    assert_eq!(urgent_sent(&script), [3, 20, 30], "a pointer of zero means the first byte");
}

#[test]
fn a_later_urgent_byte_replaces_one_that_was_not_sent() {
    let mut script = Script::connected();
    script.guest("U. 101:201 ack 1 urg 50"); // after a hole
    script.guest("U. 201:301 ack 1 urg 10");
    script.guest("U. 301:301 ack 1 urg 65535"); // a byte that is never sent
    assert_eq!(urgent_sent(&script), [0; 0]);
    script.guest(". 1:101 ack 1");
    assert_eq!(script.peer().state().sent, 300);
    assert_eq!(urgent_sent(&script), [0; 0]);
    script.guest("UF. 301:302 ack 1 urg 2");
    assert!(script.peer().state().shut);
}

#[test]
fn an_urgent_byte_waits_for_room_in_the_socket() {
    for room in 0..4 {
        let mut script = Script::new();
        script.host.send_capacity = Some(10 + room);
        script.connect_by(crate::script::SYN);
        script.guest("U. 1:21 ack 1 urg 12");
        script.peer().acknowledge(10 + room);
        script.settle();
        assert_eq!(script.peer().state().sent, 20);
        assert_eq!(urgent_sent(&script), [11]);
    }
}

#[test]
fn an_urgent_byte_is_announced_before_it_is_sent() {
    let mut script = Script::connected();
    script.peer().arrive(100);
    arrive_urgent(&mut script, 11);
    script.peer().arrive(50);
    script.settle();
    script.us("U. 1:111 ack 1 urg 111");
    script.us("U. 111:112 ack 1 urg 1");
    script.us(". 112:162 ack 1");
    script.quiet();
    script.guest(". 1:1 ack 162");
    assert_eq!(script.peer().unread(), 0);
}

/// Each segment has its own urgent pointer. A segment more than 64 KiB before the urgent byte has no urgent pointer.
#[test]
fn pointers_of_many_segments() {
    let mut script = Script::connected_by("S 0:0 win 65535 mss 60000 wscale 7 sackok");
    script.guest(". 1:1 ack 1 win 4096");
    arrive_urgent(&mut script, 100_000);
    script.us(". 1:64241 ack 1");
    let sent = script.sent();
    assert_eq!(sent.len(), 25 + 1, "{sent:#?}"); // 25 segments of 1460 bytes, and the urgent byte
    assert_eq!(sent[0], "U. 64241:65701 ack 1 win 32768 urg 35760");
    assert_eq!(sent[25], "PU. 100000:100001 ack 1 win 32768 urg 1");
}

/// The window is closed, so no byte can be sent. Still, the guest's application can be notified.
#[test]
fn an_urgent_byte_is_announced_into_a_closed_window() {
    let mut script = Script::connected();
    script.guest(". 1:1 ack 1 win 0");
    script.peer().arrive(1000);
    script.settle();
    script.quiet();
    arrive_urgent(&mut script, 1);
    script.us("U. 1:1 ack 1 urg 1001");
    script.quiet();
    script.pass(Duration::from_secs(1));
    assert!(script.sent().iter().all(|probe| probe == "U. 1:2 ack 1 win 32768 urg 1001"));
    script.guest(". 1:1 ack 1 win 512");
    script.us("U. 1:1001 ack 1 urg 1001");
    script.us("U. 1001:1002 ack 1 urg 1");
    script.quiet();
}

/// Without `SO_PEEK_OFF`, the socket returns the urgent byte and later bytes only after the guest has acknowledged all
/// bytes before it.
#[test]
fn a_socket_that_stops_at_the_mark_is_peeked_again() {
    for ended in [false, true] {
        let mut script = Script::new();
        script.host.strict = true;
        script.connect_by(crate::script::SYN);
        script.peer().arrive(9);
        arrive_urgent(&mut script, 1);
        script.peer().arrive(10);
        if ended {
            script.peer().end();
        }
        script.settle();
        script.us("U. 1:10 ack 1 urg 10");
        script.quiet();
        script.guest(". 1:1 ack 10");
        script.us(if ended { "FU. 10:21 ack 1 urg 1" } else { "U. 10:21 ack 1 urg 1" });
        script.quiet();
    }
}

#[test]
fn a_retransmission_has_the_urgent_pointer() {
    let mut script = Script::connected();
    arrive_urgent(&mut script, 5);
    script.peer().arrive(5);
    script.settle();
    assert_eq!(script.sent().len(), 3);
    script.pass(Duration::from_millis(400));
    script.us("U. 1:5 ack 1 urg 5");
    script.us("U. 5:11 ack 1 urg 1");
}

/// Transfers over bad networks, with many urgent bytes in both streams.
#[test]
fn bulk_with_marks() {
    const LEN: u64 = 300_000;
    let mut seed = 0;
    for every in [1, 7, 1460, 4999, 70_001] {
        for (strict, opener) in [(false, Opener::Guest), (true, Opener::Host)] {
            for (mtu, loss, link_queue) in [(1500, 0, None), (1500, 30, Some(20_000)), (65520, 10, None)] {
                seed += 1;
                let outcome = Scenario {
                    seed,
                    mtu,
                    strict,
                    opener,
                    link_queue,
                    urgent: Some(every),
                    network: Impairments { loss, reordering: loss, duplication: loss, delay: 100 },
                    guest_receive: 30_000,
                    host_send: 20_000,
                    host_receive: 50_000,
                    ..Scenario::transfer(LEN, LEN)
                }
                .run();
                let last = (LEN - 1) / every * every;
                assert_eq!(
                    outcome.urgent_sent.last(),
                    Some(&last),
                    "{every} {seed}: {:?} {:?}",
                    outcome.urgent_sent,
                    outcome.observed
                );
                assert!(outcome.urgent_sent.iter().all(|position| position.is_multiple_of(every)));
                let named = outcome.observed.urgent.unwrap() - (outcome.observed.initial.unwrap() + 1);
                assert_eq!(u64::from(named), last, "{every} {seed}: {:?}", outcome.observed);
            }
        }
    }
}
