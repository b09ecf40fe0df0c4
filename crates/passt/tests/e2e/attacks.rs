//! An attacker inside the guest (docs/guard.md) tries to reach what no rule allows. Each attempt must fail: no byte of
//! it leaves the host, the client gets an error at once, and a line about it is logged. Other attempts are not refused,
//! but have no effect.

mod clients;
mod dns;
mod fort;
mod ip;
mod lies;
mod quic;
mod raw;
mod tcp;

use std::io::Write;

use testkit::hello::{SERVER_NAME, client_hello, records, server_name};

use self::clients::{end_of, write};
use self::fort::{Attempt, Fort, Outcome};
use crate::harness::*;

const TABLES: [&[Attempt]; 14] = [
    dns::NAMES,
    dns::KINDS,
    dns::BESIDE,
    dns::SERVERS,
    lies::RECORDS,
    tcp::DESTINATIONS,
    tcp::TLS,
    tcp::REQUESTS,
    ip::DATAGRAMS,
    ip::HOST,
    ip::BYPASS,
    quic::INITIALS,
    raw::SEGMENTS,
    raw::PACKETS,
];

/// Options: the guest has no addresses other than [`HOST`], and no port bypasses the link.
const ALONE: [&str; 8] = [PINNED[0], PINNED[1], PINNED[2], PINNED[3], "-T", "none", "-U", "none"];

/// Number of attempts. Each test runs all attempts of its tables.
const fn attempts() -> usize {
    let (mut sum, mut at) = (lies::ADDRESSES.len(), 0);
    while at < TABLES.len() {
        sum += TABLES[at].len();
        at += 1;
    }
    sum
}

const _: () = assert!(attempts() >= 60);

fn net() -> Option<Net> {
    let resolv_conf = "search corp.files.test\nnameserver 198.51.100.3\n";
    Net::with(Options { resolv_conf, host_setup: ALIASES, ..Options::default() })
}

fn attack(tables: &[&[Attempt]]) {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &ALONE);
    tables.iter().for_each(|table| fort.withstand(table));
    fort.finish();
}

#[test]
fn data_in_the_names_of_questions() {
    attack(&[dns::NAMES]);
}

#[test]
fn useless_questions_and_tunnels() {
    attack(&[dns::KINDS]);
}

#[test]
fn data_beside_questions_and_other_servers() {
    attack(&[dns::BESIDE, dns::SERVERS]);
}

#[test]
fn lies_of_a_resolver() {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &ALONE);
    lies::withstand_addresses(&mut fort);
    fort.withstand(lies::RECORDS);
    fort.finish();
}

#[test]
fn other_destinations_and_names() {
    attack(&[tcp::DESTINATIONS, tcp::TLS]);
}

#[test]
fn other_requests() {
    attack(&[tcp::REQUESTS]);
}

#[test]
fn datagrams_and_the_host() {
    need!("ping");
    attack(&[ip::DATAGRAMS, ip::HOST]);
}

#[test]
fn quic() {
    attack(&[quic::INITIALS]);
}

/// A connection that was allowed ends when the rules change. What it sends afterwards does not leave.
#[test]
fn a_connection_that_began_before_a_change_of_rules() {
    let Some(net) = net() else { return };
    let socket = net.path("control");
    let mut fort = Fort::new(&net, &[&ALONE[..], &["-c", &socket]].concat());
    let mut client = fort.connect("203.0.113.2:80").unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n").unwrap();
    wait_until("the request", || !fort.sinks.collect().is_empty());
    let rules = net.path("rules");
    std::fs::write(&rules, "allow www.allowed.test:443\nallow *.files.test:443\n").unwrap();
    net.host.run(&[companion("pesto"), "policy", "replace", &rules, &socket]).ok();
    let end = write(&mut client, &[b"exfil"]).unwrap_or_else(|| end_of(client));
    assert_eq!(end, Outcome::Reset);
    fort.assert_nothing_left("after a change of rules");
    fort.finish();
}

#[test]
fn ports_that_bypass_the_link() {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &["-T", "7000,53", "-U", "7000,53"]);
    fort.withstand(ip::BYPASS);
    fort.finish();
}

#[test]
fn frames_that_no_kernel_sends() {
    need!("socat");
    attack(&[raw::SEGMENTS, raw::PACKETS]);
}

/// A connection is refused after 10 s if its client sends no data, or only a part of the server's name.
#[test]
fn silence() {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &ALONE);
    let hello = records(&client_hello(&[(SERVER_NAME, &server_name(b"www.allowed.test"))]), 16_000);
    let clients = [&b""[..], &hello[..50], b"GET /exfil HTTP/1.1\r\n"].map(|part| {
        let mut client = fort.connect("203.0.113.2:443").unwrap();
        client.write_all(part).unwrap();
        client
    });
    assert_eq!(clients.map(end_of), [Outcome::Reset, Outcome::Alert, Outcome::Reset]);
    fort.assert_nothing_left("silence");
    assert_eq!(fort.count(&["203.0.113.2:443: no server name in time (allow www.allowed.test:443)"]), 3);
    fort.finish();
}

/// The guest's data is acknowledged, but stays on the host until the server's name is complete.
#[test]
fn no_byte_leaves_before_the_verdict() {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &ALONE);
    let hello = records(&client_hello(&[(SERVER_NAME, &server_name(b"www.allowed.test"))]), 16_000);
    let mut client = fort.connect("203.0.113.2:443").unwrap();
    for byte in &hello[..hello.len() - 1] {
        client.write_all(&[*byte]).unwrap();
    }
    wait_until("an acknowledgment", || sys::stream::unacknowledged(&client).unwrap() == 0);
    fort.assert_nothing_left("a name that is not complete");
    let captured = |fort: &Fort<'_>| fort.capture.as_ref().map(|capture| capture.sent_to((FAR[0], 443)));
    assert!(captured(&fort).is_none_or(|sent| sent.is_empty()));
    client.write_all(&hello[hello.len() - 1..]).unwrap();
    let mut got = Vec::new();
    wait_until("the hello", || {
        got.extend(fort.sinks.collect().into_iter().flat_map(|(_, bytes)| bytes));
        got.len() >= hello.len()
    });
    assert_eq!(got, hello);
    assert!(captured(&fort).is_none_or(|sent| sent == hello));
    fort.finish();
}

/// A limit that the guide states: only the first request of a connection is read. Later requests reach the same server,
/// even if they are in the same segment.
#[test]
fn later_requests_are_not_read() {
    let Some(net) = net() else { return };
    let mut fort = Fort::new(&net, &ALONE);
    let requests =
        b"GET / HTTP/1.1\r\nHost: http.allowed.test\r\n\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n";
    let mut client = fort.connect("203.0.113.2:80").unwrap();
    client.write_all(requests).unwrap();
    let mut got = Vec::new();
    wait_until("both requests", || {
        got.extend(fort.sinks.collect());
        got.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() >= requests.len()
    });
    assert!(got.iter().all(|(at, _)| canonical(*at) == (FAR[0], 80).into()), "{got:?}");
    assert_eq!(got.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), requests);
    fort.finish();
}
