//! The number of open files and the amount of memory that each part of the program may use. Only this module divides
//! files and memory (docs/design/budgets.md).
//!
//! The engine enforces the shares of UDP and ping: a new flow replaces an idle one. The [`ledger`] enforces the shares
//! of TCP connections and listening sockets.

pub mod ledger;
pub mod memory;
pub mod resources;

use std::time::Duration;

use engine::share::{Bound, Share};
use engine::{dns, stack, udp};

use resources::Resources;

/// Memory for one file, in bytes: the kernel's socket, the average content of its buffers, and the program's own state.
const FILE_MEMORY: u64 = 16 << 10;
/// Memory for one UDP flow, in bytes.
const FLOW_MEMORY: u64 = 512;
/// Number of files that the process itself needs.
const PROCESS: usize = 48;
/// Number of files that a vhost-user front-end needs: three for each of 32 queues, and the files that a message
/// carries.
const VHOST_USER: usize = 104;
/// The remaining files are divided into this many parts.
const PARTS: usize = 64;
/// Maximum number of TCP connections through the link. The same number limits local connections (behaviour §12).
const CONNECTIONS: usize = 131_071;
/// Maximum amount of memory for the receive queues of all TCP connections, in bytes.
const QUEUE_MEMORY: usize = 256 << 20;
/// Maximum amount of memory for DNS questions that wait for an answer, in bytes.
const DNS_MEMORY: usize = 1 << 20;
/// Maximum number of UDP flows that the guest begins.
const FLOWS: usize = 32_768;
/// Maximum number of UDP flows that peers begin.
const STRANGERS: usize = 65_536;

/// The uses of files other than flows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Number of listening sockets that are opened at the start.
    pub listeners: usize,
    /// Whether the guest has a network namespace of this machine, so that local connections bypass the link.
    pub namespace: bool,
    /// Whether the link is vhost-user.
    pub vhost_user: bool,
    /// Number of files of the API socket.
    pub api: usize,
}

/// How the files and the memory are divided. A number without a unit is a number of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Sockets of UDP ports from which the guest sends.
    pub udp_ports: Share,
    /// Sockets that represent local UDP clients in the other namespace.
    pub udp_clients: Share,
    /// Sockets of DNS questions to the host's resolvers.
    pub questions: Share,
    /// Ping sockets.
    pub pings: Share,
    /// UDP flows that the guest begins. These flows have no files.
    pub flows: Share,
    /// UDP flows that peers begin. These flows have no files.
    pub inbound: Share,
    /// Files that are reserved for TCP connections of the guest.
    pub tcp_out: usize,
    /// Files that are reserved for TCP connections to the guest.
    pub tcp_in: usize,
    /// Files that are reserved for local TCP connections of each direction. A connection has two files.
    pub local_tcp: usize,
    /// Files that are reserved for listening sockets, including the sockets that are opened at the start.
    pub listeners: usize,
    /// Maximum number of files of pipes for local TCP connections. A pipe has two files.
    pub pipes: usize,
    /// Maximum number of sockets that are opened in the guest's namespace before a flow needs them.
    pub ahead: usize,
    /// Files that TCP connections and listening sockets share when their reserves are used up.
    pub pool: usize,
    /// Memory for the receive queues of all TCP connections, in bytes.
    pub queue_memory: usize,
    /// The resource that limits the number of files.
    pub bound: Bound,
    /// The other limits of memory.
    pub memory: memory::Limits,
}

/// The number of files to divide.
#[must_use]
pub fn files(resources: &Resources) -> usize {
    basis(resources).0
}

/// How many listening sockets best-effort rules (`all`) may open at the start.
#[must_use]
pub fn listeners_at_start(resources: &Resources) -> usize {
    let (files, _) = basis(resources);
    (files / 8 * 5).saturating_sub(process(files))
}

