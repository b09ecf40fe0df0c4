//! Reports of the beginning and end of each flow, and of the guard's refusals (docs/design/flow-log.md).
//!
//! A program that needs reports gives the guard a handle ([`Guard::report_to`](crate::guard::Guard::report_to)), and
//! takes the events at the end of each round. After each [`Event::Begin`], there is exactly one [`Event::End`] with the
//! same flow. Between them there may be [`Event::Failure`]s.

use alloc::{boxed::Box, rc::Rc, sync::Arc, vec::Vec};
use core::{
    cell::RefCell,
    net::{IpAddr, SocketAddr},
};

use wire::domain::MAX_DOTTED_LEN;

use crate::{
    flow::{Endpoints, Protocol},
    forward::spec::Direction,
    host::{Errno, Totals},
    policy::spec::MAX_RULE_LEN,
    quota::{Part, Quota, allocation},
    timer::Instant,
};

/// The handle of a queue of events. Clones share the queue. By default, there is no queue, and nothing is reported.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Rc<RefCell<Queue>>>);

#[derive(Debug)]
struct Queue {
    /// Number of flows so far.
    flows: u64,
    events: Vec<Event>,
    /// The memory of all accounts and of their events.
    quota: Quota,
    /// Maximum number of failures and refusals in the queue.
    most_others: usize,
    /// Number of failures and refusals in the queue.
    others: usize,
    unreported: Unreported,
}

/// Numbers of reports for which there was no memory ([`Events::within`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unreported {
    /// Flows whose beginning and end were not reported.
    pub flows: u64,
    /// Failures and refusals that were not reported, and names of servers.
    pub others: u64,
}

impl Queue {
    /// Whether there is room for a failure or refusal. If so, it must be added.
    const fn takes_another(&mut self) -> bool {
        if self.others >= self.most_others {
            self.unreported.others += 1;
            return false;
        }
        self.others += 1;
        true
    }
}

/// An event of a flow.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The flow begins.
    Begin(Arc<Flow>),
    /// The flow has ended.
    End(End),
    /// What was sent in a flow of datagrams did not arrive. The flow continues.
    Failure(Failure),
    /// The guard refused the flow, or its first bytes, or a DNS question, or a packet that is not of a flow.
    Refusal(Refusal),
}

/// A flow that has begun. The program may pass it to another thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Number of the flow. The first flow has number 1. Numbers are not reused.
    pub number: u64,
    /// The time at which the flow began.
    pub begun: Instant,
    /// The protocol, direction and ends of the flow.
    pub start: Start,
    /// The reason why the flow was allowed.
    pub basis: Basis,
    /// The memory of the flow's account and events. By default, it is not counted.
    pub memory: Part,
}

impl Flow {
    /// Memory of the account of a flow with this basis, in bytes: the account, the flow, and an event for each of its
    /// beginning and end, in a queue that may be twice as long as needed.
    fn account_bytes(basis: &Basis) -> usize {
        let fixed = allocation(size_of::<Open>()) + allocation(size_of::<Self>() + 2 * size_of::<usize>());
        fixed + 4 * size_of::<Event>() + basis.bytes()
    }
}

/// The properties of a flow that are known when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The protocol.
    pub protocol: Protocol,
    /// Outbound: the guest began the flow. Inbound: the host's side began the flow.
    pub direction: Direction,
    /// The ends, as the guest sees them. For pings, the guest's port is the identifier, and the remote port is zero.
    pub ends: Endpoints,
    /// The remote on the host's side, after translation (behaviour §5.2), if it is known.
    pub peer: Option<SocketAddr>,
    /// Whether the flow bypasses the link.
    pub bypasses: bool,
}

impl Start {
    /// A flow through the link whose remote on the host's side is not known.
    #[must_use]
    pub const fn of(protocol: Protocol, direction: Direction, ends: Endpoints) -> Self {
        Self { protocol, direction, ends, peer: None, bypasses: false }
    }

    /// The traffic, in bytes: `requests` from the party that began the flow, and `replies` from the other party.
    pub(crate) const fn totals(&self, requests: u64, replies: u64) -> Totals {
        match self.direction {
            Direction::Outbound => Totals::bytes(requests, replies),
            Direction::Inbound => Totals::bytes(replies, requests),
        }
    }
}

