//! The Internet checksum (RFC 1071).
//!
//! Two properties make it cheap to compute (RFC 1071 §2). First, words of any width that is a multiple of 16 bits can be
//! added, if carries are added to the sum, too. So 64 bits are added at once, and folded at the end. Second, the sum of
//! byte-swapped words is the byte-swapped sum. So words are added in memory order, and the sum is swapped once, in
//! [`Sum::folded`].

use core::net::IpAddr;

/// A one's-complement sum whose carries are not folded yet.
///
/// Pieces may be added one after the other if every piece except the last has an even length. The 64 bits cannot
/// overflow: each addition adds less than 2^32 per four bytes, so an overflow would need 16 GiB of data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds one big-endian 16-bit word.
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        // In memory order: `bytes` reads words in that order.
        Self(self.0 + word.to_be() as u64)
    }

    /// Adds bytes in network byte order. An odd last byte is padded with zero, so only the last piece may have an odd
    /// length.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let (blocks, words) = words.as_chunks::<8>();
        let (mut wide, mut carries) = (0_u64, 0);
        for block in blocks {
            // Written out, so that the compiler adds each word and the carry before it with one instruction. `map` of an array
            // would be a call in the build of the tests.
            let [a, b, c, d, e, f, g, h] = *block;
            let (sum, carry) = wide.overflowing_add(u64::from_ne_bytes(a));
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(b), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(c), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(d), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(e), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(f), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(g), carry);
            let (sum, carry) = sum.carrying_add(u64::from_ne_bytes(h), carry);
            wide = sum;
            carries += u64::from(carry);
        }
        for word in words {
            let (sum, carry) = wide.overflowing_add(u64::from_ne_bytes(*word));
            wide = sum;
            carries += u64::from(carry);
        }
        let mut sum = self.0 + (wide & 0xffff_ffff) + (wide >> 32) + carries;
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_ne_bytes(*pair));
        }
        if let [last] = last {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// Adds the sum of the bytes that follow. The number of bytes before them must be even.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Adds the pseudo-header of TCP, UDP or ICMPv6 (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1). `len` is the length of
    /// transport header and payload, in bytes.
    #[must_use]
    pub fn pseudo_header(self, source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> Self {
        let len = len as u32;
        self.address(source)
            .address(destination)
            .word(u16::from(protocol))
            .word((len >> 16) as u16)
            .word(len as u16)
    }

    fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    /// The folded sum, not complemented, in host byte order. If the receiver of the frame completes the checksum, the
    /// checksum field contains this sum of the pseudo-header (VIRTIO_NET_HDR_F_NEEDS_CSUM, virtio 1.2 §5.1.6.2).
    #[must_use]
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// The checksum, in host byte order: the complement of the folded sum. Zero is a valid checksum (RFC 1624 §3). Over
    /// data that includes a correct checksum, the result is zero.
    #[must_use]
    pub fn finish(self) -> u16 {
        !self.folded()
    }

    /// The checksum of UDP, in host byte order. Zero means "no checksum" in UDP, so a computed zero is sent as 0xffff
    /// (RFC 768, RFC 8200 §8.1).
    #[must_use]
    pub fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        let sum = Sum::new().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.finish(), !0xddf2);
    }

    #[test]
    fn any_length_is_the_sum_of_its_words() {
        let mixed: [u8; 300] = core::array::from_fn(|i| (i * i * 37 % 251) as u8 | 0x80);
        // Each addition of full words carries.
        for bytes in [mixed, [0xff; 300]] {
            for len in 0..bytes.len() {
                for start in 0..3.min(bytes.len() - len) {
                    let part = &bytes[start..start + len];
                    let words = part.chunks(2).fold(Sum::new(), |sum, pair| {
                        sum.word(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
                    });
                    assert_eq!(Sum::new().bytes(part).folded(), words.folded(), "{len} bytes");
                }
            }
        }
    }

    #[test]
    fn pieces_and_odd_tails_add_up() {
        let bytes: [u8; 77] = core::array::from_fn(|i| (i * 37) as u8);
        let whole = Sum::new().bytes(&bytes).finish();
        for cut in (0..bytes.len()).step_by(2) {
            let (first, second) = (Sum::new().bytes(&bytes[..cut]), Sum::new().bytes(&bytes[cut..]));
            assert_eq!(first.bytes(&bytes[cut..]).finish(), whole);
            assert_eq!(first.plus(second).finish(), whole);
        }
        let words = bytes.chunks(2).fold(Sum::new(), |sum, pair| {
            sum.word(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))
        });
        assert_eq!(words.finish(), whole);
    }
}
