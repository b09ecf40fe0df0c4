//! The rules as clients of the control socket see them, and how they change them (SPEC §8.9).

use engine::forward::{Enabled, Table};
use engine::timer::Instant;

use super::{Forwarder, Receivers};
use crate::control::wire::{Announced, Capabilities, Pif, Update};
use crate::logging::LIST;

impl Forwarder {
    /// The rules in force.
    pub(crate) fn announce(&self, enabled: Enabled) -> Vec<Announced> {
        vec![Announced {
            pif: Pif::HOST,
            name: "HOST".into(),
            capabilities: Capabilities::of(enabled) | Capabilities::SCAN | Capabilities::IFNAME,
            rules: self.inbound.table().rules().to_vec(),
        }]
    }

    /// Puts other rules in force, checked like those of the command line. A table that the update does not name is
    /// emptied. Returns what is to be told about it, though it holds.
    ///
    /// # Errors
    /// A message for people: the update makes no sense, or a port can't be bound. Nothing has changed then.
    pub(crate) fn update(
        &mut self,
        update: &Update,
        enabled: Enabled,
        now: Instant,
        mut rx: Receivers<'_>,
    ) -> Result<String, String> {
        let mut inbound = Table::new();
        for (pif, rules) in &update.0 {
            let table = match *pif {
                Pif::HOST => &mut inbound,
                // Nobody can have learnt of it from us.
                Pif(other) if rules.is_empty() => {
                    log::debug!("empty forwarding table {other} ignored");
                    continue;
                }
                Pif(other) => return Err(format!("There is no forwarding table {other}")),
            };
            rules.iter().try_for_each(|rule| table.add(rule.clone(), enabled)).map_err(|e| e.to_string())?;
        }
        let notes = self.inbound.apply(inbound, &mut rx).map_err(|error| error.to_string())?;
        self.follow_anew(now, rx);
        log::info!("New forwarding rules for HOST:");
        self.inbound.table().rules().iter().for_each(|rule| log::info!(target: LIST, "    {rule}"));
        notes.iter().for_each(|note| log::warn!(target: LIST, "{note}"));
        Ok(notes.join("\n"))
    }
}
