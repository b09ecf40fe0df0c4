//! What a link reports to the event loop.

/// What has changed about a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// There may be frames to receive.
    pub frames: bool,
    /// The link takes frames again, if it was full.
    pub room: bool,
    /// From now on there is a guest that can receive frames.
    pub up: bool,
    /// The guest has disconnected; another may connect.
    pub down: bool,
    /// The guest has disconnected, and no other may connect: the process ends.
    pub over: bool,
    /// The link does not exist any more: connections through it end, others continue.
    pub lost: bool,
}
