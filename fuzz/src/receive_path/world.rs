//! Sockets of a host with any behaviour that a kernel may show. They check the engine's requests.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use engine::{
    context,
    flow::{Endpoints, FlowId, Kind},
    forward::spec::Direction,
    host::{
        Errno, ErrorQueue, Host, Outbound, PingSocket, QueuedError, Received, Request, SocketError,
        TcpSocket, UdpSocket,
    },
    memory::Plain,
};

use super::link::GuestLink;
use crate::mutate::Random;

const EPIPE: i32 = 32;
const EMFILE: i32 = 24;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// The byte at `position` of every stream: of the guest's by sequence number, of the host's counted from its
/// first.
pub(super) const fn pattern(position: u32) -> u8 {
    (position.wrapping_mul(0x9e37_79b1) >> 23) as u8
}

/// The source of choices, shared by all sockets.
type Chance = Rc<RefCell<Random>>;

/// A stream socket, seen from the host.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: FlowId,
    pub(super) ends: Endpoints,
    /// Sequence numbers that the next byte of the guest may have: more than one only before the first byte.
    pub(super) expected: Vec<u32>,
    /// Number of bytes received from the guest.
    pub(super) written: u64,
    pub(super) connected: bool,
    shut: bool,
    /// Where the oldest byte lies that was not discarded, and how many bytes are there from it on.
    base: u32,
    pub(super) available: u32,
    /// How far from the oldest byte on it was looked at.
    peeked: u32,
    /// Offset of the urgent byte from the oldest one.
    pub(super) urgent: Option<u32>,
    /// The peer has ended its stream.
    pub(super) ended: bool,
    /// The pending error.
    pub(super) error: Option<i32>,
    /// Every operation fails.
    pub(super) failed: bool,
    chance: Chance,
}

impl Stream {
    fn rolls(&self, n: usize) -> usize {
        self.chance.borrow_mut().below(n)
    }

    /// Has one of the bytes that are available be urgent, perhaps.
    pub(super) fn place_urgent_byte(&mut self) {
        if self.available > 0 && self.rolls(4) == 0 {
            self.urgent = Some(self.rolls(self.available as usize) as u32);
        }
    }

    /// Takes in bytes of the guest: they must be the next ones of its stream.
    fn take(&mut self, mut bytes: impl Iterator<Item = u8>, len: usize) {
        for _ in 0..len {
            let Some(byte) = bytes.next() else { break };
            self.expected.retain(|&seq| pattern(seq) == byte);
            assert!(
                !self.expected.is_empty(),
                "byte {} of the guest's stream is not the next one",
                self.written
            );
            for seq in &mut self.expected {
                *seq = seq.wrapping_add(1);
            }
            self.written += 1;
        }
    }
}

#[derive(Debug)]
pub(super) struct StreamSocket(Rc<RefCell<Stream>>);

impl TcpSocket for StreamSocket {
    type Memory = Plain;
    const MAX_PIECES: usize = 2;

    fn send(&mut self, payload: &[u8]) -> Result<usize, SocketError> {
        self.send_pieces(&[payload])
    }

    fn send_pieces(&mut self, pieces: &[&[u8]]) -> Result<usize, SocketError> {
        assert!(pieces.len() <= Self::MAX_PIECES);
        let mut stream = self.0.borrow_mut();
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        assert!(len > 0, "a send of nothing");
        assert!(!stream.shut, "bytes behind the end of the stream");
        assert!(stream.connected, "bytes before the connection stands");
        if stream.failed {
            return Err(SocketError::Failed(Errno(EPIPE)));
        }
        let taken = match stream.rolls(20) {
            0..10 => len,
            10..15 => 1 + stream.rolls(len),
            15..19 => return Err(SocketError::WouldBlock),
            _ if stream.rolls(8) == 0 => {
                stream.failed = true;
                return Err(SocketError::Failed(Errno(EPIPE)));
            }
            _ => len,
        };
        stream.take(pieces.iter().flat_map(|piece| piece.iter().copied()), taken);
        Ok(taken)
    }

