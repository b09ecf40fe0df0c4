//! Scatter and gather (`struct iovec`): bytes in several separate pieces, in buffers of this process or in shared
//! memory.
//!
//! Shared memory is a guest's memory, and the guest can change it at any time. A Rust reference to bytes that change is
//! undefined behaviour, so shared memory is never borrowed as a Rust slice. The kernel gets its address and length, and
//! copies use volatile accesses.

use std::mem::MaybeUninit;
use std::ops::Range;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Maximum number of pieces of shared memory in one [`Source`] or [`Room`].
pub const MAX_PIECES: usize = 64;

/// Bytes to be sent or copied.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a>(Kind<&'a [u8], Shared<'a>>);

/// Room for bytes that are received or copied.
#[derive(Debug)]
pub struct Room<'a>(Kind<&'a mut [u8], Shared<'a>>);

#[derive(Clone, Copy, Debug)]
enum Kind<O, S> {
    /// One slice in the memory of this process.
    Own(O),
    /// Pieces of shared memory.
    Shared(S),
}

/// A part of a list of pieces of shared memory.
///
/// Invariant, established by [`Pieces`]: the pieces are mapped for `'a`, and there is no Rust reference to their bytes.
#[derive(Clone, Copy)]
struct Shared<'a> {
    /// The first piece has more than `skip` bytes, unless the part is empty.
    pieces: &'a [libc::iovec],
    /// Bytes of the first piece before the part.
    skip: usize,
    /// Length of the part, in bytes.
    len: usize,
}

/// The list of pieces of a [`Source`] or [`Room`]. The caller should keep one list for each source or room that exists
/// at the same time: a list that is reused needs no allocation.
#[derive(Default)]
pub struct Pieces(Vec<libc::iovec>);

impl Pieces {
    /// The bytes of `slices`, in order. None if there are more than [`MAX_PIECES`] slices.
    pub fn source<'a, B: BitmapSlice + 'a>(
        &'a mut self,
        slices: impl IntoIterator<Item = VolatileSlice<'a, B>>,
    ) -> Option<Source<'a>> {
        self.list(slices).map(|shared| Source(Kind::Shared(shared)))
    }

    /// Room in `slices`, in order. None if there are more than [`MAX_PIECES`] slices. Writes are not recorded in their
    /// bitmaps.
    pub fn room<'a, B: BitmapSlice + 'a>(
        &'a mut self,
        slices: impl IntoIterator<Item = VolatileSlice<'a, B>>,
    ) -> Option<Room<'a>> {
        self.list(slices).map(|shared| Room(Kind::Shared(shared)))
    }

    /// Clears the list first: the memory of earlier pieces may be unmapped.
    fn list<'a, B: BitmapSlice + 'a>(
        &'a mut self,
        slices: impl IntoIterator<Item = VolatileSlice<'a, B>>,
    ) -> Option<Shared<'a>> {
        self.0.clear();
        let mut len = 0;
        for slice in slices.into_iter().filter(|slice| !slice.is_empty()) {
            if self.0.len() == MAX_PIECES {
                return None;
            }
            let start = slice.ptr_guard_mut().as_ptr();
            self.0.push(libc::iovec { iov_base: start.cast(), iov_len: slice.len() });
            len += slice.len();
        }
        Some(Shared { pieces: &self.0, skip: 0, len })
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pieces").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Shared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<'a> Shared<'a> {
    fn slice(self, range: Range<usize>) -> Self {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        let (mut pieces, mut skip) = (self.pieces, self.skip + start);
        while let Some((first, rest)) = pieces.split_first()
            && skip >= first.iov_len
        {
            skip -= first.iov_len;
            pieces = rest;
        }
        Self { pieces, skip, len: end - start }
    }

    /// The pieces of the part. The first and the last piece are cut to the part.
    fn parts(self) -> impl Iterator<Item = libc::iovec> + 'a {
        let (mut skip, mut left) = (self.skip, self.len);
        self.pieces.iter().map_while(move |piece| {
            let len = piece.iov_len.saturating_sub(skip).min(left);
            // For the first piece, `skip` is less than its length, unless the part is empty. For later pieces, `skip`
            // is zero.
            let start = piece.iov_base.cast::<u8>().wrapping_add(skip);
            left -= len;
            skip = 0;
            (len > 0).then_some(libc::iovec { iov_base: start.cast(), iov_len: len })
        })
    }

    /// The pieces of the part, in the form that copies need.
    fn volatile(self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.parts().map(|part| {
            // SAFETY: `part` is inside a piece that is mapped for `'a` (the invariant of the type). It is accessed only
            // by volatile operations.
            unsafe { VolatileSlice::new(part.iov_base.cast(), part.iov_len) }
        })
    }
}

