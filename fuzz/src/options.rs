//! TCP options. Parsed options can be written, and parsing them again gives the same options.

use wire::tcp::{MAX_OPTIONS_LEN, MAX_SACK_BLOCKS, MAX_WINDOW_SCALE, Options};

/// Input: the bytes of the options.
pub fn target(data: &[u8]) {
    let options = Options::parse(data);
    assert!(options.window_scale.is_none_or(|scale| scale <= MAX_WINDOW_SCALE));
    assert!(options.sack.as_slice().len() <= MAX_SACK_BLOCKS);
    let mut bytes = [0; MAX_OPTIONS_LEN];
    let len = options.emit(&mut bytes);
    assert!(len.is_multiple_of(4) && len <= MAX_OPTIONS_LEN);
    // A valid segment has either SACK blocks or the options of a SYN.
    if options.sack.as_slice().is_empty() || (options.mss.is_none() && options.window_scale.is_none()) {
        let again = Options::parse(&bytes[..len]);
        assert_eq!(
            again.sack.as_slice().len(),
            options.sack.as_slice().len().min(again.sack.as_slice().len())
        );
        assert_eq!((again.mss, again.window_scale), (options.mss, options.window_scale));
    }
}
