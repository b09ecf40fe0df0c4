//! Frames that wait to be written to a stream socket. Frames are built in place, and many frames are written at a time.
//!
//! Payload is read once, for its checksum, and only the kernel copies it: each segment of a super-frame is written as
//! two pieces, the segment's headers and its part of the payload.

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
/// When this number of bytes waits, the bytes are written at once. Otherwise they are written at the end of the round.
const DUE: usize = 192 << 10;
/// Room for the headers of a super-frame's segments. The engine makes no segment shorter than 64 bytes.
const HEADERS: usize = (frame::MAX_LEN / 64 + 1) * (PREFIX_LEN + 128);
/// Maximum number of pieces written at a time.
const PIECES: usize = 512;

/// Frames that wait to be written.
pub(super) struct Outbox {
    buffer: Vec<u8>,
    /// The start of the room for the next frame.
    end: usize,
    /// The parts of `buffer` that must be written, in this order.
    pieces: Vec<Range<usize>>,
    /// The number of `pieces` that are written.
    written: usize,
    /// Whether the socket is full. Then nothing is written before the socket reports readiness.
    blocked: bool,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], end: 0, pieces: Vec::new(), written: 0, blocked: false }
    }

    /// Whether no frame waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether so many bytes wait that they must be written before the end of the round.
    pub(super) fn is_due(&self) -> bool {
        self.end >= DUE && !self.blocked
    }

    /// Drops the frames that wait to be written.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        (self.end, self.written, self.blocked) = (0, 0, false);
    }

    /// Notes that the socket may accept more bytes.
    pub(super) const fn retry(&mut self) {
        self.blocked = false;
    }

    /// Whether a frame of `len` bytes fits, with any segmentation.
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

    /// Takes over the segments of a super-frame. Its payload is not moved. The headers of each segment are written
    /// after the super-frame. `pieces` alternates between the headers of a segment and the segment's part of the
    /// payload:
    ///
    /// ```text
    /// buffer:  | ... | headers | payload 1 | payload 2 | length, headers 1 | length, headers 2 | free
    /// pieces:  ..., (length, headers 1), (payload 1), (length, headers 2), (payload 2)
    /// ```
    ///
    /// No piece contains the super-frame's own length and headers: these bytes are free again when all pieces are
    /// written. [`Outbox::has_room`] has ensured that the headers fit.
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
                // A short frame is padded. For a short frame, a copy of the payload is faster than more pieces.
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

    /// Adds a piece. If the new piece directly follows the last piece, the last piece is extended instead.
    fn push(&mut self, piece: Range<usize>) {
        match self.pieces.last_mut() {
            Some(last) if last.end == piece.start => last.end = piece.end,
            _ => self.pieces.push(piece),
        }
    }

    /// Writes as many bytes as the socket accepts.
    pub(super) fn flush(&mut self, socket: &OwnedFd) {
        while !self.blocked && !self.pieces.is_empty() {
            let written = self.write(socket);
            self.settle(written);
        }
    }

    /// Handles the result of a write.
    fn settle(&mut self, written: Result<usize, Errno>) {
        match written {
            Ok(len) => self.advance(len),
            Err(Errno::INTR) => {}
            // After the first part of a frame, the client expects the rest: nothing can be dropped.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => self.blocked = true,
            // The client no longer reads. A later read shows whether the client still sends.
            Err(_) => self.clear(),
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

    /// Notes that `len` more bytes are written.
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
