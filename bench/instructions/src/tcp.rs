//! A TCP connection through the whole engine, to a socket that always takes and always has bytes.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::addr::Guest;
use engine::context::World;
use engine::flow::FlowId;
use engine::forward::spec::Direction;
use engine::host::{Errno, Host, NoSocket, Readiness, SocketError, TcpSocket};
use engine::link::{Full, Layout, Link, Slot};
use engine::memory::Plain;
use engine::pressure::Pressure;
use engine::stack::{Seeds, Stack};
use engine::timer::Instant;
use testkit::guest;
use testkit::settings::{GUEST_MAC, limits, settings};
use wire::ethernet;
use wire::frame;
use wire::ipv4;
use wire::offload::Offload;
use wire::tcp::{Flags, Header, MAX_OPTIONS_LEN, Options, Segment, Seq};

use crate::repeat;

/// Payload of the guest's segments, in bytes.
const SEGMENT: usize = 1460;
/// Offset of the TCP header in a frame, in bytes.
const TCP_AT: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
/// The time between two rounds.
const PAUSE: Duration = Duration::from_micros(10);

enum Counted {}

impl World for Counted {
    type Memory = Plain;
    type Host = Sockets;
    type Link = Discard;
}

/// A link that keeps the last frame only.
struct Discard {
    buffer: Vec<u8>,
    len: usize,
}

impl Link for Discard {
    type Memory = Plain;

    fn prepare(&mut self, _: Layout) -> bool {
        true
    }

    fn slot(&mut self, layout: Layout) -> Slot<'_, Plain> {
        Slot::in_buffer(&mut self.buffer, layout)
    }

    fn send(&mut self, _: Layout, len: usize, _: &Offload) -> Result<(), Full> {
        self.len = len;
        Ok(())
    }
}

/// Opens one stream socket.
#[derive(Default)]
struct Sockets {
    flow: Option<FlowId>,
}

/// A socket that takes all bytes, and has as many as are asked for.
struct Endless;

impl TcpSocket for Endless {
    type Memory = Plain;
    const MAX_PIECES: usize = 64;

    fn send(&mut self, payload: &[u8]) -> Result<usize, SocketError> {
        Ok(black_box(payload).len())
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn send_urgent(&mut self, _: u8) -> Result<(), SocketError> {
        Ok(())
    }

    fn peek(&mut self, _: u32, room: &mut [u8]) -> Result<usize, SocketError> {
        Ok(room.len())
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        None
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        Ok(len)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        Ok(())
    }

    fn unacknowledged(&mut self) -> u32 {
        0
    }

    fn take_error(&mut self) -> Option<Errno> {
        None
    }

    fn keep_alive(&mut self) {}

    fn reset_on_close(&mut self) {}

    fn set_traffic_class(&mut self, _: u8) {}

    fn peer_traffic_class(&mut self) -> Option<u8> {
        None
    }
}

/// The error for all other kinds of sockets.
const NOT_SUPPORTED: Errno = Errno(97);

impl Host for Sockets {
    type Memory = Plain;
    type Tcp = Endless;
    type Udp = NoSocket<Plain>;
    type Ping = NoSocket<Plain>;

    fn outbound_source(&mut self, _: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        None
    }

    fn is_own(&mut self, _: SocketAddr) -> bool {
        false
    }

    fn tcp_connect(
        &mut self,
        flow: FlowId,
        _: Option<IpAddr>,
        _: SocketAddr,
        _: u8,
    ) -> Result<Endless, Errno> {
        self.flow = Some(flow);
        Ok(Endless)
    }

    fn tcp_watch(&mut self, _: FlowId, _: &Endless) -> Result<(), Errno> {
        Ok(())
    }

    fn udp_open(&mut self, _: FlowId, _: IpAddr, _: u16) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_open_shared(&mut self, _: SocketAddr, _: u16) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_join(&mut self, _: FlowId, _: SocketAddr) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_connect(
        &mut self,
        _: FlowId,
        _: Direction,
        _: SocketAddr,
        _: u16,
    ) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }

    fn udp_watch(&mut self, _: FlowId, _: &NoSocket<Plain>) -> Result<(), Errno> {
        Err(NOT_SUPPORTED)
    }

