//! The guest's side of the world: every frame comes in here, and finds its service or flow.

mod fragments;
mod membership;
mod refusal;

use alloc::vec::Vec;
use core::net::SocketAddr;

use wire::{
    frame::{self, Body, Packet, Transport, Unusable},
    offload::Offload,
    protocol,
};
use zerocopy::IntoBytes;

use crate::{
    addr::{Guest, Settings},
    checksums::{self, Verdict},
    context::Context,
    dns::{self, Dns},
    flow::{Endpoints, FlowId, Kind},
    host::{Host, Readiness},
    icmp::Ping,
    link::Link,
    local::{self, Advertiser, Outcome},
    membership::Memberships,
    memory::PayloadOf,
    neighbours::Neighbour,
    reassembly::Reassembly,
    share::{Notice, Share},
    tcp::Tcp,
    timer::{Instant, Timers},
    udp::{self, Udp},
};

/// Random numbers from the kernel, for the keyed hashes and for what an attacker must not guess.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// Key of the flow tables' hash.
    pub hash_key: [u8; 16],
    /// Secret of TCP's initial sequence numbers (RFC 6528).
    pub isn_secret: [u8; 16],
    /// When the first unsolicited router advertisement goes out.
    pub advertisement: u32,
}

/// Frames of the guest that went nowhere, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Malformed, of any protocol.
    pub malformed: u64,
    /// Fragments that were invalid, that contradicted each other, or that waited for others in vain (behaviour §4.7):
    /// each counts once, a datagram that waited in vain as one.
    pub fragments: u64,
    /// Of a protocol that is not carried, or that was switched off.
    pub unsupported: u64,
    /// With a wrong checksum.
    pub checksums: u64,
    /// Reports of groups beyond the most that are followed (`--multicast`).
    pub groups: u64,
}

impl Counters {
    /// All together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.malformed + self.fragments + self.unsupported + self.checksums + self.groups
    }
}

/// How much there may be of everything: what a guest and those outside can make us keep.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most TCP connections.
    pub connections: usize,
    /// Memory that the receive queues of all TCP connections may take together, in bytes.
    pub queue_memory: usize,
    /// Sockets and flows of UDP.
    pub udp: udp::Limits,
    /// Questions to the host's resolvers.
    pub dns: dns::Limits,
    /// Sockets for pings.
    pub pings: Share,
}

/// All state of one guest: what is known of it, its flows and their deadlines.
pub struct Stack<H: Host> {
    settings: Settings,
    guest: Guest,
    timers: Timers<FlowId>,
    tcp: Tcp<H::Tcp>,
    udp: Udp<H::Udp>,
    dns: Dns<H::Udp>,
    ping: Ping<H::Ping>,
    reassembly: Reassembly,
    refusals: refusal::Limit,
    advertiser: Advertiser,
    memberships: Memberships,
    random: u32,
    counters: Counters,
    wrong_checksums: Notice,
    /// A frame that had to be copied.
    copy: Vec<u8>,
}

impl<H: Host> Stack<H> {
    /// A stack without flows.
    #[must_use]
    pub fn new(settings: Settings, guest: Guest, limits: Limits, seeds: Seeds, now: Instant) -> Self {
        Self {
            advertiser: Advertiser::new(&settings, now, seeds.advertisement),
            settings,
            guest,
            timers: Timers::default(),
            tcp: Tcp::new(limits.connections, limits.queue_memory, seeds.hash_key, seeds.isn_secret),
            udp: Udp::new(limits.udp, seeds.hash_key),
            dns: Dns::new(limits.dns, seeds.hash_key),
            ping: Ping::new(limits.pings, seeds.hash_key),
            reassembly: Reassembly::default(),
            refusals: refusal::Limit::new(now),
            memberships: Memberships::default(),
            random: seeds.advertisement,
            counters: Counters::default(),
            wrong_checksums: Notice::default(),
            copy: Vec::new(),
        }
    }

    /// Addressing and services.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The same, to be changed: that has effect on new flows and on answers of the local services. A family can't be
    /// added.
    pub const fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// What is known of the guest.
    #[must_use]
    pub const fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Frames that went nowhere.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// TCP connections.
    #[must_use]
    pub const fn tcp(&self) -> &Tcp<H::Tcp> {
        &self.tcp
    }

    /// UDP sockets and flows; listeners are added here.
    pub const fn udp(&mut self) -> &mut Udp<H::Udp> {
        &mut self.udp
    }

    /// Questions to the host's resolvers.
    #[must_use]
    pub const fn dns(&self) -> &Dns<H::Udp> {
        &self.dns
    }

    /// Pings.
    #[must_use]
    pub const fn ping(&self) -> &Ping<H::Ping> {
        &self.ping
    }

    /// Datagrams of the guest that wait for fragments.
    #[must_use]
    pub const fn fragments(&self) -> &Reassembly {
        &self.reassembly
    }

    /// Deadlines of all flows: at most one for each.
    #[must_use]
    pub const fn timers(&self) -> &Timers<FlowId> {
        &self.timers
    }

