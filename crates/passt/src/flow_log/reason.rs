//! Why flows fail, in words (docs/troubleshooting.md). The log, the flow log and the API socket have the same texts.

use std::net::SocketAddr;

use engine::events::{Abort, End, Event, Failure, Flow, How, Start};
use engine::flow::Protocol;
use engine::forward::spec::Direction;

use crate::errno::from_engine;
use rustix::io::Errno;

/// The error with which a flow has failed, if it has.
pub(crate) const fn errno(end: &End) -> Option<engine::host::Errno> {
    match end.how {
        How::Failed(errno) => Some(errno),
        _ => end.failure,
    }
}

/// The reason why a flow has failed. `None`: it has not.
pub(crate) fn of_end(end: &End) -> Option<&'static str> {
    let start = &end.flow.start;
    if let Some(errno) = errno(end) {
        return Some(of_error(from_engine(errno), start, end.opened));
    }
    Some(match end.how {
        How::GuestReset if !end.opened && start.direction == Direction::Inbound => REFUSED_BY_GUEST,
        How::GuestReset if !end.opened => "the guest gave up before the peer answered",
        How::Reset => "reset by one side",
        How::Aborted(Abort::Silent) if !end.opened => "time-out: the guest does not answer the handshake",
        How::Aborted(Abort::Silent) => "time-out: the guest does not acknowledge data any more",
        How::Aborted(Abort::Idle) => "idle for hours",
        How::Aborted(Abort::Gone) => "the guest has disconnected",
        How::Aborted(Abort::Displaced) | How::Displaced => {
            "a limit was reached: another flow needed the place"
        }
        How::Aborted(Abort::NoQuery) => "the guest sent no DNS query",
        How::Refused => "policy: the client's first bytes were refused",
        How::Forbidden => "policy: the new rules deny it",
        How::Idle if has_no_answer(end) && start.direction == Direction::Inbound => {
            "time-out: no answer of the guest"
        }
        How::Idle if has_no_answer(end) => "time-out: no answer of the peer",
        How::Closed | How::GuestReset | How::Failed(_) | How::Idle | How::Requested | How::Exit => {
            return None;
        }
    })
}

/// The reason of a failure of a flow of datagrams.
pub(crate) fn of_failure(failure: &Failure) -> &'static str {
    of_error(from_engine(failure.errno), &failure.flow.start, true)
}

const REFUSED_BY_GUEST: &str = "refused by the guest: nothing listens at this address and port";

fn of_error(errno: Errno, start: &Start, opened: bool) -> &'static str {
    let to_guest = start.direction == Direction::Inbound && start.bypasses;
    match errno {
        Errno::CONNREFUSED if to_guest => REFUSED_BY_GUEST,
        Errno::CONNREFUSED if start.protocol == Protocol::Icmp => "refused by the peer",
        Errno::CONNREFUSED => "refused by the peer: nothing listens at this address and port",
        Errno::CONNRESET | Errno::PIPE => "reset by the peer",
        Errno::TIMEDOUT if opened => "time-out: the peer does not acknowledge data any more",
        Errno::TIMEDOUT => "time-out: the peer does not answer the handshake",
        Errno::NETUNREACH => "no route: neither the host nor a router has one to this address",
        Errno::HOSTUNREACH => {
            "host unreachable: it does not answer ARP or NDP, or a router or firewall rejects it"
        }
        Errno::ACCESS if start.protocol == Protocol::Icmp && !opened => {
            "not permitted: net.ipv4.ping_group_range of the host excludes this program's group"
        }
        Errno::ACCESS | Errno::PERM => {
            "not permitted: a firewall rule, a route (prohibit) or a security policy forbids it"
        }
        Errno::ADDRINUSE => "source taken: another socket of the host has this address and port",
        Errno::ADDRNOTAVAIL => {
            "no source: the host does not have the address, or has no free port for this peer"
        }
        Errno::MFILE | Errno::NFILE => "descriptor budget: too many open files or flows",
        Errno::NOMEM | Errno::NOBUFS | Errno::NOSPC => "out of memory of the host's kernel",
        _ => "error of the host's socket",
    }
}

/// Whether nothing came from the side that did not begin the flow.
fn has_no_answer(end: &End) -> bool {
    end.totals.is_some_and(|totals| {
        let answers = match end.flow.start.direction {
            Direction::Outbound => totals.received,
            Direction::Inbound => totals.sent,
        };
        answers.bytes == 0 && answers.packets.unwrap_or(0) == 0
    })
}

/// A line for the log, if the event is a failure.
pub(crate) fn sentence(event: &Event) -> Option<String> {
    let (flow, reason, errno) = match event {
        Event::End(end) => (&end.flow, of_end(end)?, errno(end)),
        Event::Failure(failure) => (&failure.flow, of_failure(failure), Some(failure.errno)),
        Event::Begin(_) | Event::Refusal(_) => return None,
    };
    let errno = errno.map(|errno| format!(" (error {})", errno.0)).unwrap_or_default();
    Some(format!("{} has failed: {reason}{errno}", Ends(flow)))
}

/// The protocol and the ends of a flow, as text. A flow's number here is not the one of other messages of the log.
struct Ends<'a>(&'a Flow);

impl std::fmt::Display for Ends<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Start { protocol, direction, ends, .. } = self.0.start;
        let arrow = if direction == Direction::Inbound { "<-" } else { "->" };
        let [guest, remote] =
            [ends.guest, ends.remote].map(|end| SocketAddr::new(end.ip().to_canonical(), end.port()));
        match protocol {
            Protocol::Icmp => write!(f, "ping {} {arrow} {}", guest.ip(), remote.ip()),
            Protocol::Tcp => write!(f, "TCP {guest} {arrow} {remote}"),
            Protocol::Udp => write!(f, "UDP {guest} {arrow} {remote}"),
        }
    }
}

#[cfg(test)]
mod tests;
