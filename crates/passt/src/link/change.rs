//! The changes that a link reports to the event loop.

/// The changes of a link since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// There may be frames to receive.
    pub frames: bool,
    /// The link was full and accepts frames again.
    pub room: bool,
    /// A guest that can receive frames is connected from now on.
    pub up: bool,
    /// The guest has disconnected. Another guest may connect.
    pub down: bool,
    /// The guest has disconnected, and no other guest may connect: the process ends.
    pub over: bool,
    /// The link does not exist any more. Connections through the link end; other connections continue.
    pub lost: bool,
}
