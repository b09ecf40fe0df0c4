//! Archives that have the same bytes each time: sorted names, one owner, one time.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::programs::Programs;
use super::{VERSION, tool, tree};

/// Makes the archive of an installation, to be unpacked anywhere. Returns its name.
///
/// # Errors
/// A file can't be written.
pub(super) fn make(programs: &Programs, epoch: u64, work: &Path, folder: &Path) -> anyhow::Result<String> {
    let name = format!("passt-rs-{VERSION}-{}", programs.target);
    tree::write(programs, &work.join(&name), Path::new("/usr/local"), epoch)?;
    let archive = format!("{name}.tar.gz");
    pack(work, &name, epoch, "gzip -9n", &folder.join(&archive))?;
    Ok(archive)
}

/// Makes the archive of debug symbols. Returns its name.
///
/// # Errors
/// A file can't be written.
pub(super) fn symbols(programs: &Programs, epoch: u64, folder: &Path) -> anyhow::Result<String> {
    let archive = format!("passt-rs-{VERSION}-{}-debug.tar.xz", programs.target);
    let parent = programs.symbols.parent().context("no folder of symbols")?;
    pack(parent, "symbols", epoch, "xz -T1", &folder.join(&archive))?;
    Ok(archive)
}

/// Writes the checksums of the packages, in the format of sha256sum(1). Returns the file's name.
///
/// # Errors
/// A package can't be read.
pub(super) fn checksums(packages: &[String], folder: &Path) -> anyhow::Result<String> {
    let sums = tool::output(Command::new("sha256sum").args(packages).current_dir(folder))?;
    tree::file(&folder.join("SHA256SUMS"), sums.as_bytes(), 0o644)?;
    Ok("SHA256SUMS".into())
}

fn pack(parent: &Path, name: &str, epoch: u64, compressor: &str, archive: &Path) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--format=gnu", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.args(["--mode=go-w,a+rX", &format!("--mtime=@{epoch}"), "--use-compress-program", compressor]);
    tool::run(tar.arg("--file").arg(archive).arg("--directory").arg(parent).arg(name))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, FileTimes, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// The archive depends on the names and contents of the files, not on their times, modes and order on the disk.
    #[test]
    fn the_same_files_give_the_same_bytes() {
        if tool::need(&["tar", "xz"], "").is_err() {
            return eprintln!("SKIPPED: tar or xz is not installed");
        }
        let archive = |names: [&str; 2], content: &str, age: u64, mode: u32| {
            let work = tempfile::tempdir().unwrap();
            let symbols = work.path().join("symbols");
            fs::create_dir(&symbols).unwrap();
            for name in names {
                let path = symbols.join(name);
                fs::write(&path, content).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(age);
                File::open(&path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
            }
            let stripped = work.path().join("none");
            let programs = Programs { target: "t".into(), stripped, symbols, libraries: Vec::new() };
            let name = super::symbols(&programs, 1_000_000_000, work.path()).unwrap();
            let sums = checksums(std::slice::from_ref(&name), work.path()).unwrap();
            assert!(fs::read_to_string(work.path().join(sums)).unwrap().ends_with(&format!("  {name}\n")));
            fs::read(work.path().join(name)).unwrap()
        };
        let one = archive(["a.debug", "b.debug"], "symbols", 1_100_000_000, 0o644);
        assert_eq!(one, archive(["b.debug", "a.debug"], "symbols", 1_200_000_000, 0o600));
        assert_ne!(one, archive(["a.debug", "b.debug"], "Symbols", 1_100_000_000, 0o644));
    }
}
