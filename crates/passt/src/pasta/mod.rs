//! The guest's namespace in pasta mode: spawned or joined, configured, and watched for its end (behaviour §1.5, §1.6,
//! §3.6).

pub mod configure;
pub(crate) mod join;
mod names;
pub mod netns;
pub(crate) mod quit;
pub(crate) mod spawn;

use netns::Namespace;
use quit::Watch;
use spawn::Spawned;

/// The guest, if it is on this machine. For a virtual machine behind a socket, all fields are `None`.
#[derive(Default)]
pub(crate) struct Guest {
    /// The network namespace.
    pub(crate) namespace: Option<Namespace>,
    /// The command that was spawned into the namespace.
    pub(crate) command: Option<Spawned>,
    /// Reports that the namespace has ended, if the end of the namespace terminates the process.
    pub(crate) watch: Option<Watch>,
}
