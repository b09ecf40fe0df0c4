//! DHCPv4: the one address that there is, to whoever asks (RFC 2131, RFC 2132, SPEC §4.3).
//!
//! The values of options are `dhcproto`'s. Messages around them are read and written here: its
//! decoder drops a whole message for a host name that is not UTF-8 and panics on a hardware address
//! length that is too large, its options have no order, and its constructors ask the system for randomness.

use alloc::{vec, vec::Vec};
use core::net::Ipv4Addr;

use dhcproto::{
    Encodable, Encoder, Name,
    v4::{DhcpOption, MessageType, OptionCode, UnknownOption},
};
use ipnet::Ipv4Net;
use wire::domain;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use super::Outcome;
use crate::addr::{Settings, V4};

/// Port of the server.
pub(super) const SERVER_PORT: u16 = 67;
/// Port of the client.
pub(super) const CLIENT_PORT: u16 = 68;

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const BROADCAST: u16 = 0x8000;
const PAD: u8 = 0;
const END: u8 = 255;
const INFINITE: u32 = u32::MAX;

/// Most bytes of options, end mark included: what every client takes, in a packet of 576 bytes (RFC 2131 §2).
const MAX_OPTIONS_LEN: usize = 308;
/// Least bytes of options: BOOTP clients expect messages of 300 bytes (RFC 1542 §2.1).
const MIN_OPTIONS_LEN: usize = 60;

/// A message up to its options (RFC 2131 §2), with the magic number (RFC 2132 §2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    op: u8,
    hardware_type: u8,
    hardware_len: u8,
    hops: u8,
    transaction: U32,
    seconds: U16,
    flags: U16,
    client_address: [u8; 4],
    your_address: [u8; 4],
    server_address: [u8; 4],
    relay_address: [u8; 4],
    hardware_address: [u8; 16],
    server_name: [u8; 64],
    file: [u8; 128],
    magic: [u8; 4],
}

/// An answer.
pub(super) struct Reply {
    /// From whom.
    pub(super) source: Ipv4Addr,
    /// To whom: the new address, or broadcast where the client asks for it.
    pub(super) destination: Ipv4Addr,
    /// The message.
    pub(super) message: Vec<u8>,
}

/// The answer to a message, or why there is none.
pub(super) fn reply(settings: &Settings, request: &[u8]) -> Result<Reply, Outcome> {
    let v4 = settings.v4.as_ref().filter(|_| settings.services.dhcp).ok_or(Outcome::Ignored)?;
    let our_address = v4.our_address.ok_or(Outcome::Ignored)?;
    let (header, options) = Header::ref_from_prefix(request).map_err(|_| Outcome::Invalid)?;
    if header.op != BOOT_REQUEST || header.magic != dhcproto::v4::MAGIC {
        return Err(Outcome::Invalid);
    }
    let question = Question::parse(options).ok_or(Outcome::Invalid)?;
    let (kind, rapid_commit) = match question.kind.map(MessageType::from) {
        Some(MessageType::Discover) if question.rapid_commit => (MessageType::Ack, true),
        Some(MessageType::Discover) => (MessageType::Offer, false),
        Some(MessageType::Request) | None => (MessageType::Ack, false), // none: BOOTP
        Some(_) => return Err(Outcome::Ignored),
    };

    let mut message = answer(header, v4).as_bytes().to_vec();
    let options = offered(settings, v4, our_address, kind, rapid_commit);
    message.extend(encode(options, question.parameters));
    let broadcast = header.flags.get() & BROADCAST != 0;
    let destination = if broadcast { Ipv4Addr::BROADCAST } else { v4.assigned };
    Ok(Reply { source: our_address, destination, message })
}

/// The options of a request that matter.
#[derive(Default)]
struct Question<'a> {
    kind: Option<u8>,
    parameters: &'a [u8],
    rapid_commit: bool,
}

