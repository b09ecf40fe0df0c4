//! The ClientHello in a QUIC client's Initial packets (RFC 9000, RFC 9001, RFC 9369).

use alloc::{boxed::Box, vec::Vec};
use core::time::Duration;

use super::{
    Ech, Found, HostName, MAX_LEN, Why,
    pieces::Pieces,
    quic_keys::{Keys, Version},
    reader::Reader,
    tls,
};
use crate::timer::Instant;

/// Maximum number of connections of one UDP flow. Some clients use one socket for all their connections to a server.
const MAX_CONNECTIONS: usize = 8;
/// Time without an Initial packet after which a connection may be forgotten to make room for a new one. No known server
/// waits longer than 60 s for the rest of a ClientHello.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(120);

/// Bits of a packet's first byte (RFC 9000 §17.2). The fixed bit may be zero (RFC 9287), so this bit is not tested.
const LONG_HEADER: u8 = 0x80;
const MAX_ID_LEN: usize = 20;

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

/// Types of frames (RFC 9000 §19).
mod frame {
    pub(super) const PADDING: u64 = 0x00;
    pub(super) const PING: u64 = 0x01;
    pub(super) const ACK: u64 = 0x02;
    pub(super) const ACK_ECN: u64 = 0x03;
    pub(super) const CRYPTO: u64 = 0x06;
    pub(super) const CONNECTION_CLOSE: u64 = 0x1c;
}

/// The first datagrams of a UDP flow to a QUIC server.
///
/// The caller must feed every datagram of the client until a name is found. After that, the caller must feed every
/// datagram that [may begin a connection](Self::may_begin_connection), for two reasons. First, a client may begin
/// another connection within the same flow. Second, a server drops some packets: those in small datagrams, and those
/// with a packet number that the server has already seen. So a client could first send an allowed name in packets that
/// the server drops, and then another name.
///
/// Connections are distinguished by the destination connection ID of their first Initial packet, from which their keys
/// are derived. So the packets that a client sends after a Retry packet belong to a new connection here, with its own
/// ClientHello. The state of a connection is lost with its reader. So the caller must also ensure that no two readers
/// read packets of the same connection: see [`connections`](Self::connections).
///
/// All connections of a flow together keep [`MAX_LEN`] bytes at most.
#[derive(Debug)]
pub struct FirstDatagrams {
    ech: Ech,
    connections: Vec<Connection>,
    /// The last name that was found.
    name: Option<HostName>,
    has_ech: bool,
    refused: Option<Why>,
}

/// The state of a connection that is needed to read its ClientHello.
#[derive(Debug)]
struct Connection {
    version: Version,
    /// Destination connection ID of the first Initial packet.
    id: Box<[u8]>,
    keys: Keys,
    /// One more than the highest packet number so far.
    next_number: u64,
    stream: Pieces,
    name: Option<HostName>,
    /// Whether the caller has forwarded datagrams of this connection.
    forwarded: bool,
    /// The time of the last packet.
    active: Instant,
}

/// A packet with a long header.
#[derive(Debug)]
struct Packet<'a> {
    version: Version,
    kind: PacketKind,
    id: &'a [u8],
    /// The bytes of the packet.
    bytes: &'a [u8],
    number_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PacketKind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

impl FirstDatagrams {
    /// A reader that has read no datagram.
    #[must_use]
    pub const fn new(ech: Ech) -> Self {
        Self { ech, connections: Vec::new(), name: None, has_ech: false, refused: None }
    }

    /// Reads a datagram of the client. If the answer is [`Found::More`], the caller must hold back the datagram: it
    /// belongs to a ClientHello that is not complete. If the answer is [`Found::Name`], this datagram and the
    /// datagrams held back belong to connections to this name, or to connections whose ClientHello is not complete.
    /// [`Found::NoName`] is final, except for [`Why::TooManyConnections`].
    pub fn feed_datagram(&mut self, datagram: &[u8], now: Instant) -> Found {
        let read = match self.refused {
            Some(why) => Err(why),
            None => self.read(datagram, now),
        };
        match read {
            Ok(Some(name)) => Found::Name(name),
            Ok(None) => Found::More,
            // The state of the known connections is unchanged.
            Err(why @ Why::TooManyConnections) => Found::NoName(why),
            Err(why) => {
                (self.refused, self.connections) = (Some(why), Vec::new());
                Found::NoName(why)
            }
        }
    }

