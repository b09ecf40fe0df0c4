//! Errors of datagram and ping sockets: the errors that a call returns, and the entries of the error queue.
//!
//! The kernel reports the error of a datagram later: one later call fails with this error, and the details are in the
//! socket's error queue. So the error of a call may belong to the call's datagram or to an earlier datagram. [`send`]
//! handles both cases.

use core::net::{IpAddr, SocketAddr};

use super::{Errno, SocketError};

/// The error queue of a socket (`IP_RECVERR`, `IPV6_RECVERR`).
pub trait ErrorQueue {
    /// Takes the oldest entry, and copies the first bytes of the failed message to `quote`: for UDP the payload, for
    /// ping the header and the payload.
    fn take_queued_error(&mut self, quote: &mut [u8]) -> Option<QueuedError>;

    /// Clears a pending error that has no entry in the queue.
    fn take_error(&mut self) -> Option<Errno>;
}

/// An entry of a socket's error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// The destination of the datagram. The port is zero for ping.
    pub destination: SocketAddr,
    /// Local address to which the error was sent, if known.
    pub local: Option<IpAddr>,
    /// The ICMP message that reported the error, of the destination's family. None if the host itself detected the
    /// error.
    pub report: Option<Report>,
    /// Whether the host refused the datagram of the last call, because the datagram exceeds the path's MTU. Then
    /// `report` is the report that a router would send. The port of `destination` may be missing.
    pub refused: bool,
    /// The sender of the ICMP message, if known.
    pub offender: Option<IpAddr>,
    /// Number of bytes of the sent message that are known.
    pub quoted: usize,
}

/// The contents of an ICMP error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// For "fragmentation needed" and "packet too big": the MTU in bytes. For ICMPv6 "parameter problem": the offset
    /// in bytes.
    pub info: u32,
}

/// The result of sending a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendResult {
    /// The kernel has accepted the datagram.
    Sent,
    /// The socket's buffer is full. The datagram is lost, as any datagram may be.
    Full,
    /// The kernel refused the datagram with this error. If the datagram exceeds the path's MTU, the report is the
    /// report that a router would send.
    Refused(Errno, Option<Report>),
}

/// Sends a datagram by `attempt`. If the attempt fails, `drain` removes the errors from the socket, and there is one
/// more attempt. The failure may belong to an earlier datagram, and the kernel reports it only once.
///
/// `drain` returns the report about a datagram that exceeds the path's MTU, see [`drain`]. Such a datagram is not sent
/// again.
pub(crate) fn send<S>(
    socket: &mut S,
    mut attempt: impl FnMut(&mut S) -> Result<(), SocketError>,
    mut drain: impl FnMut(&mut S) -> Option<Report>,
) -> SendResult {
    let mut attempt_or_drain = || match attempt(socket) {
        Ok(()) => SendResult::Sent,
        Err(SocketError::WouldBlock) => SendResult::Full,
        Err(SocketError::Failed(errno)) => SendResult::Refused(errno, drain(socket)),
    };
    match attempt_or_drain() {
        SendResult::Refused(_, None) => attempt_or_drain(),
        result => result,
    }
}

/// Takes up to `most` entries from the error queue and passes them to `on_error`, with the quoted part of the message.
/// Afterwards, the socket has no pending error. Otherwise, an error without an entry would be reported
/// repeatedly.
///
/// Returns the last report about a datagram that the host refused as too long. Only the sender knows which datagram
/// that was, so `on_error` does not get this report.
pub(crate) fn drain<S: ErrorQueue>(
    socket: &mut S,
    quote: &mut [u8],
    most: usize,
    mut on_error: impl FnMut(&QueuedError, &[u8]),
) -> Option<Report> {
    let mut too_long = None;
    for taken in 0..most {
        let Some(error) = socket.take_queued_error(quote) else {
            if taken == 0 {
                let _cleared = socket.take_error();
            }
            break;
        };
        if error.refused {
            too_long = error.report;
        } else {
            on_error(&error, quote.get(..error.quoted).unwrap_or_default());
        }
    }
    too_long
}
