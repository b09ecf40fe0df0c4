//! Tests of each message of RFC 8415, and of the answer as a client reads it.

use dhcproto::{Decodable, v6};
use proptest::prelude::*;
use wire::frame::Transport;

use super::*;
use crate::{
    addr::Guest,
    local::test::udp,
    testkit::{
        link::Capture,
        settings::{GUEST_MAC, settings},
    },
};

const CLIENT: &[u8] = &[0, 1, 0, 3, 0xaa, 0xbb, 0xcc];
const SERVER: &[u8] = &[0, 2, 0, 14, 0, 1, 0, 1, 1, 2, 3, 4, 0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55];
const OTHER_SERVER: &[u8] = &[0, 2, 0, 4, 0, 3, 0, 1];
const RAPID_COMMIT: &[u8] = &[0, 14, 0, 0];
const IA_NA: &[u8] = &[0, 3, 0, 12, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];

const IA_TA: &[u8] = &[0, 4, 0, 4, 0, 0, 0, 8];
const IA_PD: &[u8] = &[0, 25, 0, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];

const SOLICIT: u8 = 1;
const REQUEST: u8 = 3;
const CONFIRM: u8 = 4;
const RENEW: u8 = 5;
const REBIND: u8 = 6;
const RELEASE: u8 = 8;
const DECLINE: u8 = 9;
const INFORMATION_REQUEST: u8 = 11;

fn assigned() -> Ipv6Addr {
    "2001:db8:1::2".parse().unwrap()
}

fn other() -> Ipv6Addr {
    "2001:db8:9::9".parse().unwrap()
}

/// An identity association with the addresses `addresses`.
fn ia_na_with(addresses: &[Ipv6Addr]) -> Vec<u8> {
    let options = addresses.iter().map(|&address| address_option(address, 60));
    let association = Association { kind: AssociationKind::Addresses, id: 7, addresses: Vec::new() }
        .answer(options.collect());
    association.to_vec().unwrap()
}

fn message(kind: u8, options: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0xab, 0xcd, 0xef], options.concat().as_slice()].concat()
}

/// Sends a message, and returns the answer as a client reads it.
fn ask(settings: &Settings, kind: u8, options: &[&[u8]]) -> Result<v6::Message, Outcome> {
    let reply = reply(settings, &message(kind, options))?;
    let message = v6::Message::from_bytes(&reply.message).unwrap();
    assert!(Options(&reply.message[4..]).all(|option| option.is_some()));
    assert_eq!(message.xid(), [0xab, 0xcd, 0xef]);
    Ok(message)
}

fn answer(kind: u8, options: &[&[u8]]) -> v6::Message {
    ask(&settings(), kind, options).ok().unwrap()
}

fn refusal(kind: u8, options: &[&[u8]]) -> Option<Outcome> {
    ask(&settings(), kind, options).err()
}

fn given(message: &v6::Message) -> Vec<(Ipv6Addr, u32)> {
    let Some(DhcpOption::IANA(association)) = message.opts().get(OptionCode::IANA) else { return vec![] };
    assert_eq!((association.id, association.t1, association.t2), (7, INFINITE, INFINITE));
    let addresses = association.opts.iter().map(|option| match option {
        DhcpOption::IAAddr(address) => (address.addr, address.valid_life),
        other => panic!("{other:?}"),
    });
    addresses.collect()
}

/// The status in an association.
fn status_of(association: &DhcpOption) -> Option<Status> {
    match association {
        DhcpOption::IANA(association) => status_in(&association.opts),
        DhcpOption::IATA(association) => status_in(&association.opts),
        DhcpOption::IAPD(association) => status_in(&association.opts),
        _ => None,
    }
}

fn status_in(options: &DhcpOptions) -> Option<Status> {
    match options.get(OptionCode::StatusCode) {
        Some(DhcpOption::StatusCode(code)) => Some(code.status),
        _ => None,
    }
}

