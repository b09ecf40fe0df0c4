//! TCP (RFC 9293), with the options of RFC 7323 (window scale) and RFC 2018 (SACK).

use core::ops::{Add, AddAssign, Sub};

use bitflags::bitflags;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

use crate::payload::Payload;

/// Length of [`Header`] without options, in bytes.
pub const HEADER_LEN: usize = 20;
/// Longest options of a header, in bytes: the header length field counts up to 60 bytes.
pub const MAX_OPTIONS_LEN: usize = 40;
/// Offset of the checksum in the header, in bytes.
pub const CHECKSUM_OFFSET: u16 = 16;
/// Maximum number of SACK blocks in one segment. Four blocks of 8 bytes, with 4 bytes of kind, length and padding, take
/// 36 of the 40 bytes (RFC 2018 §3). With timestamps, only three blocks would fit, but this stack sends no timestamps.
pub const MAX_SACK_BLOCKS: usize = 4;
/// Largest window scale (RFC 7323 §2.3).
pub const MAX_WINDOW_SCALE: u8 = 14;
/// The MSS of a peer that does not announce one, in bytes (RFC 9293 §3.7.1).
pub const DEFAULT_MSS: u16 = 536;

/// A sequence number, in host byte order.
///
/// Sequence numbers wrap, so they have no total order (there is no `Ord`). They are compared by their signed distance,
/// which is meaningful for numbers less than 2^31 apart (RFC 9293 §3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` comes before `other`.
    #[must_use]
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether `self` comes after `other`.
    #[must_use]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// The later of two sequence numbers.
    #[must_use]
    pub const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two sequence numbers.
    #[must_use]
    pub const fn min(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, bytes: u32) {
        *self = *self + bytes;
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    fn sub(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }
}

/// The distance from `other` to `self` in bytes. Meaningful only if `self` is not before `other`.
impl Sub for Seq {
    type Output = u32;
    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

bitflags! {
    /// Control bits (RFC 9293 §3.1, RFC 3168 §6.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Flags: u8 {
        /// No more data from the sender.
        const FIN = 0x01;
        /// Synchronise sequence numbers.
        const SYN = 0x02;
        /// Reset the connection.
        const RST = 0x04;
        /// Push.
        const PSH = 0x08;
        /// The acknowledgment field is significant.
        const ACK = 0x10;
        /// The urgent pointer is significant.
        const URG = 0x20;
        /// ECN echo.
        const ECE = 0x40;
        /// Congestion window reduced.
        const CWR = 0x80;
    }
}

/// The fixed part of the header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Header {
    /// Source port.
    pub source_port: U16,
    /// Destination port.
    pub destination_port: U16,
    /// Sequence number of the first byte (or of the SYN).
    pub sequence: U32,
    /// Next sequence number expected from the other side.
    pub acknowledgment: U32,
    /// Header length in 32-bit words, in the high nibble.
    pub data_offset: u8,
    /// Control bits, see [`Flags`].
    pub flags: u8,
    /// Window, not scaled.
    pub window: U16,
    /// Checksum.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

impl Header {
    /// A header for `options_len` bytes of options (a multiple of four), with a checksum of zero. `ports` are the
    /// source and destination port. `ports` and `window` are in host byte order.
    #[must_use]
    pub fn new(ports: (u16, u16), seq: Seq, ack: Seq, flags: Flags, window: u16, options_len: usize) -> Self {
        debug_assert!(options_len.is_multiple_of(4) && options_len <= MAX_OPTIONS_LEN);
        Self {
            source_port: U16::new(ports.0),
            destination_port: U16::new(ports.1),
            sequence: U32::new(seq.0),
            acknowledgment: U32::new(ack.0),
            data_offset: (((HEADER_LEN + options_len) / 4) << 4) as u8,
            flags: flags.bits(),
            window: U16::new(window),
            checksum: U16::ZERO,
            urgent: U16::ZERO,
        }
    }

    /// Sets the urgent pointer and the URG flag. `pointer` is in bytes from the sequence number, and points to the byte
    /// after the urgent data (RFC 9293 §3.1).
    pub fn set_urgent(&mut self, pointer: u16) {
        self.urgent = U16::new(pointer);
        self.flags |= Flags::URG.bits();
    }

    /// Length of the header with its options, in bytes; less than [`HEADER_LEN`] if malformed.
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

/// A view of one segment, or of a super-frame that contains several.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a, P = &'a [u8]> {
    /// The fixed header.
    pub header: &'a Header,
    /// The options, as bytes: see [`Options::parse`].
    pub options: &'a [u8],
    /// The payload.
    pub payload: P,
}