    /// Whether a datagram may contain Initial packets or a ClientHello of DTLS. If not, and a name was found before,
    /// the datagram need not be fed.
    #[must_use]
    pub fn may_begin_connection(datagram: &[u8]) -> bool {
        begins_with_long_header(datagram) || is_dtls_handshake(datagram)
    }

    /// The connections that were read. For each: the destination connection ID of its first packet, and whether the
    /// connection was [marked](Self::mark_forwarded) as forwarded.
    pub fn connections(&self) -> impl Iterator<Item = (&[u8], bool)> {
        self.connections.iter().map(|connection| (&*connection.id, connection.forwarded))
    }

    /// Notes that the caller forwards datagrams of all connections that were read.
    pub fn mark_forwarded(&mut self) {
        self.connections.iter_mut().for_each(|connection| connection.forwarded = true);
    }

    /// Number of bytes that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.iter().map(|connection| connection.stream.len()).sum()
    }

    /// Allocated memory, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let streams =
            self.connections.iter().map(|connection| connection.stream.memory() + connection.id.len());
        self.connections.capacity() * size_of::<Connection>() + streams.sum::<usize>()
    }

    /// Whether no bytes are kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a well-formed ClientHello was read that has an encrypted_client_hello extension.
    #[must_use]
    pub const fn has_ech(&self) -> bool {
        self.has_ech
    }

    /// Reads a datagram. Returns the name of its connection.
    fn read(&mut self, datagram: &[u8], now: Instant) -> Result<Option<HostName>, Why> {
        if is_dtls_handshake(datagram) {
            return Err(Why::UnknownProtocol);
        }
        let mut rest = datagram;
        let (mut id, mut connection) = (None, None);
        // A packet with a short header ends at the end of the datagram. Without its keys, nothing in the packet can be
        // read.
        while begins_with_long_header(rest) {
            let packet = Packet::parse(&mut rest)?;
            // Servers need not ignore packets for another connection in the same datagram (RFC 9000 §12.2).
            if *id.get_or_insert(packet.id) != packet.id || packet.kind == PacketKind::Retry {
                return Err(Why::Malformed);
            }
            if packet.kind == PacketKind::Initial {
                let at = self.initial(&packet, now)?;
                if *connection.get_or_insert(at) != at {
                    return Err(Why::Malformed);
                }
            }
        }
        if id.is_none() && self.connections.is_empty() {
            return Err(Why::UnknownProtocol);
        }
        let name = connection.map_or(&self.name, |at| &self.connections[at].name);
        Ok(name.clone())
    }

    /// Reads an Initial packet. Returns the index of its connection.
    fn initial(&mut self, packet: &Packet<'_>, now: Instant) -> Result<usize, Why> {
        let (at, payload) = self.open(packet, now)?;
        let others = self.connections.iter().enumerate().filter(|&(other, _)| other != at);
        let room = MAX_LEN - others.map(|(_, other)| other.stream.len()).sum::<usize>();
        let connection = &mut self.connections[at];
        connection.active = now;
        connection.read_frames(&payload, room)?;
        if connection.name.is_none()
            && let Some(hello) = connection.hello()?
        {
            self.has_ech |= hello.has_ech;
            connection.name = Some(hello.name(self.ech)?);
            self.name.clone_from(&connection.name);
        }
        Ok(at)
    }

    /// Opens a packet. Returns the index of its connection, which may be a new connection, and the packet's frames.
    ///
    /// After the server's first answer, a client uses the connection ID that the server chose, but the keys are still
    /// derived from the client's original connection ID. A packet that no key can open is refused, not ignored. The
    /// server may have accepted fewer packets than the engine. Then the server expects other packet numbers, and may be
    /// able to open a packet that the engine can't.
    ///
    /// A packet that two keys can open is refused as well. A client knows the keys, and can construct a packet that has
    /// different frames for each key (AES-GCM does not commit to a key). The engine can't know which connection the
    /// server will choose.
    fn open(&mut self, packet: &Packet<'_>, now: Instant) -> Result<(usize, Vec<u8>), Why> {
        let mut opened = None;
        for (at, connection) in self.connections.iter_mut().enumerate() {
            if let Some(payload) = connection.open(packet)
                && opened.replace((at, payload)).is_some()
            {
                return Err(Why::Malformed);
            }
        }
        let known = self.connections.iter().any(|connection| *connection.id == *packet.id);
        let begun = if known { None } else { Connection::begin(packet, now) };
        match (opened, begun) {
            (Some(opened), None) => Ok(opened),
            (None, Some((connection, payload))) => Ok((self.add(connection, now)?, payload)),
            (Some(_), Some(_)) | (None, None) => Err(Why::Malformed),
        }
    }

    /// Adds a new connection. Returns its index.
    fn add(&mut self, connection: Connection, now: Instant) -> Result<usize, Why> {
        if self.connections.len() == MAX_CONNECTIONS || self.len() > MAX_LEN / 2 {
            self.connections.retain(|old| now.since(old.active) < FORGOTTEN_AFTER);
        }
        if self.connections.len() == MAX_CONNECTIONS {
            return Err(Why::TooManyConnections);
        }
        self.connections.push(connection);
        Ok(self.connections.len() - 1)
    }
}

