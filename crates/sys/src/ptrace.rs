//! Looking at another process's filters of system calls: ptrace(2). For tests, and for those who want to know.

use std::io;
use std::ptr;

use rustix::process::Pid;

/// `PTRACE_SECCOMP_GET_FILTER` of `<linux/ptrace.h>`.
const SECCOMP_GET_FILTER: u16 = 0x420c;

/// An instruction of classic BPF, as in `<linux/filter.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip if a comparison is true.
    pub if_true: u8,
    /// Instructions to skip if it is false.
    pub if_false: u8,
    /// The operand.
    pub k: u32,
}

/// The seccomp filters that a thread is under, the newest first. The thread is stopped for a moment.
///
/// # Errors
/// As ptrace(2): `EPERM` if the thread is not ours to look into, `EACCES` without CAP_SYS_ADMIN over the machine, `EIO`
/// if the kernel was built without CONFIG_CHECKPOINT_RESTORE.
pub fn filters(thread: Pid) -> io::Result<Vec<Vec<Instruction>>> {
    let tid = thread.as_raw_nonzero().get();
    let none: libc::c_long = 0;
    // SAFETY: these requests take no pointer.
    unsafe {
        check(libc::ptrace(libc::PTRACE_SEIZE, tid, none, none))?;
        check(libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none))?;
    }
    // SAFETY: no status is asked for.
    let stopped = unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) };
    let filters =
        check(stopped.into()).and_then(|_| (0..).map_while(|nth| filter(tid, nth).transpose()).collect());
    // SAFETY: takes no pointer. If the thread has died meanwhile, there is nothing to let go.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, none, none) };
    filters
}

/// The filter of that index, if there are as many.
fn filter(tid: libc::pid_t, nth: libc::c_long) -> io::Result<Option<Vec<Instruction>>> {
    let none: *mut libc::sock_filter = ptr::null_mut();
    // SAFETY: without a place for it, the kernel says how long the filter is.
    let len = match check(unsafe { libc::ptrace(SECCOMP_GET_FILTER.into(), tid, nth, none) }) {
        Ok(len) => usize::try_from(len).unwrap_or_default(),
        // None of that index; none at all.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
    // SAFETY: there is room for all instructions of the filter, which does not change.
    check(unsafe { libc::ptrace(SECCOMP_GET_FILTER.into(), tid, nth, filter.as_mut_ptr()) })?;
    let instruction =
        |i: libc::sock_filter| Instruction { code: i.code, if_true: i.jt, if_false: i.jf, k: i.k };
    Ok(Some(filter.into_iter().map(instruction).collect()))
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
