//! Forwarding rules at work: their listening sockets, opened and closed as rules and what they follow change.
//!
//! A listening socket is known by its rule's index and its port. When the rules change, those that the old and the new
//! ones agree on stay open, so that no connection in their backlog is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;

use engine::flow::FlowId;
use engine::forward::scan::{InUse, wanted};
use engine::forward::spec::Direction;
use engine::forward::{Listen, Protocol, Rule, Table};
use engine::udp::{self, Udp};
use rustix::io::Errno;
use rustix::net::getsockname;

use super::way::Way;
use crate::accept::Acceptors;
use crate::io::Sockets;
use crate::io::udp::UdpSocket;
use crate::listen::{self, Listener, Opening, Reason};
use crate::netns::Opener;

/// A rule's index in its table, and a port of it.
type Key = (usize, u16);

/// What listeners are taken rx.
pub(crate) struct Receivers<'a> {
    /// Listening stream sockets.
    pub(crate) acceptors: &'a mut Acceptors,
    /// Listening datagram sockets.
    pub(crate) udp: &'a mut Udp<UdpSocket>,
    /// What watches them all.
    pub(crate) sockets: &'a mut Sockets,
}

/// The rules of one direction, and their listening sockets.
#[derive(Debug)]
pub(crate) struct Side {
    direction: Direction,
    table: Table,
    opening: Opening,
    place: Place,
    open: BTreeMap<Key, Open>,
    /// Closed ones of UDP, whose flows may live on and keep the port.
    retired: HashMap<Claim, FlowId>,
    /// Ports in use on the other side that can't be had: told once.
    failed: BTreeSet<Key>,
}

/// Where sockets are opened: the namespace that a rule listens in.
#[derive(Debug)]
enum Place {
    /// Ours.
    Here,
    /// The guest's.
    There(Opener),
}

impl Place {
    fn open<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        match self {
            Self::Here => Ok(work()),
            Self::There(opener) => opener.call(work),
        }
    }
}

/// What a socket is for, whatever its rule's index: no two sockets have the same.
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
    /// Index of an acceptor.
    Stream(usize),
    /// A listener of UDP.
    Datagram(FlowId),
}

impl Side {
    /// The rules of `table`, whose sockets are `listeners`.
    ///
    /// # Errors
    /// A socket can't be watched.
    pub(crate) fn new(
        direction: Direction,
        table: Table,
        opening: Opening,
        listeners: Vec<Listener>,
        rx: &mut Receivers<'_>,
    ) -> anyhow::Result<Self> {
        let (open, retired, failed) = Default::default();
        let place = Place::Here;
        let mut side = Self { direction, table, opening, place, open, retired, failed };
        for listener in listeners {
            let (protocol, port) = (listener.protocol, listener.port);
            side.take(listener, rx)
                .map_err(|errno| anyhow::anyhow!("can't watch {protocol} port {port}: {errno}"))?;
        }
        Ok(side)
    }

    /// From now on, sockets are opened in the guest's namespace.
    pub(crate) fn open_there(&mut self, opener: Opener) {
        self.place = Place::There(opener);
    }

    /// Whether rules of a protocol follow what is in use on the other side.
    pub(crate) fn follows(&self, protocol: Protocol) -> bool {
        self.table.rules().iter().any(|rule| rule.scan && rule.protocol == protocol)
    }

    /// Whether any rules do.
    pub(crate) fn follows_any(&self) -> bool {
        self.table.rules().iter().any(|rule| rule.scan)
    }

    /// Whether ports that are to be open could not be had.
    pub(crate) fn lacks_any(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The ports that we hold by this side's rules.
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

    /// Opens and closes what rules follow, given the ports in use where they lead to, and those of them that we hold
    /// ourselves (SPEC §8.4). What can't be opened is told once.
    pub(crate) fn follow(&mut self, target: &InUse, ours: &InUse, rx: &mut Receivers<'_>) {
        self.retired.retain(|_, id| rx.udp.is_listener(*id));
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
            if self.open.contains_key(&key) || self.revive(key, rx) {
                continue;
            }
            match self.open(key, rx) {
                Ok(()) => drop(self.failed.remove(&key)),
                // The guest has sent from there already, and its socket serves whoever answers or asks.
                Err(Reason::Socket(Errno::ADDRINUSE)) if endpoint_ports(rx.udp).any(|port| port == key.1) => {
                    self.failed.insert(key);
                }
                Err(reason) => {
                    if self.failed.insert(key) {
                        failures.push((key, reason));
                    }
                }
            }
        }
        self.tell(&failures);
    }