impl Connection {
    /// A new connection that begins with `packet`, and the packet's frames.
    fn begin(packet: &Packet<'_>, now: Instant) -> Option<(Self, Vec<u8>)> {
        let mut connection = Self {
            version: packet.version,
            id: packet.id.into(),
            keys: Keys::of_client(packet.version, packet.id)?,
            next_number: 0,
            stream: Pieces::new(),
            name: None,
            forwarded: false,
            active: now,
        };
        let payload = connection.open(packet)?;
        Some((connection, payload))
    }

    /// The frames of a packet, if the packet belongs to this connection. A server may have changed the version. The
    /// new version has other keys, but they are derived from the same connection ID (RFC 9369 §4.1).
    fn open(&mut self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let changed;
        let keys = if packet.version == self.version {
            &self.keys
        } else {
            changed = Keys::of_client(packet.version, &self.id)?;
            &changed
        };
        let opened = keys.open(packet.bytes, packet.number_at, self.next_number)?;
        self.next_number = self.next_number.max(opened.number + 1);
        Some(opened.payload)
    }

    /// Adds the CRYPTO frames of a packet to the stream. Other frames that are allowed in Initial packets are skipped.
    /// A frame of any other type is an error (RFC 9000 §12.4).
    fn read_frames(&mut self, payload: &[u8], room: usize) -> Result<(), Why> {
        let mut frames = Reader(payload);
        while !frames.is_empty() {
            match frames.varint().ok_or(Why::Malformed)? {
                frame::PADDING | frame::PING => {}
                kind @ (frame::ACK | frame::ACK_ECN) => skip_ack(&mut frames, kind).ok_or(Why::Malformed)?,
                frame::CONNECTION_CLOSE => skip_close(&mut frames).ok_or(Why::Malformed)?,
                frame::CRYPTO => {
                    let (offset, data) = crypto(&mut frames).ok_or(Why::Malformed)?;
                    self.insert(offset, data, room)?;
                }
                _ => return Err(Why::Malformed),
            }
        }
        Ok(())
    }

    /// Adds a piece of the stream. Bytes after the end of the ClientHello belong to a second ClientHello, which
    /// follows a HelloRetryRequest.
    fn insert(&mut self, offset: u64, data: &[u8], room: usize) -> Result<(), Why> {
        let len = tls::message_len(self.stream.start())?.map_or(u64::MAX, |len| len as u64);
        let wanted = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
        if wanted == 0 {
            return Ok(());
        }
        self.stream.insert(offset, data.get(..wanted).unwrap_or(data), room)
    }

