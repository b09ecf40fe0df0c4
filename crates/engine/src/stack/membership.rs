//! The guest's membership of multicast groups (`--multicast`).

use core::net::{IpAddr, Ipv4Addr};

use wire::{
    frame::Packet,
    icmp,
    membership::{self, Change, Changes, MAX_QUERY_LEN, MAX_REPORT_LEN, Query, mld},
    offload::Offload,
    payload::Payload,
};
use zerocopy::IntoBytes;

use super::round::Round;
use crate::{
    context::World,
    link::Link as _,
    membership::{Step, is_followed},
};

impl<W: World> Round<'_, W> {
    /// Sends general queries, if the engine follows the guest's memberships.
    pub(super) fn query_all(&mut self) {
        if self.stack.settings.services.multicast {
            self.query(self.stack.settings.v4.is_some(), true, None);
            self.query(self.stack.settings.v6.is_some(), false, None);
        }
    }

    /// Handles an IGMP message of the guest.
    pub(super) fn on_igmp(&mut self, packet: &Packet<'_, impl Payload>, message: impl Payload) {
        let mut buffer = [0; MAX_REPORT_LEN];
        let len = message.copy_to(&mut buffer);
        let changes = membership::parse_igmp(&buffer[..len]).filter(|_| packet.hop_limit == 1);
        self.on_changes(packet.source, changes);
    }

    /// Handles an ICMPv6 message if it is an MLD message of a member. Returns whether it is.
    pub(super) fn on_mld(
        &mut self,
        packet: &Packet<'_, impl Payload>,
        message: &icmp::Message<'_, impl Payload>,
    ) -> bool {
        let kinds = [mld::REPORT_V1, mld::DONE, mld::REPORT_V2];
        if packet.source.is_ipv4() || !kinds.contains(&message.header.kind) {
            return false;
        }
        let mut buffer = [0; MAX_REPORT_LEN];
        let (header, rest) = buffer.split_at_mut(icmp::HEADER_LEN);
        header.copy_from_slice(message.header.as_bytes());
        let len = icmp::HEADER_LEN + message.payload.copy_to(rest);
        let changes = membership::parse_mld(&buffer[..len]).filter(|_| packet.hop_limit == 1);
        self.on_changes(packet.source, changes);
        true
    }

    fn on_changes(&mut self, member: IpAddr, changes: Option<Changes<'_>>) {
        let Some(changes) = changes else {
            self.stack.counters.malformed += 1;
            return;
        };
        for change in changes {
            if let Change::Member(group) = change
                && is_followed(group)
                && !self.stack.guard.admits_group(member, group)
            {
                continue;
            }
            if let Some(step) = self.stack.memberships.note(change, self.now) {
                self.take_step(step);
            }
        }
        self.stack.counters.groups = self.stack.memberships.refused;
    }

    /// Ends memberships that have expired, and sends the queries that are due.
    pub(super) fn expire_memberships(&mut self) {
        while let Some(step) = self.stack.memberships.due(self.now) {
            self.take_step(step);
        }
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Join(group) => self.stack.flows.udp.join(group, self.host),
            Step::Leave(group) => {
                let (flows, cx) = self.split();
                flows.udp.leave(group, cx.guard, cx.timers);
            }
            Step::QueryGroup(group) => self.query(true, group.is_ipv4(), Some(group)),
            Step::QueryAll(v4) => self.query(true, v4, None),
        }
    }

    /// Sends a query. A lost query does no harm: another query, or the member's own reports, will follow.
    fn query(&mut self, wanted: bool, v4: bool, group: Option<IpAddr>) {
        let source = if v4 {
            let ours = self.stack.settings.v4.as_ref().and_then(|v4| v4.our_address);
            Some(ours.unwrap_or(Ipv4Addr::UNSPECIFIED).into())
        } else {
            self.stack.settings.v6.as_ref().map(|v6| IpAddr::V6(v6.our_link_local))
        };
        let Some(source) = source.filter(|_| wanted) else { return };
        let query = Query { source_mac: self.stack.settings.our_mac, source, group };
        let Some(mut reserved) = self.link.reserve_head(MAX_QUERY_LEN) else { return };
        if let Some(len) = query.write(reserved.head()) {
            let _ = reserved.commit(len, &Offload::default());
        }
    }
}
