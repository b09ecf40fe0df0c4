//! The records of a message (RFC 1035 §4.1.3), and the names in their data.

use core::{error, fmt, ops::Range};

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use super::{Class, HEADER_LEN, Header, Name, TYPE_AND_CLASS_LEN, Type};

/// A message that violates the RFCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed DNS message")
    }
}

impl error::Error for Malformed {}

/// A section of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Records that answer the question.
    Answer,
    /// Records about the authoritative servers.
    Authority,
    /// Records that the client may need next.
    Additional,
}

impl Section {
    /// The sections in the order of the message.
    pub const ALL: [Self; 3] = [Self::Answer, Self::Authority, Self::Additional];

    /// Offset in the header of the number of records in this section.
    #[must_use]
    pub const fn count_at(self) -> usize {
        match self {
            Self::Answer => 6,
            Self::Authority => 8,
            Self::Additional => 10,
        }
    }
}

/// The fixed fields after a record's owner name.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    kind: U16,
    class: U16,
    ttl: U32,
    len: U16,
}

/// A record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    message: &'a [u8],
    /// Offset of the record in the message.
    start: usize,
    /// Offsets of the start and end of its data in the message.
    data: (usize, usize),
    /// The section of the record.
    pub section: Section,
    /// The name to which the record belongs.
    pub owner: Name<'a>,
    /// The type.
    pub kind: Type,
    /// The class. For [`Type::OPT`], the length of the largest message that the sender accepts.
    pub class: Class,
    /// Time to live, in seconds; at most 2^31 - 1 (RFC 2181 §8). For [`Type::OPT`], this field has other contents (RFC
    /// 6891 §6.1.3).
    pub ttl: u32,
}

impl<'a> Record<'a> {
    /// The data.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.message.get(self.data_span()).unwrap_or_default()
    }

    /// The range of the record in the message.
    #[must_use]
    pub const fn span(&self) -> Range<usize> {
        self.start..self.data.1
    }

    /// The range of the record's data in the message. The two bytes before it contain the length of the data.
    #[must_use]
    pub const fn data_span(&self) -> Range<usize> {
        self.data.0..self.data.1
    }

    /// The name at this offset of the data, and the offset of the bytes after the name. None if the name is malformed.
    #[must_use]
    pub fn name_at(&self, offset: usize) -> Option<(Name<'a>, usize)> {
        // The name must end within the data: it never extends into the next record.
        let (name, end) = Name::parse(self.message.get(..self.data.1)?, self.data.0 + offset)?;
        Some((name, end - self.data.0))
    }

    /// The name after the first `offset` bytes of the data, which must end with the name. None if the name is
    /// malformed.
    #[must_use]
    pub fn last_name(&self, offset: usize) -> Option<Name<'a>> {
        self.name_at(offset).and_then(|(name, end)| (end == self.data().len()).then_some(name))
    }

    /// The replacement of a NAPTR record (RFC 3403 §4.1): order, preference, three strings, the name.
    #[must_use]
    pub fn naptr_replacement(&self) -> Option<Name<'a>> {
        self.last_name(self.after_strings(4, 3)?)
    }

    /// The names in the data that may be compressed, or that some senders compress against the RFCs: those in the types
    /// of RFC 1035, in the types that RFC 3597 §4 lists, and in those of DNSSEC and SVCB. The data of other types is
    /// not parsed.
    ///
    /// # Errors
    /// The data does not have the format of its type.
    pub fn names(&self) -> Result<[Option<Name<'a>>; 2], Malformed> {
        let (skip, strings, count) = match self.kind {
            Type::NS | Type::CNAME | Type::PTR | Type::DNAME | Type::NXT | Type::NSEC => (0, 0, 1),
            Type::MD | Type::MF | Type::MB | Type::MG | Type::MR => (0, 0, 1),
            Type::SOA | Type::MINFO | Type::RP => (0, 0, 2),
            Type::MX | Type::AFSDB | Type::RT | Type::KX | Type::SVCB | Type::HTTPS => (2, 0, 1),
            Type::PX => (2, 0, 2),
            Type::SRV => (6, 0, 1),
            Type::SIG | Type::RRSIG => (18, 0, 1),
            Type::NAPTR => (4, 3, 1),
            _ => return Ok([None; 2]),
        };
        let mut offset = self.after_strings(skip, strings).ok_or(Malformed)?;
        let mut names = [None; 2];
        for place in names.iter_mut().take(count) {
            let (name, end) = self.name_at(offset).ok_or(Malformed)?;
            (*place, offset) = (Some(name), end);
        }
        Ok(names)
    }

    /// The offset after `count` character strings that begin at `offset` (RFC 1035 §3.3).
    fn after_strings(&self, offset: usize, count: usize) -> Option<usize> {
        (0..count).try_fold(offset, |at, _| Some(at + 1 + usize::from(*self.data().get(at)?)))
    }
}

