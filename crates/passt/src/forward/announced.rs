//! Announced ports: a payload may announce a port, which must be forwarded before the peer can connect to it
//! (docs/design/port-scan.md).

use std::net::IpAddr;

use engine::forward::spec::Direction;
use engine::forward::{Budget, Question, announce};
use engine::timer::Instant;

use super::{Forwarder, INTERVAL, Receivers};
use crate::forward::scan::Scanner;

impl Forwarder {
    /// Whether payload in this direction must be examined. True if rules follow the ports in use in the namespace of
    /// the payload's sender.
    pub(crate) const fn cares(&self, direction: Direction) -> bool {
        self.cares[direction as usize]
    }

    /// Updates `cares`. Must be called when the rules have changed.
    pub(super) fn set_cares(&mut self) {
        self.cares[Direction::Outbound as usize] =
            self.scanners.guest.is_some() && self.inbound.follows_any();
        self.cares[Direction::Inbound as usize] = self.scanners.host.is_some() && self.outbound.follows_any();
    }

    /// Whether the budget allows peeking at the next payload of a socket. A peek is a system call.
    pub(crate) fn may_peek(&mut self, direction: Direction, now: Instant) -> bool {
        self.cares(direction) && self.budget.spend(Question::Peek, Budget::LAST_RESERVE, now)
    }

    /// Must be called before payload from `source` is sent in this direction. The payload may announce a port that has
    /// come into use since the last scan. Such a port is found now, as far as the budget allows.
    pub(crate) fn before_payload(
        &mut self,
        direction: Direction,
        source: IpAddr,
        payload: &[u8],
        now: Instant,
        mut rx: Receivers<'_>,
    ) {
        if !announce::LENGTHS.contains(&payload.len()) || !self.cares(direction) {
            return;
        }
        if self.budget.spend(Question::Scan, Budget::RESERVE, now) {
            // A scan that finds a change does not use the budget: a program may announce many ports on which it
            // listens.
            if self.look(direction, &mut rx) {
                self.budget.refund(Question::Scan);
            }
            return;
        }
        // The scan happens later. It may still be in time for a later payload or another attempt of the peer.
        let due = self.budget.affordable(Question::Scan, Budget::RESERVE).min(now + INTERVAL);
        self.owed[direction as usize].get_or_insert(due);
        for port in announce::ports(payload) {
            if !self.budget.spend(Question::Lookup, 0, now) {
                break;
            }
            if self.scanner(direction).is_some_and(|scanner| scanner.has_opened(source, port)) {
                self.look(direction, &mut rx);
                break;
            }
        }
    }

    /// Makes the scans that the budget did not allow earlier.
    pub(super) fn catch_up(&mut self, now: Instant, rx: &mut Receivers<'_>) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            if self.owed[direction as usize].take_if(|due| *due <= now).is_some() && self.cares(direction) {
                self.budget.spend(Question::Scan, 0, now);
                self.look(direction, rx);
            }
        }
    }

    /// Scans the namespace from which payload of this direction comes. Returns true if the ports in use have changed.
    fn look(&mut self, direction: Direction, rx: &mut Receivers<'_>) -> bool {
        let changed = self.scanner(direction).is_some_and(Scanner::scan);
        if changed {
            self.follow(rx);
            self.focus();
        }
        changed
    }

    /// The scanner of the namespace from which payload of this direction comes.
    const fn scanner(&mut self, direction: Direction) -> Option<&mut Scanner> {
        match direction {
            Direction::Outbound => self.scanners.guest.as_mut(),
            Direction::Inbound => self.scanners.host.as_mut(),
        }
    }
}
