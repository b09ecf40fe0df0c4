//! Which program runs, with which guest, and how it starts.

use serde::{Deserialize, Serialize};

/// How the program is started.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Way {
    /// `pasta -- COMMAND`, in the foreground.
    Command,
    /// `pasta --netns FILE`, in the background.
    Joining,
    /// `passt`, in the background.
    Passt,
    /// `passt --vhost-user`, in the background.
    VhostUser,
}

impl Way {
    /// All of them, and what they are called in the table.
    pub(crate) const ALL: [(Self, &'static str); 4] = [
        (Self::Command, "pasta with a command"),
        (Self::Joining, "pasta in a namespace, in the background"),
        (Self::Passt, "passt, in the background"),
        (Self::VhostUser, "passt with vhost-user, in the background"),
    ];

    /// The ways whose running phase is swept, too, and what it is called in the table.
    pub(crate) const RUNNING: [(Self, &'static str); 3] = [
        (Self::Command, "The running phase of pasta"),
        (Self::Passt, "The running phase of passt"),
        (Self::VhostUser, "The running phase of passt with vhost-user"),
    ];

    /// The name of the program.
    pub(crate) const fn program(self) -> &'static str {
        if matches!(self, Self::Command | Self::Joining) { "pasta" } else { "passt" }
    }

    /// The kind of bridge that connects a guest to passt.
    pub(crate) const fn bridge(self) -> Option<&'static str> {
        match self {
            Self::Command | Self::Joining => None,
            Self::Passt => Some("stream"),
            Self::VhostUser => Some("vhost-user-tso"),
        }
    }
}
