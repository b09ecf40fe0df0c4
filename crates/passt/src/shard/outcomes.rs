//! What happened last to flows of the guest, for `why` of the API socket.

use std::collections::HashMap;
use std::net::SocketAddr;

use engine::events::{Event, Refused};
use engine::flow::Protocol;
use engine::forward::spec::Direction;
use engine::timer::Instant;

use crate::api::ask::Outcome;
use crate::flow_log::reason;

/// Maximum number of destinations. If there are more, the older half is forgotten.
const MOST: usize = 1024;

/// The last outcome for each destination.
#[derive(Debug, Default)]
pub(super) struct Outcomes(HashMap<(Protocol, SocketAddr), Last>);

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    reason: Option<&'static str>,
    errno: Option<i32>,
}

impl Outcomes {
    /// Notes an event of a flow.
    pub(super) fn note(&mut self, event: &Event, now: Instant) {
        let (protocol, remote, reason, errno) = match event {
            Event::Begin(_) => return,
            Event::End(end) if end.flow.start.direction == Direction::Outbound => {
                let start = &end.flow.start;
                (start.protocol, start.ends.remote, reason::of_end(end), reason::errno(end))
            }
            Event::Failure(failure) if failure.flow.start.direction == Direction::Outbound => {
                let start = &failure.flow.start;
                let reason = reason::of_failure(failure);
                (start.protocol, start.ends.remote, Some(reason), Some(failure.errno))
            }
            Event::End(_) | Event::Failure(_) => return,
            Event::Refusal(refusal) => match &refusal.what {
                Refused::Flow { protocol, ends } | Refused::FirstBytes { protocol, ends, .. }
                    if !refusal.audit =>
                {
                    (*protocol, ends.remote, Some("policy: refused by a rule"), None)
                }
                _ => return,
            },
        };
        let last = Last { at: now, reason, errno: errno.map(|errno| errno.0) };
        self.0.insert(key(protocol, remote), last);
        if self.0.len() > MOST {
            let mut times: Vec<Instant> = self.0.values().map(|last| last.at).collect();
            let (_, middle, _) = times.select_nth_unstable(MOST / 2);
            let middle = *middle;
            self.0.retain(|_, last| last.at > middle);
        }
    }

    /// The last outcome of a flow to a destination.
    pub(super) fn last(&self, protocol: Protocol, remote: SocketAddr, now: Instant) -> Option<Outcome> {
        let Last { at, reason, errno } = *self.0.get(&key(protocol, remote))?;
        Some(Outcome { ago: now.since(at), reason, errno })
    }
}

/// The destination without the scope of its address.
fn key(protocol: Protocol, remote: SocketAddr) -> (Protocol, SocketAddr) {
    (protocol, SocketAddr::new(remote.ip().to_canonical(), remote.port()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::events::{End, Flow, How, Start};
    use engine::flow::Endpoints;
    use engine::host::Errno;

    use super::*;

    fn end(port: u16, how: How) -> Event {
        let [guest, remote] = [("192.0.2.2", 40000), ("203.0.113.1", port)]
            .map(|(address, port)| SocketAddr::new(address.parse().unwrap(), port));
        let start = Start::of(Protocol::Tcp, Direction::Outbound, Endpoints { guest, remote });
        let flow = Flow {
            number: 1,
            begun: Instant::from_micros(0),
            start,
            basis: Default::default(),
            memory: Default::default(),
        };
        Event::End(End { flow: Arc::new(flow), name: None, how, opened: false, failure: None, totals: None })
    }

    #[test]
    fn the_last_outcome_counts_and_memory_is_bounded() {
        let at = |seconds: u64| Instant::from_micros(seconds * 1_000_000);
        let mut outcomes = Outcomes::default();
        let last = |outcomes: &Outcomes, port: u16, now: u64| {
            let last = outcomes.last(Protocol::Tcp, SocketAddr::from(([203, 0, 113, 1], port)), at(now))?;
            Some((last.ago.as_secs(), last.reason.is_some(), last.errno))
        };
        outcomes.note(&end(80, How::Failed(Errno(111))), at(1));
        assert_eq!((last(&outcomes, 80, 3), last(&outcomes, 81, 3)), (Some((2, true, Some(111))), None));
        outcomes.note(&end(80, How::Closed), at(4));
        assert_eq!(last(&outcomes, 80, 4), Some((0, false, None)));
        for port in 1000..9000 {
            outcomes.note(&end(port, How::Closed), at(port.into()));
            assert!(outcomes.0.len() <= MOST);
        }
        assert_eq!((last(&outcomes, 8999, 8999), last(&outcomes, 80, 8999)), (Some((0, false, None)), None));
    }
}
