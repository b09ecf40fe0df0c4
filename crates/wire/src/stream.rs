//! Frames on a byte stream, each behind its length (behaviour §9.2): 32 bits, big-endian, then the Ethernet frame.

use core::fmt;
use core::ops::{Range, RangeInclusive};

/// Length of what stands in front of a frame, in bytes.
pub const PREFIX_LEN: usize = 4;
/// Longest frame that is taken from a stream, in bytes.
pub const MAX_FRAME_LEN: usize = 65535;

/// A length above [`MAX_FRAME_LEN`]: the stream has lost its framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadLength(pub u32);

/// Numbers of the sockets that passt tries if no path is given, see [`default_socket`].
pub const DEFAULT_SOCKETS: RangeInclusive<u8> = 1..=99;

/// The path of the socket with this number (behaviour §9.2).
pub fn default_socket(number: u8) -> impl fmt::Display {
    fmt::from_fn(move |f| write!(f, "/tmp/passt_{number}.socket"))
}

/// What stands in front of a frame of `len` bytes.
#[must_use]
pub const fn prefix(len: usize) -> [u8; PREFIX_LEN] {
    (len as u32).to_be_bytes()
}

/// Finds the frames in a stream that was read to a buffer, always the same one, in pieces of any length.
///
/// The buffer is the caller's: frames are found in place, and moved only if the end of one did not fit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unframer {
    /// Where in the buffer the bytes not looked at yet start, and end.
    start: usize,
    end: usize,
}

impl Unframer {
    /// Where the next frame is; none if it is not complete. It may be shorter than an Ethernet header, or empty: such a
    /// frame is malformed, but the next one starts after it.
    ///
    /// # Errors
    /// [`BadLength`], again and again.
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

    /// Room for more of the stream: at least for the rest of a frame, if the buffer has room for one with its length. To
    /// be called when there is no complete frame; what was found before is overwritten.
    pub fn room<'a>(&mut self, buffer: &'a mut [u8]) -> &'a mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if buffer.len() - self.start < PREFIX_LEN + MAX_FRAME_LEN {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut buffer[self.end..]
    }

    /// `len` bytes of what [`Unframer::room`] returned last were filled.
    pub const fn filled(&mut self, len: usize) {
        self.end += len;
    }

    /// Whether the stream stops between two frames.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }
}
