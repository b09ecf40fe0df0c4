//! DHCPv4 and BOOTP: offers the one guest address to each client that requests an address (RFC 2131, RFC 2132, RFC
//! 951, behaviour §4.3).
//!
//! `dhcproto` encodes the values of options. This module reads and writes the messages itself, since `dhcproto` has
//! these limits: the decoder rejects a whole message if the host name is not UTF-8, and panics if a hardware address
//! length is too large. The options have no order, and the constructors use the system's random numbers.

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

use super::{Binding, Outcome};
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

/// Maximum number of bytes of options, including the end mark. Every client accepts this many, in a packet of 576
/// bytes (RFC 2131 §2).
const MAX_OPTIONS_LEN: usize = 308;
/// Length of BOOTP's vendor information after the magic cookie, in bytes. Clients expect messages of at least 300
/// bytes (RFC 1542 §2.1), and BOOTP clients accept no more than 300 bytes (RFC 1534 §2).
const BOOTP_OPTIONS_LEN: usize = 60;

/// A message up to its options (RFC 2131 §2). The last field is the magic cookie (RFC 2132 §2) or other vendor
/// information of BOOTP clients.
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

/// A reply, with its source and destination addresses.
pub(super) struct Reply {
    /// Source address: the server's address.
    pub(super) source: Ipv4Addr,
    /// Destination address: the client's address if the client has one, else the new address. If the client requests
    /// broadcast, the broadcast address.
    pub(super) destination: Ipv4Addr,
    /// The message.
    pub(super) message: Vec<u8>,
    /// How the reply changes the client's lease of the assigned address.
    pub(super) binding: Option<Binding>,
}

/// The kinds of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// A DHCPOFFER.
    Offer,
    /// A DHCPACK with an address. It is also the answer to a DHCPDISCOVER if the client requests rapid commit (RFC
    /// 4039).
    Ack { rapid_commit: bool },
    /// A DHCPACK to a DHCPINFORM: the client has an address and gets none (RFC 2131 §4.3.5).
    Information,
    /// A BOOTREPLY to a BOOTP client, without the options that are defined for DHCP only (RFC 1534 §2).
    Bootp,
}

/// The reply to a message, or the reason why there is no reply.
pub(super) fn reply(settings: &Settings, request: &[u8]) -> Result<Reply, Outcome> {
    let v4 = settings.v4.as_ref().filter(|_| settings.services.dhcp).ok_or(Outcome::Ignored)?;
    let our_address = v4.our_address.ok_or(Outcome::Ignored)?;
    let (header, options) = Header::ref_from_prefix(request).map_err(|_| Outcome::Invalid)?;
    if header.op != BOOT_REQUEST {
        return Err(Outcome::Invalid);
    }
    // A message without the cookie is a BOOTP message, with vendor information of an unknown form (RFC 951 §3).
    let options = if header.magic == dhcproto::v4::MAGIC { options } else { &[] };
    let question = Question::parse(options).ok_or(Outcome::Invalid)?;
    let answer = question.answer().ok_or(Outcome::Ignored)?;
    let destination = destination(settings, v4, header, answer)?;
    let mut message = reply_header(header, v4, answer).as_bytes().to_vec();
    let max_len = if answer == Answer::Bootp { BOOTP_OPTIONS_LEN } else { MAX_OPTIONS_LEN };
    message.extend(encode(offered(settings, v4, our_address, answer), question.parameters, max_len));
    let binds = matches!(answer, Answer::Ack { .. } | Answer::Bootp);
    Ok(Reply { source: our_address, destination, message, binding: binds.then_some(Binding::Made) })
}

/// The effect of a DHCPDECLINE or DHCPRELEASE on the lease of the assigned address (RFC 2131 §4.3.3, §4.3.4). These
/// messages get no answer. None if the message does not end the lease.
pub(super) fn ends(settings: &Settings, request: &[u8]) -> Option<Binding> {
    let v4 = settings.v4.as_ref().filter(|_| settings.services.dhcp)?;
    let (header, options) = Header::ref_from_prefix(request).ok()?;
    let question = Question::parse(options)
        .filter(|_| header.op == BOOT_REQUEST && header.magic == dhcproto::v4::MAGIC)?;
    let assigned = v4.assigned.octets();
    match MessageType::from(question.kind?) {
        MessageType::Decline if question.requested == Some(assigned) => Some(Binding::Declined),
        MessageType::Release if header.client_address == assigned => Some(Binding::Released),
        _ => None,
    }
}

/// The destination address of a reply. A client that needs no address gets the reply at its own address (RFC 2131
/// §4.3.5, RFC 951 §4).
fn destination(settings: &Settings, v4: &V4, request: &Header, answer: Answer) -> Result<Ipv4Addr, Outcome> {
    let client = Ipv4Addr::from(request.client_address);
    match answer {
        Answer::Information | Answer::Bootp if settings.valid_guest_source(client.into()) => Ok(client),
        Answer::Information => Err(Outcome::Invalid),
        _ if request.flags.get() & BROADCAST != 0 => Ok(Ipv4Addr::BROADCAST),
        _ => Ok(v4.assigned),
    }
}

