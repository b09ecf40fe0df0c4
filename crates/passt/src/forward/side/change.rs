//! Replaces the rules of a side. Sockets that both the old and the new rules need stay open (behaviour §8.9).
//!
//! The first step, `prepare`, includes all operations that can fail. The second step, `commit`, can't fail. So either
//! the rules of both sides change, or neither side changes.

use std::collections::{BTreeMap, BTreeSet};

use engine::forward::{Protocol, Rule, Table};

use super::{Claim, Key, Open, Receivers, Side};
use crate::budgets::ledger::Class;
use crate::forward::displaced::Displaced;
use crate::forward::listen::{self, Listener, Opening};

/// Rules that are ready to replace the present rules. Their sockets are open.
#[derive(Debug)]
pub(crate) struct Prepared {
    table: Table,
    /// Open sockets that both tables need. The map is from the new key to the present key.
    kept: BTreeMap<Key, Key>,
    /// Open sockets that the new table does not need.
    leaving: Vec<Key>,
    /// Closed UDP listeners that the new table needs.
    reopenable: Vec<Key>,
    listeners: Vec<Listener>,
    displaced: Displaced,
    notes: Vec<String>,
}

impl Prepared {
    /// The number of sockets that were opened.
    pub(crate) fn opened(&self) -> usize {
        self.listeners.len()
    }

    /// Discards the prepared rules: the present rules stay in force.
    pub(crate) fn abandon(self, rx: &Receivers<'_>) {
        // The new sockets must be closed before the old ones listen again.
        drop(self.listeners);
        self.displaced.resume(rx);
    }
}

impl Side {
    /// Opens the sockets that `table` needs and that are not open yet. Best-effort rules may open sockets while fewer
    /// than `spare` sockets have been opened. The caller must call [`Side::commit`] or [`Prepared::abandon`] at once.
    ///
    /// # Errors
    /// A port can't be bound. The present rules then stay in force.
    pub(crate) fn prepare(
        &mut self,
        table: Table,
        spare: usize,
        rx: &Receivers<'_>,
    ) -> Result<Prepared, listen::Error> {
        self.forget_closed(rx.udp);
        let kept = self.kept_by(&table);
        let staying: BTreeSet<Key> = kept.values().copied().collect();
        let leaving: Vec<Key> = self.open.keys().filter(|key| !staying.contains(key)).copied().collect();
        let reopenable = self.reopenable(&table, &kept);
        let displaced = Displaced::by(&table, self.in_the_way(&leaving), rx);
        let opening = Opening { spare, ..self.opening };
        let (wanted, beside) = (table.clone(), displaced.shared_ports());
        let there: BTreeSet<Key> = kept.keys().chain(&reopenable).copied().collect();
        let opened = self.in_namespace(move || {
            let make = |index, rule: &Rule, port| {
                opening.socket(index, rule, port, rule.protocol == Protocol::Udp && beside.contains(&port))
            };
            opening.rules_by(&wanted, |rule, port| there.contains(&(rule, port)), make)
        });
        displaced.stop_sharing(rx);
        match opened.map_err(listen::Error::from).flatten() {
            Ok((listeners, notes)) => {
                Ok(Prepared { table, kept, leaving, reopenable, listeners, displaced, notes })
            }
            Err(error) => {
                displaced.resume(rx);
                Err(error)
            }
        }
    }

    /// Puts the prepared rules in force. A socket that these rules need stays open, even if the socket's rule changes.
    /// Sockets of rules that follow ports in use stay open until the next [`Side::follow`]. Returns a line for each
    /// incomplete best-effort rule, and for each socket that can't be watched.
    pub(crate) fn commit(&mut self, mut prepared: Prepared, rx: &mut Receivers<'_>) -> Vec<String> {
        prepared.leaving.into_iter().for_each(|key| self.close(key, rx));
        self.replace(prepared.table, &prepared.kept, rx);
        for key in prepared.reopenable {
            self.reopen(key, rx);
        }
        for listener in prepared.listeners {
            let (protocol, port) = (listener.protocol, listener.port);
            let permit = rx.sockets.ledger().take_anyway(Class::Listener);
            if let Err(errno) = self.take(listener, permit, rx) {
                prepared
                    .notes
                    .push(format!("can't watch {protocol} port {port}: {errno}; apply the rules again"));
            }
        }
        prepared.notes
    }

    /// The open sockets that a new table needs. The map is from the new key to the present key.
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
        let mut kept = BTreeMap::new();
        kept.extend(self.open.keys().filter_map(heir));
        kept
    }

    /// The closed UDP listeners that a new table needs at once. The listeners are identified by their new keys.
    fn reopenable(&self, table: &Table, kept: &BTreeMap<Key, Key>) -> Vec<Key> {
        let heir = |claim: &Claim| {
            let wants = |rule: &Rule| {
                !rule.scan && rule.ports.contains(claim.port) && *claim == Claim::of(rule, claim.port)
            };
            let new = table.rules().iter().position(wants)?;
            Some((new, claim.port)).filter(|key| !kept.contains_key(key))
        };
        self.retired.keys().filter_map(heir).collect()
    }

    /// Sockets that no new rule needs, but that may prevent new sockets from being bound: the sockets with the keys
    /// `leaving`, and retired sockets.
    fn in_the_way(&self, leaving: &[Key]) -> Vec<(Claim, Open)> {
        let leaving = leaving
            .iter()
            .filter_map(|key| Some((Claim::of(self.table.rules().get(key.0)?, key.1), *self.open.get(key)?)));
        let retired = self.retired.iter().map(|(claim, id)| (claim.clone(), Open::Datagram(*id)));
        leaving.chain(retired).collect()
    }

    /// Takes over a new table, and keeps the open sockets that both tables need.
    fn replace(&mut self, table: Table, kept: &BTreeMap<Key, Key>, rx: &mut Receivers<'_>) {
        let open = std::mem::take(&mut self.open);
        self.failed.clear();
        self.table = table;
        for (&key, old) in kept {
            let (index, port) = key;
            let Some((rule, open)) = self.table.rules().get(index).zip(open.get(old)) else { continue };
            let Some(target) = engine::forward::Listener::new(self.opening.direction, index, rule, port)
            else {
                continue;
            };
            match open {
                Open::Stream(id) => rx.acceptors.retarget(*id, target),
                Open::Datagram(id) => {
                    rx.udp.relisten(*id, target);
                }
            }
            self.open.insert(key, *open);
        }
    }
}
