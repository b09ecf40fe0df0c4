//! Segmentation in software, for a guest that does not accept super-frames.
//!
//! # Partial success
//!
//! Segments are sent in order until the link refuses one.
//!
//! - The link refuses the first segment: the super-frame was not sent. The result is [`Full`], and the engine sends the
//!   super-frame again later.
//! - The link refuses a later segment: the super-frame counts as sent, and the remaining segments are lost. Each lost
//!   segment counts as a dropped frame. TCP retransmits them, and UDP permits loss. If the super-frame were sent again,
//!   the first segments would be duplicated.
//!
//! A lost segment causes a retransmission. So a link that knows its free room in advance refuses a super-frame before
//! its first segment.

use std::ops::Range;

use engine::link::Full;
use wire::segment::Segments;

/// Sends the segments of a super-frame. Returns the number of lost segments.
///
/// The headers of each segment are written to `room`, after `prefix` bytes that belong to the link. `write` gets the
/// rest of `room`, the end of the headers in it, and the range of the segment's payload in the super-frame. `write`
/// returns the number of bytes of `room` that it keeps. The headers of the next segment come after these bytes. `room`
/// must have space for all kept bytes.
///
/// # Errors
/// [`Full`], if no segment was sent.
pub(super) fn send(
    mut segments: Segments<'_>,
    mut room: &mut [u8],
    prefix: usize,
    mut write: impl FnMut(&mut [u8], usize, Range<usize>) -> Result<usize, Full>,
) -> Result<u64, Full> {
    let mut first = true;
    while let Some((headers, payload)) =
        room.get_mut(prefix..).and_then(|room| segments.write_next_header(room))
    {
        match write(room, prefix + headers, payload) {
            Ok(kept) => room = room.get_mut(kept..).unwrap_or_default(),
            Err(Full) if first => return Err(Full),
            Err(Full) => return Ok(1 + segments.remaining() as u64),
        }
        first = false;
    }
    Ok(segments.remaining() as u64)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wire::ethernet::Mac;
    use wire::frame::Outgoing;
    use wire::tcp::{Flags, HEADER_LEN, Header, Seq};

    use super::*;

    const SIZE: u16 = 100;

    /// Sends a super-frame of four segments over a link that accepts `taken` segments. Returns the result, and the
    /// payload that was sent.
    fn send_to(taken: usize, kept: usize, room: usize) -> (Result<u64, Full>, Vec<u8>) {
        let outgoing = Outgoing {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 0, 2]),
            source: Ipv4Addr::new(192, 0, 2, 1).into(),
            destination: Ipv4Addr::new(192, 0, 2, 2).into(),
            hop_limit: 64,
            traffic_class: 0,
            flow_label: 0,
        };
        let payload: Vec<u8> = (0..350).map(|index| (index % 251) as u8).collect();
        let mut frame = vec![0; outgoing.headroom(HEADER_LEN)];
        let headers = frame.len();
        frame.extend_from_slice(&payload);
        let header = Header::new((7, 9), Seq(1), Seq(2), Flags::ACK, 100, 0);
        let written = outgoing.tcp(&mut frame, header, &[], payload.len(), Some(SIZE)).unwrap();
        let segments = Segments::new(&frame, &written.offload).unwrap();
        let (mut sent, mut room) = (Vec::new(), vec![0; room]);
        let result = send(segments, &mut room, 4, |room, end, range| {
            assert_eq!((end, &room[4..16]), (4 + headers, &frame[..12]));
            if sent.len() == taken {
                return Err(Full);
            }
            sent.push(frame[range].to_vec());
            Ok(kept)
        });
        (result, sent.concat())
    }

    #[test]
    fn all_segments_or_none() {
        for kept in [0, 58] {
            let (result, sent) = send_to(4, kept, 4 * 58);
            assert_eq!((result, sent.len()), (Ok(0), 350));
            assert_eq!(sent[340], (340 % 251) as u8);
        }
        assert_eq!(send_to(0, 0, 58), (Err(Full), Vec::new()));
    }

    /// Segments that the link refuses after the first segment are lost and counted, and not sent again.
    #[test]
    fn segments_after_a_refused_one_are_lost() {
        for (taken, lost) in [(1, 3), (2, 2), (3, 1)] {
            let (result, sent) = send_to(taken, 0, 58);
            assert_eq!((result, sent.len()), (Ok(lost), 100 * taken));
        }
    }

    #[test]
    fn room_that_is_too_short_loses_segments() {
        assert_eq!(send_to(4, 58, 2 * 58).0, Ok(2));
    }
}
