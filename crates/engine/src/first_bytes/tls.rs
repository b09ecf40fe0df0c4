//! The ClientHello of TLS (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2), and the records that carry it.

use alloc::vec::Vec;

use super::{Ech, HostName, MAX_LEN, Why, reader::Reader};

/// Content type of records with handshake messages (RFC 8446 §5.1).
pub(super) const HANDSHAKE: u8 = 22;
/// Major version in every record since SSL 3.0.
const MAJOR_VERSION: u8 = 3;
/// Maximum length of a record's content, in bytes.
const MAX_RECORD: u16 = 1 << 14;
const RECORD_HEADER_LEN: usize = 5;

const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEADER_LEN: usize = 4;
const RANDOM_LEN: usize = 32;
const MAX_SESSION_ID: usize = 32;

/// Type of the extension server_name (RFC 6066 §3).
const SERVER_NAME: u16 = 0;
/// Type of the extension encrypted_client_hello (RFC 9849 §5).
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Type of the extension encrypted_server_name of earlier drafts.
const ENCRYPTED_SERVER_NAME: u16 = 0xffce;
/// Type of a host name in server_name. No other type was ever defined.
const HOST_NAME: u8 = 0;

/// The parts of a ClientHello that identify the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    server_name: Result<HostName, Why>,
    /// Whether the ClientHello has an encrypted part.
    pub(super) has_ech: bool,
}

impl Hello {
    /// The name to use, given the setting for encrypted ClientHellos.
    pub(super) fn name(self, ech: Ech) -> Result<HostName, Why> {
        if self.has_ech && ech == Ech::Refuse { Err(Why::Ech) } else { self.server_name }
    }
}

/// A stream of records, up to the end of the ClientHello.
#[derive(Debug, Default)]
pub(super) struct Records {
    header: Vec<u8>,
    /// Number of bytes of the current record that have not arrived.
    left: usize,
    message: Vec<u8>,
}

impl Records {
    /// Reads the next bytes; returns the ClientHello when it is complete.
    ///
    /// The ClientHello must end at the end of a record: a client sends no further message in the same record (RFC 8446
    /// §5.1).
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<Hello>, Why> {
        let mut bytes = Reader(bytes);
        while !bytes.is_empty() {
            if self.left == 0 {
                let missing = RECORD_HEADER_LEN - self.header.len();
                self.header.extend(bytes.take(missing.min(bytes.0.len())).unwrap_or_default());
                self.left = record_len(&self.header)?.unwrap_or(0);
                continue;
            }
            self.header.clear();
            let part = bytes.take(self.left.min(bytes.0.len())).unwrap_or_default();
            self.left -= part.len();
            self.message.extend(part);
            match message_len(&self.message)? {
                Some(len) if self.message.len() + self.left > len && self.message.len() >= len => {
                    return Err(Why::Malformed);
                }
                Some(len) if self.message.len() == len => return client_hello(&self.message).map(Some),
                _ => {}
            }
        }
        Ok(None)
    }
}

/// The length of the content that follows a record's header. None if the header is not complete.
fn record_len(header: &[u8]) -> Result<Option<usize>, Why> {
    // Other protocols may begin with the byte 22, too, so the second byte is checked as soon as it arrives.
    if header.get(1).is_some_and(|&major| major != MAJOR_VERSION) {
        return Err(Why::UnknownProtocol);
    }
    let &[kind, _, _, high, low] = header else { return Ok(None) };
    let len = u16::from_be_bytes([high, low]);
    // Records of other types and empty records must not come between the records of a message (RFC 8446 §5.1).
    if kind != HANDSHAKE || len == 0 || len > MAX_RECORD {
        return Err(Why::Malformed);
    }
    Ok(Some(len.into()))
}

/// The length of a ClientHello including its header. `message` is the start of the ClientHello. None if the length is
/// not known yet.
pub(super) fn message_len(message: &[u8]) -> Result<Option<usize>, Why> {
    if message.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Err(Why::Malformed);
    }
    let &[_, high, middle, low, ..] = message else { return Ok(None) };
    let len = MESSAGE_HEADER_LEN + u32::from_be_bytes([0, high, middle, low]) as usize;
    if len > MAX_LEN { Err(Why::TooLong) } else { Ok(Some(len)) }
}

/// Parses a whole ClientHello.
pub(super) fn client_hello(message: &[u8]) -> Result<Hello, Why> {
    let extensions = extensions(message).ok_or(Why::Malformed)?;
    let mut extensions = Reader(extensions);
    let (mut server_name, mut has_ech) = (None, false);
    while !extensions.is_empty() {
        let (kind, content) = extensions.u16().zip(extensions.vector16()).ok_or(Why::Malformed)?;
        match kind {
            SERVER_NAME if server_name.is_some() => return Err(Why::Contradiction),
            SERVER_NAME => server_name = Some(host_name(content)?),
            ENCRYPTED_CLIENT_HELLO | ENCRYPTED_SERVER_NAME => has_ech = true,
            _ => {}
        }
    }
    Ok(Hello { server_name: server_name.unwrap_or(Err(Why::NoServerName)), has_ech })
}

/// The extensions of a ClientHello. A ClientHello before TLS 1.3 may have no extensions. None if the ClientHello is
/// malformed.
fn extensions(message: &[u8]) -> Option<&[u8]> {
    let mut body = Reader(message);
    body.take(MESSAGE_HEADER_LEN)?;
    body.u16()?; // legacy_version
    body.take(RANDOM_LEN)?;
    let session_id = body.vector8()?;
    let cipher_suites = body.vector16()?;
    let compression_methods = body.vector8()?;
    let extensions = if body.is_empty() { &[] } else { body.vector16()? };
    let valid = body.is_empty()
        && session_id.len() <= MAX_SESSION_ID
        && !cipher_suites.is_empty()
        && cipher_suites.len().is_multiple_of(2)
        && !compression_methods.is_empty();
    valid.then_some(extensions)
}

/// The name in a server_name extension. A list with more than one entry of any types is refused: a server could use
/// another entry.
fn host_name(content: &[u8]) -> Result<Result<HostName, Why>, Why> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector16().filter(|_| content.is_empty()).ok_or(Why::Malformed)?);
    let (kind, name) = list.u8().zip(list.vector16()).ok_or(Why::Malformed)?;
    if !list.is_empty() {
        return Err(Why::Contradiction);
    }
    if kind != HOST_NAME || name.is_empty() {
        return Err(Why::Malformed);
    }
    Ok(HostName::parse(name).ok_or(Why::NotAHostName))
}
