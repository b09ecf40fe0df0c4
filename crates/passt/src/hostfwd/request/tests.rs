//! Tests of requests, also of hostile ones.

use proptest::prelude::*;

use super::*;

const DEFAULTS: Defaults = Defaults { enabled: Enabled::ALL, target: Ipv4Addr::new(10, 0, 2, 100) };

fn whole(text: &str) -> Result<Request, String> {
    match parse(text.as_bytes(), true, &DEFAULTS) {
        Parsed::Whole(request) => request,
        Parsed::Incomplete => panic!("{text}"),
    }
}

fn add_with(arguments: &str) -> Result<Forward, String> {
    match whole(&format!(r#"{{"execute": "add_hostfwd", "arguments": {{{arguments}}}}}"#))? {
        Request::Add(forward) => Ok(forward),
        other => panic!("{other:?}"),
    }
}

fn forward(protocol: Protocol, host: (&str, u16), guest: (Option<&str>, u16)) -> Forward {
    Forward {
        protocol,
        host_addr: host.0.parse().unwrap(),
        host_port: host.1,
        guest_addr: guest.0.map(|address| address.parse().unwrap()),
        guest_port: guest.1,
    }
}

/// behaviour §13.1.4: the requests of the manual, of podman and of RootlessKit.
#[test]
fn requests_of_known_clients_are_understood() {
    let expected = forward(Protocol::Tcp, ("0.0.0.0", 8080), (Some("10.0.2.100"), 80));
    let all = r#""proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080, "guest_addr": "10.0.2.100", "guest_port": 80"#;
    assert_eq!(add_with(all), Ok(expected));
    assert_eq!(
        add_with(r#""proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"","guest_port":80"#),
        Ok(expected)
    );
    assert_eq!(add_with(r#""proto":"tcp","host_port":8080,"guest_port":80"#), Ok(expected));
    assert_eq!(
        add_with(r#""proto":"tcp4","host_addr":null,"host_port":8080.0,"guest_port":8e1"#),
        Ok(expected)
    );
    assert_eq!(whole(r#"{"execute": "list_hostfwd"}"#), Ok(Request::List));
    assert_eq!(
        whole("{\"execute\":\"remove_hostfwd\",\"arguments\":{\"id\":42}}\n"),
        Ok(Request::Remove(42))
    );
    assert_eq!(whole(r#"{"execute": "list_hostfwd", "other": 1} more"#), Ok(Request::List));
}

#[test]
fn the_family_follows_from_protocol_or_addresses() {
    let any = forward(Protocol::Udp, ("::", 53), (None, 5353));
    assert_eq!(add_with(r#""proto":"udp6","host_port":53,"guest_port":5353"#), Ok(any));
    let given = forward(Protocol::Tcp, ("::1", 80), (Some("fd00::9"), 80));
    assert_eq!(
        add_with(r#""proto":"tcp","host_addr":"::1","host_port":80,"guest_addr":"fd00::9","guest_port":80"#),
        Ok(given)
    );
    let guest = forward(Protocol::Tcp, ("::", 80), (Some("fd00::9"), 80));
    assert_eq!(add_with(r#""proto":"tcp","host_port":80,"guest_addr":"fd00::9","guest_port":80"#), Ok(guest));
}

#[test]
fn errors_name_the_argument() {
    let ports = r#""host_port":1,"guest_port":2"#;
    for (arguments, error) in [
        (ports.to_owned(), "proto"),
        (format!(r#""proto":"sctp",{ports}"#), "proto"),
        (format!(r#""proto":6,{ports}"#), "proto"),
        (r#""proto":"tcp","guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":1"#.into(), "guest_port"),
        (r#""proto":"tcp","host_port":"1","guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":0,"guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":-1,"guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":70000,"guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":1.5,"guest_port":2"#.into(), "host_port"),
        (r#""proto":"tcp","host_port":1e300,"guest_port":2"#.into(), "host_port"),
        (format!(r#""proto":"tcp","host_addr":"localhost",{ports}"#), "host_addr"),
        (format!(r#""proto":"tcp","host_addr":5,{ports}"#), "host_addr"),
        (format!(r#""proto":"tcp4","host_addr":"::1",{ports}"#), "host_addr (not an IPv4 address)"),
        (
            format!(r#""proto":"tcp","host_addr":"::1","guest_addr":"10.0.2.100",{ports}"#),
            "guest_addr (not an IPv6 address)",
        ),
        (format!(r#""proto":"tcp","guest_addr":"127.0.0.1",{ports}"#), "guest_addr"),
        (format!(r#""proto":"tcp","guest_addr":"224.0.0.1",{ports}"#), "guest_addr"),
    ] {
        assert_eq!(add_with(&arguments), Err(format!("add_hostfwd: bad arguments.{error}")), "{arguments}");
    }
    for (text, error) in [
        (r#"{"execute": "foo"}"#, "unknown execute"),
        (r#"{"execute": 5}"#, "no execute found"),
        ("{}", "no execute found"),
        ("[]", "the request is not a JSON object"),
        ("null", "the request is not a JSON object"),
        (r#"{"execute": "add_hostfwd"}"#, "add_hostfwd: bad arguments.proto"),
        (r#"{"execute": "add_hostfwd", "arguments": 5}"#, "add_hostfwd: bad arguments.proto"),
        (r#"{"execute": "remove_hostfwd"}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute": "remove_hostfwd", "arguments": {"id": -1}}"#, "remove_hostfwd: bad arguments.id"),
        (r#"{"execute": "remove_hostfwd", "arguments": {"id": "1"}}"#, "remove_hostfwd: bad arguments.id"),
    ] {
        assert_eq!(whole(text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn ipv6_needs_the_option() {
    let defaults = Defaults { enabled: Enabled { ipv6: false, ..Enabled::ALL }, ..DEFAULTS };
    let text = br#"{"execute":"add_hostfwd","arguments":{"proto":"tcp6","host_port":1,"guest_port":2}}"#;
    let Parsed::Whole(Err(error)) = parse(text, true, &defaults) else { panic!() };
    assert!(error.contains("--enable-ipv6"), "{error}");
}

/// A request in several pieces is complete with its last byte, even if the client does not close its side.
#[test]
fn a_request_may_arrive_in_pieces() {
    let text = br#" {"execute": "remove_hostfwd", "arguments": {"id": 7}}"#;
    for len in 0..text.len() {
        assert_eq!(parse(&text[..len], false, &DEFAULTS), Parsed::Incomplete, "{len}");
        let Parsed::Whole(Err(error)) = parse(&text[..len], true, &DEFAULTS) else { panic!("{len}") };
        assert_eq!(error, "cannot parse JSON");
    }
    assert_eq!(parse(text, false, &DEFAULTS), Parsed::Whole(Ok(Request::Remove(7))));
}

#[test]
fn malformed_json_is_refused_at_once() {
    for text in ["foo", "{'execute'}", "\0", "{\"execute\": \"list_hostfwd\",}", "}", "\u{feff}{}"] {
        let Parsed::Whole(Err(error)) = parse(text.as_bytes(), false, &DEFAULTS) else { panic!("{text}") };
        assert_eq!(error, "cannot parse JSON", "{text}");
    }
    let nested = "[".repeat(4000);
    assert_eq!(whole(&nested), Err("cannot parse JSON".into()));
    assert_eq!(whole(&format!(r#"{{"execute": {nested}"#)), Err("cannot parse JSON".into()));
}

proptest! {
    /// No input causes a panic, and a valid request is within its limits.
    #[test]
    fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..200), end: bool) {
        parse(&bytes, end, &DEFAULTS);
    }

    /// The same for valid requests with a part replaced.
    #[test]
    fn mutated_requests_are_parsed(at in 0_usize..140, new in proptest::collection::vec(any::<u8>(), 0..6), end: bool) {
        let mut text = br#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"0.0.0.0","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}"#.to_vec();
        let at = at.min(text.len());
        let end_of_part = (at + new.len()).min(text.len());
        text.splice(at..end_of_part, new);
        if let Parsed::Whole(Ok(Request::Add(forward))) = parse(&text, end, &DEFAULTS) {
            prop_assert!(forward.host_port != 0 && forward.guest_port != 0);
            let guest = forward.guest_addr.unwrap_or(forward.host_addr);
            prop_assert_eq!(guest.is_ipv4(), forward.host_addr.is_ipv4());
        }
    }
}
