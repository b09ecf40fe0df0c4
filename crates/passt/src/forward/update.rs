//! Announces the rules to clients of the control socket, and changes the rules (behaviour §8.9).

use engine::forward::{Enabled, Table};
use engine::timer::Instant;

use super::side::Side;
use super::{Forwarder, Receivers, listen};
use crate::logging::LIST;
use control::message::{Announced, Capabilities, Pif, Update};

impl Forwarder {
    /// The announcement of the rules in force.
    pub(crate) fn announce(&self, enabled: Enabled) -> Vec<Announced> {
        let mut capabilities = Capabilities::of(enabled) | Capabilities::IFNAME | Capabilities::POLICY;
        capabilities.set(Capabilities::SCAN, self.scanners.guest.is_some());
        let announced = |(pif, side): (Pif, &Side)| Announced {
            pif,
            name: side.direction().table_name().into(),
            capabilities,
            rules: side.table().rules().to_vec(),
        };
        self.tables().map(announced).collect()
    }

    /// The tables. If the guest has no namespace on this machine, only the inbound table exists.
    fn tables(&self) -> impl Iterator<Item = (Pif, &Side)> {
        let outbound = self.outbound.is_there().then_some((Pif::SPLICE, &self.outbound));
        [(Pif::HOST, &self.inbound)].into_iter().chain(outbound)
    }

    /// Puts other rules in force. These rules are checked like rules of the command line. A table that the update does
    /// not name is emptied. Returns remarks for the client about an update that was accepted.
    ///
    /// # Errors
    /// A message for the user: the update is invalid, or a port can't be bound. Neither table is changed in this case.
    pub(crate) fn update(
        &mut self,
        update: &Update,
        enabled: Enabled,
        now: Instant,
        mut rx: Receivers<'_>,
    ) -> Result<String, String> {
        let (inbound, outbound) = self.read(update, enabled)?;
        // The two tables listen in different namespaces, so their sockets can't conflict.
        let spare = rx.sockets.ledger().spare_listeners();
        let inbound = self.inbound.prepare(inbound, spare, &rx).map_err(|error| error.to_string())?;
        let outbound = match self.outbound.prepare(outbound, spare.saturating_sub(inbound.opened()), &rx) {
            Ok(outbound) => outbound,
            Err(error) => {
                inbound.abandon(&rx);
                return Err(error.to_string());
            }
        };
        let mut notes = self.inbound.commit(inbound, &mut rx);
        notes.extend(self.outbound.commit(outbound, &mut rx));
        self.follow_anew(now, rx);
        for (_, side) in self.tables() {
            log::info!("New forwarding rules for {}:", side.direction().table_name());
            side.table().rules().iter().for_each(|rule| log::info!(target: LIST, "    {rule}"));
        }
        notes.iter().for_each(|note| log::warn!(target: LIST, "{note}"));
        Ok(notes.join("\n"))
    }

    /// Puts other inbound rules in force, which must not follow ports in use.
    ///
    /// # Errors
    /// A message for the user: a port can't be bound. Nothing is changed in this case.
    pub(crate) fn replace_inbound(
        &mut self,
        table: Table,
        now: Instant,
        mut rx: Receivers<'_>,
    ) -> Result<(), String> {
        // No rule is best effort.
        let spare = 0;
        let prepared = self.inbound.prepare(table, spare, &rx).map_err(|error| match error {
            listen::Error::Port { protocol, listen, port, reason, .. } => {
                format!("can't listen on {protocol} {listen}:{port}: {reason}")
            }
            error => error.to_string(),
        })?;
        let notes = self.inbound.commit(prepared, &mut rx);
        notes.iter().for_each(|note| log::warn!("{note}"));
        self.follow_anew(now, rx);
        Ok(())
    }

    /// The inbound rules and the outbound rules that an update describes.
    fn read(&self, update: &Update, enabled: Enabled) -> Result<(Table, Table), String> {
        let (mut inbound, mut outbound) = (Table::new(), Table::new());
        for (pif, rules) in &update.0 {
            let table = match *pif {
                Pif::HOST => &mut inbound,
                Pif::SPLICE if self.outbound.is_there() => &mut outbound,
                // This table was never announced.
                Pif(other) if rules.is_empty() => {
                    log::debug!("empty forwarding table {other} ignored");
                    continue;
                }
                Pif(other) => return Err(format!("There is no forwarding table {other}")),
            };
            if self.scanners.guest.is_none() && rules.iter().any(|rule| rule.scan) {
                return Err("'auto' port forwarding is only allowed for pasta".into());
            }
            rules.iter().try_for_each(|rule| table.add(rule.clone(), enabled)).map_err(|e| e.to_string())?;
        }
        Ok((inbound.of_families(enabled), outbound))
    }
}
