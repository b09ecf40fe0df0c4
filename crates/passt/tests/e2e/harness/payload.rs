//! Reproducible data: a seed and an offset determine each byte of a transfer. So the receiver needs no copy of the data
//! to check every byte. It reports the first wrong byte.

use std::io::{ErrorKind, Read, Write};

const BLOCK: usize = 128 * 1024;

/// Eight bytes of the sequence `seed`, by word index (SplitMix64).
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_ne_bytes()
}

/// Fills `buf` with the bytes of the sequence `seed` from `offset` on.
fn fill(seed: u64, offset: u64, buf: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut index = offset / 8;
    let mut rest = buf;
    if skip != 0 {
        let n = rest.len().min(8 - skip);
        rest[..n].copy_from_slice(&word(seed, index)[skip..skip + n]);
        rest = &mut rest[n..];
        index += 1;
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&word(seed, index)[..chunk.len()]);
        index += 1;
    }
}

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
        if let Some(at) = (0..n).find(|&i| block[i] != want[i]) {
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
