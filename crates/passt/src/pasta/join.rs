//! Joins an existing namespace, given by a process or by a path, with or without its user namespace (behaviour §10.3).

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{fstat, stat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::quit::Watch;
use crate::config::Userns;
use crate::pasta::netns::Namespace;

/// Joins the user namespace that gives rights over the network namespace of process `pid`. Returns this network
/// namespace. By default, the joined user namespace is the owner of the network namespace: the process itself may be in
/// a user namespace below the owner. With `quit`, also returns a watch for the end of the process.
pub(crate) fn process(pid: i32, userns: &Userns, quit: bool) -> anyhow::Result<(Namespace, Option<Watch>)> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).with_context(|| format!("{pid} is no process id"))?;
    let number = pid.as_raw_nonzero();
    // The pidfd is opened first: another process may get the same process ID later.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .with_context(|| format!("can't find process {number}, whose namespace to join"))?;
    let watch = if quit {
        let watched = pidfd.try_clone().context("can't duplicate a descriptor")?;
        Some(Watch::process(watched, format!("of process {number}")))
    } else {
        None
    };
    match userns {
        Userns::None => {}
        Userns::Path(path) => join_user_namespace(path)?,
        Userns::Default => {
            // If another process has got the process ID by now, entering by the pidfd fails.
            let path = PathBuf::from(format!("/proc/{number}/ns/net"));
            let network = File::open(&path)
                .with_context(|| format!("can't open {}: is the process yours?", path.display()))?;
            join_owner(network.as_fd(), &path)?;
        }
    }
    Ok((Namespace::of_process(pidfd, pid), watch))
}

/// Joins the user namespace that gives rights over the network namespace at `path`, by default the owner. Returns the
/// network namespace. With `quit`, also returns a watch for the removal of the file.
pub(crate) fn path(path: &Path, userns: &Userns, quit: bool) -> anyhow::Result<(Namespace, Option<Watch>)> {
    // The user namespace of `--userns` may give the right to open the file.
    if let Userns::Path(path) = userns {
        join_user_namespace(path)?;
    }
    // The watch starts before the file is opened, so that no removal is missed.
    let watch = if quit { Some(Watch::path(path)?) } else { None };
    let file =
        File::open(path).with_context(|| format!("can't open network namespace {}", path.display()))?;
    if *userns == Userns::Default {
        join_owner(file.as_fd(), path)?;
    }
    Ok((Namespace::of_file(file.into(), path), watch))
}

/// Joins the user namespace that owns `network`, unless the process is already in this user namespace.
fn join_owner(network: BorrowedFd<'_>, path: &Path) -> anyhow::Result<()> {
    let owner = match sys::netns::owner(network) {
        Ok(owner) => owner,
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => bail!(
            "can't join network namespace {}: it belongs to a user namespace outside of ours",
            path.display()
        ),
        Err(error) => {
            return Err(error).with_context(|| format!("{} is no network namespace", path.display()));
        }
    };
    enter_user_namespace(owner.as_fd()).with_context(|| {
        format!("can't join the user namespace that owns network namespace {}", path.display())
    })
}

fn join_user_namespace(path: &Path) -> anyhow::Result<()> {
    let explain = || format!("can't join user namespace {}", path.display());
    enter_user_namespace(File::open(path).with_context(explain)?.as_fd()).with_context(explain)
}

/// Enters a user namespace, unless the process is already in this user namespace: setns(2) refuses to join the same
/// namespace again.
fn enter_user_namespace(file: BorrowedFd<'_>) -> anyhow::Result<()> {
    let present = stat("/proc/self/ns/user").context("can't examine /proc/self/ns/user")?;
    let wanted = fstat(file)?;
    if (present.st_dev, present.st_ino) != (wanted.st_dev, wanted.st_ino) {
        move_into_link_name_space(file, Some(LinkNameSpaceType::User))?;
    }
    Ok(())
}
