//! The files of an installation.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::programs::{PROGRAMS, Programs};
use super::{PACKAGE, bill, documents, notices, tool};
use crate::house::root;
use crate::{completions, man};

/// The link that takes the place of slirp4netns. Packages have it in a package of its own.
pub(super) const SLIRP4NETNS: &str = "slirp4netns";

/// Writes everything below `prefix`. Files that mention paths mention those below `installed`, which is the prefix at the time
/// of use. `epoch` is the time of the build, in seconds since 1970.
///
/// # Errors
/// A file can't be written.
pub(super) fn write(programs: &Programs, prefix: &Path, installed: &Path, epoch: u64) -> anyhow::Result<()> {
    write_main(programs, prefix, installed, epoch)?;
    write_slirp4netns(prefix)
}

/// Writes the link `slirp4netns`, its manual page and its completions, as [`write()`] does.
///
/// # Errors
/// A file can't be written.
pub(super) fn write_slirp4netns(prefix: &Path) -> anyhow::Result<()> {
    // The program's name selects the mode (behaviour §1.1).
    link(&prefix.join("bin").join(SLIRP4NETNS), "passt")?;
    let page = format!("share/man/man1/{SLIRP4NETNS}.1");
    file(&prefix.join(page), man::page(man::SLIRP4NETNS).as_bytes(), 0o644)?;
    write_completions(prefix, |program| program == SLIRP4NETNS)
}

/// Writes the other programs, manual pages, completions, documents and the systemd unit, as [`write()`] does.
///
/// # Errors
/// A file can't be written.
pub(super) fn write_main(
    programs: &Programs,
    prefix: &Path,
    installed: &Path,
    epoch: u64,
) -> anyhow::Result<()> {
    for name in PROGRAMS {
        let program = programs.stripped.join(name);
        let bytes = fs::read(&program).with_context(|| format!("can't read {}", program.display()))?;
        file(&prefix.join("bin").join(name), &bytes, 0o755)?;
    }
    link(&prefix.join("bin/pasta"), "passt")?;
    let manual = prefix.join("share/man/man1");
    file(&manual.join("pasta.1"), man::page(man::PASTA).as_bytes(), 0o644)?;
    file(&manual.join("passt.1"), man::page(man::PASST).as_bytes(), 0o644)?;
    for (name, section) in [("pesto", 1), ("qrap", 1), ("passt-rs-policy", 5), ("passt-rs-api", 7)] {
        let page = format!("{name}.{section}");
        copy(&format!("packaging/man/{page}"), &prefix.join(format!("share/man/man{section}")).join(&page))?;
    }
    write_completions(prefix, |program| program != SLIRP4NETNS)?;
    let folder = prefix.join("share/doc").join(PACKAGE);
    for name in documents::PAGES {
        file(&folder.join(name), documents::page(name)?.as_bytes(), 0o644)?;
    }
    for name in documents::FILES.iter().chain(&["LICENSE-APACHE", "LICENSE-MIT"]) {
        copy(name, &folder.join(name))?;
    }
    copy("packaging/apparmor/passt-rs", &folder.join("apparmor/passt-rs"))?;
    let notices = notices::of(&programs.libraries)?;
    file(&folder.join(notices::NAME), notices.as_bytes(), 0o644)?;
    let bill = bill::of(&programs.libraries, &programs.target, epoch)?;
    file(&folder.join(bill::NAME), bill.as_bytes(), 0o644)?;
    for name in ["passt_rs.te", "passt_rs.fc"] {
        copy(&format!("packaging/selinux/{name}"), &folder.join("selinux").join(name))?;
    }
    for (name, manager) in
        [("pasta@.service", "system"), ("passt@.service", "user"), ("passt@.socket", "user")]
    {
        let unit = read(&format!("packaging/{name}"))?;
        let unit = unit.replace("/usr/bin/", &format!("{}/bin/", installed.display()));
        file(&prefix.join("lib/systemd").join(manager).join(name), unit.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn write_completions(prefix: &Path, of: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    for (program, path, script) in completions::scripts().filter(|(program, ..)| of(program)) {
        file(&prefix.join(path), script.as_bytes(), 0o644)
            .with_context(|| format!("can't write the completions of {program}"))?;
    }
    Ok(())
}

/// Writes a file with these permissions, and the folders that lead to it. They do not depend on the umask.
///
/// # Errors
/// The file can't be written.
pub(super) fn file(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    // A running program can't be written to, but its file can be replaced.
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).with_context(|| format!("can't replace {}", path.display()))?;
    }
    fs::write(path, content).with_context(|| format!("can't write {}", path.display()))?;
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, permissions)
        .with_context(|| format!("can't set the mode of {}", path.display()))
}

/// Compresses the manual pages below `manual`, as distributions do.
///
/// # Errors
/// gzip(1) fails.
pub(super) fn compress_manual(manual: &Path) -> anyhow::Result<()> {
    let compress = "find \"$1\" -type f -exec gzip -9n {} +";
    tool::run(Command::new("sh").args(["-ec", compress, "sh"]).arg(manual))
}

/// Reads a file of the project.
///
/// # Errors
/// The file can't be read.
pub(super) fn read(name: &str) -> anyhow::Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| format!("can't read {name}"))
}

fn copy(name: &str, to: &Path) -> anyhow::Result<()> {
    file(to, read(name)?.as_bytes(), 0o644)
}

/// Writes a symbolic link, and the folders that lead to it.
///
/// # Errors
/// It can't be written.
pub(super) fn link(path: &Path, target: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a link without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("can't create {}", folder.display()))?;
    if path.symlink_metadata().is_ok() {
        fs::remove_file(path).with_context(|| format!("can't replace {}", path.display()))?;
    }
    symlink(target, path).with_context(|| format!("can't create {}", path.display()))
}
