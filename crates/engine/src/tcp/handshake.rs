//! The beginning of a connection, from either side (behaviour §6.1, §6.2).

use wire::{
    payload::Payload,
    tcp::{Flags, Options, Segment, Seq},
};

use super::{
    DSCP,
    conn::{Connection, End, Phase},
    emit::{self, Fields},
    receive::{AckDue, Receiver, WINDOW_SCALE},
    send::{Sender, syn_timeout},
};
use crate::{
    addr::Settings,
    context::Context,
    flow::Endpoints,
    host::{Host, Readiness, TcpSocket},
    link::Link,
};

/// Segments larger than a page are whole pages.
const PAGE: u16 = 4096;

/// The largest segment that fits the link's MTU, in bytes of payload; of a large one whole pages only (behaviour §6.3): a
/// few bytes less than the host's own largest segment, it leaves the host as one packet and not as one and a crumb.
fn largest_segment(ends: &Endpoints, settings: &Settings) -> u16 {
    let v4 = ends.guest.is_ipv4();
    let largest = settings.link_mtu(v4).saturating_sub(if v4 { 40 } else { 60 }).max(64);
    if largest > PAGE { largest - largest % PAGE } else { largest }
}

impl<S: TcpSocket> Connection<S> {
    /// A connection that the guest asks for with `syn`; `socket` has begun to connect, by packets of traffic class `class`.
    pub(super) fn from_guest(
        ends: Endpoints,
        socket: S,
        iss: Seq,
        syn: &Segment<'_, impl Payload>,
        class: u8,
        ctx: &Context<'_, impl Host<Tcp = S>, impl Link>,
    ) -> Self {
        let options = Options::parse(syn.options);
        let mut send = Sender::new(iss);
        send.on_syn(syn, &options, largest_segment(&ends, ctx.settings));
        let scale = if options.window_scale.is_some() { WINDOW_SCALE } else { 0 };
        let receive = Receiver::new(syn.seq() + 1, scale);
        let mut connection = Self::new(ends, socket, Phase::Connecting, send, receive, ctx.now);
        connection.class = class;
        connection
    }

    /// A connection that was accepted on the host; the guest gets a SYN.
    pub(super) fn from_host<H: Host<Tcp = S>, L: Link>(
        ends: Endpoints,
        socket: S,
        iss: Seq,
        ctx: &mut Context<'_, H, L>,
    ) -> Self {
        let receive = Receiver::new(Seq(0), WINDOW_SCALE);
        let mut connection = Self::new(ends, socket, Phase::SynSent, Sender::new(iss), receive, ctx.now);
        connection.peer_class = connection.socket.peer_traffic_class().unwrap_or(0) & DSCP;
        connection.start_handshake(ctx);
        connection
    }

    fn start_handshake<H: Host<Tcp = S>, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) {
        self.send_syn(ctx); // lost if the link is full: the timer repeats it
        let iss = self.send.una;
        self.send.sent(iss + 1, ctx.now);
        self.send.retransmit_at = syn_timeout(0).map(|wait| ctx.now + wait);
    }

    /// Sends our SYN, or SYN,ACK when the guest's is here; always with the same sequence number (Q2).
    pub(super) fn send_syn<H: Host<Tcp = S>, L: Link>(&mut self, ctx: &mut Context<'_, H, L>) {
        let answering = self.phase != Phase::SynSent;
        let scale = (!answering || self.receive.scale > 0).then_some(WINDOW_SCALE);
        let options = Options {
            mss: Some(largest_segment(&self.ends, ctx.settings)),
            window_scale: scale,
            sack_permitted: !answering || self.send.sack,
            ..Options::default()
        };
        let (flags, ack) =
            if answering { (Flags::SYN | Flags::ACK, self.receive.next) } else { (Flags::SYN, Seq(0)) };
        let fields = Fields {
            seq: self.send.una,
            ack,
            flags,
            window: u16::MAX,
            urgent: 0,
            class: self.peer_class,
            options,
        };
        emit::bare(&self.ends, fields, ctx).ok();
    }

    /// The connecting socket reported readiness.
    pub(super) fn on_connected<H: Host<Tcp = S>, L: Link>(
        &mut self,
        readiness: Readiness,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        if readiness.error
            && let Some(errno) = self.socket.take_error()
        {
            return Err(End::SocketFailed(errno));
        }
        if readiness.writable {
            self.phase = Phase::SynReceived;
            self.start_handshake(ctx);
        }
        Ok(())
    }

    /// The guest sent something before it was answered: a repeated SYN is ignored.
    pub(super) fn while_connecting(&mut self, segment: &Segment<'_, impl Payload>) -> Result<(), End> {
        if segment.flags().contains(Flags::RST) { Err(End::GuestReset) } else { Ok(()) }
    }

    /// Waiting for the guest's SYN,ACK.
    pub(super) fn while_syn_sent<H: Host<Tcp = S>, L: Link>(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<(), End> {
        let flags = segment.flags();
        let acks_our_syn = flags.contains(Flags::ACK) && segment.ack() == self.send.max;
        if flags.contains(Flags::RST) {
            return if acks_our_syn { Err(End::GuestReset) } else { Ok(()) };
        }
        if flags.contains(Flags::ACK) && !acks_our_syn {
            // Of an earlier connection on these ports: make the guest forget it (RFC 9293 §3.5.2).
            let options = Options::default();
            let fields = Fields {
                seq: segment.ack(),
                ack: Seq(0),
                flags: Flags::RST,
                window: 0,
                urgent: 0,
                class: self.peer_class,
                options,
            };
            emit::bare(&self.ends, fields, ctx).ok();
            return Ok(());
        }
        if !flags.contains(Flags::SYN | Flags::ACK) {
            return Ok(());
        }
        let options = Options::parse(segment.options);
        self.send.on_syn(segment, &options, largest_segment(&self.ends, ctx.settings));
        let scale = if options.window_scale.is_some() { WINDOW_SCALE } else { 0 };
        self.receive = Receiver::new(segment.seq() + 1, scale);
        self.send.on_handshake_done(ctx.now);
        self.phase = Phase::Established;
        self.receive.ack = AckDue::Now; // carried by the client's first data, if they are here already
        Ok(())
    }

    /// Waiting for the acknowledgment of our SYN,ACK. True if this is it: what else the segment holds
    /// counts then (Q3).
    pub(super) fn while_syn_received<H: Host<Tcp = S>, L: Link>(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        ctx: &mut Context<'_, H, L>,
    ) -> Result<bool, End> {
        let flags = segment.flags();
        if flags.contains(Flags::RST) {
            return Err(End::GuestReset);
        }
        if flags.contains(Flags::SYN) {
            if segment.seq() + 1 == self.receive.next {
                self.send_syn(ctx); // the answer was lost
            }
            return Ok(false);
        }
        if !flags.contains(Flags::ACK) || segment.ack() != self.send.max {
            return Ok(false);
        }
        self.send.on_handshake_done(ctx.now);
        self.send.take_window(segment);
        self.phase = Phase::Established;
        Ok(true)
    }
}
