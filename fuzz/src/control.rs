//! The control protocol, both sides. A message is invalid, incomplete, or equal to the message that results from
//! encoding and decoding it again.

use std::fmt::Debug;

use control::message::{
    Decoded, Error, MAX_LEN, decode_announcement, decode_update, encode_announcement, encode_update,
};

/// Input: a byte that selects the side, then a message.
pub fn target(data: &[u8]) {
    let Some((&side, message)) = data.split_first() else { return };
    if side & 1 == 0 {
        check(message, decode_update, encode_update);
    } else {
        check(message, decode_announcement, |tables| encode_announcement(tables));
    }
}

fn check<T: PartialEq + Debug>(
    message: &[u8],
    decode: impl Fn(&[u8]) -> Result<Decoded<T>, Error>,
    encode: impl Fn(&T) -> Vec<u8>,
) {
    match decode(message) {
        Ok(Decoded::Whole(meaning)) => {
            let again = decode(&encode(&meaning));
            assert_eq!(again, Ok(Decoded::Whole(meaning)));
        }
        Ok(Decoded::Needs(len)) => assert!(len > message.len() && len <= MAX_LEN, "{len} bytes"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
