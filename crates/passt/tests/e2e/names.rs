//! Tests of connections under rules by name, with real clients (docs/guard.md). The module `questions` has the tests of
//! DNS.

use crate::harness::*;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use testkit::hello::{client_hello, long_client_hello, records, server_name};
use testkit::message::Data::{self, Bytes, Name};
use testkit::quic::{Initial, V1, crypto};
use wire::dns::Type;

pub(crate) const AT_FAR: &[Data<'_>] = &[Bytes(&[203, 0, 113, 2])];
pub(crate) const AT_FAR6: &[Data<'_>] = &[Bytes(&[0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2])];
pub(crate) const AT_PEER: &[Data<'_>] = &[Bytes(&[198, 51, 100, 3])];

const INDEX: &str = "index.example.org";
/// Another name with the same addresses.
const OTHER: &str = "other.example.com";
const ROWS: &[Row] = &[
    (INDEX, Type::A, AT_FAR),
    (INDEX, Type::AAAA, AT_FAR6),
    (OTHER, Type::A, AT_FAR),
    (OTHER, Type::AAAA, AT_FAR6),
    ("elsewhere.example.org", Type::A, AT_PEER),
    ("files.example.org", Type::A, AT_FAR),
    ("a.files.example.org", Type::A, AT_FAR),
    ("b.a.files.example.org", Type::A, AT_FAR),
    ("www.example.org", Type::CNAME, &[Name("lb.example.net")]),
    ("lb.example.net", Type::CNAME, &[Name("node.example.com")]),
    ("node.example.com", Type::A, AT_FAR),
];
const CERTIFIED: [&str; 8] = [
    INDEX,
    OTHER,
    "elsewhere.example.org",
    "files.example.org",
    "*.files.example.org",
    "*.a.files.example.org",
    "www.example.org",
    "node.example.com",
];
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The usual topology, with one resolver. Stub resolvers find host names only by DNS.
pub(crate) fn net() -> Option<Net> {
    Net::with(Options {
        resolv_conf: "nameserver 198.51.100.3\n",
        host_setup: DNS_ALONE,
        ..Options::default()
    })
}

/// Shell commands that make stub resolvers find host names only by DNS.
pub(crate) const DNS_ALONE: &str = "
echo 'hosts: dns' >/run/nsswitch.conf
[ ! -e /etc/nsswitch.conf ] || mount --bind /run/nsswitch.conf /etc/nsswitch.conf
";

/// Runs curl in the guest, without curl's configuration files.
pub(crate) fn curl(net: &Net, args: &[&str]) -> Finished {
    net.guest.run(&[&["curl", "-q", "-gsS", "--noproxy", "*"], args].concat())
}

/// The network of a test, with a resolver and servers with names.
struct World {
    net: Net,
    _resolver: Resolver,
    certificate: Certificate,
    /// The TLS servers at port 443 of [`FAR`].
    tls: [Server; 2],
}

impl World {
    fn new() -> Option<Self> {
        let net = net()?;
        let certificate = net.certificate(&CERTIFIED);
        let tls = FAR.map(|far| Server::start(&net.far, (far, 443), Some(&certificate), web));
        Some(World { _resolver: Resolver::with(&net.peer, PEER[0], ROWS), net, certificate, tls })
    }

    fn curl(&self, args: &[&str]) -> Finished {
        curl(&self.net, &[&["--cacert", &self.certificate.path], args].concat())
    }

    /// Opens a connection of the guest to port 443 of [`FAR`] over IPv4.
    fn connect(&self) -> TcpStream {
        self.net.guest.connect((FAR[0], 443)).unwrap()
    }

    /// Waits until pasta has handled all frames that the guest has sent so far. It handles frames in order, so the
    /// result of a new connection shows this.
    fn settle(&self) {
        let refused = self.net.guest.connect((FAR[0], 9)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.net.path("log")).unwrap()
    }

    fn pasta(&self, args: &[&str]) -> Daemon<'_> {
        self.net.pasta(&[&["--log-file", &self.net.path("log")], args].concat())
    }
}

/// A ClientHello with the server name `name`.
fn hello(name: &str) -> Vec<u8> {
    records(&client_hello(&[(0, &server_name(name.as_bytes()))]), 16_000)
}

fn read_to_end(mut stream: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map(|_| all)
}

#[test]
fn a_name_is_reached_over_both_families_and_versions_of_http() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:443"]);
    for family in ["-4", "-6"] {
        for (option, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let args = [family, option, "-w", " %{http_version}", "https://index.example.org/"];
            assert_eq!(world.curl(&args).ok(), format!("hello {version}"), "{family}");
        }
    }
    for server in &world.tls {
        let seen = server.all_seen(2);
        assert!(seen.iter().all(|bytes| bytes.starts_with(&[22, 3, 1])), "{seen:?}");
    }
}

/// The server accepts the connections, but gets no bytes.
#[test]
fn another_name_at_the_same_address_is_refused_before_a_byte_leaves() {
    need!("curl", "openssl", "socat");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:443", "--allow", "elsewhere.example.org:443"]);
    // Before the guest has got an answer with this address, no rule allows the address.
    let early = world.curl(&["-k", "https://203.0.113.2/"]);
    assert_eq!(early.code(), 7, "{early:?}");
    assert_eq!(world.curl(&["-4", "https://index.example.org/"]).ok(), "hello");
    assert_eq!(world.net.guest.run(&["getent", "ahostsv4", "elsewhere.example.org"]).code(), 0);

    let capture = Capture::start(&world.net);
    let by_curl: [&[&str]; 3] = [
        &["--resolve", "other.example.com:443:203.0.113.2", "https://other.example.com/"],
        // This name is allowed, but it has another address.
        &["--resolve", "elsewhere.example.org:443:203.0.113.2", "https://elsewhere.example.org/"],
        &["-k", "https://203.0.113.2/"],
    ];
    for args in by_curl {
        let refused = world.curl(args);
        assert_eq!(refused.code(), 35, "{refused:?}");
        assert!(refused.stderr.contains("unrecognized name"), "{refused:?}");
    }
    let s_client = ["openssl", "s_client", "-noservername", "-connect", "203.0.113.2:443"];
    let refused = world.net.guest.run(&s_client);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("unrecognized name"), "{refused:?}");
    let mut stream = world.connect();
    stream.write_all(b"SSH-2.0-client\r\n").unwrap();
    assert_eq!(read_to_end(stream).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let seen = world.tls[0].all_seen(6);
    assert!(seen[1..].iter().all(Vec::is_empty), "{seen:?}");
    assert_eq!(capture.sent_to((FAR[0], 443)), b"");
    assert_eq!(world.curl(&["-4", "https://index.example.org/"]).ok(), "hello");
    assert!(capture.sent_to((FAR[0], 443)).starts_with(&[22, 3, 1]), "the capture works");
    let log = world.log();
    for text in [
        "-> 203.0.113.2:443 (default deny)",
        "-> 203.0.113.2:443: asked for other.example.com (default deny)",
        "-> 203.0.113.2:443: asked for elsewhere.example.org (",
        "-> 203.0.113.2:443: no server name (allow index.example.org:443)",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

/// A ClientHello arrives in pieces. No byte is sent to the server before the ClientHello is complete. If its name is
/// allowed, all of it is sent.
#[test]
fn a_hello_in_pieces_leaves_whole_or_not_at_all() {
    need!("openssl", "socat");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org"]);
    assert_eq!(world.net.guest.run(&["getent", "ahostsv4", INDEX]).code(), 0);
    let capture = Capture::start(&world.net);
    let sent = || {
        world.settle();
        capture.sent_to((FAR[0], 443))
    };

    let refused = records(&long_client_hello(OTHER, 4000), 700);
    let mut stream = world.connect();
    for piece in refused.chunks(1000) {
        stream.write_all(piece).unwrap();
        assert_eq!(sent(), b"");
    }
    assert_eq!(read_to_end(stream).unwrap(), ALERT);
    assert_eq!(world.tls[0].all_seen(1), [b""]);
    assert_eq!(sent(), b"");

    let allowed = records(&long_client_hello(INDEX, 4000), 700);
    let mut stream = world.connect();
    let (first, last) = allowed.split_at(allowed.len() - 1);
    stream.write_all(first).unwrap();
    assert_eq!(sent(), b"");
    stream.write_all(last).unwrap();
    // The server accepts connections in a thread of its own, so the second may not be in the list yet.
    wait_until("the whole hello", || world.tls[0].seen().get(1).is_some_and(|seen| seen.bytes == allowed));
}

/// A ClientHello arrives in two datagrams of QUIC. No datagram is sent to the server before the ClientHello is complete.
/// If its name is allowed, both are sent.
#[test]
fn a_hello_in_two_datagrams_leaves_whole_or_not_at_all() {
    need!("socat");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    net.pasta(&["--allow", "index.example.org:443"]);
    assert_eq!(net.guest.run(&["getent", "ahostsv4", INDEX]).code(), 0);
    let server = net.far.udp((FAR[0], 443));
    let capture = Capture::start(&net);
    let begin = |id: &[u8], name: &str| {
        let client = net.guest.udp((any(FAR[0]), 0));
        client.connect((FAR[0], 443)).unwrap();
        let [first, last] = initials(id, name);
        client.send(&first).unwrap();
        // Pasta handles frames in order: when this connection is refused, it has handled the first datagram.
        assert_eq!(net.guest.connect((FAR[0], 9)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(!capture.has(id));
        client.send(&last).unwrap();
        (client, [first, last])
    };

    let (client, _) = begin(b"refused!", OTHER);
    let error = client.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
    assert!(!capture.has(b"refused!"));

    let (client, datagrams) = begin(b"allowed!", INDEX);
    for datagram in datagrams {
        let (got, from) = recv_from(&server);
        assert!(got == datagram);
        server.send_to(b"answer", from).unwrap();
        assert_eq!(client.recv(&mut [0; 100]).unwrap(), 6);
    }
    assert!(capture.has(b"allowed!"), "the capture works");
}

/// The first two datagrams of a QUIC client. The connection ID `id` is visible in them.
fn initials(id: &[u8], name: &str) -> [Vec<u8>; 2] {
    let message = long_client_hello(name, 1800);
    let parts = [(0, crypto(0, &message[..1000])), (1, crypto(1000, &message[1000..]))];
    parts.map(|(number, mut frames)| {
        frames.resize(1150, 0);
        Initial { number, ..Initial::first(V1, id) }.seal(&frames)
    })
}

#[test]
fn http_is_checked_by_its_host() {
    need!("curl", "openssl", "socat");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org"]);
    let plain = Server::start(&world.net.far, (FAR[0], 80), None, web);
    let other = Server::start(&world.net.far, (FAR[0], 8080), None, web);
    for url in ["http://index.example.org/", "http://Index.Example.Org.:8080/"] {
        assert_eq!(world.curl(&["-4", url]).ok(), "hello", "{url}");
    }
    let capture = Capture::start(&world.net);
    for (args, server) in [
        (&["--resolve", "other.example.com:80:203.0.113.2", "http://other.example.com/"][..], &plain),
        (&["-H", "Host: other.example.com", "http://index.example.org:8080/"], &other),
        (&["http://203.0.113.2:8080/"], &other),
    ] {
        let refused = world.curl(&[&["-4"], args].concat());
        assert_eq!(refused.code(), 56, "{refused:?}");
        assert!(refused.stderr.contains("reset"), "{refused:?}");
        let seen = server.seen();
        assert_eq!(seen[1..].iter().flat_map(|seen| &seen.bytes).count(), 0);
    }
    assert!(!capture.has(b"GET /"));
    let log = world.log();
    for text in [
        "-> 203.0.113.2:80: asked for other.example.com (default deny)",
        "-> 203.0.113.2:8080: asked for other.example.com (default deny)",
        "-> 203.0.113.2:8080: server name is not a host name (allow index.example.org)",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
}

#[test]
fn wildcards_and_aliases() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "*.files.example.org:443", "--allow", "www.example.org"]);
    let get = |name: &str| world.curl(&["-4", &format!("https://{name}/")]);
    for (name, code) in [
        ("a.files.example.org", 0),
        ("b.a.files.example.org", 0),
        // A name is not below itself.
        ("files.example.org", 6),
        // The guest may ask for the last name of the chain only after an allowed name has led to it.
        ("node.example.com", 6),
        ("www.example.org", 0),
        ("node.example.com", 35),
        (INDEX, 6),
    ] {
        let end = get(name);
        assert_eq!(end.code(), code, "{name}: {end:?}");
    }
    let seen = world.tls[0].all_seen(4);
    assert_eq!(seen.iter().filter(|bytes| bytes.is_empty()).count(), 1, "that of node.example.com");
}

/// The check works with TLS 1.2, with a trailing dot in the name (as Python sends it), and with capital letters.
#[test]
fn names_in_other_forms() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:443"]);
    let one_two = ["--tls-max", "1.2"];
    assert_eq!(world.curl(&[&one_two[..], &["https://index.example.org/"]].concat()).ok(), "hello");
    let resolve = ["--resolve", "other.example.com:443:203.0.113.2", "https://other.example.com/"];
    let refused = world.curl(&[&one_two[..], &resolve].concat());
    assert_eq!(refused.code(), 35, "{refused:?}");
    assert!(refused.stderr.contains("unrecognized name"), "{refused:?}");

    let s_client = |name: &str| {
        world.net.guest.run(&["openssl", "s_client", "-connect", "203.0.113.2:443", "-servername", name])
    };
    for name in ["index.example.org.", "INDEX.example.org"] {
        let end = s_client(name);
        assert!(end.stdout.contains("BEGIN CERTIFICATE"), "{end:?}");
    }
    // These names only begin or end like an allowed name.
    for name in
        ["index.example.org.evil.test", "evilindex.example.org", "index.example.org..", "index.example.orgx"]
    {
        let end = s_client(name);
        assert!(end.stderr.contains("unrecognized name"), "{name}: {end:?}");
    }
}

/// The rules deny names, and the default allows all other names.
#[test]
fn a_name_alone_is_denied() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--deny", "*.files.example.org", "--deny", "other.example.com"]);
    for (name, code) in [(INDEX, 0), ("files.example.org", 0), ("a.files.example.org", 6), (OTHER, 6)] {
        let end = world.curl(&["-4", &format!("https://{name}/")]);
        assert_eq!(end.code(), code, "{name}: {end:?}");
    }
}

#[test]
fn a_name_can_be_pinged() {
    need!("ping");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    net.pasta(&["--allow", INDEX, "--allow", "tcp/elsewhere.example.org"]);
    let ping = |to: &str| net.guest.run(&["ping", "-4", "-n", "-c", "1", "-w", "60", to]);
    assert!(ping("203.0.113.2").stdout.contains("filtered"));
    ping(INDEX).ok();
    let tcp_only = ping("elsewhere.example.org");
    assert!(tcp_only.stdout.contains("filtered"), "{tcp_only:?}");
}

/// While a command runs, refusals are shown on standard error, as the guide says.
#[test]
fn the_caller_of_a_command_sees_refused_names() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    let script = format!(
        "get() {{ curl -q -sS --noproxy '*' --cacert {} \"$@\"; echo \" $?\"; }}
        get https://index.example.org/; get https://other.example.com/
        get --resolve other.example.com:443:203.0.113.2 https://other.example.com/",
        world.certificate.path
    );
    let end = world.net.spawn(&["--ipv4-only", "--allow", "index.example.org:443"], &["sh", "-c", &script]);
    assert_eq!(end.stdout, "hello 0\n 6\n 35\n", "{end:?}");
    for line in [
        "refused: DNS 198.51.100.2:",
        " asked for other.example.com A (default deny)",
        "-> 203.0.113.2:443: asked for other.example.com (default deny)",
    ] {
        assert!(end.stderr.contains(line), "{line}: {}", end.stderr);
    }
}

