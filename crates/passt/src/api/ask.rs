//! The values that the API thread and the thread that handles packets exchange.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engine::addr::Settings;
use engine::drops::Drops;
use engine::flow::{FlowId, Protocol};
use engine::listing::{Detail, Listed, Table};
use engine::names::Known;
use engine::policy::{Name, Policy};
use engine::stack::{FrameDrops, Prospect};
use engine::timer::Instant;
use engine::{splice, tcp};
use wire::ethernet::Mac;

use super::Limits;
use super::filter::Filter;
use crate::budgets::Budgets;
use crate::link::live::Live;
use control::edit::Change;
use control::message::Announced;

/// Facts about the program, for `config`.
#[derive(Clone, Debug)]
pub(crate) struct About {
    /// `passt` or `pasta`.
    pub(crate) program: &'static str,
    /// The kind of the link.
    pub(crate) link: &'static str,
    /// What it serves: the namespace, the command, or the socket of a virtual machine.
    pub(crate) guest: String,
    /// The process ID, as the caller of the program sees it.
    pub(crate) pid: u32,
    /// The limits of this thread.
    pub(crate) limits: Limits,
}

/// A question to the thread that handles packets. It answers one in each round.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The addressing and the limits.
    Settings,
    /// All counts.
    Counts,
    /// The flows in [`SLOTS`] slots from a place on.
    Flows(Place, Arc<Filter>, Detail),
    /// Add what the host knows about sockets to these flows, at most [`SLOTS`]. They were listed with
    /// [`Detail::Known`].
    Complete(Vec<Listed>),
    /// End the flow with this ID and number.
    End(FlowId, u64),
    /// The forwarding rules.
    Rules,
    /// Change the forwarding rules.
    Change {
        /// All present rules are deleted before.
        replaces: bool,
        /// The changes, in order.
        changes: Vec<Change>,
    },
    /// The rules about destinations, from this index on.
    Policy(usize),
    /// Replace the rules about destinations.
    Replace(Box<Policy>),
    /// What would happen to a new flow. Without the guest's address, its main address counts. With a name, the answer is
    /// as if the guest had been given the remote address for it.
    Why { protocol: Protocol, guest: Option<IpAddr>, remote: SocketAddr, name: Option<Name> },
    /// The names of addresses in [`NAMES`] slots from this one on.
    Names(u32),
    /// The neighbours of the host.
    Neighbours,
    /// Begin a capture, or end it.
    Capture(Option<Box<Live>>),
}

/// Number of slots in a piece of a list of flows.
pub(crate) const SLOTS: u32 = 256;
/// Number of slots in a piece of the list of names. Each has up to 64 names.
pub(crate) const NAMES: u32 = 32;
/// Number of rules in a piece of the list of rules.
pub(crate) const RULES: usize = 256;

/// The answer to an [`Ask`].
#[derive(Debug)]
pub(crate) enum Answer {
    /// To [`Ask::Settings`].
    Settings(Box<Present>),
    /// To [`Ask::Counts`].
    Counts(Box<Counts>),
    /// To [`Ask::Flows`]: the flows, and the next place, if there are more slots.
    Flows { now: Instant, flows: Vec<Listed>, next: Option<Place> },
    /// To [`Ask::Complete`].
    Complete { now: Instant, flows: Vec<Listed> },
    /// To [`Ask::End`]: whether the flow existed.
    Ended(bool),
    /// To [`Ask::Rules`].
    Rules(Vec<Announced>),
    /// To [`Ask::Change`]: the tables, or the reason why nothing has changed.
    Changed(Result<Box<Changed>, String>),
    /// To [`Ask::Policy`].
    Policy(PolicyPart),
    /// To [`Ask::Replace`]: a remark, or the reason why nothing has changed.
    Replaced(Result<String, String>),
    /// To [`Ask::Why`].
    Why(Result<Box<Route>, String>),
    /// To [`Ask::Names`]: addresses with their names, and the next slot, if there are more slots.
    Names(Vec<Known>, Option<u32>),
    /// To [`Ask::Neighbours`].
    Neighbours(Vec<(IpAddr, Mac)>),
    /// To [`Ask::Capture`]: whether there is a link.
    Capture(bool),
}

/// A place in the list of all flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The table.
    pub(crate) table: Listing,
    /// The slot.
    pub(crate) slot: u32,
}

/// The tables of flows, in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Listing {
    /// A table of the engine's stack.
    Stack(Table),
    /// TCP connections that bypass the link.
    Bypass,
}

impl Listing {
    /// All tables, with their names in places.
    pub(crate) const ALL: [(&'static str, Self); 6] = [
        ("tcp", Self::Stack(Table::Tcp)),
        ("udp", Self::Stack(Table::Udp)),
        ("udp-bypass", Self::Stack(Table::UdpBypass)),
        ("dns", Self::Stack(Table::Dns)),
        ("ping", Self::Stack(Table::Ping)),
        ("tcp-bypass", Self::Bypass),
    ];
}

impl Place {
    /// The place of the first flow.
    pub(crate) const FIRST: Self = Self { table: Listing::Stack(Table::Tcp), slot: 0 };

    /// The place after the last slot of the table. `None`: it was the last table.
    pub(crate) fn next_table(self) -> Option<Self> {
        let at = Listing::ALL.iter().position(|(_, table)| *table == self.table)?;
        Listing::ALL.get(at + 1).map(|(_, table)| Self { table: *table, slot: 0 })
    }

    /// The place as text, which clients send back.
    pub(crate) fn to_text(self) -> String {
        let name = Listing::ALL.iter().find(|(_, table)| *table == self.table).map_or("", |(name, _)| name);
        format!("{name}.{}", self.slot)
    }

