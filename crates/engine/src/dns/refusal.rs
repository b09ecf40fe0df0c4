//! Refusal of DNS questions: the response that refuses a question, and the types of questions that are refused for all
//! names.

use alloc::vec::Vec;
use core::ops::RangeInclusive;

use wire::dns::{Class, Opcode, Question, Records, ResponseCode, Section, Type};

/// Maximum length of a refusal, in bytes. Every client accepts messages of this length (RFC 1035 §2.3.4, RFC 6891
/// §6.2.3).
const MOST_BYTES: usize = 512;
/// The maximum length of a UDP message to the engine, in bytes, for the OPT record. Packets of this length pass any
/// path without fragmentation.
const UDP_SIZE: u16 = 1232;
/// Code of the option with an [`ExtendedError`] (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

/// How a question is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// NXDOMAIN: the name does not exist, and no name below it exists. Stub resolvers give up at once.
    NoName,
    /// NODATA: the name has no record of this type. Use this if the name, or a name below it, may have other records.
    NoData,
    /// NOTIMP: this kind of message is not supported. Use this for every opcode other than QUERY.
    NotImplemented,
    /// SERVFAIL: there is no answer from the resolvers that the client may get.
    Failure,
    /// TC: the answer is too long for a datagram, so the client asks again over TCP.
    Truncated,
}

/// Why a question was refused (RFC 8914).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedError<'a> {
    /// The code.
    pub code: u16,
    /// A human-readable text. The part that does not fit is cut off.
    pub text: &'a str,
}

impl ExtendedError<'_> {
    /// The operator of the server refuses the name (§4.16).
    pub const BLOCKED: u16 = 15;
    /// The client has requested that such names be refused (§4.18).
    pub const FILTERED: u16 = 17;
    /// The client is not allowed to ask this question (§4.19).
    pub const PROHIBITED: u16 = 18;
    /// The kind of question is not supported (§4.22).
    pub const NOT_SUPPORTED: u16 = 21;
}

/// The response that refuses `query`. It has no records, and at most 512 bytes. If `query` has an OPT record, the
/// response has an OPT record with `error`. A client that sent no OPT record must not get one (RFC 6891 §6.1.1). None
/// if `query` is not a query with exactly one question: then it can't be answered.
#[must_use]
pub fn refuse(query: &[u8], refusal: Refusal, error: Option<ExtendedError<'_>>) -> Option<Vec<u8>> {
    const RESPONSE: u8 = 0x80;
    const OPCODE_AND_RD: u8 = 0x79;
    const TRUNCATED: u8 = 0x02;
    const RECURSION_AVAILABLE: u8 = 0x80;
    const CHECKING_DISABLED: u8 = 0x10;
    let question = Question::parse(query)?;
    let &[first, second] = query.get(2..)?.first_chunk()?;
    let code = match refusal {
        Refusal::NoName => ResponseCode::NO_NAME,
        Refusal::NoData | Refusal::Truncated => ResponseCode::NO_ERROR,
        Refusal::Failure => ResponseCode::SERVER_FAILURE,
        Refusal::NotImplemented => ResponseCode::NOT_IMPLEMENTED,
    };
    let mut response = Vec::with_capacity(MOST_BYTES);
    response.extend_from_slice(&question.id.to_be_bytes());
    let truncated = if refusal == Refusal::Truncated { TRUNCATED } else { 0 };
    response.push(RESPONSE | truncated | first & OPCODE_AND_RD);
    response.push(RECURSION_AVAILABLE | second & CHECKING_DISABLED | code.0);
    let opt = Opt::of(query);
    for count in [1, 0, 0, u16::from(opt.is_some())] {
        response.extend_from_slice(&count.to_be_bytes());
    }
    response.extend_from_slice(question.section());
    if let Some(opt) = opt {
        push_opt(&mut response, opt, error);
    }
    Some(response)
}

/// The fields of the OPT record in the guest's query.
#[derive(Clone, Copy)]
pub(super) struct Opt {
    /// Maximum length of a response over UDP, in bytes.
    pub(super) udp_size: u16,
    /// The flags.
    pub(super) flags: u16,
}