/// The rule has the port of a protocol in which clients do not send a server name.
#[test]
fn a_server_may_speak_first_at_a_port_that_a_rule_gives() {
    need!("openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:22", "--allow", "tcp/index.example.org:25"]);
    let ssh = |_: &mut dyn Read, to: &mut dyn Write| to.write_all(b"SSH-2.0-server\r\n").unwrap();
    let server = Server::start(&world.net.far, (FAR[0], 22), None, ssh);
    assert_eq!(world.net.guest.run(&["getent", "ahostsv4", INDEX]).code(), 0);
    let mut client = world.net.guest.connect((FAR[0], 22)).unwrap();
    client.write_all(b"SSH-2.0-client\r\n").unwrap();
    let mut banner = [0; 16];
    client.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH-2.0-server\r\n");
    drop(client);

    // In this protocol, the client waits for the server's first bytes.
    let listener = world.net.far.listen((FAR[0], 25));
    let mut client = world.net.guest.connect((FAR[0], 25)).unwrap();
    accept(&listener).0.write_all(b"220 mail\r\n").unwrap();
    let mut banner = [0; 10];
    client.read_exact(&mut banner).unwrap();

    // If a client sends a server name nevertheless, the name must be allowed.
    let mut client = world.net.guest.connect((FAR[0], 22)).unwrap();
    client.write_all(&hello(OTHER)).unwrap();
    assert_eq!(read_to_end(client).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.all_seen(2)[1], b"");
}