    /// The ClientHello, if it is complete.
    fn hello(&self) -> Result<Option<tls::Hello>, Why> {
        let start = self.stream.start();
        let message = tls::message_len(start)?.and_then(|len| start.get(..len));
        message.map(tls::client_hello).transpose()
    }
}

impl<'a> Packet<'a> {
    /// Parses the packet at the start of `datagram`, and advances `datagram` to the end of this packet (RFC 9000
    /// §12.2, §17.2).
    fn parse(datagram: &mut &'a [u8]) -> Result<Self, Why> {
        let mut reader = Reader(datagram);
        let (first, version) = reader.u8().zip(reader.u32()).ok_or(Why::Malformed)?;
        let (version, kinds) = match version {
            VERSION_1 => (Version::V1, [0, 1, 2]),
            VERSION_2 => (Version::V2, [1, 2, 3]),
            other => return Err(Why::QuicVersion(other)),
        };
        let kind = match kinds.iter().position(|&kind| kind == first >> 4 & 3) {
            Some(0) => PacketKind::Initial,
            Some(1) => PacketKind::ZeroRtt,
            Some(2) => PacketKind::Handshake,
            _ => PacketKind::Retry,
        };
        let (id, rest_len) = fields(&mut reader, kind).ok_or(Why::Malformed)?;
        let number_at = datagram.len() - reader.0.len();
        let (bytes, rest) = datagram.split_at(number_at + rest_len);
        *datagram = rest;
        Ok(Self { version, kind, id, bytes, number_at })
    }
}

fn begins_with_long_header(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & LONG_HEADER != 0)
}

/// Whether a datagram begins with a handshake record of DTLS (RFC 6347 §4.1, RFC 9147 §4). Such a record could have the
/// name of another server at the same port. A QUIC packet can begin with these bytes only if its fixed bit is zero,
/// which is rare.
const fn is_dtls_handshake(datagram: &[u8]) -> bool {
    matches!(datagram, [22, 0xfe, ..])
}

/// Reads the fields between a packet's version and its packet number. Returns the destination connection ID, and the
/// length of packet number and payload.
fn fields<'a>(reader: &mut Reader<'a>, kind: PacketKind) -> Option<(&'a [u8], usize)> {
    let id = reader.vector8()?;
    let source_id = reader.vector8()?;
    if id.len().max(source_id.len()) > MAX_ID_LEN {
        return None;
    }
    if kind == PacketKind::Retry {
        return Some((id, reader.0.len()));
    }
    if kind == PacketKind::Initial {
        let token_len = usize::try_from(reader.varint()?).ok()?;
        reader.take(token_len)?;
    }
    let len = usize::try_from(reader.varint()?).ok()?;
    (len <= reader.0.len()).then_some((id, len))
}

/// Reads a CRYPTO frame after its type. Returns the offset and the data (RFC 9000 §19.6).
fn crypto<'a>(frames: &mut Reader<'a>) -> Option<(u64, &'a [u8])> {
    let offset = frames.varint()?;
    let len = usize::try_from(frames.varint()?).ok()?;
    Some((offset, frames.take(len)?))
}

/// Reads an ACK frame after its type (RFC 9000 §19.3).
fn skip_ack(frames: &mut Reader<'_>, kind: u64) -> Option<()> {
    let (_largest, _delay, ranges, _first) =
        (frames.varint()?, frames.varint()?, frames.varint()?, frames.varint()?);
    for _ in 0..ranges {
        let (_gap, _len) = (frames.varint()?, frames.varint()?);
    }
    if kind == frame::ACK_ECN {
        let _counts = (frames.varint()?, frames.varint()?, frames.varint()?);
    }
    Some(())
}

/// Reads a CONNECTION_CLOSE frame after its type (RFC 9000 §19.19).
fn skip_close(frames: &mut Reader<'_>) -> Option<()> {
    let (_error, _frame) = (frames.varint()?, frames.varint()?);
    let len = usize::try_from(frames.varint()?).ok()?;
    frames.take(len).map(drop)
}
