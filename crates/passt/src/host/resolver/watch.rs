//! Watches resolv.conf, so that names can still be resolved after the host has moved to another network.
//!
//! Most programs replace the file by renaming another file. Often the file is a symbolic link into the directory of a
//! service, and the service replaces the target. So every directory on the path from `/etc/resolv.conf` to the file is
//! watched. The file itself is watched, too: container engines rewrite it in place.
//!
//! This is done by a separate thread: the thread that serves the guest may not open a path. The directories are opened
//! at the start and kept open, and the file is opened relative to them. So the file can still be read after a change of
//! user and after the root directory was replaced. One case is not covered then: a link into a directory that was not
//! on the path at the start.
//!
//! The kernel makes the end of a process that watches anything wait for 10 to 20 ms (its list of watches is read without
//! locks). So that a short command need not wait, nothing is watched before [`DELAY`] has passed. Then the file is read
//! once more, so no change is missed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::fchdir;
use sys::spawn::unshare_working_directory;

use super::{PATH, Resolver, read};
use crate::errno::retry;

/// Maximum number of symbolic links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// How long the thread waits before it watches anything.
const DELAY: Duration = Duration::from_secs(1);

/// Events of a directory when one of its files is replaced: a link is created, or a file is closed after writing, or a
/// file is renamed. Deletion is not included: the last content is used until a new file exists.
const REPLACED: WatchFlags = WatchFlags::CREATE.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::MOVED_TO);

/// Watches resolv.conf.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    /// Whether the directories are watched already.
    begun: bool,
    /// The requested path. The search for the file starts here.
    start: PathBuf,
    /// All directories that are or were on the path to the file. Old directories are kept: a host may return to an
    /// earlier network.
    directories: Vec<Directory>,
    /// The names of the links on the path, and of the file.
    names: Vec<OsString>,
    /// The last valid content of the file.
    last: Resolver,
}

/// A directory that is kept open.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

impl Watch {
    /// Opens the directories that lead to the host's file. Its last content was `last`. Must be called with the caller's
    /// rights.
    ///
    /// # Errors
    /// The directory `/etc` does not exist, or the user has too many inotify instances.
    pub(crate) fn open(last: &Resolver) -> io::Result<Self> {
        Self::of(Path::new(PATH), last.clone())
    }

