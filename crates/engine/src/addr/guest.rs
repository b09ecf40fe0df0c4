//! What is known about the guest: all its addresses, its main addresses, and the hardware addresses of its network.

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use wire::ethernet::Mac;

use super::{
    Settings,
    senders::Senders,
    set::{AddressSet, Basis, Kind},
};
use crate::timer::Instant;

/// Maximum number of solicitations to check whether the guest still has an address, and the time between two of them
/// (RFC 4861 §10: MAX_UNICAST_SOLICIT, RETRANS_TIMER).
const MAX_SOLICITATIONS: u8 = 3;
const RETRANSMIT_AFTER: Duration = Duration::from_secs(1);

/// What is known about the guest: some facts are given at the start, the others come from the guest's frames
/// (behaviour §5.4).
///
/// Inbound flows go to the *main* address of a kind, unless the address that the client wrote to is also the guest's.
/// The main address is the assigned address, if the guest has this address, else the first address that the guest has.
/// The source address of an IP packet does not prove that the guest has this address: the guest may be a router.
#[derive(Clone, Debug)]
pub struct Guest {
    addresses: AddressSet,
    /// One main address for each [`Kind`]. The fields below are indexed by [`Kind`] too.
    main: [Option<IpAddr>; 3],
    /// The address that the guest was assigned.
    assigned: [Option<IpAddr>; 3],
    /// Whether the assigned address stays the main address. Then claims of the guest do not change it (`-a`, R-49).
    pinned: [bool; 3],
    /// Whether the guest has shown that it does not have the assigned address.
    refused: [bool; 3],
    /// The source address of the guest's last IP packet. It is used while no address of the guest is confirmed.
    seen: [Option<IpAddr>; 3],
    /// Whether the set has more than one address of this kind.
    several: [bool; 3],
    checks: [Option<Check>; 3],
    /// The hardware address for IP addresses whose own hardware address is not known.
    mac: Mac,
    senders: Senders,
    last: Sighting,
    /// The guest has disconnected or connected, and no frame has arrived since.
    away: bool,
}

/// The addresses in a frame from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    mac: Mac,
    /// The IP source address of the frame.
    source: Option<IpAddr>,
    at: Instant,
}

/// A check whether the guest still has an address.
#[derive(Clone, Copy, Debug)]
struct Check {
    address: IpAddr,
    asked: u8,
    due: Instant,
}

impl Guest {
    /// The state before any frame: the guest is assumed to have the assigned addresses. `mac` is the guest's hardware
    /// address if it is known (pasta).
    #[must_use]
    pub fn new(settings: &Settings, mac: Option<Mac>) -> Self {
        let (mut assigned, mut pinned) = ([None; 3], [false; 3]);
        let v4 = settings.v4.as_ref().map(|v4| (IpAddr::V4(v4.assigned), v4.pinned));
        let v6 = settings.v6.as_ref().and_then(|v6| Some((IpAddr::V6(v6.assigned?), v6.pinned)));
        for (address, is_pinned) in v4.into_iter().chain(v6) {
            let kind = Kind::of(address) as usize;
            (assigned[kind], pinned[kind]) = (Some(address), is_pinned);
        }
        let mac = mac.unwrap_or(Mac::BROADCAST);
        Self {
            addresses: AddressSet::default(),
            main: assigned,
            assigned,
            pinned,
            refused: [false; 3],
            seen: [None; 3],
            several: [false; 3],
            checks: [None; 3],
            mac,
            senders: Senders::default(),
            last: Sighting { mac: Mac::BROADCAST, source: None, at: Instant::default() },
            away: false,
        }
    }

    /// Whether no guest is connected, or the one that is connected has not sent a frame yet. Frames with another
    /// destination than its own hardware address would be lost.
    pub(crate) const fn is_away(&self) -> bool {
        self.away
    }

    /// The confirmed addresses of the guest.
    #[must_use]
    pub const fn addresses(&self) -> &AddressSet {
        &self.addresses
    }

