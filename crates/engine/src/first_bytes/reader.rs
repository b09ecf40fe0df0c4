//! A reader that takes bytes from the front of a slice.

/// The bytes that have not been read. If fewer bytes are left than a function needs, it returns none and reads
/// nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// Whether all bytes were read.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads the next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Reads a number of `N` bytes (at most 8) in network byte order.
    fn number<const N: usize>(&mut self) -> Option<u64> {
        Some(self.take(N)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Reads the next byte.
    pub(super) fn u8(&mut self) -> Option<u8> {
        self.number::<1>().map(|number| number as u8)
    }

    /// Reads a number of two bytes.
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.number::<2>().map(|number| number as u16)
    }

    /// Reads a number of four bytes.
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.number::<4>().map(|number| number as u32)
    }

    /// Reads a vector with a length field of one byte (RFC 8446 §3.4).
    pub(super) fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(len.into())
    }

    /// Reads a vector with a length field of two bytes.
    pub(super) fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(len.into())
    }

    /// Reads a variable-length integer (RFC 9000 §16).
    pub(super) fn varint(&mut self) -> Option<u64> {
        let (len, mask) = match self.0.first()? >> 6 {
            0 => (1, 0x3f),
            1 => (2, 0x3fff),
            2 => (4, 0x3fff_ffff),
            _ => (8, 0x3fff_ffff_ffff_ffff),
        };
        Some(self.take(len)?.iter().fold(0, |number: u64, &byte| number << 8 | u64::from(byte)) & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_variable_length_are_those_of_rfc_9000() {
        let numbers: [(&[u8], u64); 5] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, number) in numbers {
            assert_eq!(Reader(bytes).varint(), Some(number));
            assert_eq!(Reader(&bytes[..bytes.len() - 1]).varint(), None);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_read() {
        let mut reader = Reader(&[0, 3, 1, 2]);
        assert_eq!((reader.u32(), reader.take(5)), (Some(0x0003_0102), None));
        assert_eq!(Reader(&[0, 3, 1, 2]).vector16(), None);
        assert_eq!(Reader(&[2, 3, 1, 2]).vector8(), Some(&[3, 1][..]));
    }
}
