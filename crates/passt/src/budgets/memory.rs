//! The budget of memory (`--memory`): all limits that follow from it (docs/design/memory.md).
//!
//! The budget is divided by 64. Each part has some of these shares, and no other part uses them. The limit of a part
//! follows from its share, and from the memory that its members use at most.

use engine::{guard, names, reassembly, stack, udp};

/// The smallest budget, in bytes.
pub const LEAST: u64 = 16 << 20;
/// The budget is divided into this many shares.
const SHARES: u64 = 64;

/// Shares of the parts. What is left is for memory that the allocator can't use again at once.
mod shares {
    pub(super) const CONNECTIONS: u64 = 11;
    pub(super) const QUEUES: u64 = 8;
    pub(super) const LOCAL_CONNECTIONS: u64 = 4;
    pub(super) const FLOWS: u64 = 4;
    pub(super) const INBOUND: u64 = 4;
    pub(super) const UDP_PORTS: u64 = 2;
    pub(super) const UDP_CLIENTS: u64 = 1;
    pub(super) const FRAGMENTS: u64 = 3;
    pub(super) const QUESTIONS: u64 = 1;
    pub(super) const QUESTION_BYTES: u64 = 1;
    pub(super) const ANSWERS: u64 = 1;
    pub(super) const PINGS: u64 = 1;
    pub(super) const NAMES: u64 = 4;
    pub(super) const FIRST_BYTES: u64 = 2;
    pub(super) const CHECKS: u64 = 2;
    pub(super) const REPORTS: u64 = 4;
    pub(super) const API: u64 = 7;
    pub(super) const LISTENERS: u64 = 1;
}

/// How much memory the members of the parts use at most, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Members of the engine's tables.
    pub stack: stack::Footprint,
    /// A local TCP connection.
    pub local_connection: usize,
    /// A flow in a list for a client of the API socket.
    pub row: usize,
}

impl Footprint {
    /// A listening socket: a socket in a table that may be copied when it grows, and its places in sets of ports.
    const fn listener(&self) -> usize {
        3 * self.stack.udp_socket + 256
    }
}

/// The limits that follow from a budget of memory. Without a budget, they are no limits, or the usual ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether there is a budget.
    pub bounded: bool,
    /// TCP connections through the link. New ones are refused.
    pub connections: usize,
    /// Memory for the receive queues of these connections, in bytes. Segments are dropped.
    pub queue_memory: usize,
    /// Local TCP connections. New ones are refused.
    pub local_connections: usize,
    /// UDP flows that the guest begins. The one that was idle for longest ends.
    pub flows: usize,
    /// UDP flows that peers begin. The one that was idle for longest ends.
    pub inbound: usize,
    /// UDP ports from which the guest sends. The one that was idle for longest ends.
    pub udp_ports: usize,
    /// Local UDP clients. The one that was idle for longest ends.
    pub udp_clients: usize,
    /// DNS questions. The oldest one ends.
    pub questions: usize,
    /// Memory for stored questions and answers, in bytes. They are not stored, or the question is refused.
    pub question_bytes: usize,
    /// Identifiers of pings. The one that was idle for longest ends.
    pub pings: usize,
    /// Memory for datagrams that wait for fragments, in bytes. The oldest one is dropped.
    pub fragments: usize,
    /// Memory for the names of addresses, in bytes. The oldest one is forgotten.
    pub names: usize,
    /// Memory in which first bytes of TCP connections are parsed, in bytes. The connection is refused.
    pub first_bytes: usize,
    /// Memory for the checks of UDP flows by name, in bytes. The flow is refused.
    pub checks: usize,
    /// Memory for answers over TCP that rules by name judge, in bytes. The connection of the guest ends.
    pub answers: usize,
    /// Memory for reports of flows, in bytes. The flow is not reported, and counted.
    pub reports: usize,
    /// Listening sockets, besides those of ports that the user names. The port is tried again later.
    pub listeners: usize,
    /// The thread of the API socket.
    pub api: Api,
}

/// Limits of the thread of the API socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// Clients. New ones are refused.
    pub clients: usize,
    /// Length in bytes at which the list in an answer stops.
    pub list: usize,
    /// Flows in a list that is sorted.
    pub rows: usize,
    /// Bytes of events that wait for a client. Later events are dropped, and counted.
    pub events: usize,
    /// Memory of the events that wait for the thread, in bytes. Later events are dropped, and counted.
    pub ring: usize,
    /// Bytes of captured frames that wait for the thread. Later frames are dropped, and counted.
    pub capture: usize,
}

