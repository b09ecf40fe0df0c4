//! The content of a resolver's answer that the guest can use: addresses, and names for further queries.

#[cfg(test)]
mod tests;

use alloc::{boxed::Box, collections::BTreeMap, string::String, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    dns::{Class, Key, Malformed, Name, Record, Records, Section, Service, Type, write_text},
    domain::MAX_LEN,
};

use crate::names::{Address, Answers, Target};

/// Maximum number of records of a message. This bounds the work. Only a zone transfer needs more, and the guest can't
/// request one.
const MOST_RECORDS: usize = 512;
/// Maximum number of names of one answer, targets included. Further targets are not learned, so the guest can't use
/// them.
const MOST_NAMES: usize = 128;
/// Maximum length of a chain of names. Resolvers follow at most 8 to 16 aliases.
const MOST_LINKS: usize = 16;

/// Reads a response that was accepted as the answer to a question of the guest.
///
/// The result contains the targets of aliases (CNAME) and of services (SRV, NAPTR, SVCB, HTTPS). It also contains the
/// addresses of these targets, which a server may add, and the address hints of SVCB and HTTPS. The order of the
/// records does not matter. DNAME needs no code: a server adds a CNAME for each DNAME (RFC 6672 §3.1). Records of other
/// names, records of other classes, and the authority section are ignored.
///
/// # Errors
/// The message is malformed, or has too many records. The caller must not forward it to the guest.
pub fn answers(message: &[u8]) -> Result<Answers, Malformed> {
    let all = Records::of(message)?;
    let question = all.question_name();
    let mut records = Vec::new();
    for (number, record) in all.enumerate() {
        let record = record?;
        if number >= MOST_RECORDS {
            return Err(Malformed);
        }
        if record.class == Class::IN && record.section != Section::Authority {
            records.push(record);
        }
    }
    let Some(question) = question else {
        return if records.is_empty() { Ok(Answers::default()) } else { Err(Malformed) };
    };
    let mut known = Known::new(question);
    for _ in 0..MOST_LINKS {
        let before = known.0.len();
        for record in &records {
            known.follow(record)?;
        }
        if known.0.len() == before {
            break;
        }
    }
    let mut addresses = Vec::new();
    for record in &records {
        known.addresses(record, &mut addresses)?;
    }
    Ok(Answers { addresses, targets: known.targets(question) })
}

/// The name in the question and the names to which it leads, in canonical form. Each has the shortest time to live in
/// the chain of records that leads to it.
struct Known(BTreeMap<Box<[u8]>, u32>);

impl Known {
    fn new(question: Name<'_>) -> Self {
        let mut names = BTreeMap::new();
        names.insert(canonical(question), u32::MAX);
        Self(names)
    }

    /// The minimum of the times to live of a record and of its owner. None if the owner is not a known name.
    fn ttl_of(&self, record: &Record<'_>) -> Option<u32> {
        let mut buffer = [0; MAX_LEN];
        let len = record.owner.write_canonical(&mut buffer);
        self.0.get(buffer.get(..len)?).map(|&ttl| ttl.min(record.ttl))
    }

    /// Adds the target of a record, if the owner of the record is a known name.
    fn follow(&mut self, record: &Record<'_>) -> Result<(), Malformed> {
        if !matches!(record.kind, Type::CNAME | Type::SRV | Type::NAPTR | Type::SVCB | Type::HTTPS) {
            return Ok(());
        }
        let Some(ttl) = self.ttl_of(record) else { return Ok(()) };
        let target = match record.kind {
            Type::CNAME => record.last_name(0),
            Type::SRV => record.last_name(6),
            Type::NAPTR => record.naptr_replacement(),
            _ => Service::parse(record).map(|service| service.target),
        };
        let target = target.ok_or(Malformed)?;
        // The root as target means the owner itself (RFC 9460 §2.5), or that there is no such service (RFC 2782).
        if target.labels().next().is_some() && self.0.len() < MOST_NAMES {
            self.0.entry(canonical(target)).or_insert(ttl);
        }
        Ok(())
    }

    /// Adds the addresses in a record, if the owner of the record is a known name.
    fn addresses(&self, record: &Record<'_>, addresses: &mut Vec<Address>) -> Result<(), Malformed> {
        if !matches!(record.kind, Type::A | Type::AAAA | Type::SVCB | Type::HTTPS) {
            return Ok(());
        }
        let Some(ttl) = self.ttl_of(record) else { return Ok(()) };
        let mut add = |address| addresses.push(Address { address, ttl });
        match record.kind {
            Type::A => v4(record.data()).map(|four| four.for_each(&mut add)),
            Type::AAAA => v6(record.data()).map(|six| six.for_each(&mut add)),
            _ => {
                return Service::parse(record).ok_or(Malformed)?.params().try_for_each(|param| {
                    match param.key {
                        Key::IPV4_HINT => v4(param.value).map(|four| four.for_each(&mut add)),
                        Key::IPV6_HINT => v6(param.value).map(|six| six.for_each(&mut add)),
                        _ => Some(()),
                    }
                    .ok_or(Malformed)
                });
            }
        }
        .ok_or(Malformed)
    }

    /// All names except the name in the question.
    fn targets(mut self, question: Name<'_>) -> Vec<Target> {
        self.0.remove(&canonical(question));
        let target = |(name, ttl): (Box<[u8]>, u32)| {
            let mut text = String::new();
            write_text(Name::alone(&name)?.labels(), &mut text).ok()?;
            Some(Target { name: text, ttl })
        };
        self.0.into_iter().filter_map(target).collect()
    }
}

fn canonical(name: Name<'_>) -> Box<[u8]> {
    let mut buffer = [0; MAX_LEN];
    let len = name.write_canonical(&mut buffer);
    buffer.get(..len).unwrap_or_default().into()
}

/// Parses a sequence of one or more addresses. None if `bytes` is not such a sequence.
fn v4(bytes: &[u8]) -> Option<impl Iterator<Item = IpAddr>> {
    let (addresses, rest) = bytes.as_chunks();
    (rest.is_empty() && !addresses.is_empty())
        .then(|| addresses.iter().map(|&bytes: &[u8; 4]| Ipv4Addr::from(bytes).into()))
}

/// Parses a sequence of one or more addresses. None if `bytes` is not such a sequence.
fn v6(bytes: &[u8]) -> Option<impl Iterator<Item = IpAddr>> {
    let (addresses, rest) = bytes.as_chunks();
    (rest.is_empty() && !addresses.is_empty())
        .then(|| addresses.iter().map(|&bytes: &[u8; 16]| Ipv6Addr::from(bytes).into()))
}
