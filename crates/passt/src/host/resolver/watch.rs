//! Notices when resolv.conf changes, so that who moves to another network keeps resolving names.
//!
//! The file is mostly replaced, by renaming another over it, and often it is a symbolic link into the directory of a
//! service, which replaces it there. So what is watched is every directory on the way from `/etc/resolv.conf` to the
//! file, and the file itself, which a container engine rewrites in place.
//!
//! All of it happens on a thread of its own: the one that serves the guest opens no path. The directories are held
//! open from the start and the file is opened from there, so it can be read when we are another user, and when the
//! machine's files are out of sight. What can't be followed then is a link to a directory that was not on the way
//! at the start.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{PATH, Resolver, read};

/// Links that are followed at most, as in the kernel.
const MAX_LINKS: usize = 40;

/// What happens in a directory when one of its files is replaced: a link is made, a file is written and closed, or
/// renamed. Not that a file is gone: what it said holds until there is another.
const REPLACED: WatchFlags = WatchFlags::CREATE.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::MOVED_TO);

/// resolv.conf under observation.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    /// Where the way to the file begins.
    start: PathBuf,
    /// All on the way to the file, now or before: who changes to another network comes back.
    directories: Vec<Directory>,
    /// The names on the way, of links and of the file.
    names: Vec<OsString>,
    last: Resolver,
}

/// A directory that is held open.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

impl Watch {
    /// Starts to watch the host's file, of which `last` is known. To be called with our caller's rights.
    ///
    /// # Errors
    /// There is no `/etc`, or the user has too many inotify instances.
    pub(crate) fn open(last: &Resolver) -> io::Result<Self> {
        Self::of(Path::new(PATH), last.clone())
    }

