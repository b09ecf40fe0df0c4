//! Segmentation and checksums in software, of frames that need not be what their virtio-net header says.

use wire::{
    frame::MAX_LEN,
    offload::Offload,
    segment::{Segments, complete_checksum},
};

/// A virtio-net header and a frame.
pub fn target(data: &[u8]) {
    let Some((header, frame)) = data.split_first_chunk() else { return };
    let Some(offload) = Offload::from_virtio(header) else { return };
    // Unused fields, and the number of buffers, don't come back.
    assert_eq!(Offload::from_virtio(&offload.to_virtio()).map(Offload::to_virtio), Some(offload.to_virtio()));

    let mut whole = frame.to_vec();
    if !complete_checksum(&mut whole, &offload) {
        assert_eq!(whole, frame, "changed, though the checksum has no place");
    }
    let Some(mut segments) = Segments::new(frame, &offload) else { return };
    let Some(size) = offload.segmentation.map(|segmentation| usize::from(segmentation.size)) else {
        panic!("segments of a frame that is none of several");
    };
    let mut buffer = vec![0; MAX_LEN];
    let mut count = 0;
    while let Some(len) = segments.write_next(&mut buffer) {
        count += 1;
        assert!(len <= frame.len(), "a segment of {len} bytes of a frame of {}", frame.len());
        assert!(count <= frame.len().div_ceil(size), "more segments than bytes");
    }
}