impl<'a> Source<'a> {
    /// Number of bytes.
    #[must_use]
    pub fn len(self) -> usize {
        match self.0 {
            Kind::Own(bytes) => bytes.len(),
            Kind::Shared(shared) => shared.len,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The bytes in `range`. The part of `range` past the end is ignored.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        Self(match self.0 {
            Kind::Own(bytes) => {
                let end = range.end.min(bytes.len());
                Kind::Own(&bytes[range.start.min(end)..end])
            }
            Kind::Shared(shared) => Kind::Shared(shared.slice(range)),
        })
    }

    /// Copies the first bytes to `buffer`, as many as exist and fit; returns their number.
    pub fn copy_to(self, buffer: &mut [u8]) -> usize {
        match self.0 {
            Kind::Own(bytes) => {
                let len = bytes.len().min(buffer.len());
                buffer[..len].copy_from_slice(&bytes[..len]);
                len
            }
            Kind::Shared(shared) => {
                shared.volatile().fold(0, |at, part| at + part.copy_to(&mut buffer[at..]))
            }
        }
    }

    /// The slice, if the bytes are not in shared memory.
    #[must_use]
    pub fn own(self) -> Option<&'a [u8]> {
        match self.0 {
            Kind::Own(bytes) => Some(bytes),
            Kind::Shared(_) => None,
        }
    }
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Kind::Own(bytes))
    }
}

impl Room<'_> {
    /// The first `len` bytes of the room. The whole room, if it is shorter.
    #[must_use]
    pub fn first(&mut self, len: usize) -> Room<'_> {
        Room(match &mut self.0 {
            Kind::Own(bytes) => {
                let len = len.min(bytes.len());
                Kind::Own(&mut bytes[..len])
            }
            Kind::Shared(shared) => Kind::Shared(shared.slice(0..len)),
        })
    }

    /// The room after its first `start` bytes. Empty, if the room is shorter.
    #[must_use]
    pub fn after(&mut self, start: usize) -> Room<'_> {
        Room(match &mut self.0 {
            Kind::Own(bytes) => Kind::Own(bytes.get_mut(start..).unwrap_or_default()),
            Kind::Shared(shared) => Kind::Shared(shared.slice(start..shared.len)),
        })
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled(usize::MAX).len()
    }

    /// Whether there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content of the first `len` bytes of the room. The content of the whole room, if it is shorter.
    #[must_use]
    pub fn filled(&self, len: usize) -> Source<'_> {
        match &self.0 {
            Kind::Own(bytes) => Source::from(&**bytes).slice(0..len),
            Kind::Shared(shared) => Source(Kind::Shared(shared.slice(0..len))),
        }
    }

    /// Copies `bytes` to offset `at` of the room. Bytes that do not fit are left out. Returns how many were copied.
    pub fn put(&mut self, at: usize, bytes: &[u8]) -> usize {
        match &mut self.0 {
            Kind::Own(room) => {
                let room = room.get_mut(at..).unwrap_or_default();
                let len = bytes.len().min(room.len());
                room[..len].copy_from_slice(&bytes[..len]);
                len
            }
            Kind::Shared(shared) => {
                let mut left = bytes;
                for part in shared.slice(at..shared.len).volatile() {
                    let (now, later) = left.split_at(left.len().min(part.len()));
                    part.copy_from(now);
                    left = later;
                }
                bytes.len() - left.len()
            }
        }
    }

    /// The slice, if the room is not in shared memory.
    pub(crate) fn own(&mut self) -> Option<&mut [u8]> {
        match &mut self.0 {
            Kind::Own(bytes) => Some(bytes),
            Kind::Shared(_) => None,
        }
    }
}

impl<'a> From<&'a mut [u8]> for Room<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self(Kind::Own(bytes))
    }
}

/// Up to `N` pieces, as the argument of a system call. The kernel must not write to the pieces of a [`Source`].
pub(crate) struct Iovecs<const N: usize> {
    array: [MaybeUninit<libc::iovec>; N],
    len: usize,
}

