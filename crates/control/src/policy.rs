//! Requests about the policy, which has the rules about the destinations of the guest (docs/guard.md), and the replies
//! to these requests.
//!
//! A client sends a request in place of an update. This is an extension of the C implementation's protocol. A server
//! that supports requests announces [`Capabilities::POLICY`](crate::message::Capabilities::POLICY), and clients of the
//! C implementation ignore this bit. A server without this extension reads the request as an update: the first byte as
//! the identifier of a table, which does not exist, and the next four bytes as a number of rules, which exceeds the
//! limit. So the server refuses the request at once, and nothing changes.
//!
//! ```text
//! request = MARK, verb (u32), length (u32), text
//! reply   = status (u8), length (u32), text
//! ```
//!
//! | verb | text of the request | text of the reply |
//! |---|---|---|
//! | 1: show | empty | the rules in force, as a policy file |
//! | 2: replace | a policy file | how many flows have ended |
//!
//! The status is 0 if the request took effect. Otherwise the status is 1, the text is the reason, and nothing has
//! changed.

use std::io::{self, Read};

use engine::policy::spec::{MAX_FILE_LEN, MAX_RULE_LEN, MAX_RULES};
use zerocopy::byteorder::network_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::message::Decoded;
use crate::reply::{APPLIED, REFUSED, Reply, printable};

/// First bytes of a request. The first byte is not the identifier of any table. The last byte is the version.
const MARK: [u8; 8] = *b"\xffpolicy1";
const SHOW: u32 = 1;
const REPLACE: u32 = 2;

/// Length of the longest request, in bytes.
pub const MAX_LEN: usize = size_of::<Head>() + MAX_FILE_LEN;

/// Length of the longest text of a reply, in bytes: all rules of the largest policy, each with its action and an end of
/// line, and a few lines about the policy.
const MAX_TEXT: u32 = (MAX_RULES * (MAX_RULE_LEN + 16) + 4096) as u32;

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    mark: [u8; 8],
    verb: U32,
    len: U32,
}

/// A request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Show the rules in force.
    Show,
    /// Replace the rules by the rules of this policy file.
    Replace(&'a str),
}

/// The reason why a request is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first bytes are not those of a request.
    #[error("Unknown request: the client may be newer than the server")]
    Mark,
    /// The server does not support this kind of request.
    #[error("Unknown request {0} about the policy: the client may be newer than the server")]
    Verb(u32),
    /// The text is too long.
    #[error("The policy has {0} bytes (max {MAX_FILE_LEN})")]
    TooLong(u32),
    /// The text is not UTF-8.
    #[error("The policy is not UTF-8")]
    NotText,
}

/// Whether a message that begins with `bytes` is a request. If not, it is an update.
#[must_use]
pub fn is_request(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARK[0])
}

/// Encodes a request.
#[must_use]
pub fn encode(request: &Request<'_>) -> Vec<u8> {
    let (verb, text) = match request {
        Request::Show => (SHOW, ""),
        Request::Replace(text) => (REPLACE, *text),
    };
    let head = Head { mark: MARK, verb: verb.into(), len: (text.len() as u32).into() };
    [head.as_bytes(), text.as_bytes()].concat()
}

/// Decodes a request.
///
/// # Errors
/// The request is invalid. Nothing changes.
pub fn decode(bytes: &[u8]) -> Result<Decoded<Request<'_>>, Error> {
    let known = bytes.len().min(MARK.len());
    if bytes[..known] != MARK[..known] {
        return Err(Error::Mark);
    }
    let Ok((head, text)) = Head::ref_from_prefix(bytes) else {
        return Ok(Decoded::Needs(size_of::<Head>()));
    };
    let len = match (head.verb.get(), head.len.get()) {
        (SHOW, 0) => return Ok(Decoded::Whole(Request::Show)),
        (SHOW, _) => return Err(Error::Mark),
        (REPLACE, len) if len as usize > MAX_FILE_LEN => return Err(Error::TooLong(len)),
        (REPLACE, len) => len as usize,
        (verb, _) => return Err(Error::Verb(verb)),
    };
    match text.get(..len) {
        None => Ok(Decoded::Needs(size_of::<Head>() + len)),
        Some(text) => {
            let text = std::str::from_utf8(text).map_err(|_| Error::NotText)?;
            Ok(Decoded::Whole(Request::Replace(text)))
        }
    }
}

/// The first bytes of the reply to a request that took effect. A text of `len` bytes must follow.
#[must_use]
pub fn reply_head(len: usize) -> [u8; 5] {
    head(APPLIED, len)
}

