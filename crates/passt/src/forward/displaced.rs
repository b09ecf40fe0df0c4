//! Old sockets that prevent new ones from being bound: for example, one at an address, if the new one is at `*`.
//!
//! They are closed when the new rules are in force, not earlier. Until then they keep their ports: another program could
//! take a port that is free, and without privileges it may be impossible to bind it again. TCP sockets stop listening
//! meanwhile; UDP sockets share their port with the new ones.

use std::collections::BTreeSet;

use engine::flow::FlowId;
use engine::forward::{PortRange, Rule, Table};
use rustix::net::sockopt;

use super::side::{Claim, Open, Receivers};

/// Old sockets that have made room for new ones.
#[derive(Debug, Default)]
pub(super) struct Displaced {
    /// TCP listeners that do not listen now.
    paused: Vec<FlowId>,
    /// UDP listeners that share their port, and the ports.
    sharing: Vec<(u16, FlowId)>,
}

impl Displaced {
    /// Pauses or shares those of `sockets` that conflict with the rules of `table`.
    pub(super) fn by(table: &Table, sockets: Vec<(Claim, Open)>, rx: &Receivers<'_>) -> Self {
        let mut displaced = Self::default();
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
                Open::Stream(id) if rx.acceptors.pause(id) => displaced.paused.push(id),
                Open::Stream(_) => {}
                Open::Datagram(id) => {
                    share_port(id, true, rx);
                    displaced.sharing.push((claim.port, id));
                }
            }
        }
        displaced
    }

    /// UDP ports that new sockets must share, too (`SO_REUSEADDR` on both).
    pub(super) fn shared_ports(&self) -> BTreeSet<u16> {
        self.sharing.iter().map(|(port, _)| *port).collect()
    }

    /// Ends the sharing of ports. Sockets that are bound stay bound, but no others can be bound.
    pub(super) fn stop_sharing(&self, rx: &Receivers<'_>) {
        self.sharing.iter().for_each(|(_, id)| share_port(*id, false, rx));
    }

    /// Makes paused sockets listen again. The new sockets must be closed.
    pub(super) fn resume(&self, rx: &Receivers<'_>) {
        self.paused.iter().for_each(|id| rx.acceptors.resume(*id));
    }
}

/// Sets whether other sockets that also have `SO_REUSEADDR` can be bound to a UDP listener's port.
fn share_port(id: FlowId, shared: bool, rx: &Receivers<'_>) {
    if let Some(socket) = rx.udp.socket(id)
        && let Err(errno) = sockopt::set_socket_reuseaddr(socket, shared)
    {
        log::debug!("can't share a UDP port: {errno}");
    }
}
