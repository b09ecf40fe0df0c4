//! The guest joins and leaves multicast groups (`--multicast`).

use core::net::{IpAddr, Ipv4Addr};

use wire::{
    frame::Packet,
    icmp,
    membership::{self, Changes, MAX_QUERY_LEN, MAX_REPORT_LEN, Query, mld},
    offload::Offload,
    payload::Payload,
};
use zerocopy::IntoBytes;

use super::Stack;
use crate::{host::Host, link::Link, membership::Step, timer::Instant};

impl<H: Host> Stack<H> {
    /// Asks who is a member of any group, if that matters.
    pub(super) fn query_all<L: Link>(&self, link: &mut L) {
        if self.settings.services.multicast {
            self.query(self.settings.v4.is_some(), true, None, link);
            self.query(self.settings.v6.is_some(), false, None, link);
        }
    }

    /// An IGMP message of the guest.
    pub(super) fn on_igmp<L: Link>(
        &mut self,
        packet: &Packet<'_, impl Payload>,
        message: impl Payload,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        let mut buffer = [0; MAX_REPORT_LEN];
        let len = message.copy_to(&mut buffer);
        let changes = membership::parse_igmp(&buffer[..len]).filter(|_| packet.hop_limit == 1);
        self.on_changes(changes, now, host, link);
    }

    /// Whether an ICMPv6 message is one of MLD, from a member. If so, it is heeded.
    pub(super) fn on_mld<L: Link>(
        &mut self,
        packet: &Packet<'_, impl Payload>,
        message: &icmp::Message<'_, impl Payload>,
        now: Instant,
        host: &mut H,
        link: &mut L,
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
        self.on_changes(changes, now, host, link);
        true
    }

    fn on_changes<L: Link>(
        &mut self,
        changes: Option<Changes<'_>>,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        let Some(changes) = changes else {
            self.counters.malformed += 1;
            return;
        };
        for change in changes {
            if let Some(step) = self.memberships.note(change, now) {
                self.take_step(step, host, link);
            }
        }
        self.counters.groups = self.memberships.refused;
    }

    /// Does what has become due.
    pub(super) fn keep_memberships<L: Link>(&mut self, now: Instant, host: &mut H, link: &mut L) {
        while let Some(step) = self.memberships.due(now) {
            self.take_step(step, host, link);
        }
    }

    fn take_step<L: Link>(&mut self, step: Step, host: &mut H, link: &mut L) {
        match step {
            Step::Join(group) => self.udp.join(host, group),
            Step::Leave(group) => self.udp.leave(group, &mut self.timers),
            Step::QueryGroup(group) => self.query(true, group.is_ipv4(), Some(group), link),
            Step::QueryAll(v4) => self.query(true, v4, None, link),
        }
    }

    /// Sends a query. One that is lost is made good by the next, or by the member's own reports.
    fn query<L: Link>(&self, wanted: bool, v4: bool, group: Option<IpAddr>, link: &mut L) {
        let source = if v4 {
            let ours = self.settings.v4.as_ref().and_then(|v4| v4.our_address);
            Some(ours.unwrap_or(Ipv4Addr::UNSPECIFIED).into())
        } else {
            self.settings.v6.as_ref().map(|v6| IpAddr::V6(v6.our_link_local))
        };
        let Some(source) = source.filter(|_| wanted) else { return };
        let query = Query { source_mac: self.settings.our_mac, source, group };
        let Some(mut reserved) = link.reserve_head(MAX_QUERY_LEN) else { return };
        if let Some(len) = query.write(reserved.head()) {
            let _ = reserved.commit(len, &Offload::default());
        }
    }
}
