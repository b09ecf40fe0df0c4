//! Segmentation and checksums in software. The frames may not match their virtio-net headers.

use wire::{
    frame::MAX_LEN,
    offload::Offload,
    segment::{Segments, complete_checksum},
};

/// Input: a virtio-net header and a frame.
pub fn target(data: &[u8]) {
    let Some((header, frame)) = data.split_first_chunk() else { return };
    let Some(offload) = Offload::from_virtio(header) else { return };
    // The conversion drops unused fields and the number of buffers, so a second conversion must change nothing.
    assert_eq!(Offload::from_virtio(&offload.to_virtio()).map(Offload::to_virtio), Some(offload.to_virtio()));

    let mut whole = frame.to_vec();
    if !complete_checksum(&mut whole, &offload) {
        assert_eq!(whole, frame, "changed, although the checksum has no place in it");
    }
    let Some(mut segments) = Segments::new(frame, &offload) else { return };
    let Some(size) = offload.segmentation.map(|segmentation| usize::from(segmentation.size)) else {
        panic!("segments of a frame that is not to be segmented");
    };
    let mut buffer = vec![0; MAX_LEN];
    let mut count = 0;
    while let Some(len) = segments.write_next(&mut buffer) {
        count += 1;
        assert!(len <= frame.len(), "a segment of {len} bytes of a frame of {}", frame.len());
        assert!(count <= frame.len().div_ceil(size), "more segments than bytes");
    }
}