#[test]
fn a_policy_file_has_names() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    let path = world.net.path("policy");
    let text =
        "deny b.a.files.example.org\nallow *.files.example.org:443\nallow Index.Example.Org. # the index\n";
    std::fs::write(&path, text).unwrap();
    world.pasta(&["--policy", &path]);
    for (name, code) in [(INDEX, 0), ("a.files.example.org", 0), ("b.a.files.example.org", 6), (OTHER, 6)] {
        let end = world.curl(&["-4", &format!("https://{name}/")]);
        assert_eq!(end.code(), code, "{name}: {end:?}");
    }
    assert!(world.log().contains("asked for b.a.files.example.org A (deny b.a.files.example.org)"));
}

#[test]
fn an_audit_of_names_refuses_nothing() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:443", "--policy-audit"]);
    for args in [
        &["https://index.example.org/"][..],
        &["https://other.example.com/"],
        &["-k", "https://203.0.113.2/"],
        &["--resolve", "www.example.org:443:203.0.113.2", "https://www.example.org/"],
    ] {
        assert_eq!(world.curl(&[&["-4"], args].concat()).ok(), "hello");
    }
    let log = world.log();
    for text in [
        "would be refused: DNS 198.51.100.2:",
        " asked for other.example.com A (default deny)",
        "-> 203.0.113.2:443: asked for other.example.com (default deny)",
        "-> 203.0.113.2:443: no server name (allow index.example.org:443)",
        "-> 203.0.113.2:443: asked for www.example.org (default deny)",
    ] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(
        !log.contains(" refused: ")
            || log.matches("refused: ").count() == log.matches("would be refused: ").count()
    );
}

