//! Frames on a byte stream (behaviour §9.2): a length of 32 bits in network byte order, then the Ethernet frame.

use core::fmt;
use core::ops::{Range, RangeInclusive};

/// Length of the length field before a frame, in bytes.
pub const PREFIX_LEN: usize = 4;
/// Longest frame that is accepted from a stream, in bytes.
pub const MAX_FRAME_LEN: usize = 65535;

/// A length field above [`MAX_FRAME_LEN`], in bytes. The start of the next frame is unknown: close the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength(pub u32);

/// The numbers that passt tries for its socket if no option gives a path, see [`default_socket`].
pub const DEFAULT_SOCKETS: RangeInclusive<u8> = 1..=99;

/// The path of the socket with this number (behaviour §9.2).
pub fn default_socket(number: u8) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "/tmp/passt_{number}.socket"))
}

/// The length field before a frame of `len` bytes.
#[must_use]
pub const fn prefix(len: usize) -> [u8; PREFIX_LEN] {
    (len as u32).to_be_bytes()
}

/// Finds the frames in a stream, which is read into a buffer in pieces of any length.
///
/// The caller owns the buffer, and passes the same one to every call. Frames are found in place. Bytes are moved only
/// if the end of a frame does not fit. The caller repeats these calls in this order: [`Unframer::room`], a read into
/// that room, [`Unframer::filled`], then [`Unframer::next_frame`] until it returns none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unframer {
    /// Offset in the buffer of the first byte that is not parsed.
    start: usize,
    /// Offset of the end of the bytes that were read.
    end: usize,
}

impl Unframer {
    /// The range of the next frame in the buffer. None if the frame is not complete. A frame may be empty, or shorter
    /// than an Ethernet header. Such a frame is malformed, but the next frame can be found.
    ///
    /// # Errors
    /// [`BadLength`], on this call and every later call.
    pub fn next_frame(&mut self, buffer: &[u8]) -> Result<Option<Range<usize>>, BadLength> {
        let Some(rest) = buffer.get(self.start..self.end) else { return Ok(None) };
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX_LEN>() else { return Ok(None) };
        let announced = u32::from_be_bytes(*prefix);
        let len = announced as usize;
        if len > MAX_FRAME_LEN {
            return Err(BadLength(announced));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let start = self.start + PREFIX_LEN;
        self.start = start + len;
        Ok(Some(start..start + len))
    }

    /// The part of the buffer for the next bytes of the stream. If the buffer is at least [`PREFIX_LEN`] +
    /// [`MAX_FRAME_LEN`] long, the rest of the frame fits. Call this only if the buffer has no complete frame: it
    /// overwrites the frames that were found before.
    pub fn room<'a>(&mut self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if buffer.len() - self.start < PREFIX_LEN + MAX_FRAME_LEN {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut buffer[self.end..]
    }

    /// Reports that `len` bytes were read into the result of the last [`Unframer::room`].
    pub const fn filled(&mut self, len: usize) {
        self.end += len;
    }

    /// Whether all bytes were parsed. If this is false at the end of the stream, the stream ended inside a frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }
}