/// The options of a request that affect the answer.
#[derive(Default)]
struct Question<'a> {
    kind: Option<u8>,
    parameters: &'a [u8],
    requested: Option<[u8; 4]>,
    rapid_commit: bool,
}

impl<'a> Question<'a> {
    /// The kind of the answer. None if the message needs no answer.
    fn answer(&self) -> Option<Answer> {
        match self.kind.map(MessageType::from) {
            None => Some(Answer::Bootp),
            Some(MessageType::Discover) if self.rapid_commit => Some(Answer::Ack { rapid_commit: true }),
            Some(MessageType::Discover) => Some(Answer::Offer),
            Some(MessageType::Request) => Some(Answer::Ack { rapid_commit: false }),
            Some(MessageType::Inform) => Some(Answer::Information),
            Some(_) => None,
        }
    }

    /// Parses the options. Pads may be anywhere, and the end mark may be missing. Returns none if an option
    /// extends past the end of the message.
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
                OptionCode::RequestedIpAddress => question.requested = value.try_into().ok(),
                OptionCode::ParameterRequestList => question.parameters = value,
                OptionCode::RapidCommit => question.rapid_commit = true,
                _ => {}
            }
        }
    }
}

/// The reply's header. The fields that identify the transaction are copied from the request. All others are set here
/// or are zero.
fn reply_header(request: &Header, v4: &V4, answer: Answer) -> Header {
    Header {
        op: BOOT_REPLY,
        hops: 0,
        seconds: U16::ZERO,
        your_address: if answer == Answer::Information { [0; 4] } else { v4.assigned.octets() },
        server_address: [0; 4],
        server_name: [0; 64],
        file: [0; 128],
        magic: dhcproto::v4::MAGIC,
        ..*request
    }
}

/// The options of an answer, in ascending order of their codes.
fn offered(settings: &Settings, v4: &V4, our_address: Ipv4Addr, answer: Answer) -> Vec<DhcpOption> {
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
    if matches!(answer, Answer::Offer | Answer::Ack { .. }) {
        options.push(DhcpOption::AddressLeaseTime(INFINITE));
    }
    if answer != Answer::Bootp {
        let kind = if answer == Answer::Offer { MessageType::Offer } else { MessageType::Ack };
        options.push(DhcpOption::MessageType(kind));
        options.push(DhcpOption::ServerIdentifier(our_address));
    }
    if answer == (Answer::Ack { rapid_commit: true }) {
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

/// The option with the client's name (RFC 4702), in wire format. According to its flags, the client updates the DNS
/// itself. None if `name` is not a valid domain name, or is too long for an option.
fn client_fqdn(name: &str) -> Option<DhcpOption> {
    let (flags, result_codes) = (0x04, [0xff, 0xff]);
    let mut data = vec![flags, result_codes[0], result_codes[1]];
    data.resize(usize::from(u8::MAX), 0);
    let len = domain::encode(name, &mut data[3..])?;
    data.truncate(3 + len);
    Some(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFQDN, data)))
}

/// Encodes the options in the order of the client's parameter list, then the other options in ascending order of their
/// codes. The message type comes first if the client's list does not contain it. Options that are not essential
/// for a lease are left out if they do not fit in `max_len` bytes.
fn encode(mut options: Vec<DhcpOption>, parameters: &[u8], max_len: usize) -> Vec<u8> {
    const AFTER_LISTED: usize = 256;
    // Each code occurs once.
    options.sort_unstable_by_key(|option| {
        let code = OptionCode::from(option);
        match parameters.iter().position(|&parameter| parameter == u8::from(code)) {
            Some(place) => 1 + place,
            None if code == OptionCode::MessageType => 0,
            None => AFTER_LISTED + usize::from(u8::from(code)),
        }
    });
    let encoded: Vec<(bool, Vec<u8>)> =
        options.iter().filter_map(|option| Some((is_essential(option), encode_option(option)?))).collect();
    let essential: usize =
        encoded.iter().filter(|(essential, _)| *essential).map(|(_, bytes)| bytes.len()).sum();
    let mut room = (max_len - 1).saturating_sub(essential);
    let mut bytes = Vec::with_capacity(max_len);
    for (essential, option) in encoded {
        if essential {
            bytes.extend(option);
        } else if let Some(left) = room.checked_sub(option.len()) {
            room = left;
            bytes.extend(option);
        }
    }
    bytes.push(END);
    if bytes.len() < BOOTP_OPTIONS_LEN {
        bytes.resize(BOOTP_OPTIONS_LEN, PAD);
    }
    bytes
}

fn encode_option(option: &DhcpOption) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    option.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

/// Whether a lease is useless without the option. All essential options together take two thirds of the room of a BOOTP
/// message, and a smaller part of a DHCP message.
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
mod tests;
