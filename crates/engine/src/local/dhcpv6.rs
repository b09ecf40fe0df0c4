//! DHCPv6: leases the one guest address to each client that requests an address (RFC 8415, behaviour §4.4; Q5).
//!
//! The server stores no bindings: the client has the address for an infinite lifetime. `dhcproto` encodes the options
//! of answers. This module reads requests itself: the decoder of `dhcproto` subtracts from length fields without a
//! check, and its recursion for nested options is not bounded. This module also writes names itself: `dhcproto` would
//! compress them, which RFC 8415 §10 forbids.

use alloc::{string::String, vec, vec::Vec};
use core::net::Ipv6Addr;

use dhcproto::{
    Encodable, Encoder,
    v6::{
        DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IATA, MessageType, OptionCode, Status, StatusCode,
        UnknownOption,
    },
};
use wire::{domain, ethernet::Mac};

use super::{Binding, Outcome};
use crate::addr::{Settings, V6};

/// Port of the server.
pub(super) const SERVER_PORT: u16 = 547;
/// Port of the client.
pub(super) const CLIENT_PORT: u16 = 546;

const INFINITE: u32 = u32::MAX;
/// Maximum length of the identifier of a client or server (RFC 8415 §11.1), in bytes.
const MAX_DUID_LEN: usize = 130;
/// Maximum number of identity associations in a message. Clients have one or two. Each association gets an answer.
const MAX_ASSOCIATIONS: usize = 16;
/// Maximum number of addresses in an identity association.
const MAX_ADDRESSES: usize = 16;
/// Flags of the option "client FQDN" (RFC 4704 §4.1): the server updates the name, and the server overrides the
/// client's preference.
const FQDN_SERVER_UPDATES: u8 = 1;
const FQDN_OVERRIDDEN: u8 = 2;

/// An answer of the server.
pub(super) struct Reply {
    /// The message.
    pub(super) message: Vec<u8>,
    /// Flow label for the packet: 20 bits of the transaction ID.
    pub(super) flow_label: u32,
    /// How the answer changes the client's lease of the assigned address.
    pub(super) binding: Option<Binding>,
}

/// The answer to a message, or the reason why there is no answer.
pub(super) fn reply(settings: &Settings, request: &[u8]) -> Result<Reply, Outcome> {
    let v6 = settings.v6.as_ref().filter(|_| settings.services.dhcpv6).ok_or(Outcome::Ignored)?;
    let assigned = v6.assigned.ok_or(Outcome::Ignored)?;
    let question = Question::parse(request).ok_or(Outcome::Invalid)?;
    let our_id = server_id(settings.services.start_since_2000, settings.our_mac);
    question.check_identifiers(&our_id)?;

    let mut kind = MessageType::Reply;
    let mut options = vec![DhcpOption::ServerId(our_id.to_vec())];
    let mut gives = false;
    match question.kind {
        MessageType::Solicit | MessageType::Request | MessageType::Renew | MessageType::Rebind => {
            let associations = question.associate(assigned);
            gives = associations.iter().any(|option| gives_address(option, assigned));
            if question.kind == MessageType::Solicit {
                // After a Reply without a binding, the client would start again at once (RFC 8415 §18.3.1, §18.3.9).
                if question.rapid_commit && gives {
                    options.push(DhcpOption::RapidCommit);
                } else {
                    kind = MessageType::Advertise;
                }
            }
            options.extend(associations);
            options.extend(configuration(settings, v6, &question));
        }
        MessageType::Confirm => options.push(question.confirm(assigned)?),
        MessageType::InformationRequest if question.associations.is_empty() => {
            options.extend(configuration(settings, v6, &question));
        }
        MessageType::InformationRequest => return Err(Outcome::Invalid),
        MessageType::Release | MessageType::Decline => {
            options.push(status(Status::Success, ""));
            options.extend(question.unbound(assigned));
        }
        _ => return Err(Outcome::Ignored),
    }
    options.extend(question.client_id.map(|id| DhcpOption::ClientId(id.to_vec())));
    let binding = match question.kind {
        MessageType::Decline => Some(Binding::Declined).filter(|_| question.names(assigned)),
        MessageType::Release => Some(Binding::Released).filter(|_| question.names(assigned)),
        _ => (gives && kind == MessageType::Reply).then_some(Binding::Made),
    };
    let [a, b, c] = question.transaction;
    Ok(Reply {
        message: encode(kind, question.transaction, &options).ok_or(Outcome::Invalid)?,
        flow_label: u32::from_be_bytes([0, a & 0xf, b, c]),
        binding,
    })
}

