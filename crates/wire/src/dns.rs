//! DNS messages (RFC 1035 §4.1). This file has the header and the question, which are enough to match responses with
//! queries. Names, records and their data are in the modules. All types are views of the message's bytes: parsing
//! copies nothing.

mod name;
mod record;
mod service;

pub use name::{Name, Part, write_text};
pub use record::{Malformed, Record, Records, Section};
pub use service::{Key, Param, Service};

use core::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, big_endian::U16};

/// Length of a message's header, in bytes.
pub const HEADER_LEN: usize = 12;
/// Longest header and question, in bytes: a name of 255 bytes, type and class.
pub const MAX_HEAD_LEN: usize = HEADER_LEN + crate::domain::MAX_LEN + TYPE_AND_CLASS_LEN;

const TYPE_AND_CLASS_LEN: usize = 4;
const MAX_LABEL_LEN: u8 = 63;

/// A response, not a query (QR).
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RESPONSE_CODE: u8 = 0x0f;

/// A message's header.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    id: U16,
    flags: [u8; 2],
    questions: U16,
    answers: U16,
    authorities: U16,
    additional: U16,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// Opcode: the kind of a message, four bits (RFC 1035 §4.1.1, RFC 1996, RFC 2136).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode(pub u8);

impl Opcode {
    /// A standard query.
    pub const QUERY: Self = Self(0);
}

/// Result of a query: RCODE, four bits (RFC 1035 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseCode(pub u8);

impl ResponseCode {
    /// NOERROR: the query succeeded, with an answer or without.
    pub const NO_ERROR: Self = Self(0);
    /// SERVFAIL: the server could not resolve the name.
    pub const SERVER_FAILURE: Self = Self(2);
    /// NXDOMAIN: the name does not exist, nor does any below it (RFC 8020).
    pub const NO_NAME: Self = Self(3);
    /// NOTIMP: the server does not support this kind of query.
    pub const NOT_IMPLEMENTED: Self = Self(4);
    /// REFUSED: the server refuses by policy.
    pub const REFUSED: Self = Self(5);

    /// Whether the code reports a fault of this server, so that another server may have an answer.
    #[must_use]
    pub const fn is_server_fault(self) -> bool {
        matches!(self, Self::SERVER_FAILURE | Self::NOT_IMPLEMENTED | Self::REFUSED)
    }
}

/// Type of a record, or of the records that a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Type(pub u16);

/// The types that this crate parses or its callers use, with their names in the registry (RFC 6895 §3.1).
#[allow(missing_docs, reason = "the registry's names")]
impl Type {
    pub const A: Self = Self(1);
    pub const NS: Self = Self(2);
    pub const MD: Self = Self(3);
    pub const MF: Self = Self(4);
    pub const CNAME: Self = Self(5);
    pub const SOA: Self = Self(6);
    pub const MB: Self = Self(7);
    pub const MG: Self = Self(8);
    pub const MR: Self = Self(9);
    pub const NULL: Self = Self(10);
    pub const PTR: Self = Self(12);
    pub const MINFO: Self = Self(14);
    pub const MX: Self = Self(15);
    pub const TXT: Self = Self(16);
    pub const RP: Self = Self(17);
    pub const AFSDB: Self = Self(18);
    pub const RT: Self = Self(21);
    pub const SIG: Self = Self(24);
    pub const PX: Self = Self(26);
    pub const AAAA: Self = Self(28);
    pub const NXT: Self = Self(30);
    pub const SRV: Self = Self(33);
    pub const NAPTR: Self = Self(35);
    pub const KX: Self = Self(36);
    pub const DNAME: Self = Self(39);
    pub const OPT: Self = Self(41);
    pub const DS: Self = Self(43);
    pub const RRSIG: Self = Self(46);
    pub const NSEC: Self = Self(47);
    pub const DNSKEY: Self = Self(48);
    pub const SVCB: Self = Self(64);
    pub const HTTPS: Self = Self(65);
    pub const IXFR: Self = Self(251);
    pub const AXFR: Self = Self(252);
    pub const ANY: Self = Self(255);
}

