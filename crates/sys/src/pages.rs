//! Pages of the program's files in memory.

use std::mem::size_of;
use std::ops::Range;

/// Removes the pages of code and constants of the program and its libraries from the address space of the process. The
/// kernel maps a page again, without reading the file, when it is used next. So the pages that only the start has used
/// no longer count as memory of the process. A debugger's breakpoints are in these pages, too, and are lost.
pub fn release_code() {
    // The descriptions of the program and its libraries are in such pages, too: they are read before.
    for pages in constant_pages() {
        // SAFETY: the range is a mapping of a file, which was never written to since it is not writable. Its pages are
        // equal to the file's, and are read again from the file at the next access. A failure changes nothing.
        unsafe { libc::madvise(pages.start as *mut libc::c_void, pages.len(), libc::MADV_DONTNEED) };
    }
}

/// The addresses of the pages of code and constants.
fn constant_pages() -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    // SAFETY: the callback has the required signature, and uses its last argument, which it expects, only during the call.
    unsafe { libc::dl_iterate_phdr(Some(find_object), (&raw mut found).cast()) };
    found
}

/// Adds the pages of one program or library that are never written to the list that `found` points to.
extern "C" fn find_object(info: *mut libc::dl_phdr_info, size: usize, found: *mut libc::c_void) -> i32 {
    if size < size_of::<libc::dl_phdr_info>() || info.is_null() {
        return 0;
    }
    // SAFETY: the loader passes a valid description, whose headers stay valid during the call, and the argument of
    // `constant_pages`, which nothing else uses meanwhile.
    let (base, headers, found) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr, headers, &mut *found.cast::<Vec<Range<usize>>>())
    };
    // SAFETY: sysconf(3) has no effect but its result. The value is known without a system call.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    // Only what is never written: other pages differ from the file.
    let constant =
        headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    found.extend(constant.map(|header| {
        let start = (base + header.p_vaddr) as usize;
        start & !(page - 1)..start + header.p_memsz as usize
    }));
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_without_its_pages() {
        release_code();
        release_code();
    }

    #[test]
    fn only_pages_that_are_never_written_are_released() {
        let (code, variable) = (constant_pages as *const () as usize, Box::new(0));
        let pages = constant_pages();
        let are_released = |address: usize| pages.iter().any(|range| range.contains(&address));
        let constant = &raw const *"text" as *const u8 as usize;
        let library = libc::dl_iterate_phdr as *const () as usize;
        assert!(are_released(code) && are_released(constant) && are_released(library), "{pages:x?}");
        let stack = &raw const pages as usize;
        assert!(!are_released(stack) && !are_released(&raw const *variable as usize), "{pages:x?}");
        assert!(pages.iter().all(|range| range.start.is_multiple_of(4096)), "{pages:x?}");
    }
}
