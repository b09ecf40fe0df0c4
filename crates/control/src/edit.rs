//! Edits announced tables, in the order of the changes (behaviour §8.9). `pesto` uses this for its options, and the
//! server for requests at its API socket.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use engine::forward::spec::{self, Context, Direction, Spec};
use engine::forward::{Enabled, Listen, PortRange, Protocol, Rule, Table};

use crate::message::{Announced, Capabilities, Pif};

/// A change of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Add the rules of changes that follow.
    Add,
    /// Delete the rules of changes that follow.
    Delete,
    /// Delete all rules of the table with this name.
    Clear(String),
    /// Add or delete the rules of a port specifier.
    Ports {
        /// Selects the table.
        direction: Direction,
        /// Transport protocol.
        protocol: Protocol,
        /// The port specifier.
        spec: String,
        /// The option as it was typed, for messages.
        typed_as: String,
    },
}

/// The effect of a specifier on the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The rules of the specifier are added. The first specifier for a table clears the table first.
    Replace,
    Add,
    Delete,
}

/// Edits tables.
#[derive(Debug)]
pub struct Editor {
    tables: Vec<Announced>,
    mode: Mode,
    /// Tables that [`Mode::Replace`] has cleared.
    cleared: HashSet<Pif>,
    ephemeral: PortRange,
    warnings: Vec<String>,
}

impl Editor {
    /// Starts with the announced tables. `all` and `auto` exclude the `ephemeral` ports.
    #[must_use]
    pub fn new(tables: Vec<Announced>, ephemeral: PortRange) -> Self {
        Self { tables, mode: Mode::Replace, cleared: HashSet::new(), ephemeral, warnings: Vec::new() }
    }

    /// Warnings about the changes so far.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The edited tables.
    #[must_use]
    pub fn finish(self) -> Vec<Announced> {
        self.tables
    }

    /// Applies a change.
    ///
    /// # Errors
    /// A message for the user, with the text of the C implementation.
    pub fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Add => self.mode = Mode::Add,
            Change::Delete => self.mode = Mode::Delete,
            Change::Clear(name) => {
                let table = self.tables.iter_mut().find(|table| table.name == *name);
                table.ok_or_else(|| format!("Unsupported pif name {name}"))?.rules.clear();
            }
            Change::Ports { direction, protocol, spec, typed_as } => {
                self.ports(*direction, *protocol, spec, typed_as)?;
            }
        }
        Ok(())
    }

    fn ports(
        &mut self,
        direction: Direction,
        protocol: Protocol,
        spec: &str,
        typed_as: &str,
    ) -> Result<(), String> {
        let (pif, side) = match direction {
            Direction::Inbound => (Pif::HOST, "inbound"),
            Direction::Outbound => (Pif::SPLICE, "outbound"),
        };
        let table = self.tables.iter_mut().find(|table| table.pif == pif);
        let table = table.ok_or_else(|| format!("Can't use {typed_as}, no {side} interface"))?;
        let enabled = table.capabilities.enabled();
        let context = Context { protocol, direction, enabled, ephemeral: self.ephemeral };
        let parsed = spec::parse(spec, &context).map_err(|error| match error {
            spec::SpecError::ListenNotAllowed(spec) => {
                format!("Listening address not allowed for {typed_as} {spec}")
            }
            error => error.to_string(),
        })?;
        if self.mode == Mode::Replace && self.cleared.insert(pif) {
            table.rules.clear();
        }
        let rules = match parsed {
            Spec::None if table.rules.iter().any(|rule| rule.protocol == protocol) => {
                return Err(format!("{typed_as} none conflicts with previous options"));
            }
            Spec::None => return Ok(()),
            Spec::Forward { auto: true, .. } if !table.capabilities.contains(Capabilities::SCAN) => {
                return Err("'auto' port forwarding is only allowed for pasta".into());
            }
            Spec::Forward { rules, .. } if table.capabilities.contains(Capabilities::IFNAME) => rules,
            Spec::Forward { rules, .. } if direction == Direction::Outbound => {
                self.warnings.push(format!(
                    "SO_BINDTODEVICE unavailable, forwarding only 127.0.0.1 and ::1 for '{typed_as} {spec}'"
                ));
                rules.iter().flat_map(|rule| on_loopback(rule, enabled)).collect()
            }
            Spec::Forward { rules, .. } if rules.iter().any(|rule| rule.listen.interface.is_some()) => {
                return Err(format!(
                    "Device binding for '{typed_as} {spec}' unsupported (requires kernel 5.7+)"
                ));
            }
            Spec::Forward { rules, .. } => rules,
        };
        for rule in rules {
            match self.mode {
                Mode::Delete => delete(table, &rule)?,
                Mode::Replace | Mode::Add => add(table, rule)?,
            }
        }
        Ok(())
    }
}

fn add(table: &mut Announced, rule: Rule) -> Result<(), String> {
    let mut checked = Table::new();
    for present in &table.rules {
        // The server has accepted these rules: check only limits, and conflicts with the new rule.
        checked
            .add(present.clone(), Enabled::ALL)
            .map_err(|error| format!("Table {} can't be changed: {}", table.name, error.reason))?;
    }
    checked.add(rule.clone(), table.capabilities.enabled()).map_err(|error| error.to_string())?;
    table.rules.push(rule);
    Ok(())
}

fn delete(table: &mut Announced, rule: &Rule) -> Result<(), String> {
    if let Some(index) = table.rules.iter().position(|present| present == rule) {
        table.rules.remove(index);
        return Ok(());
    }
    let reason = match table.rules.iter().find(|present| present.conflicts_with(rule)) {
        Some(other) => {
            format!("Specifier {rule} conflicts with rule {other}, but doesn't match it, can't delete")
        }
        None => format!("Couldn't find forwarding rule to delete: {rule}"),
    };
    Err(format!("{reason}\nUnable to delete rule {rule}"))
}

/// The rule on loopback addresses, if the server cannot bind to an interface (behaviour §2.4.7).
fn on_loopback(rule: &Rule, enabled: Enabled) -> impl Iterator<Item = Rule> + use<> {
    let addresses = [
        enabled.ipv4.then_some(Ipv4Addr::LOCALHOST.into()),
        enabled.ipv6.then_some(Ipv6Addr::LOCALHOST.into()),
    ];
    let rule = rule.clone();
    addresses
        .into_iter()
        .flatten()
        .map(move |address| Rule { listen: Listen { addr: Some(address), interface: None }, ..rule.clone() })
}

#[cfg(test)]
mod tests;