    /// There is a guest from now on that can hear us: asks for its hardware address (behaviour §4.1.3).
    pub fn on_link_up<L: Link>(&mut self, link: &mut L) {
        self.guest.on_link_up();
        local::announce_start(&self.settings, &self.guest, link);
        self.query_all(link);
    }

    /// The link is lost for good: TCP connections end. Flows of UDP, DNS and ping expire; what arrives for them is dropped
    /// and counted.
    pub fn on_link_lost<L: Link>(&mut self, now: Instant, host: &mut H, link: &mut L) {
        let (flows, mut cx) = self.split(now, host, link);
        flows.tcp.abort_all(&mut cx);
    }

    /// What the host knows of a neighbour on its link has changed.
    pub fn on_neighbour<L: Link>(&mut self, neighbour: Neighbour, link: &mut L) {
        if self.settings.neighbours.note(neighbour) && !self.settings.stands_for_host(neighbour.address) {
            local::announce_neighbour(&self.settings, &self.guest, neighbour.address, link);
        }
    }

    /// A frame of the guest, with a copy or view of its first bytes: [`frame::HEAD_LEN`] or all. What it causes to be
    /// sent may wait for [`Stack::end_batch`].
    pub fn on_frame<L: Link<Memory = H::Memory>>(
        &mut self,
        head: &[u8],
        frame: PayloadOf<'_, H::Memory>,
        offload: &Offload,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        let whole = frame;
        let frame = match frame::parse_head(head, whole) {
            Ok(frame) => frame,
            Err(Unusable::Malformed) => return self.counters.malformed += 1,
            Err(Unusable::UnknownEthertype(_)) => return self.counters.unsupported += 1,
        };
        match frame.body {
            Body::Arp(arp) => {
                self.guest.learn(&self.settings, frame.source_mac, None, now);
                let outcome = local::on_arp(&self.settings, &mut self.guest, arp, link);
                self.count(outcome);
            }
            Body::Ip(packet) => {
                match checksums::judge(head, &packet, offload) {
                    Verdict::Right => {}
                    Verdict::Wrong => return self.count_wrong_checksum(now),
                    Verdict::Contradiction => return self.counters.malformed += 1,
                    Verdict::OpenInside => return self.on_open_payload(whole, offload, now, host, link),
                }
                self.guest.learn(&self.settings, frame.source_mac, Some(packet.source), now);
                self.on_packet(&packet, offload, now, host, link);
            }
        }
    }

    fn count_wrong_checksum(&mut self, now: Instant) {
        self.counters.checksums += 1;
        if self.wrong_checksums.is_due(now) {
            let all = self.counters.checksums;
            log::warn!("Dropping frames of the guest for their wrong checksums ({all} so far)");
        }
    }

    /// A frame that leaves a checksum in its payload open, as that of a packet in a tunnel. The payload can't be sent on like
    /// this, and may lie in memory that is not ours to write: the frame is copied, which is rare.
    fn on_open_payload<L: Link<Memory = H::Memory>>(
        &mut self,
        frame: PayloadOf<'_, H::Memory>,
        offload: &Offload,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        let mut copy = core::mem::take(&mut self.copy);
        if checksums::complete(frame, offload, &mut copy) {
            let bytes = copy.as_slice();
            self.on_frame(frame::head(bytes), bytes.into(), &Offload::VERIFIED, now, host, link);
        } else {
            self.counters.malformed += 1;
        }
        self.copy = copy;
    }

