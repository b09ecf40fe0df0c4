//! Initial packets of QUIC clients (RFC 9000, RFC 9001, RFC 9369).

use std::{vec, vec::Vec};

use aes_gcm::{
    Aes128Gcm,
    aead::{AeadInOut, KeyInit},
    aes::{Aes128, Block, cipher::BlockCipherEncrypt},
};
use hkdf::Hkdf;
use sha2::Sha256;

/// QUIC version 1.
pub const V1: u32 = 1;
/// QUIC version 2.
pub const V2: u32 = 0x6b33_43cf;

/// Length of the packet number in a packet, in bytes.
const NUMBER_LEN: usize = 4;
const TAG_LEN: usize = 16;

/// The header fields of an Initial packet.
#[derive(Clone, Copy, Debug)]
pub struct Initial<'a> {
    /// The version. It selects salt and labels: for a version other than [`V2`], they are those of [`V1`].
    pub version: u32,
    /// Destination connection ID.
    pub id: &'a [u8],
    /// The destination connection ID from which the keys are derived.
    pub key_id: &'a [u8],
    /// A token from a Retry packet.
    pub token: &'a [u8],
    /// Packet number.
    pub number: u32,
}

impl<'a> Initial<'a> {
    /// The client's first packet to this destination connection ID.
    #[must_use]
    pub const fn first(version: u32, id: &'a [u8]) -> Self {
        Self { version, id, key_id: id, token: &[], number: 0 }
    }

    /// The protected packet with these frames.
    #[must_use]
    pub fn seal(&self, frames: &[u8]) -> Vec<u8> {
        let [key, iv, mask_key] = self.keys();
        let kind = if self.version == V2 { 0xd0 } else { 0xc0 };
        let len = NUMBER_LEN + frames.len() + TAG_LEN;
        let mut packet = [
            &[kind | (NUMBER_LEN - 1) as u8][..],
            &self.version.to_be_bytes(),
            &[self.id.len() as u8],
            self.id,
            &[0],
            &varint(self.token.len()),
            self.token,
            &varint(len),
            &self.number.to_be_bytes(),
        ]
        .concat();
        let number_at = packet.len() - NUMBER_LEN;

        let mut nonce: [u8; 12] = iv.try_into().unwrap();
        nonce[8..].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        let mut frames = frames.to_vec();
        let cipher = Aes128Gcm::new_from_slice(&key).unwrap();
        let tag =
            cipher.encrypt_inout_detached(&nonce.into(), &packet, frames.as_mut_slice().into()).unwrap();
        packet.extend(frames);
        packet.extend(tag);

        let mut mask = Block::try_from(&packet[number_at + 4..number_at + 20]).unwrap();
        Aes128::new_from_slice(&mask_key).unwrap().encrypt_block(&mut mask);
        packet[0] ^= mask[0] & 0x0f;
        let number = &mut packet[number_at..number_at + NUMBER_LEN];
        number.iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        packet
    }

    /// Key, IV and header protection key of the client.
    fn keys(&self) -> [Vec<u8>; 3] {
        let v1 = "38762cf7f55934b34d179ae6a4c80cadccbb7f0a";
        let v2 = "0dede3def700a6db819381be6e269dcbf9bd2ed9";
        let (salt, labels) = match self.version {
            V2 => (v2, [&b"quicv2 key"[..], b"quicv2 iv", b"quicv2 hp"]),
            _ => (v1, [&b"quic key"[..], b"quic iv", b"quic hp"]),
        };
        let initial = Hkdf::<Sha256>::new(Some(&hex(salt)), self.key_id);
        let client = Hkdf::<Sha256>::from_prk(&expand(&initial, b"client in", 32)).unwrap();
        [(0, 16), (1, 12), (2, 16)].map(|(label, len)| expand(&client, labels[label], len))
    }
}

fn expand(secret: &Hkdf<Sha256>, label: &[u8], len: usize) -> Vec<u8> {
    let info = [&[0, len as u8, 6 + label.len() as u8][..], b"tls13 ", label, &[0]].concat();
    let mut expanded = vec![0; len];
    secret.expand(&info, &mut expanded).unwrap();
    expanded
}

/// A number below 2^30 as a variable-length integer (RFC 9000 §16).
#[must_use]
pub fn varint(number: usize) -> Vec<u8> {
    match number {
        0..=63 => vec![number as u8],
        64..=16_383 => (0x4000 | number as u16).to_be_bytes().to_vec(),
        _ => (0x8000_0000 | number as u32).to_be_bytes().to_vec(),
    }
}

/// A CRYPTO frame.
#[must_use]
pub fn crypto(offset: usize, data: &[u8]) -> Vec<u8> {
    [&[6][..], &varint(offset), &varint(data.len()), data].concat()
}

/// The bytes that are written as hexadecimal digits.
#[must_use]
pub fn hex(digits: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    digits.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
