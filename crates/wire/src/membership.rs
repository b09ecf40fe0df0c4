//! Membership of multicast groups: IGMP (RFC 1112, RFC 2236, RFC 3376) and MLD (RFC 2710, RFC 3810).
//!
//! Only one fact of a report or leave message is used for each group: whether the sender is a member. Source filters
//! are ignored. Queries have the format of IGMPv3 and MLDv2. Hosts with earlier versions accept these queries, since
//! such hosts ignore the bytes after the fields that they know (RFC 3376 §7.2.1, RFC 3810 §8.2.1).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{IntoBytes, big_endian::U16};

use crate::{
    checksum::Sum,
    ethernet::{self, Mac, ethertype},
    frame, ipv4, ipv6, protocol,
};

/// Length of the longest frame that [`Query::write`] writes, in bytes.
pub const MAX_QUERY_LEN: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + 8 + 28;
/// Longest message that should be parsed, in bytes: room for more than 90 groups.
pub const MAX_REPORT_LEN: usize = 2048;

/// Maximum response time of a general query, in seconds (RFC 3376 §8.3).
pub const RESPONSE_INTERVAL: u8 = 10;
/// Maximum response time of a group-specific query, in seconds (RFC 3376 §8.8).
pub const LAST_MEMBER_INTERVAL: u8 = 1;
/// Interval between general queries, in seconds (RFC 3376 §8.2).
pub const QUERY_INTERVAL: u8 = 125;
/// Robustness variable: how often a message is sent, since some copies may be lost (RFC 3376 §8.1).
pub const ROBUSTNESS: u8 = 2;

const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// IGMP types.
mod igmp {
    pub(super) const QUERY: u8 = 0x11;
    pub(super) const REPORT_V1: u8 = 0x12;
    pub(super) const REPORT_V2: u8 = 0x16;
    pub(super) const LEAVE: u8 = 0x17;
    pub(super) const REPORT_V3: u8 = 0x22;
}

/// ICMPv6 types of MLD.
pub mod mld {
    /// Query.
    pub const QUERY: u8 = 130;
    /// Report of MLDv1.
    pub const REPORT_V1: u8 = 131;
    /// Done: the leave message of MLDv1.
    pub const DONE: u8 = 132;
    /// Report of MLDv2.
    pub const REPORT_V2: u8 = 143;
}

/// What a message reports about one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The sender is a member of the group, for all sources or some.
    Member(IpAddr),
    /// The sender has left the group, or blocks more sources. The group may have other members: the caller should send
    /// a query.
    Left(IpAddr),
}

/// Parses an IGMP message. None if it is not a report or leave, or is truncated.
#[must_use]
pub fn parse_igmp(message: &[u8]) -> Option<Changes<'_>> {
    let group = || Some(IpAddr::from(*message.get(4..)?.first_chunk::<4>()?));
    Some(match *message.first()? {
        igmp::REPORT_V1 | igmp::REPORT_V2 => Changes::one(Change::Member(group()?)),
        igmp::LEAVE => Changes::one(Change::Left(group()?)),
        igmp::REPORT_V3 => Changes::records(message, 4)?,
        _ => return None,
    })
}

/// Parses an MLD message, with its ICMPv6 header. None if it is not a report or done message, or is truncated.
#[must_use]
pub fn parse_mld(message: &[u8]) -> Option<Changes<'_>> {
    let group = || Some(IpAddr::from(*message.get(8..)?.first_chunk::<16>()?));
    Some(match *message.first()? {
        mld::REPORT_V1 => Changes::one(Change::Member(group()?)),
        mld::DONE => Changes::one(Change::Left(group()?)),
        mld::REPORT_V2 => Changes::records(message, 16)?,
        _ => return None,
    })
}

/// The changes in a message, one per group. Iteration ends at the first record that extends past the message.
#[derive(Clone, Debug)]
pub struct Changes<'a> {
    one: Option<Change>,
    records: &'a [u8],
    left: u16,
    address_len: usize,
}

impl<'a> Changes<'a> {
    const fn one(change: Change) -> Self {
        Self { one: Some(change), records: &[], left: 0, address_len: 4 }
    }