    /// The place of [`Place::to_text`].
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let (name, slot) = text.split_once('.')?;
        let (_, table) = Listing::ALL.iter().find(|(known, _)| *known == name)?;
        Some(Self { table: *table, slot: slot.parse().ok()? })
    }
}

/// The present addressing.
#[derive(Debug)]
pub(crate) struct Present {
    /// Addresses and services.
    pub(crate) settings: Settings,
    /// The confirmed addresses of the guest.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether there are rules about destinations, and whether they are only an audit.
    pub(crate) policy: Option<bool>,
}

/// A change of the forwarding rules.
#[derive(Debug)]
pub(crate) struct Changed {
    /// What the client should know about it.
    pub(crate) remark: String,
    /// The rules before.
    pub(crate) previous: Vec<Announced>,
    /// The rules in force now.
    pub(crate) tables: Vec<Announced>,
}

/// Part of the rules about destinations.
#[derive(Debug)]
pub(crate) struct PolicyPart {
    /// The rules, as text. Empty if there are none.
    pub(crate) rules: Vec<String>,
    /// Number of all rules. `None`: there is no policy.
    pub(crate) all: Option<usize>,
    /// The decision about what no rule matches.
    pub(crate) default: String,
    /// Whether the rules are only an audit.
    pub(crate) audit: bool,
}

/// What would happen to a new flow.
#[derive(Debug)]
pub(crate) struct Route {
    /// The guest's address.
    pub(crate) guest: IpAddr,
    /// The engine's view.
    pub(crate) prospect: Prospect,
    /// The host's source address, if it is known.
    pub(crate) source: Option<IpAddr>,
    /// What happened last to a flow of the guest to this destination, if it is known.
    pub(crate) last: Option<Outcome>,
}

/// What has happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Time since then.
    pub(crate) ago: Duration,
    /// The reason of the failure, as text. `None`: it did not fail.
    pub(crate) reason: Option<&'static str>,
    /// The error, if there is one.
    pub(crate) errno: Option<i32>,
}

/// All counts.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    /// Time since the start of the event loop.
    pub(crate) uptime: Duration,
    /// Frames from the guest, to the guest, and lost.
    pub(crate) frames: [u64; 3],
    /// Frames of the guest that were dropped.
    pub(crate) useless: FrameDrops,
    /// TCP through the link: present number, counts.
    pub(crate) tcp: (usize, tcp::Counters),
    /// Accepted connections that were refused, since there was no file or the guard refused them.
    pub(crate) no_files: u64,
    /// TCP that bypasses the link: present number, counts.
    pub(crate) bypass: (usize, splice::Counters),
    /// UDP, DNS and pings: present number, drops, and flows that made room for others.
    pub(crate) datagrams: [(&'static str, usize, Drops, u64); 3],
    /// Refusals of the guard.
    pub(crate) refusals: u64,
    /// Names of the guard: present number, and names that were not learned.
    pub(crate) names: (usize, u64),
    /// Neighbours of the host.
    pub(crate) neighbours: usize,
    /// Number of flows that were not reported, since there was no room.
    pub(crate) unreported: u64,
    /// Files, by class.
    pub(crate) files: Vec<Files>,
    /// Memory of TCP's receive queues, in bytes.
    pub(crate) queue_memory: usize,
    /// The limits.
    pub(crate) budgets: Budgets,
    /// Traffic of flows that have ended: TCP, UDP, pings.
    pub(crate) ended: [Traffic; 3],
    /// The rounds of the event loop.
    pub(crate) lag: Lag,
}

/// The files of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    /// The name of the class.
    pub(crate) class: &'static str,
    /// Number of open files.
    pub(crate) open: usize,
    /// Number of files that no other class may use.
    pub(crate) reserved: usize,
}

/// Traffic in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Number of flows.
    pub(crate) flows: u64,
    /// Bytes from the guest, and to the guest.
    pub(crate) bytes: [u64; 2],
    /// Packets from the guest, and to the guest, as far as they were counted.
    pub(crate) packets: [u64; 2],
}

impl Traffic {
    /// Adds the traffic of a flow.
    pub(crate) fn add(&mut self, totals: Option<&engine::host::Totals>) {
        self.flows += 1;
        for (index, amount) in
            totals.into_iter().flat_map(|totals| [totals.sent, totals.received]).enumerate()
        {
            self.bytes[index] += amount.bytes;
            self.packets[index] += amount.packets.unwrap_or(0);
        }
    }
}

/// The place of a protocol in lists of traffic.
pub(crate) const fn index_of(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => 0,
        Protocol::Udp => 1,
        Protocol::Icmp => 2,
    }
}

/// How long the rounds of the event loop took. An event that arrives during a round waits for its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Number of rounds.
    pub(crate) rounds: u64,
    /// Duration of all rounds together.
    pub(crate) all: Duration,
    /// Duration of the longest round.
    pub(crate) longest: Duration,
    /// Number of rounds that took at most the time of [`Lag::BOUNDS`] with the same index.
    pub(crate) within: [u64; Self::BOUNDS.len()],
}

impl Lag {
    /// Durations, in microseconds.
    pub(crate) const BOUNDS: [u64; 5] = [100, 1000, 10_000, 100_000, 1_000_000];

    /// Counts a round.
    pub(crate) fn note(&mut self, took: Duration) {
        self.rounds += 1;
        self.all += took;
        self.longest = self.longest.max(took);
        for (bound, count) in Self::BOUNDS.iter().zip(&mut self.within) {
            *count += u64::from(took.as_micros() <= u128::from(*bound));
        }
    }
}
