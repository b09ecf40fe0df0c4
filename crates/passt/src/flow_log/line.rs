//! One line of the flow log. docs/flow-log.md describes the fields.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::events::{Basis, End, Event, Flow, How, Refusal, Refused};
use engine::flow::{Endpoints, Protocol};
use engine::forward::spec::Direction;
use engine::host::Totals;
use engine::timer::Instant;
use serde::Serialize;

use super::reason;

/// Maximum length of the text of a rule or reason, in bytes. The text of a rule with many ports may be longer, and is
/// cut.
const MAX_TEXT: usize = 1000;

/// The fields of a line, in order. A field that is `None` is left out.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_protocol: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bypass: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    echo_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    translated: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    translated_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    names: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    how: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_received: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_sent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_received: Option<u64>,
}

impl<'a> Line<'a> {
    /// The first line of the file.
    pub(crate) fn heading(program: &'static str, truncated: bool, time: f64) -> Self {
        Self {
            time: Some(time),
            event: Some("log"),
            program: Some(program),
            version: Some(env!("CARGO_PKG_VERSION")),
            truncated: truncated.then_some(true),
            ..Self::default()
        }
    }

    /// The line of an event. The present time is `time`, in seconds since 1970, and `now` on the engine's clock.
    pub(crate) fn of(event: &'a Event, time: f64, now: Instant) -> Self {
        let line = match event {
            Event::Begin(flow) => Self { event: Some("begin"), ..Self::of_flow(flow) },
            Event::End(end) => Self::of_end(end, now),
            Event::Failure(failure) => Self {
                event: Some("failure"),
                errno: Some(failure.errno.0),
                reason: Some(reason::of_failure(failure).into()),
                ..Self::of_flow(&failure.flow)
            },
            Event::Refusal(refusal) => Self::of_refusal(refusal),
        };
        Self { time: Some(time), ..line }
    }

    /// Appends the line, with its end.
    pub(crate) fn add_to(&self, text: &mut String) {
        // Serialization fails only for maps whose keys are not strings. A line has no such map.
        text.push_str(&serde_json::to_string(self).unwrap_or_default());
        text.push('\n');
    }

    /// The facts from the begin of a flow, without a time and an event.
    pub(crate) fn of_flow(flow: &'a Flow) -> Self {
        let start = &flow.start;
        let direction = match start.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        };
        Self {
            flow: Some(flow.number),
            direction: Some(direction),
            bypass: start.bypasses.then_some(true),
            ..Self::default()
        }
        .between(start.protocol, start.ends)
        .translated_to(start.peer.filter(|peer| !is_same(*peer, start.ends.remote)))
        .because_of(&flow.basis)
    }

    fn of_end(end: &'a End, now: Instant) -> Self {
        let how = match end.how {
            How::Closed => "closed",
            How::GuestReset => "reset-by-guest",
            How::Reset => "reset",
            How::Failed(_) => "failed",
            How::Aborted(_) => "aborted",
            How::Refused => "refused",
            How::Forbidden => "forbidden",
            How::Idle => "idle",
            How::Displaced => "displaced",
            How::Requested => "requested",
            How::Exit => "exit",
        };
        Self {
            event: Some("end"),
            how: Some(how),
            errno: reason::errno(end).map(|errno| errno.0),
            reason: reason::of_end(end).map(Into::into),
            seconds: Some(seconds(now.since(end.flow.begun))),
            ..Self::of_flow(&end.flow)
        }
        .having(end.name.as_deref(), end.totals)
    }

    /// Adds the name that the client has sent, and the traffic.
    pub(crate) fn having(self, name: Option<&'a str>, totals: Option<Totals>) -> Self {
        let (sent, received) = totals.map(|totals| (totals.sent, totals.received)).unzip();
        Self {
            name,
            bytes_sent: sent.map(|sent| sent.bytes),
            bytes_received: received.map(|received| received.bytes),
            packets_sent: sent.and_then(|sent| sent.packets),
            packets_received: received.and_then(|received| received.packets),
            ..self
        }
    }

    fn of_refusal(refusal: &'a Refusal) -> Self {
        let line = Self {
            event: Some("refusal"),
            audit: refusal.audit.then_some(true),
            direction: Some("outbound"),
            ..Self::default()
        };
        let line = match &refusal.what {
            Refused::Flow { protocol, ends } => {
                Self { refused: Some("flow"), ..line }.between(*protocol, *ends)
            }
            Refused::FirstBytes { protocol, ends, claimed } => {
                let name = claimed.as_deref().ok();
                let reason = claimed.as_ref().err().map(|reason| shortened(reason));
                Self { refused: Some("first-bytes"), name, reason, ..line }.between(*protocol, *ends)
            }
            Refused::Question { client, name, kind, answered } => Self {
                refused: Some(if *answered { "answer" } else { "question" }),
                protocol: Some("dns"),
                guest: Some(client.ip().to_canonical()),
                guest_port: Some(client.port()),
                name: Some(name),
                kind: Some(kind),
                ..line
            },
            Refused::Protocol { number, source, destination } => {
                Self { refused: Some("protocol"), ip_protocol: Some(*number), ..line }.of_packet(
                    "ip",
                    *source,
                    *destination,
                )
            }
            Refused::Membership { member, group } => {
                let protocol = if group.is_ipv4() { "igmp" } else { "mld" };
                Self { refused: Some("membership"), ..line }.of_packet(protocol, *member, *group)
            }
            Refused::Fragments { source, destination } => {
                Self { refused: Some("fragments"), ..line }.of_packet("ip", *source, *destination)
            }
        };
        line.because_of(&refusal.basis)
    }

    fn of_packet(self, protocol: &'static str, guest: IpAddr, peer: IpAddr) -> Self {
        Self { protocol: Some(protocol), guest: Some(guest), peer: Some(peer), ..self }
    }

    fn between(self, protocol: Protocol, ends: Endpoints) -> Self {
        let Endpoints { guest, remote } = ends;
        let word = Protocol::ALL.iter().find(|(_, known)| *known == protocol).map(|(word, _)| *word);
        let (id, ports) = match protocol {
            Protocol::Icmp => (Some(guest.port()), None),
            Protocol::Tcp | Protocol::Udp => (None, Some((guest.port(), remote.port()))),
        };
        let (guest_port, peer_port) = ports.unzip();
        // A dual-stack socket has IPv4-mapped addresses.
        let (guest, peer) = (Some(guest.ip().to_canonical()), Some(remote.ip().to_canonical()));
        Self { protocol: word, guest, guest_port, echo_id: id, peer, peer_port, ..self }
    }

    fn translated_to(self, peer: Option<SocketAddr>) -> Self {
        let translated_port = peer.map(|peer| peer.port()).filter(|_| self.peer_port.is_some());
        Self { translated: peer.map(|peer| peer.ip().to_canonical()), translated_port, ..self }
    }

    fn because_of(self, basis: &'a Basis) -> Self {
        Self { rule: basis.rule.as_deref().map(shortened), names: &basis.names, ..self }
    }
}

/// Whether two addresses are the same, without the scope of an IPv6 address.
fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

/// A time in seconds, with microseconds.
pub(crate) fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}

/// `text`, shortened to [`MAX_TEXT`] bytes if it is longer. A shortened text ends with an ellipsis.
fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT)]))
}
