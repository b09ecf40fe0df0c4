//! Joining a namespace that exists: by process, by path, with or without its user namespace (behaviour §10.3).

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

/// Finds the namespace of process `pid`, after joining the user namespace that gives rights over it: by default the one
/// that owns it. That is not always the process's own, which may be nested in the owner.
pub(crate) fn process(pid: i32, userns: &Userns, quit: bool) -> anyhow::Result<(Namespace, Option<Watch>)> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).with_context(|| format!("{pid} is no process id"))?;
    let number = pid.as_raw_nonzero();
    // A handle first: whatever takes over the number later is not what we were asked for.
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
            // If another process has taken over the number by now, entering by the handle fails.
            let path = PathBuf::from(format!("/proc/{number}/ns/net"));
            let network = File::open(&path)
                .with_context(|| format!("can't open {}: is the process yours?", path.display()))?;
            join_owner(network.as_fd(), &path)?;
        }
    }
    Ok((Namespace::of_process(pidfd, pid), watch))
}

/// Opens the namespace that the file at `path` stands for, and joins the user namespace that gives rights over it: by
/// default the one that owns it.
pub(crate) fn path(path: &Path, userns: &Userns, quit: bool) -> anyhow::Result<(Namespace, Option<Watch>)> {
    // The right to open the file may come with the user namespace asked for.
    if let Userns::Path(path) = userns {
        join_user_namespace(path)?;
    }
    // Watched before it is opened, so that no moment is missed between the two.
    let watch = if quit { Some(Watch::path(path)?) } else { None };
    let file =
        File::open(path).with_context(|| format!("can't open network namespace {}", path.display()))?;
    if *userns == Userns::Default {
        join_owner(file.as_fd(), path)?;
    }
    Ok((Namespace::of_file(file.into(), path), watch))
}

/// Joins the user namespace that owns the network namespace open at `network`, unless it is ours already.
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
    let explain = || format!("can't join the user namespace that owns network namespace {}", path.display());
    if is_ours(owner.as_fd()).with_context(explain)? {
        return Ok(());
    }
    enter_user_namespace(owner.as_fd()).with_context(explain)
}

fn join_user_namespace(path: &Path) -> anyhow::Result<()> {
    let explain = || format!("can't join user namespace {}", path.display());
    let file = File::open(path).with_context(explain)?;
    if is_ours(file.as_fd()).with_context(explain)? {
        return Ok(());
    }
    enter_user_namespace(file.as_fd()).with_context(explain)
}

fn enter_user_namespace(file: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(move_into_link_name_space(file, Some(LinkNameSpaceType::User))?)
}

/// Whether a namespace file is that of the user namespace we are in, which can't be joined again.
fn is_ours(theirs: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let ours = stat("/proc/self/ns/user").context("can't look at our user namespace")?;
    let theirs = fstat(theirs)?;
    Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
}
