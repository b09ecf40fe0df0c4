//! Room for new listening sockets where old ones are in the way: at `*` of one at an address, for example.
//!
//! The old ones go as soon as the new rules stand, but not before: they keep their ports, which could be lost to others
//! or, without privileges, could not be had back. So those of TCP just stop to listen, and those of UDP suffer the new
//! ones beside them.

use std::collections::BTreeSet;

use engine::flow::FlowId;
use engine::forward::{PortRange, Rule, Table};
use rustix::net::sockopt;

use super::side::{Claim, Open, Receivers};

/// Sockets of our own that have made room.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// Acceptors that don't listen now.
    silenced: Vec<FlowId>,
    /// Sockets of UDP, and their ports.
    suffering: Vec<(u16, FlowId)>,
}

impl Way {
    /// Lets those of `sockets` make room that the rules of `table` would collide with.
    pub(super) fn clear(table: &Table, sockets: Vec<(Claim, Open)>, rx: &Receivers<'_>) -> Self {
        let mut way = Self::default();
        for (claim, socket) in sockets {
            let old = Rule {
                protocol: claim.protocol,
                listen: claim.listen,
                ports: PortRange::single(claim.port),
                target_addr: None,
                target_first: claim.port,
                best_effort: false,
                scan: false,
            };
            if !table.rules().iter().any(|new| new.conflicts_with(&old)) {
                continue;
            }
            match socket {
                Open::Stream(acceptor) if rx.acceptors.silence(acceptor) => way.silenced.push(acceptor),
                Open::Stream(_) => {}
                Open::Datagram(id) => {
                    suffer(id, true, rx);
                    way.suffering.push((claim.port, id));
                }
            }
        }
        way
    }

    /// UDP ports at which new sockets have to say that they suffer others, too.
    pub(super) fn suffering(&self) -> BTreeSet<u16> {
        self.suffering.iter().map(|(port, _)| *port).collect()
    }

    /// Nobody is suffered any more, beyond those who are there.
    pub(super) fn close(&self, rx: &Receivers<'_>) {
        self.suffering.iter().for_each(|(_, id)| suffer(*id, false, rx));
    }

    /// Has those listen again that did. The new ones are closed.
    pub(super) fn restore(&self, rx: &Receivers<'_>) {
        self.silenced.iter().for_each(|acceptor| rx.acceptors.restore(*acceptor));
    }
}

/// Whether a UDP socket lets others be bound beside it, which say so, too.
fn suffer(id: FlowId, others: bool, rx: &Receivers<'_>) {
    if let Some(socket) = rx.udp.socket(id)
        && let Err(errno) = sockopt::set_socket_reuseaddr(socket, others)
    {
        log::debug!("can't share a UDP port: {errno}");
    }
}
