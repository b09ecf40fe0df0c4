//! The bytes that streams carry: any stretch of them tells where in the stream it belongs.

/// Prime, so that no segment size or buffer length divides it.
const PERIOD: usize = 65_521;
/// Longest stretch that is compared at once, in bytes.
const LONGEST: usize = 1 << 17;

/// A stream's contents, by position.
#[derive(Clone)]
pub(crate) struct Pattern {
    bytes: std::rc::Rc<[u8]>,
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pattern")
    }
}

impl Pattern {
    /// The stream of this name; different names give different bytes.
    pub(crate) fn new(name: u64) -> Self {
        let mut random = crate::random::Random::new(name);
        let period: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8).collect();
        let bytes = period.iter().copied().cycle().take(PERIOD + LONGEST).collect();
        Self { bytes }
    }

    /// Up to `len` bytes from `position` on; at least one unless `len` is zero.
    pub(crate) fn at(&self, position: u64, len: usize) -> &[u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.bytes[start..start + len.min(LONGEST)]
    }

    /// Fills `buffer` with the stream from `position` on.
    pub(crate) fn fill(&self, mut position: u64, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let bytes = self.at(position, buffer.len());
            let (now, later) = buffer.split_at_mut(bytes.len());
            now.copy_from_slice(bytes);
            position += bytes.len() as u64;
            buffer = later;
        }
    }

    /// Panics unless `bytes` are the stream's from `position` on.
    pub(crate) fn check(&self, mut position: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.at(position, bytes.len());
            let (now, later) = bytes.split_at(expected.len());
            assert!(now == expected, "the stream differs between bytes {position} and {}", {
                position + now.len() as u64
            });
            position += now.len() as u64;
            bytes = later;
        }
    }
}
