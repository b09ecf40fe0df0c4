//! Tests of ClientHellos in streams of records.

use super::*;
use crate::testkit::hello::{ENCRYPTED_CLIENT_HELLO, SERVER_NAME, client_hello, server_name, vector};

/// A stream of one record, which has a ClientHello with the extensions `extensions`.
fn stream(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    records(&client_hello(extensions), 1 << 14)
}

fn named(content: &[u8]) -> Found {
    whole(&stream(&[(10, b"\0\x02\0\x1d"), (SERVER_NAME, content), (43, b"\x02\x03\x04")]))
}

#[test]
fn real_clients_are_understood_at_every_cut() {
    let samples: [&[u8]; 3] = [
        include_bytes!("samples/openssl.tls"),
        include_bytes!("samples/curl.tls"),
        include_bytes!("samples/rustls.tls"),
    ];
    for sample in samples {
        check_at_every_cut(sample, &found(NAME));
    }
}

#[test]
fn a_long_hello_is_understood_at_every_cut() {
    let stream = records(&long_client_hello(NAME, 1800), 1 << 14);
    assert_eq!(stream.len(), 1805);
    check_at_every_cut(&stream, &found(NAME));
}

#[test]
fn a_hello_may_be_in_many_records() {
    let message = long_client_hello(NAME, 1800);
    for most in [1, 2, 3, 7, 100, 1000, 1799] {
        let stream = records(&message, most);
        assert_eq!(whole(&stream), found(NAME), "{most}");
        assert_eq!(in_pieces(stream.chunks(1)), found(NAME), "{most}");
    }
    check_at_every_cut(&records(&message[..], 700), &found(NAME));
}

#[test]
fn records_count_for_the_bound() {
    let stream = records(&long_client_hello(NAME, 3000), 1);
    assert_eq!(whole(&stream), Found::NoName(Why::TooLong));
    let longest = long_client_hello(NAME, MAX_LEN - 5);
    assert_eq!(whole(&records(&longest, 1 << 14)), found(NAME));
    let too_long = long_client_hello(NAME, MAX_LEN - 4);
    assert_eq!(whole(&records(&too_long, 1 << 14)), Found::NoName(Why::TooLong));
    // A message with an excessive length field is refused as soon as the length field has arrived.
    for bytes in [&b"\x16\x03\x01\x00\x04\x01\x00\x40\x00"[..], b"\x16\x03\x01\x10\x00\x01\xff\xff\xff"] {
        assert_eq!(in_pieces(bytes.chunks(1)), Found::NoName(Why::TooLong));
    }
}

#[test]
fn names_are_host_names() {
    assert_eq!(named(&server_name(b"Files.EXAMPLE.org.")), found(NAME));
    for name in
        [&b"192.0.2.1"[..], b"2001:db8::1", b"[2001:db8::1]", b"a b", b"a\0.example", b"\xc3\xbc.example"]
    {
        assert_eq!(named(&server_name(name)), Found::NoName(Why::NotAHostName), "{name:?}");
    }
}

#[test]
fn a_hello_without_a_name_has_none() {
    assert_eq!(whole(&stream(&[(43, b"\x02\x03\x04")])), Found::NoName(Why::NoServerName));
    // Extensions are optional before TLS 1.3.
    let mut message = client_hello(&[]);
    message.truncate(message.len() - 2);
    message[3] -= 2;
    assert_eq!(whole(&records(&message, 1000)), Found::NoName(Why::NoServerName));
}

#[test]
fn two_names_are_refused() {
    let name = server_name(NAME.as_bytes());
    let twice = stream(&[(SERVER_NAME, &name), (SERVER_NAME, &name)]);
    assert_eq!(whole(&twice), Found::NoName(Why::Contradiction));
    let entry = [&[0][..], &vector(2, NAME.as_bytes())].concat();
    for second in [&entry[..], &[&[1][..], &entry[1..]].concat(), &[0], &[0, 0]] {
        let list = vector(2, &[&entry, second].concat());
        assert_eq!(named(&list), Found::NoName(Why::Contradiction), "{second:?}");
    }
}

#[test]
fn a_malformed_list_of_names_is_refused() {
    let name = server_name(NAME.as_bytes());
    let longer = [&name[..], &[0]].concat();
    let wrong_type = vector(2, &[&[1][..], &vector(2, NAME.as_bytes())].concat());
    let lists: [&[u8]; 7] =
        [b"", b"\0", &vector(2, b""), &name[..name.len() - 1], &longer, &server_name(b""), &wrong_type];
    for list in lists {
        assert_eq!(named(list), Found::NoName(Why::Malformed), "{list:?}");
    }
}

#[test]
fn lengths_have_to_agree() {
    let name = server_name(NAME.as_bytes());
    let message = client_hello(&[(SERVER_NAME, &name)]);
    // The offsets of the lengths of the message, session ID, cipher suites, compression methods and extensions.
    for at in [3, 38, 72, 77, 80] {
        for change in [1, 0xff] {
            let mut changed = message.clone();
            changed[at] = changed[at].wrapping_add(change);
            let answer = whole(&records(&changed, 1000));
            let incomplete = at == 3 && change == 1;
            let expected = if incomplete { Found::More } else { Found::NoName(Why::Malformed) };
            assert_eq!(answer, expected, "{at} {change}");
        }
    }
}

#[test]
fn a_hello_ends_with_its_record() {
    let name = server_name(NAME.as_bytes());
    let message = [&client_hello(&[(SERVER_NAME, &name)])[..], &[0]].concat();
    let stream = records(&message, 1000);
    for cut in 1..stream.len() {
        let (start, end) = stream.split_at(cut);
        assert_eq!(in_pieces([start, end]), Found::NoName(Why::Malformed), "{cut}");
    }
    assert_eq!(whole(&stream), Found::NoName(Why::Malformed));
    // The length field of the record is wrong. The record is refused before its last byte arrives.
    assert_eq!(whole(&stream[..stream.len() - 1]), Found::NoName(Why::Malformed));
}

#[test]
fn only_handshake_records_are_accepted() {
    let name = server_name(NAME.as_bytes());
    let message = client_hello(&[(SERVER_NAME, &name)]);
    let (start, end) = message.split_at(20);
    let between: [&[u8]; 4] = [
        b"\x15\x03\x01\0\x02\x01\0",
        b"\x14\x03\x01\0\x01\x01",
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\x40\x01",
    ];
    for record in between {
        let stream = [&records(start, 1000)[..], record, &records(end, 1000)].concat();
        assert_eq!(whole(&stream), Found::NoName(Why::Malformed), "{record:?}");
    }
    // The record has another handshake message, such as a ServerHello.
    assert_eq!(whole(b"\x16\x03\x01\0\x04\x02\0\0\0"), Found::NoName(Why::Malformed));
}

#[test]
fn an_encrypted_part_is_reported() {
    let name = server_name(NAME.as_bytes());
    for (extensions, has_ech) in [
        (&[(SERVER_NAME, &name[..]), (ENCRYPTED_CLIENT_HELLO, b"\0\0\x01\0\x01")][..], true),
        (&[(SERVER_NAME, &name[..])], false),
    ] {
        let stream = stream(extensions);
        let mut first_bytes = FirstBytes::new(Ech::OuterName);
        assert_eq!((first_bytes.feed(&stream), first_bytes.has_ech()), (found(NAME), has_ech));
        let mut strict = FirstBytes::new(Ech::Refuse);
        let expected = if has_ech { Found::NoName(Why::Ech) } else { found(NAME) };
        assert_eq!((strict.feed(&stream), strict.has_ech()), (expected, has_ech));
    }
}
