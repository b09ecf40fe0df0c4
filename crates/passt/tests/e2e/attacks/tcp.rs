//! Attacks by TCP: other addresses and ports, and first bytes that hide or forge the server's name.

use std::net::{SocketAddr, ToSocketAddrs};

use rustix::net::{SendFlags, send};
use testkit::hello::{SERVER_NAME, client_hello, long_client_hello, records, server_name, vector};

use super::clients::end_of;
use super::fort::{Attempt, Fort, Outcome, Outcome::*, attempt};

const DENIED: &str = "(default deny)";
/// The server of `www.allowed.test` and `http.allowed.test`. Other names have its address, too.
const WWW: &str = "203.0.113.2:443";
const HTTP: &str = "203.0.113.2:80";
/// The server of `a.files.test` and `git.allowed.test`.
const FILES: &str = "198.51.100.4:443";
const GIT: &str = "198.51.100.4:22";
const PADDING: u16 = 21;
const OTHER: &[&str] = &["tcp", "-> 203.0.113.2:443: asked for other.test", DENIED];
const OTHER_HOST: &[&str] = &["tcp", "-> 203.0.113.2:80: asked for other.test", DENIED];

/// A ClientHello with this server name, and with data in its padding.
fn hello(name: &[u8]) -> Vec<u8> {
    with_extension(&server_name(name))
}

/// A ClientHello whose extension server_name has this content.
fn with_extension(content: &[u8]) -> Vec<u8> {
    records(&client_hello(&[(SERVER_NAME, content), (PADDING, b"exfil")]), 16_000)
}

/// Connects to an address in any notation that the resolver of the C library accepts.
fn written(fort: &Fort<'_>, host: &str) -> Outcome {
    let address: SocketAddr = (host, 443).to_socket_addrs().unwrap().next().unwrap();
    fort.tell(&address.to_string(), &[&hello(b"www.allowed.test")])
}

fn request(fort: &Fort<'_>, text: &str) -> Outcome {
    fort.tell(HTTP, &[text.as_bytes()])
}

/// Attempts to connect to other destinations.
pub(super) const DESTINATIONS: &[Attempt] = &[
    attempt("an address without a name", Refused, &["tcp", "-> 198.51.100.3:443", DENIED], |f| {
        f.tell("198.51.100.3:443", &[&hello(b"www.allowed.test")])
    }),
    attempt("an address as one number", Refused, &["-> 198.51.100.3:443", DENIED], |f| {
        written(f, "3325256707")
    }),
    attempt("in hexadecimal", Refused, &["-> 198.51.100.3:443", DENIED], |f| written(f, "0xc6336403")),
    attempt("in octal", Refused, &["-> 198.51.100.3:443", DENIED], |f| written(f, "0306.063.0144.03")),
    attempt("in two parts", Refused, &["-> 198.51.100.3:443", DENIED], |f| written(f, "198.3367939")),
    attempt("in three mixed parts", Refused, &["-> 198.51.100.3:443", DENIED], |f| {
        written(f, "0xC6.51.0x6403")
    }),
    attempt("as a mapped address of IPv6", Refused, &["-> 198.51.100.3:443", DENIED], |f| {
        f.tell("[::ffff:198.51.100.3]:443", &[&hello(b"www.allowed.test")])
    }),
    attempt("by IPv6", Refused, &["-> [2001:db8:2::2]:443", DENIED], |f| written(f, "2001:db8:2:0::2")),
    attempt("the allowed address by 6to4", Refused, &["-> [2002:cb00:7102::1]:443", DENIED], |f| {
        f.tell("[2002:cb00:7102::1]:443", &[&hello(b"www.allowed.test")])
    }),
    attempt("the allowed address by NAT64", Refused, &["-> [64:ff9b::cb00:7102]:443", DENIED], |f| {
        f.tell("[64:ff9b::cb00:7102]:443", &[&hello(b"www.allowed.test")])
    }),
    attempt("another port", Refused, &["-> 203.0.113.2:25, an answer for", DENIED], |f| {
        f.tell("203.0.113.2:25", &[b"HELO exfil\r\n"])
    }),
    attempt("the port of another rule", Refused, &["-> 203.0.113.2:22, an answer for", DENIED], |f| {
        f.tell("203.0.113.2:22", &[b"SSH-2.0-exfil\r\n"])
    }),
    attempt("a port beside the rule's", Refused, &["-> 203.0.113.2:8443, an answer for", DENIED], |f| {
        f.tell("203.0.113.2:8443", &[&hello(b"www.allowed.test")])
    }),
];

