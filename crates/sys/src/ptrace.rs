//! Seccomp filters of another process, by ptrace(2). For tests and `cargo xtask reach`.

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
    /// Number of instructions to skip if a comparison is true.
    pub if_true: u8,
    /// Number of instructions to skip if a comparison is false.
    pub if_false: u8,
    /// The operand.
    pub k: u32,
}

/// The seccomp filters of a thread, the newest first. The thread is stopped for a short time.
///
/// # Errors
/// As ptrace(2): `EPERM` if the caller may not trace the thread, `EACCES` without CAP_SYS_ADMIN in the initial user
/// namespace, `EIO` if the kernel was built without CONFIG_CHECKPOINT_RESTORE.
pub fn filters(thread: Pid) -> io::Result<Vec<Vec<Instruction>>> {
    let tid = thread.as_raw_nonzero().get();
    let none: libc::c_long = 0;
    // SAFETY: these requests take no pointer.
    unsafe {
        check(libc::ptrace(libc::PTRACE_SEIZE, tid, none, none))?;
        check(libc::ptrace(libc::PTRACE_INTERRUPT, tid, none, none))?;
    }
    // SAFETY: the status pointer is null, so the kernel writes no status.
    let stopped = unsafe { libc::waitpid(tid, ptr::null_mut(), libc::__WALL) };
    let filters =
        check(stopped.into()).and_then(|_| (0..).map_while(|nth| filter(tid, nth).transpose()).collect());
    // SAFETY: this request takes no pointer. It fails if the thread has ended. Then the thread is already detached.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, none, none) };
    filters
}

/// The filter with index `nth`. None if there is no such filter.
fn filter(tid: libc::pid_t, nth: libc::c_long) -> io::Result<Option<Vec<Instruction>>> {
    let none: *mut libc::sock_filter = ptr::null_mut();
    // SAFETY: with a null pointer, the kernel writes nothing and returns the length of the filter.
    let len = match check(unsafe { libc::ptrace(SECCOMP_GET_FILTER.into(), tid, nth, none) }) {
        Ok(len) => usize::try_from(len).unwrap_or_default(),
        // ENOENT: no filter has this index. EINVAL: the thread has no filter.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
    // SAFETY: `filter` has room for all instructions. An installed filter does not change.
    check(unsafe { libc::ptrace(SECCOMP_GET_FILTER.into(), tid, nth, filter.as_mut_ptr()) })?;
    let instruction =
        |i: libc::sock_filter| Instruction { code: i.code, if_true: i.jt, if_false: i.jf, k: i.k };
    Ok(Some(filter.into_iter().map(instruction).collect()))
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
