//! Datagrams to a group from a port that another program of the host uses already.
//!
//! Receivers of some protocols accept one source port only: a response of mDNS must come from port 5353 (RFC 6762 §6).
//! On a host with an mDNS daemon that port is in use, and the socket of the guest's endpoint has another one. But
//! programs that use groups share their port, so a socket that only sends can have it as well. The daemon still
//! receives everything.

use wire::payload::Payload;

use super::{Udp, UdpSocket};
use crate::{
    context::{Context, World},
    flow::FlowId,
    host::{Host, OutboundDatagram, SocketError},
    memory::PayloadOf,
};

/// Maximum number of flows with such a socket. They also take at most a quarter of the share of guest endpoints, and
/// count in it. Each costs a file, and few guests need more than one for each family.
const MOST: usize = 16;
/// Multicast DNS (RFC 6762 §3).
const MDNS: u16 = 5353;
/// In the third byte of a DNS message: a response, or any opcode other than QUERY (RFC 1035 §4.1.1).
const RESPONSE_OR_OPCODE: u8 = 0xf8;
/// Length of the header of a DNS message, in bytes.
const DNS_HEADER_LEN: usize = 12;

impl<W: World> Udp<W> {
    /// A new flow goes to a group. If the socket of its endpoint did not get the guest's port, opens one that shares
    /// it.
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

    /// Sends a datagram of a flow from a shared port. False if the socket of its endpoint must send it.
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

/// Whether this is an mDNS query. A query may come from any port. One from another port than 5353 is answered by
/// unicast (RFC 6762 §6.7), so that a guest that does not receive from the group gets the answer. One from port 5353 is
/// answered to the group, and mDNS daemons such as Avahi accept answers to it only there.
fn is_mdns_question<P: Payload>(outbound: &OutboundDatagram<P>) -> bool {
    let mut start = [0; 3];
    outbound.destination.port() == MDNS
        && outbound.payload.len() >= DNS_HEADER_LEN
        && outbound.payload.copy_to(&mut start) == start.len()
        && start[2] & RESPONSE_OR_OPCODE == 0
}