/// Attempts to use other names in TLS, or to hide them.
pub(super) const TLS: &[Attempt] = &[
    attempt("another name", Alert, OTHER, |f| f.tell(WWW, &[&hello(b"other.test")])),
    attempt("a name of another address", Alert, &["203.0.113.2:443: asked for a.files.test", DENIED], |f| {
        f.tell(WWW, &[&hello(b"a.files.test")])
    }),
    attempt("a name of another port", Alert, &["203.0.113.2:443: asked for http.allowed.test"], |f| {
        f.tell(WWW, &[&hello(b"http.allowed.test")])
    }),
    attempt(
        "an exact name at the address of a wildcard",
        Alert,
        &["198.51.100.4:443: asked for www.allowed"],
        |f| f.tell(FILES, &[&hello(b"www.allowed.test")]),
    ),
    attempt("an unasked name below a wildcard", Alert, &["198.51.100.4:443: asked for b.files.test"], |f| {
        f.tell(FILES, &[&hello(b"b.files.test")])
    }),
    attempt("an allowed name as a prefix", Alert, &["asked for www.allowed.test.evil.test"], |f| {
        f.tell(WWW, &[&hello(b"www.allowed.test.evil.test")])
    }),
    attempt("an allowed name as a suffix", Alert, &["asked for evilwww.allowed.test"], |f| {
        f.tell(WWW, &[&hello(b"evilwww.allowed.test")])
    }),
    attempt("the name above", Alert, &["asked for allowed.test (default deny)"], |f| {
        f.tell(WWW, &[&hello(b"allowed.test")])
    }),
    attempt("no name", Alert, &["203.0.113.2:443: no server name", "allow www.allowed.test:443"], |f| {
        f.tell(WWW, &[&records(&client_hello(&[(PADDING, b"exfil")]), 16_000)])
    }),
    attempt("an address as name", Alert, &["server name is not a host name"], |f| {
        f.tell(WWW, &[&hello(b"203.0.113.2")])
    }),
    attempt("a number as name", Alert, &["server name is not a host name"], |f| {
        f.tell(WWW, &[&hello(b"3405803778")])
    }),
    attempt("a NUL", Alert, &["server name is not a host name"], |f| {
        f.tell(WWW, &[&hello(b"www.allowed.test\0.evil.test")])
    }),
    attempt("a blank", Alert, &["server name is not a host name"], |f| {
        f.tell(WWW, &[&hello(b"www.allowed.test evil.test")])
    }),
    attempt("two trailing dots", Alert, &["server name is not a host name"], |f| {
        f.tell(WWW, &[&hello(b"www.allowed.test..")])
    }),
    attempt("two names in a list", Alert, &["contradictory server names"], |f| {
        let entry = |name: &[u8]| [&[0][..], &vector(2, name)].concat();
        let list = [entry(b"www.allowed.test"), entry(b"other.test")].concat();
        f.tell(WWW, &[&with_extension(&vector(2, &list))])
    }),
    attempt("an entry of another type", Alert, &["malformed first message"], |f| {
        let entry = [&[1][..], &vector(2, b"www.allowed.test")].concat();
        f.tell(WWW, &[&with_extension(&vector(2, &entry))])
    }),
    attempt("two lists", Alert, &["contradictory server names"], |f| {
        let names = [server_name(b"www.allowed.test"), server_name(b"other.test")];
        let extensions = [(SERVER_NAME, &names[0][..]), (SERVER_NAME, &names[1][..]), (PADDING, b"exfil")];
        f.tell(WWW, &[&records(&client_hello(&extensions), 16_000)])
    }),
    attempt("over segments", Alert, OTHER, |f| {
        let hello = hello(b"other.test");
        f.tell(WWW, &hello.chunks(40).collect::<Vec<_>>())
    }),
    attempt("over records", Alert, OTHER, |f| {
        let hello = client_hello(&[(SERVER_NAME, &server_name(b"other.test")), (PADDING, b"exfil")]);
        f.tell(WWW, &[&records(&hello, 7)])
    }),
    attempt("byte by byte", Alert, OTHER, |f| {
        let hello = hello(b"other.test");
        f.tell(WWW, &hello.chunks(1).collect::<Vec<_>>())
    }),
    attempt("an allowed hello after another one", Alert, OTHER, |f| {
        f.tell(WWW, &[&hello(b"other.test"), &hello(b"www.allowed.test")])
    }),
    attempt("two hellos in a record", Alert, &["malformed first message"], |f| {
        let hellos = [&b"www.allowed.test"[..], b"other.test"]
            .map(|name| client_hello(&[(SERVER_NAME, &server_name(name))]));
        f.tell(WWW, &[&records(&hellos.concat(), 16_000)])
    }),
    attempt("an alert before the hello", Reset, &["unknown protocol"], |f| {
        f.tell(WWW, &[b"\x15\x03\x01\0\x02\x01\0", &hello(b"www.allowed.test")])
    }),
    attempt("an alert within the hello", Alert, &["malformed first message"], |f| {
        let hello = hello(b"www.allowed.test");
        let halves = [records(&hello[5..60], 16_000), records(&hello[60..], 16_000)];
        f.tell(WWW, &[&halves[0], b"\x15\x03\x01\0\x02\x01\0", &halves[1]])
    }),
    attempt("an empty record", Alert, &["malformed first message"], |f| {
        f.tell(WWW, &[b"\x16\x03\x01\0\0", &hello(b"www.allowed.test")])
    }),
    attempt("a hello of SSL 2", Reset, &["unknown protocol"], |f| {
        f.tell(WWW, &[b"\x80\x2e\x01\x03\x01exfil"])
    }),
    attempt("a hello that is too long", Alert, &["first message is too long"], |f| {
        f.tell(WWW, &[&records(&long_client_hello("www.allowed.test", 17_000), 16_000)])
    }),
    attempt("a hello that does not end", Alert, &["closed before a server name"], |f| {
        f.tell_all(WWW, &[&hello(b"www.allowed.test")[..60], b""])
    }),
    attempt("urgent data before the hello", Reset, &["urgent data before a server name"], |f| {
        let client = f.connect(WWW).unwrap();
        send(&client, b"exfil", SendFlags::OOB).unwrap();
        end_of(client)
    }),
    attempt("TLS at the port of HTTP", Alert, &["203.0.113.2:80: asked for other.test"], |f| {
        f.tell(HTTP, &[&hello(b"other.test")])
    }),
    attempt("TLS at a port for any protocol", Reset, &["198.51.100.4:22: asked for other.test"], |f| {
        f.tell(GIT, &[&hello(b"other.test")])
    }),
];

