//! The PID file (behaviour §1.3.6).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::process::Pid;

use super::made_files::MadeFiles;

/// A PID file. The file is opened with the caller's rights, and is written when the process ID is known.
pub(crate) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Creates the file with access for its owner only, or truncates an existing file. A new file is added to `made`.
    ///
    /// # Errors
    /// The file can't be opened for writing.
    pub(crate) fn create(path: &Path, made: &mut MadeFiles) -> anyhow::Result<Self> {
        let open = |new| {
            OpenOptions::new().write(true).create(true).create_new(new).truncate(!new).mode(0o600).open(path)
        };
        let file = match open(true) {
            Ok(file) => {
                made.add(path);
                Ok(file)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => open(false),
            error => error,
        };
        let file = file.with_context(|| format!("can't open PID file {} (--pid)", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes a process ID, and closes the file.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn write(mut self, pid: Pid) -> anyhow::Result<()> {
        let line = format!("{}\n", pid.as_raw_nonzero());
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("can't write to PID file {} (--pid)", self.path.display()))
    }
}
