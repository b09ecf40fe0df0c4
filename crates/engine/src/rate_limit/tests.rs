//! Tests of the bucket alone, in virtual time.

use std::{format, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::drops::Drops;

const START: Instant = Instant::from_micros(7);

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn limit(text: &str) -> RateLimit {
    RateLimit::new(Some(rate(text)), None, START)
}

fn after(micros: u64) -> Instant {
    START + Duration::from_micros(micros)
}

const fn datagram(len: usize) -> Load {
    Load { len, segment_size: None, v4: true }
}

/// Takes turns for a flow that always has more to send, until there are too few tokens for a turn. Returns the number
/// of bytes.
fn drain(bucket: &mut Bucket, class: Class, now: Instant) -> u64 {
    let mut bytes = 0;
    while let Some(granted) = bucket.grant(class, 1, now) {
        bucket.spend(class, granted.into());
        bytes += u64::from(granted);
    }
    bytes
}

#[test]
fn rates_are_decimal_numbers_with_a_suffix() {
    for (text, bits) in [
        ("1k", 1_000),
        ("1000", 1_000),
        ("20M", 20_000_000),
        ("1.5G", 1_500_000_000),
        ("0.064M", 64_000),
        ("1000G", 1_000_000_000_000),
        ("1.0000000004G", 1_000_000_000),
        ("1234567", 1_234_567),
    ] {
        assert_eq!(text.parse().map(Rate::bits_per_second), Ok(bits), "{text}");
    }
    for (text, error) in [
        ("", InvalidRate::NotANumber),
        ("k", InvalidRate::NotANumber),
        ("fast", InvalidRate::NotANumber),
        ("-1M", InvalidRate::NotANumber),
        ("+1M", InvalidRate::NotANumber),
        ("1.M", InvalidRate::NotANumber),
        (".5M", InvalidRate::NotANumber),
        ("1.5.5M", InvalidRate::NotANumber),
        ("1 M", InvalidRate::NotANumber),
        ("1m", InvalidRate::NotANumber),
        ("1Mbit", InvalidRate::NotANumber),
        ("0", InvalidRate::TooLow),
        ("0.0G", InvalidRate::TooLow),
        ("999", InvalidRate::TooLow),
        ("1000.1G", InvalidRate::TooHigh),
        ("99999999999999999999G", InvalidRate::TooHigh),
    ] {
        assert_eq!(text.parse::<Rate>(), Err(error), "{text}");
    }
}

#[test]
fn a_rate_is_shown_as_it_is_written() {
    for text in ["1k", "20M", "1500M", "2G", "1234567"] {
        assert_eq!(format!("{}", rate(text)), text);
    }
}

#[test]
fn without_a_limit_everything_passes() {
    let (mut limit, mut drops) = (limit("1k"), Drops::default());
    for _ in 0..100 {
        let load = datagram(60_000);
        assert_eq!(limit.pass(Direction::Inbound, load, START, &mut drops), Some(load));
    }
    assert_eq!(drops.total(), 0);
    assert_eq!(limit.next(), None);
}

#[test]
fn a_class_that_is_alone_gets_the_whole_rate() {
    for text in ["8k", "1M", "20M", "1.5G", "1000G"] {
        for class in [Class::Tcp, Class::Bypass] {
            let mut limit = limit(text);
            let mut bytes = 0;
            let mut now = START;
            let end = after(100_000_000);
            while now < end {
                bytes += drain(limit.of(Direction::Outbound).unwrap(), class, now);
                now = limit.next().unwrap();
            }
            let expected = rate(text).bytes_in(Duration::from_secs(100));
            let burst = rate(text).bytes_in(BURST).max(MIN_CLASS * 3);
            assert!(bytes <= expected + burst, "{text}: {bytes} of {expected}");
            assert!(bytes + 2 * MIN_TURN >= expected - expected / 1000, "{text}: {bytes} of {expected}");
        }
    }
}

#[test]
fn classes_that_all_have_more_share_equally() {
    let mut limit = limit("24M");
    let bucket = limit.of(Direction::Outbound).unwrap();
    let (mut tcp, mut bypass, mut datagrams) = (0, 0, 0);
    for step in 1..=10_000 {
        let now = after(step * 1000);
        while bucket.pass(&datagram(1172), now).0.is_some() {
            datagrams += 1200;
        }
        tcp += drain(bucket, Class::Tcp, now);
        bypass += drain(bucket, Class::Bypass, now);
    }
    for bytes in [tcp, bypass, datagrams] {
        assert!(bytes.abs_diff(10_000_000) < 100_000, "{tcp} {bypass} {datagrams}");
    }
}

/// A process that wakes up late loses no tokens, up to the burst.
#[test]
fn flows_that_wait_lose_nothing_to_a_late_wake_up() {
    let mut limit = limit("20M");
    let bucket = limit.of(Direction::Outbound).unwrap();
    drain(bucket, Class::Tcp, START);
    let mut bytes = 0;
    for step in 1..=200 {
        bytes += drain(bucket, Class::Tcp, after(step * 50_000));
    }
    assert!(bytes + 65536 >= 25_000_000, "{bytes}");
}

#[test]
fn a_flood_of_long_datagrams_leaves_tokens_for_short_ones() {
    let mut limit = limit("1M");
    let bucket = limit.of(Direction::Outbound).unwrap();
    let (mut short, mut long) = (0, 0);
    for step in 1..=10_000 {
        long += u64::from(bucket.pass(&datagram(1472), after(step * 1000)).0.is_some());
        if step % 20 == 0 {
            assert!(bucket.pass(&datagram(100), after(step * 1000)).0.is_some(), "at {step}");
            short += 1;
        }
    }
    assert_eq!(short, 500);
    let bytes = long * 1500 + short * 128;
    assert!(bytes.abs_diff(1_250_000) < 15_000, "{bytes}");
}

#[test]
fn a_train_is_cut_after_the_datagrams_that_pass() {
    let (mut limit, mut drops) = (limit("8M"), Drops::default());
    // A class has tokens for 16,666 bytes. Long datagrams may use three quarters of them.
    let train = Load { len: 30_500, segment_size: Some(1000), v4: false };
    assert_eq!(
        limit.pass(Direction::Outbound, train, START, &mut drops),
        Some(Load { len: 11_000, ..train })
    );
    assert_eq!(drops.over_limit, 20);
    assert_eq!(limit.pass(Direction::Outbound, train, START, &mut drops), None);
    assert_eq!(drops.over_limit, 51);
    let last = Load { len: 1300, ..train };
    assert_eq!(limit.pass(Direction::Outbound, last, after(2_000), &mut drops), Some(last));
    // The allowed part of a train can be a single datagram.
    let single = Load { len: 1000, segment_size: None, v4: false };
    assert_eq!(limit.pass(Direction::Outbound, train, after(2_500), &mut drops), Some(single));
    assert_eq!(drops.total(), 51 + 30);
}

/// Otherwise such a datagram could never be sent. Afterwards, the class is in debt.
#[test]
fn a_datagram_longer_than_the_bucket_passes_if_the_class_is_full() {
    let mut limit = limit("64k");
    let bucket = limit.of(Direction::Outbound).unwrap();
    assert!(bucket.pass(&datagram(7972), START).0.is_some());
    assert!(bucket.pass(&datagram(0), START).0.is_none());
    // The tokens for 8000 bytes are added in one second.
    assert!(bucket.pass(&datagram(7972), after(999_999)).0.is_none());
    assert!(bucket.pass(&datagram(7972), after(1_000_000)).0.is_some());
}

#[test]
fn empty_datagrams_count_by_their_headers() {
    let mut limit = limit("1k");
    let bucket = limit.of(Direction::Outbound).unwrap();
    let mut passed = 0;
    while bucket.pass(&datagram(0), START).0.is_some() {
        passed += 1;
    }
    assert_eq!(passed, MIN_CLASS / 28);
}

#[test]
fn tokens_are_divided_among_the_flows_that_wait() {
    let mut limit = limit("100M");
    let bucket = limit.of(Direction::Outbound).unwrap();
    let all = rate("100M").bytes_in(BURST) / 3;
    assert_eq!(bucket.grant(Class::Tcp, 1, START), Some(all as u32));
    assert_eq!(bucket.grant(Class::Tcp, 2, START), Some((all / 2) as u32));
    assert_eq!(bucket.grant(Class::Tcp, 1000, START), Some(31_250));
    bucket.spend(Class::Tcp, all - 31_249);
    assert_eq!(bucket.grant(Class::Tcp, 1, START), None);
}

#[test]
fn there_is_a_deadline_only_while_flows_wait() {
    let mut limit = RateLimit::new(Some(rate("8M")), Some(rate("16M")), START);
    assert_eq!(limit.next(), None);
    for (direction, micros) in [(Direction::Outbound, 5000), (Direction::Inbound, 5000)] {
        let bucket = limit.of(direction).unwrap();
        drain(bucket, Class::Tcp, START);
        bucket.spend(Class::Tcp, u64::try_from(bucket.tokens[0]).unwrap() / UNITS_PER_BYTE);
        assert_eq!(limit.next(), Some(after(micros)));
        let bucket = limit.of(direction).unwrap();
        assert!(bucket.grant(Class::Tcp, 1, after(micros)).is_some());
        assert!(bucket.grant(Class::Tcp, 0, after(micros)).is_none());
        assert_eq!(limit.next(), None);
    }
}

/// The event loop must not spin if the clock stands still, or if very few tokens are missing.
#[test]
fn a_deadline_is_a_millisecond_ahead_at_least() {
    let mut limit = limit("1000G");
    let bucket = limit.of(Direction::Outbound).unwrap();
    for step in 0..1000 {
        let now = after(step);
        drain(bucket, Class::Tcp, now);
        assert!(bucket.next().unwrap() >= now + MIN_WAIT);
    }
}

proptest! {
    /// As long as no class is full, no tokens are lost or created, even if the steps are small.
    #[test]
    fn no_token_leaks(bits in 1_000_u64..10_000_000_000, steps in prop::collection::vec(0_u64..20_000, 1..200)) {
        let mut bucket = Bucket::new(rate(&format!("{bits}")), START);
        bucket.waiting = [true; CLASSES];
        bucket.tokens = [0; CLASSES];
        let (mut now, mut spent, mut due) = (START, 0_i64, 0_i64);
        for step in steps {
            now = now + Duration::from_micros(step);
            due += (bits * step) as i64;
            bucket.refill(now);
            for tokens in &mut bucket.tokens {
                let bytes = *tokens / UNITS_PER_BYTE as i64;
                *tokens -= to_units(bytes as u64);
                spent += to_units(bytes as u64);
            }
            prop_assert_eq!(spent + bucket.tokens.iter().sum::<i64>(), due);
        }
        let parts: Vec<i64> = bucket.tokens.to_vec();
        prop_assert!(parts.iter().all(|&tokens| tokens >= 0));
    }
}
