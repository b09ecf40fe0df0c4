//! Tests of each message of RFC 2131 and RFC 951, and of the answer as a client reads it.

use core::net::IpAddr;

use dhcproto::{
    Decodable,
    v4::{self, Opcode},
};
use proptest::prelude::*;
use wire::{ethernet::Mac, frame::Transport};

use super::*;
use crate::{
    addr::Guest,
    local::test::udp,
    testkit::{
        link::Capture,
        settings::{GUEST_MAC, settings},
    },
};

const DISCOVER: &[u8] = &[53, 1, 1];
const REQUEST: &[u8] = &[53, 1, 3];

fn header() -> Header {
    Header {
        op: BOOT_REQUEST,
        hardware_type: 1,
        hardware_len: 6,
        hops: 3,
        transaction: U32::new(0x1234_5678),
        seconds: U16::new(9),
        flags: U16::ZERO,
        client_address: [198, 51, 100, 7],
        your_address: [9; 4],
        server_address: [9; 4],
        relay_address: [192, 0, 2, 8],
        hardware_address: [2, 0, 0, 0, 0, 0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        server_name: [7; 64],
        file: [7; 128],
        magic: dhcproto::v4::MAGIC,
    }
}

fn request(options: &[u8]) -> Vec<u8> {
    [header().as_bytes(), options].concat()
}

/// The options of the answer, in order, without the end mark and pads.
fn answered(settings: &Settings, options: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let reply = reply(settings, &request(options)).ok().unwrap();
    let (_, mut rest) = Header::ref_from_prefix(&reply.message).unwrap();
    let mut options = Vec::new();
    while let [code @ 1..=254, len, tail @ ..] = rest {
        let (value, tail) = tail.split_at(usize::from(*len));
        options.push((*code, value.to_vec()));
        rest = tail;
    }
    assert_eq!(rest.first(), Some(&END));
    assert!(rest[1..].iter().all(|&byte| byte == PAD), "clean options (R-40)");
    options
}

fn codes(settings: &Settings, options: &[u8]) -> Vec<u8> {
    answered(settings, options).into_iter().map(|(code, _)| code).collect()
}

fn option(settings: &Settings, code: u8) -> Option<Vec<u8>> {
    answered(settings, DISCOVER).into_iter().find(|(each, _)| *each == code).map(|(_, value)| value)
}

#[test]
fn an_offer_as_a_client_reads_it() {
    // behaviour §4.3.3, §4.3.4.
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(GUEST_MAC));
    let mut link = Capture::default();
    let addresses = ("0.0.0.0", "255.255.255.255");
    let outcome = udp(&settings, &mut guest, addresses, 67, &request(DISCOVER), &mut link);
    assert_eq!(outcome, Outcome::Answered);
    let (packet, mac) = link.packet();
    let to: IpAddr = "198.51.100.2".parse().unwrap();
    let from: IpAddr = "198.51.100.1".parse().unwrap();
    assert_eq!((packet.source, packet.destination, mac), (from, to, GUEST_MAC));
    let Transport::Udp(datagram) = packet.transport else { panic!() };
    assert_eq!((datagram.header.source_port.get(), datagram.header.destination_port.get()), (67, 68));

    let message = v4::Message::from_bytes(datagram.payload).unwrap();
    assert_eq!((message.opcode(), message.xid()), (Opcode::BootReply, 0x1234_5678));
    assert_eq!((message.hops(), message.secs()), (0, 0));
    assert_eq!(message.chaddr(), GUEST_MAC.0);
    assert_eq!(datagram.payload[28..44], header().hardware_address);
    assert_eq!(datagram.payload[44..236], [0; 192]);
    assert_eq!(message.ciaddr(), Ipv4Addr::new(198, 51, 100, 7));
    assert_eq!(message.yiaddr(), Ipv4Addr::new(198, 51, 100, 2));
    assert_eq!(message.siaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(message.giaddr(), Ipv4Addr::new(192, 0, 2, 8));
    let options = message.opts();
    let us = Ipv4Addr::new(198, 51, 100, 1);
    let resolvers = vec![Ipv4Addr::new(198, 51, 100, 53), Ipv4Addr::new(192, 0, 2, 53)];
    for expected in [
        DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
        DhcpOption::Router(vec![us]),
        DhcpOption::DomainNameServer(resolvers),
        DhcpOption::Hostname("guest".into()),
        DhcpOption::InterfaceMtu(65520),
        DhcpOption::AddressLeaseTime(u32::MAX),
        DhcpOption::MessageType(MessageType::Offer),
        DhcpOption::ServerIdentifier(us),
    ] {
        assert_eq!(options.get(OptionCode::from(&expected)), Some(&expected));
    }
}

#[test]
fn each_message_type_has_its_answer() {
    // behaviour §4.3.2
    let settings = settings();
    let kind = |options| answered(&settings, options).into_iter().find(|(code, _)| *code == 53).unwrap().1;
    assert_eq!(kind(DISCOVER), [2]);
    assert_eq!(kind(&[53, 1, 1, 80, 0, 255]), [5], "rapid commit");
    assert_eq!(kind(REQUEST), [5]);
    assert_eq!(kind(&[53, 1, 3, 50, 4, 10, 0, 0, 1, 54, 4, 10, 0, 0, 2, 255]), [5], "never NAK");
    assert_eq!(kind(&[53, 1, 8]), [5], "inform");
    for other in [4, 7, 2, 200] {
        assert_eq!(reply(&settings, &request(&[53, 1, other])).err(), Some(Outcome::Ignored), "{other}");
    }
    assert_eq!(answered(&settings, &[53, 1, 1, 80, 0])[8], (80, vec![]));
    assert!(!codes(&settings, &[53, 1, 3, 80, 0]).contains(&80));
}

/// BOOTP messages with the magic cookie, without it, and with unknown vendor information (RFC 951, RFC 1534 §2).
#[test]
fn bootp_clients_get_an_address_and_no_options_of_dhcp() {
    let mut settings = settings();
    settings.v4.as_mut().unwrap().prefix_len = 32; // all essential options, with routes
    let mut known = header();
    known.client_address = [0; 4];
    let without_cookie = Header { magic: [0; 4], ..known };
    let foreign = Header { magic: *b"CMU\0", ..known }; // used by BOOTP clients before RFC 1048
    for (header, vendor) in
        [(known, [0; 60]), (known, [255; 60]), (without_cookie, [0; 60]), (foreign, [53; 60])]
    {
        let request = [header.as_bytes(), &vendor].concat();
        let reply = reply(&settings, &request).ok().unwrap();
        assert_eq!(reply.destination, Ipv4Addr::new(198, 51, 100, 2));
        assert_eq!(reply.message.len(), 300);
        let message = v4::Message::from_bytes(&reply.message).unwrap();
        assert_eq!((message.xid(), message.yiaddr()), (0x1234_5678, Ipv4Addr::new(198, 51, 100, 2)));
        let codes: Vec<u8> = message.opts().iter().map(|(&code, _)| code.into()).collect();
        for code in [1, 3, 121] {
            assert!(codes.contains(&code), "no {code} in {codes:?}");
        }
        for code in [51, 53, 54, 80] {
            assert!(!codes.contains(&code), "{code} is DHCP's");
        }
    }
}

/// A client that knows its address gets the answer at this address (RFC 951 §4).
#[test]
fn bootp_clients_with_an_address_are_answered_there() {
    let mut bytes = request(&[]);
    assert_eq!(reply(&settings(), &bytes).ok().unwrap().destination, Ipv4Addr::new(198, 51, 100, 7));
    bytes[12..16].fill(0);
    bytes[10] = 0x80;
    assert_eq!(reply(&settings(), &bytes).ok().unwrap().destination, Ipv4Addr::BROADCAST);
}

/// A DHCPINFORM gets an answer without a lease (RFC 2131 §4.3.5).
#[test]
fn an_inform_is_answered_without_a_lease() {
    let settings = settings();
    let inform = &[53, 1, 8, 55, 3, 51, 6, 1];
    let mut bytes = request(inform);
    bytes[10] = 0x80; // the broadcast flag has no effect
    let answer = reply(&settings, &bytes).ok().unwrap();
    assert_eq!(answer.destination, Ipv4Addr::new(198, 51, 100, 7), "the client's own address");
    let message = v4::Message::from_bytes(&answer.message).unwrap();
    assert_eq!(message.ciaddr(), Ipv4Addr::new(198, 51, 100, 7));
    assert_eq!(message.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert_eq!(codes(&settings, inform), [53, 6, 1, 3, 12, 26, 54, 81, 119]);
    for address in [[0; 4], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1]] {
        bytes[12..16].copy_from_slice(&address);
        assert_eq!(reply(&settings, &bytes).err(), Some(Outcome::Invalid), "{address:?}");
    }
}

#[test]
fn the_message_type_comes_first_r42() {
    // behaviour §4.3.4, §4.3.6
    let settings = settings();
    assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 6, 12, 26, 51, 54, 81, 119]);
    assert_eq!(codes(&settings, &[53, 1, 1, 55, 3, 119, 99, 3]), [53, 119, 3, 1, 6, 12, 26, 51, 54, 81]);
    assert_eq!(codes(&settings, &[53, 1, 1, 55, 2, 6, 53]), [6, 53, 1, 3, 12, 26, 51, 54, 81, 119]);
}

