//! The state that few connections have. It is not in the table of connections, so that all others do not pay for it.

use alloc::boxed::Box;

use super::{check::Check, dial::Dial};
use crate::{allocation::Boxed, events::Account, first_bytes::HostName, names::Hold};

/// The parts of this state.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// The other servers to try, while a connection to a resolver is not established.
    pub(super) dial: Option<Box<Dial>>,
    /// The check of the first bytes. It exists in the phases [`Phase::Checking`](super::conn::Phase::Checking) and
    /// [`Phase::Refused`](super::conn::Phase::Refused), and in the phases before them.
    pub(super) check: Option<Box<Check>>,
    /// The name that the client has sent, if its first bytes were checked.
    pub(super) said: Option<Box<HostName>>,
    /// The hold on the names of the remote address, if a rule by name allows the connection.
    pub(super) hold: Option<Hold>,
    /// Reports the end of the connection, if the program needs reports.
    pub(super) account: Account,
}

/// The parts of one connection, if it has any.
#[derive(Debug, Default)]
pub(super) struct Rare(Option<Boxed<Parts>>);

impl Rare {
    /// Reserves memory for parts, if the connection has any. None if there is no memory.
    pub(super) fn reserve(has_parts: bool) -> Option<Self> {
        Some(Self(if has_parts { Some(Boxed::new(Parts::default())?) } else { None }))
    }

    /// The parts, if memory for them is reserved.
    pub(super) fn reserved(&mut self) -> Option<&mut Parts> {
        self.0.as_deref_mut()
    }

    /// The parts, for which memory is reserved now. None if there is none.
    pub(super) fn parts(&mut self) -> Option<&mut Parts> {
        if self.0.is_none() {
            self.0 = Boxed::new(Parts::default());
        }
        self.0.as_deref_mut()
    }

    pub(super) fn dial(&self) -> Option<&Dial> {
        self.0.as_ref()?.dial.as_deref()
    }

    pub(super) fn dial_mut(&mut self) -> Option<&mut Dial> {
        self.0.as_mut()?.dial.as_deref_mut()
    }

    pub(super) fn check(&self) -> Option<&Check> {
        self.0.as_ref()?.check.as_deref()
    }

    pub(super) fn check_mut(&mut self) -> Option<&mut Check> {
        self.0.as_mut()?.check.as_deref_mut()
    }

    /// The name that the client has sent, if its first bytes were checked.
    pub(super) fn said(&self) -> Option<&HostName> {
        self.0.as_ref()?.said.as_deref()
    }

    /// The account of the connection, if its end has to be reported.
    pub(super) fn account(&self) -> Option<&Account> {
        self.0.as_ref().map(|parts| &parts.account).filter(|account| account.is_open())
    }

    /// See [`Rare::account`].
    pub(super) fn account_mut(&mut self) -> Option<&mut Account> {
        self.0.as_mut().map(|parts| &mut parts.account).filter(|account| account.is_open())
    }

    /// Removes the account.
    pub(super) fn take_account(&mut self) -> Account {
        self.account_mut().map(core::mem::take).unwrap_or_default()
    }

    /// Stores an account. An open one needs memory for parts.
    pub(super) fn set_account(&mut self, account: Account) {
        debug_assert!(self.0.is_some() || !account.is_open(), "no memory is reserved");
        if let Some(parts) = &mut self.0 {
            parts.account = account;
        }
    }

    /// Whether this is the connection with this number, and its end has to be reported.
    pub(super) fn is_of(&self, number: u64) -> bool {
        self.account().is_some_and(|account| account.is_of(number))
    }

    /// Forgets the other servers.
    pub(super) fn end_dial(&mut self) {
        if let Some(parts) = &mut self.0 {
            parts.dial = None;
            self.free_if_empty();
        }
    }

    /// Ends the check. Returns whether there was one.
    pub(super) fn end_check(&mut self) -> bool {
        let Some(parts) = &mut self.0 else { return false };
        let ended = parts.check.take().is_some();
        self.free_if_empty();
        ended
    }

    /// Removes the hold, which the caller must release.
    pub(super) fn take_hold(&mut self) -> Option<Hold> {
        self.0.as_mut()?.hold.take()
    }

    fn free_if_empty(&mut self) {
        if let Some(Parts { dial: None, check: None, said: None, hold: None, account }) = self.0.as_deref()
            && !account.is_open()
        {
            self.0 = None;
        }
    }
}