impl Limits {
    /// The limits without a budget.
    pub const DEFAULT: Self = Self {
        bounded: false,
        connections: super::CONNECTIONS,
        queue_memory: super::QUEUE_MEMORY,
        local_connections: super::CONNECTIONS,
        flows: usize::MAX,
        inbound: usize::MAX,
        udp_ports: usize::MAX,
        udp_clients: usize::MAX,
        questions: usize::MAX,
        question_bytes: super::DNS_MEMORY,
        pings: usize::MAX,
        fragments: usize::MAX,
        names: usize::MAX,
        first_bytes: usize::MAX,
        checks: usize::MAX,
        answers: usize::MAX,
        reports: usize::MAX,
        listeners: usize::MAX,
        api: Api::DEFAULT,
    };

    /// The limits for a budget of `budget` bytes, which is at least [`LEAST`].
    #[must_use]
    pub fn of(budget: u64, footprint: &Footprint) -> Self {
        let share = |shares: u64| usize::try_from(budget / SHARES * shares).unwrap_or(usize::MAX);
        let members = |shares: u64, bytes: usize| (share(shares) / bytes).max(1);
        let usual = Self::DEFAULT;
        let stack::Footprint { connection, chunk: (chunk, queued), udp_flow, udp_socket, question, ping } =
            footprint.stack;
        Self {
            bounded: true,
            connections: members(shares::CONNECTIONS, connection).min(usual.connections),
            queue_memory: (members(shares::QUEUES, chunk) * queued).min(usual.queue_memory),
            local_connections: members(shares::LOCAL_CONNECTIONS, footprint.local_connection)
                .min(usual.local_connections),
            flows: members(shares::FLOWS, udp_flow),
            inbound: members(shares::INBOUND, udp_flow),
            udp_ports: members(shares::UDP_PORTS, udp_socket),
            udp_clients: members(shares::UDP_CLIENTS, udp_socket),
            questions: members(shares::QUESTIONS, question),
            question_bytes: share(shares::QUESTION_BYTES).min(usual.question_bytes),
            pings: members(shares::PINGS, ping),
            fragments: share(shares::FRAGMENTS),
            names: share(shares::NAMES),
            first_bytes: share(shares::FIRST_BYTES),
            checks: share(shares::CHECKS),
            answers: share(shares::ANSWERS),
            reports: share(shares::REPORTS),
            listeners: members(shares::LISTENERS, footprint.listener()),
            api: Api::of(share(shares::API), footprint.row),
        }
    }

    /// Limits of the datagrams that wait for fragments.
    #[must_use]
    pub fn fragments(&self) -> reassembly::Limits {
        reassembly::Limits::within(self.fragments)
    }

    /// Limits of the checks of UDP flows by name. Without a budget, their number is bounded by that of the flows.
    #[must_use]
    pub fn checks(&self) -> udp::CheckLimits {
        if self.bounded { udp::CheckLimits::within(self.checks) } else { udp::CheckLimits::DEFAULT }
    }

    /// Limits of rules by name.
    #[must_use]
    pub fn guard(&self) -> guard::Limits {
        let names = names::Limits::within(self.names);
        guard::Limits { names, first_bytes: self.first_bytes, answers: self.answers }
    }
}

impl Api {
    /// The limits without a budget.
    pub const DEFAULT: Self = Self {
        clients: 64,
        list: 1 << 20,
        rows: 10_000,
        events: 256 << 10,
        ring: usize::MAX,
        capture: 4 << 20,
    };
    /// Maximum length of a request, in bytes, without the end of line.
    pub(crate) const REQUEST: usize = 64 << 10;
    /// Maximum number of bytes of answers that a client has not read when its next request is handled.
    pub(crate) const UNREAD: usize = 64 << 10;
    /// Maximum length of what surrounds the list in an answer, in bytes, and of its last entry.
    const FRAME: usize = 8 << 10;
    /// The list is text three times: as such, within the answer, and in the line for the client. Each may be twice as long
    /// as needed.
    const COPIES: usize = 6;
    /// A sorted list is cut when it has twice as many flows as will be listed, and may be twice as long as needed.
    const SORTED: usize = 4;
    /// Number of flows in a piece of a list. Two pieces may be on their way.
    const PIECES: usize = 2 * 256;

    fn of(share: usize, row: usize) -> Self {
        let usual = Self::DEFAULT;
        let mut limits = Self {
            clients: 1,
            list: (share / 64).min(usual.list),
            rows: (share / 16 / row / Self::SORTED).clamp(1, usual.rows),
            events: (share / 64).min(usual.events),
            ring: share / 16,
            capture: (share / 32).min(usual.capture),
        };
        let left = share.saturating_sub(limits.bytes(row));
        limits.clients = (1 + left / limits.client()).min(usual.clients);
        limits
    }

    /// Memory of a client, in bytes: its request, its answers, and its events. Each may be twice as long as needed.
    const fn client(&self) -> usize {
        let unread = if Self::UNREAD > self.events { Self::UNREAD } else { self.events };
        2 * (Self::REQUEST + unread + self.list + Self::FRAME + self.events)
    }