/// The records of a message, in order. Iteration ends after a malformed record.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    message: &'a [u8],
    question: Option<Name<'a>>,
    at: usize,
    /// Number of remaining records in each section.
    left: [u16; 3],
}

impl<'a> Records<'a> {
    /// The records of a message with at most one question.
    ///
    /// # Errors
    /// The header or the question is malformed, or there is more than one question.
    pub fn of(message: &'a [u8]) -> Result<Self, Malformed> {
        let (header, _) = Header::ref_from_prefix(message).map_err(|_| Malformed)?;
        let (question, at) = match header.questions.get() {
            0 => (None, HEADER_LEN),
            1 => {
                let (name, end) = Name::parse(message, HEADER_LEN).ok_or(Malformed)?;
                (Some(name), end + TYPE_AND_CLASS_LEN)
            }
            _ => return Err(Malformed),
        };
        message.get(..at).ok_or(Malformed)?;
        let left = [header.answers.get(), header.authorities.get(), header.additional.get()];
        Ok(Self { message, question, at, left })
    }

    /// The name in the question. None if the message has no question.
    #[must_use]
    pub const fn question_name(&self) -> Option<Name<'a>> {
        self.question
    }

    fn read(&mut self, section: Section) -> Option<Record<'a>> {
        let start = self.at;
        let (owner, at) = Name::parse(self.message, start)?;
        let (fixed, _) = Fixed::ref_from_prefix(self.message.get(at..)?).ok()?;
        let begin = at + size_of::<Fixed>();
        let end = begin + usize::from(fixed.len.get());
        self.message.get(begin..end)?;
        self.at = end;
        let (kind, ttl) = (Type(fixed.kind.get()), fixed.ttl.get());
        // RFC 2181 §8: a time to live with the highest bit set is treated as zero.
        let ttl = if kind == Type::OPT || ttl <= i32::MAX as u32 { ttl } else { 0 };
        let class = Class(fixed.class.get());
        Some(Record { message: self.message, start, data: (begin, end), section, owner, kind, class, ttl })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (section, left) = Section::ALL.into_iter().zip(&mut self.left).find(|(_, left)| **left > 0)?;
        *left -= 1;
        let record = self.read(section);
        if record.is_none() {
            self.left = [0; 3];
        }
        Some(record.ok_or(Malformed))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{format, string::ToString, vec, vec::Vec};

    use super::*;

    /// A response about `peer.test`, with records in the answer section; the name is at offset 12.
    fn message(records: &[&[u8]]) -> Vec<u8> {
        let mut message = vec![0, 7, 0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        message.extend(b"\x04peer\x04test\0\0\x01\0\x01");
        records.iter().for_each(|record| message.extend(*record));
        message
    }

    fn record(kind: Type, data: &[u8]) -> Vec<u8> {
        let [high, low] = kind.0.to_be_bytes();
        [&[0xc0, 12, high, low, 0, 1, 0, 0, 1, 0, 0, data.len() as u8], data].concat()
    }

    #[test]
    fn records_are_read_in_order_with_their_sections() {
        let mut bytes = message(&[&record(Type::A, &[192, 0, 2, 1]), &record(Type::TXT, b"\x01a")]);
        bytes.extend(record(Type::NS, b"\xc0\x0c"));
        bytes.extend(b"\0\0\x29\x04\xd0\x80\0\x80\0\0\0");
        (bytes[9], bytes[11]) = (1, 1);
        let records: Vec<_> = Records::of(&bytes).unwrap().map(Result::unwrap).collect();
        let shown = records.iter().map(|record| {
            format!(
                "{:?} {} {} {} {}",
                record.section, record.owner, record.kind.0, record.class.0, record.ttl
            )
        });
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                "Answer peer.test 1 1 256",
                "Answer peer.test 16 1 256",
                "Authority peer.test 2 1 256",
                "Additional . 41 1232 2147516416"
            ]
        );
        assert_eq!(records[0].data(), [192, 0, 2, 1]);
        assert_eq!(records[0].span(), 27..43);
        assert_eq!(records[0].data_span(), 39..43);
        // A time to live with the highest bit set is treated as zero.
        bytes[33] = 0x80;
        assert_eq!(Records::of(&bytes).unwrap().next().unwrap().unwrap().ttl, 0);
    }

    #[test]
    fn names_in_the_data_are_found_by_type() {
        const NAME: &[u8] = b"\x01a\xc0\x0c";
        for (kind, before, count) in [
            (Type::NS, 0, 1),
            (Type::SOA, 0, 2),
            (Type::MX, 2, 1),
            (Type::PX, 2, 2),
            (Type::SRV, 6, 1),
            (Type::RRSIG, 18, 1),
            (Type::NSEC, 0, 1),
            (Type::HTTPS, 2, 1),
            (Type::TXT, 0, 0),
            (Type(65_400), 0, 0),
        ] {
            let data = [&vec![0; before][..], &NAME.repeat(2)].concat();
            let bytes = message(&[&record(kind, &data)]);
            let record = Records::of(&bytes).unwrap().next().unwrap().unwrap();
            let names: Vec<_> =
                record.names().unwrap().into_iter().flatten().map(|name| name.to_string()).collect();
            assert_eq!(names, vec!["a.peer.test"; count], "{kind:?}");
        }
        let naptr = [b"\0\x01\0\x01\x01s\x03sip\0", NAME].concat();
        let bytes = message(&[&record(Type::NAPTR, &naptr)]);
        let record = Records::of(&bytes).unwrap().next().unwrap().unwrap();
        assert_eq!(record.naptr_replacement().unwrap().to_string(), "a.peer.test");
        assert_eq!(record.names().unwrap()[0].unwrap().to_string(), "a.peer.test");
    }

    #[test]
    fn malformed_records_end_the_message() {
        let good = record(Type::A, &[192, 0, 2, 1]);
        for bad in [
            &good[..good.len() - 1],
            &good[..11],
            b"\xc0\x0c",
            b"\xc0\x2b\0\x01\0\x01\0\0\0\0\0\0", // a pointer to the record's owner itself
            b"",
        ] {
            let bytes = message(&[&good, bad]);
            let read: Vec<_> = Records::of(&bytes).unwrap().map(|record| record.is_ok()).collect();
            assert_eq!(read, [true, false], "{bad:?}");
        }
        let mut two = message(&[]);
        two[5] = 2;
        assert!(Records::of(&two).is_err());
        assert!(Records::of(&two[..11]).is_err());
        assert!(Records::of(&message(&[])).is_ok_and(|records| records.question_name().is_some()));
        assert!(Records::of(&message(&[])[..26]).is_err());
        // A name that extends beyond the data.
        let bytes = message(&[&record(Type::NS, b"\x01"), &record(Type::NS, b"")]);
        let records: Vec<_> = Records::of(&bytes).unwrap().map(Result::unwrap).collect();
        assert_eq!((records[0].names(), records[1].names()).0.unwrap_err(), Malformed);
        assert!(records[1].names().is_err());
    }
}
