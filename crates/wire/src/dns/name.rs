//! Names in a message, which may be compressed (RFC 1035 §4.1.4).

use core::fmt;

use crate::domain::MAX_LEN;

/// Maximum number of pointers that are followed in one name: the maximum number of labels of a name.
const MOST_POINTERS: usize = MAX_LEN / 2;

/// A valid name in a message. All its pointers lead to earlier offsets, and its length without compression is at most
/// [`MAX_LEN`] bytes.
#[derive(Clone, Copy)]
pub struct Name<'a> {
    message: &'a [u8],
    at: usize,
}

/// A part of a name at the position where the record contains it. Parts that a pointer leads to are not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A label of at least one byte.
    Label {
        /// Offset of its length byte in the message.
        at: usize,
    },
    /// The last part of a compressed name: a pointer to the remaining labels.
    Pointer {
        /// Offset of its two bytes in the message.
        at: usize,
        /// Offset of the remaining labels in the message.
        target: usize,
    },
    /// The last part of a name that is not compressed: the root label.
    Root {
        /// Offset of the part in the message.
        at: usize,
    },
}

impl Part {
    /// Offset of the part in the message.
    #[must_use]
    pub const fn at(self) -> usize {
        let (Self::Label { at } | Self::Pointer { at, .. } | Self::Root { at }) = self;
        at
    }
}

/// One step through a name: a label with the offset after it, the target of a pointer, or the root label.
enum Step<'a> {
    Label(&'a [u8], usize),
    Pointer(usize),
    Root,
}

fn step(message: &[u8], at: usize) -> Option<Step<'_>> {
    const LABEL: u8 = 0x00;
    const POINTER: u8 = 0xc0;
    let first = *message.get(at)?;
    let len = usize::from(first);
    match first & POINTER {
        LABEL if len == 0 => Some(Step::Root),
        LABEL => message.get(at + 1..at + 1 + len).map(|label| Step::Label(label, at + 1 + len)),
        POINTER => {
            let low = *message.get(at + 1)?;
            Some(Step::Pointer(usize::from(u16::from_be_bytes([first & !POINTER, low]))))
        }
        // Reserved or withdrawn label types (RFC 6891 §5).
        _ => None,
    }
}

impl<'a> Name<'a> {
    /// Parses a name outside a message, without compression. None if the name is malformed, or `bytes` has more bytes
    /// than the name.
    #[must_use]
    pub fn alone(bytes: &'a [u8]) -> Option<Self> {
        Self::parse(bytes, 0).and_then(|(name, end)| (end == bytes.len()).then_some(name))
    }

    /// The name at offset `at`, and the offset of the bytes after it. None if the name is malformed.
    pub(super) fn parse(message: &'a [u8], at: usize) -> Option<(Self, usize)> {
        let (mut place, mut start, mut len, mut pointers) = (at, at, 1, 0);
        let mut end = None;
        loop {
            match step(message, place)? {
                Step::Root => return Some((Self { message, at }, end.unwrap_or(place + 1))),
                Step::Label(label, next) => {
                    len += 1 + label.len();
                    place = next;
                }
                Step::Pointer(target) => {
                    // Pointers may only lead backwards, so there is no loop.
                    pointers += 1;
                    if target >= start || pointers > MOST_POINTERS {
                        return None;
                    }
                    end = end.or(Some(place + 2));
                    (place, start) = (target, target);
                }
            }
            if len > MAX_LEN {
                return None;
            }
        }
    }

    /// The labels, without the root label.
    pub fn labels(self) -> impl Iterator<Item = &'a [u8]> {
        let mut place = self.at;
        core::iter::from_fn(move || {
            loop {
                match step(self.message, place)? {
                    Step::Root => return None,
                    Step::Pointer(target) => place = target,
                    Step::Label(label, next) => {
                        place = next;
                        return Some(label);
                    }
                }
            }
        })
    }

    /// The parts of the name at its own position. The labels that its pointer leads to are not included.
    pub fn parts(self) -> impl Iterator<Item = Part> {
        let mut place = Some(self.at);
        core::iter::from_fn(move || {
            let at = place.take()?;
            Some(match step(self.message, at)? {
                Step::Root => Part::Root { at },
                Step::Pointer(target) => Part::Pointer { at, target },
                Step::Label(_, next) => {
                    place = Some(next);
                    Part::Label { at }
                }
            })
        })
    }

    /// Writes the name to the start of `buffer`, without compression and in lower case. In this form, equal names have
    /// equal bytes (RFC 4034 §6.2). Returns its length in bytes.
    pub fn write_canonical(self, buffer: &mut [u8; MAX_LEN]) -> usize {
        let mut at = 0;
        for label in self.labels() {
            // The label fits: the name's length was checked when the name was parsed.
            let Some(place) = buffer.get_mut(at..at + 1 + label.len()) else { break };
            place[0] = label.len() as u8;
            place[1..].copy_from_slice(label);
            place[1..].make_ascii_lowercase();
            at += place.len();
        }
        if let Some(place) = buffer.get_mut(at) {
            *place = 0;
        }
        at + 1
    }
}