    fn of(path: &Path, last: Resolver) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let start = lexical(Path::new("/"), path);
        let (parent, _) = split(&start).ok_or(Errno::NOENT)?;
        let handle = open_directory(CWD, parent)?;
        let directories = vec![Directory { path: parent.to_owned(), handle }];
        let mut watch = Self { inotify, begun: false, start, directories, names: Vec::new(), last };
        // The file may be created later.
        if let Err(error) = watch.find() {
            log::debug!("{}: {error}", path.display());
        }
        Ok(watch)
    }

    /// Keeps the directories and the mounts in them accessible after the root directory is replaced. Must be called
    /// before the replacement, with the right to mount.
    pub(crate) fn keep_accessible(&mut self) {
        let copy =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        for Directory { path, handle } in &mut self.directories {
            // The directory is opened again by its path: the old handle belongs to the mount namespace that the process
            // has left.
            match open_tree(CWD, path.as_path(), copy) {
                Ok(copy) => *handle = copy,
                // The old handle still shows the directory. It does not show a file that is mounted over another file
                // in the directory, as in containers.
                Err(errno) => log::debug!("can't keep mounts in {} accessible: {errno}", path.display()),
            }
        }
    }

    /// The directories that are kept open.
    pub(crate) fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.directories.iter().map(|directory| directory.handle.as_fd())
    }

    /// Starts the thread. The thread calls `drop_rights` first, and then waits for changes.
    ///
    /// # Errors
    /// The thread can't be started, or `drop_rights` has failed.
    pub(crate) fn start(
        mut self,
        drop_rights: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<News> {
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("can't make an eventfd")?;
        let signal = wake.try_clone().context("can't duplicate a descriptor")?;
        let (resolvers, news) = channel();
        let (report, started) = channel();
        let run = move || {
            let ready = unshare_working_directory().context("can't unshare the working directory");
            let ready = ready.and_then(|()| drop_rights());
            // If the receiver was dropped, the process is about to end.
            drop(report.send(ready));
            if let Err(error) = self.run(&resolvers, &signal) {
                log::warn!("{PATH} can't be watched any longer: {error}");
            }
        };
        thread::Builder::new().name("resolv.conf".into()).spawn(run).context("can't start a thread")?;
        started.recv().unwrap_or_else(|_| Err(anyhow!("the thread that watches {PATH} died")))?;
        Ok(News { wake, news })
    }

    /// Starts to watch the directories. Changes the working directory of the calling thread.
    ///
    /// # Errors
    /// The first directory can't be watched.
    fn begin(&mut self) -> io::Result<()> {
        self.begun = true;
        for index in 0..self.directories.len() {
            let watched = self.watch(index, OsStr::new("."), REPLACED | WatchFlags::ONLYDIR);
            if index == 0 {
                watched?;
            }
        }
        Ok(())
    }

    fn run(&mut self, resolvers: &Sender<Resolver>, signal: &OwnedFd) -> io::Result<()> {
        thread::sleep(DELAY);
        self.begin()?;
        // The file may have changed between the first read and the start of the watch.
        let mut stale = true;
        loop {
            if stale && let Some(resolver) = self.changed() {
                if resolvers.send(resolver).is_err() {
                    return Ok(());
                }
                retry(|| rustix::io::write(signal, &1_u64.to_ne_bytes()))?;
            }
            stale = self.wait()?;
        }
    }

    /// Waits for events. Returns true if the file may have changed.
    fn wait(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut stale = false;
        loop {
            match reader.next() {
                // Events of the file itself have no name.
                Ok(event) => {
                    stale |= event.events().contains(ReadFlags::QUEUE_OVERFLOW)
                        || event.file_name().is_none_or(|name| {
                            self.names.iter().any(|ours| ours.as_bytes() == name.to_bytes())
                        });
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                return Ok(stale);
            }
        }
    }

    /// Returns the content of the file, if the content has changed and names a server.
    fn changed(&mut self) -> Option<Resolver> {
        let text = match self.find().and_then(read) {
            Ok(text) => text,
            Err(error) => {
                log::info!("{PATH}: {error}; the known servers stay in use");
                return None;
            }
        };
        let resolver = Resolver::parse(&text);
        if resolver == self.last {
            return None;
        }
        if resolver.servers.is_empty() {
            log::info!("{PATH} has no nameserver now; the known servers stay in use");
            return None;
        }
        self.last = resolver.clone();
        Some(resolver)
    }

    /// Follows the links to the file, watches new directories on the path, and opens the file.
    fn find(&mut self) -> io::Result<OwnedFd> {
        self.names.clear();
        let mut directory = 0;
        let mut place = self.start.clone();
        for _ in 0..MAX_LINKS {
            let (parent, name) = split(&place).ok_or(Errno::NOENT)?;
            self.names.push(name.to_owned());
            let Directory { handle, .. } = self.directories.get(directory).ok_or(Errno::NOENT)?;
            match readlinkat(handle, name, Vec::new()) {
                Ok(link) => {
                    let link = PathBuf::from(OsString::from_vec(link.into_bytes()));
                    let next = lexical(parent, &link);
                    directory = self.follow(directory, &link, &next)?;
                    place = next;
                }
                // The path is not a link, so it is the file.
                Err(Errno::INVAL) => {
                    let file = open_file(handle, name)?;
                    self.watch(directory, name, WatchFlags::CLOSE_WRITE | WatchFlags::DONT_FOLLOW).ok();
                    return Ok(file);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// Returns the index of the directory to which `link` leads. `link` is in the directory `from`. `place` is the
    /// link's target as an absolute path. A directory that is not open yet can be found only before the root directory
    /// is replaced.
    fn follow(&mut self, from: usize, link: &Path, place: &Path) -> io::Result<usize> {
        let (path, _) = split(place).ok_or(Errno::NOENT)?;
        if let Some(index) = self.directories.iter().position(|directory| directory.path == path) {
            return Ok(index);
        }
        let (parent, _) = split(link).ok_or(Errno::NOENT)?;
        let from = self.directories.get(from).ok_or(Errno::NOENT)?;
        let handle = open_directory(from.handle.as_fd(), parent)?;
        self.directories.push(Directory { path: path.to_owned(), handle });
        let index = self.directories.len() - 1;
        self.watch(index, OsStr::new("."), REPLACED | WatchFlags::ONLYDIR).ok();
        Ok(index)
    }

    /// Watches a name in a directory, unless nothing is watched yet. The name may be watched already. Changes the
    /// working directory of the calling thread: inotify takes only paths, and the paths of the directories may no longer
    /// exist.
    fn watch(&self, directory: usize, name: &OsStr, events: WatchFlags) -> rustix::io::Result<()> {
        if !self.begun {
            return Ok(());
        }
        let Directory { path, handle } = self.directories.get(directory).ok_or(Errno::NOENT)?;
        fchdir(handle)
            .and_then(|()| inotify::add_watch(&self.inotify, name, events))
            .map(drop)
            .inspect_err(|error| log::debug!("can't watch {}: {error}", path.join(name).display()))
    }
}

fn open_directory(from: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    retry(|| openat(from, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
}

fn open_file(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    // O_NONBLOCK: the file may be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry(|| openat(directory, name, flags, Mode::empty()))
}

/// The target of `link` in the directory `from`, with `.` and `..` resolved in the text alone. The result identifies a
/// watched directory. It is never opened: a link before a `..` could lead to another directory.
fn lexical(from: &Path, link: &Path) -> PathBuf {
    let mut path = PathBuf::new();
    for component in from.join(link).components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            component => path.push(component),
        }
    }
    path
}

/// The directory and the last component of a path.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let parent =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    Some((parent?, path.file_name()?))
}

/// Receives changes of resolv.conf. The descriptor becomes readable when there is a change.
#[derive(Debug)]
pub(crate) struct News {
    wake: OwnedFd,
    news: Receiver<Resolver>,
}

impl News {
    /// The latest content, if there is a change. Must be called when the descriptor is readable.
    pub(crate) fn latest(&self) -> Option<Resolver> {
        // An error means that no change was pending.
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        self.news.try_iter().last()
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn resolver(n: u8) -> Resolver {
        Resolver::parse(text(n).as_bytes())
    }

    fn text(n: u8) -> String {
        format!("nameserver 192.0.2.{n}\n")
    }

    /// Replaces a file atomically.
    fn replace(path: &Path, text: &str) {
        let next = path.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, path).unwrap();
    }

    /// A watch that has begun. The test's thread gets a working directory of its own.
    fn watch(path: &Path, last: Resolver) -> Watch {
        unshare_working_directory().unwrap();
        let mut watch = Watch::of(path, last).unwrap();
        watch.begin().unwrap();
        watch
    }

    /// Returns the change after the next relevant event.
    fn next(watch: &mut Watch) -> Option<Resolver> {
        while !watch.wait().unwrap() {}
        watch.changed()
    }

    #[test]
    fn replaced_files_and_links_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        let (link, file) = (etc.join("resolv.conf"), run.join("stub.conf"));
        fs::write(&file, text(1)).unwrap();
        symlink("../run/stub.conf", &link).unwrap();
        let mut watch = watch(&link, resolver(1));
        assert_eq!(watch.changed(), None, "known");

        replace(&file, &text(2));
        assert_eq!(next(&mut watch), Some(resolver(2)));
        replace(&link, &text(3));
        assert_eq!(next(&mut watch), Some(resolver(3)), "no link any more");
        fs::remove_file(&link).unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(next(&mut watch), Some(resolver(2)), "a link again, an absolute one");
        fs::write(&file, text(4)).unwrap();
        let mut read = None;
        while read.is_none() {
            read = next(&mut watch);
        }
        assert_eq!(read, Some(resolver(4)), "in place");
    }

    /// Directories are still watched when they can't be opened by their paths any more.
    #[test]
    fn renamed_directories_are_still_watched() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(run.join("stub.conf"), text(1)).unwrap();
        symlink(run.join("stub.conf"), etc.join("resolv.conf")).unwrap();
        let mut watch = watch(&etc.join("resolv.conf"), resolver(1));
        fs::rename(&etc, dir.path().join("etc2")).unwrap();
        fs::rename(&run, dir.path().join("run2")).unwrap();
        replace(&dir.path().join("run2/stub.conf"), &text(2));
        assert_eq!(next(&mut watch), Some(resolver(2)));
    }

    #[test]
    fn content_without_servers_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut watch = watch(&file, Resolver::default());
        assert_eq!(watch.changed(), None, "not there yet");
        replace(&file, &text(1));
        assert_eq!(next(&mut watch), Some(resolver(1)));
        for useless in ["", "nameserver x\n", "search a\n"] {
            replace(&file, useless);
            assert_eq!(watch.changed(), None, "{useless:?}");
        }
        fs::remove_file(&file).unwrap();
        symlink("resolv.conf", &file).unwrap();
        assert_eq!(watch.changed(), None, "a link to itself");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(watch.changed(), None, "a directory");
        fs::remove_dir(&file).unwrap();
        replace(&file, &text(2));
        assert_eq!(next(&mut watch), Some(resolver(2)));
    }

    /// Nothing that takes the file's place ends the watch, holds it up, or fills the memory. The next valid file counts.
    #[test]
    fn whatever_takes_the_place_of_the_file_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        replace(&file, &text(1));
        let mut watch = watch(&file, Resolver::default());
        assert_eq!(watch.changed(), Some(resolver(1)));
        let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut huge = "# nothing\n".repeat(1 << 20).into_bytes();
        huge.extend(text(9).into_bytes());
        let pipe = || rustix::fs::mkfifoat(CWD, &file, Mode::RUSR).unwrap();
        let locked = || {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
        };
        let deep = || symlink("x/".repeat(2000), &file).unwrap();
        let socket = || drop(std::os::unix::net::UnixListener::bind(&file).unwrap());
        let places: [(&str, &dyn Fn()); 9] = [
            ("a pipe", &pipe),
            ("a socket", &socket),
            ("a file without rights", &locked),
            ("binary", &|| fs::write(&file, &binary).unwrap()),
            ("huge", &|| fs::write(&file, &huge).unwrap()),
            ("a device", &|| symlink("/dev/zero", &file).unwrap()),
            ("a link to nothing", &|| symlink("/nowhere/at/all", &file).unwrap()),
            ("a long link", &deep),
            ("a link to the directory", &|| symlink(".", &file).unwrap()),
        ];
        for (number, (what, put)) in (2..).zip(places) {
            fs::remove_file(&file).unwrap();
            put();
            assert_eq!(watch.changed(), None, "{what}");
            replace(&file, &text(number));
            let mut read = None;
            while read.is_none() {
                read = next(&mut watch);
            }
            assert_eq!(read, Some(resolver(number)), "after {what}");
        }
    }

    /// The thread reports the content that it reads, including content that was new before the thread started.
    #[test]
    fn news_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        replace(&file, &text(1));
        let watch = Watch::of(&file, Resolver::default()).unwrap();
        let news = watch.start(|| Ok(())).unwrap();
        assert_eq!(wait(&news), resolver(1));
        replace(&file, &text(2));
        assert_eq!(wait(&news), resolver(2));
        assert_eq!(news.latest(), None);
    }

    fn wait(news: &News) -> Resolver {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let bound = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(news, PollFlags::IN)], Some(&bound)).unwrap();
        assert_eq!(ready, 1, "no news");
        news.latest().unwrap()
    }
}
