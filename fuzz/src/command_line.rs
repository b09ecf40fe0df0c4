//! The command line. The result of any words is a configuration, or an error with a message.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use passt::cli;

/// Input: a byte that selects the program's name, then words. A zero byte ends each word.
pub fn target(data: &[u8]) {
    let (&name, words) = data.split_first().unwrap_or((&0, &[]));
    let name = ["pasta", "passt", "passt4netns"][usize::from(name) % 3];
    let words = words.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec()));
    let args = std::iter::once(OsString::from(name)).chain(words);
    if let Err(error) = cli::parse(args, || 32_768..=60_999) {
        assert!(!error.to_string().is_empty());
    }
}