    /// The rules.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Puts `table` in place of the present rules. Sockets that it still wants stay open, whatever rule they belong to
    /// now; those of rules that follow stay until the next [`Side::follow`]. Returns a line for each rule that may be
    /// incomplete, and is.
    ///
    /// # Errors
    /// A port can't be bound. Then the old rules stay in force.
    pub(crate) fn apply(
        &mut self,
        table: Table,
        rx: &mut Receivers<'_>,
    ) -> Result<Vec<String>, listen::Error> {
        self.retired.retain(|_, id| rx.udp.is_listener(*id));
        let kept = self.kept_by(&table);
        let staying: BTreeSet<Key> = kept.values().copied().collect();
        let leaving: Vec<Key> = self.open.keys().filter(|key| !staying.contains(key)).copied().collect();
        let revivable = self.revivable(&table, &kept);
        let way = Way::clear(&table, self.in_the_way(&leaving), rx);
        let (opening, wanted, beside) = (self.opening, table.clone(), way.suffering());
        let there: BTreeSet<Key> = kept.keys().chain(revivable.keys()).copied().collect();
        let opened = self.place.open(move || {
            let make = |index, rule: &Rule, port| {
                opening.socket(index, rule, port, rule.protocol == Protocol::Udp && beside.contains(&port))
            };
            opening.rules_by(&wanted, |rule, port| there.contains(&(rule, port)), make)
        });
        way.close(rx);
        // What was opened is closed before the old ones are heard again.
        let opened = opened.map_err(listen::Error::from).flatten().inspect_err(|_| way.restore(rx));
        let (listeners, notes) = opened?;

        leaving.into_iter().for_each(|key| self.close(key, rx));
        self.replace(table, &kept, rx);
        for key in revivable.into_keys() {
            self.revive(key, rx);
        }
        for listener in listeners {
            let (protocol, port) = (listener.protocol, listener.port);
            if let Err(errno) = self.take(listener, rx) {
                log::warn!("can't watch {protocol} port {port}: {errno}");
            }
        }
        Ok(notes)
    }

    /// Which of the open sockets a new table wants: by the key that it will have, the key that it has.
    fn kept_by(&self, table: &Table) -> BTreeMap<Key, Key> {
        let heirs = |rule: &Rule| -> Vec<usize> {
            let same = |new: &Rule| new.protocol == rule.protocol && new.listen == rule.listen;
            table.rules().iter().enumerate().filter(|(_, new)| same(new)).map(|(index, _)| index).collect()
        };
        let heirs: Vec<Vec<usize>> = self.table.rules().iter().map(heirs).collect();
        let heir = |&(rule, port): &Key| {
            let new = *heirs.get(rule)?.iter().find(|new| table.rules()[**new].ports.contains(port))?;
            Some(((new, port), (rule, port)))
        };
        self.open.keys().filter_map(heir).collect()
    }

    /// Which of the retired sockets a new table wants right away.
    fn revivable(&self, table: &Table, kept: &BTreeMap<Key, Key>) -> BTreeMap<Key, FlowId> {
        let heir = |(claim, id): (&Claim, &FlowId)| {
            let wants = |rule: &Rule| {
                !rule.scan && rule.ports.contains(claim.port) && *claim == Claim::of(rule, claim.port)
            };
            let new = table.rules().iter().position(wants)?;
            Some(((new, claim.port), *id)).filter(|(key, _)| !kept.contains_key(key))
        };
        self.retired.iter().filter_map(heir).collect()
    }

