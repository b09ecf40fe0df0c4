//! Namespaces of pasta: spawn one, join one, configure it, leave with it (SPEC §1.5, §1.6, §3.6).
//!
//! The main thread never enters the guest's network namespace: an unprivileged process could not come back from
//! it, and the sockets of the host have to be made in the host's. A thread of its own goes in and does what has to
//! be done there; descriptors are common to both.

pub mod configure;
pub(crate) mod join;
mod lifetime;
pub(crate) mod quit;
pub(crate) mod spawn;

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

pub(crate) use lifetime::{Exit, Lifetime, Source};

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

/// The network namespace of a guest.
#[derive(Debug)]
pub(crate) enum Namespace {
    /// That of the process behind this pidfd.
    OfProcess(OwnedFd),
    /// The one behind this file.
    File(OwnedFd),
}

impl Namespace {
    /// Does `work` on a thread inside the namespace, and waits for it. Both the user namespace that this one
    /// belongs to and the right to enter must be there already.
    pub(crate) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let run = || {
            self.enter().context("can't enter the network namespace")?;
            work()
        };
        thread::scope(|scope| {
            let opener = thread::Builder::new().name("opener".into()).spawn_scoped(scope, run);
            let opener = opener.context("can't start a thread")?;
            opener.join().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))
        })
    }

    fn enter(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        match self {
            Self::OfProcess(pidfd) => {
                rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)?;
            }
            Self::File(file) => {
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            }
        }
        Ok(())
    }
}
