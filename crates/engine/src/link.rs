//! The link to the guest, as the engine needs it.

use wire::offload::Offload;

/// The link can't take a frame now: the frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where frames to the guest go.
///
/// A frame is built in place: [`Link::reserve`] hands out a slot, the caller fills it, [`Link::commit`] sends it.
/// A slot that is not committed costs nothing. Frames may be super-frames and leave their checksum
/// open ([`Offload`]) on every link; one that can't carry them segments and sums by itself.
pub trait Link {
    /// A slot of at least `len` bytes (up to [`wire::frame::MAX_LEN`]), or none while the link is full.
    /// What the slot holds is undefined.
    fn reserve(&mut self, len: usize) -> Option<&mut [u8]>;

    /// Sends the first `len` bytes of the slot reserved last.
    ///
    /// # Errors
    /// [`Full`], if the frame was not sent. A super-frame of which some segments were sent counts as
    /// sent.
    fn commit(&mut self, len: usize, offload: &Offload) -> Result<(), Full>;
}
