//! The first request of HTTP/1 (RFC 9112).

use alloc::vec::Vec;

use httparse::{EMPTY_HEADER, Request, Status};

use super::{HostName, Why};

/// Maximum number of fields of a request; common servers accept no more.
const MAX_FIELDS: usize = 128;

/// The start of HTTP/2 without TLS, up to the end of the first line (RFC 9113 §3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n";

/// A request, up to the empty line after its fields.
#[derive(Debug, Default)]
pub(super) struct Head {
    bytes: Vec<u8>,
    /// Offset at which the incomplete line starts.
    line: usize,
}

/// Whether a method can begin with this byte (a `tchar`, RFC 9110 §5.6.2).
pub(super) const fn begins_method(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

impl Head {
    /// Reads the next bytes; returns the name when the request's fields are complete.
    ///
    /// Lines must end with CR and LF. A server may accept LF alone, or read CR as a space (RFC 9112 §2.2): such a
    /// server would read other fields than the engine.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<HostName>, Why> {
        for &byte in bytes {
            let after_cr = self.bytes.last() == Some(&b'\r');
            self.bytes.push(byte);
            let first_line = self.line == 0;
            if first_line && (byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n') || !byte.is_ascii()) {
                return Err(Why::UnknownProtocol);
            }
            if after_cr != (byte == b'\n') {
                return Err(if first_line { Why::UnknownProtocol } else { Why::Malformed });
            }
            if byte != b'\n' {
                continue;
            }
            if first_line {
                check_request_line(&self.bytes)?;
            } else if self.bytes.len() == self.line + 2 {
                return request(&self.bytes).map(Some);
            }
            self.line = self.bytes.len();
        }
        Ok(None)
    }
}

/// Distinguishes HTTP/1 from other line-based protocols, by the end of the first line.
fn check_request_line(line: &[u8]) -> Result<(), Why> {
    match Request::new(&mut []).parse(line) {
        Ok(_) => Ok(()),
        Err(_) if line == HTTP2 => Err(Why::Http2),
        Err(_) => Err(Why::UnknownProtocol),
    }
}

/// Returns the name of the server in a request with all its fields.
fn request(bytes: &[u8]) -> Result<HostName, Why> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(Status::Complete(len)) if len == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Why::TooLong),
        _ => return Err(Why::Malformed),
    }
    let mut hosts = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let host = hosts.next().map(|field| field.value);
    if hosts.next().is_some() {
        return Err(Why::Contradiction);
    }
    let (method, target) = request.method.zip(request.path).ok_or(Why::Malformed)?;
    // If the target has no name, the name in the Host field counts. HTTP/1.0 has no Host field, but clients send the
    // field, and servers use it.
    match (target_authority(method, target)?, host) {
        (None, None) => Err(Why::NoServerName),
        (None, Some(host)) => name(host),
        (Some(target), None) if request.version == Some(0) => name(target),
        (Some(_), None) => Err(Why::NoServerName),
        (Some(target), Some(host)) => {
            let (target, host) = (name(target)?, name(host)?);
            if target == host { Ok(target) } else { Err(Why::Contradiction) }
        }
    }
}

/// The authority in a request's target (RFC 9112 §3.2). The target of CONNECT is the authority itself; a URI contains
/// the authority. None for a path and for `*`.
fn target_authority<'a>(method: &str, target: &'a str) -> Result<Option<&'a [u8]>, Why> {
    if method == "CONNECT" {
        return Ok(Some(target.as_bytes()));
    }
    if target.starts_with('/') || target == "*" {
        return Ok(None);
    }
    let (scheme, rest) = target.split_once("://").ok_or(Why::Malformed)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Why::Malformed);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    Ok(Some(authority.as_bytes()))
}

/// The name in an authority, which may also have a port. An authority with a user name is invalid.
fn name(authority: &[u8]) -> Result<HostName, Why> {
    if authority.is_empty() {
        return Err(Why::NoServerName);
    }
    let mut parts = authority.splitn(2, |&b| b == b':');
    let (name, port) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let name = HostName::parse(name).ok_or(Why::NotAHostName)?;
    if port.iter().all(u8::is_ascii_digit) { Ok(name) } else { Err(Why::Malformed) }
}