/// The parts of a client's message that affect the answer.
struct Question<'a> {
    kind: MessageType,
    transaction: [u8; 3],
    client_id: Option<&'a [u8]>,
    server_id: Option<&'a [u8]>,
    rapid_commit: bool,
    fqdn_flags: Option<u8>,
    associations: Vec<Association>,
}

/// An identity association: the unit for which a client requests addresses or prefixes (RFC 8415 §12).
struct Association {
    kind: AssociationKind,
    id: u32,
    /// The addresses that the client has or prefers.
    addresses: Vec<Ipv6Addr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AssociationKind {
    Addresses,
    TemporaryAddresses,
    Prefixes,
}

impl<'a> Question<'a> {
    /// Parses a message. Returns none if an option extends past its container, or is too short for its fixed fields.
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (&[kind, transaction @ ..], options) = message.split_first_chunk::<4>()?;
        let mut question = Self {
            kind: kind.into(),
            transaction,
            client_id: None,
            server_id: None,
            rapid_commit: false,
            fqdn_flags: None,
            associations: Vec::new(),
        };
        for option in Options(options) {
            let (code, value) = option?;
            let duid = || (1..=MAX_DUID_LEN).contains(&value.len()).then_some(value);
            match code {
                OptionCode::ClientId => question.client_id = Some(duid()?),
                OptionCode::ServerId => question.server_id = Some(duid()?),
                OptionCode::RapidCommit => question.rapid_commit = true,
                OptionCode::ClientFqdn => question.fqdn_flags = Some(*value.first()?),
                OptionCode::IANA => question.push(AssociationKind::Addresses, value, 12)?,
                OptionCode::IATA => question.push(AssociationKind::TemporaryAddresses, value, 4)?,
                OptionCode::IAPD => question.push(AssociationKind::Prefixes, value, 12)?,
                _ => {}
            }
        }
        Some(question)
    }

    /// Adds an association with a fixed part of `fixed_len` bytes.
    fn push(&mut self, kind: AssociationKind, value: &[u8], fixed_len: usize) -> Option<()> {
        let (fixed, options) = value.split_at_checked(fixed_len)?;
        let id = u32::from_be_bytes(*fixed.first_chunk()?);
        let mut addresses = Vec::new();
        for option in Options(options) {
            if let (OptionCode::IAAddr, value) = option? {
                addresses.push(Ipv6Addr::from(*value.first_chunk::<16>()?));
            }
        }
        if self.associations.len() == MAX_ASSOCIATIONS || addresses.len() > MAX_ADDRESSES {
            return None;
        }
        self.associations.push(Association { kind, id, addresses });
        Some(())
    }

