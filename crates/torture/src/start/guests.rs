//! The least that a guest of passt does, to see whether passt works.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::ensure;

use crate::session::flow::PATIENCE;

/// Asks for the hardware address of 198.51.100.1, the default gateway: an ARP request, after its length.
const ARP: [u8; 46] = [
    0, 0, 0, 42, 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0,
    1, 198, 51, 100, 2, 0, 0, 0, 0, 0, 0, 198, 51, 100, 1,
];
/// VHOST_USER_GET_FEATURES, version 1, no payload.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

fn connect(socket: &Path) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects as QEMU's stream socket does, and expects an ARP reply.
pub(super) fn ask_for_hardware_address(socket: &Path) -> anyhow::Result<()> {
    let mut stream = connect(socket)?;
    stream.write_all(&ARP)?;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame)?;
        // passt may send other frames before: router advertisements, for example.
        if frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 2]) {
            return Ok(());
        }
    }
}

/// Connects as a vhost-user front-end does, and expects the device's features.
pub(super) fn ask_for_features(socket: &Path) -> anyhow::Result<()> {
    let mut stream = connect(socket)?;
    stream.write_all(&GET_FEATURES)?;
    let mut reply = [0; 20];
    stream.read_exact(&mut reply)?;
    ensure!(reply[0] == 1 && reply[8] == 8 && reply[12..] != [0; 8], "a wrong reply: {reply:?}");
    Ok(())
}