    fn records(message: &'a [u8], address_len: usize) -> Option<Self> {
        let (count, records) = message.get(6..)?.split_first_chunk()?;
        Some(Self { one: None, records, left: u16::from_be_bytes(*count), address_len })
    }

    fn record(&mut self) -> Option<Option<Change>> {
        self.left = self.left.checked_sub(1)?;
        let (&[kind, auxiliary, high, low], rest) = self.records.split_first_chunk()?;
        let (address, rest) = rest.split_at_checked(self.address_len)?;
        let sources = usize::from(u16::from_be_bytes([high, low]));
        self.records = rest.get(sources * self.address_len + usize::from(auxiliary) * 4..)?;
        let group = match *address {
            [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(*address.first_chunk::<16>()?).into(),
        };
        // RFC 3376 §4.2.12: record types IS_IN, IS_EX, TO_IN, TO_EX, ALLOW, BLOCK
        Some(match (kind, sources) {
            (2 | 4, _) | (1 | 3 | 5, 1..) => Some(Change::Member(group)),
            (1 | 3, 0) | (6, _) => Some(Change::Left(group)),
            _ => None,
        })
    }
}

impl Iterator for Changes<'_> {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        if let Some(change) = self.one.take() {
            return Some(change);
        }
        loop {
            if let Some(change) = self.record()? {
                return Some(change);
            }
        }
    }
}

/// A membership query.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The querier's hardware address.
    pub source_mac: Mac,
    /// The querier's address. For IPv6 it is link-local (RFC 3810 §5.1.14).
    pub source: IpAddr,
    /// The group, of the same family, for a group-specific query; none for a general query.
    pub group: Option<IpAddr>,
}

impl Query {
    /// Writes the frame; returns its length in bytes. None if it does not fit, or the families differ. The packet has a
    /// Router Alert option: hosts ignore an MLD query without it (RFC 3810 §5.1.14, RFC 2711, RFC 2113).
    pub fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        match (self.source, self.group) {
            (IpAddr::V4(source), None) => self.igmp(buffer, source, None),
            (IpAddr::V4(source), Some(IpAddr::V4(group))) => self.igmp(buffer, source, Some(group)),
            (IpAddr::V6(source), None) => self.mld(buffer, source, None),
            (IpAddr::V6(source), Some(IpAddr::V6(group))) => self.mld(buffer, source, Some(group)),
            _ => None,
        }
    }

    fn igmp(&self, buffer: &mut [u8], source: Ipv4Addr, group: Option<Ipv4Addr>) -> Option<usize> {
        const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];
        const MESSAGE_LEN: usize = 12;
        let destination = group.unwrap_or(ALL_HOSTS);
        let packet = self.ethernet(buffer, destination.into(), ethertype::IPV4)?;
        let (header, rest) = packet.split_at_mut_checked(ipv4::HEADER_LEN + ROUTER_ALERT.len())?;
        let len = ROUTER_ALERT.len() + MESSAGE_LEN;
        let plain = ipv4::Header::new(source, destination, protocol::IGMP, 1, 0xc0, len);
        header[..ipv4::HEADER_LEN].copy_from_slice(plain.as_bytes());
        header[ipv4::HEADER_LEN..].copy_from_slice(&ROUTER_ALERT);
        header[0] += 1;
        header[10..12].fill(0);
        let sum = Sum::new().bytes(header).finish();
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        let message = rest.get_mut(..MESSAGE_LEN)?;
        message.copy_from_slice(&[
            igmp::QUERY,
            interval(group.is_some()) * 10,
            0,
            0,
            0,
            0,
            0,
            0,
            ROBUSTNESS,
            QUERY_INTERVAL,
            0,
            0,
        ]);
        message[4..8].copy_from_slice(&group.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        let sum = Sum::new().bytes(message).finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Some(frame::pad(buffer, ethernet::HEADER_LEN + ipv4::HEADER_LEN + len))
    }

    fn mld(&self, buffer: &mut [u8], source: Ipv6Addr, group: Option<Ipv6Addr>) -> Option<usize> {
        const HOP_BY_HOP: [u8; 8] = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
        const MESSAGE_LEN: usize = 28;
        let destination = group.unwrap_or(ALL_NODES);
        let packet = self.ethernet(buffer, destination.into(), ethertype::IPV6)?;
        let len = HOP_BY_HOP.len() + MESSAGE_LEN;
        let header = ipv6::Header::new(source, destination, ipv6::HOP_BY_HOP, 1, 0, 0, len);
        packet.get_mut(..ipv6::HEADER_LEN)?.copy_from_slice(header.as_bytes());
        let (options, message) =
            packet.get_mut(ipv6::HEADER_LEN..ipv6::HEADER_LEN + len)?.split_at_mut(HOP_BY_HOP.len());
        options.copy_from_slice(&HOP_BY_HOP);
        message.fill(0);
        message[0] = mld::QUERY;
        message[4..6].copy_from_slice(&(u16::from(interval(group.is_some())) * 1000).to_be_bytes());
        message[8..24].copy_from_slice(&group.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        message[24..26].copy_from_slice(&[ROBUSTNESS, QUERY_INTERVAL]);
        let sum = Sum::new().pseudo_header(source.into(), destination.into(), protocol::ICMPV6, MESSAGE_LEN);
        let sum = sum.bytes(message).finish();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        Some(ethernet::HEADER_LEN + ipv6::HEADER_LEN + len)
    }

    /// Writes the Ethernet header, and returns the rest of `buffer`.
    fn ethernet<'a>(&self, buffer: &'a mut [u8], to: IpAddr, ethertype: u16) -> Option<&'a mut [u8]> {
        let header = ethernet::Header {
            destination: Mac::of_multicast(to)?,
            source: self.source_mac,
            ethertype: U16::new(ethertype),
        };
        let (place, packet) = buffer.split_at_mut_checked(ethernet::HEADER_LEN)?;
        place.copy_from_slice(header.as_bytes());
        Some(packet)
    }
}