    /// The main IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Option<Ipv4Addr> {
        match self.main[Kind::V4 as usize] {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        }
    }

    /// The main IPv6 address that is not link-local.
    #[must_use]
    pub fn v6(&self) -> Option<Ipv6Addr> {
        self.main_v6(Kind::V6)
    }

    /// The main link-local IPv6 address.
    #[must_use]
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        self.main_v6(Kind::LinkLocal)
    }

    fn main_v6(&self, kind: Kind) -> Option<Ipv6Addr> {
        match self.main[kind as usize] {
            Some(IpAddr::V6(address)) => Some(address),
            _ => None,
        }
    }

    /// Whether `address` is the guest's, or was assigned to it.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        let kind = Kind::of(address) as usize;
        let assigned = self.assigned[kind].filter(|_| !self.refused[kind]);
        [assigned, self.main[kind]].contains(&Some(address)) || self.addresses.contains(address)
    }

    /// Whether the guest has several addresses of the family of `address`, not counting link-local addresses. If so,
    /// it matters which address is used.
    #[must_use]
    pub fn has_several(&self, address: IpAddr) -> bool {
        self.several[if address.is_ipv4() { Kind::V4 } else { Kind::V6 } as usize]
    }

    /// Whether the main address of the kind of `address` is pinned.
    pub(crate) fn is_pinned(&self, address: IpAddr) -> bool {
        self.pinned[Kind::of(address) as usize]
    }

    /// The hardware address that has `address`: the guest's own, or the hardware address of a host that the guest
    /// routes for.
    #[must_use]
    pub fn mac_of(&self, address: IpAddr) -> Mac {
        let known = self.addresses.get(address).and_then(|entry| entry.mac);
        known.or_else(|| self.senders.get(address)).unwrap_or(self.mac)
    }

    /// Notes that the address was set on the guest's interface.
    pub fn give(&mut self, address: IpAddr) {
        let mac = Some(self.mac).filter(|mac| mac.is_unicast());
        self.addresses.insert(address, mac, Basis::Given, self.last.at);
        self.refresh();
    }

    /// The guest has disconnected.
    pub(crate) const fn on_link_down(&mut self) {
        self.away = true;
        // What the next frame shows is learned, even if it has the same source as the last one.
        self.last.mac = Mac::BROADCAST;
    }

    /// The link has a new client, which may be another machine. This function forgets what was learned from the
    /// previous client.
    pub(crate) fn on_link_up(&mut self) {
        self.on_link_down();
        let learned: alloc::vec::Vec<IpAddr> = self
            .addresses
            .iter()
            .filter(|entry| entry.basis < Basis::Given)
            .map(|entry| entry.address)
            .collect();
        if learned.is_empty() && self.seen == [None; 3] {
            return;
        }
        for address in learned {
            self.addresses.remove(address);
        }
        (self.refused, self.seen, self.checks) = ([false; 3], [None; 3], [None; 3]);
        (self.mac, self.senders) = (Mac::BROADCAST, Senders::default());
        self.refresh();
    }

    /// Learns from the Ethernet source of a frame and its IP source (none for ARP). Must be called for each frame,
    /// before the frame is handled.
    pub fn learn(&mut self, settings: &Settings, mac: Mac, source: Option<IpAddr>, now: Instant) {
        let sighting = Sighting { mac, source, at: now };
        let last = core::mem::replace(&mut self.last, sighting);
        if (last.mac, last.source) == (mac, source) || !mac.is_unicast() {
            return;
        }
        self.away = false;
        if self.main_mac().is_none() {
            self.mac = mac;
        }
        let Some(source) = source.filter(|source| settings.valid_guest_source(*source)) else { return };
        if let Some(entry) = self.addresses.get(source) {
            if entry.mac != Some(mac) {
                self.addresses.moved(source, mac);
                self.refresh();
            }
            return;
        }
        if mac == self.mac {
            self.senders.forget(source);
        } else {
            self.senders.note(source, mac);
        }
        let kind = Kind::of(source);
        if self.addresses.first(kind).is_none() && !settings.is_ours(source) {
            self.seen[kind as usize] = Some(source);
            self.refresh();
        }
    }

    /// Notes that the guest has shown by ARP or Neighbour Discovery that a host of its network has `address`. `mac` is
    /// the hardware address of this host. None: the host is the sender of the present frame.
    pub fn shows(&mut self, settings: &Settings, address: IpAddr, mac: Option<Mac>) {
        let mac = mac.unwrap_or(self.last.mac);
        if !settings.valid_guest_source(address) || settings.is_ours(address) || !mac.is_unicast() {
            return;
        }
        let kind = Kind::of(address) as usize;
        let assigned = self.assigned[kind] == Some(address);
        let basis = if assigned { Basis::Assigned } else { Basis::Claimed };
        let new = self.addresses.insert(address, Some(mac), basis, self.last.at);
        self.senders.forget(address);
        self.refused[kind] &= !assigned;
        if self.checks[kind].is_some_and(|check| check.address == address) {
            self.checks[kind] = None;
        }
        if new {
            // The new address may replace the address that the guest had.
            let main = self.main[kind].filter(|main| *main != address && self.addresses.contains(*main));
            if let Some(main) = main.filter(|_| !self.pinned[kind]) {
                self.check(settings, main);
            }
            self.refresh();
        } else if self.main[kind] == Some(address) {
            self.refresh();
        }
    }

    /// The Ethernet source of the present frame: the hardware address of its sender.
    pub(crate) const fn present_mac(&self) -> Mac {
        self.last.mac
    }

    /// Notes that the sender of the present frame has a lease of the assigned `address`.
    pub(crate) fn leases(&mut self, address: IpAddr) {
        let mac = Some(self.last.mac).filter(|mac| mac.is_unicast());
        self.addresses.insert(address, mac, Basis::Assigned, self.last.at);
        self.senders.forget(address);
        self.refused[Kind::of(address) as usize] = false;
        self.refresh();
    }

    /// Notes that the sender of the present frame has declined or released its lease of `address`.
    pub(crate) fn gives_up(&mut self, address: IpAddr) {
        let held_by = self.addresses.get(address).and_then(|entry| entry.mac);
        if held_by.is_none_or(|mac| mac == self.last.mac) {
            self.lose(address);
        }
    }

    /// Notes that the guest asks who has `address`, although the guest itself has it: the guest may have given up the
    /// address. `mac` has the meaning that it has in [`Guest::shows`].
    pub(crate) fn asks_for_its_own(&mut self, settings: &Settings, address: IpAddr, mac: Option<Mac>) {
        let mac = mac.unwrap_or(self.last.mac);
        if self.addresses.get(address).is_some_and(|entry| entry.mac == Some(mac)) {
            self.check(settings, address);
        }
    }

    /// Notes that the guest has lost an address.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.lose(address);
    }

    /// Starts a check whether the guest has `address`, unless another address of the same kind is being checked.
    fn check(&mut self, settings: &Settings, address: IpAddr) {
        let can_ask = address.is_ipv4() || settings.services.ndp;
        let check = &mut self.checks[Kind::of(address) as usize];
        if check.is_none() && can_ask {
            *check = Some(Check { address, asked: 0, due: self.last.at });
        }
    }

    /// The time at which [`Guest::due_question`] must be called.
    pub(crate) fn next_question(&self) -> Option<Instant> {
        self.checks.iter().flatten().map(|check| check.due).min()
    }

    /// Returns an address for which a solicitation must be sent to the guest now. Removes an address for which the
    /// guest did not answer. Must be called until it returns none.
    pub(crate) fn due_question(&mut self, now: Instant) -> Option<IpAddr> {
        for kind in Kind::ALL {
            let Some(check) = self.checks[kind as usize].as_mut().filter(|check| check.due <= now) else {
                continue;
            };
            let address = check.address;
            if check.asked < MAX_SOLICITATIONS {
                (check.asked, check.due) = (check.asked + 1, now + RETRANSMIT_AFTER);
                return Some(address);
            }
            self.checks[kind as usize] = None;
            log::debug!("the guest no longer answers for {address}");
            self.lose(address);
        }
        None
    }

    fn lose(&mut self, address: IpAddr) {
        let kind = Kind::of(address) as usize;
        self.addresses.remove(address);
        self.refused[kind] |= self.assigned[kind] == Some(address);
        self.refresh();
    }

    /// Hardware address of the host that has a main address. The IPv4 main address is tried first.
    fn main_mac(&self) -> Option<Mac> {
        self.main.iter().flatten().find_map(|main| self.addresses.get(*main)?.mac)
    }

    /// Must be called when the addresses have changed.
    fn refresh(&mut self) {
        for kind in Kind::ALL {
            let index = kind as usize;
            let main = self.choose(kind);
            let old = core::mem::replace(&mut self.main[index], main);
            if old != main {
                match main {
                    Some(main) => log::info!("The guest's main {} address is now {main}", kind.name()),
                    None => log::info!("The guest no longer has an {} address", kind.name()),
                }
            }
            self.several[index] = self.addresses.of_kind(kind).nth(1).is_some();
        }
        if let Some(mac) = self.main_mac() {
            self.mac = mac;
        }
    }

    fn choose(&self, kind: Kind) -> Option<IpAddr> {
        let index = kind as usize;
        let assigned = self.assigned[index];
        if self.pinned[index] {
            return assigned;
        }
        let taken = assigned.filter(|assigned| self.addresses.contains(*assigned));
        let first = || self.addresses.first(kind).map(|entry| entry.address);
        let assumed = || assigned.filter(|_| !self.refused[index]);
        taken.or_else(first).or(self.seen[index]).or_else(assumed)
    }
}

#[cfg(test)]
mod tests;
