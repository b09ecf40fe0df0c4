//! Rebuilt queries: the query to a resolver that replaces the guest's own query, and the answer in the form that
//! matches the guest's query.
//!
//! Upper and lower case, options and unused fields of a query can carry data out of the guest. So with rules by name,
//! the resolver gets a new query. It has only the question, in lower case, and some flags of the guest's query.

use alloc::vec::Vec;

use wire::dns::{HEADER_LEN, Question};

use super::refusal::Opt;

/// The flag RD (recursion desired), in the first byte of flags.
const RECURSION_DESIRED: u8 = 0x01;
/// The flags AD (the client understands AD) and CD (the client validates signatures itself), in the second byte of
/// flags (RFC 6840 §5.7, §5.9).
const AUTHENTIC_AND_CHECKING: u8 = 0x30;

/// The maximum answer lengths over UDP that a rebuilt query can request, in bytes. Clients use these values. An
/// arbitrary value of the guest could carry data.
const SIZES: [u16; 3] = [4096, 1232, 512];

/// The query for a resolver. It has this ID, and these parts of the guest's query `message`: the question, the flags
/// RD, AD and CD, and the flag DO of the OPT record. If there is an OPT record, its size is rounded down to a value in
/// [`SIZES`]. None if `message` is not a query with exactly one question.
pub(super) fn rebuild(message: &[u8], id: u16) -> Option<Vec<u8>> {
    let question = Question::parse(message)?;
    let &[first, second] = message.get(2..)?.first_chunk()?;
    let opt = Opt::of(message);
    let mut query = Vec::with_capacity(HEADER_LEN + question.section().len() + Opt::LEN);
    query.extend_from_slice(&id.to_be_bytes());
    query.extend_from_slice(&[first & RECURSION_DESIRED, second & AUTHENTIC_AND_CHECKING]);
    for count in [1, 0, 0, u16::from(opt.is_some())] {
        query.extend_from_slice(&count.to_be_bytes());
    }
    // Length bytes are at most 63, less than the code of any letter, so they do not change. Type and class are not part
    // of the name.
    let (name, kind_and_class) = question.section().split_at(question.section().len().saturating_sub(4));
    query.extend(name.iter().map(u8::to_ascii_lowercase));
    query.extend_from_slice(kind_and_class);
    if let Some(opt) = opt {
        let udp_size = SIZES.into_iter().find(|size| *size <= opt.udp_size).unwrap_or(SIZES[2]);
        Opt { udp_size, ..opt }.push(&mut query, 0);
    }
    Some(query)
}

/// Replaces the ID and the question in the answer to a rebuilt query by those of the guest's own query `message`.
/// Clients compare the question with upper and lower case (0x20 encoding).
pub(super) fn restore(answer: &mut [u8], message: &[u8]) {
    let Some(question) = Question::parse(message) else { return };
    if let Some(id) = answer.first_chunk_mut() {
        *id = question.id.to_be_bytes();
    }
    let has_question = answer.get(4..6).is_some_and(|count| count != [0, 0]);
    let section = answer.get_mut(HEADER_LEN..HEADER_LEN + question.section().len());
    if let Some(section) = section.filter(|_| has_question) {
        section.copy_from_slice(question.section());
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const NAME: &[u8] = b"\x04PeeR\x04tEst\0\0\x1c\0\x01";

    fn query(flags: [u8; 2], opt: Option<&[u8]>) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, u8::from(opt.is_some())];
        query.extend(NAME);
        query.extend(opt.unwrap_or_default());
        query
    }

    #[test]
    fn a_resolver_gets_the_question_and_nothing_else() {
        // An OPT record with all flags, an EDNS version, and a cookie option.
        let opt = b"\0\0\x29\x13\x37\x01\x02\xff\xff\0\x0c\0\x0a\0\x08datadata";
        let mut message = query([0x07, 0x7f], Some(opt));
        message.extend(b"and more");
        let rebuilt = rebuild(&message, 0xabcd).unwrap();
        let expected = [
            &[0xab, 0xcd, 0x01, 0x30, 0, 1, 0, 0, 0, 0, 0, 1][..],
            b"\x04peer\x04test\0\0\x1c\0\x01",
            b"\0\0\x29\x10\0\0\0\x80\0\0\0",
        ];
        assert_eq!(rebuilt, expected.concat());
        let plain = rebuild(&query([0, 0], None), 7).unwrap();
        assert_eq!(
            plain,
            [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x04peer\x04test\0\0\x1c\0\x01"].concat()
        );
        assert_eq!(rebuild(b"no query", 7), None);
        for (size, expected) in [(0, 512), (1231, 512), (1400, 1232), (65_535, 4096)] {
            let opt = [&b"\0\0\x29"[..], &u16::to_be_bytes(size), &[0; 6]].concat();
            let rebuilt = rebuild(&query([1, 0], Some(&opt)), 7).unwrap();
            assert_eq!(Opt::of(&rebuilt).unwrap().udp_size, expected);
        }
    }

    #[test]
    fn the_guest_gets_its_own_id_and_letters_back() {
        let message = query([1, 0], None);
        let mut answer = rebuild(&message, 0xabcd).unwrap();
        answer[2] |= 0x80;
        restore(&mut answer, &message);
        assert_eq!(answer[..2], [0x12, 0x34]);
        assert_eq!(&answer[12..], NAME);
        // An error without a question has no room for the question.
        let mut error = vec![0xab, 0xcd, 0x81, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        restore(&mut error, &message);
        assert_eq!(error, [0x12, 0x34, 0x81, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