/// The most frequent types have their name in the IANA registry. All other types are `TYPE` and the number (RFC 3597
/// §5).
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::A => "A",
            Self::NS => "NS",
            Self::CNAME => "CNAME",
            Self::SOA => "SOA",
            Self::NULL => "NULL",
            Self::PTR => "PTR",
            Self::MX => "MX",
            Self::TXT => "TXT",
            Self::AAAA => "AAAA",
            Self::SRV => "SRV",
            Self::NAPTR => "NAPTR",
            Self::DS => "DS",
            Self::DNSKEY => "DNSKEY",
            Self::SVCB => "SVCB",
            Self::HTTPS => "HTTPS",
            Self::IXFR => "IXFR",
            Self::AXFR => "AXFR",
            Self::ANY => "ANY",
            Self(other) => return write!(f, "TYPE{other}"),
        })
    }
}

/// Class of a record or question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u16);

impl Class {
    /// The Internet.
    pub const IN: Self = Self(1);
}

/// A query with one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// ID, chosen by the client, in host byte order.
    pub id: u16,
    /// Kind of the message.
    pub opcode: Opcode,
    /// Name (uncompressed), type and class, as on the wire.
    section: &'a [u8],
}

impl<'a> Question<'a> {
    /// The question of a query. None for a response, a malformed message, and any number of questions other than one.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, rest) = Header::ref_from_prefix(message).ok()?;
        if header.flags[0] & RESPONSE != 0 || header.questions.get() != 1 {
            return None;
        }
        Some(Self { id: header.id.get(), opcode: opcode(header), section: section(rest)? })
    }

    /// The name that the question asks about.
    #[must_use]
    pub fn name(&self) -> Option<Name<'a>> {
        self.section.split_last_chunk::<TYPE_AND_CLASS_LEN>().and_then(|(name, _)| Name::alone(name))
    }

    /// The type of the records that the question asks for.
    #[must_use]
    pub fn kind(&self) -> Type {
        Type(self.number(TYPE_AND_CLASS_LEN))
    }

    /// The class of the records that the question asks for.
    #[must_use]
    pub fn class(&self) -> Class {
        Class(self.number(TYPE_AND_CLASS_LEN / 2))
    }

    /// Name (uncompressed), type and class, as on the wire.
    #[must_use]
    pub const fn section(&self) -> &'a [u8] {
        self.section
    }

    /// The 16-bit number that begins `before_end` bytes before the end of the section.
    fn number(&self, before_end: usize) -> u16 {
        let at = self.section.len().saturating_sub(before_end);
        self.section.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_be_bytes(*bytes))
    }

    /// The result, if `message` is a response to this query: it has the same ID and opcode, and repeats the question,
    /// with letters in any case (RFC 1035 §2.3.3, RFC 5452 §9.1). A response without a question is accepted if it
    /// reports an error: some servers send such responses.
    #[must_use]
    pub fn answered_by(&self, message: &[u8]) -> Option<ResponseCode> {
        let (header, rest) = Header::ref_from_prefix(message).ok()?;
        let code = ResponseCode(header.flags[1] & RESPONSE_CODE);
        let response = header.flags[0] & RESPONSE != 0;
        if !response || header.id.get() != self.id || opcode(header) != self.opcode {
            return None;
        }
        let same = match header.questions.get() {
            0 => code != ResponseCode::NO_ERROR,
            1 => section(rest).is_some_and(|section| same_question(section, self.section)),
            _ => false,
        };
        same.then_some(code)
    }
}

const fn opcode(header: &Header) -> Opcode {
    Opcode((header.flags[0] & OPCODE) >> 3)
}

/// The first question in `bytes`, which follow the header. A compressed name is refused: no name comes before it that
/// it could refer to.
fn section(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        let len = *bytes.get(at)?;
        at += 1 + usize::from(len);
        if len > MAX_LABEL_LEN || at > crate::domain::MAX_LEN {
            return None;
        }
        if len == 0 {
            return bytes.get(..at + TYPE_AND_CLASS_LEN);
        }
    }
}

