//! Forwarding rules at work, in both directions (SPEC §8).

mod side;
mod update;
mod way;

use std::time::Duration;

use engine::forward::spec::Direction;
use engine::forward::{Protocol, Table};
use engine::timer::Instant;

use crate::listen::{Listener, Opening};
use crate::netns::Opener;
use crate::scan::Scanner;
pub(crate) use side::Receivers;
use side::Side;

/// How often to look for ports in use: what changes is to have effect within a second.
const INTERVAL: Duration = Duration::from_millis(950);
/// Scans without a change after which ports are tried again that could not be had.
const RETRY: u32 = 16;

/// The rules to start with.
pub(crate) struct Rules {
    /// From the host to the guest.
    pub(crate) inbound: Table,
    /// The sockets of `inbound`, but for rules that follow.
    pub(crate) listeners: Vec<Listener>,
    /// From the guest's loopback to the host's.
    pub(crate) outbound: Table,
    /// The sockets of `outbound`.
    pub(crate) outbound_listeners: Vec<Listener>,
    /// How more of them are opened.
    pub(crate) opening: Opening,
}

/// The rules in force, and what they follow.
#[derive(Debug)]
pub(crate) struct Forwarder {
    inbound: Side,
    outbound: Side,
    /// Looks into the guest's namespace.
    guest: Option<Scanner>,
    next_scan: Option<Instant>,
    until_retry: u32,
    /// The rules have changed since the last scan.
    changed: bool,
}

impl Forwarder {
    /// Takes over the sockets of rules that follow nothing.
    ///
    /// # Errors
    /// A socket can't be watched.
    pub(crate) fn new(rules: Rules, mut rx: Receivers<'_>) -> anyhow::Result<Self> {
        let inbound = Side::new(Direction::Inbound, rules.inbound, rules.opening, rules.listeners, &mut rx)?;
        let outbound =
            Side::new(Direction::Outbound, rules.outbound, rules.opening, rules.outbound_listeners, &mut rx)?;
        Ok(Self { inbound, outbound, guest: None, next_scan: None, until_retry: RETRY, changed: false })
    }

    /// Starts to follow what is in use on the other side, if a rule says so, or one may come to (`changeable`).
    /// `opener` is in the guest's namespace.
    ///
    /// # Errors
    /// The opener is gone.
    pub(crate) fn start(
        &mut self,
        opener: &Opener,
        changeable: bool,
        now: Instant,
        rx: Receivers<'_>,
    ) -> std::io::Result<()> {
        self.outbound.open_there(opener.clone());
        let (tcp, udp) = (self.inbound.follows(Protocol::Tcp), self.inbound.follows(Protocol::Udp));
        if tcp || udp || changeable {
            self.guest = Some(opener.call(move || Scanner::open(udp || changeable))?);
            self.follow_anew(now, rx);
        }
        Ok(())
    }

    /// Looks for what the rules follow now, or no more, if they follow nothing.
    fn follow_anew(&mut self, now: Instant, rx: Receivers<'_>) {
        if self.inbound.follows(Protocol::Tcp) || self.inbound.follows(Protocol::Udp) {
            self.changed = true;
            self.scan(now, rx);
        } else {
            self.next_scan = None;
        }
    }

    /// When to call [`Forwarder::scan`] next.
    pub(crate) fn next_scan(&self) -> Option<Instant> {
        self.next_scan
    }

    /// Looks for ports in use, and opens and closes what follows them.
    pub(crate) fn scan(&mut self, now: Instant, mut rx: Receivers<'_>) {
        let Some(guest) = &mut self.guest else { return };
        self.next_scan = Some(now + INTERVAL);
        let changed = guest.scan() | std::mem::take(&mut self.changed);
        self.until_retry = self.until_retry.saturating_sub(1);
        if changed || self.until_retry == 0 && self.inbound.lacks_any() {
            self.until_retry = RETRY;
            // What we listen on there is nobody's service: it leads back here.
            let ours = self.outbound.held();
            self.inbound.follow(guest.in_use(), &ours, &mut rx);
        }
    }
}

#[cfg(test)]
mod tests;
