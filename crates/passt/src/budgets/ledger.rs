//! Files that stay open until their owner closes them: TCP connections, listening sockets, pipes.
//!
//! The code that opens such a file takes a permit first, and keeps the permit together with the file. Each class has a
//! reserve that no other class can use. When the reserve is used up, every class except pipes takes files from a common
//! pool. So the sum never exceeds the budgets. The order in which files are opened does not matter.
//!
//! With a budget of memory, the number of members is limited in the same way: the two directions of TCP connections share a
//! number, and each has a reserve.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant as Clock;

use engine::share::{Bound, Notice};
use engine::timer::Instant;
use rustix::io::Errno;

use super::Budgets;
use super::memory::Limits;

/// The part of the members that each of two classes has for itself.
const RESERVE: usize = 8;

/// The purpose of open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A TCP connection of the guest.
    Outgoing,
    /// A TCP connection to the guest.
    Incoming,
    /// A local TCP connection of the guest: two sockets.
    LocalOut,
    /// A local TCP connection to the guest: two sockets.
    LocalIn,
    /// A listening socket.
    Listener,
    /// A pipe: two files.
    Pipe,
}

impl Class {
    const ALL: [Self; 6] =
        [Self::Outgoing, Self::Incoming, Self::LocalOut, Self::LocalIn, Self::Listener, Self::Pipe];

    /// The name of the class, for counts.
    const fn name(self) -> &'static str {
        match self {
            Self::Outgoing => "tcp_out",
            Self::Incoming => "tcp_in",
            Self::LocalOut => "local_tcp_out",
            Self::LocalIn => "local_tcp_in",
            Self::Listener => "listeners",
            Self::Pipe => "pipes",
        }
    }

    /// Number of files that one member of the class needs.
    const fn files(self) -> usize {
        match self {
            Self::LocalOut | Self::LocalIn | Self::Pipe => 2,
            Self::Outgoing | Self::Incoming | Self::Listener => 1,
        }
    }

    /// The other class with which this one shares a number of members.
    const fn partner(self) -> Option<Self> {
        match self {
            Self::Outgoing => Some(Self::Incoming),
            Self::Incoming => Some(Self::Outgoing),
            Self::LocalOut => Some(Self::LocalIn),
            Self::LocalIn => Some(Self::LocalOut),
            Self::Listener | Self::Pipe => None,
        }
    }

    /// Maximum number of members of the class and its partner.
    const fn most(self, memory: &Limits) -> usize {
        match self {
            Self::Outgoing | Self::Incoming if memory.bounded => memory.connections,
            Self::LocalOut | Self::LocalIn if memory.bounded => memory.local_connections,
            Self::Listener => memory.listeners,
            Self::Outgoing | Self::Incoming | Self::LocalOut | Self::LocalIn | Self::Pipe => usize::MAX,
        }
    }

    /// Whether the class may use the pool.
    const fn uses_pool(self) -> bool {
        !matches!(self, Self::Pipe)
    }

    /// The log text for a refusal. `None`: the caller reports the refusal.
    const fn refused(self) -> Option<&'static str> {
        match self {
            Self::Outgoing => Some("A TCP connection of the guest is refused"),
            Self::Incoming => Some("A TCP connection to the guest is refused"),
            Self::LocalOut => Some("A local TCP connection of the guest is refused"),
            Self::LocalIn => Some("A local TCP connection to the guest is refused"),
            Self::Listener | Self::Pipe => None,
        }
    }
}

/// The files in use, by class.
#[derive(Debug)]
pub struct Ledger {
    accounts: [Rc<Account>; Class::ALL.len()],
    pool: usize,
    bound: Bound,
    memory: Limits,
    start: Clock,
    /// Limits how often [`Ledger::report_exhaustion`] logs.
    exhausted: RefCell<Notice>,
}

#[derive(Debug)]
struct Account {
    class: Class,
    reserve: usize,
    used: Cell<usize>,
    notice: RefCell<Notice>,
}