    fn ping_open(
        &mut self,
        _: FlowId,
        _: Option<IpAddr>,
        _: IpAddr,
        _: u16,
    ) -> Result<NoSocket<Plain>, Errno> {
        Err(NOT_SUPPORTED)
    }
}

/// An established connection, and what the guest sends next.
struct Connection {
    stack: Stack<Counted>,
    host: Sockets,
    link: Discard,
    now: Instant,
    seq: Seq,
    ack: Seq,
}

impl Connection {
    fn new() -> Self {
        let settings = settings();
        let guest = Guest::new(&settings, Some(GUEST_MAC));
        let seeds = Seeds { hash_key: [7; 16], isn_secret: [7; 16], query_secret: [7; 16], advertisement: 1 };
        let now = Instant::from_micros(0);
        let mut connection = Self {
            stack: Stack::new(settings, guest, limits(), seeds, now),
            host: Sockets::default(),
            link: Discard { buffer: vec![0; frame::MAX_LEN], len: 0 },
            now,
            seq: Seq(1),
            ack: Seq(0),
        };
        connection.establish();
        connection
    }

    fn establish(&mut self) {
        let mut bytes = [0; MAX_OPTIONS_LEN];
        let options = Options {
            mss: Some(SEGMENT as u16),
            window_scale: Some(4),
            sack_permitted: true,
            ..Options::default()
        };
        let len = options.emit(&mut bytes);
        let _ = self.send(&self.segment(Flags::SYN, &bytes[..len], 0));
        if let Some(flow) = self.host.flow {
            self.ready(flow, Readiness { writable: true, ..Readiness::default() });
        }
        let answer = guest::segment(&self.link.buffer[..self.link.len])
            .map(|(_, segment): (_, Segment<'_>)| segment.seq());
        (self.seq, self.ack) = (self.seq + 1, answer.unwrap_or_default() + 1);
        let _ = self.send(&self.segment(Flags::ACK, &[], 0));
        assert_eq!(self.stack.tcp().len(), 1, "the connection is established");
    }

    fn segment(&self, flags: Flags, options: &[u8], len: usize) -> Vec<u8> {
        let headers = guest::headers([198, 51, 100, 2].into(), [203, 0, 113, 1].into());
        let header = Header::new((4000, 80), self.seq, self.ack, flags, 0xffff, options.len());
        guest::tcp(&headers, header, options, len, |payload| payload.fill(7)).0
    }

    /// One round, with a frame of the guest.
    fn send(&mut self, bytes: &[u8]) -> Pressure {
        self.now = self.now + PAUSE;
        let mut round = self.stack.round(self.now, &mut self.host, &mut self.link);
        round.frame(frame::head(bytes), bytes, &Offload::VERIFIED);
        round.finish()
    }

    /// One round, in which the socket is ready.
    fn ready(&mut self, flow: FlowId, readiness: Readiness) {
        let mut round = self.stack.round(self.now, &mut self.host, &mut self.link);
        round.ready(flow, readiness);
        let _ = round.finish();
    }
}

/// Sets a field of 32 bits of the TCP header.
fn set(frame: &mut [u8], at: usize, value: Seq) {
    frame[TCP_AT + at..TCP_AT + at + 4].copy_from_slice(&value.0.to_be_bytes());
}

/// A round with one full segment, which the socket takes. Every second one is acknowledged.
pub(crate) fn segment_to_socket(count: u32) {
    let mut connection = Connection::new();
    let mut frame = connection.segment(Flags::ACK, &[], SEGMENT);
    repeat(count, || {
        set(&mut frame, 4, connection.seq);
        connection.seq += SEGMENT as u32;
        connection.send(&frame)
    });
}

/// A round with an acknowledgment of a super-frame, which makes room for the next one.
pub(crate) fn frame_to_guest(count: u32) {
    let mut connection = Connection::new();
    let mut frame = connection.segment(Flags::ACK, &[], 0);
    if let Some(flow) = connection.host.flow {
        connection.ready(flow, Readiness { readable: true, ..Readiness::default() });
    }
    let len = connection.link.len - TCP_AT - wire::tcp::HEADER_LEN;
    repeat(count, || {
        connection.ack += len as u32;
        set(&mut frame, 8, connection.ack);
        connection.send(&frame)
    });
}