impl<'a> Question<'a> {
    /// Pads may stand anywhere, and the end mark may be missing. None if an option runs past the
    /// message.
    fn parse(mut options: &'a [u8]) -> Option<Self> {
        let mut question = Self::default();
        loop {
            let (code, len, rest) = match *options {
                [] | [END, ..] => return Some(question),
                [PAD, ref rest @ ..] => {
                    options = rest;
                    continue;
                }
                [code, len, ref rest @ ..] => (code, len, rest),
                [_] => return None,
            };
            let (value, rest) = rest.split_at_checked(usize::from(len))?;
            options = rest;
            match OptionCode::from(code) {
                OptionCode::MessageType => question.kind = Some(*value.first()?),
                OptionCode::ParameterRequestList => question.parameters = value,
                OptionCode::RapidCommit => question.rapid_commit = true,
                _ => {}
            }
        }
    }
}

/// The reply's header: what identifies the transaction is copied, all else is ours or zero.
fn answer(request: &Header, v4: &V4) -> Header {
    Header {
        op: BOOT_REPLY,
        hops: 0,
        seconds: U16::ZERO,
        your_address: v4.assigned.octets(),
        server_address: [0; 4],
        server_name: [0; 64],
        file: [0; 128],
        ..*request
    }
}

/// What we tell, by ascending code.
fn offered(
    settings: &Settings,
    v4: &V4,
    our_address: Ipv4Addr,
    kind: MessageType,
    rapid_commit: bool,
) -> Vec<DhcpOption> {
    let services = &settings.services;
    let mask = mask(v4.prefix_len);
    let mut options = vec![DhcpOption::SubnetMask(mask), DhcpOption::Router(vec![our_address])];
    if services.advertise_dns {
        options.push(DhcpOption::DomainNameServer(v4.dns.clone()));
    }
    if let Some(hostname) = &services.hostname {
        options.push(DhcpOption::Hostname(hostname.clone()));
    }
    if settings.mtu != 0 {
        options.push(DhcpOption::InterfaceMtu(settings.mtu));
    }
    options.push(DhcpOption::AddressLeaseTime(INFINITE));
    options.push(DhcpOption::MessageType(kind));
    options.push(DhcpOption::ServerIdentifier(our_address));
    if rapid_commit {
        options.push(DhcpOption::RapidCommit);
    }
    options.extend(services.fqdn.as_deref().and_then(client_fqdn));
    if services.advertise_search {
        let names = services.search.iter().filter_map(|name| Name::from_labels(domain::labels(name)?).ok());
        options.push(DhcpOption::DomainSearch(names.collect()));
    }
    if our_address & mask != v4.assigned & mask {
        let to_us = (Ipv4Net::from(our_address), Ipv4Addr::UNSPECIFIED);
        let default = (Ipv4Net::default(), our_address);
        options.push(DhcpOption::ClasslessStaticRoute(vec![to_us, default]));
    }
    options
}

/// The network mask of a prefix length, 0 to 32.
fn mask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = u32::MAX.checked_shr(prefix_len.into()).unwrap_or(0);
    Ipv4Addr::from_bits(!host_bits)
}

/// The client's name (RFC 4702): in wire format, and no updates by anyone but the client. None if that
/// is no name, or too long for an option.
fn client_fqdn(name: &str) -> Option<DhcpOption> {
    let (flags, result_codes) = (0x04, [0xff, 0xff]);
    let mut data = vec![flags, result_codes[0], result_codes[1]];
    data.resize(usize::from(u8::MAX), 0);
    let len = domain::encode(name, &mut data[3..])?;
    data.truncate(3 + len);
    Some(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFQDN, data)))
}

