//! Errors of the host's sockets. For any message of a router, the guest gets a valid ICMP message or none.

use crate::{receive_path, seeds};

/// Input: a datagram of the guest, then errors of its socket. Both are operations of [`receive_path`].
pub fn target(data: &[u8]) {
    let Some((&[family, source, destination], errors)) = data.split_first_chunk() else { return };
    let datagram =
        [&seeds::op::UDP4[..2], &[family, source % 2, destination % 2], &seeds::op::UDP4[5..]].concat();
    let mut operations = vec![seeds::op::START.to_vec(), datagram.clone(), datagram];
    for error in errors.chunks(16) {
        operations.push([&seeds::op::UNREACHABLE[..3], error].concat());
    }
    receive_path::target(&seeds::records(&operations));
}
