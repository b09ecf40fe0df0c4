use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use super::*;
use crate::link::all_sums;

/// The guest behind a device without offload receives correct checksums, for all sums.
#[test]
fn all_sums_are_right_without_offload() {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (fd, guest) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let device = TapDevice { fd, name: String::new(), offloads: Offloads::empty() };
    let mut link = TapLink::new(device, true, None);
    let mut buffer = vec![0; BUFFER_LEN];
    all_sums::check(|frame, offload| {
        let mut reserved = link.reserve_head(frame.len()).unwrap();
        reserved.head().copy_from_slice(frame);
        reserved.commit(frame.len(), offload).unwrap();
        let mut frames = Vec::new();
        while let Ok((len, _)) = recv(&guest, &mut buffer[..], RecvFlags::empty()) {
            frames.push(buffer[..len].to_vec());
        }
        frames
    });
}
