//! Port forwarding in both directions (behaviour §8).

pub(crate) mod accept;
mod announced;
pub(crate) mod bypass;
mod displaced;
pub(crate) mod listen;
pub(crate) mod scan;
mod side;
mod update;

use std::time::Duration;

use engine::forward::scan::relevant;
use engine::forward::{Budget, Enabled, Table};
use engine::timer::Instant;

use crate::forward::listen::{Listener, Opening};
use crate::forward::scan::Scanner;
use crate::pasta::netns::Opener;
pub(crate) use side::Receivers;
use side::Side;

/// Time between two scans for ports in use. A change must take effect within a second.
const INTERVAL: Duration = Duration::from_millis(950);

/// The scanners of ports in use. They are opened before the process loses access to files: without sock_diag, a scanner
/// reads /proc/net.
#[derive(Debug, Default)]
pub(crate) struct Scanners {
    /// Scans the guest's namespace, if inbound rules follow ports in use there, or later rules may do so.
    pub(crate) guest: Option<Scanner>,
    /// Scans the host's namespace, for outbound rules.
    pub(crate) host: Option<Scanner>,
}

/// The rules at the start.
pub(crate) struct Rules {
    /// The rules from the host to the guest.
    pub(crate) inbound: Table,
    /// The sockets of `inbound`. Rules that follow ports in use have no sockets yet.
    pub(crate) listeners: Vec<Listener>,
    /// The rules from the guest's loopback to the host's loopback.
    pub(crate) outbound: Table,
    /// The sockets of `outbound`.
    pub(crate) outbound_listeners: Vec<Listener>,
    /// How more sockets of `inbound` are opened. Sockets of `outbound` are opened in the same way, but with the other
    /// direction.
    pub(crate) opening: Opening,
    /// The scanners of ports that rules follow.
    pub(crate) scanners: Scanners,
    /// The address families and protocols that are available. `None`: all families and protocols for which the rules
    /// were made.
    pub(crate) restricted: Option<Enabled>,
}

/// The rules in force, and the scanners of the ports that rules follow.
#[derive(Debug)]
pub(crate) struct Forwarder {
    inbound: Side,
    outbound: Side,
    scanners: Scanners,
    next_scan: Option<Instant>,
    /// Whether payload must be examined for announced ports. Indexed by the direction of the payload.
    cares: [bool; 2],
    /// Limits scans and lookups between regular scans.
    budget: Budget,
    /// When to make a scan that the budget did not allow. Indexed by the direction of the payload that caused the scan.
    owed: [Option<Instant>; 2],
    /// Number of scans since the last one that has found a change.
    unchanged: u32,
    /// The rules have changed since the last scan.
    changed: bool,
}

impl Forwarder {
    /// Takes over the sockets of rules that do not follow ports in use.
    ///
    /// # Errors
    /// A socket can't be watched.
    pub(crate) fn new(rules: Rules, mut rx: Receivers<'_>) -> anyhow::Result<Self> {
        let inbound = Side::new(rules.inbound, rules.opening, rules.listeners, &mut rx)?;
        let outbound =
            Side::new(rules.outbound, rules.opening.outbound(), rules.outbound_listeners, &mut rx)?;
        let mut forwarder = Self {
            inbound,
            outbound,
            scanners: rules.scanners,
            next_scan: None,
            cares: [false; 2],
            budget: Budget::full(Instant::from_micros(0)),
            owed: [None; 2],
            unchanged: 0,
            changed: false,
        };
        if let Some(enabled) = rules.restricted {
            forwarder.restrict(enabled, rx);
        }
        Ok(forwarder)
    }