impl Account {
    /// The number of files that would be taken from the pool if `more` files were added.
    fn borrowed(&self, more: usize) -> usize {
        (self.used.get() + more).saturating_sub(self.reserve)
    }
}

/// The right to keep the files of one member of a class open. Dropping it returns the files.
#[derive(Debug)]
pub struct Permit(Rc<Account>);

impl Drop for Permit {
    fn drop(&mut self) {
        let Self(account) = self;
        account.used.set(account.used.get() - account.class.files());
    }
}

impl Ledger {
    /// A ledger with no file in use.
    #[must_use]
    pub fn new(budgets: &Budgets) -> Rc<Self> {
        let Budgets { tcp_out, tcp_in, local_tcp, listeners, pipes, pool, bound, memory, .. } = *budgets;
        let reserves = [tcp_out, tcp_in, local_tcp, local_tcp, listeners, pipes];
        let account = |class: Class| {
            let reserve = reserves[class as usize];
            Rc::new(Account { class, reserve, used: Cell::default(), notice: RefCell::default() })
        };
        Rc::new(Self {
            accounts: Class::ALL.map(account),
            pool,
            bound,
            memory,
            start: Clock::now(),
            exhausted: RefCell::default(),
        })
    }

    /// Returns a permit if a file is available. A refusal of a TCP connection is logged, at most once a minute.
    #[must_use]
    pub fn take(self: &Rc<Self>, class: Class) -> Option<Permit> {
        let account = self.account(class);
        let borrowed = account.borrowed(class.files());
        let fits =
            borrowed == 0 || class.uses_pool() && self.borrowed_by_others(class) + borrowed <= self.pool;
        let has_memory = self.has_memory(class);
        if fits && has_memory {
            return Some(self.take_anyway(class));
        }
        let bound = if has_memory { self.bound } else { Bound::Budget };
        if let Some(refused) = class.refused()
            && account.notice.borrow_mut().is_due(self.now())
        {
            log::warn!("{refused}: {} are open{}", account.used.get() / class.files(), bound);
        }
        None
    }

    /// Whether the budget of memory has room for one more member of the class. Each class of two has an eighth that the
    /// other one can't use.
    fn has_memory(&self, class: Class) -> bool {
        let most = class.most(&self.memory);
        let members = |class: Class| self.account(class).used.get() / class.files();
        let reserve = most / RESERVE;
        let partner = class.partner().map_or(0, |partner| members(partner).max(reserve));
        members(class).saturating_add(partner) < most
    }

    /// Returns a permit for a file that is open already. The file is counted even if the budget is then exceeded.
    #[must_use]
    pub fn take_anyway(self: &Rc<Self>, class: Class) -> Permit {
        let account = self.account(class);
        account.used.set(account.used.get() + class.files());
        Permit(account.clone())
    }

    /// How many listening sockets best-effort rules may open now: half of the files that are left in the pool. The
    /// other half stays for connections. The reserve stays for ports that come into use later.
    #[must_use]
    pub fn spare_listeners(&self) -> usize {
        let borrowed: usize = self.accounts.iter().map(|account| account.borrowed(0)).sum();
        let members = self.account(Class::Listener).used.get();
        (self.pool.saturating_sub(borrowed) / 2).min(self.memory.listeners.saturating_sub(members))
    }

    /// Maximum number of listening sockets.
    #[must_use]
    pub const fn most_listeners(&self) -> usize {
        self.memory.listeners
    }

    /// Logs that the kernel had no file or memory for a flow, at most once a minute.
    pub fn report_exhaustion(&self, errno: Errno) {
        if self.exhausted.borrow_mut().is_due(self.now()) {
            log::warn!("No socket for a flow: {errno}");
        }
    }

    /// The classes: the name, the number of open files, and the number of files that no other class may use.
    pub(crate) fn classes(&self) -> impl Iterator<Item = (&'static str, usize, usize)> {
        Class::ALL.into_iter().map(|class| {
            let account = self.account(class);
            (class.name(), account.used.get(), account.reserve)
        })
    }

