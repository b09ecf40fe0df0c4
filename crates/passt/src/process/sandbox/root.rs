//! An empty root: nothing can be opened by a path any more.

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};

/// Directories to mount the new root on, for the moment until it is the root: profiles of security modules expect the
/// first (behaviour §10.1.5), and a system without it has the other, since we have found a device there.
const PLACES: [&str; 2] = ["/tmp", "/dev"];

/// Cuts the mount namespace that we are in off from others, so that nothing mounted here is seen there.
pub(crate) fn make_private() -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("can't make mounts private")
}

/// Goes into an empty file system that can't be written to, and leaves the old root behind, which nobody else notices:
/// see [`make_private`]. With `chroot_fallback`, also where the old root can't be left behind because it is the one
/// that the system was booted with (behaviour §10.5): then it is out of sight.
///
/// # Errors
/// It can't be mounted, or can't become the root. Then the root is what it was.
pub(crate) fn enter_empty(chroot_fallback: bool) -> anyhow::Result<()> {
    let place = mount_empty().context("can't mount a tmpfs")?;
    chdir(place).with_context(|| format!("can't change to {place}"))?;
    match pivot_root(".", ".") {
        // The old root is on top of the new one now.
        Ok(()) => unmount(".", UnmountFlags::DETACH).context("can't unmount the old root")?,
        Err(errno) if chroot_fallback => {
            log::info!("pivot_root: {errno}, the empty root is moved over the old one (--chroot-fallback)");
            mount_move(".", "/").context("can't move a mount over the root")?;
            chroot(".").context("can't change the root")?;
        }
        Err(errno) => return Err(errno).context("pivot_root"),
    }
    chdir("/").context("can't change to the root directory")
}

fn mount_empty() -> rustix::io::Result<&'static str> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for place in PLACES {
        match mount("none", place, "tmpfs", flags, c"nr_inodes=2,nr_blocks=1,mode=555") {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            mounted => return mounted.map(|()| place),
        }
    }
    Err(Errno::NOENT)
}