    fn send_urgent(&mut self, byte: u8) -> Result<(), SocketError> {
        self.send_pieces(&[&[byte]]).map(drop)
    }

    fn urgent_mark(&mut self) -> Option<u32> {
        self.0.borrow().urgent
    }

    fn peek(&mut self, offset: u32, buffer: &mut [u8]) -> Result<usize, SocketError> {
        let mut stream = self.0.borrow_mut();
        let Some(left) = stream.available.checked_sub(offset) else {
            panic!("a look {offset} bytes on, where {} bytes are", stream.available);
        };
        let mut len = (left as usize).min(buffer.len());
        if len == 0 {
            return match stream.failed {
                true => Err(SocketError::Failed(Errno(ECONNREFUSED))),
                false if stream.ended || buffer.is_empty() => Ok(0),
                false => Err(SocketError::WouldBlock),
            };
        }
        if stream.rolls(8) == 0 {
            len = 1 + stream.rolls(len);
        }
        if let Some(before) = stream.urgent.and_then(|urgent| urgent.checked_sub(offset))
            && before > 0
        {
            len = len.min(before as usize);
        }
        let start = stream.base.wrapping_add(offset);
        for (byte, position) in buffer[..len].iter_mut().zip(0..) {
            *byte = pattern(start.wrapping_add(position));
        }
        stream.peeked = stream.peeked.max(offset + len as u32);
        Ok(len)
    }

    fn discard(&mut self, len: u32) -> Result<u32, SocketError> {
        let mut stream = self.0.borrow_mut();
        assert!(len > 0 && len <= stream.peeked, "{len} bytes discarded of {} seen", stream.peeked);
        stream.peeked -= len;
        stream.available -= len;
        stream.base = stream.base.wrapping_add(len);
        stream.urgent = stream.urgent.and_then(|urgent| urgent.checked_sub(len));
        Ok(len)
    }

    fn shutdown_write(&mut self) -> Result<(), SocketError> {
        let mut stream = self.0.borrow_mut();
        if stream.failed {
            return Err(SocketError::Failed(Errno(EPIPE)));
        }
        stream.shut = true;
        Ok(())
    }

    fn unacknowledged(&mut self) -> u32 {
        match self.0.borrow().rolls(3) {
            0 => 1,
            _ => 0,
        }
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.0.borrow_mut().error.take().map(Errno)
    }

    fn keep_alive(&mut self) {}

    fn reset_on_close(&mut self) {}

    fn set_traffic_class(&mut self, class: u8) {
        assert_eq!(class & 3, 0);
    }

    fn peer_traffic_class(&mut self) -> Option<u8> {
        Some(self.0.borrow().rolls(256) as u8)
    }
}

/// A datagram or ping socket, seen from the host.
#[derive(Debug)]
pub(super) struct Mailbox {
    pub(super) id: FlowId,
    pub(super) arriving: VecDeque<(Received, Vec<u8>)>,
    pub(super) errors: VecDeque<(QueuedError, Vec<u8>)>,
    pub(super) error: Option<i32>,
    chance: Chance,
}

#[derive(Debug)]
pub(super) struct MailboxSocket(Rc<RefCell<Mailbox>>);

impl MailboxSocket {
    fn post(&mut self, destination: SocketAddr, hop_limit: u8) -> Result<(), SocketError> {
        assert!(
            hop_limit > 0 && !destination.ip().is_unspecified(),
            "sent to {destination} with {hop_limit}"
        );
        let mut mailbox = self.0.borrow_mut();
        if let Some(error) = mailbox.error.take() {
            return Err(SocketError::Failed(Errno(error)));
        }
        let chance = mailbox.chance.borrow_mut().below(24);
        match chance {
            0 => Err(SocketError::WouldBlock),
            1 => Err(SocketError::Failed(Errno(ENETUNREACH))),
            2 => Err(SocketError::Failed(Errno(90))),
            _ => Ok(()),
        }
    }

