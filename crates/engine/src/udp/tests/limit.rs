//! Tests of rate limits (docs/design/rate-limit.md).

use super::{listeners::listener, *};
use crate::{rate_limit::RateLimit, timer::Instant};

const REMOTE: &str = "203.0.113.1:443";

fn limited(outbound: Option<&str>, inbound: Option<&str>) -> Test {
    let mut test = Test::new();
    let rate = |text: Option<&str>| text.map(|text| text.parse().unwrap());
    test.world.rate_limit = RateLimit::new(rate(outbound), rate(inbound), test.world.now);
    test
}

fn pass(test: &mut Test, millis: u64) {
    test.world.now = test.world.now + Duration::from_millis(millis);
}

/// With headers, such a datagram has 1250 bytes.
const PAYLOAD: [u8; 1222] = [7; 1222];

#[test]
fn datagrams_of_the_guest_above_the_rate_are_dropped_and_counted() {
    let mut test = limited(Some("1M"), None);
    for _ in 0..10_000 {
        test.guest_sends(GUEST, REMOTE, &PAYLOAD);
        pass(&mut test, 1);
    }
    let sent = test.opened(0).socket.sent().len() as u64;
    assert!(sent.abs_diff(1000) <= 20, "{sent} datagrams in 10 s");
    let counters = *test.udp.counters();
    assert_eq!((counters.over_limit, counters.total()), (10_000 - sent, 10_000 - sent));
}

/// Datagrams above the rate are received from the socket and dropped, so that the socket does not stay readable.
#[test]
fn datagrams_for_the_guest_above_the_rate_are_received_and_dropped() {
    for from in [REMOTE, "203.0.113.2:443"] {
        let mut test = limited(None, Some("1M"));
        test.guest_sends(GUEST, REMOTE, b"question");
        let socket = test.opened(0);
        let mut frames = 0;
        for _ in 0..2500 {
            (0..4).for_each(|_| socket.socket.arrive(from, &PAYLOAD));
            while !socket.socket.mailbox().arriving.is_empty() {
                test.ready(&socket, READABLE);
            }
            for (frame, offload) in test.world.frames() {
                let size = offload.segmentation.map_or(PAYLOAD.len(), |train| train.size.into());
                assert_eq!(size, PAYLOAD.len());
                frames += (datagram(&frame).2.len() / PAYLOAD.len()) as u64;
            }
            pass(&mut test, 4);
        }
        assert!(frames.abs_diff(1000) <= 20, "{frames} datagrams in 10 s");
        assert_eq!(test.udp.counters().over_limit, 10_000 - frames);
    }
}

#[test]
fn short_datagrams_pass_beside_a_flood_of_long_ones() {
    let mut test = limited(Some("1M"), None);
    for number in 0..1000 {
        test.guest_sends(GUEST, REMOTE, &PAYLOAD);
        if number % 20 == 0 {
            test.guest_sends("198.51.100.55:4001", "203.0.113.9:53", b"question");
        }
        pass(&mut test, 1);
    }
    assert_eq!(test.opened(1).socket.sent().len(), 50);
}

/// At 8 Mbit/s, the class of datagrams has tokens for 16,666 bytes. Long datagrams leave a quarter of them.
#[test]
fn trains_are_cut() {
    let train = vec![7; 30_000];
    let segmentation = Some(Segmentation { kind: SegmentKind::Udp, size: 1222, ecn: false });
    let offload = Offload { segmentation, ..Offload::default() };
    let mut test = limited(Some("8M"), Some("8M"));
    test.guest_sends_as(GUEST, REMOTE, &train, 64, 0, &offload);
    let socket = test.opened(0);
    let sent = socket.socket.sent();
    assert_eq!((sent[0].segment_size, sent[0].payload.len()), (Some(1222), 9 * 1222));
    assert_eq!(test.udp.counters().over_limit, 16);
    test.guest_sends_as(GUEST, REMOTE, &train, 64, 0, &offload);
    assert_eq!(socket.socket.sent(), []);
    assert_eq!(test.udp.counters().over_limit, 41);

    socket.socket.arrive_as(Received { segment_size: Some(1222), ..received(REMOTE) }, &train);
    test.ready(&socket, READABLE);
    let (frame, offload) = test.world.frame();
    assert_shown(&frame, REMOTE, GUEST, &train[..9 * 1222]);
    assert_eq!(offload.segmentation.map(|train| train.size), Some(1222));
    assert_eq!(test.udp.counters().over_limit, 57);
    // The first datagram is longer than the guest's MTU, and has to be copied. The second one is longer than the
    // bucket.
    pass(&mut test, 50);
    test.world.settings.mtu = 1000;
    socket.socket.arrive(REMOTE, &PAYLOAD);
    socket.socket.arrive(REMOTE, &[7; 14_000]);
    test.ready(&socket, READABLE);
    test.ready(&socket, READABLE);
    assert_eq!(test.world.frames().len(), 2, "two fragments");
    assert_eq!(test.udp.counters().over_limit, 58);
}

/// Datagrams to the guest's namespace are inbound, whichever side began the flow.
#[test]
fn datagrams_that_bypass_the_link_count_in_their_direction() {
    for direction in [Direction::Inbound, Direction::Outbound] {
        let (mut out, mut inbound) = (None, Some("1k"));
        if direction == Direction::Outbound {
            (out, inbound) = (inbound, out);
        }
        // The requests are limited, and the answers are not.
        let mut test = limited(out, inbound);
        let socket = test.listen(Listener { direction, ..listener(None, 80, None, 8080) });
        for _ in 0..10 {
            test.arrive_at(&socket, "127.0.0.1:999", "127.0.0.5", &PAYLOAD);
            test.ready(&socket, READABLE);
        }
        let proxy = test.opened(0);
        let sent = proxy.socket.sent();
        assert_eq!(sent.len(), 2, "{direction:?}");
        assert_eq!(test.udp.counters().over_limit, 8);
        let from = format!("{}", sent[0].destination);
        for _ in 0..10 {
            proxy.socket.arrive(&from, &PAYLOAD);
            test.ready(&proxy, READABLE);
        }
        let answers: usize = socket.socket.sent().iter().map(|sent| sent.payload.len()).sum();
        assert_eq!(answers, 10 * PAYLOAD.len(), "{direction:?}");
    }
}

/// Tokens are added only as time passes.
#[test]
fn no_time_gives_no_tokens() {
    let mut test = limited(Some("1M"), None);
    for _ in 0..1000 {
        test.guest_sends(GUEST, REMOTE, &PAYLOAD);
    }
    assert_eq!(test.opened(0).socket.sent().len(), 2);
    assert_eq!(test.world.rate_limit.next(), None::<Instant>);
}