/// The reason why a flow was allowed or refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// The text of the rule, of the default, or of another reason of the guard. None if the guard did not use a rule.
    pub rule: Option<Box<str>>,
    /// The names for which the guest was given the remote address, at most [`MOST_NAMES`].
    pub names: Vec<Box<str>>,
}

impl Basis {
    /// Allocated memory, in bytes.
    fn bytes(&self) -> usize {
        let texts = self.rule.iter().chain(&self.names).map(|text| allocation(text.len()));
        let list =
            if self.names.is_empty() { 0 } else { allocation(self.names.capacity() * size_of::<Box<str>>()) };
        list + texts.sum::<usize>()
    }
}

/// Maximum number of names in a [`Basis`].
pub const MOST_NAMES: usize = 8;
/// Maximum memory of a refusal in the queue, in bytes: a rule, the names of an address, and the name that was refused.
/// The queue may be twice as long as needed.
const LONGEST: usize = 2 * size_of::<Event>()
    + allocation(MAX_RULE_LEN)
    + allocation(MOST_NAMES * size_of::<Box<str>>())
    + (MOST_NAMES + 2) * allocation(MAX_DOTTED_LEN);

/// The end of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The flow.
    pub flow: Arc<Flow>,
    /// The name of the server that the client sent in its first bytes, if they were read.
    pub name: Option<Box<str>>,
    /// The cause of the end.
    pub how: How,
    /// Whether the flow was open: the host's socket was opened, and both sides of a connection were connected.
    pub opened: bool,
    /// The last failure of a flow of datagrams, if no answer came after it.
    pub failure: Option<Errno>,
    /// The traffic of the flow: from the guest (sent) and to the guest (received). None if it is not known.
    pub totals: Option<Totals>,
}

/// What was sent in a flow of datagrams did not arrive: the host refused to send it, or an ICMP error came back. The
/// same failure is reported once, until an answer comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The flow.
    pub flow: Arc<Flow>,
    /// The error.
    pub errno: Errno,
}

/// The cause of a flow's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The flow ended regularly: both streams of a connection have ended, or the guest has left the group.
    Closed,
    /// The guest has reset the connection.
    GuestReset,
    /// The connection bypassed the link, and one of its sides has reset the connection or has failed.
    Reset,
    /// The host's socket could not be opened or connected, or has failed, with this error.
    Failed(Errno),
    /// The connection was aborted on both sides.
    Aborted(Abort),
    /// The guard refused the client's first bytes.
    Refused,
    /// The rules were replaced, and the new rules deny the flow.
    Forbidden,
    /// The flow was idle until its time-out.
    Idle,
    /// The flow made room for another one, since a limit was reached.
    Displaced,
    /// The program's user has ended the flow ([`Round::end_flow`](crate::stack::Round::end_flow)).
    Requested,
    /// The program ends.
    Exit,
}

/// Why a connection was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The guest did not answer the handshake, or does not acknowledge data.
    Silent,
    /// The connection was idle for hours.
    Idle,
    /// The guest has disconnected.
    Gone,
    /// The connection made room for another one.
    Displaced,
    /// The client of a DNS server has sent what is not a query.
    NoQuery,
}

/// A refusal of the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The subject.
    pub what: Refused,
    /// The rule that caused the refusal, and the names of the flow's address.
    pub basis: Basis,
    /// Whether this is an audit: the refusal was only reported, and had no effect.
    pub audit: bool,
}

