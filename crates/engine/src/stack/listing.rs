//! Lists flows, ends one on request, and explains what would happen to a new one (docs/design/api.md).

use alloc::string::{String, ToString as _};
use core::net::{IpAddr, SocketAddr};

use super::{Round, Stack};
use crate::{
    context::World,
    events::Basis,
    flow::{Endpoints, FlowId, Kind, Protocol},
    guard::Outlook,
    listing::{Listed, Lister, Page, Table},
    policy::Name,
};

/// What would happen to a new flow of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// The destination on the host's side, after translation (behaviour §5.2).
    pub destination: SocketAddr,
    /// Whether the destination is one of the host's resolvers, for DNS.
    pub asks_resolver: bool,
    /// The host's address from which the packets leave. None: the kernel chooses.
    pub source: Option<IpAddr>,
    /// Whether the rules allow the flow.
    pub outlook: Outlook,
    /// The rule that decides, and the names of the destination.
    pub basis: Basis,
    /// Why the guest would not be given the address for the name, if the question was about a name.
    pub withheld: Option<String>,
}

impl<W: World> Stack<W> {
    /// Lists the flows in the slots of a page of a table. Returns the next slot, if the table has more slots.
    pub fn list(&mut self, table: Table, page: Page, lister: &mut Lister<'_>) -> Option<u32> {
        match table {
            Table::Tcp => self.flows.tcp.list(page, lister),
            Table::Udp => self.flows.udp.list(page, lister),
            Table::UdpBypass => self.flows.udp.list_bypass(page, lister),
            Table::Dns => self.flows.dns.list(page, lister),
            Table::Ping => self.flows.ping.list(page, lister),
        }
    }

    /// Adds to a flow that was listed with [`Detail::Known`](crate::listing::Detail::Known) what the host knows about
    /// its socket. Nothing is added if the flow has ended.
    pub fn complete(&mut self, listed: &mut Listed) {
        if listed.id.kind() == Kind::Tcp {
            self.flows.tcp.complete(listed);
        }
    }
}

impl<W: World> Round<'_, W> {
    /// Ends a flow that was listed with this ID and this number. Returns false if the flow has ended already. A TCP
    /// connection is reset on both sides. A connection that bypasses the link is not part of the stack.
    pub fn end_flow(&mut self, id: FlowId, number: u64) -> bool {
        let (flows, mut cx) = self.split();
        match id.kind() {
            Kind::Tcp => flows.tcp.end_requested(id, number, &mut cx),
            Kind::Udp | Kind::UdpFlow => flows.udp.end_requested(id, number, &mut cx),
            Kind::Ping => flows.ping.end_requested(id, number, cx.timers),
            Kind::Dns => flows.dns.end_requested(id, number, cx.timers),
            Kind::UdpCheck | Kind::Splice | Kind::Listener => false,
        }
    }

    /// What would happen to a new flow of the guest between these ends. Nothing is counted or logged. With `told`, the
    /// answer is as if the guest had been given the remote address for this name.
    ///
    /// # Errors
    /// The reason why no rules can allow the flow, as text: its source or destination is invalid.
    pub fn explain(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        told: Option<&Name>,
    ) -> Result<Prospect, String> {
        let (_, mut cx) = self.split();
        let destination = cx.settings.to_host(protocol, ends.remote).map_err(|why| why.to_string())?;
        if !cx.settings.valid_guest_source(ends.guest.ip()) {
            return Err("the guest can't have this source address".into());
        }
        let source = cx.outbound_source(ends.guest.ip(), destination);
        let asks_resolver = protocol != Protocol::Icmp
            && (cx.settings.is_dns(ends.remote) || cx.settings.is_resolver(ends.remote, destination.ip()));
        let (outlook, basis) = cx.explain(protocol, ends, told, destination);
        let withheld = told.and_then(|name| cx.withholds(name, ends.remote.ip()));
        Ok(Prospect { destination, asks_resolver, source, outlook, basis, withheld })
    }
}
