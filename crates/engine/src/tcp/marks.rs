//! Places in a stream that may be unknown.

use wire::tcp::Seq;

/// An optional sequence number. It has no alignment, so it takes five bytes instead of eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(Option<[u8; 4]>);

impl Mark {
    /// No sequence number.
    pub(super) const NONE: Self = Self(None);

    pub(super) fn get(self) -> Option<Seq> {
        self.0.map(|bytes| Seq(u32::from_ne_bytes(bytes)))
    }

    /// Whether it is this sequence number.
    pub(super) fn is_at(self, seq: Seq) -> bool {
        self == seq.into()
    }
}

impl From<Seq> for Mark {
    fn from(seq: Seq) -> Self {
        Self(Some(seq.0.to_ne_bytes()))
    }
}

impl From<Option<Seq>> for Mark {
    fn from(seq: Option<Seq>) -> Self {
        Self(seq.map(|seq| seq.0.to_ne_bytes()))
    }
}
