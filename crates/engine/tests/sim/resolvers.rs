//! Tests of connections to the host's resolvers (docs/design/dns.md). If a resolver fails, the next one is tried before
//! the guest's SYN is answered.

use std::{net::SocketAddr, time::Duration};

use engine::host::Errno;

use testkit::stream::CONNECTION_REFUSED;

use crate::script::{SYN, Script};

const SERVERS: [&str; 3] = ["2001:db8:9::1", "192.0.2.2", "192.0.2.3"];
const MILLISECOND: Duration = Duration::from_millis(1);

/// A guest that sends queries over TCP. The host's resolvers are `servers`.
fn script(servers: &[&str]) -> Script {
    let mut script = Script::new();
    script.resolvers("203.0.113.9", servers);
    script
}

/// The servers to which connections were attempted so far.
fn dialled(script: &Script) -> Vec<String> {
    let destinations = script.host.peers.iter().filter_map(|peer| peer.state().destination);
    destinations
        .map(|destination| {
            assert_eq!(destination.port(), 53);
            destination.ip().to_string()
        })
        .collect()
}

/// Checks that the guest's connection leads to the server that was tried last.
fn assert_connects(script: &mut Script) {
    script.quiet();
    script.host.peers.last().unwrap().connect();
    script.settle();
    script.us("S. 0:0 ack 1");
    script.guest(". 1:1 ack 1 win 512");
    script.quiet();
    script.host.peers.last().unwrap().arrive(100);
    script.settle();
    script.us("P. 1:101 ack 1");
}

#[test]
fn a_resolver_of_the_other_family_is_used() {
    let mut script = script(&SERVERS[..1]);
    script.guest(SYN);
    assert_eq!(dialled(&script), SERVERS[..1]);
    assert_connects(&mut script);
}

#[test]
fn the_next_server_is_dialled_after_a_refusal() {
    let mut script = script(&SERVERS);
    script.guest(SYN);
    for index in 0..2 {
        script.host.peers[index].fail(CONNECTION_REFUSED);
        script.settle();
    }
    assert_eq!(dialled(&script), SERVERS);
    assert_connects(&mut script);
    // The next connection goes to this server at once.
    script.another_port();
    script.guest(SYN);
    assert_eq!(dialled(&script)[3..], SERVERS[2..]);
}

#[test]
fn the_next_server_is_dialled_after_silence() {
    let mut script = script(&SERVERS[..2]);
    script.guest(SYN);
    script.pass(1990 * MILLISECOND);
    assert_eq!(dialled(&script), SERVERS[..1]);
    script.pass(20 * MILLISECOND);
    assert_eq!(dialled(&script), SERVERS[..2]);
    assert!(script.host.peers[0].closed().is_some());
    // There is no timeout for the last server.
    script.pass(10_000 * MILLISECOND);
    assert_eq!(dialled(&script).len(), 2);
    assert_connects(&mut script);
}

#[test]
fn the_last_refusal_is_reported_to_the_guest() {
    let mut script = script(&SERVERS[..2]);
    script.guest(SYN);
    for index in 0..2 {
        script.quiet();
        script.host.peers[index].fail(CONNECTION_REFUSED);
        script.settle();
    }
    let sent = script.sent();
    assert!(sent.len() == 1 && sent[0].starts_with("R. "), "{sent:?}");
    assert!(script.stack.tcp().is_empty());
}

/// If no socket can be opened for the other servers, the engine continues to wait for the silent one.
#[test]
fn a_silent_server_is_kept_if_there_is_no_other() {
    let mut script = script(&SERVERS[..2]);
    script.guest(SYN);
    script.host.connect_error = Some(Errno(101));
    script.pass(5000 * MILLISECOND);
    assert_connects(&mut script);
}

/// The guest resets the connection while a server is tried.
#[test]
fn a_reset_of_the_guest_ends_the_attempts() {
    let mut script = script(&SERVERS);
    script.guest(SYN);
    script.guest("R 1:1");
    script.pass(5000 * MILLISECOND);
    assert_eq!(dialled(&script).len(), 1);
    assert!(script.stack.tcp().is_empty());
}

/// Connections to other destinations have only one server.
#[test]
fn other_connections_have_one_destination() {
    let mut script = script(&SERVERS);
    script.remote = SocketAddr::new("203.0.113.10".parse().unwrap(), 53);
    script.guest(SYN);
    script.pass(5000 * MILLISECOND);
    assert_eq!(dialled(&script), ["203.0.113.10"]);
}
