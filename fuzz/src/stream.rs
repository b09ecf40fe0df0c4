//! Frames on a byte stream. Up to the first invalid length, the frames do not depend on how the stream is cut. Joined
//! segments contain the bytes of the single segments.

use wire::{
    frame::{self, Body, Transport},
    offload::Offload,
    stream::{BadLength, MAX_FRAME_LEN, PREFIX_LEN, Unframer},
    train::Train,
};

/// Input: a byte that selects how to cut the stream, then the stream.
pub fn target(data: &[u8]) {
    let Some((&cut, stream)) = data.split_first() else { return };
    let (expected, end) = whole(stream);
    let mut frames = Vec::new();
    assert_eq!(in_pieces(cut, stream, &mut frames), end);
    assert_eq!(frames, expected);
    for pair in frames.windows(2) {
        join(pair[0], pair[1]);
    }
}

/// The frames of a complete stream, and the invalid length that ends it.
fn whole(mut stream: &[u8]) -> (Vec<&[u8]>, Result<(), BadLength>) {
    let mut frames = Vec::new();
    while let Some((len, rest)) = stream.split_first_chunk::<PREFIX_LEN>() {
        let announced = u32::from_be_bytes(*len);
        let len = announced as usize;
        if len > MAX_FRAME_LEN {
            return (frames, Err(BadLength(announced)));
        }
        let Some((frame, rest)) = rest.split_at_checked(len) else { break };
        frames.push(frame);
        stream = rest;
    }
    (frames, Ok(()))
}

/// The frames of a stream that arrives in pieces, with a buffer for little more than one frame.
fn in_pieces<'a>(cut: u8, stream: &'a [u8], frames: &mut Vec<&'a [u8]>) -> Result<(), BadLength> {
    let mut buffer = vec![0; PREFIX_LEN + MAX_FRAME_LEN + usize::from(cut)];
    let mut unframer = Unframer::default();
    // Offsets in the stream: up to `read`, bytes were read, and up to `found`, frames were found.
    let (mut read, mut found) = (0, 0);
    for piece in 1.. {
        while let Some(frame) = unframer.next_frame(&buffer)? {
            found += PREFIX_LEN + frame.len();
            let same = &stream[found - frame.len()..found];
            assert_eq!(&buffer[frame], same);
            frames.push(same);
        }
        let rest = &stream[read..];
        if rest.is_empty() {
            assert_eq!(unframer.is_empty(), found == stream.len());
            break;
        }
        let room = unframer.room(&mut buffer);
        assert!(!room.is_empty(), "no room for the rest of a frame");
        let len = rest.len().min(room.len()).min(1 + usize::from(cut) * piece % 1601);
        room[..len].copy_from_slice(&rest[..len]);
        unframer.filled(len);
        read += len;
    }
    Ok(())
}

fn join(first: &[u8], second: &[u8]) {
    let Some(mut train) = Train::begin(first, first, &Offload::default()) else { return };
    let mut buffer = [first, second].concat();
    let mut range = 0..first.len();
    if !train.join_in(&mut buffer, &mut range, first.len()..first.len() + second.len()) {
        assert_eq!(range, 0..first.len());
        assert_eq!(buffer, [first, second].concat());
        return;
    }
    train.finish(&mut buffer[range.clone()]);
    let payload = |bytes| match frame::parse(bytes).map(|frame| frame.body) {
        Ok(Body::Ip(packet)) => match packet.transport {
            Transport::Tcp(segment) => segment.payload.to_vec(),
            other => panic!("joined: {other:?}"),
        },
        other => panic!("joined: {other:?}"),
    };
    assert_eq!(payload(&buffer[range]), [payload(first), payload(second)].concat());
}