    /// Sockets that may keep new ones from their ports although no new rule wants them: those of the keys `leaving`, and
    /// retired ones.
    fn in_the_way(&self, leaving: &[Key]) -> Vec<(Claim, Open)> {
        let leaving = leaving
            .iter()
            .filter_map(|key| Some((Claim::of(self.table.rules().get(key.0)?, key.1), *self.open.get(key)?)));
        let retired = self.retired.iter().map(|(claim, id)| (claim.clone(), Open::Datagram(*id)));
        leaving.chain(retired).collect()
    }

    /// Takes over a table, and the open sockets that it has in common with the old one.
    fn replace(&mut self, table: Table, kept: &BTreeMap<Key, Key>, rx: &mut Receivers<'_>) {
        let open = std::mem::take(&mut self.open);
        self.failed.clear();
        self.table = table;
        for (&key, old) in kept {
            let (index, port) = key;
            let Some((rule, open)) = self.table.rules().get(index).zip(open.get(old)) else { continue };
            match open {
                Open::Stream(acceptor) => rx.acceptors.retarget(*acceptor, rule, port),
                Open::Datagram(id) => {
                    if let Some(target) = udp::Listener::new(self.direction, index, rule, port) {
                        rx.udp.relisten(*id, target);
                    }
                }
            }
            self.open.insert(key, *open);
        }
    }

    /// One line, whatever their number (Q13).
    fn tell(&self, failures: &[(Key, Reason)]) {
        let Some(((rule, port), reason)) = failures.first() else { return };
        let Some(rule) = self.table.rules().get(*rule) else { return };
        let others = match failures.len() - 1 {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        log::warn!("Listen failed for HOST {} port {port} (auto): {reason}{others}", rule.protocol);
    }

    fn open(&mut self, key: Key, rx: &mut Receivers<'_>) -> Result<(), Reason> {
        let (index, port) = key;
        let (rule, opening) = (self.table.rules().get(index).ok_or(Errno::INVAL)?.clone(), self.opening);
        let opened = self.place.open(move || opening.spare(index, &rule, port));
        let listener = opened.map_err(|_| Reason::Socket(Errno::PIPE)).flatten()?;
        log::debug!("listening on {} port {port}", listener.protocol);
        Ok(self.take(listener, rx)?)
    }

    /// Has a listener of UDP back that still serves old flows.
    fn revive(&mut self, key: Key, rx: &mut Receivers<'_>) -> bool {
        let Some(rule) = self.table.rules().get(key.0) else { return false };
        let Some(id) = self.retired.remove(&Claim::of(rule, key.1)) else { return false };
        let target = udp::Listener::new(self.direction, key.0, rule, key.1);
        let revived = target.is_some_and(|target| rx.udp.relisten(id, target));
        if revived {
            self.open.insert(key, Open::Datagram(id));
        }
        revived
    }

    fn take(&mut self, listener: Listener, rx: &mut Receivers<'_>) -> Result<(), Errno> {
        let Listener { rule: index, port, protocol, address, socket } = listener;
        let rule = self.table.rules().get(index).ok_or(Errno::INVAL)?;
        let open = match protocol {
            Protocol::Tcp => {
                Open::Stream(rx.acceptors.add(rx.sockets.epoll(), socket, self.direction, rule, port)?)
            }
            Protocol::Udp => {
                let target = udp::Listener::new(self.direction, index, rule, port).ok_or(Errno::INVAL)?;
                let target = udp::Listener { address, ..target };
                let socket = rx.sockets.udp_listener(socket, address);
                let id = rx.udp.listen(rx.sockets, target, socket);
                Open::Datagram(id.map_err(|errno| Errno::from_raw_os_error(errno.0))?)
            }
        };
        self.open.insert((index, port), open);
        Ok(())
    }

    fn close(&mut self, key: Key, rx: &mut Receivers<'_>) {
        match self.open.remove(&key) {
            Some(Open::Stream(index)) => rx.acceptors.remove(index),
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

/// Ports of ours that stand for ports of the guest that it has sent from.
pub(super) fn endpoint_ports(udp: &Udp<UdpSocket>) -> impl Iterator<Item = u16> {
    udp.endpoint_sockets()
        .filter_map(|socket| Some(SocketAddr::try_from(getsockname(socket).ok()?).ok()?.port()))
}