    /// Memory at these limits, in bytes.
    const fn bytes(&self, row: usize) -> usize {
        let answer =
            Self::COPIES * (self.list + Self::FRAME) + (Self::SORTED * self.rows + Self::PIECES) * row;
        // A frame may exceed the limit of the capture. The batch may be twice as long as needed.
        let capture = 2 * (self.capture + wire::frame::MAX_LEN);
        answer + self.ring + capture + self.clients * self.client()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// About the sizes of a 64-bit machine. The shares hold for others, too.
    fn footprint(scale: usize) -> Footprint {
        let stack = stack::Footprint {
            connection: 18 * scale,
            chunk: (208 * scale, 16 << 10),
            udp_flow: 7 * scale,
            udp_socket: 4 * scale,
            question: 10 * scale,
            ping: 8 * scale,
        };
        Footprint { stack, local_connection: 4 * scale, row: 5 * scale }
    }

    /// The memory of all parts at their limits.
    fn total(limits: &Limits, footprint: &Footprint) -> u64 {
        let stack = &footprint.stack;
        let (chunk, queued) = stack.chunk;
        [
            limits.connections * stack.connection,
            limits.queue_memory / queued * chunk,
            limits.local_connections * footprint.local_connection,
            limits.flows * stack.udp_flow,
            limits.inbound * stack.udp_flow,
            limits.udp_ports * stack.udp_socket,
            limits.udp_clients * stack.udp_socket,
            limits.questions * stack.question,
            limits.question_bytes,
            limits.answers,
            limits.pings * stack.ping,
            limits.fragments().memory(),
            limits.guard().names.memory(),
            limits.first_bytes,
            limits.checks().bytes(),
            limits.reports,
            limits.listeners * footprint.listener(),
            limits.api.bytes(footprint.row),
        ]
        .map(|part| part as u64)
        .iter()
        .sum()
    }

    proptest! {
        /// All parts at their limits fit into the budget, and some of it is left. A larger budget takes nothing from any
        /// part.
        #[test]
        fn all_parts_fit(budget in LEAST..1 << 36, more in 0_u64..1 << 30, scale in 50_usize..150) {
            let footprint = footprint(scale);
            let limits = Limits::of(budget, &footprint);
            let total = total(&limits, &footprint);
            prop_assert!(total <= budget / SHARES * 61, "{total} of {budget}: {limits:?}");
            let larger = Limits::of(budget + more, &footprint);
            let parts = |limits: &Limits| {
                let Limits { connections, queue_memory, local_connections, flows, inbound, .. } = *limits;
                let Limits { udp_ports, udp_clients, questions, question_bytes, pings, .. } = *limits;
                let Limits { fragments, names, first_bytes, checks, answers, reports, listeners, api, .. } = *limits;
                let api = [api.clients, api.list, api.rows, api.events, api.ring, api.capture].map(|limit| limit > 0);
                prop_assert_eq!(api, [true; 6]);
                Ok([
                    connections, queue_memory, local_connections, flows, inbound, udp_ports, udp_clients, questions,
                    question_bytes, pings, fragments, names, first_bytes, checks, answers, reports, listeners,
                ])
            };
            for (smaller, larger) in parts(&limits)?.into_iter().zip(parts(&larger)?) {
                prop_assert!(0 < smaller && smaller <= larger);
            }
        }
    }

    /// A budget for more than the usual limits does not raise them.
    #[test]
    fn limits_stay_the_usual_ones() {
        let limits = Limits::of(1 << 40, &footprint(100));
        let usual = Limits::DEFAULT;
        assert_eq!(
            (limits.connections, limits.queue_memory, limits.local_connections, limits.question_bytes),
            (usual.connections, usual.queue_memory, usual.local_connections, usual.question_bytes)
        );
        assert_eq!((limits.api.clients, limits.api.list, limits.api.events), (64, 1 << 20, 256 << 10));
        let [bounded, usual] = [limits, usual].map(|limits| {
            let (fragments, guard) = (limits.fragments(), limits.guard());
            (fragments.datagrams, fragments.bytes, limits.checks().ids, guard.names.total)
        });
        assert_eq!(bounded, usual);
    }

    /// The smallest budget is enough for ordinary use: a full window, a datagram of the maximum length, several long
    /// first messages, and a client of the API socket.
    #[test]
    fn the_smallest_budget_serves() {
        let limits = Limits::of(LEAST, &footprint(100));
        assert!(limits.queue_memory > 1 << 20, "{limits:?}");
        assert!(limits.fragments().bytes > 2 * 65_536 && limits.fragments().datagrams > 32);
        assert!(limits.first_bytes > 8 * 3 * engine::first_bytes::MAX_LEN);
        assert!(limits.answers > 1 << 17);
        assert!(limits.api.clients > 1);
        assert!(limits.connections > 1000 && limits.flows > 1000, "{limits:?}");
    }
}
