//! Tests of resets that the guest can't get at once: the link is full, or no guest is connected. An end of the guest that
//! only receives sends nothing that another reset could answer.

use std::time::Duration;

use testkit::stream::CONNECTION_RESET;
use wire::tcp::Flags;

use crate::script::{SYN, Script};

/// The peer of the connection that was opened last resets it.
fn reset(script: &mut Script) {
    script.peer().fail(CONNECTION_RESET);
    script.settle();
}

fn leave(script: &mut Script) {
    script.engine(|round| round.link_down());
}

/// The guest connects, and sends a frame of another connection, which is answered by a reset.
fn come_back(script: &mut Script) {
    script.engine(|round| round.link_up());
    // Without a frame of the guest, its hardware address is not known.
    assert_eq!(flags(script), []);
    let port = script.guest.port();
    script.guest.set_port(9);
    script.guest("F. 1:1 ack 1");
    script.guest.set_port(port);
}

/// The answer to the frame of [`come_back`].
const UNKNOWN: Flags = Flags::RST;

/// The flags of the segments that the engine has sent, except for frames of other protocols.
fn flags(script: &mut Script) -> Vec<Flags> {
    script.heard().into_iter().map(|(flags, _)| flags).collect()
}

#[test]
fn a_full_link_delays_a_reset_r118() {
    for mut script in [Script::connected(), Script::accepted()] {
        script.set_link_full(true);
        reset(&mut script);
        assert!(script.stack.tcp().is_empty());
        script.quiet();
        script.set_link_full(false);
        script.us("R. 1:1 ack 1");
        script.quiet();
        script.set_link_full(false);
        script.quiet();
    }
}

#[test]
fn each_of_many_connections_is_reset_over_a_narrow_link_r118() {
    let mut script = Script::connected();
    for _ in 1..4 {
        script.another_port();
        script.connect_by(SYN);
    }
    let peers = script.host.peers.clone();
    script.limit_link(1);
    peers.iter().for_each(|peer| peer.fail(CONNECTION_RESET));
    script.settle();
    let mut ports = Vec::new();
    for _ in 0..4 {
        ports.extend(script.sent_ports());
        script.limit_link(1);
    }
    ports.sort_unstable();
    assert_eq!(ports, [40_000, 40_001, 40_002, 40_003]);
    script.quiet();
}

#[test]
fn a_guest_that_is_away_is_reset_when_it_is_back_r118() {
    let mut script = Script::connected();
    leave(&mut script);
    reset(&mut script);
    script.quiet();
    come_back(&mut script);
    assert_eq!(flags(&mut script), [UNKNOWN, Flags::RST | Flags::ACK]);
    leave(&mut script);
    come_back(&mut script);
    assert_eq!(flags(&mut script), [UNKNOWN]);
}

/// A reset of the old connection must not end a new one with the same ends.
#[test]
fn a_new_connection_replaces_the_reset_of_the_old_one() {
    let mut script = Script::connected();
    script.set_link_full(true);
    reset(&mut script);
    (script.our_iss, script.guest_iss) = (None, script.guest_iss + 100_000);
    script.guest(SYN);
    script.peer().connect();
    script.settle();
    script.set_link_full(false);
    script.quiet();
    script.pass(Duration::from_secs(1));
    script.us("S. 0:0 ack 1");
    script.quiet();
}

/// At most as many resets are kept as there may be connections: four.
#[test]
fn the_number_of_resets_that_wait_is_bounded() {
    let mut script = Script::new();
    script.set_link_full(true);
    for _ in 0..10 {
        script.another_port();
        script.accept();
        reset(&mut script);
    }
    script.set_link_full(false);
    assert_eq!(flags(&mut script), [Flags::RST; 4]);
}

/// There is no guest any more that could get it.
#[test]
fn a_lost_link_keeps_no_reset() {
    let mut script = Script::connected();
    script.set_link_full(true);
    script.engine(|round| round.link_lost());
    assert!(script.stack.tcp().is_empty());
    script.set_link_full(false);
    script.quiet();
}
