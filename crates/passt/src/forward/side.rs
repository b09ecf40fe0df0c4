//! The rules of one direction, and their listening sockets. Sockets are opened and closed when the rules change, or
//! when the ports change that the rules follow.
//!
//! The key of a listening socket is its rule's index and its port. When the rules change, sockets that both the old and
//! the new rules want stay open, so that no pending connection is lost.

mod change;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;

use engine::flow::FlowId;
use engine::forward::scan::{InUse, wanted};
use engine::forward::spec::Direction;
use engine::forward::{Listen, Protocol, Rule, Table};
use engine::udp::Udp;
use log::Level;
use rustix::io::Errno;
use rustix::net::getsockname;

use crate::budgets::ledger::{Class, Permit};
use crate::errno::from_engine;
use crate::forward::accept::Acceptors;
use crate::forward::listen::{Listener, Opening, Reason};
use crate::io::Sockets;
use crate::io::world::Linux;
use crate::pasta::netns::Opener;

/// Maximum number of ports that a log message names.
const NAMED: usize = 4;

/// A rule's index in its table, and one port of the rule.
type Key = (usize, u16);

/// The owners of listening sockets.
pub(crate) struct Receivers<'a> {
    /// Listening stream sockets.
    pub(crate) acceptors: &'a mut Acceptors,
    /// Listening datagram sockets.
    pub(crate) udp: &'a mut Udp<Linux>,
    /// The epoll set that watches the sockets, and the ledger of permits.
    pub(crate) sockets: &'a mut Sockets,
}

/// The rules of one direction, and their listening sockets.
#[derive(Debug)]
pub(crate) struct Side {
    table: Table,
    opening: Opening,
    /// Opens sockets in the guest's namespace. `None`: the rules listen in the host's namespace.
    opener: Option<Opener>,
    open: BTreeMap<Key, Open>,
    /// Closed UDP listeners. Their flows may continue, and these flows keep the port bound.
    retired: HashMap<Claim, FlowId>,
    /// Ports that are in use on the other side but can't be bound. Each port is reported once.
    failed: BTreeSet<Key>,
}

/// The protocol, address and port of a listening socket. It identifies a socket even if the index of its rule changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Claim {
    pub(super) protocol: Protocol,
    pub(super) listen: Listen,
    pub(super) port: u16,
}

