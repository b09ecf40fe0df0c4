//! The reply to an update: whether it took effect (Q16).
//!
//! In the C implementation's protocol, the server closes the connection after the update, and the client reads nothing
//! after its update. So a reply does not disturb such a client. The reply is a status byte, then a human-readable text
//! up to the end of the stream. A client that wants the reply shuts down its sending half and reads up to the end of
//! the stream. A server without this extension sends no reply: the client sees the end of the stream, or a reset if the
//! server closed the connection before it had read everything.

use std::io::{self, Read};

/// Status: the update took effect.
pub(crate) const APPLIED: u8 = 0;
/// Status: nothing has changed.
pub(crate) const REFUSED: u8 = 1;
/// Length of the longest text, in bytes.
const MAX_TEXT: usize = 16_384;

/// The outcome of an update, as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The request took effect. The text is a remark, or empty.
    Applied(String),
    /// Nothing has changed. The text is the reason.
    Refused(String),
    /// The server sent no reply: it does not have this extension.
    Unsupported,
}

/// Encodes the reply of a server. `Ok` has a remark, `Err` the reason why the update was refused. A text longer than 16
/// KiB is cut.
#[must_use]
pub fn encode(outcome: Result<&str, &str>) -> Vec<u8> {
    let (status, text) = match outcome {
        Ok(text) => (APPLIED, text),
        Err(text) => (REFUSED, text),
    };
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
    [&[status], text].concat()
}

/// Reads a reply up to the end of the stream. Control characters in the text other than newlines become `?`, so that it
/// is safe to print on a terminal.
///
/// # Errors
/// `InvalidData` for an unknown status. The error of `stream`, if reading failed before the status was read.
pub fn read(stream: impl Read) -> io::Result<Reply> {
    let mut bytes = Vec::new();
    let end = stream.take(1 + MAX_TEXT as u64).read_to_end(&mut bytes);
    let Some((status, text)) = bytes.split_first() else { return end.map(|_| Reply::Unsupported) };
    // An error after the status is ignored: a server that closes with unread input causes a reset.
    let text = printable(text);
    match *status {
        APPLIED => Ok(Reply::Applied(text)),
        REFUSED => Ok(Reply::Refused(text)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The text of a server. Control characters other than newlines become `?`.
pub(crate) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace(|c: char| c.is_control() && c != '\n', "?")
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

    /// Q16: the client reads what the server sent, even if a reset follows.
    #[test]
    fn q_16_replies_round_trip() {
        assert_eq!(read(&*encode(Ok(""))).unwrap(), Reply::Applied("".into()));
        let refused = encode(Err("Listen failed\nnothing changed"));
        assert_eq!(read(Reset(&refused)).unwrap(), Reply::Refused("Listen failed\nnothing changed".into()));
    }

    #[test]
    fn replies_of_other_servers() {
        assert_eq!(read(&b""[..]).unwrap(), Reply::Unsupported);
        assert_eq!(read(Reset(b"")).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(read(&b"\x07text"[..]).is_err());
        // No control sequence reaches a terminal, and the memory for the text is bounded.
        assert_eq!(read(&b"\x01a\x1b[2J"[..]).unwrap(), Reply::Refused("a?[2J".into()));
        let Reply::Applied(text) = read(io::repeat(0)).unwrap() else { panic!() };
        assert_eq!(text.len(), MAX_TEXT);
        assert_eq!(encode(Err(&"x".repeat(100_000))).len(), MAX_TEXT + 1);
    }
}
