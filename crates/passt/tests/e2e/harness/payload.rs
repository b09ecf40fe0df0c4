//! Reproducible data: a seed and an offset determine each byte of a transfer. So the receiver needs no copy of the data
//! to check every byte. It reports the first wrong byte.

use std::io::{ErrorKind, Read, Write};

use testkit::random::fill;

const BLOCK: usize = 128 * 1024;

/// `len` bytes of the sequence `seed`.
pub(crate) fn payload(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    fill(seed, 0, &mut data);
    data
}

/// Writes the first `len` bytes of the sequence `seed`.
///
/// # Panics
/// If the stream has an error.
pub(crate) fn send(mut to: impl Write, seed: u64, len: u64) {
    let mut block = vec![0; BLOCK];
    let mut sent = 0;
    while sent < len {
        let n = BLOCK.min((len - sent) as usize);
        fill(seed, sent, &mut block[..n]);
        to.write_all(&block[..n]).unwrap_or_else(|e| panic!("sending at offset {sent}: {e}"));
        sent += n as u64;
    }
}

/// Reads exactly `len` bytes, and checks that they are the sequence `seed`.
///
/// # Panics
/// If there is an error, an early end, or a wrong byte.
pub(crate) fn receive(mut from: impl Read, seed: u64, len: u64) {
    let mut block = vec![0; BLOCK];
    let mut want = vec![0; BLOCK];
    let mut got = 0;
    while got < len {
        let room = BLOCK.min((len - got) as usize);
        let n = match from.read(&mut block[..room]) {
            Ok(0) => panic!("end of stream at offset {got} of {len}"),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => panic!("receiving at offset {got} of {len}: {e}"),
        };
        fill(seed, got, &mut want[..n]);
        if block[..n] != want[..n] {
            let at = (0..n).find(|&i| block[i] != want[i]).unwrap();
            panic!("wrong byte at offset {}: {:#x}, not {:#x}", got + at as u64, block[at], want[at]);
        }
        got += n as u64;
    }
}

/// Like [`receive`], but also checks that the stream ends after these bytes.
pub(crate) fn receive_all(mut from: impl Read, seed: u64, len: u64) {
    receive(&mut from, seed, len);
    expect_end(from);
}

/// Checks that the stream is at its end.
pub(crate) fn expect_end(mut from: impl Read) {
    match from.read(&mut [0; 1]) {
        Ok(0) => {}
        other => panic!("expected the end of the stream, got {other:?}"),
    }
}