/// The options in the order that the client's list asks for, the others behind them by code. The message type
/// comes first if the client did not place it. Of those that a lease can do without, the ones that
/// do not fit are left out.
fn encode(mut options: Vec<DhcpOption>, parameters: &[u8]) -> Vec<u8> {
    const BEHIND: usize = 256;
    options.sort_by_key(|option| {
        let code = OptionCode::from(option);
        match parameters.iter().position(|&parameter| parameter == u8::from(code)) {
            Some(place) => 1 + place,
            None if code == OptionCode::MessageType => 0,
            None => BEHIND + usize::from(u8::from(code)),
        }
    });
    let encoded: Vec<(bool, Vec<u8>)> =
        options.iter().filter_map(|option| Some((is_essential(option), encode_option(option)?))).collect();
    let essential: usize =
        encoded.iter().filter(|(essential, _)| *essential).map(|(_, bytes)| bytes.len()).sum();
    let mut room = (MAX_OPTIONS_LEN - 1).saturating_sub(essential);
    let mut bytes = Vec::with_capacity(MAX_OPTIONS_LEN);
    for (essential, option) in encoded {
        if essential {
            bytes.extend(option);
        } else if let Some(left) = room.checked_sub(option.len()) {
            room = left;
            bytes.extend(option);
        }
    }
    bytes.push(END);
    if bytes.len() < MIN_OPTIONS_LEN {
        bytes.resize(MIN_OPTIONS_LEN, PAD);
    }
    bytes
}

fn encode_option(option: &DhcpOption) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    option.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