    /// Restricts the rules to the address families in `enabled`: the guest's namespace lacks the other family. If the
    /// sockets of the rules can't be opened again, the old sockets stay open. Then connections of the other family are
    /// reset.
    fn restrict(&mut self, enabled: Enabled, mut rx: Receivers<'_>) {
        let table = self.inbound.table().of_families(enabled);
        let left_out = self.inbound.table().rules().len() - table.rules().len();
        if left_out > 0 {
            log::warn!(
                "{left_out} forwarding rules are of an address family that the namespace lacks: left out"
            );
        }
        // The new sockets replace the same number of old sockets, so the budget does not matter.
        match self.inbound.prepare(table, usize::MAX, &rx) {
            Ok(prepared) => {
                let notes = self.inbound.commit(prepared, &mut rx);
                notes.iter().for_each(|note| log::warn!("{note}"));
            }
            Err(error) => log::warn!("Ports stay open for both address families: {error}"),
        }
    }

    /// Starts to follow the ports in use on the other side, if a rule follows ports in use. `opener` is in the guest's
    /// namespace.
    pub(crate) fn start(&mut self, opener: &Opener, now: Instant, rx: Receivers<'_>) {
        self.outbound.open_there(opener.clone());
        self.follow_anew(now, rx);
    }

    /// Adapts the scans to changed rules.
    fn follow_anew(&mut self, now: Instant, rx: Receivers<'_>) {
        self.set_cares();
        if self.inbound.follows_any() || self.outbound.follows_any() {
            self.changed = true;
            self.focus();
            self.scan(now, rx);
        } else {
            self.next_scan = None;
            self.owed = [None; 2];
        }
    }

    /// Returns the time at which [`Forwarder::on_deadline`] must be called next.
    pub(crate) fn next_scan(&self) -> Option<Instant> {
        self.owed.into_iter().chain([self.next_scan]).flatten().min()
    }

    /// Makes the scans that are due.
    pub(crate) fn on_deadline(&mut self, now: Instant, mut rx: Receivers<'_>) {
        self.catch_up(now, &mut rx);
        if self.next_scan.is_some_and(|due| due <= now) {
            self.scan(now, rx);
        }
    }

    /// Scans for ports in use. Opens and closes the listeners that follow these ports.
    fn scan(&mut self, now: Instant, mut rx: Receivers<'_>) {
        self.next_scan = Some(now + INTERVAL);
        let mut changed = std::mem::take(&mut self.changed);
        for side in [&mut self.inbound, &mut self.outbound] {
            changed |= side.forget_closed(rx.udp);
        }
        for (side, scanner) in
            [(&self.inbound, &mut self.scanners.guest), (&self.outbound, &mut self.scanners.host)]
        {
            if let Some(scanner) = scanner.as_mut().filter(|_| side.follows_any()) {
                changed |= scanner.scan();
            }
        }
        self.unchanged = if changed { 0 } else { self.unchanged.wrapping_add(1) };
        if binds_again(self.unchanged) {
            self.follow(&mut rx);
            self.focus();
        }
    }

    /// Limits each scanner to the ports that matter. These ports depend on the ports that this program holds.
    fn focus(&mut self) {
        if let Some(guest) = &mut self.scanners.guest {
            guest.look_for(relevant(self.inbound.table(), &self.outbound.held()));
        }
        if let Some(host) = &mut self.scanners.host {
            host.look_for(relevant(self.outbound.table(), &self.inbound.held()));
        }
    }

    /// Updates both sides. A port on which this program listens is not a service of its namespace: if a rule followed
    /// the port, connections would be forwarded in a loop. The second side ignores the ports that the first side held
    /// at the scan, and the ports that the first side holds now.
    fn follow(&mut self, rx: &mut Receivers<'_>) {
        let mut ours = self.inbound.held();
        if let Some(guest) = &self.scanners.guest {
            self.inbound.follow(guest.in_use(), &self.outbound.held(), rx);
        }
        if let Some(host) = &self.scanners.host {
            ours.include(&self.inbound.held());
            side::endpoint_ports(rx.udp).for_each(|port| ours.udp.insert(port));
            self.outbound.follow(host.in_use(), &ours, rx);
        }
    }
}

/// Whether ports that could not be bound are tried again after this number of scans without a change: at a change, after 1, 3,
/// 7, 15, and then each 16.
const fn binds_again(scans: u32) -> bool {
    let next = scans.wrapping_add(1);
    next.is_power_of_two() || next.is_multiple_of(16)
}

#[cfg(test)]
mod tests;