/// With `--policy-names address`, only the address matters, and the client's first bytes are not read.
#[test]
fn the_check_of_the_clients_name_can_be_off() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    world.pasta(&["--allow", "index.example.org:443", "--policy-names", "address"]);
    let other = ["-4", "--resolve", "other.example.com:443:203.0.113.2", "https://other.example.com/"];
    assert_eq!(world.curl(&other).code(), 7);
    assert_eq!(world.curl(&["-4", "https://index.example.org/"]).ok(), "hello");
    assert_eq!(world.curl(&other).ok(), "hello");
    assert_eq!(world.curl(&["-4", "https://other.example.com/"]).code(), 6, "questions are judged");
}

/// The same with `passt` and a machine at its stream socket.
#[test]
fn a_machine_at_a_stream_socket_has_names() {
    need!("curl", "openssl");
    let Some(world) = World::new() else { return };
    let (socket, log) = (world.net.path("guest.socket"), world.net.path("log"));
    let _passt =
        world.net.passt(&["--socket", &socket, "--log-file", &log, "--allow", "index.example.org:443"]);
    let _machine = world.net.machine(1500).plug(UnixStream::connect(socket).unwrap());
    for family in ["-4", "-6"] {
        assert_eq!(world.curl(&[family, "https://index.example.org/"]).ok(), "hello");
    }
    let other = ["--resolve", "other.example.com:443:203.0.113.2", "https://other.example.com/"];
    let refused = world.curl(&other);
    assert_eq!(refused.code(), 35, "{refused:?}");
    assert_eq!(world.curl(&["https://other.example.com/"]).code(), 6);
    assert_eq!(world.tls[0].all_seen(2)[1], b"");
    assert!(world.log().contains("asked for other.example.com (default deny)"));
}

