use super::*;
use crate::link::all_sums;

/// The frames that wait, each with its length prefix.
fn waiting(outbox: &Outbox) -> Vec<Vec<u8>> {
    let mut stream: Vec<u8> = Vec::new();
    outbox.pieces.iter().for_each(|piece| stream.extend_from_slice(&outbox.buffer[piece.clone()]));
    let (mut frames, mut rest) = (Vec::new(), &stream[..]);
    while let Some((len, more)) = rest.split_first_chunk::<PREFIX_LEN>() {
        let (frame, more) = more.split_at(u32::from_be_bytes(*len) as usize);
        frames.push(frame.to_vec());
        rest = more;
    }
    frames
}

#[test]
fn all_sums_are_right() {
    let (mut outbox, mut watcher) = (Outbox::new(), Watcher::new(None));
    all_sums::check(|frame, offload| {
        outbox.clear();
        outbox.room()[..frame.len()].copy_from_slice(frame);
        outbox.commit(frame.len(), offload, &mut watcher).unwrap();
        waiting(&outbox)
    });
}

/// The client finds the next frame by the lengths of those before: what has begun must be completed.
#[test]
fn a_frame_that_has_begun_is_completed_after_a_shortage_of_memory() {
    for shortage in [Errno::AGAIN, Errno::NOBUFS, Errno::NOMEM] {
        let (mut outbox, mut watcher) = (Outbox::new(), Watcher::new(None));
        outbox.room()[..60].fill(7);
        outbox.commit(60, &Offload::default(), &mut watcher).unwrap();
        outbox.settle(Ok(PREFIX_LEN + 10));
        outbox.settle(Err(shortage));
        assert!(outbox.blocked, "{shortage}");
        let rest: usize = outbox.pieces[outbox.written..].iter().map(ExactSizeIterator::len).sum();
        assert_eq!(rest, 50, "{shortage}");
        outbox.retry();
        outbox.settle(Err(Errno::PIPE));
        assert!(outbox.is_empty());
    }
}