/// The subject of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A new flow of the guest.
    Flow {
        /// The protocol.
        protocol: Protocol,
        /// The ends, as the guest sees them.
        ends: Endpoints,
    },
    /// The first bytes of a flow's client.
    FirstBytes {
        /// The protocol.
        protocol: Protocol,
        /// The ends, as the guest sees them.
        ends: Endpoints,
        /// The server's name in the first bytes, or the reason why there is none.
        claimed: Result<Box<str>, Box<str>>,
    },
    /// A DNS question of the guest, or the answer to it.
    Question {
        /// The guest's end.
        client: SocketAddr,
        /// The name, in the form of [`wire::dns::write_text`].
        name: Box<str>,
        /// The type of the records, as text.
        kind: Box<str>,
        /// Whether the question was allowed, and its answer was refused.
        answered: bool,
    },
    /// A packet of a protocol that is not forwarded.
    Protocol {
        /// The number of the protocol.
        number: u8,
        /// The source of the packet.
        source: IpAddr,
        /// The destination of the packet.
        destination: IpAddr,
    },
    /// The guest's membership of a multicast group.
    Membership {
        /// The source of the guest's message.
        member: IpAddr,
        /// The group.
        group: IpAddr,
    },
    /// A fragment, or all fragments of a packet.
    Fragments {
        /// The source of the packet.
        source: IpAddr,
        /// The destination of the packet.
        destination: IpAddr,
    },
}

impl Event {
    /// Memory of the event, in bytes, without that of its [flow](Flow::memory).
    #[must_use]
    pub fn bytes(&self) -> usize {
        let own = match self {
            Self::Begin(_) | Self::Failure(_) => 0,
            Self::End(End { name, .. }) => name.as_ref().map_or(0, |name| allocation(name.len())),
            Self::Refusal(Refusal { what, basis, .. }) => basis.bytes() + what.bytes(),
        };
        size_of::<Self>() + own
    }
}

impl Refused {
    fn bytes(&self) -> usize {
        match self {
            Self::FirstBytes { claimed: Ok(text) | Err(text), .. } => allocation(text.len()),
            Self::Question { name, kind, .. } => allocation(name.len()) + allocation(kind.len()),
            Self::Flow { .. } | Self::Protocol { .. } | Self::Membership { .. } | Self::Fragments { .. } => 0,
        }
    }
}

impl Events {
    /// A handle of a new queue.
    #[must_use]
    pub fn new() -> Self {
        Self::within(usize::MAX)
    }

    /// A handle of a new queue, for which there are `bytes` bytes: for the accounts of flows and their events, and for
    /// what refers to the flows later. A flow for which there is no memory is not reported. The caller must take the
    /// events of each round.
    #[must_use]
    pub fn within(bytes: usize) -> Self {
        // Events besides those of flows get an eighth. A long one has the texts of a rule and of its names.
        let others = bytes / 8;
        Self(Some(Rc::new(RefCell::new(Queue {
            flows: 0,
            events: Vec::new(),
            quota: Quota::new(bytes - others),
            most_others: others / LONGEST,
            others: 0,
            unreported: Unreported::default(),
        }))))
    }

    /// Whether there is a queue.
    #[must_use]
    pub const fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Removes and returns all events, in the order in which they happened.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        let Some(queue) = &self.0 else { return Vec::new() };
        let mut queue = queue.borrow_mut();
        queue.others = 0;
        core::mem::take(&mut queue.events)
    }

    /// Numbers of reports for which there was no memory.
    #[must_use]
    pub fn unreported(&self) -> Unreported {
        self.0.as_ref().map(|queue| queue.borrow().unreported).unwrap_or_default()
    }

    /// Reports the beginning of a flow. The caller must report the flow's end with the returned account.
    pub(crate) fn begin(&self, start: Start, basis: Basis, now: Instant) -> Account {
        let Some(queue) = &self.0 else { return Account::NONE };
        let mut queued = queue.borrow_mut();
        let Some(memory) = queued.quota.take(Flow::account_bytes(&basis)) else {
            queued.unreported.flows += 1;
            return Account::NONE;
        };
        queued.flows += 1;
        let flow = Arc::new(Flow { number: queued.flows, begun: now, start, basis, memory });
        queued.events.push(Event::Begin(flow.clone()));
        let counted = match start.protocol {
            Protocol::Tcp => Totals::bytes(0, 0),
            Protocol::Udp | Protocol::Icmp => Totals::default(),
        };
        let queue = queue.clone();
        Account(Some(Box::new(Open {
            flow,
            name: None,
            name_memory: Part::NONE,
            counted,
            failure: None,
            queue,
        })))
    }

    /// Reports a refusal.
    pub(crate) fn refuse(&self, refusal: impl FnOnce() -> Refusal) {
        let Some(queue) = &self.0 else { return };
        if queue.borrow_mut().takes_another() {
            let refusal = refusal();
            queue.borrow_mut().events.push(Event::Refusal(refusal));
        }
    }
}