    fn on_packet<L: Link<Memory = H::Memory>>(
        &mut self,
        packet: &Packet<'_, PayloadOf<'_, H::Memory>>,
        offload: &Offload,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        match packet.transport {
            Transport::Tcp(segment) if self.settings.services.tcp => {
                let (flows, mut cx) = self.split(now, host, link);
                flows.tcp.on_segment(packet, &segment, &mut cx);
            }
            Transport::Udp(datagram) => {
                let outcome = local::on_udp(&self.settings, &mut self.guest, packet, &datagram, link);
                if !outcome.consumed() && self.settings.services.udp {
                    let port = datagram.header.destination_port.get();
                    let is_dns = self.settings.is_dns(SocketAddr::new(packet.destination, port));
                    let (flows, mut cx) = self.split(now, host, link);
                    return if is_dns {
                        flows.dns.on_datagram(&mut cx, packet, &datagram, offload);
                    } else {
                        flows.udp.on_datagram(&mut cx, packet, &datagram, offload);
                    };
                }
                if !outcome.consumed() {
                    let upper = datagram.header.as_bytes().into();
                    return self.refuse(packet, protocol::UDP, upper, now, host, link);
                }
                self.count(outcome);
            }
            Transport::Icmp(message)
                if self.settings.services.multicast && self.on_mld(packet, &message, now, host, link) => {}
            Transport::Icmp(message) => {
                let outcome = local::on_icmpv6(&self.settings, &mut self.guest, packet, &message, link);
                if !outcome.consumed() && self.settings.services.icmp {
                    let (flows, mut cx) = self.split(now, host, link);
                    return flows.ping.on_message(&mut cx, packet, &message);
                }
                self.count(outcome);
            }
            Transport::Fragment(fragment) => self.on_fragment(packet, &fragment, now, host, link),
            Transport::Other(protocol::IGMP, upper) if self.settings.services.multicast => {
                self.on_igmp(packet, upper, now, host, link);
            }
            Transport::Other(protocol, upper) => self.refuse(packet, protocol, upper, now, host, link),
            Transport::Tcp(segment) => {
                self.refuse(packet, protocol::TCP, segment.header.as_bytes().into(), now, host, link);
            }
        }
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::NotLocal => self.counters.unsupported += 1,
            Outcome::Invalid => self.counters.malformed += 1,
            Outcome::Answered | Outcome::Ignored | Outcome::LinkFull => {}
        }
    }

    /// A connection was accepted on the host: `ends` are its ends as the guest is to see them.
    ///
    /// # Errors
    /// The socket, to be dropped: there is no room, or the ends are in use.
    pub fn on_accept<L: Link>(
        &mut self,
        ends: Endpoints,
        socket: H::Tcp,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) -> Result<(), H::Tcp> {
        let (flows, mut cx) = self.split(now, host, link);
        flows.tcp.accept(ends, socket, &mut cx)
    }

    /// A socket reported readiness.
    pub fn on_readiness<L: Link<Memory = H::Memory>>(
        &mut self,
        id: FlowId,
        readiness: Readiness,
        now: Instant,
        host: &mut H,
        link: &mut L,
    ) {
        let (flows, mut cx) = self.split(now, host, link);
        match id.kind() {
            Kind::Tcp => flows.tcp.on_readiness(id, readiness, &mut cx),
            Kind::Udp => flows.udp.on_socket_event(&mut cx, id, readiness),
            Kind::Ping => flows.ping.on_socket_event(&mut cx, id, readiness),
            Kind::Dns => flows.dns.on_socket_event(&mut cx, id, readiness),
            Kind::UdpFlow | Kind::Splice | Kind::Listener => {}
        }
    }

    /// Does what has become due.
    pub fn on_deadlines<L: Link<Memory = H::Memory>>(&mut self, now: Instant, host: &mut H, link: &mut L) {
        while let Some(id) = self.timers.pop_due(now) {
            let (flows, mut cx) = self.split(now, host, link);
            match id.kind() {
                Kind::Tcp => flows.tcp.on_deadline(id, &mut cx),
                Kind::Udp | Kind::UdpFlow => flows.udp.on_timer(&mut cx, id),
                Kind::Ping => flows.ping.on_timer(&mut cx, id),
                Kind::Dns => flows.dns.on_timer(&mut cx, id),
                Kind::Splice | Kind::Listener => {}
            }
        }
        self.expire_fragments(now, host, link);
        self.keep_memberships(now, host, link);
        while let Some(address) = self.guest.due_question(now) {
            local::ask_for(&self.settings, &self.guest, address, link);
        }
        if self.advertiser.next().is_some_and(|next| next <= now) {
            // Spreads the interval; nothing depends on it being unpredictable.
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            self.advertiser.on_deadline(&self.settings, &self.guest, now, self.random, link);
        }
    }

    /// When [`Stack::on_deadlines`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let own = [
            self.timers.next(),
            self.advertiser.next(),
            self.reassembly.next(),
            self.guest.next_question(),
            self.memberships.next(),
        ];
        own.into_iter().flatten().min()
    }

    /// To be called after each batch of frames and events: sends what they have made due.
    pub fn end_batch<L: Link<Memory = H::Memory>>(&mut self, now: Instant, host: &mut H, link: &mut L) {
        let (flows, mut cx) = self.split(now, host, link);
        flows.tcp.end_batch(&mut cx);
        flows.udp.end_batch(&mut cx);
    }

    /// Whether flows wait for their turn to send.
    #[must_use]
    pub fn has_runnable(&self) -> bool {
        self.tcp.has_runnable()
    }

    /// Gives every flow that waits for it a turn. False if the link is full: to be called again when it is not.
    pub fn run<L: Link<Memory = H::Memory>>(&mut self, now: Instant, host: &mut H, link: &mut L) -> bool {
        let (flows, mut cx) = self.split(now, host, link);
        flows.tcp.run(&mut cx)
    }

    /// The flows, and what their steps need.
    fn split<'a, L: Link>(
        &'a mut self,
        now: Instant,
        host: &'a mut H,
        link: &'a mut L,
    ) -> (Flows<'a, H>, Context<'a, H, L>) {
        let Self { settings, guest, timers, tcp, udp, dns, ping, .. } = self;
        (Flows { tcp, udp, dns, ping }, Context { now, settings, guest, host, link, timers })
    }
}

struct Flows<'a, H: Host> {
    tcp: &'a mut Tcp<H::Tcp>,
    udp: &'a mut Udp<H::Udp>,
    dns: &'a mut Dns<H::Udp>,
    ping: &'a mut Ping<H::Ping>,
}

#[cfg(test)]
mod tests;
