//! Lists of the flows that exist, in parts (docs/design/api.md).
//!
//! Only flows whose end will be reported are listed ([`events`](crate::events)): the report has what a list needs, and a
//! number for each flow.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{net::SocketAddr, time::Duration};

use crate::{
    events::{Account, Flow},
    flow::FlowId,
    host::{Path, Totals},
    timer::Instant,
};

/// A flow that exists.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The ID with which [`Round::end_flow`](crate::stack::Round::end_flow) finds the flow.
    pub id: FlowId,
    /// The facts from the begin of the flow.
    pub flow: Arc<Flow>,
    /// The name of the server that the client has sent, if it is known.
    pub name: Option<Box<str>>,
    /// The state of the flow.
    pub state: State,
    /// The time since the flow's last traffic, if it is known.
    pub idle: Option<Duration>,
    /// The address and port of the host's socket, if they are known.
    pub local: Option<SocketAddr>,
    /// The traffic so far, if it is known.
    pub totals: Option<Totals>,
    /// The path to the peer, if it is known.
    pub path: Option<Path>,
}

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The host's socket connects.
    Connecting,
    /// The handshake with the guest is not complete.
    Handshake,
    /// The guard waits for the name in the client's first bytes.
    Checking,
    /// Both sides are connected.
    Established,
    /// At least one of the two streams has ended.
    Closing,
    /// The guard has refused the client's first bytes.
    Refused,
    /// There was no reply yet.
    Unanswered,
    /// Each request had a reply.
    Answered,
    /// Both sides have sent datagrams: more than a few requests, or not yet a reply to each.
    Stream,
}

impl State {
    /// All states, with their names.
    pub const ALL: [(&'static str, Self); 9] = [
        ("connecting", Self::Connecting),
        ("handshake", Self::Handshake),
        ("checking", Self::Checking),
        ("established", Self::Established),
        ("closing", Self::Closing),
        ("refused", Self::Refused),
        ("unanswered", Self::Unanswered),
        ("answered", Self::Answered),
        ("stream", Self::Stream),
    ];

    /// The name of the state.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, state)| *state == self).map_or("", |(name, _)| name)
    }
}

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// TCP connections through the link.
    Tcp,
    /// UDP flows through the link.
    Udp,
    /// UDP clients that bypass the link.
    UdpBypass,
    /// DNS queries and sessions.
    Dns,
    /// Pings.
    Ping,
}

/// Slots of a table. A flow never moves to another slot, so each flow that exists during the whole listing is listed
/// once.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// The first slot.
    pub from: u32,
    /// Number of slots.
    pub slots: u32,
}

/// Collects the flows of a page.
pub struct Lister<'a> {
    now: Instant,
    detail: Detail,
    wants: &'a mut dyn FnMut(&Listed) -> bool,
    listed: &'a mut Vec<Listed>,
}

/// How much is found out about each listed flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What the engine knows.
    Known,
    /// Also what the host knows about the sockets of TCP connections through the link: their address, traffic and path.
    /// To find it takes system calls for each.
    Sockets,
}

impl<'a> Lister<'a> {
    /// Adds the flows for which `wants` returns true to `listed`. When `wants` is called, the traffic, the path and the
    /// socket's address are not known yet: to find them may take a system call.
    pub fn new(
        now: Instant,
        detail: Detail,
        wants: &'a mut dyn FnMut(&Listed) -> bool,
        listed: &'a mut Vec<Listed>,
    ) -> Self {
        Self { now, detail, wants, listed }
    }

    /// Whether the host is asked about sockets.
    pub(crate) fn asks_host(&self) -> bool {
        self.detail == Detail::Sockets
    }

    /// Adds the flow of an account, if it is wanted. `active` is the time of its last traffic. `complete` adds what is
    /// expensive to find.
    pub(crate) fn add(
        &mut self,
        (id, account): (FlowId, &Account),
        state: State,
        active: Option<Instant>,
        complete: impl FnOnce(&mut Listed),
    ) {
        let Some(flow) = account.flow() else { return };
        let mut listed = Listed {
            id,
            flow: flow.clone(),
            name: account.name().map(Into::into),
            state,
            idle: active.map(|active| self.now.since(active)),
            local: None,
            totals: None,
            path: None,
        };
        if (self.wants)(&listed) {
            complete(&mut listed);
            self.listed.push(listed);
        }
    }
}
