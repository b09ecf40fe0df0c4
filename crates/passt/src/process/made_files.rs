//! The files that a start makes: the PID file, and the files of UNIX sockets. A start that fails removes them.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, statat, unlinkat};

/// The files. They are removed when this value is dropped, as far as the process has the right to: a process that has
/// changed its user may not.
#[derive(Debug, Default)]
pub(crate) struct MadeFiles(Vec<MadeFile>);

#[derive(Debug)]
struct MadeFile {
    /// The folder: its path can't be used when the root directory has been replaced.
    folder: OwnedFd,
    name: OsString,
    /// Device and inode number.
    identity: (u64, u64),
}

impl MadeFiles {
    /// Notes that this process has made the file at `path`. If its folder can't be opened, the file will stay.
    pub(crate) fn add(&mut self, path: &Path) {
        let (Some(name), Some(folder)) = (path.file_name(), path.parent()) else { return };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let opened = open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW);
        match (opened, found) {
            (Ok(folder), Ok(stat)) => {
                self.0.push(MadeFile { folder, name: name.to_owned(), identity: (stat.st_dev, stat.st_ino) });
            }
            (Err(error), _) | (_, Err(error)) => {
                log::debug!("{} will stay if the start fails: {error}", path.display());
            }
        }
    }

    /// The start has succeeded: the files stay.
    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for MadeFile { folder, name, identity } in &self.0 {
            // Another process may have replaced the file.
            let is_ours = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == *identity);
            if is_ours && let Err(error) = unlinkat(folder, name, AtFlags::empty()) {
                log::debug!("can't remove {}: {error}", name.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_failed_start_removes_its_own_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut made = MadeFiles::default();
        for name in ["ours", "replaced", "gone"] {
            fs::write(path(name), "1\n").unwrap();
            made.add(&path(name));
        }
        made.add(&path("never"));
        fs::write(path("new"), "2\n").unwrap();
        fs::rename(path("new"), path("replaced")).unwrap();
        fs::remove_file(path("gone")).unwrap();
        drop(made);
        assert!(!path("ours").exists());
        assert_eq!(fs::read(path("replaced")).unwrap(), b"2\n");
    }

    #[test]
    fn a_start_that_succeeds_keeps_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let mut made = MadeFiles::default();
        made.add(&path);
        made.keep();
        assert!(path.exists());
    }
}