/// Attempts by HTTP and other protocols without TLS.
pub(super) const REQUESTS: &[Attempt] = &[
    attempt("text at port 443", Reset, &["203.0.113.2:443: unknown protocol"], |f| {
        f.tell(WWW, &[b"exfil all\r\n"])
    }),
    attempt("bytes at port 443", Reset, &["203.0.113.2:443: unknown protocol"], |f| {
        f.tell(WWW, &[b"\0exfil"])
    }),
    attempt("SSH at port 443", Reset, &["203.0.113.2:443: unknown protocol"], |f| {
        f.tell(WWW, &[b"SSH-2.0-exfil\r\n"])
    }),
    attempt("HTTP at port 443", Reset, OTHER, |f| {
        f.tell(WWW, &[b"GET /exfil HTTP/1.1\r\nHost: other.test\r\n\r\n"])
    }),
    attempt("HTTP at a port for any protocol", Reset, &["198.51.100.4:22: asked for other.test"], |f| {
        f.tell(GIT, &[b"GET /exfil HTTP/1.1\r\nHost: other.test\r\n\r\n"])
    }),
    attempt("another Host", Reset, OTHER_HOST, |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: other.test\r\n\r\n")
    }),
    attempt("another Host, in parts", Reset, OTHER_HOST, |f| {
        f.tell(HTTP, &[b"GET /exfil HTTP/1.1\r\nHo", b"st: oth", b"er.test\r", b"\n\r\n"])
    }),
    attempt("another Host with a port", Reset, OTHER_HOST, |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: other.test:80\r\n\r\n")
    }),
    attempt("no Host", Reset, &["203.0.113.2:80: no server name", "allow http.allowed.test:80"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\n\r\n")
    }),
    attempt("no Host in HTTP/1.0", Reset, &["203.0.113.2:80: no server name"], |f| {
        request(f, "GET /exfil HTTP/1.0\r\n\r\n")
    }),
    attempt("an empty Host", Reset, &["203.0.113.2:80: no server name"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost:\r\n\r\n")
    }),
    attempt("an address as Host", Reset, &["server name is not a host name"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: 203.0.113.2\r\n\r\n")
    }),
    attempt("two Hosts", Reset, &["contradictory server names"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: http.allowed.test\r\nHost: other.test\r\n\r\n")
    }),
    attempt("two names in one Host", Reset, &["server name is not a host name"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: http.allowed.test, other.test\r\n\r\n")
    }),
    attempt("a URI that contradicts", Reset, &["contradictory server names"], |f| {
        request(f, "GET http://other.test/exfil HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("a URI with a user", Reset, &["server name is not a host name"], |f| {
        request(
            f,
            "GET http://http.allowed.test@other.test/exfil HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n",
        )
    }),
    attempt("CONNECT", Reset, &["contradictory server names"], |f| {
        request(f, "CONNECT other.test:443 HTTP/1.1\r\nHost: http.allowed.test\r\nX: exfil\r\n\r\n")
    }),
    attempt("a folded field", Reset, &["malformed first message"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nX: y\r\n Host: other.test\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("a blank before the colon", Reset, &["malformed first message"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost : other.test\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("a NUL in a field", Reset, &["malformed first message"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nHost: http.allowed.test\r\nX: a\0Host: other.test\r\n\r\n")
    }),
    attempt("LF alone", Reset, &["malformed first message"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nX: y\nHost: other.test\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("CR alone", Reset, &["malformed first message"], |f| {
        request(f, "GET /exfil HTTP/1.1\r\nX: y\rHost: other.test\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("an empty line first", Reset, &["unknown protocol"], |f| {
        request(f, "\r\nGET /exfil HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("two blanks in the first line", Reset, &["unknown protocol"], |f| {
        request(f, "GET  http://other.test/exfil HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("HTTP/0.9", Reset, &["unknown protocol"], |f| {
        request(f, "GET /exfil\r\nHost: http.allowed.test\r\n\r\n")
    }),
    attempt("HTTP/2", Reset, &["HTTP/2 without TLS"], |f| {
        request(f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nexfil")
    }),
    attempt("fields that are too long", Reset, &["first message is too long"], |f| {
        let long = "exfil".repeat(4000);
        request(f, &format!("GET / HTTP/1.1\r\nX: {long}\r\nHost: http.allowed.test\r\n\r\n"))
    }),
    attempt("a request that does not end", Reset, &["closed before a server name"], |f| {
        f.tell_all(HTTP, &[b"GET /exfil HTTP/1.1\r\nHost: http.allowed.test\r\n"])
    }),
    attempt("a proxy's header", Reset, &["unknown protocol"], |f| {
        request(
            f,
            "PROXY TCP4 10.0.0.1 203.0.113.2 exfil 80\r\nGET / HTTP/1.1\r\nHost: http.allowed.test\r\n\r\n",
        )
    }),
];