#[test]
fn the_broadcast_flag_is_honoured_r40() {
    let mut bytes = request(DISCOVER);
    bytes[10] = 0x80;
    let reply = reply(&settings(), &bytes).ok().unwrap();
    assert_eq!(reply.destination, Ipv4Addr::BROADCAST);
    assert_eq!(reply.message[10], 0x80);
}

#[test]
fn names_are_in_wire_format_and_the_search_list_is_compressed() {
    // behaviour §4.3.4, RFC 3397 §2, RFC 4702 §2
    let mut settings = settings();
    assert_eq!(option(&settings, 81), Some(b"\x04\xff\xff\x05guest\x07example\x04test\x00".to_vec()));
    settings.services.search = ["example.test", "corp.example.test.", "no..name"].map(Into::into).to_vec();
    assert_eq!(option(&settings, 119), Some(b"\x07example\x04test\x00\x04corp\xc0\x00".to_vec()));
}

#[test]
fn options_depend_on_the_settings() {
    // behaviour §4.3.4, §4.3.7
    let mut settings = settings();
    settings.mtu = 0;
    settings.services.advertise_dns = false;
    settings.services.advertise_search = false;
    settings.services.hostname = None;
    settings.services.fqdn = None;
    assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 51, 54]);
    settings.services.advertise_dns = true;
    settings.services.advertise_search = true;
    settings.v4.as_mut().unwrap().dns.clear();
    settings.services.search.clear();
    assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 51, 54]);
}

