//! The keys of a QUIC client's Initial packets (RFC 9001 §5, RFC 9369 §3.3). The keys are not secret: anyone who sees
//! the packets can derive the keys from them.

use alloc::vec::Vec;

use aes_gcm::{
    Aes128Gcm, Tag,
    aead::{AeadInOut, KeyInit},
    aes::{Aes128, Block, cipher::BlockCipherEncrypt},
};
use hkdf::Hkdf;
use sha2::Sha256;

/// Length of the tag after an encrypted payload.
const TAG_LEN: usize = 16;
/// Length of the sample of the payload that masks the header, and its offset after the start of the packet number.
const SAMPLE_LEN: usize = 16;
const SAMPLE_OFFSET: usize = 4;

/// A version of QUIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// QUIC version 1 (RFC 9000).
    V1,
    /// QUIC version 2 (RFC 9369).
    V2,
}

/// The values in the derivation of keys that differ between versions.
struct Derivation {
    salt: [u8; 20],
    key: &'static [u8],
    iv: &'static [u8],
    header: &'static [u8],
}

const V1: Derivation = Derivation {
    salt: [
        0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc,
        0xbb, 0x7f, 0x0a,
    ],
    key: b"quic key",
    iv: b"quic iv",
    header: b"quic hp",
};
const V2: Derivation = Derivation {
    salt: [
        0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9,
        0xbd, 0x2e, 0xd9,
    ],
    key: b"quicv2 key",
    iv: b"quicv2 iv",
    header: b"quicv2 hp",
};

/// The keys of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) key: [u8; 16],
    pub(super) iv: [u8; 12],
    pub(super) header: [u8; 16],
}

/// An Initial packet without its protection.
#[derive(Debug)]
pub(super) struct Opened {
    /// The complete packet number.
    pub(super) number: u64,
    /// The decrypted frames.
    pub(super) payload: Vec<u8>,
}

impl Keys {
    /// The keys of a client whose first Initial packet has the destination connection ID `id`.
    pub(super) fn of_client(version: Version, id: &[u8]) -> Option<Self> {
        let derivation = match version {
            Version::V1 => &V1,
            Version::V2 => &V2,
        };
        let initial = Hkdf::<Sha256>::new(Some(&derivation.salt), id);
        let client = Hkdf::<Sha256>::from_prk(&expand::<32>(&initial, b"client in")?).ok()?;
        Some(Self {
            key: expand(&client, derivation.key)?,
            iv: expand(&client, derivation.iv)?,
            header: expand(&client, derivation.header)?,
        })
    }

    /// Removes the protection of a packet (RFC 9001 §5.3, §5.4). The packet number begins at `number_at`; `next` is
    /// the expected packet number. Returns none if the packet has other keys.
    pub(super) fn open(&self, packet: &[u8], number_at: usize, next: u64) -> Option<Opened> {
        let sample_at = number_at + SAMPLE_OFFSET;
        let mut mask = Block::try_from(packet.get(sample_at..sample_at + SAMPLE_LEN)?).ok()?;
        Aes128::new_from_slice(&self.header).ok()?.encrypt_block(&mut mask);
        // The four lowest bits of the first byte are masked. The lowest two bits encode the length of the packet
        // number.
        let first = packet[0] ^ mask[0] & 0x0f;
        let number_len = usize::from(first & 3) + 1;
        let (header, payload) = packet.split_at_checked(number_at + number_len)?;
        let mut header = header.to_vec();
        header[0] = first;
        header[number_at..].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        let number = header[number_at..].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let number = whole_number(number, number_len, next);

        let (payload, tag) = payload.split_at_checked(payload.len().checked_sub(TAG_LEN)?)?;
        let mut payload = payload.to_vec();
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        let cipher = Aes128Gcm::new_from_slice(&self.key).ok()?;
        let tag = Tag::try_from(tag).ok()?;
        cipher.decrypt_inout_detached(&nonce.into(), &header, payload.as_mut_slice().into(), &tag).ok()?;
        Some(Opened { number, payload })
    }
}

/// HKDF-Expand-Label (RFC 8446 §7.1) without context. None is never returned, since the lengths are small.
fn expand<const N: usize>(secret: &Hkdf<Sha256>, label: &[u8]) -> Option<[u8; N]> {
    const PREFIX: &[u8] = b"tls13 ";
    let lens = [0, N as u8, (PREFIX.len() + label.len()) as u8];
    let mut expanded = [0; N];
    secret.expand_multi_info(&[&lens, PREFIX, label, &[0]], &mut expanded).ok()?;
    Some(expanded)
}

/// The packet number nearest to `next` that ends in the `len` bytes of `truncated` (RFC 9000 §A.3).
const fn whole_number(truncated: u64, len: usize, next: u64) -> u64 {
    let window = 1 << (8 * len);
    let candidate = next & !(window - 1) | truncated;
    if candidate + window / 2 <= next && candidate < (1 << 62) - window {
        candidate + window
    } else if candidate > next + window / 2 && candidate >= window {
        candidate - window
    } else {
        candidate
    }
}
