//! Memory in a file that another process can shorten.
//!
//! An access after the end of a mapped file raises SIGBUS, whose default action ends the process. A handler of this
//! module replaces the page by an empty one, and marks the memory as lost. So the access continues, and the owner of
//! the memory can end the work with the other process. Other SIGBUS signals keep their default action.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use vm_memory::VolatileSlice;

/// Maximum number of [`Guard`] values at a time.
const GUARDS: usize = 128;
/// `si_code` for an address that does not exist in the mapped file.
const BUS_ADRERR: i32 = 2;

/// Sizes of pages, in bytes. Larger ones than the smallest are those of kernels with large pages, and of huge pages.
const PAGE_SIZES: [usize; 7] = [4 << 10, 16 << 10, 64 << 10, 2 << 20, 32 << 20, 512 << 20, 1 << 30];

/// A range of addresses that is guarded. The signal handler reads it, so all fields are atomic.
struct Range {
    /// The first address; 0 if the entry is free, [`CLAIMED`] while it is being set.
    start: AtomicUsize,
    /// The address after the last one.
    end: AtomicUsize,
    lost: AtomicBool,
}

/// Value of [`Range::start`] while the range is being set. No mapping begins there.
const CLAIMED: usize = 1;

static RANGES: [Range; GUARDS] =
    [const { Range { start: AtomicUsize::new(0), end: AtomicUsize::new(0), lost: AtomicBool::new(false) } };
        GUARDS];

/// While it exists, the end of the file under a range of memory does not end the process.
#[derive(Debug)]
pub struct Guard {
    index: usize,
}

impl Guard {
    /// Guards the memory of `slice`. The guard must be dropped before the memory is unmapped.
    ///
    /// The type of `slice` says that any other process may change the bytes at any time. So it is sound that they
    /// become zero.
    ///
    /// # Errors
    /// `ENOSPC` if there are too many guards, or as sigaction(2).
    pub fn new(slice: &VolatileSlice<'_>) -> io::Result<Self> {
        install()?;
        let start = slice.ptr_guard().as_ptr() as usize;
        for (index, range) in RANGES.iter().enumerate() {
            if range.start.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                range.lost.store(false, Ordering::Relaxed);
                range.end.store(start.saturating_add(slice.len()), Ordering::Relaxed);
                range.start.store(start, Ordering::Release);
                return Ok(Self { index });
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// Whether some of the memory was accessed, and did not exist. The bytes of these pages are lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        RANGES[self.index].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        RANGES[self.index].start.store(0, Ordering::Release);
    }
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = set_action(on_sigbus as extern "C" fn(_, _, _) as usize, libc::SA_SIGINFO));
    result
}

fn set_action(handler: usize, flags: i32) -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is valid, and its handler is the default action or `on_sigbus`, which has the signature that
    // SA_SIGINFO requires and calls only functions that are safe in a signal handler. No old action is requested.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler. It runs in the thread that made the access, and returns to the same instruction.
extern "C" fn on_sigbus(_: i32, info: *const libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo_t. `si_addr` is valid for SIGBUS signals of the kernel; for other
    // signals its value is not used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let within = |range: &&Range| {
        let start = range.start.load(Ordering::Acquire);
        start > CLAIMED && (start..range.end.load(Ordering::Relaxed)).contains(&address)
    };
    match RANGES.iter().find(within).filter(|_| code == BUS_ADRERR) {
        Some(range) if replace_page(address) => range.lost.store(true, Ordering::Relaxed),
        // The default action ends the process when the access is repeated.
        _ => drop(set_action(libc::SIG_DFL, 0)),
    }
}

/// Replaces the page at `address` by an empty page. The page must be a guarded one that does not exist in its file.
fn replace_page(address: usize) -> bool {
    for size in PAGE_SIZES {
        let start = address & !(size - 1);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the page belongs to memory that any process may change at any time, and is never a Rust reference.
        // The kernel refuses a size below the page's size with EINVAL, and no larger size is tried after another
        // result. errno is restored, since the interrupted code may be about to read it.
        let (replaced, error) = unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let replaced = libc::mmap(start as *mut libc::c_void, size, protection, flags, -1, 0);
            (replaced, std::mem::replace(&mut *errno, before))
        };
        if replaced != libc::MAP_FAILED {
            return true;
        }
        if error != libc::EINVAL {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    /// A mapping, which is not unmapped.
    fn mapped(file: &File, len: usize) -> VolatileSlice<'static> {
        use std::os::fd::AsRawFd;
        // SAFETY: the kernel chooses a free range. The memory is accessed only by volatile accessors.
        unsafe {
            let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
            let at = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            VolatileSlice::new(at.cast(), len)
        }
    }

    #[test]
    fn memory_of_a_shortened_file_can_still_be_accessed() {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(4 << 12).unwrap();
        let memory = mapped(&file, 4 << 12);
        let guard = Guard::new(&memory).unwrap();
        memory.copy_from(&[7_u8; 4 << 12]);
        file.set_len(1 << 12).unwrap();
        let mut bytes = [1_u8; 8];
        memory.subslice(0, 8).unwrap().copy_to(&mut bytes);
        assert_eq!((bytes, guard.is_lost()), ([7; 8], false));
        memory.subslice(3 << 12, 8).unwrap().copy_to(&mut bytes);
        assert_eq!((bytes, guard.is_lost()), ([0; 8], true));
        memory.subslice(2 << 12, 8).unwrap().copy_from(&bytes);
        memory.subslice(0, 8).unwrap().copy_to(&mut bytes);
        assert_eq!(bytes, [7; 8]);
        drop(guard);
        assert!(!Guard::new(&memory).unwrap().is_lost());
        let mut guards: Vec<Guard> = Vec::new();
        let error = loop {
            match Guard::new(&memory) {
                Ok(guard) => guards.push(guard),
                Err(error) => break error,
            }
        };
        assert_eq!((error.raw_os_error(), guards.len()), (Some(libc::ENOSPC), GUARDS));
    }
}
