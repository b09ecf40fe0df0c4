//! Processes: fork, clone with namespaces, exec, inherited descriptors.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bitflags::bitflags;
use rustix::process::Pid;

bitflags! {
    /// Namespaces to be made.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Namespaces: i32 {
        /// User and group ids, capabilities. Created first: the others then belong to it.
        const USER = libc::CLONE_NEWUSER;
        /// Network.
        const NET = libc::CLONE_NEWNET;
        /// System V IPC and POSIX message queues.
        const IPC = libc::CLONE_NEWIPC;
        /// Host name.
        const UTS = libc::CLONE_NEWUTS;
        /// Mounts.
        const MOUNT = libc::CLONE_NEWNS;
        /// Process ids: the child is process 1.
        const PID = libc::CLONE_NEWPID;
    }
}

/// Which of the two processes this is, after a [`fork`].
#[derive(Debug)]
pub enum Forked {
    /// The new one.
    Child,
    /// The one that forked, and the child it got.
    Parent {
        /// Process id of the child, in our PID namespace.
        pid: Pid,
    },
}

/// Which of the two processes this is, after a [`fork_into`].
#[derive(Debug)]
pub enum Cloned {
    /// The new one.
    Child,
    /// The one that cloned, and the child it got.
    Parent {
        /// Process id of the child, in our PID namespace.
        pid: Pid,
        /// A handle to the same, closed on exec.
        pidfd: OwnedFd,
    },
}

/// Forks. Fails with EBUSY in a process with more than one thread: the others' locks would stay locked in the child.
pub fn fork() -> io::Result<Forked> {
    await_single_thread()?;
    // SAFETY: there is one thread, as just found, so the child is a whole copy of the process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent { pid: child(pid)? }),
    }
}

/// Forks a child that starts out in new `namespaces`. Fails like [`fork`] if there are other threads.
pub fn fork_into(namespaces: Namespaces) -> io::Result<Cloned> {
    await_single_thread()?;
    let flags = libc::c_long::from(namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD);
    let no_stack: libc::c_long = 0;
    let mut pidfd: libc::c_int = -1;
    // Not clone3: old container runtimes answer it with ENOSYS, and clone knows all that is needed here.
    let (first, second) = if cfg!(target_arch = "s390x") { (no_stack, flags) } else { (flags, no_stack) };
    // SAFETY: without CLONE_VM and a stack this is a fork, and there is one thread, as just found. The kernel
    // writes one int, the descriptor, through the third argument. The last two are unused with these flags.
    match unsafe { libc::syscall(libc::SYS_clone, first, second, &raw mut pidfd, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just opened it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: child(pid as libc::pid_t)?, pidfd })
        }
    }
}

/// Moves the calling thread into new `namespaces`; with [`Namespaces::PID`] not itself, but its future children, and
/// it can start no thread from then on.
///
/// # Errors
/// As unshare(2): `EPERM` without the right to, `ENOSPC` beyond a limit; `EINVAL` where the kernel has no such
/// namespaces, and for [`Namespaces::USER`] in a process with other threads.
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    // SAFETY: these flags leave memory and descriptors of the process as they are.
    let result = unsafe { libc::unshare(namespaces.bits()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn child(pid: libc::pid_t) -> io::Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Waits until the calling thread is the only one, for a second at most: a thread that was joined counts for a
/// moment longer.
fn await_single_thread() -> io::Result<()> {
    for _ in 0..1000 {
        // SAFETY: with this flag alone nothing is unshared: the call says whether there are other threads.
        if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Replaces this process by `program`, looked up in PATH if it has no slash. It gets `args` (the first is its own
/// name), the environment, and no descriptor above 2 but for the `given` one, under the number beside it. Returns only
/// to say why it failed.
pub fn exec(program: &OsStr, args: &[OsString], given: Option<(BorrowedFd<'_>, RawFd)>) -> io::Error {
    let program = match CString::new(program.as_bytes()) {
        Ok(program) => program,
        Err(e) => return e.into(),
    };
    let args: Vec<CString> = match args.iter().map(|a| CString::new(a.as_bytes())).collect() {
        Ok(args) => args,
        Err(e) => return io::Error::from(e),
    };
    let mut argv: Vec<*const libc::c_char> = args.iter().map(|a| a.as_ptr()).collect();
    argv.push(ptr::null());
    close_on_exec(3);
    // SAFETY: both strings end in a zero byte, `argv` in a null pointer, and all live until the call returns.
    let exec = || unsafe { libc::execvp(program.as_ptr(), argv.as_ptr()) };
    let Some((fd, number)) = given else {
        exec();
        return io::Error::last_os_error();
    };
    let replaced = inherited(number).ok();
    // SAFETY: what has the number is put back below, before anybody else can look, unless there is nobody any more.
    let failed =
        unsafe { libc::dup2(fd.as_raw_fd(), number) < 0 || libc::fcntl(number, libc::F_SETFD, 0) < 0 };
    if !failed {
        exec();
    }
    let error = io::Error::last_os_error();
    match replaced {
        // SAFETY: see above.
        Some(replaced) => drop(unsafe { libc::dup3(replaced.as_raw_fd(), number, libc::O_CLOEXEC) }),
        // SAFETY: the number was not in use.
        None => drop(unsafe { libc::close(number) }),
    }
    error
}

/// Marks all descriptors from `first` on to be closed on exec. Our own are opened so; this is for a library's.
fn close_on_exec(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: closes nothing now, so no owner of a descriptor is deceived.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) } == 0 {
        return;
    }
    // Before Linux 5.11.
    for fd in open_descriptors().into_iter().filter(|&fd| fd >= first) {
        // SAFETY: sets a flag; a number that is not open is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// A descriptor of our own, closed on exec, for what our caller left open as number `fd`.
///
/// # Errors
/// EBADF if that is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: makes another descriptor; a number that is not open is refused.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Closes the descriptors above 2 that our caller left open, but for `keep` (behaviour §10.1). Only the first call does
/// anything; it must come before this process has opened a descriptor of its own, but for `keep`.
pub fn close_inherited(keep: Option<RawFd>) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    let keep = keep.and_then(|fd| libc::c_uint::try_from(fd).ok()).filter(|&fd| fd > 2);
    let ranges = match keep {
        Some(keep) => [(3, keep - 1), (keep.saturating_add(1), libc::c_uint::MAX)],
        None => [(3, libc::c_uint::MAX), (1, 0)],
    };
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: nothing in this process owns a descriptor in these ranges, as the caller promises.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            for fd in open_descriptors() {
                if libc::c_uint::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd)) {
                    // SAFETY: as above.
                    unsafe { libc::close(fd) };
                }
            }
        }
    }
}

/// The numbers open now (and the one that reading the list takes).
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test harness has threads, and keeps them: both calls must refuse.
    #[test]
    fn a_process_with_threads_is_not_forked() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || stopped.recv());
        assert_eq!(fork().unwrap_err().raw_os_error(), Some(libc::EBUSY));
        assert_eq!(fork_into(Namespaces::empty()).unwrap_err().raw_os_error(), Some(libc::EBUSY));
        drop(stop);
        assert!(other.join().unwrap().is_err());
    }
}
