//! Tests of an Initial packet that two keys can open. The keys of Initial packets are derived from connection IDs, so a
//! client can construct such a packet.

use aes_gcm::{
    aead::KeyInit,
    aes::{Aes128, Block, cipher::BlockCipherEncrypt},
};

use super::*;
use crate::{
    first_bytes::quic_keys::{Keys, Version},
    testkit::{
        hello::{SERVER_NAME, client_hello, server_name},
        quic::{Initial, V1, crypto},
        settings::START,
    },
};

const ID: &[u8] = b"connection";
const OTHER_ID: &[u8] = b"another id";

fn encrypt(key: &[u8; 16], block: [u8; 16]) -> u128 {
    let mut block = Block::from(block);
    Aes128::new_from_slice(key).unwrap().encrypt_block(&mut block);
    u128::from_be_bytes(block.into())
}

/// The product of two elements of GCM's finite field.
fn mul(left: u128, right: u128) -> u128 {
    let (mut product, mut shifted) = (0, right);
    for bit in (0..128).rev() {
        product ^= if left >> bit & 1 == 1 { shifted } else { 0 };
        shifted = shifted >> 1 ^ if shifted & 1 == 1 { 0xe1 << 120 } else { 0 };
    }
    product
}

/// The inverse of an element: the element to the power of 2^128 - 2.
fn inverse(element: u128) -> u128 {
    let (mut power, mut result) = (element, 1 << 127);
    for _ in 1..128 {
        power = mul(power, power);
        result = mul(result, power);
    }
    result
}

/// The keys of one connection, and the packet's header after these keys have removed header protection.
struct View {
    keys: Keys,
    header: Vec<u8>,
}

impl View {
    /// The block of the key stream with the number `counter`. Block 1 masks the tag.
    fn block(&self, counter: u32) -> u128 {
        let mut input = [0; 16];
        input[..12].copy_from_slice(&self.keys.iv);
        let number = &self.header[self.header.len() - 4..];
        input[8..12].iter_mut().zip(number).for_each(|(byte, number)| *byte ^= number);
        input[12..].copy_from_slice(&counter.to_be_bytes());
        encrypt(&self.keys.key, input)
    }

    fn hash_key(&self) -> u128 {
        encrypt(&self.keys.key, [0; 16])
    }

    fn tag(&self, payload: [u128; 3]) -> u128 {
        let mut header = self.header.clone();
        header.resize(header.len().next_multiple_of(16), 0);
        let header = header.chunks(16).map(|block| u128::from_be_bytes(block.try_into().unwrap()));
        let lens = ((self.header.len() as u128 * 8) << 64) + 3 * 128;
        let hash =
            header.chain(payload).chain([lens]).fold(0, |hash, block| mul(hash ^ block, self.hash_key()));
        hash ^ self.block(1)
    }
}

/// A packet to [`OTHER_ID`] that the keys of both IDs open. With the keys of [`ID`], the packet has a CRYPTO frame
/// after the end of the ClientHello. None if the packet number has a different length for each key: then another
/// attempt is needed.
fn packet(attempt: usize) -> Option<Vec<u8>> {
    let keys = |id| Keys::of_client(Version::V1, id).unwrap();
    let start = [&[0xc3, 0, 0, 0, 1, 10][..], OTHER_ID, &[0, 0, 0x40, 4 + 48 + 16]].concat();
    let header = [&start[..], &[0, 0, 0, 9]].concat();
    let view = View { keys: keys(ID), header: header.clone() };

    let mut frame = crypto(MAX_LEN + attempt, &[0; 41]);
    frame.truncate(16);
    let frame = u128::from_be_bytes(frame.try_into().unwrap());
    let mut payload = [frame ^ view.block(2), 0, view.block(4)];
    let mask = |keys: &Keys| encrypt(&keys.header, payload[0].to_be_bytes()).to_be_bytes();
    let masked = |header: &[u8], mask: [u8; 16]| {
        let mut header = header.to_vec();
        header[0] ^= mask[0] & 0x0f;
        header[start.len()..].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        header
    };
    let sent = masked(&header, mask(&view.keys));
    let other_keys = keys(OTHER_ID);
    let other = View { header: masked(&sent, mask(&other_keys)), keys: other_keys };
    if other.header[0] & 3 != 3 {
        return None;
    }
    // The difference of the two tags is a constant plus the second block times the difference of the cubes of the hash
    // keys.
    let cube = |element: u128| mul(element, mul(element, element));
    let factor = cube(view.hash_key()) ^ cube(other.hash_key());
    payload[1] = mul(view.tag(payload) ^ other.tag(payload), inverse(factor));
    let tag = view.tag(payload);
    assert_eq!(tag, other.tag(payload));
    let packet: Vec<u8> =
        sent.into_iter().chain(payload.into_iter().chain([tag]).flat_map(u128::to_be_bytes)).collect();
    for keys in [view.keys, other.keys] {
        assert!(keys.open(&packet, start.len(), 0).is_some());
    }
    Some(packet)
}

#[test]
fn a_packet_that_two_keys_open_is_refused() {
    let packet = (0..100).find_map(packet).unwrap();
    let hello = client_hello(&[(SERVER_NAME, &server_name(NAME.as_bytes()))]);
    let hello = Initial::first(V1, ID).seal(&crypto(0, &hello));
    let mut first = FirstDatagrams::new(Ech::OuterName);
    assert_eq!(first.feed_datagram(&hello, START), found(NAME));
    assert_eq!(first.feed_datagram(&packet, START), Found::NoName(Why::Malformed));
}
