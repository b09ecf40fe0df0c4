//! The allocator of the C library.

/// Makes all threads use the heap of the main thread. Must be called before there are other threads. Does nothing with
/// another C library than glibc.
///
/// By default, glibc gives other threads heaps of their own. When it returns memory of such a heap to the kernel for the
/// first time, it opens `/proc/sys/vm/overcommit_memory`: a filter of system calls that forbids to open files would
/// kill the process. It also reserves 128 MiB of addresses for each of these heaps.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call sets a number that the allocator reads when a thread allocates for the first time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives each block of at least `bytes` bytes pages of its own, which the kernel moves when the block grows, and gets back
/// when it is freed. So a table that grows leaves no holes in the heap. By default, glibc raises the limit, up to 32 MiB,
/// when such a block is freed. Does nothing with another C library than glibc.
pub fn map_blocks_from(bytes: u16) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call sets a number that the allocator compares the size of later blocks with.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes.into());
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Returns the free pages of the heap to the kernel. Does nothing with another C library than glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
