//! The user database, through the C library, which queries all configured sources (nsswitch.conf).

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// The ids of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// Looks up a user by login name. None if there is no such user.
///
/// # Errors
/// As getpwnam_r(3): a source of the user database failed.
pub fn user_by_name(login: &str) -> io::Result<Option<User>> {
    // SAFETY: `look_up` passes valid arguments of getpwnam_r.
    let entry: Option<libc::passwd> = look_up(login, |name, entry, text, len, found| unsafe {
        libc::getpwnam_r(name, entry, text, len, found)
    })?;
    Ok(entry.map(|entry| User { uid: entry.pw_uid, gid: entry.pw_gid }))
}

/// Looks up the id of a group by name. None if there is no such group.
///
/// # Errors
/// As getgrnam_r(3): a source of the group database failed.
pub fn group_by_name(group: &str) -> io::Result<Option<u32>> {
    // SAFETY: `look_up` passes valid arguments of getgrnam_r.
    let entry: Option<libc::group> = look_up(group, |name, entry, text, len, found| unsafe {
        libc::getgrnam_r(name, entry, text, len, found)
    })?;
    Ok(entry.map(|entry| entry.gr_gid))
}

/// Calls one of the `get*nam_r` functions, with a text buffer that grows as needed, up to 1 MiB. `call` gets a name
/// that ends with a zero byte, room for an entry, the text buffer and its length, and room for the result pointer.
///
/// The pointers in the returned entry are dangling, since the text buffer is freed. The caller may use only the numbers
/// in the entry.
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
            // If the name does not exist, the return value depends on the source.
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            // SAFETY: `found` is not null, so the entry is initialised.
            0 => return Ok(Some(unsafe { entry.assume_init() })),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_invalid_names_are_not() {
        assert_eq!(user_by_name("root").unwrap(), Some(User { uid: 0, gid: 0 }));
        assert_eq!(group_by_name("root").unwrap(), Some(0));
        for name in ["no such user", "", "a\0b"] {
            assert_eq!(user_by_name(name).unwrap(), None);
            assert_eq!(group_by_name(name).unwrap(), None);
        }
    }
}
