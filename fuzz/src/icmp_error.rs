//! Errors of the host's sockets, told to the guest: whatever a router wrote, a sound message or none.

use crate::receive_path;

/// A datagram of the guest and then errors that its socket met, as operations of [`receive_path`].
pub fn target(data: &[u8]) {
    const FRAME: u8 = 0;
    const DATAGRAM: u8 = 9;
    const SOCKET: u8 = 20;
    const ERROR: u8 = 2;
    let Some((&[family, source, destination], errors)) = data.split_first_chunk() else { return };
    let mut operations = vec![0, 0, family];
    for _ in 0..3 {
        operations.extend([FRAME, DATAGRAM, family, source % 2, destination % 2, 0, 0, 0, 3, 0, 0, 0]);
    }
    for error in errors.chunks(16) {
        operations.extend([SOCKET, 0, ERROR]);
        operations.extend_from_slice(error);
    }
    receive_path::target(&operations);
}
