//! Old sockets that prevent new sockets from being bound. Example: an old socket is bound to an address, and the new
//! socket must be bound to `*`.
//!
//! The old sockets are closed when the new rules are in force, not earlier. Until then they keep their ports: another
//! program could take a free port, and without privileges it may be impossible to bind the port again. In the meantime,
//! TCP sockets stop listening, and UDP sockets share their port with the new sockets.

use std::collections::BTreeSet;

use engine::flow::FlowId;
use engine::forward::{PortRange, Rule, Table};
use rustix::net::sockopt;

use super::side::{Claim, Open, Receivers};

/// Old sockets that now allow new sockets to be bound.
#[derive(Debug, Default)]
pub(super) struct Displaced {
    /// TCP sockets that keep their port but do not listen.
    paused: Vec<FlowId>,
    /// UDP sockets that share their port, each with its port.
    sharing: Vec<(u16, FlowId)>,
}

impl Displaced {
    /// Finds the sockets in `sockets` that conflict with the rules of `table`. Pauses the TCP sockets, and shares the
    /// ports of the UDP sockets.
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

    /// UDP ports that the new sockets must share (`SO_REUSEADDR` on both sockets).
    pub(super) fn shared_ports(&self) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        ports.extend(self.sharing.iter().map(|(port, _)| *port));
        ports
    }

    /// Ends the sharing of ports. Sockets that are bound stay bound, but no other socket can be bound to these ports.
    pub(super) fn stop_sharing(&self, rx: &Receivers<'_>) {
        self.sharing.iter().for_each(|(_, id)| share_port(*id, false, rx));
    }

    /// Makes paused sockets listen again. The new sockets must be closed before this call.
    pub(super) fn resume(&self, rx: &Receivers<'_>) {
        self.paused.iter().for_each(|id| rx.acceptors.resume(*id));
    }
}

/// Sets whether a socket that also has `SO_REUSEADDR` can be bound to the port of a UDP listener.
fn share_port(id: FlowId, shared: bool, rx: &Receivers<'_>) {
    if let Some(socket) = rx.udp.socket(id)
        && let Err(errno) = sockopt::set_socket_reuseaddr(socket, shared)
    {
        log::debug!("can't share a UDP port: {errno}");
    }
}
