//! The user database, through the C library, so that every configured source is asked.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// A user's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// Looks up a login. `None`: there is no such user.
pub fn user_by_name(login: &str) -> io::Result<Option<User>> {
    // SAFETY: passes getpwnam_r what it asks for: see `look_up`.
    let entry: Option<libc::passwd> = look_up(login, |name, entry, text, len, found| unsafe {
        libc::getpwnam_r(name, entry, text, len, found)
    })?;
    Ok(entry.map(|entry| User { uid: entry.pw_uid, gid: entry.pw_gid }))
}

/// Looks up the id of a group. `None`: there is no such group.
pub fn group_by_name(group: &str) -> io::Result<Option<u32>> {
    // SAFETY: passes getgrnam_r what it asks for: see `look_up`.
    let entry: Option<libc::group> = look_up(group, |name, entry, text, len, found| unsafe {
        libc::getgrnam_r(name, entry, text, len, found)
    })?;
    Ok(entry.map(|entry| entry.gr_gid))
}

/// Runs one of the `get*nam_r` functions with a text buffer as large as it wants: it gets a name ending in a zero
/// byte, room for an entry, a text buffer with its length, and room for the pointer that tells of success.
/// The entry's own pointers dangle afterwards: only its numbers may be used.
fn look_up<E>(
    name: &str,
    call: impl Fn(*const c_char, *mut E, *mut c_char, usize, *mut *mut E) -> c_int,
) -> io::Result<Option<E>> {
    const MOST: usize = 1 << 20;
    let Ok(name) = CString::new(name) else { return Ok(None) };
    let mut text: Vec<c_char> = vec![0; 1024];
    loop {
        let mut entry = MaybeUninit::<E>::uninit();
        let mut found: *mut E = ptr::null_mut();
        match call(name.as_ptr(), entry.as_mut_ptr(), text.as_mut_ptr(), text.len(), &raw mut found) {
            libc::ERANGE if text.len() < MOST => text.resize(text.len() * 4, 0),
            libc::EINTR => {}
            // What the functions say where there is no such name differs by source.
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: `found` says that the entry was filled in.
            0 => return Ok(Some(unsafe { entry.assume_init() })),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nonsense_is_not() {
        assert_eq!(user_by_name("root").unwrap(), Some(User { uid: 0, gid: 0 }));
        assert_eq!(group_by_name("root").unwrap(), Some(0));
        for name in ["no such user", "", "a\0b"] {
            assert_eq!(user_by_name(name).unwrap(), None);
            assert_eq!(group_by_name(name).unwrap(), None);
        }
    }
}
