//! The start of the API thread.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel as report};
use std::thread;

use anyhow::{Context as _, anyhow};

use super::ask::About;
use super::channel::{ShardEnd, channel};
use super::entry::Entry;
use super::registry::Registered;
use super::server::Server;
use super::{METRICS_FILES, OWN_FILES};

/// What the thread starts with.
#[derive(Debug)]
pub(crate) struct Start {
    /// How clients come.
    pub(crate) entry: Option<Entry>,
    /// The listening socket of `--metrics`.
    pub(crate) metrics: Option<OwnedFd>,
    /// Facts about the program.
    pub(crate) about: About,
    /// Number of files that the thread may use.
    pub(crate) files: usize,
}

impl Start {
    /// Sets the process ID, when it is known.
    pub(crate) fn set_pid(&mut self, pid: u32) {
        self.about.pid = pid;
        if let Some(file) = self.file() {
            file.publish(pid);
        }
    }

    /// The file in the registry, if there is one.
    pub(crate) fn file(&mut self) -> Option<&mut Registered> {
        self.entry.as_mut()?.file()
    }
}

/// Tells when the thread has given up its rights.
#[derive(Debug)]
pub(crate) struct Ready(Receiver<anyhow::Result<()>>);

impl Ready {
    /// Waits until the thread has given up its rights.
    ///
    /// # Errors
    /// It could not.
    pub(crate) fn wait(self) -> anyhow::Result<()> {
        self.0.recv().unwrap_or_else(|_| Err(anyhow!("the thread of the API socket died")))
    }
}

/// Starts the thread. The thread calls `drop_rights` first, while the caller continues. It ends when the other end of the
/// channel is dropped.
///
/// # Errors
/// The thread can't be started.
pub(crate) fn start(
    Start { entry, metrics, about, files }: Start,
    drop_rights: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<(ShardEnd, Ready)> {
    let (end, mut shard) = channel(about.limits.ring).context("can't make an eventfd for the API socket")?;
    let others = if metrics.is_some() { OWN_FILES + METRICS_FILES } else { OWN_FILES };
    let most = files.saturating_sub(others).clamp(1, about.limits.clients);
    let mut server = Server::new(entry, metrics, end, about, most).context("can't watch the API socket")?;
    let (ready, started) = report();
    let run = move || {
        // If the receiver was dropped, the process is about to end.
        drop(ready.send(drop_rights()));
        if let Err(error) = server.run() {
            log::warn!("The API socket is not served any longer: {error}");
        }
    };
    let thread = thread::Builder::new().name("api".into()).spawn(run).context("can't start a thread")?;
    shard.ends_with(thread);
    Ok((shard, Ready(started)))
}