    fn of(path: &Path, last: Resolver) -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let start = lexical(Path::new("/"), path);
        let (parent, _) = split(&start).ok_or(Errno::NOENT)?;
        let handle = open_directory(CWD, parent)?;
        inotify::add_watch(&inotify, parent, REPLACED | WatchFlags::ONLYDIR)?;
        let directories = vec![Directory { path: parent.to_owned(), handle }];
        let mut watch = Self { inotify, start, directories, names: Vec::new(), last };
        // It may come into being later.
        if let Err(error) = watch.find() {
            log::debug!("{}: {error}", path.display());
        }
        Ok(watch)
    }

    /// Goes on seeing the directories, with what is mounted in them, when the mount namespace is about to be left.
    /// Nothing else can be reached from there any more. To be called with the right to mount.
    pub(crate) fn keep_accessible(&mut self) {
        let copy =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        for Directory { path, handle } in &mut self.directories {
            // By its path: what was opened before belongs to the mount namespace that we have left.
            match open_tree(CWD, path.as_path(), copy) {
                Ok(copy) => *handle = copy,
                // A file mounted there, as in containers, will be lost; its directory isn't.
                Err(errno) => log::debug!("can't keep {} in sight: {errno}", path.display()),
            }
        }
    }

    /// The directories that are held.
    pub(crate) fn directories(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.directories.iter().map(|directory| directory.handle.as_fd())
    }

    /// Starts the thread, which gives up its rights by `drop_rights`, and then waits for changes.
    ///
    /// # Errors
    /// The thread can't be started, or has failed at one of its first steps.
    pub(crate) fn start(
        mut self,
        drop_rights: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<News> {
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("can't make an eventfd")?;
        let bell = wake.try_clone().context("can't duplicate a descriptor")?;
        let (resolvers, news) = channel();
        let (report, started) = channel();
        let run = move || {
            let ready = drop_rights();
            // Whoever started us may have ended meanwhile; then nobody wants news either.
            drop(report.send(ready));
            if let Err(error) = self.run(&resolvers, &bell) {
                log::warn!("{PATH} is not watched any more: {error}");
            }
        };
        thread::Builder::new().name("resolv.conf".into()).spawn(run).context("can't start a thread")?;
        started.recv().unwrap_or_else(|_| Err(anyhow!("the thread that watches {PATH} died")))?;
        Ok(News { wake, news })
    }

    fn run(&mut self, resolvers: &Sender<Resolver>, bell: &OwnedFd) -> io::Result<()> {
        // What was changed since it was read first.
        let mut stale = true;
        loop {
            if stale && let Some(resolver) = self.changed() {
                if resolvers.send(resolver).is_err() {
                    return Ok(());
                }
                rustix::io::write(bell, &1_u64.to_ne_bytes())?;
            }
            stale = self.wait()?;
        }
    }

    /// Waits for events, and says whether the file may be another one now.
    fn wait(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut stale = false;
        loop {
            match reader.next() {
                // The file's own events have no name.
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

    /// What the file says, if that has changed and is of use.
    fn changed(&mut self) -> Option<Resolver> {
        let text = match self.find().and_then(read) {
            Ok(text) => text,
            Err(error) => {
                log::info!("{PATH}: {error}; the servers known stay in use");
                return None;
            }
        };
        let resolver = Resolver::parse(&text);
        if resolver == self.last {
            return None;
        }
        if resolver.servers.is_empty() {
            log::info!("{PATH} has no nameserver now; the ones known stay in use");
            return None;
        }
        self.last = resolver.clone();
        Some(resolver)
    }

    /// Goes the way to the file, watches what is new on it, and opens the file.
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
                // No link: that's it.
                Err(Errno::INVAL) => {
                    let file = open_file(handle, name)?;
                    self.watch(&place, WatchFlags::CLOSE_WRITE);
                    return Ok(file);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// The index of the directory that a link in another leads to, to be called `place`. One that we do not hold can be
    /// found only until the machine's files are out of sight.
    fn follow(&mut self, from: usize, link: &Path, place: &Path) -> io::Result<usize> {
        let (path, _) = split(place).ok_or(Errno::NOENT)?;
        if let Some(index) = self.directories.iter().position(|directory| directory.path == path) {
            return Ok(index);
        }
        let (parent, _) = split(link).ok_or(Errno::NOENT)?;
        let from = self.directories.get(from).ok_or(Errno::NOENT)?;
        let handle = open_directory(from.handle.as_fd(), parent)?;
        self.watch(path, REPLACED | WatchFlags::ONLYDIR);
        self.directories.push(Directory { path: path.to_owned(), handle });
        Ok(self.directories.len() - 1)
    }

    /// Watches one more place. What is watched already may be named again.
    fn watch(&self, path: &Path, events: WatchFlags) {
        if let Err(error) = inotify::add_watch(&self.inotify, path, events) {
            log::debug!("can't watch {}: {error}", path.display());
        }
    }
}

fn open_directory(from: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(from, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn open_file(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    // Not blocking: it may be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// What `link` in the directory at `from` says, without dots: a name for the place, not the way to it.
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

/// Directory and name.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let parent =
        path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    Some((parent?, path.file_name()?))
}

/// Where news of the resolvers arrive.
#[derive(Debug)]
pub(crate) struct News {
    wake: OwnedFd,
    news: Receiver<Resolver>,
}

impl News {
    /// The latest, if there are any. To be called when the descriptor is readable.
    pub(crate) fn latest(&self) -> Option<Resolver> {
        // An error means that it was not readable, which is no matter.
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
    use std::os::unix::fs::symlink;

    use super::*;

    fn resolver(n: u8) -> Resolver {
        Resolver::parse(text(n).as_bytes())
    }

    fn text(n: u8) -> String {
        format!("nameserver 192.0.2.{n}\n")
    }

    /// Puts a file in the place of another at once.
    fn replace(path: &Path, text: &str) {
        let next = path.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, path).unwrap();
    }

    /// What is read after the next events that matter.
    fn next(watch: &mut Watch) -> Option<Resolver> {
        while !watch.wait().unwrap() {}
        watch.changed()
    }

    #[test]
    fn files_and_links_that_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        let (link, file) = (etc.join("resolv.conf"), run.join("stub.conf"));
        fs::write(&file, text(1)).unwrap();
        symlink("../run/stub.conf", &link).unwrap();
        let mut watch = Watch::of(&link, resolver(1)).unwrap();
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

    /// The directory of the file can't be opened by its path any more.
    #[test]
    fn directories_that_are_out_of_sight() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(run.join("stub.conf"), text(1)).unwrap();
        symlink(run.join("stub.conf"), etc.join("resolv.conf")).unwrap();
        let mut watch = Watch::of(&etc.join("resolv.conf"), resolver(1)).unwrap();
        fs::rename(&etc, dir.path().join("etc2")).unwrap();
        fs::rename(&run, dir.path().join("run2")).unwrap();
        replace(&dir.path().join("run2/stub.conf"), &text(2));
        assert_eq!(next(&mut watch), Some(resolver(2)));
    }

    #[test]
    fn what_is_of_no_use_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let mut watch = Watch::of(&file, Resolver::default()).unwrap();
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

    /// The thread tells what it reads, also what was new before it started.
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
