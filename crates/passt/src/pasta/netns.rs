//! The guest's network namespace, and the thread that lives in it.
//!
//! The main thread never enters: an unprivileged process could not come back, and the sockets of the host have to be
//! made in the host's namespace. Descriptors are common to all threads, so a thread of its own goes in and opens
//! there what the others use: [`Namespace::within`] for a moment, while we still set things up, and the
//! [`Opener`] for the rest of the process's life.

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
    pub fn of_process(pidfd: OwnedFd, pid: Pid) -> Self {
        Self { name: format!("of process {}", pid.as_raw_nonzero()), handle: Handle::Process(pidfd) }
    }

    /// The namespace that `file`, opened at `path`, stands for.
    pub fn of_file(file: OwnedFd, path: &Path) -> Self {
        Self { name: path.display().to_string(), handle: Handle::File(file) }
    }

    /// Does `work` on a thread inside the namespace, and waits for it. The right to enter must be there already:
    /// see `pasta::join`.
    ///
    /// # Errors
    /// The namespace can't be entered; or those of `work`.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let run = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| {
            let visitor = thread::Builder::new().name("visitor".into()).spawn_scoped(scope, run);
            let visitor = visitor.context("can't start a thread")?;
            visitor.join().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))
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

/// A thread inside the guest's network namespace, for as long as this value or a copy lives: it opens sockets there.
#[derive(Clone, Debug)]
pub struct Opener {
    orders: Sender<Work>,
}

impl Opener {
    /// Starts the thread, which enters `namespace`, gives up its rights by `drop_rights`, and then waits for orders.
    ///
    /// # Errors
    /// The thread can't be started, or has failed at one of its first steps.
    pub fn start(
        namespace: Namespace,
        drop_rights: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (orders, received) = channel::<Work>();
        let (report, started) = channel();
        let run = move || {
            let ready = namespace.enter().and_then(|()| drop_rights());
            // Nobody else is to follow.
            drop(namespace);
            // Whoever started us may have ended meanwhile; then there are no orders either.
            drop(report.send(ready));
            received.into_iter().for_each(|work| work());
        };
        thread::Builder::new().name("opener".into()).spawn(run).context("can't start a thread")?;
        started.recv().unwrap_or_else(|_| Err(anyhow!("the thread in the network namespace died")))?;
        Ok(Self { orders })
    }

    /// Does `work` inside the namespace, and waits for its result: some tens of microseconds, and the work's own.
    ///
    /// # Errors
    /// `BrokenPipe` if the thread is gone.
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.begin(work).recv().map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Has `work` done inside the namespace meanwhile. The result will be at the receiver; if the thread is gone, that
    /// is disconnected.
    pub fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (result, receiver) = channel();
        // A receiver that was dropped wanted no result.
        let order = Box::new(move || drop(result.send(work())));
        drop(self.orders.send(order));
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

    /// The namespace of the thread that calls.
    fn here() -> Namespace {
        let path = Path::new("/proc/thread-self/ns/net");
        Namespace::of_file(File::open(path).unwrap().into(), path)
    }

    /// HOUSE: what the opener opens belongs to its namespace, whoever uses it.
    #[test]
    fn sockets_of_the_opener_are_of_its_namespace() {
        isolated(|| {
            let outer = here();
            let Handle::File(back) = &outer.handle else { unreachable!() };
            sys::netns::enter_new().unwrap();
            let opener = Opener::start(here(), || Ok(())).unwrap();
            move_into_link_name_space(back.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            crate::isolated::ip("link set lo up");

            let ours = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = ours.local_addr().unwrap().port();
            // The same port is free over there, though loopback is not even up.
            let theirs =
                opener.call(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap();
            assert_ne!(theirs.as_raw_fd(), ours.as_raw_fd());
            assert_eq!(opener.begin(|| 7).recv(), Ok(7));
        });
    }

    #[test]
    fn a_thread_that_cannot_do_its_first_steps_is_an_error() {
        isolated(|| {
            let error = Opener::start(here(), || Err(anyhow!("no way"))).unwrap_err();
            assert_eq!(error.to_string(), "no way");
        });
    }
}