fn same_question(one: &[u8], other: &[u8]) -> bool {
    let name = |section: &[u8]| section.len().saturating_sub(TYPE_AND_CLASS_LEN);
    let (Some((one_name, one_rest)), Some((other_name, other_rest))) =
        (one.split_at_checked(name(one)), other.split_at_checked(name(other)))
    else {
        return false;
    };
    // Length bytes are at most 63, less than the code of any letter. So the comparison does not change their case.
    one_name.eq_ignore_ascii_case(other_name) && one_rest == other_rest
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn message(id: u16, flags: [u8; 2], questions: &[&[u8]]) -> Vec<u8> {
        let mut message = id.to_be_bytes().to_vec();
        message.extend(flags);
        message.extend((questions.len() as u16).to_be_bytes());
        message.extend([0; 6]);
        questions.iter().for_each(|question| message.extend(*question));
        message
    }

    const A: &[u8] = b"\x04Peer\x04test\0\0\x01\0\x01";
    const QUERY: [u8; 2] = [1, 0];

    #[test]
    fn a_query_with_one_question_is_parsed() {
        let bytes = message(0x1234, QUERY, &[A]);
        let question = Question::parse(&bytes).unwrap();
        assert_eq!((question.id, question.opcode, question.section), (0x1234, Opcode::QUERY, A));
        let root = message(1, [0x28, 0], &[b"\0\0\x02\0\x01"]);
        assert_eq!(Question::parse(&root).unwrap().opcode, Opcode(5));
    }

    #[test]
    fn other_messages_are_no_query() {
        let long = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[63; 64], b"\0\0\x01\0\x01"].concat();
        for bytes in [
            message(1, [0x80, 0], &[A]),
            message(1, QUERY, &[]),
            message(1, QUERY, &[A, A]),
            message(1, QUERY, &[&A[..A.len() - 1]]),
            message(1, QUERY, &[b"\x04Peer"]),
            message(1, QUERY, &[b"\xc0\x0c\0\x01\0\x01"]),
            message(1, QUERY, &[&long]),
            b"question".to_vec(),
            Vec::new(),
        ] {
            assert_eq!(Question::parse(&bytes), None, "{bytes:?}");
        }
        // The longest name: three labels of 63, one of 61, the root.
        let longest = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[61; 62], b"\0\0\x01\0\x01"].concat();
        let bytes = message(1, QUERY, &[&longest]);
        assert_eq!(bytes.len(), MAX_HEAD_LEN);
        assert!(Question::parse(&bytes).is_some());
    }

    #[test]
    fn a_response_repeats_the_question() {
        let asked = message(0x1234, QUERY, &[A]);
        let question = Question::parse(&asked).unwrap();
        let code = |flags, questions: &[&[u8]]| {
            question.answered_by(&message(0x1234, flags, questions)).map(|code| code.0)
        };
        assert_eq!(code([0x81, 0x80], &[A]), Some(0));
        assert_eq!(code([0x81, 0x83], &[b"\x04pEER\x04TEST\0\0\x01\0\x01"]), Some(3));
        assert_eq!(code([0x81, 0x85], &[]), Some(5));
        for (flags, questions) in [
            ([0x01, 0], &[A][..]),
            ([0x81, 0], &[]),
            ([0x81, 5], &[A, A]),
            ([0xa9, 0], &[A]),
            ([0x81, 0], &[b"\x04peer\x04test\0\0\x1c\0\x01"]),
            ([0x81, 0], &[b"\x04peer\x04tesu\0\0\x01\0\x01"]),
            ([0x81, 0], &[b"\x04peer\0\0\x01\0\x01"]),
            ([0x81, 0], &[b"\x04Peer"]),
        ] {
            assert_eq!(code(flags, questions), None, "{flags:?} {questions:?}");
        }
        let other_id = message(0x1235, [0x81, 0], &[A]);
        assert_eq!(question.answered_by(&other_id), None);
        assert_eq!(question.answered_by(b""), None);
    }

    #[test]
    fn codes_after_which_another_server_is_asked() {
        let codes: Vec<u8> = (0..16).filter(|&code| ResponseCode(code).is_server_fault()).collect();
        assert_eq!(codes, [2, 4, 5]);
    }
}
