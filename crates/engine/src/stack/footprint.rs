//! How much memory the members of the tables use, and memory that is reserved for full tables (docs/design/memory.md).

use super::Stack;
use crate::{context::World, dns::Dns, icmp::Ping, rate_limit::RateLimit, tcp::Tcp, udp::Udp};

/// Upper bounds for the memory of one member of each table, in bytes, if memory for the full table is
/// [reserved](Stack::reserve).
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// A TCP connection, without queued bytes.
    pub connection: usize,
    /// A chunk of a queue, and the bytes of it that count for [`Limits::queue_memory`](super::Limits::queue_memory).
    pub chunk: (usize, usize),
    /// A UDP flow.
    pub udp_flow: usize,
    /// A UDP socket.
    pub udp_socket: usize,
    /// A DNS query that waits for its answer, or a session.
    pub question: usize,
    /// An identifier of pings.
    pub ping: usize,
}

impl<W: World> Stack<W> {
    /// The memory of the members of this stack's tables.
    pub const FOOTPRINT: Footprint = Footprint {
        connection: Tcp::<W>::BYTES,
        chunk: Tcp::<W>::CHUNK_BYTES,
        udp_flow: Udp::<W>::FLOW_BYTES,
        udp_socket: Udp::<W>::SOCKET_BYTES,
        question: Dns::<W>::BYTES,
        ping: Ping::<W>::BYTES,
    };

    /// Reserves memory for the tables at their limits. Then no table grows, which would need memory for a copy. Pages of
    /// this memory become resident when they are used. Must be called after the rate limit was set. Returns false if there
    /// is no memory.
    #[must_use]
    pub fn reserve(&mut self) -> bool {
        let Self { flows, timers, rate_limit, limits, .. } = self;
        let owners = limits.connections + flows.udp.owners() + limits.dns.files.most + limits.pings.most + 2;
        flows.tcp.reserve(is_limited(rate_limit))
            && flows.udp.reserve()
            && flows.dns.reserve()
            && flows.ping.reserve()
            && timers.reserve(owners)
    }
}

fn is_limited(rate_limit: &RateLimit) -> bool {
    use crate::forward::spec::Direction::{Inbound, Outbound};
    rate_limit.is_limited(Outbound) || rate_limit.is_limited(Inbound)
}