impl<'a, P: Payload> Segment<'a, P> {
    /// A view of the segment `bytes`. `head` is the start of the segment, with the whole header. None if the header is
    /// truncated, or its length field is less than [`HEADER_LEN`].
    #[must_use]
    pub fn parse_head(head: &'a [u8], bytes: P) -> Option<Self> {
        let (header, rest) = Header::ref_from_prefix(head).ok()?;
        let options = rest.get(..header.header_len().checked_sub(HEADER_LEN)?)?;
        Some(Self { header, options, payload: bytes.slice(header.header_len()..bytes.len()) })
    }

    /// Sequence number of the first byte or the SYN.
    #[must_use]
    pub fn seq(&self) -> Seq {
        Seq(self.header.sequence.get())
    }

    /// Acknowledgment number; meaningful with [`Flags::ACK`].
    #[must_use]
    pub fn ack(&self) -> Seq {
        Seq(self.header.acknowledgment.get())
    }

    /// Control bits.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags::from_bits_retain(self.header.flags)
    }

    /// The sequence number of the urgent byte, if URG is set. The urgent byte is the last byte before the urgent
    /// pointer (RFC 9293 §3.1). A pointer of 0 is treated as 1, as in Linux.
    #[must_use]
    pub fn urgent(&self) -> Option<Seq> {
        let pointer = u32::from(self.header.urgent.get());
        self.flags().contains(Flags::URG).then(|| self.seq() + pointer.saturating_sub(1))
    }

    /// Window field, not scaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        self.header.window.get()
    }

    /// Sequence space that the segment occupies: the payload in bytes, plus one each for SYN and FIN (RFC 9293 §3.4).
    #[must_use]
    pub fn sequence_len(&self) -> u32 {
        let flags = self.flags();
        self.payload.len() as u32
            + u32::from(flags.contains(Flags::SYN))
            + u32::from(flags.contains(Flags::FIN))
    }
}

/// The blocks of a SACK option (RFC 2018 §3). Each block has a left edge, its first sequence number, and a right edge,
/// the sequence number after its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    blocks: [(Seq, Seq); MAX_SACK_BLOCKS],
    len: usize,
}

impl SackBlocks {
    /// Adds a block. False if there are [`MAX_SACK_BLOCKS`] already.
    pub fn push(&mut self, start: Seq, end: Seq) -> bool {
        let Some(slot) = self.blocks.get_mut(self.len) else { return false };
        *slot = (start, end);
        self.len += 1;
        true
    }

    /// The blocks, in the order of the option: the first one reports the segment that caused it (RFC 2018 §4).
    #[must_use]
    pub fn as_slice(&self) -> &[(Seq, Seq)] {
        &self.blocks[..self.len]
    }
}

/// Options of a segment (RFC 9293 §3.2, RFC 7323 §2, RFC 2018).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size in bytes (SYN only).
    pub mss: Option<u16>,
    /// Window scale: a shift count, at most [`MAX_WINDOW_SCALE`] (SYN only).
    pub window_scale: Option<u8>,
    /// SACK-permitted: the peer may send SACK options (SYN only).
    pub sack_permitted: bool,
    /// Ranges received out of order.
    pub sack: SackBlocks,
}

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;