#[test]
fn a_gateway_outside_the_subnet_has_routes() {
    // behaviour §4.3.4, RFC 3442
    let mut settings = settings();
    assert_eq!(option(&settings, 121), None);
    settings.v4.as_mut().unwrap().prefix_len = 32;
    let routes = [32, 198, 51, 100, 1, 0, 0, 0, 0, 0, 198, 51, 100, 1];
    assert_eq!(option(&settings, 121), Some(routes.to_vec()));
}

#[test]
fn masks_of_all_lengths_r41() {
    assert_eq!(mask(0), Ipv4Addr::UNSPECIFIED);
    assert_eq!(mask(1), Ipv4Addr::new(128, 0, 0, 0));
    assert_eq!(mask(20), Ipv4Addr::new(255, 255, 240, 0));
    assert_eq!(mask(32), Ipv4Addr::BROADCAST);
    for len in 1..=32 {
        assert_eq!(mask(len).to_bits().leading_ones(), len.into());
        assert_eq!(mask(len).to_bits().count_ones(), len.into());
    }
}

#[test]
fn options_that_do_not_fit_are_left_out() {
    // Options have up to 307 bytes, and messages 300 to 548 bytes (behaviour §4.3.4).
    let mut settings = settings();
    settings.services.hostname = Some("h".repeat(250));
    settings.services.fqdn = Some(["x"; 120].join("."));
    let message = reply(&settings, &request(DISCOVER)).ok().unwrap().message;
    assert!(message.len() <= 548, "{} bytes", message.len());
    assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 6, 12, 26, 51, 54], "no room for 81, 119");
    assert_eq!(codes(&settings, &[53, 1, 1, 55, 1, 119]), [53, 119, 1, 3, 6, 26, 51, 54], "no room for 12");
    settings.services.fqdn = Some(["x"; 127].join(".")); // 255 bytes on the wire, 258 as an option
    settings.services.hostname = None;
    assert!(!codes(&settings, DISCOVER).contains(&81));
    settings.services.fqdn = None;
    settings.services.advertise_search = false;
    assert_eq!(reply(&settings, &request(DISCOVER)).ok().unwrap().message.len(), 300);
}

