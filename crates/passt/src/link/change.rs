//! The changes that a link reports to the event loop.

/// The changes of a link since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Whether there may be frames to receive.
    pub frames: bool,
    /// Whether the link was full and accepts frames again.
    pub room: bool,
    /// Whether a guest that can receive frames is connected from now on.
    pub up: bool,
    /// Whether the guest has disconnected, and another guest may connect.
    pub down: bool,
    /// Whether the guest has disconnected, and no other guest may connect. Then the process ends.
    pub over: bool,
    /// Whether the link no longer exists. Connections through the link end. Other connections continue.
    pub lost: bool,
}
