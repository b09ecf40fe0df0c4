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

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use anyhow::{Context, anyhow};
use rustix::process::Pid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

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
pub(crate) struct Namespace {
    /// Which one it is, for people: a path, or "of process N".
    name: String,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    /// Pidfd of a process in the namespace.
    Process(OwnedFd),
    /// The file that stands for the namespace.
    File(OwnedFd),
}

impl Namespace {
    /// The namespace that the process behind `pidfd` is in.
    pub(crate) fn of_process(pidfd: OwnedFd, pid: Pid) -> Self {
        Self { name: format!("of process {}", pid.as_raw_nonzero()), handle: Handle::Process(pidfd) }
    }

    /// The namespace that the file at `path` stands for.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("can't open network namespace {name}"))?;
        Ok(Self { name, handle: Handle::File(file.into()) })
    }

    /// Does `work` on a thread inside the namespace, and waits for it. The right to enter must be there already:
    /// see [`join`].
    pub(crate) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let run = || {
            self.enter().with_context(|| format!("can't enter network namespace {}", self.name))?;
            work()
        };
        thread::scope(|scope| {
            let opener = thread::Builder::new().name("opener".into()).spawn_scoped(scope, run);
            let opener = opener.context("can't start a thread")?;
            opener.join().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))
        })
    }

    fn enter(&self) -> io::Result<()> {
        match &self.handle {
            Handle::Process(pidfd) => {
                move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)?;
            }
            Handle::File(file) => move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?,
        }
        Ok(())
    }
}