impl Opt {
    /// Length in bytes of an OPT record without options: owner, type, class, time to live and data length.
    pub(super) const LEN: usize = 11;
    /// Flag DO: the client requests DNSSEC records. The response must repeat this flag (RFC 3225 §3).
    const DNSSEC_OK: u16 = 0x8000;

    /// The OPT record of `query`, if it has one.
    pub(super) fn of(query: &[u8]) -> Option<Self> {
        let opt = Records::of(query).ok()?.find_map(|record| {
            record.ok().filter(|record| record.section == Section::Additional && record.kind == Type::OPT)
        })?;
        Some(Self { udp_size: opt.class.0, flags: opt.ttl as u16 })
    }

    /// Appends an OPT record of version 0 with this size and these flags. The caller must append `len` bytes of
    /// options.
    pub(super) fn push(self, message: &mut Vec<u8>, len: u16) {
        message.push(0); // the root
        for field in [Type::OPT.0, self.udp_size, 0, self.flags & Self::DNSSEC_OK, len] {
            message.extend_from_slice(&field.to_be_bytes());
        }
    }
}

fn push_opt(response: &mut Vec<u8>, client: Opt, error: Option<ExtendedError<'_>>) {
    /// Length in bytes of the option without its text: option code, option length and error code.
    const OPTION_LEN: usize = 6;
    let opt = Opt { udp_size: UDP_SIZE, ..client };
    let Some(error) = error else { return opt.push(response, 0) };
    let room = MOST_BYTES.saturating_sub(response.len() + Opt::LEN + OPTION_LEN);
    let text = error.text.get(..error.text.floor_char_boundary(room)).unwrap_or_default();
    let len = (OPTION_LEN + text.len()) as u16;
    opt.push(response, len);
    for field in [EXTENDED_ERROR, len - 4, error.code] {
        response.extend_from_slice(&field.to_be_bytes());
    }
    response.extend_from_slice(text.as_bytes());
}

/// Types that are refused for all names, and the reasons.
const USELESS: [(RangeInclusive<u16>, &str); 7] = [
    (0..=0, "type 0 is reserved"),
    (3..=4, "MD and MF are obsolete"),
    (10..=10, "NULL records carry arbitrary data"),
    (41..=41, "OPT is no type to ask for"),
    // RFC 6895 §3.1. This range includes ANY (RFC 8482), AXFR, IXFR, MAILA, MAILB, TSIG and TKEY.
    (128..=255, "meta types and zone transfers are of no use to a client that only connects"),
    (65_280..=65_534, "private types carry arbitrary data"),
    (65_535..=65_535, "type 65535 is reserved"),
];