#[test]
fn git_clones_over_https() {
    need!("git", "openssl");
    let Some(net) = net() else { return };
    let _resolver = Resolver::with(&net.peer, PEER[0], ROWS);
    let certificate = net.certificate(&CERTIFIED);
    let (root, clone) = (net.path("repositories"), net.path("clone"));
    let git = "git -c user.name=test -c user.email=test@example.org -c init.defaultBranch=main";
    net.host.sh(&format!(
        "export {GIT_ALONE}; mkdir {root}; {git} init -q {root}/one.git; cd {root}/one.git
        head -c 3000000 /dev/urandom >data; git add data; {git} commit -q -m data"
    ));
    let folder = root.clone();
    let _server = Server::start(&net.far, (FAR[0], 443), Some(&certificate), move |from, to| {
        git_backend(&folder, from, to);
    });
    net.pasta(&["--allow", "index.example.org:443"]);
    let clone_from = |name: &str| {
        let https = format!("GIT_SSL_CAINFO={} https_proxy= HTTPS_PROXY= ALL_PROXY=", certificate.path);
        let script = format!(
            "export {GIT_ALONE} {https}; exec git -c http.version=HTTP/1.1 clone -q https://{name}/one.git {clone}"
        );
        net.guest.run(&["sh", "-ec", &script])
    };
    let refused = clone_from(OTHER);
    assert!(refused.stderr.contains("Could not resolve host"), "{refused:?}");
    clone_from(INDEX).ok();
    let data = |folder: String| std::fs::read(folder + "/data").unwrap();
    assert!(data(clone) == data(format!("{root}/one.git")));
}