    fn borrowed_by_others(&self, class: Class) -> usize {
        let others = Class::ALL.into_iter().filter(|other| *other != class && other.uses_pool());
        others.map(|other| self.account(other).borrowed(0)).sum()
    }

    const fn account(&self, class: Class) -> &Rc<Account> {
        &self.accounts[class as usize]
    }

    fn now(&self) -> Instant {
        Instant::from_micros(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Budgets larger than any test needs.
#[cfg(test)]
pub(crate) fn plenty() -> (Budgets, Rc<Ledger>) {
    let budgets = super::tests::budgets(1 << 20, 0);
    (budgets, Ledger::new(&budgets))
}

#[cfg(test)]
mod tests {
    use super::super::tests::budgets;
    use super::*;

    fn all(ledger: &Rc<Ledger>, class: Class) -> Vec<Permit> {
        std::iter::from_fn(|| ledger.take(class)).collect()
    }

    /// The class that takes files first gets the whole pool. Every other class still gets its reserve.
    #[test]
    fn a_reserve_is_for_its_class_only() {
        let budgets = budgets(1024, 0);
        let reserve = |class| match class {
            Class::Outgoing => budgets.tcp_out,
            Class::Incoming => budgets.tcp_in,
            Class::LocalOut | Class::LocalIn => budgets.local_tcp / 2,
            Class::Listener => budgets.listeners,
            Class::Pipe => budgets.pipes / 2,
        };
        for greedy in Class::ALL.into_iter().filter(|class| class.uses_pool()) {
            let ledger = Ledger::new(&budgets);
            let held = all(&ledger, greedy);
            assert_eq!(held.len(), (reserve(greedy) * greedy.files() + budgets.pool) / greedy.files());
            for other in Class::ALL.into_iter().filter(|other| *other != greedy) {
                let others = all(&ledger, other);
                assert!(others.len() >= reserve(other), "{other:?} beside {greedy:?}");
                assert!(others.len() <= reserve(other) + 1);
            }
            drop(held);
            // Returned files are available to other classes.
            let other = if greedy == Class::Outgoing { Class::Incoming } else { Class::Outgoing };
            assert_eq!(all(&ledger, other).len(), reserve(other) + budgets.pool);
        }
    }

    #[test]
    fn pipes_never_take_from_the_pool() {
        let budgets = budgets(1024, 0);
        assert_eq!(all(&Ledger::new(&budgets), Class::Pipe).len(), budgets.pipes / 2);
    }

    /// With a budget of memory, one direction of connections can't use the memory of the other one, nor that of others.
    #[test]
    fn members_within_a_budget_of_memory() {
        let memory =
            Limits { bounded: true, connections: 80, local_connections: 16, listeners: 5, ..Limits::DEFAULT };
        let budgets = budgets(1 << 16, 0).within(&memory);
        let ledger = Ledger::new(&budgets);
        let outgoing = all(&ledger, Class::Outgoing);
        assert_eq!(outgoing.len(), 70);
        let incoming = all(&ledger, Class::Incoming);
        assert_eq!(incoming.len(), 10);
        assert_eq!(all(&ledger, Class::LocalIn).len(), 14);
        assert_eq!((ledger.spare_listeners(), all(&ledger, Class::Listener).len()), (5, 5));
        drop((outgoing, incoming));
        let incoming = all(&ledger, Class::Incoming);
        assert_eq!((incoming.len(), all(&ledger, Class::Outgoing).len()), (70, 10));
    }

    /// Files in excess of the budget are counted, and can be returned.
    #[test]
    fn files_beyond_the_budget_are_counted() {
        let budgets = budgets(1024, 0);
        let ledger = Ledger::new(&budgets);
        let many = budgets.listeners + budgets.pool + 100;
        let forced: Vec<Permit> = (0..many).map(|_| ledger.take_anyway(Class::Listener)).collect();
        assert_eq!((ledger.spare_listeners(), all(&ledger, Class::Outgoing).len()), (0, budgets.tcp_out));
        drop(forced);
        assert_eq!(ledger.spare_listeners(), budgets.pool / 2);
    }
}
