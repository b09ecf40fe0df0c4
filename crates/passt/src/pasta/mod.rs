//! Namespaces of pasta: spawn one, join one, configure it, leave with it (behaviour §1.5, §1.6, §3.6).

pub mod configure;
pub(crate) mod join;
pub mod netns;
pub(crate) mod quit;
pub(crate) mod spawn;

use netns::Namespace;
use quit::Watch;
use spawn::Spawned;

/// What pasta connects.
pub(crate) struct Guest {
    /// Where it is.
    pub(crate) namespace: Namespace,
    /// The command we start in it, if it is ours.
    pub(crate) command: Option<Spawned>,
    /// Tells when it goes away, if that ends us.
    pub(crate) watch: Option<Watch>,
}