#[test]
fn pads_and_end_marks_anywhere_r58() {
    let settings = settings();
    for options in [
        &[0, 0, 53, 1, 1, 0, 0, 0, 55, 1, 51, 255][..],
        &[53, 1, 1, 0, 55, 1, 51],
        &[53, 1, 1, 55, 1, 51, 255, 53, 1, 4, 255, 7],
        &[53, 1, 1, 12, 2, 0xff, 0xfe, 55, 1, 51, 255, 255], // a host name that is not UTF-8
    ] {
        assert_eq!(codes(&settings, options)[..2], [53, 51], "{options:?}");
    }
}

#[test]
fn malformed_messages_are_invalid() {
    // behaviour §4.3.1, §4.3.5
    let settings = settings();
    let invalid = |bytes: &[u8]| assert_eq!(reply(&settings, bytes).err(), Some(Outcome::Invalid));
    for options in [&[53][..], &[53, 1], &[53, 2, 1], &[53, 0], &[53, 1, 1, 55], &[53, 1, 1, 55, 9, 1, 3]] {
        invalid(&request(options));
    }
    let good = request(DISCOVER);
    invalid(&good[..239]);
    invalid(&[]);
    let mut reply = good;
    reply[0] = BOOT_REPLY;
    invalid(&reply);
}

/// A declined or released address is not the guest's until it is leased again (RFC 2131 §4.3.3, §4.3.4).
#[test]
fn a_lease_ends_by_decline_or_release() {
    let settings = settings();
    let mut guest = Guest::new(&settings, Some(GUEST_MAC));
    let assigned = Some(Ipv4Addr::new(198, 51, 100, 2));
    let mut say = |options: &[u8], client: [u8; 4]| {
        let mut message = request(options);
        message[12..16].copy_from_slice(&client);
        let ends = ("0.0.0.0", "255.255.255.255");
        let outcome = udp(&settings, &mut guest, ends, 67, &message, &mut Capture::default());
        (outcome, guest.v4())
    };
    assert_eq!(say(REQUEST, [0; 4]), (Outcome::Answered, assigned));
    let (other, own) = ([198, 51, 100, 9], [198, 51, 100, 2]);
    assert_eq!(say(&[53, 1, 4, 50, 4, 198, 51, 100, 9, 255], [0; 4]), (Outcome::Ignored, assigned));
    assert_eq!(say(&[53, 1, 4, 255], [0; 4]), (Outcome::Ignored, assigned));
    assert_eq!(say(&[53, 1, 4, 50, 4, 198, 51, 100, 2, 255], [0; 4]), (Outcome::Ignored, None));
    assert_eq!(say(REQUEST, [0; 4]), (Outcome::Answered, assigned));
    assert_eq!(say(&[53, 1, 7, 255], other), (Outcome::Ignored, assigned));
    assert_eq!(say(&[53, 1, 7, 255], own), (Outcome::Ignored, None));
    assert_eq!(say(DISCOVER, [0; 4]), (Outcome::Answered, None), "an offer makes no lease");
}

#[test]
fn without_server_or_gateway_nothing_is_answered() {
    // behaviour §4.3.1, §3.3, R-34
    let on = settings();
    let off: [fn(&mut Settings); 3] = [
        |all| all.services.dhcp = false,
        |all| all.v4.as_mut().unwrap().our_address = None,
        |all| all.v4 = None,
    ];
    for switch in off {
        let mut settings = on.clone();
        switch(&mut settings);
        let mut guest = Guest::new(&settings, Some(Mac::BROADCAST));
        let mut link = Capture::default();
        let outcome = udp(&settings, &mut guest, ("0.0.0.0", "10.0.0.1"), 67, &request(DISCOVER), &mut link);
        assert_eq!((outcome, link.frames.len()), (Outcome::Ignored, 0));
    }
}

proptest! {
    #[test]
    fn no_options_make_us_panic(
        options in proptest::collection::vec(any::<u8>(), 0..300),
        changes in proptest::collection::vec((0..600usize, any::<u8>()), 0..6),
    ) {
        let settings = settings();
        let mut bytes = request(&[DISCOVER, &options].concat());
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(reply) = reply(&settings, &bytes) {
            prop_assert!((300..=548).contains(&reply.message.len()));
        }
    }
}
