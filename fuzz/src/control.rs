//! The control protocol, for both sides, including requests about the policy. A message is invalid, incomplete, or
//! equal to the message that results from encoding and decoding it again.

use std::fmt::Debug;

use control::message::{
    Decoded, Error, MAX_LEN, decode_announcement, decode_update, encode_announcement, encode_update,
};
use control::policy;
use control::reply::Reply;

/// Input: a byte that selects the kind, then a message.
pub fn target(data: &[u8]) {
    let Some((&side, message)) = data.split_first() else { return };
    match side & 3 {
        0 => check(message, decode_update, encode_update),
        1 => check(message, decode_announcement, |tables| encode_announcement(tables)),
        2 => check_request(message),
        _ => check_reply(message),
    }
}

fn check_request(message: &[u8]) {
    match policy::decode(message) {
        Ok(Decoded::Whole(request)) => {
            let again = policy::encode(&request);
            assert!(message.starts_with(&again));
            // For a server without this extension, the request is not a valid update.
            assert!(policy::is_request(message) && decode_update(&again).is_err());
        }
        Ok(Decoded::Needs(len)) => assert!(len > message.len() && len <= policy::MAX_LEN, "{len} bytes"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn check_reply(message: &[u8]) {
    let Ok(Reply::Applied(text) | Reply::Refused(text)) = policy::read_reply(message) else { return };
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
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
