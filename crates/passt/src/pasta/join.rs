//! Joining a namespace that exists: by process, by path, with or without its user namespace (SPEC §10.3).

use std::fs::{File, Metadata};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use super::quit::Watch;
use crate::config::Userns;
use crate::netns::Namespace;

/// Finds the namespace of process `pid`, after joining the user namespace that goes with it: with its rights, and
/// no others, the network namespace can be entered.
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
            let path = format!("/proc/{number}/ns/user");
            let theirs = std::fs::metadata(&path)
                .with_context(|| format!("can't look at user namespace {path}: is the process yours?"))?;
            if !is_ours(&theirs)? {
                move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::USER)
                    .with_context(|| format!("can't join user namespace {path}"))?;
            }
        }
    }
    Ok((Namespace::of_process(pidfd, pid), watch))
}

/// Opens the namespace that the file at `path` stands for, after joining the user namespace asked for, if any.
pub(crate) fn path(path: &Path, userns: &Userns, quit: bool) -> anyhow::Result<(Namespace, Option<Watch>)> {
    if let Userns::Path(path) = userns {
        join_user_namespace(path)?;
    }
    // Watched before it is opened, so that no moment is missed between the two.
    let watch = if quit { Some(Watch::path(path)?) } else { None };
    Ok((Namespace::open(path)?, watch))
}

fn join_user_namespace(path: &Path) -> anyhow::Result<()> {
    let explain = || format!("can't join user namespace {}", path.display());
    let file = File::open(path).with_context(explain)?;
    if is_ours(&file.metadata().with_context(explain)?)? {
        return Ok(());
    }
    enter_user_namespace(OwnedFd::from(file).as_fd()).with_context(explain)
}

fn enter_user_namespace(file: BorrowedFd<'_>) -> std::io::Result<()> {
    Ok(move_into_link_name_space(file, Some(LinkNameSpaceType::User))?)
}

/// Whether a namespace file is that of the user namespace we are in, which can't be joined again.
fn is_ours(theirs: &Metadata) -> anyhow::Result<bool> {
    let ours = std::fs::metadata("/proc/self/ns/user").context("can't look at our user namespace")?;
    Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
}