impl Budgets {
    /// Divides `resources`.
    #[must_use]
    pub fn new(resources: &Resources, needs: &Needs) -> Self {
        let (files, bound) = basis(resources);
        let vhost_user = if needs.vhost_user { VHOST_USER.min(files / 4) } else { 0 };
        let rest = files.saturating_sub(process(files) + vhost_user + needs.api + needs.listeners);
        let part = |parts: usize, most: usize| (rest * parts / PARTS).min(most);
        let share = |parts: usize, most: usize| Share {
            most: part(parts, most).max(1),
            bound: if part(parts, most) == most { Bound::Fixed } else { bound },
        };
        // Without a namespace, no connection bypasses the link.
        let local = usize::from(needs.namespace);
        let (flows, inbound) = flows(resources.memory);
        let mut budgets = Self {
            udp_ports: share(10, 8192),
            udp_clients: share(4 * local, 4096),
            questions: share(2, 1024),
            pings: share(2, 1024),
            flows,
            inbound,
            tcp_out: part(3, CONNECTIONS).max(1),
            tcp_in: part(3, CONNECTIONS).max(1),
            local_tcp: part(2, 2 * CONNECTIONS).max(2) * local,
            listeners: needs.listeners + part(2, 4096).max(1),
            pipes: part(1, 1024) * local,
            ahead: part(1, 96) * local,
            pool: 0,
            queue_memory: usize::try_from(resources.memory / 16)
                .map_or(QUEUE_MEMORY, |most| most.min(QUEUE_MEMORY)),
            bound,
            memory: memory::Limits::DEFAULT,
        };
        budgets.pool = rest.saturating_sub(budgets.reserved() - needs.listeners);
        budgets
    }

    /// Lowers the limits to those of a budget of memory (`--memory`).
    #[must_use]
    pub fn within(self, memory: &memory::Limits) -> Self {
        let lower = |share: Share, most: usize| {
            if most < share.most { Share { most, bound: Bound::Budget } } else { share }
        };
        Self {
            udp_ports: lower(self.udp_ports, memory.udp_ports),
            udp_clients: lower(self.udp_clients, memory.udp_clients),
            questions: lower(self.questions, memory.questions),
            pings: lower(self.pings, memory.pings),
            flows: lower(self.flows, memory.flows),
            inbound: lower(self.inbound, memory.inbound),
            queue_memory: self.queue_memory.min(memory.queue_memory),
            memory: *memory,
            ..self
        }
    }

    /// The total number of reserved files.
    fn reserved(&self) -> usize {
        let sockets = self.udp_ports.most + self.udp_clients.most + self.questions.most + self.pings.most;
        sockets + self.tcp_out + self.tcp_in + 2 * self.local_tcp + self.listeners + self.pipes + self.ahead
    }

    /// The limits that the engine enforces. An idle UDP flow ends after `idle`, or after `idle_stream` if it has
    /// carried more than one request and one response.
    #[must_use]
    pub fn limits(&self, idle: Duration, idle_stream: Duration) -> stack::Limits {
        stack::Limits {
            connections: self.memory.connections,
            queue_memory: self.queue_memory,
            udp: udp::Limits {
                flows: self.flows,
                inbound: self.inbound,
                endpoints: self.udp_ports,
                bypass: self.udp_clients,
                checks: self.memory.checks(),
                idle,
                idle_stream,
            },
            dns: dns::Limits { files: self.questions, bytes: self.memory.question_bytes, idle, idle_stream },
            pings: self.pings,
            fragments: self.memory.fragments(),
        }
    }

    /// Maximum number of local TCP connections.
    #[must_use]
    pub const fn local_connections(&self) -> usize {
        self.memory.local_connections
    }
}

/// The number of files to divide, and the resource that limits it.
fn basis(resources: &Resources) -> (usize, Bound) {
    let by_memory = resources.memory / 2 / FILE_MEMORY;
    let bound = if by_memory < resources.files { Bound::Memory } else { Bound::Files };
    // No kernel allows more files. The limit keeps the products below from overflowing.
    let files = resources.files.min(by_memory).min(1 << 30);
    (usize::try_from(files).unwrap_or(usize::MAX), bound)
}

/// The number of files for the process itself, out of `files`.
fn process(files: usize) -> usize {
    (files / 8).clamp(PROCESS / 2, PROCESS)
}

/// The shares of two kinds of UDP flows: flows that the guest begins, and flows that peers begin.
fn flows(memory: u64) -> (Share, Share) {
    let all = usize::try_from(memory / 64 / FLOW_MEMORY).unwrap_or(usize::MAX);
    let share = |part: usize, most: usize| {
        let bound = if part < most { Bound::Memory } else { Bound::Fixed };
        Share { most: part.min(most).max(64), bound }
    };
    (share(all / 3, FLOWS), share(all - all / 3, STRANGERS))
}

#[cfg(test)]
mod tests;
