//! What a cell of the sweep is: a place in the program, seen from outside, and a fault that is injected there.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Where the program makes a system call: which thread, which call, on what.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Site {
    /// The name of the thread.
    pub(crate) thread: String,
    /// The name of the call.
    pub(crate) call: String,
    /// The kind of its descriptor, and what distinguishes uses of the call: an operation, a flag, an option.
    pub(crate) object: String,
}

impl Site {
    /// Whether the call belongs to the guest's connection to passt.
    pub(crate) fn is_guests(&self) -> bool {
        self.object.contains("guest")
    }
}

/// What is done to a call.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) enum Fault {
    /// It fails with this error, without an effect.
    Errno(i32),
    /// It transfers fewer bytes, or messages, than it could.
    Short,
    /// epoll also reports a descriptor of this kind, which is not ready.
    Spurious(String),
    /// The thread does not run for a second after the call.
    Late,
}

/// One cell of the sweep.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub(crate) struct Cell {
    /// The place.
    pub(crate) site: Site,
    /// Which of the calls at this place is hit. The first one is 1.
    pub(crate) number: u64,
    /// The fault.
    pub(crate) fault: Fault,
}

impl Cell {
    /// Whether the program can go on as if nothing had happened: the call was only interrupted, or has to be repeated.
    pub(crate) fn is_harmless(&self) -> bool {
        match self.fault {
            // No local port is free.
            Fault::Errno(libc::EAGAIN) if self.site.call == "connect" => false,
            Fault::Errno(errno) => [libc::EINTR, libc::EAGAIN].contains(&errno),
            Fault::Short | Fault::Spurious(_) | Fault::Late => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "{:?}", Errno::from_raw(*errno)),
            Self::Short => f.write_str("short"),
            Self::Spurious(kind) => write!(f, "spurious {kind}"),
            Self::Late => f.write_str("late"),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}({})", self.thread, self.call, self.object)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}: {}", self.site, self.number, self.fault)
    }
}
