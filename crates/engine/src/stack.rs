//! The state of one guest ([`Stack`]), and the rounds of the event loop that drive it ([`Round`]).

mod footprint;
mod fragments;
mod listing;
mod membership;
mod refusal;
mod replacement;
mod round;

use alloc::vec::Vec;

pub use footprint::Footprint;
pub use listing::Prospect;
pub use round::Round;

use crate::{
    addr::{Guest, Settings},
    context::World,
    dns::{self, Dns},
    flow::FlowId,
    guard::Guard,
    icmp::Ping,
    local::Advertiser,
    membership::Memberships,
    rate_limit::RateLimit,
    reassembly::{self, Reassembly},
    share::{Notice, Share},
    tcp::Tcp,
    timer::{Instant, Timers},
    udp::{self, Udp},
};

/// Random numbers from the kernel, for keyed hashes and for values that an attacker must not guess.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// Key of the flow tables' hash.
    pub hash_key: [u8; 16],
    /// Secret of TCP's initial sequence numbers (RFC 6528).
    pub isn_secret: [u8; 16],
    /// Secret of the IDs in DNS queries (RFC 5452 §9.2).
    pub query_secret: [u8; 16],
    /// Seed for the times of unsolicited router advertisements.
    pub advertisement: u32,
}

/// Frames of the guest that were dropped since the start, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameDrops {
    /// Malformed frames, of any protocol.
    pub malformed: u64,
    /// Fragments that were invalid or contradicted each other, and datagrams whose fragments expired (behaviour §4.7).
    /// Each such datagram counts once.
    pub fragments: u64,
    /// Frames of a protocol that is not forwarded, or is disabled.
    pub unsupported: u64,
    /// Frames with a wrong checksum.
    pub checksums: u64,
    /// Membership reports for groups beyond the limit (`--multicast`).
    pub groups: u64,
}

impl FrameDrops {
    /// The sum of all counts.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.malformed + self.fragments + self.unsupported + self.checksums + self.groups
    }
}

/// Limits on the state that a guest or remotes can create.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of TCP connections.
    pub connections: usize,
    /// Maximum memory of the receive queues of all TCP connections together, in bytes.
    pub queue_memory: usize,
    /// Limits of UDP sockets and flows.
    pub udp: udp::Limits,
    /// Limits of queries to the host's resolvers.
    pub dns: dns::Limits,
    /// Limit of sockets for pings.
    pub pings: Share,
    /// Limits of the datagrams that wait for fragments.
    pub fragments: reassembly::Limits,
}

/// All state of one guest: its addresses, its flows and their deadlines.
pub struct Stack<W: World> {
    settings: Settings,
    guest: Guest,
    guard: Guard,
    rate_limit: RateLimit,
    timers: Timers<FlowId>,
    flows: Protocols<W>,
    reassembly: Reassembly,
    limits: Limits,
    refusals: refusal::Limit,
    advertiser: Advertiser,
    memberships: Memberships,
    counters: FrameDrops,
    wrong_checksums: Notice,
    /// Buffer for frames that have to be copied.
    copy: Vec<u8>,
    /// Whether the link was full, and has not reported room since.
    link_full: bool,
}

/// All flows, by protocol.
struct Protocols<W: World> {
    tcp: Tcp<W>,
    udp: Udp<W>,
    dns: Dns<W>,
    ping: Ping<W>,
}

impl<W: World> Stack<W> {
    /// A stack without flows.
    #[must_use]
    pub fn new(settings: Settings, guest: Guest, limits: Limits, seeds: Seeds, now: Instant) -> Self {
        Self {
            advertiser: Advertiser::new(&settings, now, seeds.advertisement),
            settings,
            guest,
            guard: Guard::default(),
            rate_limit: RateLimit::default(),
            timers: Timers::default(),
            flows: Protocols {
                tcp: Tcp::new(limits.connections, limits.queue_memory, seeds.hash_key, seeds.isn_secret),
                udp: Udp::new(limits.udp, seeds.hash_key),
                dns: Dns::new(limits.dns, seeds.hash_key, seeds.query_secret),
                ping: Ping::new(limits.pings, seeds.hash_key),
            },
            reassembly: Reassembly::new(limits.fragments),
            limits,
            refusals: refusal::Limit::new(now),
            memberships: Memberships::default(),
            counters: FrameDrops::default(),
            wrong_checksums: Notice::default(),
            copy: Vec::with_capacity(wire::frame::MAX_LEN),
            link_full: false,
        }
    }

    /// The guard, which decides which flows the guest may begin.
    #[must_use]
    pub const fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The guard, mutable: to judge a flow that bypasses the link, or to replace the guard.
    pub const fn guard_mut(&mut self) -> &mut Guard {
        &mut self.guard
    }

    /// The rate limits of the guest. They can be replaced before the first round.
    pub const fn rate_limit_mut(&mut self) -> &mut RateLimit {
        &mut self.rate_limit
    }

    /// Addressing and services.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Addressing and services, mutable: changes affect new flows and answers of the local services. A family can't be
    /// added.
    pub const fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// What is known about the guest.
    #[must_use]
    pub const fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Frames that were dropped.
    #[must_use]
    pub const fn counters(&self) -> &FrameDrops {
        &self.counters
    }

    /// TCP connections.
    #[must_use]
    pub const fn tcp(&self) -> &Tcp<W> {
        &self.flows.tcp
    }

    /// UDP sockets and flows.
    #[must_use]
    pub const fn udp(&self) -> &Udp<W> {
        &self.flows.udp
    }

    /// UDP sockets and flows, mutable, to add listeners.
    pub const fn udp_mut(&mut self) -> &mut Udp<W> {
        &mut self.flows.udp
    }

    /// Queries to the host's resolvers.
    #[must_use]
    pub const fn dns(&self) -> &Dns<W> {
        &self.flows.dns
    }

    /// Pings.
    #[must_use]
    pub const fn ping(&self) -> &Ping<W> {
        &self.flows.ping
    }

    /// Datagrams of the guest that wait for fragments.
    #[must_use]
    pub const fn fragments(&self) -> &Reassembly {
        &self.reassembly
    }

    /// Deadlines of all flows. Each flow has at most one.
    #[must_use]
    pub const fn timers(&self) -> &Timers<FlowId> {
        &self.timers
    }

    /// The time at which the next round must be finished, even if there is no event before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = [
            self.timers.next(),
            self.advertiser.next(),
            self.reassembly.next(),
            self.guest.next_question(),
            self.memberships.next(),
            self.rate_limit.next(),
        ];
        own.into_iter().flatten().min()
    }

    /// Reports the end of all flows, because the program ends. No round may follow.
    pub fn report_exit(&mut self) {
        self.flows.tcp.report_exit();
        self.flows.udp.report_exit();
        self.flows.ping.report_exit();
        self.flows.dns.report_exit();
    }

    /// A round of the event loop, which begins at `now`.
    pub const fn round<'a>(
        &'a mut self,
        now: Instant,
        host: &'a mut W::Host,
        link: &'a mut W::Link,
    ) -> Round<'a, W> {
        Round { stack: self, now, host, link }
    }
}

#[cfg(test)]
mod tests;