impl<const N: usize> Iovecs<N> {
    pub(crate) fn new() -> Self {
        Self { array: [const { MaybeUninit::uninit() }; N], len: 0 }
    }

    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds the pieces of `source`. Returns false and adds nothing if they do not fit.
    #[must_use]
    pub(crate) fn add(&mut self, source: Source<'_>) -> bool {
        match source.0 {
            Kind::Own(bytes) => self
                .extend([libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }]),
            Kind::Shared(shared) => self.extend(shared.parts()),
        }
    }

    /// Adds the pieces of `room`. The kernel may write to them. Returns false and adds nothing if they do not fit.
    #[must_use]
    pub(crate) fn add_room(&mut self, room: &mut Room<'_>) -> bool {
        match &mut room.0 {
            Kind::Own(bytes) => {
                self.extend([libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }])
            }
            Kind::Shared(shared) => self.extend(shared.parts()),
        }
    }

    fn extend(&mut self, pieces: impl IntoIterator<Item = libc::iovec>) -> bool {
        let mut len = self.len;
        for piece in pieces {
            let Some(place) = self.array.get_mut(len) else { return false };
            place.write(piece);
            len += 1;
        }
        self.len = len;
        true
    }

    /// The pieces in `range`. The part of `range` past the end is ignored.
    pub(crate) fn get(&self, range: Range<usize>) -> &[libc::iovec] {
        let end = range.end.min(self.len);
        let pieces = &self.array[range.start.min(end)..end];
        // SAFETY: the first `len` elements are initialised, and `MaybeUninit` has the layout of its content.
        unsafe { &*(std::ptr::from_ref(pieces) as *const [libc::iovec]) }
    }

    /// A message header for all pieces. The header has a pointer to the pieces, so `self` must not be moved or dropped
    /// before the last use of the header.
    pub(crate) fn message(&self) -> libc::msghdr {
        message(self.get(0..N))
    }
}

/// A message header for `pieces`, without address and control messages. The header has a pointer to `pieces`, which
/// must outlive the header. The kernel reads the list and does not write to it.
pub(crate) fn message(pieces: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data. All zeros (null pointers, lengths of zero) is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut();
    message.msg_iovlen = pieces.len() as _;
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `bytes` into shared pieces of these lengths.
    fn cut<'a>(mut bytes: &'a mut [u8], lens: &[usize]) -> Vec<VolatileSlice<'a>> {
        let mut slices = Vec::new();
        for &len in lens {
            let (piece, rest) = bytes.split_at_mut(len);
            slices.push(piece.into());
            bytes = rest;
        }
        slices
    }

    fn all(source: Source<'_>) -> Vec<u8> {
        let mut bytes = vec![0; source.len() + 3];
        let len = source.copy_to(&mut bytes);
        assert_eq!(len, source.len());
        bytes.truncate(len);
        bytes
    }

    #[test]
    fn slices_of_pieces_are_slices_of_the_bytes() {
        let whole: Vec<u8> = (0..40).collect();
        let mut bytes = whole.clone();
        let mut pieces = Pieces::default();
        let slices = cut(&mut bytes, &[0, 1, 7, 0, 20, 12]);
        let source = pieces.source(slices).unwrap();
        for start in 0..42 {
            for end in 0..42 {
                let want = whole.get(start.min(40)..end.min(40)).unwrap_or_default();
                let part = source.slice(start..end);
                assert_eq!((all(part), part.is_empty()), (want.to_vec(), want.is_empty()), "{start}..{end}");
                assert_eq!(all(part.slice(1..5)), all(Source::from(want).slice(1..5)), "{start}..{end}");
                let mut iovecs = Iovecs::<6>::new();
                assert!(iovecs.add(part));
                let lens = iovecs.get(0..6).iter().map(|piece| piece.iov_len);
                assert_eq!(lens.sum::<usize>(), want.len());
            }
        }
        let mut short = [0; 9];
        assert_eq!(source.copy_to(&mut short), 9);
        assert_eq!(short, whole[..9]);
    }

    #[test]
    fn bytes_put_in_room_are_read_back() {
        let mut pieces = Pieces::default();
        let mut bytes = [0; 30];
        let mut room = pieces.room(cut(&mut bytes, &[4, 6, 20])).unwrap();
        let mut own = [0; 30];
        let mut plain = Room::from(&mut own[..]);
        for room in [&mut room, &mut plain] {
            room.put(3, b"abcdefghij");
            room.put(28, b"xyz");
            room.put(31, b"nowhere");
            room.first(5).put(4, b"BC");
            assert_eq!((room.len(), room.after(28).len(), room.after(31).is_empty()), (30, 2, true));
            room.after(12).put(0, b"k");
            assert_eq!(all(room.filled(14)), b"\0\0\0aBcdefghik\0");
            assert_eq!(room.filled(99).len(), 30);
        }
        assert_eq!((bytes, &bytes[28..]), (own, &b"xy"[..]));
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut bytes = [0; MAX_PIECES + 1];
        let mut pieces = Pieces::default();
        assert!(pieces.source(cut(&mut bytes, &[1; MAX_PIECES])).is_some());
        assert!(pieces.source(cut(&mut bytes, &[1; MAX_PIECES + 1])).is_none());
        let mut iovecs = Iovecs::<{ MAX_PIECES }>::new();
        let source = pieces.source(cut(&mut bytes, &[1; MAX_PIECES])).unwrap();
        assert!(iovecs.add(source.slice(1..MAX_PIECES)));
        assert!(!iovecs.add(source.slice(0..2)));
        assert_eq!(iovecs.len(), MAX_PIECES - 1);
    }
}