/// The reason why a question is refused for all names. None if the decision depends on the name. A client that only
/// connects to servers does not need the refused questions, but they could carry arbitrary data out of or into the
/// guest.
#[must_use]
pub fn refused_at_once(question: &Question<'_>) -> Option<&'static str> {
    if question.opcode != Opcode::QUERY {
        return Some("only queries are forwarded");
    }
    if question.class() != Class::IN {
        return Some("only the class IN is forwarded");
    }
    USELESS.iter().find(|(types, _)| types.contains(&question.kind().0)).map(|&(_, reason)| reason)
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec};

    use hickory_proto::{op, rr::rdata::opt::EdnsCode};

    use super::*;

    const ERROR: ExtendedError<'_> = ExtendedError { code: 15, text: "no rule allows it" };

    fn query(name: &[u8], kind: u16, opt: Option<u16>) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 0x01, 0x30, 0, 1, 0, 0, 0, 0, 0, u8::from(opt.is_some())];
        query.extend(name);
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        if let Some(flags) = opt {
            query.extend(b"\0\0\x29\x02\0\0\0");
            query.extend(flags.to_be_bytes());
            query.extend(b"\0\x04\0\x0a\0\0");
        }
        query
    }

    #[test]
    fn a_refusal_repeats_the_question_and_has_the_code() {
        for (refusal, code) in [
            (Refusal::NoName, op::ResponseCode::NXDomain),
            (Refusal::NoData, op::ResponseCode::NoError),
            (Refusal::NotImplemented, op::ResponseCode::NotImp),
        ] {
            let query = query(b"\x04PeeR\x04test\0", 28, None);
            let response = refuse(&query, refusal, Some(ERROR)).unwrap();
            assert_eq!(
                Question::parse(&query).unwrap().answered_by(&response).map(|code| code.0),
                Some(code.low())
            );
            let read = op::Message::from_vec(&response).unwrap();
            assert_eq!(read.metadata.response_code, code);
            assert!(read.metadata.recursion_desired && read.metadata.recursion_available);
            assert!(
                read.metadata.checking_disabled && !read.metadata.authentic_data && !read.metadata.truncation
            );
            assert!(read.answers.is_empty() && read.authorities.is_empty() && read.edns.is_none());
        }
    }

    #[test]
    fn the_error_goes_to_clients_with_opt() {
        for flags in [0x8000, 0x4000, 0] {
            let response =
                refuse(&query(b"\x04peer\0", 1, Some(flags)), Refusal::NoName, Some(ERROR)).unwrap();
            let edns = op::Message::from_vec(&response).unwrap().edns.unwrap();
            assert_eq!((edns.flags().dnssec_ok, edns.version()), (flags == 0x8000, 0));
            let option = edns.option(EdnsCode::from(EXTENDED_ERROR)).unwrap();
            let bytes = Vec::try_from(option).unwrap();
            assert_eq!(bytes, [&[0, 15][..], ERROR.text.as_bytes()].concat());
        }
    }

    #[test]
    fn the_longest_refusal_is_512_bytes() {
        let longest = [[63; 64].as_slice(), &[63; 64], &[63; 64], &[61; 62], b"\0"].concat();
        let text: String = core::iter::repeat_n('ä', 500).collect();
        for name in [&longest[..], b"\0"] {
            let response = refuse(
                &query(name, 1, Some(0)),
                Refusal::NoName,
                Some(ExtendedError { text: &text, ..ERROR }),
            );
            let response = response.unwrap();
            // At the limit, a character of two bytes does not fit, and one byte stays free.
            assert!((511..=512).contains(&response.len()));
            assert!(op::Message::from_vec(&response).unwrap().edns.is_some());
        }
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let good = query(b"\x04peer\0", 1, None);
        let mut response = good.clone();
        response[2] |= 0x80;
        let mut two = good.clone();
        two[5] = 2;
        for bad in [&response[..], &two, &good[..good.len() - 1], b""] {
            assert_eq!(refuse(bad, Refusal::NoName, Some(ERROR)), None);
        }
        // The bytes after the question are not a record, so there is no OPT record to answer.
        let mut cut = query(b"\x04peer\0", 1, Some(0));
        cut.truncate(cut.len() - 1);
        assert_eq!(refuse(&cut, Refusal::NoName, Some(ERROR)).unwrap().len(), good.len());
    }

    #[test]
    fn questions_that_are_refused_whatever_their_name() {
        let refused =
            |kind| refused_at_once(&Question::parse(&query(b"\x04peer\0", kind, None)).unwrap()).is_some();
        for kind in [0, 3, 10, 41, 128, 249, 250, 251, 252, 253, 254, 255, 65_280, 65_399, 65_535] {
            assert!(refused(kind), "{kind}");
        }
        for kind in [1, 2, 5, 6, 12, 15, 16, 28, 33, 35, 43, 46, 48, 52, 64, 65, 127, 256, 257] {
            assert!(!refused(kind), "{kind}");
        }
        let mut other = query(b"\x04peer\0", 1, None);
        *other.last_mut().unwrap() = 3;
        assert!(refused_at_once(&Question::parse(&other).unwrap()).is_some());
        let mut update = query(b"\x04peer\0", 1, None);
        update[2] |= 5 << 3;
        assert!(refused_at_once(&Question::parse(&update).unwrap()).is_some());
    }
}