/// The name in dotted form, see [`write_text`].
impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_text(self.labels(), f)
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Writes labels in dotted form, in lower case, without a dot at the end. The root is written as a dot. A byte that is
/// not a letter, digit, hyphen or underscore is written as a backslash and three decimal digits (RFC 1035 §5.1).
/// Asterisks, and dots within a label, are written in this way too: a label of a message must not look like two labels,
/// or like a wildcard.
///
/// # Errors
/// The error of `text`.
pub fn write_text<'a>(labels: impl Iterator<Item = &'a [u8]>, text: &mut impl fmt::Write) -> fmt::Result {
    let mut empty = true;
    for label in labels {
        if !empty {
            text.write_char('.')?;
        }
        empty = false;
        for byte in label.iter().map(u8::to_ascii_lowercase) {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => text.write_char(byte.into())?,
                _ => write!(text, "\\{byte:03}")?,
            }
        }
    }
    if empty { text.write_char('.') } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{string::ToString, vec, vec::Vec};

    use super::*;

    fn parsed(message: &[u8], at: usize) -> Option<(std::string::String, usize)> {
        Name::parse(message, at).map(|(name, end)| (name.to_string(), end))
    }

    #[test]
    fn names_are_read_with_and_without_compression() {
        let message = b"....\x04Peer\x04tesT\0\x03www\xc0\x04\xc0\x0f\xc0\x13\0";
        for (at, text, end) in [
            (4, "peer.test", 15),
            (15, "www.peer.test", 21),
            (21, "www.peer.test", 23),
            (23, "peer.test", 25),
            (25, ".", 26),
        ] {
            assert_eq!(parsed(message, at), Some((text.to_string(), end)), "{at}");
        }
        let (name, _) = Name::parse(message, 15).unwrap();
        let mut buffer = [0; MAX_LEN];
        assert_eq!(name.write_canonical(&mut buffer), 15);
        assert_eq!(&buffer[..15], b"\x03www\x04peer\x04test\0");
        let parts: Vec<Part> = name.parts().collect();
        assert_eq!(parts, [Part::Label { at: 15 }, Part::Pointer { at: 19, target: 4 }]);
        let parts: Vec<usize> = Name::parse(message, 4).unwrap().0.parts().map(Part::at).collect();
        assert_eq!(parts, [4, 9, 14]);
        assert!(Name::alone(&message[4..15]).is_some());
        assert!(Name::alone(&message[4..16]).is_none());
    }

    #[test]
    fn malformed_names_are_refused() {
        for (message, at) in [
            (&b"\x04pee"[..], 0),
            (b"\x04peer", 0),
            (b"", 0),
            (b"\xc0\x00", 0),
            (b"\xc0", 0),
            (b"\0\xc0\x01", 1),
            (b"\0\xc0\x02", 1),
            (b"\x01a\xc0\x00", 0), // a pointer to itself
            (b"\x01a\xc0\x00", 2), // a loop
            (b"\x40a\0", 0),
            (b"\x80a\0", 0),
        ] {
            assert!(Name::parse(message, at).is_none(), "{message:?} {at}");
        }
    }

    #[test]
    fn lengths_and_pointers_are_bounded() {
        // Labels of 63 bytes. After each label, there is a pointer to the previous label.
        let mut message = vec![0];
        let mut starts = vec![0];
        for _ in 0..4 {
            let before = *starts.last().unwrap();
            starts.push(message.len());
            message.extend([&[63][..], &[b'x'; 63], &[0xc0 | (before >> 8) as u8, before as u8]].concat());
        }
        let lens = starts.iter().map(|&at| {
            let mut buffer = [0; MAX_LEN];
            Name::parse(&message, at).map(|(name, _)| name.write_canonical(&mut buffer))
        });
        assert_eq!(lens.collect::<Vec<_>>(), [Some(1), Some(65), Some(129), Some(193), None]);
        // Pointers to pointers.
        let mut message = vec![0];
        for number in 0..200_u8 {
            let before = if number == 0 { 0 } else { usize::from(number) * 2 - 1 };
            message.extend([0xc0 | (before >> 8) as u8, before as u8]);
        }
        let good = (0..200).filter(|number| Name::parse(&message, number * 2 + 1).is_some()).count();
        assert_eq!(good, MOST_POINTERS);
    }

    #[test]
    fn special_bytes_are_escaped() {
        let message = b"\x05a.b*\\\x04c_-\xff\0";
        assert_eq!(parsed(message, 0).unwrap().0, "a\\046b\\042\\092.c_-\\255");
    }
}
