//! Ports that a payload announces in text: FTP's PORT, EPRT and the answers to PASV and EPSV (RFC 959, RFC 2428), SDP
//! and SIP (RFC 8866, RFC 3261), RTSP, DCC, URLs.
//!
//! No protocol is parsed. Every number that can be a port number is treated as a port, since a wrong guess costs only
//! one query to the kernel.

use core::ops::RangeInclusive;

/// Lengths in bytes of payloads that may announce a port. The shortest such command of FTP has 16 bytes. Signalling
/// messages are shorter than the upper limit.
pub const LENGTHS: RangeInclusive<usize> = 16..=4096;

/// Maximum number of ports that one payload announces.
const MAX_PORTS: usize = 16;
/// Lower ports are never chosen at random, so they need no announcement.
const FIRST_PORT: u16 = 1024;
/// FTP's PORT command has this many numbers as its argument: four for the address, two for the port.
const FTP_NUMBERS: usize = 6;

/// The ports that `payload` may announce, at most 16. None if `payload` does not start as text.
pub fn ports(payload: &[u8]) -> impl Iterator<Item = u16> {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || *byte == 1;
    let text = if payload.iter().take(8).all(is_text) { payload } else { &[] };
    let mut lists = Lists { text, at: 0 };
    core::iter::from_fn(move || lists.next_list())
        .flatten()
        .filter(|port| *port >= FIRST_PORT)
        .take(MAX_PORTS)
}

/// The numbers in a text, as lists of numbers joined by commas.
struct Lists<'a> {
    text: &'a [u8],
    at: usize,
}

impl Lists<'_> {
    /// The numbers of the next list. If the list has six numbers, the result is the one port that they encode. Zero
    /// means that a number is not a port.
    fn next_list(&mut self) -> Option<impl Iterator<Item = u16> + use<>> {
        let mut numbers = [0; FTP_NUMBERS];
        let mut count = 0;
        numbers[0] = self.next_number()?;
        while count + 1 < FTP_NUMBERS && self.byte(0) == Some(b',') && self.byte(1).is_some_and(is_digit) {
            count += 1;
            numbers[count] = self.next_number()?;
        }
        if count + 1 == FTP_NUMBERS && numbers.iter().all(|number| *number <= 0xff) {
            let port = numbers[FTP_NUMBERS - 2] << 8 | numbers[FTP_NUMBERS - 1];
            (numbers, count) = ([0; FTP_NUMBERS], 0);
            numbers[0] = port;
        }
        Some(numbers.into_iter().take(count + 1))
    }

    /// The next number. Zero if the number can't be a port: it is too large, or part of a word, an address or a
    /// version.
    fn next_number(&mut self) -> Option<u16> {
        let rest = self.text.get(self.at..)?;
        self.at += rest.iter().position(|byte| is_digit(*byte))?;
        let start = self.at;
        let mut value = Some(0_u16);
        while let Some(digit) = self.byte(0).filter(|byte| is_digit(*byte)) {
            value = value.and_then(|value| value.checked_mul(10)?.checked_add(u16::from(digit - b'0')));
            self.at += 1;
        }
        let before = |back: usize| start.checked_sub(back).and_then(|at| self.text.get(at).copied());
        let part_of_word = before(1).is_some_and(is_word) || self.byte(0).is_some_and(is_word);
        let part_of_address = before(1) == Some(b'.') && before(2).is_some_and(is_digit)
            || self.byte(0) == Some(b'.') && self.byte(1).is_some_and(is_digit);
        Some(value.filter(|_| !part_of_word && !part_of_address).unwrap_or(0))
    }

    fn byte(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at.checked_add(ahead)?).copied()
    }
}

const fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn announcements() {
        let invite = "INVITE sip:b@198.51.100.7 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK1234\r\n\
            Call-ID: 1-20717@192.0.2.10\r\nCSeq: 1 INVITE\r\n\r\nv=0\r\no=u 53655765 2353687637 IN IP4 192.0.2.10\r\n\
            c=IN IP4 192.0.2.10\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\na=rtcp:6001\r\n";
        let cases: [(&str, &[u16]); 12] = [
            ("PORT 192,0,2,10,7,208\r\n", &[2000]),
            ("EPRT |1|192.0.2.10|6275|\r\n", &[6275]),
            ("EPRT |2|::1|6275|\r\n", &[6275]),
            ("227 Entering Passive Mode (192,0,2,10,195,149).\r\n", &[50069]),
            ("229 Entering Extended Passive Mode (|||6446|)\r\n", &[6446]),
            (invite, &[5060, 20717, 6000, 6001]),
            ("PRIVMSG a :\x01DCC SEND file 3221225994 5000 17\x01\r\n", &[5000]),
            ("Transport: RTP/AVP/UDP;unicast;client_port=4588-4589\r\n", &[4588, 4589]),
            ("LOCATION: http://192.0.2.10:49152/d.xml\r\n", &[49152]),
            ("ports 8000,8001,8002,8003,8004,8005,8006,80", &[8000, 8001, 8002, 8003, 8004, 8005, 8006]),
            ("\x17\x03\x03 opaque, 5000", &[]),
            ("RETR file5000, v1.5000, 70000, 1023", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(ports(text.as_bytes()).collect::<Vec<_>>(), expected, "{text}");
        }
        assert_eq!(ports("5000 ".repeat(100).as_bytes()).count(), MAX_PORTS);
    }

    proptest! {
        /// For any payload, parsing ends and does not panic.
        #[test]
        fn any_payload(payload in "[0-9,.:a ]{0,300}|.{0,99}") {
            prop_assert!(ports(payload.as_bytes()).count() <= MAX_PORTS);
        }
    }
}