    fn fetch(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let mut mailbox = self.0.borrow_mut();
        let (mut received, payload) = mailbox.arriving.pop_front().ok_or(SocketError::WouldBlock)?;
        received.len = payload.len().min(buffer.len());
        received.truncated = payload.len() > buffer.len();
        buffer[..received.len].copy_from_slice(&payload[..received.len]);
        Ok(received)
    }

    fn fetch_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        let (mut error, payload) = self.0.borrow_mut().errors.pop_front()?;
        error.quoted = payload.len().min(quote.len());
        quote[..error.quoted].copy_from_slice(&payload[..error.quoted]);
        Some(error)
    }
}

impl ErrorQueue for MailboxSocket {
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        self.fetch_error(quote)
    }

    fn take_error(&mut self) -> Option<Errno> {
        self.0.borrow_mut().error.take().map(Errno)
    }
}

impl UdpSocket for MailboxSocket {
    type Memory = Plain;

    fn send(&mut self, datagram: &Outbound<&[u8]>) -> Result<(), SocketError> {
        assert!(datagram.destination.port() > 0 && datagram.segment_size != Some(0), "{datagram:?}");
        self.post(datagram.destination, datagram.hop_limit)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.fetch(buffer)
    }

    /// Never, so that sockets for groups are opened, too.
    fn keeps_port(&self) -> bool {
        false
    }
}

impl PingSocket for MailboxSocket {
    type Memory = Plain;

    fn send(&mut self, request: &Request<'_, &[u8]>) -> Result<(), SocketError> {
        self.post(request.destination, request.hop_limit)
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.fetch(buffer)
    }
}

/// The host: all sockets that the engine keeps open.
#[derive(Debug)]
pub(super) struct World {
    streams: Vec<Rc<RefCell<Stream>>>,
    udp: Vec<Rc<RefCell<Mailbox>>>,
    pings: Vec<Rc<RefCell<Mailbox>>>,
    /// No socket is available.
    pub(super) exhausted: bool,
    /// Ends and sequence number of the segment that the guest sends now.
    pub(super) segment: Option<(Endpoints, u32)>,
    chance: Chance,
}

impl World {
    /// No socket yet. What `seed` says is done.
    pub(super) fn new(seed: u64) -> Self {
        let chance = Rc::new(RefCell::new(Random::new(seed)));
        Self { streams: vec![], udp: vec![], pings: vec![], exhausted: false, segment: None, chance }
    }

    /// A stream socket that was accepted.
    pub(super) fn accepted(&mut self, ends: Endpoints) -> StreamSocket {
        // Its id is told when it is watched.
        let id = FlowId::from_bits(1 << 56);
        let Some(id) = id else { panic!("an id of a connection") };
        self.stream(id, ends, vec![], true)
    }

    fn stream(&mut self, id: FlowId, ends: Endpoints, expected: Vec<u32>, connected: bool) -> StreamSocket {
        let stream = Rc::new(RefCell::new(Stream {
            id,
            ends,
            expected,
            written: 0,
            connected,
            shut: false,
            base: 0,
            available: 0,
            peeked: 0,
            urgent: None,
            ended: false,
            error: None,
            failed: false,
            chance: self.chance.clone(),
        }));
        self.streams.push(stream.clone());
        StreamSocket(stream)
    }

    fn mailbox(&self, id: FlowId) -> Rc<RefCell<Mailbox>> {
        let (arriving, errors) = (VecDeque::new(), VecDeque::new());
        Rc::new(RefCell::new(Mailbox { id, arriving, errors, error: None, chance: self.chance.clone() }))
    }

    fn may_open(&self) -> Result<(), Errno> {
        let refusal = match self.chance.borrow_mut().below(64) {
            _ if self.exhausted => EMFILE,
            0 => ENETUNREACH,
            1 => ECONNREFUSED,
            _ => return Ok(()),
        };
        Err(Errno(refusal))
    }

