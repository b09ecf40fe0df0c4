//! Detects that the namespace has ended. The process then ends, too (behaviour §1.6).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{AtFlags, inotify};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Watches a namespace. The descriptor becomes readable when the namespace may have ended.
#[derive(Debug)]
pub(crate) struct Watch {
    /// What is watched, for messages.
    name: String,
    method: Method,
}

#[derive(Debug)]
enum Method {
    /// A pidfd. It is readable when the process has ended.
    Process(OwnedFd),
    /// A descriptor of the caller, which says by any event that the namespace has ended (`--exit-fd`).
    Descriptor(OwnedFd),
    /// Deletions in the directory that contains the namespace's file, reported by inotify.
    Deletions { inotify: OwnedFd, entry: Entry },
    /// A check every second, on file systems without inotify events: proc, sysfs, devpts.
    Timer { timer: OwnedFd, entry: Entry },
}

/// A name in a directory that is kept open.
#[derive(Debug)]
struct Entry {
    directory: OwnedFd,
    name: OsString,
}

impl Watch {
    /// Watches the process of `pidfd`. `name` is the name of the namespace.
    pub(crate) fn process(pidfd: OwnedFd, name: String) -> Self {
        Self { name, method: Method::Process(pidfd) }
    }

    /// Watches a descriptor of the caller.
    pub(crate) fn descriptor(fd: OwnedFd) -> Self {
        Self { name: "--exit-fd".into(), method: Method::Descriptor(fd) }
    }

    /// Watches the file of a namespace, by the best available method.
    pub(crate) fn path(path: &Path) -> anyhow::Result<Self> {
        let explain = || format!("can't watch network namespace {}", path.display());
        let name = path.file_name().with_context(|| format!("{} is no file", path.display()))?.to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let method = if let Some(pidfd) = process_of(parent, &name) {
            Method::Process(pidfd)
        } else {
            let directory = File::open(parent).with_context(explain)?.into();
            Method::of(Entry { directory, name }, parent).with_context(explain)?
        };
        Ok(Self { name: path.display().to_string(), method })
    }

    /// A line for the log, when the namespace has ended.
    pub(crate) fn farewell(&self) -> String {
        match self.method {
            Method::Descriptor(_) => "exiting, as --exit-fd requests".into(),
            _ => format!("network namespace {} is gone, exiting", self.name),
        }
    }

    /// Whether the namespace has ended. Must be called when the descriptor is readable.
    pub(crate) fn gone(&self) -> bool {
        let gone = match &self.method {
            Method::Process(_) | Method::Descriptor(_) => return true,
            Method::Deletions { inotify, entry } => read_deletions(inotify, entry),
            Method::Timer { timer, entry } => {
                rustix::io::read(timer, &mut [0_u8; 8]).map(|_| !entry.exists()).map_err(io::Error::from)
            }
        };
        gone.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                log::debug!("can't check namespace {}: {error}", self.name);
            }
            false
        })
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.method {
            Method::Process(fd)
            | Method::Descriptor(fd)
            | Method::Deletions { inotify: fd, .. }
            | Method::Timer { timer: fd, .. } => fd.as_fd(),
        }
    }
}

impl Method {
    fn of(entry: Entry, parent: &Path) -> io::Result<Self> {
        if !lacks_inotify_events(&entry.directory) {
            match watch_deletions(parent) {
                Ok(inotify) => return Ok(Self::Deletions { inotify, entry }),
                Err(error) => log::debug!("inotify: {error}, checking every second instead"),
            }
        }
        Ok(Self::Timer { timer: start_timer()?, entry })
    }
}

/// Opens the process if the path is the process's `/proc/PID/ns/net`.
fn process_of(parent: &Path, name: &OsString) -> Option<OwnedFd> {
    let real: PathBuf = parent.canonicalize().ok()?;
    let pid = real.strip_prefix("/proc").ok()?.to_str()?.strip_suffix("/ns")?.parse().ok()?;
    if name != "net" {
        return None;
    }
    pidfd_open(Pid::from_raw(pid).filter(|_| pid > 0)?, PidfdFlags::empty()).ok()
}

/// Whether this file system creates and removes entries without inotify events.
fn lacks_inotify_events(directory: &OwnedFd) -> bool {
    const PROC: u64 = 0x9fa0;
    const SYSFS: u64 = 0x6265_6572;
    const DEVPTS: u64 = 0x1cd1;
    rustix::fs::fstatfs(directory).is_ok_and(|fs| [PROC, SYSFS, DEVPTS].contains(&(fs.f_type as u64)))
}

fn watch_deletions(directory: &Path) -> io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(
        &inotify,
        directory,
        WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR,
    )?;
    Ok(inotify)
}

/// Reads all pending events. Returns true if the entry was deleted.
fn read_deletions(inotify: &OwnedFd, entry: &Entry) -> io::Result<bool> {
    use inotify::ReadFlags;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let named = event.file_name().is_some_and(|name| name.to_bytes() == entry.name.as_bytes());
        if named || event.events().contains(ReadFlags::DELETE_SELF) {
            return Ok(true);
        }
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) && !entry.exists() {
            return Ok(true);
        }
    }
}

fn start_timer() -> io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let every_second = Itimerspec { it_interval: second, it_value: second };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every_second)?;
    Ok(timer)
}

impl Entry {
    /// Whether the entry exists. If access is denied, the entry counts as existing.
    fn exists(&self) -> bool {
        let found = rustix::fs::statat(&self.directory, self.name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
        matches!(found, Ok(_) | Err(Errno::ACCESS | Errno::PERM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    /// Waits until the descriptor is readable, for at most ten seconds.
    fn wait(watch: &Watch) -> bool {
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&limit)).unwrap() == 1
    }

    /// of several events, the last one is the deletion of the file.
    #[test]
    fn the_deletion_of_a_file_is_seen_among_others_r38() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "ns"] {
            File::create(dir.path().join(name)).unwrap();
        }
        let watch = Watch::path(&dir.path().join("ns")).unwrap();
        assert!(matches!(watch.method, Method::Deletions { .. }), "{watch:?}");
        assert!(!watch.gone());
        std::fs::remove_file(dir.path().join("a")).unwrap();
        assert!(wait(&watch));
        assert!(!watch.gone());
        std::fs::remove_file(dir.path().join("b")).unwrap();
        std::fs::remove_file(dir.path().join("ns")).unwrap();
        assert!(wait(&watch));
        assert!(watch.gone());
    }

    /// procfs has no inotify events, so the process itself is watched.
    #[test]
    fn for_a_path_in_procfs_the_process_is_watched_r38() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let watch = Watch::path(Path::new(&format!("/proc/{}/ns/net", child.id()))).unwrap();
        assert!(matches!(watch.method, Method::Process(_)), "{watch:?}");
        drop(child.stdin.take());
        assert!(wait(&watch));
        assert!(watch.gone());
        child.wait().unwrap();
    }

    #[test]
    fn other_entries_of_procfs_are_checked_every_second() {
        let watch = Watch::path(Path::new("/proc/self/task")).unwrap();
        assert!(matches!(watch.method, Method::Timer { .. }), "{watch:?}");
        assert!(wait(&watch));
        assert!(!watch.gone());
    }

    #[test]
    fn the_error_for_a_missing_directory_names_it() {
        let error = Watch::path(Path::new("/nonexistent/ns")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/ns"), "{error:#}");
    }
}
