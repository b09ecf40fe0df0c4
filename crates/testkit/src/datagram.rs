//! Datagram and ping sockets in memory. They record the sent datagrams, and return the datagrams and errors of the
//! test.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    vec::Vec,
};

use engine::{
    flow::FlowId,
    host::{
        EchoRequest, Errno, ErrorQueue, OutboundDatagram, PingSocket, QueuedError, Received, SocketError,
        UdpSocket,
    },
    memory::Plain,
};
use zerocopy::IntoBytes;

use super::{exempt::Exempt, stream::Chance};

/// `EMSGSIZE`.
const MESSAGE_TOO_LONG: Errno = Errno(90);
/// `ENETUNREACH`.
pub(super) const NETWORK_UNREACHABLE: Errno = Errno(101);

/// A datagram or message that the engine has sent. The fields are those of [`OutboundDatagram`] and [`EchoRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "see OutboundDatagram")]
pub struct Sent {
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub dont_fragment: bool,
    pub payload: Vec<u8>,
    pub segment_size: Option<u16>,
}

/// The datagrams, errors and results of a socket, which the test reads and sets.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Datagrams that the engine has sent, oldest first. A socket with random results keeps none.
    pub sent: Vec<Sent>,
    /// The errors of the next calls to send. Later calls succeed.
    pub refusals: VecDeque<SocketError>,
    /// The datagrams that the engine receives next.
    pub arriving: VecDeque<(Received, Vec<u8>)>,
    /// The error queue. Each entry has the bytes that it quotes.
    pub errors: VecDeque<(QueuedError, Vec<u8>)>,
    /// The pending error.
    pub pending: Option<Errno>,
    /// Number of calls to receive, including those that found no datagram.
    pub receives: usize,
    /// Whether the socket did not get the requested port.
    pub(super) port_replaced: bool,
    pub(super) chance: Option<Chance>,
}

/// A handle of a datagram or ping socket: the test's handle, or the engine's handle, which can be closed.
#[derive(Clone, Debug, Default)]
pub struct Datagrams(
    pub(super) Rc<RefCell<Mailbox>>,
    #[expect(dead_code, reason = "it is dropped with the engine's end")] Option<Rc<()>>,
);

impl Datagrams {
    /// The engine's handle, and a reference that is valid until the engine closes the handle.
    pub fn open(&self) -> (Self, Weak<()>) {
        let life = Rc::new(());
        let weak = Rc::downgrade(&life);
        (Self(self.0.clone(), Some(life)), weak)
    }

    /// The contents of the mailbox.
    pub fn mailbox(&self) -> std::cell::RefMut<'_, Mailbox> {
        self.0.borrow_mut()
    }

    /// A datagram with the default properties arrives.
    pub fn arrive(&self, from: &str, payload: &[u8]) {
        self.arrive_as(received(from), payload);
    }

    /// A datagram with these properties arrives.
    pub fn arrive_as(&self, received: Received, payload: &[u8]) {
        self.mailbox().arriving.push_back((received, payload.to_vec()));
    }

    /// An error arrives. It quotes the bytes `quote`.
    pub fn error(&self, error: QueuedError, quote: &[u8]) {
        self.mailbox().errors.push_back((error, quote.to_vec()));
    }

    /// The datagrams that were sent since the last call.
    pub fn sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.mailbox().sent)
    }

    fn push(&self, sent: Sent) -> Result<(), SocketError> {
        let _exempt = Exempt::begin();
        assert!(sent.hop_limit > 0 && !sent.destination.ip().is_unspecified(), "{sent:?}");
        let mailbox = &mut *self.mailbox();
        if let Some(refusal) = mailbox.refusals.pop_front() {
            return Err(refusal);
        }
        let Some(chance) = &mailbox.chance else {
            mailbox.sent.push(sent);
            return Ok(());
        };
        if let Some(error) = mailbox.pending.take() {
            return Err(SocketError::Failed(error));
        }
        match chance.borrow_mut().below(24) {
            0 => Err(SocketError::WouldBlock),
            1 => Err(SocketError::Failed(NETWORK_UNREACHABLE)),
            2 => Err(SocketError::Failed(MESSAGE_TOO_LONG)),
            _ => Ok(()),
        }
    }

    fn pull(&self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        let _exempt = Exempt::begin();
        let mut mailbox = self.mailbox();
        mailbox.receives += 1;
        let (mut received, payload) = mailbox.arriving.pop_front().ok_or(SocketError::WouldBlock)?;
        received.len = payload.len().min(buffer.len());
        received.truncated = payload.len() > buffer.len();
        buffer[..received.len].copy_from_slice(&payload[..received.len]);
        Ok(received)
    }
}

/// The default properties of a datagram from `from`.
pub fn received(from: &str) -> Received {
    Received {
        len: 0,
        truncated: false,
        segment_size: None,
        from: from.parse().unwrap(),
        destination: None,
        local: None,
        hop_limit: Some(64),
        traffic_class: 0,
    }
}

impl ErrorQueue for Datagrams {
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError> {
        let _exempt = Exempt::begin();
        let (mut error, payload) = self.mailbox().errors.pop_front()?;
        error.quoted = payload.len().min(quote.len());
        quote[..error.quoted].copy_from_slice(&payload[..error.quoted]);
        Some(error)
    }

    fn take_error(&mut self) -> Option<Errno> {
        let _exempt = Exempt::begin();
        self.mailbox().pending.take()
    }
}

impl UdpSocket for Datagrams {
    type Memory = Plain;

    fn send(&mut self, datagram: &OutboundDatagram<&[u8]>) -> Result<(), SocketError> {
        let _exempt = Exempt::begin();
        assert!(datagram.destination.port() > 0 && datagram.segment_size != Some(0), "{datagram:?}");
        self.push(Sent {
            destination: datagram.destination,
            source: datagram.source,
            hop_limit: datagram.hop_limit,
            traffic_class: datagram.traffic_class,
            dont_fragment: datagram.dont_fragment,
            payload: datagram.payload.to_vec(),
            segment_size: datagram.segment_size,
        })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.pull(buffer)
    }

    fn keeps_port(&self) -> bool {
        !self.mailbox().port_replaced
    }
}

impl PingSocket for Datagrams {
    type Memory = Plain;

    fn send(&mut self, request: &EchoRequest<'_, &[u8]>) -> Result<(), SocketError> {
        let _exempt = Exempt::begin();
        self.push(Sent {
            destination: request.destination,
            source: None,
            hop_limit: request.hop_limit,
            traffic_class: request.traffic_class,
            dont_fragment: request.dont_fragment,
            payload: [request.header.as_bytes(), request.payload].concat(),
            segment_size: None,
        })
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, SocketError> {
        self.pull(buffer)
    }
}

/// A socket that the engine has opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The ID with which the socket reports readiness.
    pub id: FlowId,
    /// The address that was given when the socket was opened.
    pub address: IpAddr,
    /// The requested port or echo identifier.
    pub number: u16,
    /// The test's handle of the socket.
    pub socket: Datagrams,
    /// A reference that is valid until the engine closes its handle.
    pub life: Weak<()>,
}

impl Opened {
    /// Whether the engine has closed the socket.
    pub fn closed(&self) -> bool {
        self.life.strong_count() == 0
    }
}