    /// Checks the identifiers of client and server. For each of them, the kind of message determines whether it is
    /// required or forbidden (RFC 8415 §16.2 to §16.12).
    fn check_identifiers(&self, our_id: &[u8]) -> Result<(), Outcome> {
        let (client, server) = match self.kind {
            MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
                (self.client_id.is_some(), self.server_id.is_none())
            }
            MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
                (self.client_id.is_some(), self.server_id.is_some())
            }
            _ => (true, true),
        };
        if !client || !server {
            return Err(Outcome::Invalid);
        }
        if self.server_id.is_some_and(|id| id != our_id) {
            return Err(Outcome::Ignored); // the message is for another server
        }
        Ok(())
    }

    /// The answers to all associations. The first association that can have the address gets it. The other associations
    /// get a status.
    fn associate(&self, assigned: Ipv6Addr) -> Vec<DhcpOption> {
        let mut free = true;
        let answer = |association: &Association| {
            let given = free && association.kind == AssociationKind::Addresses;
            free &= !given;
            association.answer(if given {
                self.address(association, assigned)
            } else {
                self.refusal(association)
            })
        };
        self.associations.iter().map(answer).collect()
    }

    /// The content of the association that has the address. Other addresses of the client in this association are
    /// reported as not on this link when they are first requested (behaviour §4.4.2). In answers to later messages,
    /// these addresses have lifetime zero, and the assigned address is added (RFC 8415 §18.3.4, §18.3.5).
    fn address(&self, association: &Association, assigned: Ipv6Addr) -> Vec<DhcpOption> {
        let others = association.addresses.iter().filter(|&&address| address != assigned);
        match self.kind {
            MessageType::Request if others.clone().next().is_some() => {
                vec![status(Status::NotOnLink, "Address is not on this link")]
            }
            MessageType::Renew | MessageType::Rebind => {
                let dead = others.map(|&address| address_option(address, 0));
                [address_option(assigned, INFINITE)].into_iter().chain(dead).collect()
            }
            _ => vec![address_option(assigned, INFINITE)],
        }
    }

    /// Whether one of the client's addresses is `address`.
    fn names(&self, address: Ipv6Addr) -> bool {
        self.associations.iter().any(|association| association.addresses.contains(&address))
    }

    /// The status of an association that gets no address.
    fn refusal(&self, association: &Association) -> Vec<DhcpOption> {
        let known = matches!(self.kind, MessageType::Renew | MessageType::Rebind);
        vec![match association.kind {
            _ if known => no_binding(),
            AssociationKind::Prefixes => status(Status::NoPrefixAvail, "No prefixes are delegated"),
            _ => status(Status::NoAddrsAvail, "There is one address only"),
        }]
    }

    /// The answers to the released or declined associations that were never bound (RFC 8415 §18.3.7, §18.3.8).
    fn unbound(&self, assigned: Ipv6Addr) -> impl Iterator<Item = DhcpOption> {
        let bound = move |association: &&Association| {
            association.kind == AssociationKind::Addresses && association.addresses.contains(&assigned)
        };
        let unbound = self.associations.iter().filter(move |association| !bound(association));
        unbound.map(|association| association.answer(vec![no_binding()]))
    }

    /// Checks whether all addresses of the client are right for this link (RFC 8415 §18.3.3).
    fn confirm(&self, assigned: Ipv6Addr) -> Result<DhcpOption, Outcome> {
        let mut addresses =
            self.associations.iter().flat_map(|association| &association.addresses).peekable();
        if addresses.peek().is_none() {
            return Err(Outcome::Ignored);
        }
        Ok(if addresses.all(|&address| address == assigned) {
            status(Status::Success, "")
        } else {
            status(Status::NotOnLink, "Address is not on this link")
        })
    }
}

impl Association {
    fn answer(&self, options: Vec<DhcpOption>) -> DhcpOption {
        let filled = options.iter().any(|option| matches!(option, DhcpOption::IAAddr(_)));
        let renewal = if filled { INFINITE } else { 0 };
        let (id, t1, t2, opts) = (self.id, renewal, renewal, DhcpOptions::from_iter(options));
        match self.kind {
            AssociationKind::Addresses => DhcpOption::IANA(IANA { id, t1, t2, opts }),
            AssociationKind::TemporaryAddresses => DhcpOption::IATA(IATA { id, opts }),
            AssociationKind::Prefixes => DhcpOption::IAPD(IAPD { id, t1, t2, opts }),
        }
    }
}

