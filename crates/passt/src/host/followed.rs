//! A list of the kernel whose changes are followed: the host's addresses, its neighbours.

use std::os::fd::{AsFd, BorrowedFd};

use super::netlink::{Error, Netlink};

/// Reports the changes of a list, in the network namespace of the thread that opened the sockets.
#[derive(Debug)]
pub(super) struct Followed {
    /// The subject of a message about it.
    what: &'static str,
    /// A socket that has joined the multicast groups for changes.
    changes: Netlink,
    /// Reads the list. On the subscribed socket, changes could arrive between the parts of a list. The socket is kept:
    /// the sealed process can open no other.
    list: Netlink,
    /// Changes are lost, and the list was not read again since.
    stale: bool,
}

impl Followed {
    /// Joins the multicast groups, and then reads the list by `present`.
    ///
    /// # Errors
    /// The kernel does not report changes, or the list can't be read.
    pub(super) fn new<T>(
        what: &'static str,
        groups: &[u32],
        present: impl FnOnce(&mut Netlink) -> Result<T, Error>,
    ) -> Result<(Self, T), Error> {
        let changes = Netlink::subscribe(groups)?;
        let mut list = Netlink::open()?;
        let present = present(&mut list)?;
        Ok((Self { what, changes, list, stale: false }, present))
    }

    /// Calls `change` with the type and payload of each message that has arrived, without waiting. If the kernel could not
    /// keep all of them, the list is read again by `present`, now or in a later call: then it is returned, and holds instead
    /// of the changes.
    pub(super) fn update<T>(
        &mut self,
        change: impl FnMut(u16, &[u8]),
        present: impl FnOnce(&mut Netlink) -> Result<T, Error>,
    ) -> Option<T> {
        let complete = self.changes.drain(change);
        if complete && !self.stale {
            return None;
        }
        let was_stale = std::mem::replace(&mut self.stale, false);
        present(&mut self.list)
            .inspect_err(|error| {
                if !was_stale {
                    log::warn!("{} have changed, and can't be listed yet: {error}", self.what);
                }
                self.stale = true;
            })
            .ok()
    }
}

impl AsFd for Followed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}
