//! Pages of the program's files in memory.

use std::mem::size_of;

/// Removes the pages of code and constants of the program and its libraries from the address space of the process. The
/// kernel maps a page again, without reading the file, when it is used next. So the pages that only the start has used
/// no longer count as memory of the process. A debugger's breakpoints are in these pages, too, and are lost.
pub fn release_code() {
    // SAFETY: the callback has the required signature, and does not use the last argument.
    unsafe { libc::dl_iterate_phdr(Some(release_object), std::ptr::null_mut()) };
}

/// Releases the pages of one program or library.
extern "C" fn release_object(info: *mut libc::dl_phdr_info, size: usize, _: *mut libc::c_void) -> i32 {
    if size < size_of::<libc::dl_phdr_info>() || info.is_null() {
        return 0;
    }
    // SAFETY: the loader passes a valid description, whose headers stay valid during the call.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    // SAFETY: sysconf(3) has no effect but its result. The value is known without a system call.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
        // Only what is never written: other pages differ from the file.
        if header.p_flags & libc::PF_W == 0 {
            let start = (base + header.p_vaddr) as usize;
            let aligned = start & !(page - 1);
            // SAFETY: the range is a mapping of a file, which was never written to since it is not writable. Its pages
            // are equal to the file's, and are read again from the file at the next access. A failure changes nothing.
            unsafe {
                let len = header.p_memsz as usize + (start - aligned);
                libc::madvise(aligned as *mut libc::c_void, len, libc::MADV_DONTNEED);
            }
        }
    }
    0
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_runs_on_without_its_pages() {
        super::release_code();
        super::release_code();
    }
}
