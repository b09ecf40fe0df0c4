//! One round of the event loop: the caller reports events, and the end of the round sends everything that is due.

use core::net::SocketAddr;

use wire::{
    frame::{self, Body, Packet, Transport, Unusable},
    offload::Offload,
    protocol,
};
use zerocopy::IntoBytes;

use super::{Protocols, Stack};
use crate::{
    checksums::{self, Verdict},
    context::{Context, TcpOf, World},
    flow::{Endpoints, FlowId, Kind},
    host::Readiness,
    local::{self, Outcome},
    memory::PayloadOf,
    neighbours::Neighbour,
    pressure::Pressure,
    resolvers::DNS,
    timer::Instant,
};

/// One round of the event loop.
///
/// Report what happened, in any order. Segments and datagrams that can be joined with later ones wait for the end of
/// the round. A round may be begun anew for each event, but [`Round::finish`] has to be called before the event loop
/// waits. Only that returns the [`Pressure`], which says how long the event loop may wait.
#[must_use = "a round does nothing by itself"]
pub struct Round<'a, W: World> {
    pub(super) stack: &'a mut Stack<W>,
    pub(super) now: Instant,
    pub(super) host: &'a mut W::Host,
    pub(super) link: &'a mut W::Link,
}

impl<W: World> Round<'_, W> {
    /// From now on, the link has a guest that can receive: asks for its hardware address (behaviour §4.1.3).
    pub fn link_up(&mut self) {
        self.stack.guest.on_link_up();
        local::announce_start(&self.stack.settings, &self.stack.guest, self.link);
        self.query_all();
    }

    /// The link is lost for good: TCP connections end. Flows of UDP, DNS and ping expire; datagrams that arrive for
    /// them are dropped and counted.
    pub fn link_lost(&mut self) {
        let (flows, mut cx) = self.split();
        flows.tcp.abort_all(&mut cx);
    }

    /// The host's knowledge of a neighbour on its link has changed.
    pub fn neighbour(&mut self, neighbour: Neighbour) {
        if self.stack.settings.neighbours.note(neighbour)
            && !self.stack.settings.is_mapped_to_host(neighbour.address)
        {
            local::announce_neighbour(&self.stack.settings, &self.stack.guest, neighbour.address, self.link);
        }
    }

    /// A frame of the guest, with a copy or view of its first bytes: [`frame::HEAD_LEN`] or all. Segments that
    /// it causes may be sent only at the end of the round.
    pub fn frame(&mut self, head: &[u8], frame: PayloadOf<'_, W::Memory>, offload: &Offload) {
        let whole = frame;
        let frame = match frame::parse_head(head, whole) {
            Ok(frame) => frame,
            Err(Unusable::Malformed) => return self.stack.counters.malformed += 1,
            Err(Unusable::UnknownEthertype(_)) => return self.stack.counters.unsupported += 1,
        };
        match frame.body {
            Body::Arp(arp) => {
                self.stack.guest.learn(&self.stack.settings, frame.source_mac, None, self.now);
                let outcome = local::on_arp(&self.stack.settings, &mut self.stack.guest, arp, self.link);
                self.count(outcome);
            }
            Body::Ip(packet) => {
                match checksums::check(head, &packet, offload) {
                    Verdict::Right => {}
                    Verdict::Wrong => return self.count_wrong_checksum(),
                    Verdict::Contradiction => return self.stack.counters.malformed += 1,
                    Verdict::PartialInPayload => return self.on_partial_payload(whole, offload),
                }
                self.stack.guest.learn(&self.stack.settings, frame.source_mac, Some(packet.source), self.now);
                self.on_packet(&packet, offload);
            }
        }
    }

    /// A connection was accepted on the host: `ends` are its two ends as the guest will see them.
    ///
    /// # Errors
    /// The socket, to be dropped, if the limit is reached or the ends are in use.
    pub fn accept(&mut self, ends: Endpoints, socket: TcpOf<W>) -> Result<(), TcpOf<W>> {
        let (flows, mut cx) = self.split();
        flows.tcp.accept(ends, socket, &mut cx)
    }

    /// A socket reported readiness.
    pub fn ready(&mut self, id: FlowId, readiness: Readiness) {
        let (flows, mut cx) = self.split();
        match id.kind() {
            Kind::Tcp => flows.tcp.on_ready(id, readiness, &mut cx),
            Kind::Udp => flows.udp.on_ready(id, readiness, &mut cx),
            Kind::Ping => flows.ping.on_ready(id, readiness, &mut cx),
            Kind::Dns => flows.dns.on_ready(id, readiness, &mut cx),
            Kind::UdpFlow | Kind::Splice | Kind::Listener => {}
        }
    }

    /// The link has room again.
    pub const fn link_has_room(&mut self) {
        self.stack.link_full = false;
    }

    /// Ends the round: handles deadlines, sends the acknowledgments and data that the events have made due, and then
    /// gives a turn to each flow that has more to send.
    ///
    /// Deadlines come first, since they too make segments due: one acknowledgment serves them and the events. Turns
    /// come last, so that a flow with little to send does not wait for one with much.
    pub fn finish(mut self) -> Pressure {
        self.deadlines();
        self.carry_questions();
        let (flows, mut cx) = self.split();
        flows.tcp.end_round(&mut cx);
        flows.udp.end_round(&mut cx);
        if !self.stack.link_full {
            let (flows, mut cx) = self.split();
            let pressure = flows.tcp.take_turns(&mut cx);
            self.stack.link_full = pressure == Pressure::LinkFull;
            return pressure;
        }
        Pressure::LinkFull
    }

    /// Handles everything that is due.
    fn deadlines(&mut self) {
        while let Some(id) = self.stack.timers.pop_due(self.now) {
            let (flows, mut cx) = self.split();
            match id.kind() {
                Kind::Tcp => flows.tcp.on_deadline(id, &mut cx),
                Kind::Udp | Kind::UdpFlow => flows.udp.on_deadline(id, &mut cx),
                Kind::Ping => flows.ping.on_deadline(id, &mut cx),
                Kind::Dns => flows.dns.on_deadline(id, &mut cx),
                Kind::Splice | Kind::Listener => {}
            }
        }
        self.expire_fragments();
        self.expire_memberships();
        while let Some(address) = self.stack.guest.due_question(self.now) {
            local::ask_for(&self.stack.settings, &self.stack.guest, address, self.link);
        }
        let Stack { advertiser, settings, guest, .. } = &mut *self.stack;
        advertiser.on_deadline(settings, guest, self.now, self.link);
    }

    /// Carries DNS messages between connections of the guest and the resolvers, if the guard judges questions.
    fn carry_questions(&mut self) {
        let (flows, mut cx) = self.split();
        loop {
            while let Some((stream, ends, query)) = flows.tcp.next_question(&mut cx) {
                flows.dns.on_stream_query(ends, stream, query, &mut cx);
            }
            let Some((stream, answer)) = flows.dns.next_answer() else { return };
            flows.tcp.answer(stream, &answer, &mut cx);
        }
    }

    pub(super) fn count_wrong_checksum(&mut self) {
        self.stack.counters.checksums += 1;
        if self.stack.wrong_checksums.is_due(self.now) {
            let all = self.stack.counters.checksums;
            log::warn!("Dropping frames of the guest with wrong checksums ({all} so far)");
        }
    }

    /// A frame with a partial checksum in its payload, such as that of a packet in a tunnel. The payload can't be
    /// forwarded like this, and may lie in memory that the engine must not write to. So the frame is copied, which is
    /// rare.
    fn on_partial_payload(&mut self, frame: PayloadOf<'_, W::Memory>, offload: &Offload) {
        let mut copy = core::mem::take(&mut self.stack.copy);
        if checksums::complete(frame, offload, &mut copy) {
            let bytes = copy.as_slice();
            self.frame(frame::head(bytes), bytes.into(), &Offload::VERIFIED);
        } else {
            self.stack.counters.malformed += 1;
        }
        self.stack.copy = copy;
    }

    pub(super) fn on_packet(&mut self, packet: &Packet<'_, PayloadOf<'_, W::Memory>>, offload: &Offload) {
        match packet.transport {
            Transport::Tcp(segment) if self.stack.settings.services.tcp => {
                let (flows, mut cx) = self.split();
                flows.tcp.on_segment(packet, &segment, &mut cx);
            }
            Transport::Udp(datagram) => {
                let outcome =
                    local::on_udp(&self.stack.settings, &mut self.stack.guest, packet, &datagram, self.link);
                if !outcome.consumed() && self.stack.settings.services.udp {
                    let port = datagram.header.destination_port.get();
                    let is_dns = self.stack.settings.is_dns(SocketAddr::new(packet.destination, port))
                        || port == DNS && self.stack.guard.judges_questions();
                    let (flows, mut cx) = self.split();
                    return if is_dns {
                        flows.dns.on_datagram(packet, &datagram, offload, &mut cx);
                    } else {
                        flows.udp.on_datagram(packet, &datagram, offload, &mut cx);
                    };
                }
                if !outcome.consumed() {
                    let upper = datagram.header.as_bytes().into();
                    return self.refuse(packet, protocol::UDP, upper);
                }
                self.count(outcome);
            }
            Transport::Icmp(message)
                if self.stack.settings.services.multicast && self.on_mld(packet, &message) => {}
            Transport::Icmp(message) => {
                let outcome = local::on_icmpv6(
                    &self.stack.settings,
                    &mut self.stack.guest,
                    packet,
                    &message,
                    self.link,
                );
                if !outcome.consumed() && self.stack.settings.services.icmp {
                    let (flows, mut cx) = self.split();
                    return flows.ping.on_message(packet, &message, &mut cx);
                }
                self.count(outcome);
            }
            Transport::Fragment(fragment) => self.on_fragment(packet, &fragment),
            Transport::Other(protocol::IGMP, upper) if self.stack.settings.services.multicast => {
                self.on_igmp(packet, upper);
            }
            Transport::Other(protocol, upper) => self.refuse(packet, protocol, upper),
            Transport::Tcp(segment) => {
                self.refuse(packet, protocol::TCP, segment.header.as_bytes().into());
            }
        }
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotLocal => self.stack.counters.unsupported += 1,
            Outcome::Invalid => self.stack.counters.malformed += 1,
            Outcome::Answered | Outcome::Ignored | Outcome::LinkFull => {}
        }
    }

    /// All flows, and what their steps need.
    pub(super) const fn split(&mut self) -> (&mut Protocols<W>, Context<'_, W>) {
        let Stack { settings, guest, guard, timers, flows, .. } = &mut *self.stack;
        (flows, Context { now: self.now, settings, guest, guard, host: self.host, link: self.link, timers })
    }
}
