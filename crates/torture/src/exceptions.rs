//! Cells in which something is lost and nothing is wrong, each with its reason.

use libc::EBADFD;

use crate::fault::{Cell, Fault};

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
