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
    /// Kinds of namespaces to create.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Namespaces: i32 {
        /// User and group IDs, capabilities. The kernel creates this namespace first, and it owns the other new
        /// namespaces.
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

/// The result of [`fork`], in each of the two processes.
#[derive(Debug)]
pub enum Forked {
    /// This is the new process.
    Child,
    /// This is the process that forked.
    Parent {
        /// Process id of the child, in the PID namespace of the parent.
        pid: Pid,
    },
}

/// The result of [`fork_into`], in each of the two processes.
#[derive(Debug)]
pub enum Cloned {
    /// This is the new process.
    Child,
    /// This is the process that forked.
    Parent {
        /// Process id of the child, in the PID namespace of the parent.
        pid: Pid,
        /// A pidfd of the child, closed on exec.
        pidfd: OwnedFd,
    },
}

/// Forks. The process must have one thread. The child has no copy of other threads, so locks that they hold would never
/// be released in the child.
///
/// # Errors
/// `EBUSY` if there are other threads. Otherwise as fork(2).
pub fn fork() -> io::Result<Forked> {
    await_single_thread()?;
    // SAFETY: there is one thread, as just checked, so the child is a complete copy of the process.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent { pid: child(pid)? }),
    }
}

/// Forks a child that starts in new `namespaces`. The process must have one thread, as for [`fork`].
///
/// # Errors
/// `EBUSY` if there are other threads. Otherwise as clone(2).
pub fn fork_into(namespaces: Namespaces) -> io::Result<Cloned> {
    await_single_thread()?;
    let flags = libc::c_long::from(namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD);
    let no_stack: libc::c_long = 0;
    let mut pidfd: libc::c_int = -1;
    // clone3 is not used: with the seccomp filters of old container runtimes it fails with ENOSYS, and clone has all
    // features that are needed here.
    let (first, second) = if cfg!(target_arch = "s390x") { (no_stack, flags) } else { (flags, no_stack) };
    // SAFETY: without CLONE_VM and a stack, clone works like fork, and there is one thread, as just checked. The kernel
    // writes one int, the descriptor, through the third argument. The last two arguments are not used with these flags.
    match unsafe { libc::syscall(libc::SYS_clone, first, second, &raw mut pidfd, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: the kernel has just opened this descriptor, so nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid: child(pid as libc::pid_t)?, pidfd })
        }
    }
}

/// Moves the calling thread into new `namespaces`. [`Namespaces::PID`] does not move the thread. Instead, its later
/// children are in the new namespace, and the thread can no longer start other threads.
///
/// # Errors
/// As unshare(2): `EPERM` without the capability, `ENOSPC` beyond a limit, `EINVAL` if the kernel lacks a kind of
/// namespace, and for [`Namespaces::USER`] in a process with other threads.
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    // SAFETY: these flags do not change the memory or descriptors of the process.
    let result = unsafe { libc::unshare(namespaces.bits()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the calling thread a working directory of its own, which other threads do not share.
///
/// # Errors
/// As unshare(2): `ENOMEM`.
pub fn unshare_working_directory() -> io::Result<()> {
    // SAFETY: with only this flag, unshare does not change the memory or descriptors of the process.
    let result = unsafe { libc::unshare(libc::CLONE_FS) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn child(pid: libc::pid_t) -> io::Result<Pid> {
    Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Waits until the calling thread is the only thread, for at most one second. The kernel still counts a thread for a
/// short time after it was joined.
fn await_single_thread() -> io::Result<()> {
    for _ in 0..1000 {
        // SAFETY: with only this flag, nothing is unshared. The call fails if there are other threads, and else does
        // nothing.
        if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

/// Replaces this process by `program`, which is looked up in PATH if it has no slash. The program gets `args` (the
/// first is its name), the environment, descriptors 0 to 2, and a copy of the `given` descriptor with the given number.
/// All other descriptors are closed. Returns only on failure, with the error of execvp(3).
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
    // SAFETY: all strings end with a zero byte and `argv` with a null pointer, and they live until the call returns.
    let exec = || unsafe { libc::execvp(program.as_ptr(), argv.as_ptr()) };
    let Some((fd, number)) = given else {
        exec();
        return io::Error::last_os_error();
    };
    let replaced = inherited(number).ok();
    // SAFETY: if this number is open, its descriptor is saved above, and restored below if exec fails. If exec
    // succeeds, the descriptor's owner no longer exists.
    let failed =
        unsafe { libc::dup2(fd.as_raw_fd(), number) < 0 || libc::fcntl(number, libc::F_SETFD, 0) < 0 };
    if !failed {
        exec();
    }
    let error = io::Error::last_os_error();
    match replaced {
        // SAFETY: this restores the descriptor with this number.
        Some(replaced) => drop(unsafe { libc::dup3(replaced.as_raw_fd(), number, libc::O_CLOEXEC) }),
        // SAFETY: the number was not in use.
        None => drop(unsafe { libc::close(number) }),
    }
    error
}

/// Sets the close-on-exec flag of all descriptors from `first` on. This crate opens all its descriptors with this flag,
/// but a library may not.
fn close_on_exec(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: with this flag, the call closes nothing now, so no owner loses its descriptor.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) } == 0 {
        return;
    }
    // Linux before 5.11 does not have this flag.
    for fd in open_descriptors().into_iter().filter(|&fd| fd >= first) {
        // SAFETY: the call sets a flag, and fails if the number is not open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// A duplicate of the descriptor `fd`, which the caller of this process left open. The duplicate is closed on exec.
///
/// # Errors
/// `EBADF` if `fd` is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call duplicates a descriptor, and fails if the number is not open.
    let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if own < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(own) })
}

/// Closes the descriptors above 2 that the caller of this process left open, except `keep` (behaviour §10.1). Only the
/// first call has an effect. It must come before this process opens any descriptor other than `keep`.
pub fn close_inherited(keep: &[RawFd]) {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    for (first, last) in gaps(keep) {
        // SAFETY: this call comes before the process opens any descriptor (see the function's documentation), so
        // nothing owns a descriptor in these ranges.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            for fd in open_descriptors() {
                if libc::c_uint::try_from(fd).is_ok_and(|fd| (first..=last).contains(&fd)) {
                    // SAFETY: nothing owns this descriptor, for the same reason.
                    unsafe { libc::close(fd) };
                }
            }
        }
    }
}

/// The ranges of numbers above 2 that `keep` leaves, first and last number.
fn gaps(keep: &[RawFd]) -> Vec<(libc::c_uint, libc::c_uint)> {
    let mut kept: Vec<libc::c_uint> = keep.iter().filter_map(|&fd| fd.try_into().ok()).collect();
    kept.sort_unstable();
    let (mut gaps, mut first) = (Vec::new(), 3);
    for fd in kept.into_iter().filter(|&fd| fd > 2) {
        if first < fd {
            gaps.push((first, fd - 1));
        }
        first = fd.saturating_add(1);
    }
    gaps.push((first, libc::c_uint::MAX));
    gaps
}

/// The numbers of open descriptors. One of them is the descriptor with which the list was read.
fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_descriptors_are_in_no_range() {
        const LAST: libc::c_uint = libc::c_uint::MAX;
        assert_eq!(gaps(&[]), [(3, LAST)]);
        assert_eq!(gaps(&[5]), [(3, 4), (6, LAST)]);
        assert_eq!(gaps(&[0, 4, 3, -1]), [(5, LAST)]);
        assert_eq!(gaps(&[9, 7, 7]), [(3, 6), (8, 8), (10, LAST)]);
    }

    /// The test harness has other threads, so both calls must fail.
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
