//! One round of the event loop. The caller reports events. The end of the round sends the segments and datagrams that
//! are due.

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
    forward::spec::Direction,
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
/// The caller reports events, in any order. Segments and datagrams that can be joined with later ones wait for the end
/// of the round. The caller may also begin a new round for each event, but must call [`Round::finish`] before the event
/// loop waits. Only [`Round::finish`] returns the [`Pressure`], which determines how long the event loop may wait.
#[must_use = "a round does nothing by itself"]
pub struct Round<'a, W: World> {
    pub(super) stack: &'a mut Stack<W>,
    pub(super) now: Instant,
    pub(super) host: &'a mut W::Host,
    pub(super) link: &'a mut W::Link,
}

impl<W: World> Round<'_, W> {
    /// Reports that the link has a guest that can receive from now on. Requests for the guest's hardware address are
    /// sent (behaviour §4.1.3).
    pub fn link_up(&mut self) {
        self.stack.guest.on_link_up();
        local::announce_start(&self.stack.settings, &self.stack.guest, self.link);
        self.query_all();
    }

    /// Reports that the guest has disconnected, and that another guest may connect. Flows continue.
    pub const fn link_down(&mut self) {
        self.stack.guest.on_link_down();
    }

    /// Reports that the link is lost permanently. TCP connections end. Flows of UDP, DNS and ping expire, and datagrams
    /// that arrive for them are dropped and counted.
    pub fn link_lost(&mut self) {
        let (flows, mut cx) = self.split();
        flows.tcp.abort_all(&mut cx);
    }

    /// Reports a change of the host's information about a neighbour on its link.
    pub fn neighbour(&mut self, neighbour: Neighbour) {
        if self.stack.settings.neighbours.note(neighbour)
            && !self.stack.settings.is_mapped_to_host(neighbour.address)
        {
            local::announce_neighbour(&self.stack.settings, &self.stack.guest, neighbour.address, self.link);
        }
    }

    /// Handles a frame of the guest. `head` is a copy or view of its first [`frame::HEAD_LEN`] bytes, or of the whole
    /// frame. Answers may be sent only at the end of the round.
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

    /// Handles a connection that was accepted on the host. `ends` are its two ends as the guest will see them.
    ///
    /// # Errors
    /// Returns the socket, which the caller must drop, if the limit is reached or the ends are in use.
    pub fn accept(&mut self, ends: Endpoints, socket: TcpOf<W>) -> Result<(), TcpOf<W>> {
        let (flows, mut cx) = self.split();
        flows.tcp.accept(ends, socket, &mut cx)
    }

    /// Reports the readiness of a socket.
    pub fn ready(&mut self, id: FlowId, readiness: Readiness) {
        let (flows, mut cx) = self.split();
        match id.kind() {
            Kind::Tcp => flows.tcp.on_ready(id, readiness, &mut cx),
            Kind::Udp => flows.udp.on_ready(id, readiness, &mut cx),
            Kind::Ping => flows.ping.on_ready(id, readiness, &mut cx),
            Kind::Dns => flows.dns.on_ready(id, readiness, &mut cx),
            Kind::UdpFlow | Kind::UdpCheck | Kind::Splice | Kind::Listener => {}
        }
    }

    /// Reports that the link has room again.
    pub const fn link_has_room(&mut self) {
        self.stack.link_full = false;
    }

    /// Ends the round: handles deadlines, sends the acknowledgments and data that the events have made due, and then
    /// gives a turn to each flow that has more to send.
    ///
    /// Deadlines come first, since they make segments due, too, and one acknowledgment serves deadlines and events.
    /// Turns come last, so that a flow with little to send does not wait for a flow with much to send.
    pub fn finish(mut self) -> Pressure {
        self.deadlines();
        self.carry_questions();
        let (flows, mut cx) = self.split();
        flows.tcp.end_round(&mut cx);
        flows.udp.end_round(&mut cx);
        if self.stack.link_full {
            return Pressure::LinkFull;
        }
        let (flows, mut cx) = self.split();
        let mut pressure = flows.tcp.take_turns(&mut cx);
        if cx.rate_limit.is_limited(Direction::Inbound) {
            pressure = flows.tcp.take_turns_to_guest(pressure, &mut cx);
        }
        self.stack.link_full = pressure == Pressure::LinkFull;
        pressure
    }

    /// Handles the deadlines that have been reached.
    fn deadlines(&mut self) {
        while let Some(id) = self.stack.timers.pop_due(self.now) {
            let (flows, mut cx) = self.split();
            match id.kind() {
                Kind::Tcp => flows.tcp.on_deadline(id, &mut cx),
                Kind::Udp | Kind::UdpFlow | Kind::UdpCheck => flows.udp.on_deadline(id, &mut cx),
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
            let Some((stream, answer, _memory)) = flows.dns.next_answer() else { return };
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

    /// Handles a frame with a partial checksum in its payload, for example in a tunnel packet. The payload can't be
    /// forwarded without its checksum, and the engine may not be allowed to write to its memory. So the frame is
    /// copied. This is rare.
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
                let outcome =
                    local::on_icmp(&self.stack.settings, &mut self.stack.guest, packet, &message, self.link);
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

    /// All flows, and the context that their steps need.
    pub(super) const fn split(&mut self) -> (&mut Protocols<W>, Context<'_, W>) {
        let Stack { settings, guest, guard, rate_limit, timers, flows, .. } = &mut *self.stack;
        let (now, host, link) = (self.now, &mut *self.host, &mut *self.link);
        (flows, Context { now, settings, guest, guard, rate_limit, host, link, timers })
    }
}
