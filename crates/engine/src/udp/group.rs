//! Datagrams to a multicast group from a port that another program of the host uses.
//!
//! Receivers of some protocols accept only one source port: a response of mDNS must come from port 5353 (RFC 6762 §6).
//! On a host with an mDNS daemon, this port is in use, and the socket of the guest's endpoint has another port. But
//! programs that use groups share their port, so a socket that only sends can also have this port. The daemon still
//! receives all datagrams.

use wire::payload::Payload;

use super::{Udp, UdpSocket};
use crate::{
    context::{Context, World},
    flow::FlowId,
    host::{Host, OutboundDatagram, SocketError},
    memory::PayloadOf,
};

/// Maximum number of flows with such a socket. These sockets count as guest endpoints, and use at most a quarter of the
/// share of guest endpoints. Each socket costs a file, and few guests need more than one for each family.
const MOST: usize = 16;
/// Multicast DNS (RFC 6762 §3).
const MDNS: u16 = 5353;
/// Bits in the third byte of a DNS message. They are zero in a query with the opcode QUERY (RFC 1035 §4.1.1).
const RESPONSE_OR_OPCODE: u8 = 0xf8;
/// Length of the header of a DNS message, in bytes.
const DNS_HEADER_LEN: usize = 12;

impl<W: World> Udp<W> {
    /// Handles a new flow to a group. If the socket of its endpoint does not have the guest's port, opens a socket that
    /// shares this port.
    pub(super) fn share_port(&mut self, id: FlowId, cx: &mut Context<'_, W>) {
        let Some(flow) = self.flows.get(id) else { return };
        let (port, group) = (flow.endpoints.guest.port(), flow.peer);
        let keeps_port = self.sockets.get(flow.socket).is_none_or(|socket| socket.io.keeps_port());
        let most = MOST.min(self.limits.endpoints.most / 4);
        if keeps_port || !group.ip().is_multicast() || self.shared_ports.len() >= most {
            return;
        }
        match cx.host.udp_open_shared(group, port) {
            Ok(socket) => drop(self.shared_ports.insert(id, socket)),
            Err(errno) => log::debug!("{id}: can't share port {port} of the host: {errno:?}"),
        }
    }

    /// Sends a datagram of a flow from a shared port. Returns false if the socket of the flow's endpoint must send it.
    pub(super) fn send_shared(
        &mut self,
        id: FlowId,
        outbound: &OutboundDatagram<PayloadOf<'_, W::Memory>>,
    ) -> bool {
        if self.shared_ports.is_empty() {
            return false;
        }
        if is_mdns_question(outbound) && !self.is_member(outbound.destination.ip()) {
            return false;
        }
        let Some(socket) = self.shared_ports.get_mut(&id) else { return false };
        match socket.send(outbound) {
            Ok(()) => true,
            Err(SocketError::WouldBlock) => {
                self.counters.not_sent += 1;
                true
            }
            Err(SocketError::Failed(_)) => {
                self.shared_ports.remove(&id);
                false
            }
        }
    }
}

/// Whether this is an mDNS query, which may come from any port. A query from a port other than 5353 is answered by
/// unicast (RFC 6762 §6.7), so that a guest that does not receive from the group gets the answer. A query from port
/// 5353 is answered by multicast, and mDNS daemons such as Avahi accept such an answer only if it arrives at the group.
fn is_mdns_question<P: Payload>(outbound: &OutboundDatagram<P>) -> bool {
    let mut start = [0; 3];
    outbound.destination.port() == MDNS
        && outbound.payload.len() >= DNS_HEADER_LEN
        && outbound.payload.copy_to(&mut start) == start.len()
        && start[2] & RESPONSE_OR_OPCODE == 0
}
