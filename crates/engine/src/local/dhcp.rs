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
/// comes first if the client did not place it. Options that do not fit are left out.
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
    let mut bytes = Vec::with_capacity(MAX_OPTIONS_LEN);
    for option in options {
        let mut encoded = Vec::new();
        let fits = option.encode(&mut Encoder::new(&mut encoded)).is_ok()
            && bytes.len() + encoded.len() < MAX_OPTIONS_LEN;
        if fits {
            bytes.append(&mut encoded);
        }
    }
    bytes.push(END);
    if bytes.len() < MIN_OPTIONS_LEN {
        bytes.resize(MIN_OPTIONS_LEN, PAD);
    }
    bytes
}
