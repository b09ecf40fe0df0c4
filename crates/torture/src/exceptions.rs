//! Cells in which something is lost and nothing is wrong, each with its reason.

use libc::EBADFD;

use crate::fault::{Cell, Fault};
use crate::way::Way;

/// Calls, objects (by their beginning) and errors, and why something is lost.
const EXCEPTIONS: &[(&[&str], &str, &[i32], &str)] = &[(
    &["read", "write"],
    "tap",
    &[EBADFD],
    "the kernel returns this error for ever when the device is gone: all flows end, and there is no link any more",
)];

/// The reason why something may be lost in this cell, if it may.
pub(crate) fn reason(cell: &Cell) -> Option<&'static str> {
    let Fault::Errno(errno) = cell.fault else { return None };
    let site = &cell.site;
    let is = |(calls, object, errnos, _): &&(&[&str], &str, &[i32], &str)| {
        calls.contains(&&*site.call) && site.object.starts_with(object) && errnos.contains(&errno)
    };
    EXCEPTIONS.iter().find(is).map(|(.., reason)| *reason)
}

/// Places of the start at which no code of the program's own can report an error, and why.
const NOT_OURS: &[(&str, &[&str], &str)] = &[
    ("before main", &[], "the loader, or the runtime of the language, ends the process"),
    (
        "",
        &["brk", "mmap", "mprotect", "sigaltstack", "mremap", "rseq", "set_robust_list"],
        "the allocator, or the start of a thread in the standard library, reports the error and ends the process",
    ),
];

/// The reason why a start may end without a message of the program or leave files in this cell, if it may.
pub(crate) fn of_start(cell: &Cell, way: Way) -> Option<&'static str> {
    let site = &cell.site;
    if way == Way::Command && site.thread.starts_with("child") {
        return Some("the process that becomes the command has ended, as a command that ends: files stay");
    }
    let is = |(thread, calls, _): &&(&str, &[&str], _)| {
        if thread.is_empty() { calls.contains(&&*site.call) } else { site.thread == *thread }
    };
    if site.thread.starts_with("child") && site.call == "sendto" && site.object == "unix" {
        return Some(
            "the report to the process that waits: standard error is left already, and the status is not 0",
        );
    }
    NOT_OURS.iter().find(is).map(|(.., reason)| *reason)
}