/// The record of a flow that is reported at its end. Empty if nothing is reported, or if the end was reported already.
#[derive(Debug, Default)]
pub struct Account(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    flow: Arc<Flow>,
    name: Option<Box<str>>,
    name_memory: Part,
    counted: Totals,
    /// The last failure that was reported, if no answer came after it.
    failure: Option<Errno>,
    queue: Rc<RefCell<Queue>>,
}

impl Account {
    /// The account of a flow that is not reported.
    pub const NONE: Self = Self(None);

    /// Whether the flow's end has to be reported.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// The flow, while its end has to be reported.
    #[must_use]
    pub fn flow(&self) -> Option<&Arc<Flow>> {
        Some(&self.0.as_ref()?.flow)
    }

    /// Whether this is the account of the flow with this number, and its end has to be reported.
    #[must_use]
    pub fn is_of(&self, number: u64) -> bool {
        self.flow().is_some_and(|flow| flow.number == number)
    }

    /// The name of the server that the client has sent, if it is known.
    pub(crate) fn name(&self) -> Option<&str> {
        self.0.as_ref()?.name.as_deref()
    }

    /// The traffic that was counted so far by [`Account::count`].
    pub(crate) fn counted(&self) -> Totals {
        self.0.as_ref().map(|open| open.counted).unwrap_or_default()
    }

    /// The ends of the flow, as the guest sees them.
    pub(crate) fn ends(&self) -> Option<&Endpoints> {
        Some(&self.0.as_ref()?.flow.start.ends)
    }

    /// Notes the server's name that the client has sent.
    pub(crate) fn note_name(&mut self, name: &str) {
        let Some(open) = &mut self.0 else { return };
        let mut queue = open.queue.borrow_mut();
        match queue.quota.take(allocation(name.len())) {
            Some(memory) => (open.name, open.name_memory) = (Some(name.into()), memory),
            None => queue.unreported.others += 1,
        }
    }

    /// Counts a number of packets, and their payload in bytes. If `request` is true, the packets came from the party
    /// that began the flow, else from the other party.
    pub(crate) fn count(&mut self, request: bool, bytes: usize, packets: usize) {
        let Some(open) = &mut self.0 else { return };
        if !request {
            open.failure = None;
        }
        let of_guest = request == (open.flow.start.direction == Direction::Outbound);
        let amount = if of_guest { &mut open.counted.sent } else { &mut open.counted.received };
        amount.add(bytes, packets);
    }

    /// Reports that what was sent in a flow of datagrams did not arrive.
    pub(crate) fn note_failure(&mut self, errno: Errno) {
        let Some(open) = self.0.as_mut().filter(|open| open.failure != Some(errno)) else { return };
        open.failure = Some(errno);
        let Open { flow, queue, .. } = &**open;
        let mut queue = queue.borrow_mut();
        if queue.takes_another() {
            queue.events.push(Event::Failure(Failure { flow: flow.clone(), errno }));
        }
    }

    /// Reports the flow's end, with the counted traffic.
    pub fn close(&mut self, how: How) {
        let counted = self.0.as_ref().map(|open| open.counted);
        self.close_with(how, true, counted);
    }

    /// Reports the end of a flow whose socket could not be opened or connected.
    pub fn close_unopened(&mut self, errno: Errno) {
        self.close_with(How::Failed(errno), false, Some(self.counted()));
    }

    /// Reports the flow's end. `requests` and `replies` are the numbers of bytes from the party that began the flow,
    /// and from the other party.
    pub(crate) fn close_bytes(&mut self, how: How, requests: u64, replies: u64) {
        let Some(open) = &self.0 else { return };
        let totals = open.flow.start.totals(requests, replies);
        self.close_with(how, true, Some(totals));
    }

    /// Reports the flow's end, with these totals. `opened` is [`End::opened`].
    pub(crate) fn close_with(&mut self, how: How, opened: bool, totals: Option<Totals>) {
        let Some(Open { flow, name, failure, queue, .. }) = self.0.take().map(|open| *open) else { return };
        queue.borrow_mut().events.push(Event::End(End { flow, name, how, opened, failure, totals }));
    }
}
