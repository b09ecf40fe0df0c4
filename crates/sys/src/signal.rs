//! Signals: masks, signalfd, dispositions. There are no handlers: signals are blocked, and read from a descriptor.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// A signal by its number, such as [`libc::SIGTERM`]; re-exported for users of this module.
pub use rustix::process::Signal;

/// Signal state that this process inherited from its caller. It is restored in a command that this process starts.
#[derive(Clone)]
pub struct Inherited {
    mask: libc::sigset_t,
    sigchld: libc::sighandler_t,
    sigxfsz: libc::sighandler_t,
}

impl Inherited {
    /// Saves the signal mask and dispositions. Sets SIGCHLD to its default: some callers ignore SIGCHLD, and then exit
    /// statuses are lost. Ignores SIGXFSZ, so that a file at the size limit causes a write error and does not end the
    /// process. Call this once, before other signal functions.
    ///
    /// # Errors
    /// As sigprocmask(2) and signal(2). No error is expected.
    pub fn take() -> io::Result<Self> {
        let mask = change_mask(libc::SIG_BLOCK, &[])?;
        let sigchld = set_disposition(libc::SIGCHLD, libc::SIG_DFL)?;
        let sigxfsz = set_disposition(libc::SIGXFSZ, libc::SIG_IGN)?;
        Ok(Self { mask, sigchld, sigxfsz })
    }

    /// Restores mask and dispositions, including that of SIGPIPE. A child calls this before exec.
    ///
    /// # Errors
    /// As [`Inherited::take`].
    pub fn restore(&self) -> io::Result<()> {
        for (signal, before) in [(libc::SIGCHLD, self.sigchld), (libc::SIGXFSZ, self.sigxfsz)] {
            set_disposition(signal, if before == libc::SIG_IGN { libc::SIG_IGN } else { libc::SIG_DFL })?;
        }
        let ignored = SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed);
        set_disposition(libc::SIGPIPE, if ignored { libc::SIG_IGN } else { libc::SIG_DFL })?;
        // SAFETY: the kernel has initialised the set, and no old mask is requested.
        check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut()) })
    }
}

/// Rust's runtime ignores SIGPIPE before `main` runs, so the caller's disposition is saved before that.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

// SAFETY: the loader calls each entry of this section once, before `main`, as a C function. The calling conventions of
// Linux ignore the extra arguments that it passes. The function calls nothing except sigaction(2).
//
// Miri runs this section too, but has no sigaction(2).
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;

#[cfg(not(miri))]
extern "C" fn note_sigpipe() {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is set, and `old` has room for the present action. If the call fails, `old` is all zeros,
    // which is a valid value.
    let action = unsafe {
        libc::sigaction(libc::SIGPIPE, ptr::null(), old.as_mut_ptr());
        old.assume_init()
    };
    SIGPIPE_WAS_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

/// Blocks `signals` in the calling thread, and in threads that it starts later, so that a [`SignalFd`] receives them.
///
/// # Errors
/// `EINVAL` for an invalid signal.
pub fn block(signals: &[Signal]) -> io::Result<()> {
    change_mask(libc::SIG_BLOCK, signals).map(drop)
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Signal number.
    pub number: i32,
    /// Whether the kernel sent the signal, and not a process. The kernel sends a terminal's SIGINT, SIGQUIT and SIGHUP
    /// to a whole process group.
    pub from_kernel: bool,
}

/// A descriptor that becomes readable when one of a set of blocked signals is pending.
///
/// A read returns signals of the process that reads, but an epoll set watches the signals of the process that added the
/// descriptor. So the descriptor may be created before a fork, but must be added to an epoll set after the fork.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// A descriptor for `signals`, which must be blocked already. Non-blocking, closed on exec.
    ///
    /// # Errors
    /// As signalfd(2).
    pub fn new(signals: &[Signal]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: -1 requests a new descriptor, and the set is initialised.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        check(fd)?;
        // SAFETY: the descriptor is new, so nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The next pending signal, if there is one.
    ///
    /// # Errors
    /// As read(2), except `EAGAIN`: then there is no pending signal.
    pub fn read(&self) -> io::Result<Option<Received>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        let len = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer has room for `len` bytes.
        let got = unsafe { libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), len) };
        match usize::try_from(got) {
            Ok(got) if got == len => {
                // SAFETY: the kernel filled in the whole structure.
                let info = unsafe { info.assume_init() };
                Ok(Some(Received {
                    number: info.ssi_signo as i32,
                    from_kernel: info.ssi_code == libc::SI_KERNEL,
                }))
            }
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(e),
            },
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set_disposition(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<libc::sighandler_t> {
    debug_assert!(handler == libc::SIG_DFL || handler == libc::SIG_IGN);
    // SAFETY: no function is installed, since `handler` is one of the two asserted constants.
    match unsafe { libc::signal(signal, handler) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        old => Ok(old),
    }
}

fn change_mask(how: libc::c_int, signals: &[Signal]) -> io::Result<libc::sigset_t> {
    let set = set_of(signals)?;
    let mut old = MaybeUninit::uninit();
    // SAFETY: `set` is initialised, and `old` has room for the present mask.
    check(unsafe { libc::pthread_sigmask(how, &raw const set, old.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so `old` is initialised.
    Ok(unsafe { old.assume_init() })
}

fn set_of(signals: &[Signal]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set and cannot fail. sigaddset checks the number.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            check(libc::sigaddset(set.as_mut_ptr(), signal.as_raw()))?;
        }
        Ok(set.assume_init())
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_once() {
        // The test runs on its own thread, so that the mask and the signal do not affect other tests.
        std::thread::spawn(|| {
            block(&[Signal::USR2]).unwrap();
            let fd = SignalFd::new(&[Signal::USR2]).unwrap();
            assert_eq!(fd.read().unwrap(), None);
            // SAFETY: the call sends a blocked signal to the calling thread itself.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(fd.read().unwrap(), Some(Received { number: libc::SIGUSR2, from_kernel: false }));
            assert_eq!(fd.read().unwrap(), None);
        })
        .join()
        .unwrap();
    }
}
