//! Examines payload that may announce a port, before it is sent (docs/design/port-scan.md).

use std::net::IpAddr;
use std::os::fd::AsFd;

use engine::flow::FlowId;
use engine::forward::announce;
use engine::forward::spec::Direction;
use engine::splice::Side;
use engine::timer::Instant;
use rustix::net::{RecvFlags, recvfrom};
use wire::frame::{self, Body, Transport};
use wire::payload::Payload;

use super::Shard;
use crate::forward::Receivers;
use crate::io::splice::loopback;
use crate::memory;

/// Buffer for one payload. A payload that does not fit can't be an announcement.
pub(super) type Glimpse = Box<[u8; *announce::LENGTHS.end() + 1]>;

impl Shard {
    /// Must be called before the engine handles a frame of the guest.
    pub(super) fn before_frame(&mut self, head: &[u8], whole: memory::Payload<'_>, now: Instant) {
        if !self.forwarder.cares(Direction::Outbound) {
            return;
        }
        let Some((source, payload)) =
            frame::parse_head(head, whole).ok().and_then(|frame| match frame.body {
                Body::Ip(packet) => match packet.transport {
                    Transport::Tcp(segment) => Some((packet.source, segment.payload)),
                    Transport::Udp(datagram) => Some((packet.source, datagram.payload)),
                    _ => None,
                },
                Body::Arp(_) => None,
            })
        else {
            return;
        };
        if announce::LENGTHS.contains(&payload.len()) {
            let len = payload.copy_to(&mut *self.glimpse);
            self.before_payload(Direction::Outbound, source, len, now);
        }
    }

    /// Must be called before a readable socket of a bypassed connection is read.
    pub(super) fn before_bypassed(&mut self, id: FlowId, side: Side, now: Instant) {
        if let Some(direction) = self.bypass.direction(id, side)
            && self.forwarder.may_peek(direction, now)
            && let Some((source, len)) = self.bypass.peek(id, side, &mut *self.glimpse)
        {
            self.before_payload(direction, source, len, now);
        }
    }

    /// Must be called before datagrams that may bypass the link are received from a UDP socket.
    pub(super) fn before_datagram(&mut self, id: FlowId, now: Instant) {
        if let Some(direction) = self.stack.udp().bypass_direction(id)
            && self.forwarder.may_peek(direction, now)
            && let Some(socket) = self.stack.udp().socket(id)
            && let Some((source, len)) = peek(socket, &mut *self.glimpse)
            // Payload of another host announces a port of that host.
            && (direction == Direction::Outbound || source.is_loopback())
        {
            self.before_payload(direction, source, len, now);
        }
    }

    /// Must be called before an accepted connection is forwarded: the client may have sent bytes already. `destination`
    /// is the address to which the client connects.
    ///
    /// Returns false if the client has not sent anything yet. Bytes that arrive from now on may announce a port, so they
    /// must not be forwarded before [`Shard::before_bypassed`] has examined them.
    pub(super) fn before_accepted(
        &mut self,
        client: impl AsFd,
        direction: Direction,
        destination: IpAddr,
        now: Instant,
    ) -> bool {
        if !self.forwarder.may_peek(direction, now) {
            return true;
        }
        match recvfrom(client, &mut *self.glimpse, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((len, _, _)) => {
                self.before_payload(direction, loopback(destination), len, now);
                true
            }
            Err(_) => false,
        }
    }

    /// Examines `len` bytes in `self.glimpse`. These bytes are about to be sent.
    fn before_payload(&mut self, direction: Direction, source: IpAddr, len: usize, now: Instant) {
        let Self { acceptors, sockets, stack, forwarder, glimpse, .. } = self;
        let payload = glimpse.get(..len).unwrap_or_default();
        let rx = Receivers { acceptors, udp: stack.udp_mut(), sockets };
        forwarder.before_payload(direction, source, payload, now, rx);
    }
}

/// Copies the next datagram to `buffer`. The datagram stays in the socket. Returns the datagram's source and length.
fn peek(socket: impl AsFd, buffer: &mut [u8]) -> Option<(IpAddr, usize)> {
    let (len, _, source) = recvfrom(socket, buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT).ok()?;
    let source = std::net::SocketAddr::try_from(source?).ok()?;
    Some((source.ip().to_canonical(), len))
}