    /// The last stream socket opened.
    #[cfg(test)]
    pub(super) fn newest(&self) -> Option<Rc<RefCell<Stream>>> {
        self.streams.last().cloned()
    }

    /// Forgets sockets that the engine has closed.
    pub(super) fn bury(&mut self) {
        self.streams.retain(|stream| Rc::strong_count(stream) > 1);
        self.udp.retain(|mailbox| Rc::strong_count(mailbox) > 1);
        self.pings.retain(|mailbox| Rc::strong_count(mailbox) > 1);
    }

    /// Open stream sockets.
    pub(super) fn streams(&self) -> &[Rc<RefCell<Stream>>] {
        &self.streams
    }

    /// Open datagram sockets.
    pub(super) fn udp(&self) -> &[Rc<RefCell<Mailbox>>] {
        &self.udp
    }

    /// Open ping sockets.
    pub(super) fn pings(&self) -> &[Rc<RefCell<Mailbox>>] {
        &self.pings
    }
}

/// The world is its own host.
impl context::World for World {
    type Memory = Plain;
    type Host = Self;
    type Link = GuestLink;
}

impl Host for World {
    type Memory = Plain;
    type Tcp = StreamSocket;
    type Udp = MailboxSocket;
    type Ping = MailboxSocket;

    fn outbound_source(&mut self, guest: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        Some(guest).filter(|_| guest.is_ipv4())
    }

    fn tcp_connect(
        &mut self,
        flow: FlowId,
        _: Option<IpAddr>,
        destination: SocketAddr,
        _: u8,
    ) -> Result<StreamSocket, Errno> {
        let ip = destination.ip();
        let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
        assert!(!ip.is_unspecified() && !ip.is_multicast() && !mapped, "connection to {destination}");
        assert!(destination.port() > 0, "connection to {destination}");
        self.may_open()?;
        let Some((ends, seq)) = self.segment else { panic!("a connection without a segment") };
        Ok(self.stream(flow, ends, vec![seq.wrapping_add(1)], false))
    }

    fn tcp_watch(&mut self, flow: FlowId, socket: &StreamSocket) -> Result<(), Errno> {
        self.may_open()?;
        socket.0.borrow_mut().id = flow;
        Ok(())
    }

    fn udp_open(&mut self, flow: FlowId, _: IpAddr, _: u16) -> Result<MailboxSocket, Errno> {
        self.may_open()?;
        let mailbox = self.mailbox(flow);
        self.udp.push(mailbox.clone());
        Ok(MailboxSocket(mailbox))
    }

    fn udp_open_shared(&mut self, group: SocketAddr, _: u16) -> Result<MailboxSocket, Errno> {
        assert!(group.ip().is_multicast(), "{group}");
        self.may_open()?;
        // Nothing ever arrives there.
        let nobody = FlowId::from_bits(u64::from(Kind::Udp as u8) << 56).ok_or(Errno(EMFILE))?;
        Ok(MailboxSocket(self.mailbox(nobody)))
    }

    fn udp_join(&mut self, flow: FlowId, at: SocketAddr) -> Result<MailboxSocket, Errno> {
        assert!(at.ip().is_multicast() && at.port() != 0, "{at}");
        self.may_open()?;
        Ok(MailboxSocket(self.mailbox(flow)))
    }

    fn udp_connect(
        &mut self,
        flow: FlowId,
        _: Direction,
        target: SocketAddr,
        port: u16,
    ) -> Result<MailboxSocket, Errno> {
        self.udp_open(flow, target.ip(), port)
    }

    fn udp_watch(&mut self, _: FlowId, _: &MailboxSocket) -> Result<(), Errno> {
        Ok(())
    }

    fn ping_open(
        &mut self,
        flow: FlowId,
        _: Option<IpAddr>,
        _: IpAddr,
        _: u16,
    ) -> Result<MailboxSocket, Errno> {
        self.may_open()?;
        let mailbox = self.mailbox(flow);
        self.pings.push(mailbox.clone());
        Ok(MailboxSocket(mailbox))
    }
}