const fn interval(of_one_group: bool) -> u8 {
    if of_one_group { LAST_MEMBER_INTERVAL } else { RESPONSE_INTERVAL }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::frame::{Body, Transport};

    const GROUP4: IpAddr = IpAddr::V4(Ipv4Addr::new(239, 1, 2, 3));
    const GROUP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x1234));

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// A report of IGMPv3 or MLDv2. For each record, `records` has its type, its number of sources, and its number of
    /// 32-bit words of auxiliary data.
    fn report(group: IpAddr, records: &[(u8, u16, u8)]) -> Vec<u8> {
        let kind = if group.is_ipv4() { igmp::REPORT_V3 } else { mld::REPORT_V2 };
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, records.len() as u8];
        for &(kind, sources, auxiliary) in records {
            message.extend([kind, auxiliary, (sources >> 8) as u8, sources as u8]);
            message.extend(octets(group));
            message.extend(vec![9; usize::from(sources) * octets(group).len() + usize::from(auxiliary) * 4]);
        }
        message
    }

    fn parse(message: &[u8], group: IpAddr) -> Option<Vec<Change>> {
        let changes = if group.is_ipv4() { parse_igmp(message) } else { parse_mld(message) };
        Some(changes?.collect())
    }

    #[test]
    fn messages_of_earlier_versions() {
        for (kind, group, change) in [
            (igmp::REPORT_V1, GROUP4, Change::Member(GROUP4)),
            (igmp::REPORT_V2, GROUP4, Change::Member(GROUP4)),
            (igmp::LEAVE, GROUP4, Change::Left(GROUP4)),
            (mld::REPORT_V1, GROUP6, Change::Member(GROUP6)),
            (mld::DONE, GROUP6, Change::Left(GROUP6)),
        ] {
            let mut message = vec![kind, 0, 0, 0];
            message.resize(if group.is_ipv4() { 4 } else { 8 }, 0);
            message.extend(octets(group));
            assert_eq!(parse(&message, group), Some(vec![change]));
            for len in 0..message.len() {
                assert_eq!(parse(&message[..len], group), None, "{len}");
            }
            message[0] = if group.is_ipv4() { igmp::QUERY } else { mld::QUERY };
            assert_eq!(parse(&message, group), None);
        }
    }

    #[test]
    fn group_record_types() {
        use Change::{Left, Member};
        for group in [GROUP4, GROUP6] {
            for (kind, sources, expected) in [
                (1, 0, Some(Left(group))),
                (1, 2, Some(Member(group))),
                (2, 0, Some(Member(group))),
                (2, 1, Some(Member(group))),
                (3, 0, Some(Left(group))),
                (3, 1, Some(Member(group))),
                (4, 0, Some(Member(group))),
                (5, 1, Some(Member(group))),
                (5, 0, None),
                (6, 1, Some(Left(group))),
                (7, 0, None),
            ] {
                let changes = parse(&report(group, &[(kind, sources, 1), (4, 0, 0)]), group);
                let expected: Vec<_> = expected.into_iter().chain([Member(group)]).collect();
                assert_eq!(changes, Some(expected), "{kind} with {sources}");
            }
        }
    }

    #[test]
    fn truncated_records_end_iteration() {
        for group in [GROUP4, GROUP6] {
            let message = report(group, &[(4, 0, 0), (4, 3, 2)]);
            assert_eq!(parse(&message, group).unwrap().len(), 2);
            for len in 0..message.len() {
                assert!(parse(&message[..len], group).unwrap_or_default().len() < 2, "{len}");
            }
            let mut lies = report(group, &[(4, 0, 0)]);
            lies[6..8].fill(0xff);
            assert_eq!(parse(&lies, group).unwrap().len(), 1);
            lies[10..12].fill(0xff);
            assert_eq!(parse(&lies, group).unwrap().len(), 0);
        }
    }

    #[test]
    fn queries_have_valid_headers_and_checksums() {
        for (source, all, group) in [
            (IpAddr::from([198, 51, 100, 1]), ALL_HOSTS.into(), GROUP4),
            ("fe80::1".parse().unwrap(), ALL_NODES.into(), GROUP6),
        ] {
            for asked in [None, Some(group)] {
                let mut buffer = [0xa5; MAX_QUERY_LEN];
                let query = Query { source_mac: Mac([2, 0, 0, 0, 0, 1]), source, group: asked };
                let len = query.write(&mut buffer).unwrap();
                let frame = frame::parse(&buffer[..len]).unwrap();
                assert_eq!(Some(frame.destination_mac), Mac::of_multicast(asked.unwrap_or(all)));
                let Body::Ip(packet) = frame.body else { panic!() };
                assert_eq!((packet.source, packet.destination), (source, asked.unwrap_or(all)));
                assert_eq!(packet.hop_limit, 1);
                let named =
                    octets(asked.unwrap_or(if source.is_ipv4() { [0; 4].into() } else { [0; 16].into() }));
                match packet.transport {
                    Transport::Other(protocol::IGMP, message) => {
                        assert_eq!(Sum::new().bytes(message).finish(), 0);
                        assert_eq!(Sum::new().bytes(&buffer[14..38]).finish(), 0);
                        assert_eq!(&buffer[34..38], [148, 4, 0, 0]);
                        assert_eq!(message[..2], [0x11, if asked.is_some() { 10 } else { 100 }]);
                        assert_eq!(message[4..8], named);
                    }
                    Transport::Icmp(message) => {
                        assert_eq!(message.header.kind, mld::QUERY);
                        let delay = if asked.is_some() { 1000 } else { 10_000 };
                        assert_eq!(message.header.rest.get() >> 16, delay);
                        assert_eq!(message.payload[..16], named);
                        let sum = Sum::new().pseudo_header(source, packet.destination, protocol::ICMPV6, 28);
                        assert_eq!(sum.bytes(&buffer[len - 28..len]).finish(), 0);
                    }
                    other => panic!("{other:?}"),
                }
                for len in 0..len.min(58) {
                    assert!(query.write(&mut buffer[..len]).is_none_or(|_| len >= 50), "{len}");
                }
            }
        }
    }
}
