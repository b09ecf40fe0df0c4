//! Frames on their way to a stream socket: built in place, written many at a time.
//!
//! Payload is read once, for its checksum, and copied by the kernel alone: each segment of a super-frame is written as
//! two pieces, its headers and its part of the payload.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use engine::link::Full;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use wire::ethernet::MIN_FRAME_LEN;
use wire::frame;
use wire::offload::Offload;
use wire::segment::{Segments, complete_checksum};
use wire::stream::{PREFIX_LEN, prefix};

use crate::link::segmentation;
use crate::link::watcher::Watcher;

/// Maximum number of bytes that may wait to be written.
const CAPACITY: usize = 1 << 20;
/// When this many bytes wait, they are written at once, not at the end of the round.
const DUE: usize = 192 << 10;
/// Room for the headers of a super-frame's segments, of which the engine makes none shorter than 64 bytes.
const HEADERS: usize = (frame::MAX_LEN / 64 + 1) * (PREFIX_LEN + 128);
/// Maximum number of pieces written at a time.
const PIECES: usize = 512;

/// Frames that wait to be written.
pub(super) struct Outbox {
    buffer: Vec<u8>,
    /// Where the room for the next frame starts.
    end: usize,
    /// The parts of `buffer` to write, in this order.
    pieces: Vec<Range<usize>>,
    /// How many of `pieces` are written.
    written: usize,
    /// The socket is full: no write before it reports readiness.
    blocked: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], end: 0, pieces: Vec::new(), written: 0, blocked: false }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether enough waits to be written before the end of the round.
    pub(super) fn is_due(&self) -> bool {
        self.end >= DUE && !self.blocked
    }

    /// Drops the frames that wait.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        (self.end, self.written, self.blocked) = (0, 0, false);
    }

    /// Notes that the socket may take more.
    pub(super) const fn retry(&mut self) {
        self.blocked = false;
    }

    /// Whether a frame of `len` bytes fits, however it is segmented.
    pub(super) fn has_room(&self, len: usize) -> bool {
        CAPACITY - self.end >= PREFIX_LEN + len + HEADERS
    }

    /// Room for the next frame.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.end + PREFIX_LEN..).unwrap_or_default()
    }

    /// Takes over the frame in the first `len` bytes of the room.
    pub(super) fn commit(
        &mut self,
        len: usize,
        offload: &Offload,
        watcher: &mut Watcher,
    ) -> Result<(), Full> {
        let start = self.end + PREFIX_LEN;
        if offload.segmentation.is_some() {
            return self.commit_segments(start..start + len, offload, watcher);
        }
        let frame = self.buffer.get_mut(start..start + len).ok_or(Full)?;
        complete_checksum(frame, offload);
        watcher.sent(&[frame]);
        self.buffer[self.end..start].copy_from_slice(&prefix(len));
        self.push(self.end..start + len);
        self.end = start + len;
        Ok(())
    }

    /// Takes over the segments of a super-frame. Its payload stays where it is. The headers of each segment are written
    /// after the super-frame, and `pieces` lists them in turn with their parts of the payload:
    ///
    /// ```text
    /// buffer:  | ... | headers | payload 1 | payload 2 | length, headers 1 | length, headers 2 | free
    /// pieces:  ..., (length, headers 1), (payload 1), (length, headers 2), (payload 2)
    /// ```
    ///
    /// The super-frame's own length and headers are in no piece: those bytes are free again once all is written.
    /// [`Outbox::has_room`] has made sure that the headers fit.
    fn commit_segments(
        &mut self,
        frame: Range<usize>,
        offload: &Offload,
        watcher: &mut Watcher,
    ) -> Result<(), Full> {
        let mut end = frame.end;
        let (frames, room) = self.buffer.split_at_mut_checked(frame.end).ok_or(Full)?;
        let Some(segments) = Segments::new(&frames[frame.start..], offload) else { return Ok(()) };
        let lost = segmentation::send(segments, room, PREFIX_LEN, |room, headers, payload| {
            let payload = frame.start + payload.start..frame.start + payload.end;
            watcher.sent(&[&room[PREFIX_LEN..headers], &frames[payload.clone()]]);
            let whole = headers + payload.len();
            let padded = whole.max(PREFIX_LEN + MIN_FRAME_LEN);
            room[..PREFIX_LEN].copy_from_slice(&prefix(padded - PREFIX_LEN));
            let kept = if padded > whole {
                // A short frame is padded: a copy of its payload costs less than more pieces.
                room[headers..whole].copy_from_slice(&frames[payload]);
                room[whole..padded].fill(0);
                self.pieces.push(end..end + padded);
                padded
            } else {
                self.pieces.extend([end..end + headers, payload]);
                headers
            };
            end += kept;
            Ok(kept)
        });
        self.end = end;
        watcher.dropped(lost?);
        Ok(())
    }

    /// Adds a piece. Extends the last one instead, if the new one follows it directly.
    fn push(&mut self, piece: Range<usize>) {
        match self.pieces.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => self.pieces.push(piece),
        }
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self, socket: &OwnedFd) {
        while !self.blocked && !self.pieces.is_empty() {
            match self.write(socket) {
                Ok(len) => self.advance(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.blocked = true,
                // The client no longer reads. A read will show whether it still sends.
                Err(_) => self.clear(),
            }
        }
    }

    fn write(&self, socket: &OwnedFd) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let pieces = &self.pieces[self.written..];
        if let [piece] = pieces {
            return send(socket, &self.buffer[piece.clone()], flags);
        }
        let mut slices = [IoSlice::new(&[]); PIECES];
        let count = pieces.len().min(PIECES);
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(&self.buffer[piece.clone()]);
        }
        sendmsg(socket.as_fd(), &slices[..count], &mut SendAncillaryBuffer::default(), flags)
    }

    /// `len` more bytes are written.
    fn advance(&mut self, mut len: usize) {
        while let Some(piece) = self.pieces.get_mut(self.written) {
            if len < piece.len() {
                piece.start += len;
                return;
            }
            len -= piece.len();
            self.written += 1;
        }
        self.clear();
    }
}

#[cfg(test)]
mod tests;