/// Encodes a reply. `Ok` has the text of the reply if the request took effect. `Err` has the reason why the request was
/// refused.
#[must_use]
pub fn encode_reply(outcome: Result<&str, &str>) -> Vec<u8> {
    let (status, text) = match outcome {
        Ok(text) => (APPLIED, text),
        Err(text) => (REFUSED, text),
    };
    [&head(status, text.len())[..], text.as_bytes()].concat()
}

fn head(status: u8, len: usize) -> [u8; 5] {
    let [a, b, c, d] = (len as u32).to_be_bytes();
    [status, a, b, c, d]
}

/// Reads the reply of a server. Control characters in the text other than newlines become `?`, so that it is safe to
/// print on a terminal.
///
/// # Errors
/// `InvalidData` for a reply that no server sends. `UnexpectedEof` if the text is incomplete. The error of `stream`.
pub fn read_reply(mut stream: impl Read) -> io::Result<Reply> {
    let mut status = Vec::new();
    if stream.by_ref().take(1).read_to_end(&mut status)? == 0 {
        return Ok(Reply::Unsupported);
    }
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len);
    if len > MAX_TEXT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    stream.take(len.into()).read_to_end(&mut text)?;
    if text.len() < len as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match status[..] {
        [APPLIED] => Ok(Reply::Applied(printable(&text))),
        [REFUSED] => Ok(Reply::Refused(printable(&text))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::decode_update;

    /// A server without this extension refuses every request at once.
    #[test]
    fn other_servers_refuse_requests() {
        for request in [Request::Show, Request::Replace("allow all")] {
            let bytes = encode(&request);
            assert!(is_request(&bytes));
            assert_eq!(decode_update(&bytes[..1]), Ok(Decoded::Needs(5)));
            assert!(matches!(decode_update(&bytes[..5]), Err(crate::message::Error::TooManyRules(_))));
        }
        assert!(!is_request(&crate::message::encode_update(&Default::default())));
    }

    #[test]
    fn requests_round_trip_and_need_all_of_their_bytes() {
        for request in [Request::Show, Request::Replace(""), Request::Replace("allow all\n# \u{e4}\n")] {
            let bytes = encode(&request);
            assert_eq!(decode(&bytes), Ok(Decoded::Whole(request)));
            for end in 0..bytes.len() {
                let Ok(Decoded::Needs(needs)) = decode(&bytes[..end]) else { panic!("{end}") };
                assert!(needs > end && needs <= bytes.len(), "{end}: {needs}");
            }
        }
    }

    #[test]
    fn invalid_requests() {
        let altered = |at: usize, byte: u8| {
            let mut bytes = encode(&Request::Replace("allow all"));
            bytes[at] = byte;
            decode(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(altered(7, b'2'), Error::Mark);
        assert_eq!(altered(11, 9), Error::Verb(9));
        assert_eq!(altered(11, SHOW as u8), Error::Mark);
        assert_eq!(altered(12, 0xff), Error::TooLong(0xff00_0009));
        assert_eq!(altered(18, 0xff), Error::NotText);
        // A request is refused as soon as the first wrong byte has arrived.
        assert_eq!(decode(b"\xffp_"), Err(Error::Mark));
    }

    #[test]
    fn replies_round_trip() {
        assert_eq!(
            read_reply(&*encode_reply(Ok("allow all\n"))).unwrap(),
            Reply::Applied("allow all\n".into())
        );
        assert_eq!(read_reply(&*encode_reply(Err("line 7"))).unwrap(), Reply::Refused("line 7".into()));
        assert_eq!(encode_reply(Ok("ab")), [&reply_head(2)[..], b"ab"].concat());
        // Bytes after the text are not read.
        assert_eq!(read_reply(&b"\x00\0\0\0\x03a\x1b[2J"[..]).unwrap(), Reply::Applied("a?[".into()));
    }

    #[test]
    fn replies_of_other_servers() {
        assert_eq!(read_reply(&b""[..]).unwrap(), Reply::Unsupported);
        for (bytes, kind) in [
            (&b"\x01\0\0"[..], io::ErrorKind::UnexpectedEof),
            (b"\x00\0\0\0\x03ab", io::ErrorKind::UnexpectedEof),
            (b"\x01Too many forwarding rules", io::ErrorKind::InvalidData),
            (b"\x07\0\0\0\0", io::ErrorKind::InvalidData),
        ] {
            assert_eq!(read_reply(bytes).unwrap_err().kind(), kind, "{bytes:?}");
        }
    }

    proptest! {
        /// Any input is decoded, is refused, or needs more bytes, up to the length of the longest request.
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64), start in 0..20_usize) {
            let whole = encode(&Request::Replace("deny all"));
            for bytes in [&bytes[..], &[&whole[..start], &bytes].concat()] {
                if let Ok(Decoded::Needs(needs)) = decode(bytes) {
                    prop_assert!(needs > bytes.len() && needs <= MAX_LEN);
                }
            }
        }
    }
}