#[test]
fn a_solicit_is_advertised_to_r43() {
    // behaviour §4.4.2, §4.4.3
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(GUEST_MAC));
    guest.shows(&settings, other().into(), Some(GUEST_MAC));
    let mut link = Capture::default();
    let bytes = message(SOLICIT, &[CLIENT, IA_NA]);
    let outcome = udp(&settings, &mut guest, ("fe80::55", "ff02::1:2"), 547, &bytes, &mut link);
    assert_eq!(outcome, Outcome::Answered);
    let (packet, mac) = link.packet();
    assert_eq!(packet.source, "fe80::1".parse::<Ipv6Addr>().unwrap());
    assert_eq!(packet.destination, "fe80::55".parse::<Ipv6Addr>().unwrap());
    assert_eq!((mac, packet.flow_label), (GUEST_MAC, 0xb_cdef)); // behaviour §4.4.4
    let Transport::Udp(datagram) = packet.transport else { panic!() };
    assert_eq!((datagram.header.source_port.get(), datagram.header.destination_port.get()), (547, 546));

    let advertise = v6::Message::from_bytes(datagram.payload).unwrap();
    assert_eq!(advertise.msg_type(), MessageType::Advertise);
    assert_eq!(given(&advertise), [(assigned(), INFINITE)]);
    let options = advertise.opts();
    assert_eq!(options.get(OptionCode::ServerId), Some(&DhcpOption::ServerId(SERVER[4..].to_vec())));
    assert_eq!(options.get(OptionCode::ClientId), Some(&DhcpOption::ClientId(vec![0xaa, 0xbb, 0xcc])));
    let resolvers = vec!["2001:db8::53".parse().unwrap()];
    assert_eq!(options.get(OptionCode::DomainNameServers), Some(&DhcpOption::DomainNameServers(resolvers)));
    assert_eq!(guest.v6(), Some(other()), "an offer makes no lease");
}

#[test]
fn a_reply_resets_the_guests_address() {
    // behaviour §5.4
    let settings = settings();
    let bytes = message(REQUEST, &[CLIENT, SERVER, IA_NA]);
    let mut guest = Guest::new(&settings, Some(GUEST_MAC));
    guest.shows(&settings, other().into(), Some(GUEST_MAC));
    let mut link = Capture::default();
    let outcome = udp(&settings, &mut guest, ("fe80::55", "ff02::1:2"), 547, &bytes, &mut link);
    assert_eq!((outcome, guest.v6()), (Outcome::Answered, Some(assigned())));
}

/// A declined or released address is not the guest's until it is leased again (RFC 8415 §18.3.7, §18.3.8).
#[test]
fn a_lease_ends_by_decline_or_release() {
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(GUEST_MAC));
    let mut say = |kind, options: &[&[u8]]| {
        let bytes = message(kind, options);
        let outcome =
            udp(&settings, &mut guest, ("fe80::55", "ff02::1:2"), 547, &bytes, &mut Capture::default());
        assert_eq!(outcome, Outcome::Answered);
        guest.v6()
    };
    for end in [RELEASE, DECLINE] {
        assert_eq!(say(REQUEST, &[CLIENT, SERVER, IA_NA]), Some(assigned()));
        assert_eq!(say(end, &[CLIENT, SERVER, &ia_na_with(&[other()])]), Some(assigned()));
        assert_eq!(say(end, &[CLIENT, SERVER, &ia_na_with(&[assigned()])]), None);
    }
}