impl Options {
    /// Parses options. Parsing cannot fail: a segment without valid options is still valid.
    ///
    /// An option of unknown kind, or with a wrong length for its kind, is skipped by its length (RFC 9293 §3.1). A
    /// length below two, or past the end, ends parsing, since the start of the next option is unknown. Edges of SACK
    /// blocks are not checked here: whether a block is in the window depends on the connection.
    #[must_use]
    pub fn parse(mut bytes: &[u8]) -> Self {
        let mut options = Self::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                END => break,
                NOP => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let Some(len) = rest.first().map(|&len| usize::from(len)) else { break };
            // The length includes the two bytes of kind and length, so `2..len` fails for 0 and 1. Otherwise an option
            // of length zero would cause an endless loop.
            let (Some(value), Some(next)) = (bytes.get(2..len), bytes.get(len..)) else { break };
            match (*kind, value) {
                (MSS, &[high, low]) => options.mss = Some(u16::from_be_bytes([high, low])),
                // RFC 7323 §2.3: a larger shift is treated as 14.
                (WINDOW_SCALE, &[shift]) => options.window_scale = Some(shift.min(MAX_WINDOW_SCALE)),
                (SACK_PERMITTED, []) => options.sack_permitted = true,
                (SACK, blocks) => {
                    // At most four blocks fit in 40 bytes of options, so `push` does not drop any block. An incomplete
                    // last block is ignored.
                    for block in blocks.chunks_exact(8) {
                        let edge = |i: usize| {
                            Seq(u32::from_be_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]))
                        };
                        options.sack.push(edge(0), edge(4));
                    }
                }
                _ => {}
            }
            bytes = next;
        }
        options
    }

    /// Writes the options, padded with NOP to a multiple of four bytes; returns their length in bytes.
    ///
    /// The options of a SYN fit (12 bytes). Four SACK blocks fit if there are no other options (36 bytes). An option
    /// that does not fit is left out. The NOPs come first, so that 32-bit values are aligned (RFC 7323, appendix A).
    pub fn emit(&self, buffer: &mut [u8; MAX_OPTIONS_LEN]) -> usize {
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            if let Some(place) = buffer.get_mut(len..len + bytes.len()) {
                place.copy_from_slice(bytes);
                len += bytes.len();
            }
        };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            put(&[MSS, 4, high, low]);
        }
        if self.sack_permitted {
            put(&[NOP, NOP, SACK_PERMITTED, 2]);
        }
        if let Some(shift) = self.window_scale {
            put(&[NOP, WINDOW_SCALE, 3, shift]);
        }
        let blocks = self.sack.as_slice();
        if !blocks.is_empty() {
            put(&[NOP, NOP, SACK, (2 + 8 * blocks.len()) as u8]);
            for (start, end) in blocks {
                put(&start.0.to_be_bytes());
                put(&end.0.to_be_bytes());
            }
        }
        len
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Numbers less than 2^31 apart are in the order of the positions in the byte stream that they stand for.
        #[test]
        fn sequence_numbers_are_ordered_like_positions(
            position in 0..1_u64 << 40,
            distance in -(1_i64 << 31) + 1..1_i64 << 31,
        ) {
            let seq = |position: u64| Seq(position as u32);
            let other_position = position.saturating_add_signed(distance);
            let (one, other) = (seq(position), seq(other_position));
            prop_assert_eq!(one.before(other), position < other_position);
            prop_assert_eq!(one.after(other), position > other_position);
            prop_assert_eq!(one.max(other), seq(position.max(other_position)));
            prop_assert_eq!(one.min(other), seq(position.min(other_position)));
            let bytes = position.abs_diff(other_position) as u32;
            prop_assert_eq!(one.max(other) - one.min(other), bytes);
            prop_assert_eq!(one.min(other) + bytes, one.max(other));
            prop_assert_eq!(one.max(other) - bytes, one.min(other));
        }
    }

    #[test]
    fn options_survive_a_round_trip() {
        let mut syn =
            Options { mss: Some(65480), window_scale: Some(8), sack_permitted: true, ..Options::default() };
        let mut buffer = [0; MAX_OPTIONS_LEN];
        let len = syn.emit(&mut buffer);
        assert_eq!(len % 4, 0);
        assert_eq!(Options::parse(&buffer[..len]), syn);

        syn = Options::default();
        for i in 0..MAX_SACK_BLOCKS as u32 {
            assert!(syn.sack.push(Seq(i * 10), Seq(i * 10 + 5)));
        }
        assert!(!syn.sack.push(Seq(0), Seq(1)));
        let len = syn.emit(&mut buffer);
        assert_eq!(Options::parse(&buffer[..len]), syn);
    }

    #[test]
    fn malformed_lengths_end_parsing() {
        for bytes in
            [&[MSS][..], &[MSS, 0], &[MSS, 1, 3], &[MSS, 4, 1], &[SACK, 255, 1], &[NOP, NOP, 99, 200]]
        {
            assert_eq!(Options::parse(bytes), Options::default(), "{bytes:?}");
        }
        assert_eq!(Options::parse(&[WINDOW_SCALE, 3, 200]).window_scale, Some(MAX_WINDOW_SCALE));
    }

    #[test]
    fn sequence_numbers_wrap() {
        let top = Seq(u32::MAX - 1);
        assert!(top.before(top + 4));
        assert_eq!((top + 4) - top, 4);
        assert_eq!(top.max(top + 4), Seq(2));
    }
}
