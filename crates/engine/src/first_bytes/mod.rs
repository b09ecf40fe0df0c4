//! The client's first bytes, and the host name in them, which the engine reads before anything reaches a server.
//!
//! Many names share an address. So a connection that is allowed by name alone is checked once more, by the name in the
//! client's first bytes. The name is in the ClientHello of TLS (RFC 6066 §3), also within QUIC (RFC 9001), or in the
//! first request of HTTP/1 (RFC 9112 §3.2).
//!
//! [`FirstBytes`] reads a TCP stream, [`FirstDatagrams`] the datagrams of a UDP flow. Both readers are bounded by
//! [`MAX_LEN`], and their answer does not depend on how the bytes are split. Both are strict: they refuse bytes that a
//! server could read differently, since the sender chooses every byte.
//!
//! Only the first message is read. Later requests of an HTTP/1 connection are not read. The second ClientHello after a
//! HelloRetryRequest is not read either, and must have the same name (RFC 8446 §4.1.2).

mod host_name;
mod http;
mod pieces;
mod quic;
mod quic_keys;
mod reader;
#[cfg(test)]
mod tests;
mod tls;

pub use host_name::HostName;
pub use quic::FirstDatagrams;

/// Maximum number of bytes that are read and kept to find a name.
pub const MAX_LEN: usize = 16 * 1024;

/// What the bytes so far contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No answer yet: more bytes are needed.
    More,
    /// The name of the server that the client asks for.
    Name(HostName),
    /// The bytes have no name, and none will follow.
    NoName(Why),
}

/// The reason why there is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The protocol is none of TLS, HTTP/1 and QUIC.
    #[error("unknown protocol")]
    UnknownProtocol,
    /// The protocol is HTTP/2 without TLS (RFC 9113 §3.4).
    #[error("HTTP/2 without TLS")]
    Http2,
    /// A packet's long header has a version that is not QUIC version 1 or 2.
    #[error("unknown QUIC version {0:#010x}")]
    QuicVersion(u32),
    /// A ClientHello has no server_name extension, or a request has no Host field.
    #[error("no server name")]
    NoServerName,
    /// The name is an address, or is not a valid host name.
    #[error("server name is not a host name")]
    NotAHostName,
    /// There is more than one name, or the same bytes were sent with different values.
    #[error("contradictory server names")]
    Contradiction,
    /// The message is malformed, or uses an obsolete form that servers read differently.
    #[error("malformed first message")]
    Malformed,
    /// The message is longer than [`MAX_LEN`], or has too many parts.
    #[error("first message is too long")]
    TooLong,
    /// There is no memory left to read it.
    #[error("no memory left for first messages")]
    NoRoom,
    /// A UDP flow has too many QUIC connections at once.
    #[error("too many QUIC connections")]
    TooManyConnections,
    /// The ClientHello has an encrypted part, which [`Ech::Refuse`] forbids.
    #[error("encrypted ClientHello")]
    Ech,
}

/// What to do with a ClientHello that has an encrypted_client_hello extension.
///
/// The extension does not prove that the name is encrypted: browsers send it with random content (GREASE) to every
/// server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ech {
    /// The server name outside the encrypted part is used.
    #[default]
    OuterName,
    /// The answer is that there is no name: [`Why::Ech`].
    Refuse,
}

/// The protocol of a TCP stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TLS.
    Tls,
    /// HTTP/1.
    Http,
}

/// The first bytes of a TCP stream.
#[derive(Debug)]
pub struct FirstBytes {
    ech: Ech,
    state: State,
    /// Number of bytes that were read.
    fed: usize,
    protocol: Option<Protocol>,
    has_ech: bool,
}

#[derive(Debug)]
enum State {
    /// No byte has been read.
    Undecided,
    Tls(tls::Records),
    Http(http::Head),
    /// The answer is known.
    Done(Result<HostName, Why>),
}

impl FirstBytes {
    /// A reader that has read no byte.
    #[must_use]
    pub const fn new(ech: Ech) -> Self {
        Self { ech, state: State::Undecided, fed: 0, protocol: None, has_ech: false }
    }

    /// Reads the next bytes of the stream, in order. An answer other than [`Found::More`] is final: later calls return
    /// the same answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Found {
        let bytes = bytes.get(..MAX_LEN - self.fed).unwrap_or(bytes);
        self.fed += bytes.len();
        let read = self.read(bytes).transpose();
        let read = read.or((self.fed == MAX_LEN).then_some(Err(Why::TooLong)));
        if !matches!(self.state, State::Done(_))
            && let Some(answer) = read
        {
            self.state = State::Done(answer);
        }
        match &self.state {
            State::Done(answer) => answer.clone().into(),
            _ => Found::More,
        }
    }

    /// The protocol that the first bytes show. None before the first byte, and if the protocol is unknown.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        let unknown = matches!(self.state, State::Done(Err(Why::UnknownProtocol)));
        self.protocol.filter(|_| !unknown)
    }

    /// Whether a well-formed ClientHello was read that has an encrypted_client_hello extension.
    #[must_use]
    pub const fn has_ech(&self) -> bool {
        self.has_ech
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Option<HostName>, Why> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        if matches!(self.state, State::Undecided) {
            (self.state, self.protocol) = match first {
                tls::HANDSHAKE => (State::Tls(tls::Records::default()), Some(Protocol::Tls)),
                _ if http::begins_method(first) => (State::Http(http::Head::default()), Some(Protocol::Http)),
                _ => return Err(Why::UnknownProtocol),
            };
        }
        match &mut self.state {
            State::Tls(records) => {
                let Some(hello) = records.feed(bytes)? else { return Ok(None) };
                self.has_ech = hello.has_ech;
                hello.name(self.ech).map(Some)
            }
            State::Http(head) => head.feed(bytes),
            State::Undecided | State::Done(_) => Ok(None),
        }
    }
}

impl From<Result<HostName, Why>> for Found {
    fn from(answer: Result<HostName, Why>) -> Self {
        match answer {
            Ok(name) => Self::Name(name),
            Err(why) => Self::NoName(why),
        }
    }
}