/// Environment variables with which git ignores the machine's configuration.
const GIT_ALONE: &str = "GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0";

/// Answers one request with `git http-backend`.
fn git_backend(root: &str, from: &mut dyn Read, to: &mut dyn Write) {
    let Some(head) = read_head(from) else { return };
    let header = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map_or("", |(_, value)| value).to_owned()
    };
    let mut request = head.split_whitespace();
    let (method, target) = (request.next().unwrap(), request.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
    from.read_exact(&mut body).unwrap();
    let mut backend = Command::new("git")
        .arg("http-backend")
        .envs([("GIT_PROJECT_ROOT", root), ("GIT_HTTP_EXPORT_ALL", "1"), ("REQUEST_METHOD", method)])
        .envs([("PATH_INFO", path), ("QUERY_STRING", query)])
        .envs([
            ("CONTENT_TYPE", header("content-type")),
            ("CONTENT_LENGTH", body.len().to_string()),
            ("HTTP_CONTENT_ENCODING", header("content-encoding")),
            ("GIT_PROTOCOL", header("git-protocol")),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    backend.stdin.take().unwrap().write_all(&body).unwrap();
    let answer = backend.wait_with_output().unwrap().stdout;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let status =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n", answer.len() - end);
    let _ = to.write_all(status.as_bytes()).and_then(|()| to.write_all(&answer)).and_then(|()| to.flush());
}
