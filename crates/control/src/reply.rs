//! What follows an update, on the way back: whether it holds (Q16).
//!
//! The C implementation's protocol ends with the update: its server then closes the connection, and its client doesn't
//! look. So there is room behind the end for a byte that says whether the update holds, and a text for people up to the
//! end of the stream. A client that wants to know shuts down its sending half and reads to the end. From another
//! server it gets just the end, or a reset if it was refused before all of it was read.

use std::io::{self, Read};

/// The update holds.
const HOLDS: u8 = 0;
/// Nothing has changed.
const REFUSED: u8 = 1;
/// Most bytes of text.
const MAX_TEXT: usize = 16_384;

/// What a client learns after its update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It holds, with a remark perhaps.
    Holds(String),
    /// Nothing has changed, and why.
    Refused(String),
    /// The server doesn't say.
    Silence,
}

/// The reply of a server: `Err` if the update was refused.
#[must_use]
pub fn encode(outcome: Result<&str, &str>) -> Vec<u8> {
    let (status, text) = match outcome {
        Ok(text) => (HOLDS, text),
        Err(text) => (REFUSED, text),
    };
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
    [&[status], text].concat()
}

/// Reads a reply to its end.
///
/// # Errors
/// A status that has no meaning; those of `stream`, if it says nothing.
pub fn read(stream: impl Read) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    let end = stream.take(1 + MAX_TEXT as u64).read_to_end(&mut bytes);
    let Some((status, text)) = bytes.split_first() else { return end.map(|_| Reply::Silence) };
    // After the reply the connection may be reset, for input that was not read.
    let text = String::from_utf8_lossy(text).replace(|c: char| c.is_control() && c != '\n', "?");
    match *status {
        HOLDS => Ok(Reply::Holds(text)),
        REFUSED => Ok(Reply::Refused(text)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Reset<'a>(&'a [u8]);

    impl Read for Reset<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            }
        }
    }

    /// Q16: what the server says is what the client reads, even if a reset follows.
    #[test]
    fn q_16_said_and_read() {
        assert_eq!(read(&*encode(Ok(""))).unwrap(), Reply::Holds("".into()));
        let refused = encode(Err("Listen failed\nnothing changed"));
        assert_eq!(read(Reset(&refused)).unwrap(), Reply::Refused("Listen failed\nnothing changed".into()));
    }

    #[test]
    fn other_servers() {
        assert_eq!(read(&b""[..]).unwrap(), Reply::Silence);
        assert_eq!(read(Reset(b"")).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(read(&b"\x07text"[..]).is_err());
        // Nothing goes to a terminal that would steer it, and nothing without an end to memory.
        assert_eq!(read(&b"\x01a\x1b[2J"[..]).unwrap(), Reply::Refused("a?[2J".into()));
        let Reply::Holds(text) = read(io::repeat(0)).unwrap() else { panic!() };
        assert_eq!(text.len(), MAX_TEXT);
        assert_eq!(encode(Err(&"x".repeat(100_000))).len(), MAX_TEXT + 1);
    }
}