#[test]
fn rapid_commit_is_honoured_when_asked_for() {
    let reply = answer(SOLICIT, &[CLIENT, RAPID_COMMIT, IA_NA]);
    assert_eq!(reply.msg_type(), MessageType::Reply);
    assert!(reply.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(given(&reply), [(assigned(), INFINITE)]);
}

/// After a Reply without a binding, some clients start again each second (RFC 8415 §18.3.1, §18.3.9).
#[test]
fn rapid_commit_without_a_binding_is_an_advertise() {
    for (association, code, expected) in [
        (Some(IA_PD), OptionCode::IAPD, Some(Status::NoPrefixAvail)),
        (Some(IA_TA), OptionCode::IATA, Some(Status::NoAddrsAvail)),
        (None, OptionCode::IAPD, None),
    ] {
        let advertise = answer(SOLICIT, &[CLIENT, RAPID_COMMIT, association.unwrap_or_default()]);
        assert_eq!(advertise.msg_type(), MessageType::Advertise);
        assert!(advertise.opts().get(OptionCode::RapidCommit).is_none());
        assert_eq!(advertise.opts().get(code).and_then(status_of), expected);
    }
    let reply = answer(SOLICIT, &[CLIENT, RAPID_COMMIT, IA_PD, IA_NA]);
    assert_eq!(reply.msg_type(), MessageType::Reply, "there is a binding");
    assert_eq!(reply.opts().get(OptionCode::IAPD).and_then(status_of), Some(Status::NoPrefixAvail));
}

/// In later messages, associations without an address get a status (RFC 8415 §18.3.2, §18.3.4, §18.3.5).
#[test]
fn associations_without_an_address_have_a_status_in_each_message() {
    for (kind, server, expected) in [
        (REQUEST, SERVER, Status::NoPrefixAvail),
        (RENEW, SERVER, Status::NoBinding),
        (REBIND, &[], Status::NoBinding),
    ] {
        let reply = answer(kind, &[CLIENT, server, IA_PD]);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(reply.opts().get(OptionCode::IAPD).and_then(status_of), Some(expected), "{kind}");
    }
    assert_eq!(refusal(CONFIRM, &[CLIENT, IA_PD]), Some(Outcome::Ignored), "no address to confirm");
    assert_eq!(refusal(INFORMATION_REQUEST, &[CLIENT, IA_PD]), Some(Outcome::Invalid));
}

#[test]
fn request_and_renew_are_replied_to() {
    for kind in [REQUEST, RENEW] {
        for association in [IA_NA, &ia_na_with(&[assigned()])] {
            let reply = answer(kind, &[CLIENT, SERVER, association]);
            assert_eq!(reply.msg_type(), MessageType::Reply);
            assert_eq!(given(&reply), [(assigned(), INFINITE)]);
        }
    }
}

#[test]
fn a_request_for_another_address_is_not_on_link() {
    // behaviour §4.4.2, §4.4.3
    let reply = answer(REQUEST, &[CLIENT, SERVER, &ia_na_with(&[assigned(), other()])]);
    let Some(DhcpOption::IANA(association)) = reply.opts().get(OptionCode::IANA) else { panic!() };
    assert_eq!((association.id, status_in(&association.opts)), (7, Some(Status::NotOnLink)));
    assert!(association.opts.get(OptionCode::IAAddr).is_none());
}

#[test]
fn other_addresses_have_lifetime_zero_on_renewal() {
    // RFC 8415 §18.3.4, §18.3.5
    let association = ia_na_with(&[other()]);
    for options in [&[CLIENT, SERVER, &association][..], &[CLIENT, &association]] {
        let kind = if options.len() == 3 { RENEW } else { REBIND };
        assert_eq!(given(&answer(kind, options)), [(assigned(), INFINITE), (other(), 0)]);
    }
}

#[test]
fn q5_rebind_goes_without_server_id() {
    assert_eq!(given(&answer(REBIND, &[CLIENT, IA_NA])), [(assigned(), INFINITE)]);
    assert_eq!(refusal(REBIND, &[CLIENT, SERVER, IA_NA]), Some(Outcome::Invalid));
}

#[test]
fn q5_information_request_is_about_no_addresses() {
    for identifiers in [&[] as &[&[u8]], &[CLIENT], &[CLIENT, SERVER]] {
        let reply = answer(INFORMATION_REQUEST, identifiers);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert!(reply.opts().get(OptionCode::IANA).is_none());
        assert!(reply.opts().get(OptionCode::DomainNameServers).is_some());
    }
    assert_eq!(refusal(INFORMATION_REQUEST, &[CLIENT, IA_NA]), Some(Outcome::Invalid));
    assert_eq!(refusal(INFORMATION_REQUEST, &[CLIENT, OTHER_SERVER]), Some(Outcome::Ignored));
}

#[test]
fn q5_release_and_decline_are_replied_to() {
    for kind in [RELEASE, DECLINE] {
        let reply = answer(kind, &[CLIENT, SERVER, &ia_na_with(&[assigned()])]);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        assert_eq!(status_in(reply.opts()), Some(Status::Success));
        assert!(reply.opts().get(OptionCode::IANA).is_none());
        // Addresses that were never bound are reported (RFC 8415 §18.3.7, §18.3.8).
        let reply = answer(kind, &[CLIENT, SERVER, IA_PD, IA_TA, &ia_na_with(&[other()])]);
        assert_eq!(status_in(reply.opts()), Some(Status::Success));
        for code in [OptionCode::IAPD, OptionCode::IATA, OptionCode::IANA] {
            assert_eq!(reply.opts().get(code).and_then(status_of), Some(Status::NoBinding), "{code:?}");
        }
    }
}

#[test]
fn confirm_says_whether_the_addresses_are_right() {
    // RFC 8415 §18.3.3
    let status = |addresses: &[Ipv6Addr]| {
        let reply = answer(CONFIRM, &[CLIENT, &ia_na_with(addresses)]);
        assert_eq!(reply.msg_type(), MessageType::Reply);
        status_in(reply.opts())
    };
    assert_eq!(status(&[assigned()]), Some(Status::Success));
    assert_eq!(status(&[assigned(), other()]), Some(Status::NotOnLink));
    assert_eq!(refusal(CONFIRM, &[CLIENT, IA_NA]), Some(Outcome::Ignored));
}

#[test]
fn identifiers_are_checked() {
    // RFC 8415 §16
    for (kind, options, expected) in [
        (SOLICIT, &[IA_NA][..], Outcome::Invalid),
        (SOLICIT, &[CLIENT, SERVER, IA_NA], Outcome::Invalid),
        (REQUEST, &[CLIENT, IA_NA], Outcome::Invalid),
        (REQUEST, &[SERVER, IA_NA], Outcome::Invalid),
        (REQUEST, &[CLIENT, OTHER_SERVER, IA_NA], Outcome::Ignored),
        (RENEW, &[CLIENT, IA_NA], Outcome::Invalid),
        (CONFIRM, &[CLIENT, SERVER, IA_NA], Outcome::Invalid),
        (RELEASE, &[CLIENT], Outcome::Invalid),
        (DECLINE, &[CLIENT, OTHER_SERVER], Outcome::Ignored),
        (2, &[CLIENT, SERVER], Outcome::Ignored),  // an advertise
        (7, &[CLIENT, SERVER], Outcome::Ignored),  // a reply
        (12, &[CLIENT, SERVER], Outcome::Ignored), // from a relay
        (99, &[CLIENT], Outcome::Ignored),
    ] {
        assert_eq!(refusal(kind, options), Some(expected), "{kind} {options:?}");
    }
    let too_long = [&[0, 1, 0, 131][..], &[1; 131]].concat();
    assert_eq!(refusal(SOLICIT, &[&too_long, IA_NA]), Some(Outcome::Invalid));
    assert_eq!(refusal(SOLICIT, &[&[0, 1, 0, 0], IA_NA]), Some(Outcome::Invalid));
}

#[test]
fn one_association_has_the_address_and_the_others_a_status() {
    // RFC 8415 §18.3.2, §18.3.9
    let second = [IA_NA, &[]].concat();
    let advertise = answer(SOLICIT, &[CLIENT, IA_TA, IA_PD, IA_NA, &second]);
    let options = advertise.opts();
    let Some([DhcpOption::IANA(first), DhcpOption::IANA(second)]) = options.get_all(OptionCode::IANA) else {
        panic!("{options:?}")
    };
    let addresses = [first, second].map(|each| each.opts.get(OptionCode::IAAddr).is_some());
    assert!(addresses[0] != addresses[1], "one of them has it: {addresses:?}");
    let empty = if addresses[0] { second } else { first };
    assert_eq!(status_in(&empty.opts), Some(Status::NoAddrsAvail));
    let Some(DhcpOption::IATA(temporary)) = options.get(OptionCode::IATA) else { panic!() };
    assert_eq!((temporary.id, status_in(&temporary.opts)), (8, Some(Status::NoAddrsAvail)));
    let Some(DhcpOption::IAPD(prefixes)) = options.get(OptionCode::IAPD) else { panic!() };
    assert_eq!((prefixes.id, status_in(&prefixes.opts)), (9, Some(Status::NoPrefixAvail)));
}

/// The value of an option that `dhcproto` keeps as bytes.
fn raw(settings: &Settings, options: &[&[u8]], code: u16) -> Option<Vec<u8>> {
    let reply = reply(settings, &message(INFORMATION_REQUEST, options)).ok()?;
    let found = Options(&reply.message[4..]).find(|option| option.unwrap().0 == OptionCode::from(code));
    found.map(|option| option.unwrap().1.to_vec())
}

#[test]
fn names_are_in_wire_format_and_not_compressed() {
    // behaviour §4.4.3, RFC 8415 §10, RFC 4704 §4
    let mut settings = settings();
    let search = b"\x07example\x04test\x00\x04corp\x04test\x00".to_vec();
    assert_eq!(raw(&settings, &[], 24), Some(search));
    let name = b"\x05guest\x07example\x04test\x00";
    assert_eq!(raw(&settings, &[], 39), Some([&[0], &name[..]].concat()));
    assert_eq!(raw(&settings, &[&[0, 39, 0, 1, 0]], 39), Some([&[0], &name[..]].concat()));
    assert_eq!(raw(&settings, &[&[0, 39, 0, 1, 1]], 39), Some([&[2], &name[..]].concat()));
    settings.services.fqdn = None;
    settings.services.advertise_dns = false;
    settings.services.advertise_search = false;
    for code in [23, 24, 39] {
        assert_eq!(raw(&settings, &[], code), None, "{code}");
    }
}

#[test]
fn without_server_or_address_nothing_is_answered() {
    // behaviour §4.4.5
    let on = settings();
    let off: [fn(&mut Settings); 3] = [
        |all| all.services.dhcpv6 = false,
        |all| all.v6.as_mut().unwrap().assigned = None,
        |all| all.v6 = None,
    ];
    for switch in off {
        let mut settings = on.clone();
        switch(&mut settings);
        assert_eq!(ask(&settings, SOLICIT, &[CLIENT, IA_NA]).err(), Some(Outcome::Ignored));
    }
}

#[test]
fn malformed_messages_are_invalid() {
    for options in [
        &[0, 1, 0][..],
        &[0, 1, 0, 9, 1],
        &[0, 3, 0, 11, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
        &[0, 3, 0, 16, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1],
        &[0, 3, 0, 17, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 1, 1],
        &[0, 39, 0, 0],
    ] {
        assert_eq!(refusal(SOLICIT, &[CLIENT, options]), Some(Outcome::Invalid), "{options:?}");
    }
    assert_eq!(refusal(SOLICIT, &[CLIENT, &IA_NA.repeat(MAX_ASSOCIATIONS + 1)]), Some(Outcome::Invalid));
    let crowd = ia_na_with(&[assigned(); MAX_ADDRESSES + 1]);
    assert_eq!(refusal(SOLICIT, &[CLIENT, &crowd]), Some(Outcome::Invalid));
    assert_eq!(reply(&settings(), &[1, 2, 3]).err(), Some(Outcome::Invalid));
}

#[test]
fn deeply_nested_options_are_harmless() {
    // Each level is an association of temporary addresses inside the previous level.
    let nest = |inner: u16| {
        let [high, low] = (4 + 8 * inner).to_be_bytes();
        [0, 4, high, low, 0, 0, 0, 0]
    };
    let nested: Vec<u8> = (0..8100).rev().flat_map(nest).collect();
    let advertise = answer(SOLICIT, &[CLIENT, IA_NA, &nested]);
    assert_eq!(given(&advertise), [(assigned(), INFINITE)]);
}

proptest! {
    #[test]
    fn no_message_makes_us_panic(
        kind in 0..16u8,
        options in proptest::collection::vec((0..45u16, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        changes in proptest::collection::vec((0..200usize, any::<u8>()), 0..6),
        with_server in any::<bool>(),
    ) {
        let settings = settings();
        let mut bytes = message(kind, &[CLIENT, if with_server { SERVER } else { &[] }]);
        for (code, value) in options {
            bytes.extend(code.to_be_bytes());
            bytes.extend((value.len() as u16).to_be_bytes());
            bytes.extend(value);
        }
        let _ = reply(&settings, &bytes);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(reply) = reply(&settings, &bytes) {
            prop_assert!(reply.message.len() > 4 && reply.flow_label <= 0xf_ffff);
        }
    }
}
