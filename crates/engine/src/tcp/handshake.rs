//! The beginning of a connection, from either side (behaviour §6.1, §6.2).

use core::net::IpAddr;

use wire::{
    payload::Payload,
    tcp::{Flags, Options, Segment, Seq},
};

use super::{
    DSCP,
    conn::{Connection, End, Handshake, Phase},
    emit::{self, Fields},
    receive::{AckDue, Receiver, WINDOW_SCALE},
    resets::Reset,
    send::Sender,
    socket::Socket,
};
use crate::{
    addr::Settings,
    context::{Context, TcpOf, World},
    flow::Endpoints,
    host::{Readiness, TcpSocket},
};

/// The payload of segments above one page is a multiple of this page size, in bytes.
const PAGE: u16 = 4096;

/// The largest payload of a segment to or from `guest` that fits the link's MTU, in bytes. Above one page, it is rounded
/// down to whole pages (behaviour §6.3). So it is a few bytes below the host's own maximum segment size. The host can then
/// send each segment of the guest as one packet, and not as a full packet and a tiny one.
fn largest_segment(guest: IpAddr, settings: &Settings) -> u16 {
    let v4 = guest.is_ipv4();
    let largest = settings.link_mtu(v4).saturating_sub(if v4 { 40 } else { 60 }).max(64);
    if largest > PAGE { largest - largest % PAGE } else { largest }
}

impl<W: World> Connection<W> {
    /// A connection that the guest opens with `syn`. `socket` has begun to connect with packets of traffic class
    /// `class`.
    pub(super) fn from_guest(
        ends: Endpoints,
        socket: Socket<W>,
        iss: Seq,
        syn: &Segment<'_, impl Payload>,
        class: u8,
        cx: &Context<'_, W>,
    ) -> Self {
        let options = Options::parse(syn.options);
        let mut send = Sender::new(iss);
        send.on_syn(syn, &options, largest_segment(ends.guest.ip(), cx.settings));
        let scale = if options.window_scale.is_some() { WINDOW_SCALE } else { 0 };
        let ahead = cx.rate_limit.window().filter(|_| matches!(socket, Socket::Host(_)));
        let receive = Receiver::new(syn.seq() + 1, scale).in_turns(ahead);
        let mut connection = Self::new(ends, socket, Phase::Connecting, send, receive, cx.now);
        (connection.class, connection.is_guests) = (class, true);
        connection
    }

    /// A connection that was accepted on the host. Sends a SYN to the guest.
    pub(super) fn from_host(ends: Endpoints, socket: TcpOf<W>, iss: Seq, cx: &mut Context<'_, W>) -> Self {
        let (socket, receive) = (Socket::Host(socket), Receiver::new(Seq(0), WINDOW_SCALE));
        let mut connection = Self::new(ends, socket, Phase::SynSent, Sender::new(iss), receive, cx.now);
        connection.peer_class = connection.socket.peer_traffic_class().unwrap_or(0) & DSCP;
        connection.start_handshake(cx);
        connection
    }

    fn start_handshake(&mut self, cx: &mut Context<'_, W>) {
        self.send_syn(cx); // if the link is full, the timer repeats it
        let iss = self.send.syn_seq();
        self.send.sent(iss + 1, cx.now);
        self.send.schedule_syn(0, cx.now);
    }

    /// Sends the SYN. If the guest has sent a SYN, sends the SYN,ACK. The sequence number is always the same (Q2).
    pub(super) fn send_syn(&mut self, cx: &mut Context<'_, W>) {
        let answering = self.phase != Phase::SynSent;
        let scale = (!answering || self.receive.scale > 0).then_some(WINDOW_SCALE);
        let options = Options {
            mss: Some(largest_segment(self.ends.guest, cx.settings)),
            window_scale: scale,
            sack_permitted: !answering || self.send.guest_has_sack(),
            ..Options::default()
        };
        let (flags, ack) =
            if answering { (Flags::SYN | Flags::ACK, self.receive.next) } else { (Flags::SYN, Seq(0)) };
        let fields = Fields {
            seq: self.send.syn_seq(),
            ack,
            flags,
            window: u16::MAX,
            urgent: 0,
            class: self.peer_class,
            options,
        };
        emit::bare(&self.ends, fields, cx).ok();
    }

    /// Handles the readiness of the connecting socket.
    pub(super) fn on_connected(&mut self, readiness: Readiness, cx: &mut Context<'_, W>) -> Result<(), End> {
        if readiness.error
            && let Some(errno) = self.socket.take_error()
        {
            return Err(End::SocketFailed(errno));
        }
        if readiness.writable {
            self.phase = Phase::SynReceived;
            self.start_handshake(cx);
        }
        Ok(())
    }

    /// Handles a segment before the guest's SYN was answered. A repeated SYN is ignored.
    pub(super) fn while_connecting(&mut self, segment: &Segment<'_, impl Payload>) -> Result<(), End> {
        if segment.flags().contains(Flags::RST) { Err(End::GuestReset) } else { Ok(()) }
    }

    /// Handles a segment while the guest's SYN,ACK is expected.
    pub(super) fn while_syn_sent(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        cx: &mut Context<'_, W>,
    ) -> Result<(), End> {
        let flags = segment.flags();
        let acks_our_syn = flags.contains(Flags::ACK) && self.send.is_all(segment.ack());
        if flags.contains(Flags::RST) {
            return if acks_our_syn { Err(End::GuestReset) } else { Ok(()) };
        }
        if flags.contains(Flags::ACK) && !acks_our_syn {
            // The segment belongs to an earlier connection with these ports. A reset makes the guest drop that
            // connection (RFC 9293 §3.5.2).
            Reset::answering(self.ends, self.peer_class, segment).send(cx).ok();
            return Ok(());
        }
        if !flags.contains(Flags::SYN | Flags::ACK) {
            return Ok(());
        }
        let options = Options::parse(segment.options);
        self.send.on_syn(segment, &options, largest_segment(self.ends.guest, cx.settings));
        let scale = if options.window_scale.is_some() { WINDOW_SCALE } else { 0 };
        self.receive = Receiver::new(segment.seq() + 1, scale).in_turns(cx.rate_limit.window());
        self.send.on_handshake_done(cx.now);
        self.phase = Phase::Established;
        self.receive.ack = AckDue::Now; // sent with the first data, if the socket has data already
        Ok(())
    }

    /// Handles a segment while the SYN,ACK is unacknowledged. If the segment acknowledges the SYN,ACK, its payload is
    /// processed, too (Q3).
    pub(super) fn while_syn_received(
        &mut self,
        segment: &Segment<'_, impl Payload>,
        cx: &mut Context<'_, W>,
    ) -> Result<Handshake, End> {
        let flags = segment.flags();
        if flags.contains(Flags::RST) {
            return Err(End::GuestReset);
        }
        if flags.contains(Flags::SYN) {
            if segment.seq() + 1 == self.receive.next {
                self.send_syn(cx); // the SYN,ACK was lost
            }
            return Ok(Handshake::Waits);
        }
        if !flags.contains(Flags::ACK) || !self.send.is_all(segment.ack()) {
            return Ok(Handshake::Waits);
        }
        self.send.on_handshake_done(cx.now);
        self.send.take_window(segment);
        self.begin_check(cx.now);
        Ok(Handshake::Done)
    }
}