impl Claim {
    fn of(rule: &Rule, port: u16) -> Self {
        Self { protocol: rule.protocol, listen: rule.listen.clone(), port }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Open {
    /// A TCP listener. [`Acceptors`] owns the socket.
    Stream(FlowId),
    /// A UDP listener. [`Udp`] owns the socket.
    Datagram(FlowId),
}

impl Side {
    /// Creates a side from the rules in `table` and from their sockets in `listeners`.
    ///
    /// # Errors
    /// A socket can't be watched.
    pub(crate) fn new(
        table: Table,
        opening: Opening,
        listeners: Vec<Listener>,
        rx: &mut Receivers<'_>,
    ) -> anyhow::Result<Self> {
        let (open, retired, failed) = Default::default();
        let mut side = Self { table, opening, opener: None, open, retired, failed };
        for listener in listeners {
            let (protocol, port) = (listener.protocol, listener.port);
            let permit = rx.sockets.ledger().take_anyway(Class::Listener);
            side.take(listener, permit, rx)
                .map_err(|errno| anyhow::anyhow!("can't watch {protocol} port {port}: {errno}"))?;
        }
        Ok(side)
    }

    /// Makes `opener` open sockets in the guest's namespace from now on.
    pub(crate) fn open_there(&mut self, opener: Opener) {
        self.opener = Some(opener);
    }

    /// Runs `work` in the namespace in which the rules listen.
    fn in_namespace<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match &self.opener {
            None => Ok(work()),
            Some(opener) => opener.call(work),
        }
    }

    /// Whether rules follow the ports in use on the other side.
    pub(crate) fn follows_any(&self) -> bool {
        self.table.rules().iter().any(|rule| rule.scan)
    }

    /// Forgets closed UDP listeners whose last flow has ended. Returns true if there are any. Their ports are free
    /// then.
    pub(crate) fn forget_closed(&mut self, udp: &Udp<Linux>) -> bool {
        let before = self.retired.len();
        self.retired.retain(|_, id| udp.is_listener(*id));
        self.retired.len() < before
    }

    /// The ports that are bound for this side's rules.
    pub(crate) fn held(&self) -> InUse {
        let mut held = InUse::default();
        for (rule, port) in self.open.keys() {
            if let Some(rule) = self.table.rules().get(*rule) {
                held.of(rule.protocol).insert(*port);
            }
        }
        for claim in self.retired.keys() {
            held.of(claim.protocol).insert(claim.port);
        }
        held
    }

    /// Opens and closes listeners of rules that follow ports in use (behaviour §8.4). `target` has the ports in use in
    /// the target namespace. `ours` has the ports in `target` that this program holds. A failure is logged once.
    pub(crate) fn follow(&mut self, target: &InUse, ours: &InUse, rx: &mut Receivers<'_>) {
        let wanted: BTreeSet<Key> = wanted(&self.table, target, ours).collect();
        let scan = |(rule, _): &Key| self.table.rules().get(*rule).is_some_and(|rule| rule.scan);
        let gone: Vec<Key> =
            self.open.keys().filter(|key| scan(key) && !wanted.contains(key)).copied().collect();
        for key in gone {
            log::debug!("port {} is not in use on the other side any more", key.1);
            self.close(key, rx);
        }
        self.failed.retain(|key| wanted.contains(key));
        let mut failures = Vec::new();
        for key in wanted {
            if self.open.contains_key(&key) || self.reopen(key, rx) {
                continue;
            }
            match self.open(key, rx) {
                Ok(()) => drop(self.failed.remove(&key)),
                // The guest has sent from this port already, so a socket is bound to the port. This socket also accepts
                // requests of peers.
                Err(Reason::Socket(Errno::ADDRINUSE)) if endpoint_ports(rx.udp).any(|port| port == key.1) => {
                    self.note_failed(key, rx);
                }
                Err(reason) => {
                    if self.note_failed(key, rx) {
                        failures.push((key, reason));
                    }
                }
            }
        }
        self.report(&failures);
    }

    /// Notes a port that can't be bound. Returns whether its failure has to be reported: it is new. The guest decides how many
    /// there are, so with a budget of memory, only as many are noted as there may be listening sockets.
    fn note_failed(&mut self, key: Key, rx: &Receivers<'_>) -> bool {
        self.failed.len() < rx.sockets.ledger().most_listeners() && self.failed.insert(key)
    }

    /// The rules.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The direction of the rules.
    pub(crate) fn direction(&self) -> Direction {
        self.opening.direction
    }

    /// Whether the rules listen in the guest's namespace.
    pub(crate) fn is_there(&self) -> bool {
        self.opener.is_some()
    }

    /// Logs failures: one line for each reason, even if many ports are affected (Q13).
    fn report(&self, failures: &[(Key, Reason)]) {
        let mut by_reason: BTreeMap<String, (Level, Vec<String>)> = BTreeMap::new();
        for ((rule, port), reason) in failures {
            let Some(rule) = self.table.rules().get(*rule) else { continue };
            let (level, text) = self.explain(*reason);
            let ports = &mut by_reason.entry(text).or_insert((level, Vec::new())).1;
            ports.push(format!("{} port {port}", rule.protocol));
        }
        let table = self.opening.direction.table_name();
        for (reason, (level, ports)) in by_reason {
            let more = match ports.len().checked_sub(NAMED) {
                None | Some(0) => String::new(),
                Some(more) => format!(" and {more} more"),
            };
            let ports = ports.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
            log::log!(level, "Listen failed for {table} {ports}{more} (auto): {reason}");
        }
    }

    /// The log level and the text for a port that can't be bound.
    fn explain(&self, reason: Reason) -> (Level, String) {
        let text = match (reason, self.opening.direction) {
            // The process drops this privilege after the start, see `stage`.
            (Reason::Socket(Errno::ACCESS), Direction::Inbound) => {
                format!("{reason}, and no privilege is kept while running")
            }
            _ => reason.to_string(),
        };
        // For an outbound rule, the guest has its own service at this port, which is not a problem. For an inbound
        // rule, a service of the guest can't be reached from the host.
        let own_service = self.opening.direction == Direction::Outbound
            && matches!(reason, Reason::Socket(Errno::ADDRINUSE));
        (if own_service { Level::Info } else { Level::Warn }, text)
    }

    fn open(&mut self, key: Key, rx: &mut Receivers<'_>) -> Result<(), Reason> {
        let (index, port) = key;
        let (rule, opening) = (self.table.rules().get(index).ok_or(Errno::INVAL)?.clone(), self.opening);
        let permit = rx.sockets.ledger().take(Class::Listener).ok_or(Errno::MFILE)?;
        let opened = self.in_namespace(move || opening.socket(index, &rule, port, false));
        let listener = opened.map_err(|_| Reason::Socket(Errno::PIPE)).flatten()?;
        log::debug!("listening on {} port {port}", listener.protocol);
        Ok(self.take(listener, permit, rx)?)
    }

    /// Reopens a closed UDP listener whose socket still serves old flows.
    fn reopen(&mut self, key: Key, rx: &mut Receivers<'_>) -> bool {
        let Some(rule) = self.table.rules().get(key.0) else { return false };
        let Some(id) = self.retired.remove(&Claim::of(rule, key.1)) else { return false };
        let target = engine::forward::Listener::new(self.opening.direction, key.0, rule, key.1);
        let reopened = target.is_some_and(|target| rx.udp.relisten(id, target));
        if reopened {
            self.open.insert(key, Open::Datagram(id));
        }
        reopened
    }

    fn take(&mut self, listener: Listener, permit: Permit, rx: &mut Receivers<'_>) -> Result<(), Errno> {
        let Listener { rule: index, port, protocol, address, socket } = listener;
        let rule = self.table.rules().get(index).ok_or(Errno::INVAL)?;
        let target =
            engine::forward::Listener::new(self.opening.direction, index, rule, port).ok_or(Errno::INVAL)?;
        let open = match protocol {
            Protocol::Tcp => Open::Stream(rx.acceptors.add(rx.sockets.epoll(), socket, permit, target)?),
            Protocol::Udp => {
                let target = engine::forward::Listener { address, ..target };
                let socket = rx.sockets.udp_listener(socket, address, permit);
                let id = rx.udp.listen(rx.sockets, target, socket);
                Open::Datagram(id.map_err(from_engine)?)
            }
        };
        self.open.insert((index, port), open);
        Ok(())
    }

    fn close(&mut self, key: Key, rx: &mut Receivers<'_>) {
        match self.open.remove(&key) {
            Some(Open::Stream(id)) => rx.acceptors.remove(id),
            Some(Open::Datagram(id)) => {
                rx.udp.unlisten(id);
                if rx.udp.is_listener(id)
                    && let Some(rule) = self.table.rules().get(key.0)
                {
                    self.retired.insert(Claim::of(rule, key.1), id);
                }
            }
            None => {}
        }
    }
}

/// The host's ports that represent ports from which the guest has sent.
pub(super) fn endpoint_ports(udp: &Udp<Linux>) -> impl Iterator<Item = u16> {
    udp.endpoint_sockets()
        .filter_map(|socket| Some(SocketAddr::try_from(getsockname(socket).ok()?).ok()?.port()))
}
