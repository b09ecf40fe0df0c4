//! First messages of TLS clients.

use std::vec::Vec;

/// The type of server_name.
pub const SERVER_NAME: u16 = 0;
/// The type of encrypted_client_hello.
pub const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const KEY_SHARE: u16 = 51;

/// `content` after a length field of `len_bytes` bytes.
#[must_use]
pub fn vector(len_bytes: usize, content: &[u8]) -> Vec<u8> {
    let len = (content.len() as u32).to_be_bytes();
    [&len[4 - len_bytes..], content].concat()
}

/// The content of a server_name extension.
#[must_use]
pub fn server_name(name: &[u8]) -> Vec<u8> {
    vector(2, &[&[0][..], &vector(2, name)].concat())
}

/// A ClientHello with these extensions, as a handshake message.
#[must_use]
pub fn client_hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let extension = |&(kind, content): &(u16, &[u8])| [&kind.to_be_bytes()[..], &vector(2, content)].concat();
    let extensions: Vec<u8> = extensions.iter().flat_map(extension).collect();
    let body = [
        &[3, 3][..],
        &[0x5a; 32],
        &vector(1, &[0xa5; 32]),
        &vector(2, &[0x13, 1, 0x13, 2]),
        &vector(1, &[0]),
        &vector(2, &extensions),
    ]
    .concat();
    [&[1][..], &vector(3, &body)].concat()
}

/// A ClientHello of `len` bytes with the name `name`. The name comes after a large key share, as in post-quantum key
/// exchange.
#[must_use]
pub fn long_client_hello(name: &str, len: usize) -> Vec<u8> {
    let name = server_name(name.as_bytes());
    let with_share = |share: &[u8]| client_hello(&[(KEY_SHARE, share), (SERVER_NAME, &name)]);
    let share: Vec<u8> = (0..len - with_share(&[]).len()).map(|at| at as u8).collect();
    with_share(&share)
}

/// Splits a handshake message into records of at most `most` bytes.
#[must_use]
pub fn records(message: &[u8], most: usize) -> Vec<u8> {
    message.chunks(most).flat_map(|part| [&[22, 3, 1][..], &vector(2, part)].concat()).collect()
}
