//! The forwarding rules of one direction.

use alloc::{boxed::Box, vec::Vec};
use core::net::IpAddr;

use super::{Protocol, Rule};

/// Most rules in one table (SPEC §2.4.10).
pub const MAX_RULES: usize = 255;

/// Most sockets that the rules of one table may ask for, one for each port of each rule (SPEC §2.4.10).
pub const MAX_SOCKETS: usize = 327_680;

/// The forwarding rules of one direction, in the order in which they were given.
///
/// No two of them [conflict](Rule::conflicts_with), and the limits hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rules: Vec<Rule>,
    sockets: usize,
}

/// Why a rule was not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// A rule of the table claims the same packets.
    #[error("Forwarding configuration conflict: {} versus {}", .0.new, .0.old)]
    Conflict(Box<Conflict>),
    /// The table is full.
    #[error("Too many forwarding rules (max {MAX_RULES})")]
    TooManyRules,
    /// The rules would need too many listening sockets.
    #[error("Too many ports to listen on (max {MAX_SOCKETS})")]
    TooManySockets,
}

/// Two rules that can't stand side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The rule to be added.
    pub new: Rule,
    /// The rule that is there.
    pub old: Rule,
}

impl Table {
    /// The empty table.
    pub const fn new() -> Self {
        Self { rules: Vec::new(), sockets: 0 }
    }

    /// The rules, in order. An index into this slice stays valid: rules are only ever added.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Number of sockets that the rules ask for.
    pub fn sockets(&self) -> usize {
        self.sockets
    }

    /// Appends a rule.
    ///
    /// # Errors
    /// If it conflicts with a rule of the table, or goes beyond a limit. The table is then unchanged.
    pub fn add(&mut self, rule: Rule) -> Result<(), AddError> {
        if let Some(old) = self.rules.iter().find(|old| rule.conflicts_with(old)) {
            return Err(AddError::Conflict(Box::new(Conflict { old: old.clone(), new: rule })));
        }
        if self.rules.len() >= MAX_RULES {
            return Err(AddError::TooManyRules);
        }
        let sockets = self.sockets + rule.ports.len();
        if sockets > MAX_SOCKETS {
            return Err(AddError::TooManySockets);
        }
        self.sockets = sockets;
        self.rules.push(rule);
        Ok(())
    }

    /// First rule for a packet to `addr` and `port` that came in through `interface` (its name, where the
    /// caller knows it), and its index (SPEC §8.5). A rule with an interface never matches without one.
    pub fn lookup(
        &self,
        protocol: Protocol,
        addr: IpAddr,
        port: u16,
        interface: Option<&str>,
    ) -> Option<(usize, &Rule)> {
        self.rules.iter().enumerate().find(|(_, rule)| {
            let interface_ok = rule.listen.interface.as_deref().is_none_or(|name| interface == Some(name));
            interface_ok && rule.matches(protocol, addr, port)
        })
    }
}