/// The options in a byte string, as an iterator. An item is code and value. If an option extends past the end of the
/// string, the item is none and is the last one.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Option<(OptionCode, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let option = self.0.split_first_chunk::<4>().and_then(|(&[a, b, c, d], rest)| {
            let (value, rest) = rest.split_at_checked(u16::from_be_bytes([c, d]).into())?;
            Some((OptionCode::from(u16::from_be_bytes([a, b])), value, rest))
        });
        self.0 = option.map_or(&[], |(_, _, rest)| rest);
        Some(option.map(|(code, value, _)| (code, value)))
    }
}

/// The options of an answer that carry no addresses.
fn configuration<'a>(
    settings: &'a Settings,
    v6: &'a V6,
    question: &'a Question<'_>,
) -> impl Iterator<Item = DhcpOption> + 'a {
    let services = &settings.services;
    let resolvers =
        (services.advertise_dns && !v6.dns.is_empty()).then(|| DhcpOption::DomainNameServers(v6.dns.clone()));
    let search = services.advertise_search.then(|| domain_search_list(&services.search)).flatten();
    let fqdn = services.fqdn.as_deref().and_then(|name| client_fqdn(name, question.fqdn_flags));
    [resolvers, search, fqdn].into_iter().flatten()
}

fn domain_search_list(domains: &[String]) -> Option<DhcpOption> {
    let names: Vec<u8> = domains.iter().filter_map(|name| wire_name(name)).flatten().collect();
    let option = || DhcpOption::Unknown(UnknownOption::new(OptionCode::DomainSearchList, names.clone()));
    (!names.is_empty()).then(option)
}

/// The client's name (RFC 4704). The server updates no names, and reports this to a client that requests an update.
fn client_fqdn(name: &str, asked: Option<u8>) -> Option<DhcpOption> {
    let wants_update = asked.is_some_and(|flags| flags & FQDN_SERVER_UPDATES != 0);
    let mut data = vec![if wants_update { FQDN_OVERRIDDEN } else { 0 }];
    data.extend(wire_name(name)?);
    Some(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFqdn, data)))
}

fn wire_name(name: &str) -> Option<Vec<u8>> {
    let mut buffer = [0; domain::MAX_LEN];
    let len = domain::encode(name, &mut buffer)?;
    buffer.get(..len).map(<[u8]>::to_vec)
}

/// The server's identifier of type 1 (link-layer address and time), for Ethernet (RFC 8415 §11.2).
fn server_id(start_since_2000: u32, mac: Mac) -> [u8; 14] {
    let [a, b, c, d] = start_since_2000.to_be_bytes();
    let Mac([e, f, g, h, i, j]) = mac;
    [0, 1, 0, 1, a, b, c, d, e, f, g, h, i, j]
}

/// The option for an address with a lifetime of `lifetime` seconds.
fn address_option(address: Ipv6Addr, lifetime: u32) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr {
        addr: address,
        preferred_life: lifetime,
        valid_life: lifetime,
        opts: DhcpOptions::new(),
    })
}

fn status(status: Status, text: &str) -> DhcpOption {
    DhcpOption::StatusCode(StatusCode { status, msg: text.into() })
}

fn no_binding() -> DhcpOption {
    status(Status::NoBinding, "Nothing was assigned here")
}

fn gives_address(option: &DhcpOption, address: Ipv6Addr) -> bool {
    let DhcpOption::IANA(association) = option else { return false };
    association.opts.iter().any(|option| matches!(option, DhcpOption::IAAddr(given) if given.addr == address))
}

fn encode(kind: MessageType, transaction: [u8; 3], options: &[DhcpOption]) -> Option<Vec<u8>> {
    let [a, b, c] = transaction;
    let mut message = vec![kind.into(), a, b, c];
    for option in options {
        let mut encoded = Vec::new();
        option.encode(&mut Encoder::new(&mut encoded)).ok()?;
        message.append(&mut encoded);
    }
    Some(message)
}

#[cfg(test)]
mod tests;
