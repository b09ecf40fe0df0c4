//! Tests of names in requests of HTTP/1.

use super::*;

fn of(request: &str) -> Found {
    whole(request.as_bytes())
}

#[test]
fn the_host_is_found_at_every_cut() {
    let request =
        "GET /index.html?q=1 HTTP/1.1\r\nAccept: */*\r\nhOST: \t Files.example.org. \r\nX: y\r\n\r\n";
    check_at_every_cut(request.as_bytes(), &found(NAME));
    assert_eq!(of(&[request, "body, or the next request"].concat()), found(NAME));
}

#[test]
fn forms_of_targets_are_understood() {
    for request in [
        "GET / HTTP/1.0\r\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org:8080\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org:\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "PROPFIND / HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "GET http://files.example.org/a HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "GET HTTP://files.EXAMPLE.org:80 HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "GET https://files.example.org?q=http://b.example/ HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "GET http://files.example.org/a HTTP/1.0\r\n\r\n",
        "CONNECT files.example.org:443 HTTP/1.1\r\nHost: files.example.org:443\r\n\r\n",
        "CONNECT files.example.org:443 HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(of(request), found(NAME), "{request}");
    }
}

#[test]
fn a_request_without_a_host_has_no_name() {
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nAccept: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://files.example.org/ HTTP/1.1\r\n\r\n",
        "GET http:///a HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(of(request), Found::NoName(Why::NoServerName), "{request}");
    }
}

#[test]
fn names_have_to_agree() {
    for request in [
        "GET / HTTP/1.1\r\nHost: files.example.org\r\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org\r\nA: b\r\nhost: b.example\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "CONNECT b.example:443 HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
    ] {
        assert_eq!(of(request), Found::NoName(Why::Contradiction), "{request}");
    }
}

#[test]
fn addresses_and_user_names_are_no_host_names() {
    for request in [
        "GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [2001:db8::1]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org, b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org/\r\n\r\n",
        "GET http://files.example.org@192.0.2.1/ HTTP/1.0\r\n\r\n",
        "GET http://files.example.org\\b.example/ HTTP/1.0\r\n\r\n",
        "CONNECT 192.0.2.1:443 HTTP/1.0\r\n\r\n",
    ] {
        assert_eq!(of(request), Found::NoName(Why::NotAHostName), "{request}");
    }
}

#[test]
fn what_servers_read_differently_is_refused() {
    for request in [
        "GET / HTTP/1.1\r\nX: y\r\n Host: files.example.org\r\n\r\n", // obs-fold
        "GET / HTTP/1.1\r\nHost: b.example\r\n\tfiles.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\rHost: b.example\r\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org\r\n\n",
        "GET / HTTP/1.1\r\nHost: files.example.org\r\n\r\r\n",
        "GET / HTTP/1.1\r\nX: \0\r\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\nHost: files.example.org\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org:80b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: files.example.org:80:80\r\n\r\n",
        "GET index.html HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
        "GET ftp://files.example.org/ HTTP/1.1\r\nHost: files.example.org\r\n\r\n",
    ] {
        assert_eq!(of(request), Found::NoName(Why::Malformed), "{request:?}");
    }
}

#[test]
fn the_number_of_fields_is_bounded() {
    let request = |fields: usize| {
        let fields = "a: b\r\n".repeat(fields);
        alloc::format!("GET / HTTP/1.1\r\n{fields}Host: files.example.org\r\n\r\n")
    };
    assert_eq!(of(&request(127)), found(NAME));
    assert_eq!(of(&request(128)), Found::NoName(Why::TooLong));
}

#[test]
fn http2_without_tls_is_refused() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    assert_eq!(whole(preface), Found::NoName(Why::Http2));
    assert_eq!(in_pieces(preface.chunks(1)), Found::NoName(Why::Http2));
}
