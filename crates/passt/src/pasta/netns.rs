//! The guest's network namespace, and the thread that works in it.
//!
//! The main thread never enters the namespace: an unprivileged process could not return to the host's namespace, where
//! sockets of the host must be opened. All threads share their descriptors. So another thread enters the namespace and
//! opens sockets there for the main thread: [`Namespace::within`] does so for a single task at the start, and the
//! [`Opener`] does so later.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, anyhow};
use rustix::process::Pid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

/// The network namespace of a guest.
#[derive(Debug)]
pub struct Namespace {
    /// Name for messages: a path, or "of process N".
    name: String,
    handle: Handle,
}

#[derive(Debug)]
enum Handle {
    /// Pidfd of a process in the namespace.
    Process(OwnedFd),
    /// The file that represents the namespace.
    File(OwnedFd),
}

impl Namespace {
    /// The namespace of the process that `pidfd` refers to.
    pub fn of_process(pidfd: OwnedFd, pid: Pid) -> Self {
        Self { name: format!("of process {}", pid.as_raw_nonzero()), handle: Handle::Process(pidfd) }
    }

    /// The namespace that `file` represents. The file was opened at `path`.
    pub fn of_file(file: OwnedFd, path: &Path) -> Self {
        Self { name: path.display().to_string(), handle: Handle::File(file) }
    }

    /// Runs `work` on a new thread in the namespace, and waits for its result. The process must have the right to enter
    /// the namespace, see `pasta::join`.
    ///
    /// # Errors
    /// The namespace can't be entered, or `work` fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let run = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, run);
            let thread = thread.context("can't start a thread")?;
            thread.join().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))
        })
    }

    fn enter(&self) -> anyhow::Result<()> {
        match &self.handle {
            Handle::Process(pidfd) => {
                move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)
            }
            Handle::File(file) => move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)),
        }
        .with_context(|| format!("can't enter network namespace {}", self.name))
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// A thread in the guest's network namespace. It opens sockets there, and ends when the last copy of this value is
/// dropped.
#[derive(Clone, Debug)]
pub struct Opener {
    queue: Sender<Work>,
}

impl Opener {
    /// Starts the thread. The thread enters `namespace`, calls `drop_rights`, and then waits for work.
    ///
    /// # Errors
    /// The thread can't be started, can't enter the namespace, or `drop_rights` has failed.
    pub fn start(
        namespace: Namespace,
        drop_rights: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (queue, received) = channel::<Work>();
        let (report, started) = channel();
        let run = move || {
            let ready = namespace.enter().and_then(|()| drop_rights());
            // This closes the handle: no other code may enter the namespace.
            drop(namespace);
            // If the receiver was dropped, the process is about to end.
            drop(report.send(ready));
            received.into_iter().for_each(|work| work());
        };
        thread::Builder::new().name("opener".into()).spawn(run).context("can't start a thread")?;
        started.recv().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))?;
        Ok(Self { queue })
    }

    /// Runs `work` in the namespace, and waits for its result. The thread switch takes some tens of microseconds.
    ///
    /// # Errors
    /// `BrokenPipe` if the thread has ended.
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.begin(work).recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Starts `work` in the namespace without waiting. The receiver gets the result. If the thread has ended, the
    /// receiver is disconnected.
    pub fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (result, receiver) = channel();
        // Sending fails if the receiver was dropped. No code needs the result then.
        let work = Box::new(move || drop(result.send(work())));
        drop(self.queue.send(work));
        receiver
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::fd::AsRawFd;

    use rustix::thread::move_into_link_name_space;

    use super::*;
    use crate::isolated::isolated;

    /// The namespace of the calling thread.
    fn here() -> Namespace {
        let path = Path::new("/proc/thread-self/ns/net");
        Namespace::of_file(File::open(path).unwrap().into(), path)
    }

    /// A socket of the opener belongs to the opener's namespace, even if another thread uses the socket.
    #[test]
    fn sockets_of_the_opener_are_in_its_namespace() {
        isolated(|| {
            let outer = here();
            let Handle::File(back) = &outer.handle else { unreachable!() };
            sys::netns::enter_new().unwrap();
            let opener = Opener::start(here(), || Ok(())).unwrap();
            move_into_link_name_space(back.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            crate::isolated::ip("link set lo up");

            let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = ours.local_addr().unwrap().port();
            // The same port is free in the other namespace, although its loopback is not up.
            let theirs =
                opener.call(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
            assert_ne!(theirs.as_raw_fd(), ours.as_raw_fd());
            assert_eq!(opener.begin(|| 7).recv(), Ok(7));
        });
    }

    #[test]
    fn a_failed_start_of_the_thread_is_reported() {
        isolated(|| {
            let error = Opener::start(here(), || Err(anyhow!("refused"))).unwrap_err();
            assert_eq!(error.to_string(), "refused");
        });
    }
}