/// Whether a lease is worth nothing without it. All of these together fill a tenth of the room.
const fn is_essential(option: &DhcpOption) -> bool {
    matches!(
        option,
        DhcpOption::SubnetMask(_)
            | DhcpOption::Router(_)
            | DhcpOption::AddressLeaseTime(_)
            | DhcpOption::MessageType(_)
            | DhcpOption::ServerIdentifier(_)
            | DhcpOption::RapidCommit
            | DhcpOption::ClasslessStaticRoute(_)
    )
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use dhcproto::{
        Decodable,
        v4::{self, Opcode},
    };
    use proptest::prelude::*;
    use wire::{ethernet::Mac, frame::Transport};

    use super::*;
    use crate::{
        addr::{Guest, test::settings},
        local::test::{GUEST_MAC, Kept, udp},
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

    /// The options of the answer, in order, end mark and pads left out.
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
        // SPEC §4.3.3, §4.3.4
        let settings = settings();
        let mut guest = Guest::new(&settings, Some(GUEST_MAC));
        let mut link = Kept::default();
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
        // SPEC §4.3.2
        let settings = settings();
        let kind =
            |options| answered(&settings, options).into_iter().find(|(code, _)| *code == 53).unwrap().1;
        assert_eq!(kind(DISCOVER), [2]);
        assert_eq!(kind(&[53, 1, 1, 80, 0, 255]), [5], "rapid commit");
        assert_eq!(kind(REQUEST), [5]);
        assert_eq!(kind(&[53, 1, 3, 50, 4, 10, 0, 0, 1, 54, 4, 10, 0, 0, 2, 255]), [5], "never NAK");
        assert_eq!(kind(&[]), [5], "BOOTP");
        for other in [4, 7, 8, 2, 200] {
            assert_eq!(reply(&settings, &request(&[53, 1, other])).err(), Some(Outcome::Ignored), "{other}");
        }
        assert_eq!(answered(&settings, &[53, 1, 1, 80, 0])[8], (80, vec![]));
        assert!(!codes(&settings, &[53, 1, 3, 80, 0]).contains(&80));
    }

    #[test]
    fn r_42_the_message_type_comes_first() {
        // SPEC §4.3.4, §4.3.6
        let settings = settings();
        assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 6, 12, 26, 51, 54, 81, 119]);
        assert_eq!(codes(&settings, &[53, 1, 1, 55, 3, 119, 99, 3]), [53, 119, 3, 1, 6, 12, 26, 51, 54, 81]);
        assert_eq!(codes(&settings, &[53, 1, 1, 55, 2, 6, 53]), [6, 53, 1, 3, 12, 26, 51, 54, 81, 119]);
    }

    #[test]
    fn r_40_the_broadcast_flag_is_honoured() {
        let mut bytes = request(DISCOVER);
        bytes[10] = 0x80;
        let reply = reply(&settings(), &bytes).ok().unwrap();
        assert_eq!(reply.destination, Ipv4Addr::BROADCAST);
        assert_eq!(reply.message[10], 0x80);
    }

    #[test]
    fn names_are_in_wire_format_and_the_search_list_is_compressed() {
        // SPEC §4.3.4, RFC 3397 §2, RFC 4702 §2
        let mut settings = settings();
        assert_eq!(option(&settings, 81), Some(b"\x04\xff\xff\x05guest\x07example\x04test\x00".to_vec()));
        settings.services.search =
            ["example.test", "corp.example.test.", "no..name"].map(Into::into).to_vec();
        assert_eq!(option(&settings, 119), Some(b"\x07example\x04test\x00\x04corp\xc0\x00".to_vec()));
    }

    #[test]
    fn options_depend_on_what_is_on() {
        // SPEC §4.3.4, §4.3.7
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
        // SPEC §4.3.4, RFC 3442
        let mut settings = settings();
        assert_eq!(option(&settings, 121), None);
        settings.v4.as_mut().unwrap().prefix_len = 32;
        let routes = [32, 198, 51, 100, 1, 0, 0, 0, 0, 0, 198, 51, 100, 1];
        assert_eq!(option(&settings, 121), Some(routes.to_vec()));
    }

    #[test]
    fn r_41_masks_of_all_lengths() {
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
    fn what_does_not_fit_is_left_out() {
        // SPEC §4.3.4: 307 bytes of options, messages of 300 to 548 bytes
        let mut settings = settings();
        settings.services.hostname = Some("h".repeat(250));
        settings.services.fqdn = Some(["x"; 120].join("."));
        let message = reply(&settings, &request(DISCOVER)).ok().unwrap().message;
        assert!(message.len() <= 548, "{} bytes", message.len());
        assert_eq!(codes(&settings, DISCOVER), [53, 1, 3, 6, 12, 26, 51, 54], "no room for 81, 119");
        assert_eq!(
            codes(&settings, &[53, 1, 1, 55, 1, 119]),
            [53, 119, 1, 3, 6, 26, 51, 54],
            "no room for 12"
        );
        settings.services.fqdn = Some(["x"; 127].join(".")); // 255 bytes on the wire, 258 as an option
        settings.services.hostname = None;
        assert!(!codes(&settings, DISCOVER).contains(&81));
        settings.services.fqdn = None;
        settings.services.advertise_search = false;
        assert_eq!(reply(&settings, &request(DISCOVER)).ok().unwrap().message.len(), 300);
    }

    #[test]
    fn r_58_pads_and_end_marks_anywhere() {
        let settings = settings();
        for options in [
            &[0, 0, 53, 1, 1, 0, 0, 0, 55, 1, 51, 255][..],
            &[53, 1, 1, 0, 55, 1, 51],
            &[53, 1, 1, 55, 1, 51, 255, 53, 1, 4, 255, 7],
            &[53, 1, 1, 12, 2, 0xff, 0xfe, 55, 1, 51, 255, 255], // a host name that is no UTF-8
        ] {
            assert_eq!(codes(&settings, options)[..2], [53, 51], "{options:?}");
        }
    }

    #[test]
    fn malformed_messages_are_invalid() {
        // SPEC §4.3.1, §4.3.5
        let settings = settings();
        let invalid = |bytes: &[u8]| assert_eq!(reply(&settings, bytes).err(), Some(Outcome::Invalid));
        for options in [&[53][..], &[53, 1], &[53, 2, 1], &[53, 0], &[53, 1, 1, 55], &[53, 1, 1, 55, 9, 1, 3]]
        {
            invalid(&request(options));
        }
        let good = request(DISCOVER);
        invalid(&good[..239]);
        invalid(&[]);
        let mut reply = good.clone();
        reply[0] = BOOT_REPLY;
        invalid(&reply);
        let mut magic = good;
        magic[239] ^= 1;
        invalid(&magic);
    }

    #[test]
    fn without_server_or_gateway_the_port_is_silent() {
        // SPEC §4.3.1, §3.3, R-34
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
            let mut link = Kept::default();
            let outcome =
                udp(&settings, &mut guest, ("0.0.0.0", "10.0.0.1"), 67, &request(DISCOVER), &mut link);
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
}
