//! An empty root directory: the process can't open any file by a path any more.

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_move, unmount,
};
use rustix::process::{chdir, chroot, pivot_root};

/// Directories on which the new root is mounted before it becomes the root. Profiles of security modules expect the
/// first directory (behaviour §10.1.5). If a system does not have this directory, the second directory is used. It
/// always exists: /dev/null was opened there.
const PLACES: [&str; 2] = ["/tmp", "/dev"];

/// Stops the propagation of mounts to and from other mount namespaces.
pub(crate) fn make_private() -> anyhow::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("can't make mounts private")
}

/// Replaces the root directory by an empty, read-only file system, and unmounts the old root in this mount namespace.
/// The mount namespace must be private, see [`make_private`]. pivot_root(2) can't replace the initial root file system
/// (behaviour §10.5). In this case, with `chroot_fallback`, the empty root is mounted over the old root.
///
/// # Errors
/// The empty file system can't be mounted, or can't become the root. The root is then unchanged.
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
