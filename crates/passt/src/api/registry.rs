//! The registry: a socket `$XDG_RUNTIME_DIR/passt/PID.api` for each process of this user, by which `pesto` finds it
//! (docs/api.md).
//!
//! A command that pasta starts has the same user and sees the same files. So who may use a socket of the registry is
//! decided by the client's network namespace: it must be that in which this process was started (docs/design/api.md).

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, fchmod, fstat, mkdir, open, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::geteuid;
use sys::sockopt::netns_cookie;

use crate::host::missing;

/// The folder in `$XDG_RUNTIME_DIR`.
const FOLDER: &str = "passt";
/// Maximum number of clients that may wait to be accepted.
const BACKLOG: i32 = 8;
/// Number of names that are tried. A socket that a killed process has left behind, or a process with the same ID in
/// another PID namespace, may have the first ones.
const NAMES: u32 = 9;

/// The socket's file. It is removed when the value is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    path: PathBuf,
    folder: OwnedFd,
    name: String,
}

/// A listening socket of the registry.
#[derive(Debug)]
pub(crate) struct Listening {
    /// The socket. It does not block.
    pub(crate) socket: OwnedFd,
    /// The cookie of the network namespace whose processes may be clients.
    pub(crate) cookie: u64,
    /// Its file.
    pub(crate) file: Registered,
}

impl Listening {
    /// Listens in the folder of `runtime`, the value of `XDG_RUNTIME_DIR`. `pesto` finds the socket after
    /// [`Registered::publish`].
    ///
    /// # Errors
    /// There is no such folder that only this user can change, the kernel does not tell a socket's network namespace, or
    /// the socket can't be bound.
    pub(super) fn open(runtime: Option<OsString>) -> anyhow::Result<Self> {
        let runtime = runtime.map(PathBuf::from).filter(|path| path.is_absolute());
        let runtime = runtime.context("XDG_RUNTIME_DIR is not an absolute path")?;
        own_folder(&runtime)?;
        let path = runtime.join(FOLDER);
        match mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("can't make {}", path.display())),
        }
        let folder = own_folder(&path)?;

        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let cookie = if missing::is_missing(missing::NETNS_COOKIE) {
            Err(Errno::NOPROTOOPT)
        } else {
            netns_cookie(&socket)
        };
        let cookie = cookie.context("the kernel does not tell a socket's network namespace (Linux 5.14)")?;
        // The mode that bind(2) gives to the file, whatever the umask is.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).context("can't set the socket's mode")?;
        // Only a socket that listens gets a name that pesto looks at. Otherwise, pesto could take it for an old one.
        let file = Registered { name: format!(".{}", std::process::id()), path, folder };
        let address = SocketAddrUnix::new(file.path.join(&file.name))?;
        if bind(&socket, &address) == Err(Errno::ADDRINUSE) {
            let _ = unlinkat(&file.folder, &file.name, AtFlags::empty());
            bind(&socket, &address)?;
        }
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, cookie, file })
    }
}

/// Opens a folder of this user, which nobody else can change.
fn own_folder(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened =
        open(path, flags, Mode::empty()).and_then(|folder| fstat(&folder).map(|stat| (folder, stat)));
    let (folder, Stat { st_uid, st_mode, .. }) =
        opened.with_context(|| format!("can't open {}", path.display()))?;
    ensure!(st_uid == geteuid().as_raw(), "{} belongs to another user", path.display());
    ensure!(st_mode & 0o022 == 0, "others can change {}", path.display());
    Ok(folder)
}

impl Registered {
    /// Keeps the folder accessible after the root directory is replaced, and nothing but the folder. Must be called
    /// before the replacement, with the right to mount.
    ///
    /// # Errors
    /// As open_tree(2).
    pub(crate) fn keep_accessible(&mut self) -> rustix::io::Result<()> {
        let copy =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        self.folder = open_tree(CWD, &self.path, copy)?;
        Ok(())
    }

    /// Gives the socket the name by which `pesto` finds it.
    pub(crate) fn publish(&mut self, pid: u32) {
        let names = (1..=NAMES).map(|number| match number {
            1 => format!("{pid}.api"),
            number => format!("{pid}-{number}.api"),
        });
        for name in names {
            match renameat_with(&self.folder, &self.name, &self.folder, &name, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    log::debug!("API socket: {}", self.path.join(&name).display());
                    self.name = name;
                    return;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return log::debug!("No API socket: can't name it {name}: {errno}"),
            }
        }
        log::debug!("No API socket: all names for the process ID {pid} are in use");
    }

    /// The folder, in which the process must be able to remove its socket.
    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // The user may have removed the file.
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn runtime() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn names(runtime: &Path) -> Vec<String> {
        let entries = fs::read_dir(runtime.join(FOLDER)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn open_in(runtime: &Path) -> anyhow::Result<Listening> {
        Listening::open(Some(runtime.into()))
    }

    #[test]
    fn a_socket_for_its_owner_until_it_is_dropped() {
        let runtime = runtime();
        let mut listening = open_in(runtime.path()).unwrap();
        assert_eq!(names(runtime.path()), [format!(".{}", std::process::id())]);
        listening.file.publish(77);
        let path = runtime.path().join("passt/77.api");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        UnixStream::connect(&path).unwrap();
        drop(listening);
        assert_eq!(names(runtime.path()), [""; 0]);
    }

    /// A name in use is left alone, whether a process listens there or not.
    #[test]
    fn names_in_use() {
        let runtime = runtime();
        fs::create_dir(runtime.path().join(FOLDER)).unwrap();
        let path = |name: &str| runtime.path().join(FOLDER).join(name);
        let _other = UnixListener::bind(path("5.api")).unwrap();
        drop(UnixListener::bind(path("5-2.api")).unwrap());
        drop(UnixListener::bind(path(&format!(".{}", std::process::id()))).unwrap());
        let mut listening = open_in(runtime.path()).unwrap();
        listening.file.publish(5);
        assert_eq!(names(runtime.path()), ["5-2.api", "5-3.api", "5.api"]);
        drop(listening);
        (4..=NAMES).for_each(|number| drop(fs::write(path(&format!("5-{number}.api")), "")));
        fs::write(path("5-3.api"), "").unwrap();
        let mut listening = open_in(runtime.path()).unwrap();
        listening.file.publish(5);
        drop(listening);
        assert_eq!(names(runtime.path()).len(), 9);
    }

    #[test]
    fn only_in_a_folder_that_nobody_else_can_change() {
        let error = |runtime: Option<OsString>| format!("{:#}", Listening::open(runtime).unwrap_err());
        for relative in [None, Some("".into()), Some("run".into())] {
            assert_eq!(error(relative), "XDG_RUNTIME_DIR is not an absolute path");
        }
        let runtime = runtime();
        assert!(error(Some(runtime.path().join("missing").into())).starts_with("can't open "));
        fs::write(runtime.path().join("file"), "").unwrap();
        assert!(error(Some(runtime.path().join("file").into())).starts_with("can't open "));
        symlink("/tmp", runtime.path().join(FOLDER)).unwrap();
        assert!(error(Some(runtime.path().into())).starts_with("can't open "));
        fs::remove_file(runtime.path().join(FOLDER)).unwrap();
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(error(Some(runtime.path().into())).starts_with("others can change "));
        assert!(!runtime.path().join(FOLDER).exists());
        if geteuid().as_raw() != 0 {
            assert!(error(Some("/proc".into())).contains("belongs to another user"));
        }
    }
}
