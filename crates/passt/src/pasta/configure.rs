//! Configures the interface in the namespace, over netlink (behaviour §3.6).
//!
//! The network namespace is that of the calling thread. Requests are sent in batches: there are four exchanges with
//! the kernel, and one more for each batch of routes.

use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, Parseable};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rustix::io::Errno;
use wire::ethernet::Mac;

use crate::{
    host::{
        self, Address, AddressFlags, AddressScope, Link, LinkFlags, Refusal, Route, family_of, find_link,
        netlink::{Netlink, Request, request},
    },
    plan::{InterfacePlan, NamespaceFamily, NamespacePlan, Note},
};

/// Index of the loopback interface in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// How often and for how long a thread waits until addresses are local.
const LOCAL_CHECKS: u32 = 100;
const LOCAL_PAUSE: Duration = Duration::from_millis(1);

/// The configuration that the interface has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The index in the namespace.
    pub index: u32,
    /// MAC address of the interface. It is the guest's MAC address.
    pub mac: Mac,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether IPv4 was requested, but the namespace has no IPv4.
    pub no_ipv4: bool,
    /// Whether IPv6 was requested, but the namespace has no IPv6.
    pub no_ipv6: bool,
    /// Failures that are not fatal. The caller logs them.
    pub notes: Vec<Note>,
}

/// Why the namespace can't be configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink failed.
    #[error("namespace configuration: {0}")]
    Netlink(host::Error),
    /// The namespace has no interface with this name.
    #[error("there is no interface {name} in the namespace")]
    NoInterface {
        /// The interface's name in the plan.
        name: String,
    },
    /// The interface has no MAC address, so it is not a tap device.
    #[error("interface {name} in the namespace has no MAC address")]
    NoMac {
        /// The interface's name in the plan.
        name: String,
    },
    /// The kernel refused a step.
    #[error("interface {name} in the namespace: can't {step}: {refusal}")]
    Refused {
        /// The interface.
        name: String,
        /// The step that failed.
        step: String,
        /// The kernel's reason.
        refusal: Refusal,
    },
}

// The message contains the error, so the error is not a source, too: a chain would show it twice.
impl From<host::Error> for Error {
    fn from(error: host::Error) -> Self {
        Self::Netlink(error)
    }
}

/// Executes `plan` in the network namespace of the calling thread. The tap device must exist.
///
/// # Errors
/// The interface doesn't exist, or the kernel refuses a step that the guest needs.
pub fn configure(plan: &NamespacePlan) -> Result<Configured, Error> {
    let mut netlink = Netlink::open()?;
    let Some(link) = find_link(&mut netlink, &plan.ifname)? else {
        return Err(Error::NoInterface { name: plan.ifname.clone() });
    };
    let Some(mac) = plan.mac.or(link.mac) else {
        return Err(Error::NoMac { name: plan.ifname.clone() });
    };
    let configured = Configured {
        index: link.index,
        mac,
        addresses: Vec::new(),
        no_ipv4: false,
        no_ipv6: false,
        notes: Vec::new(),
    };
    let mut work = Work { netlink, link, configured };
    work.links(plan)?;
    if let Some(interface) = &plan.interface {
        work.addresses(interface)?;
        for (family, missing) in
            [(&interface.v4, work.configured.no_ipv4), (&interface.v6, work.configured.no_ipv6)]
        {
            if let Some(family) = family
                && !missing
            {
                work.routes(family)?;
            }
        }
        work.wait_until_local()?;
    }
    Ok(work.configured)
}

/// Brings up only the loopback interface in the network namespace of the calling thread.
///
/// # Errors
/// The kernel refuses the request.
pub fn bring_loopback_up() -> Result<(), Error> {
    let up = set_link(LOOPBACK_INDEX, Some(LinkFlags::Up), []);
    for result in Netlink::open()?.perform(vec![up])? {
        result.map_err(|refusal| Error::Refused {
            name: "lo".into(),
            step: "bring it up".into(),
            refusal,
        })?;
    }
    Ok(())
}

/// The state of a configuration in progress.
struct Work {
    netlink: Netlink,
    link: Link,
    configured: Configured,
}

impl Work {
    /// Sets the properties of the interface, and brings lo and the interface up, as planned.
    fn links(&mut self, plan: &NamespacePlan) -> Result<(), Error> {
        let mut steps = Vec::new();
        if plan.loopback {
            steps.push(("bring lo up", set_link(LOOPBACK_INDEX, Some(LinkFlags::Up), [])));
        }
        let mut set = |step, attribute| steps.push((step, set_link(self.link.index, None, [attribute])));
        set("set the transmit queue length", LinkAttribute::TxQueueLen(plan.tx_queue_len));
        if let Some(mac) = plan.mac {
            set("set the MAC address", LinkAttribute::Address(mac.0.to_vec()));
        }
        let mut generation = None;
        if let Some(interface) = &plan.interface {
            if let Some(mtu) = interface.mtu {
                set("set the MTU", LinkAttribute::Mtu(mtu.into()));
            }
            if interface.v6.is_some() {
                set("stop the link-local address", address_generation(In6AddrGenMode::None));
                generation = Some(steps.len() - 1);
            }
            steps.push(("bring it up", set_link(self.link.index, Some(LinkFlags::Up), [])));
        }
        let (names, requests): (Vec<_>, Vec<_>) = steps.into_iter().unzip();
        for (index, (name, result)) in names.iter().zip(self.netlink.perform(requests)?).enumerate() {
            match result {
                Err(refusal) if generation == Some(index) && is_unsupported(refusal.errno) => {
                    self.configured.no_ipv6 = true;
                    self.warn(format!("IPv6 not supported in the namespace, disabling: {refusal}"));
                }
                result => result.map_err(|refusal| self.refused((*name).to_owned(), refusal))?,
            }
        }
        Ok(())
    }

    /// Adds the addresses of both families.
    ///
    /// The kernel would also add a link-local address, but would use it only after duplicate address detection, one
    /// second later. So the kernel's address generation is disabled until the same address has been added here,
    /// without detection.
    fn addresses(&mut self, plan: &InterfacePlan) -> Result<(), Error> {
        let mut addresses: Vec<Address> = Vec::new();
        addresses.extend(plan.v4.iter().flat_map(|family| family.addresses.iter().cloned()));
        if let Some(family) = &plan.v6
            && !self.configured.no_ipv6
        {
            addresses.push(link_local(self.configured.mac));
            addresses.extend(family.addresses.iter().cloned());
        }
        let requests = addresses.iter().map(|address| add_address(address, self.link.index)).collect();
        for (address, result) in addresses.iter().zip(self.netlink.perform(requests)?) {
            match result {
                Err(refusal) if refusal.errno == Errno::EXIST => {}
                Err(refusal) if is_unsupported(refusal.errno) => self.lacks(address.local, &refusal),
                result => result.map_err(|refusal| {
                    self.refused(format!("add the address {}/{}", address.local, address.prefix_len), refusal)
                })?,
            }
        }
        for address in addresses {
            let missing = match address.local {
                IpAddr::V4(_) => self.configured.no_ipv4,
                IpAddr::V6(_) => self.configured.no_ipv6,
            };
            if !missing {
                self.configured.addresses.push(address.local);
            }
        }
        if plan.v6.is_some() && !self.configured.no_ipv6 {
            let again = set_link(self.link.index, None, [address_generation(In6AddrGenMode::Eui64)]);
            for result in self.netlink.perform(vec![again])? {
                result.map_err(|refusal| self.refused("restore link-local addresses".into(), refusal))?;
            }
        }
        Ok(())
    }

    /// Adds routes. A failed route is tried again while other routes succeed: the gateway of a route may need a later
    /// route.
    fn routes(&mut self, family: &NamespaceFamily) -> Result<(), Error> {
        // Routes without a gateway are added first: most other routes depend on them, and few of them depend on each
        // other.
        let has_gateway = |route: &&Route| route.next_hops.iter().any(|hop| hop.gateway.is_some());
        let (behind, mut pending): (Vec<&Route>, Vec<&Route>) = family.routes.iter().partition(has_gateway);
        pending.extend(behind);
        loop {
            let requests = pending.iter().map(|route| add_route(route, self.link.index)).collect();
            let mut unreachable = Vec::new();
            for (route, result) in pending.iter().zip(self.netlink.perform(requests)?) {
                match result {
                    Ok(()) => {}
                    Err(refusal) if refusal.errno == Errno::EXIST => {}
                    Err(refusal) if is_unreachable(refusal.errno) => unreachable.push((*route, refusal)),
                    Err(refusal) => self.route_failed(route, refusal, family.copied)?,
                }
            }
            if unreachable.len() == pending.len() || unreachable.is_empty() {
                return unreachable
                    .into_iter()
                    .try_for_each(|(route, refusal)| self.route_failed(route, refusal, family.copied));
            }
            pending = unreachable.into_iter().map(|(route, _)| route).collect();
        }
    }

    /// Waits until the IPv6 addresses are local. The kernel acknowledges them before; until then, what is sent to them leaves
    /// by the interface (`findings/linux-ipv6-address-before-its-route.sh`). The command may use them at once.
    fn wait_until_local(&mut self) -> Result<(), Error> {
        let mut waiting: Vec<IpAddr> = self.configured.addresses.clone();
        waiting.retain(IpAddr::is_ipv6);
        for _ in 0..LOCAL_CHECKS {
            if waiting.is_empty() {
                return Ok(());
            }
            let mut query = RouteMessage::default();
            query.header.address_family = AddressFamily::Inet6;
            let local =
                self.netlink.dump("local routes", RouteNetlinkMessage::GetRoute(query), parse_local)?;
            waiting.retain(|address| !local.contains(address));
            if !waiting.is_empty() {
                thread::sleep(LOCAL_PAUSE);
            }
        }
        let text = format!("the kernel does not treat these addresses as local yet: {waiting:?}");
        self.configured.notes.push(Note::info(text));
        Ok(())
    }

    /// Handles a route that could not be added. If the route was copied, this is not fatal. For any other route, or if
    /// a privilege is missing, it is fatal.
    fn route_failed(&mut self, route: &Route, refusal: Refusal, copied: bool) -> Result<(), Error> {
        if !copied || refusal.errno == Errno::PERM {
            return Err(
                self.refused(format!("add the route to {}{}", route.destination, via(route)), refusal)
            );
        }
        let text = format!("Route to {}{} can't be copied: {refusal}", route.destination, via(route));
        if is_unreachable(refusal.errno) {
            self.configured.notes.push(Note::info(text));
        } else {
            self.warn(text);
        }
        Ok(())
    }

    /// Records that the namespace lacks the address family of `address`.
    fn lacks(&mut self, address: IpAddr, refusal: &Refusal) {
        let (missing, name) = match address {
            IpAddr::V4(_) => (&mut self.configured.no_ipv4, "IPv4"),
            IpAddr::V6(_) => (&mut self.configured.no_ipv6, "IPv6"),
        };
        if !std::mem::replace(missing, true) {
            self.warn(format!("{name} not supported in the namespace, disabling: {refusal}"));
        }
    }

    fn warn(&mut self, text: String) {
        self.configured.notes.push(Note::warn(text));
    }

    fn refused(&self, step: String, refusal: Refusal) -> Error {
        Error::Refused { name: self.link.name.clone(), step, refusal }
    }
}

/// Whether an error means that the namespace or the interface lacks the address family: the kernel lacks the family, or
/// `net.ipv6.conf.*.disable_ipv6` is set. A missing privilege causes another error number.
fn is_unsupported(errno: Errno) -> bool {
    [Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::ACCESS].contains(&errno)
}

/// Whether an error means that a route's gateway can't be reached at present.
fn is_unreachable(errno: Errno) -> bool {
    [Errno::NETUNREACH, Errno::HOSTUNREACH].contains(&errno)
}

/// The address that a route makes local.
fn parse_local(octets: &[u8]) -> Option<IpAddr> {
    let message = RouteMessage::parse(octets).ok()?;
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    destination.filter(|_| message.header.kind == RouteType::Local)
}

fn via(route: &Route) -> String {
    let gateway = route.next_hops.iter().find_map(|hop| hop.gateway);
    gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default()
}

/// The link-local address that the kernel would generate: fe80::/64 with the modified EUI-64 of the MAC address (RFC
/// 4291 appendix A).
fn link_local(Mac([a, b, c, d, e, f]): Mac) -> Address {
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Address {
        interface: 0,
        local: Ipv6Addr::from(octets).into(),
        peer: None,
        prefix_len: 64,
        broadcast: None,
        route_priority: None,
        scope: AddressScope::Link,
        flags: AddressFlags::Nodad,
    }
}

fn set_link<const N: usize>(index: u32, flags: Option<LinkFlags>, attributes: [LinkAttribute; N]) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(flags) = flags {
        message.header.flags = flags;
        message.header.change_mask = flags;
    }
    message.attributes.extend(attributes);
    request(RouteNetlinkMessage::SetLink(message), 0)
}

fn address_generation(mode: In6AddrGenMode) -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
}

fn add_address(address: &Address, interface: u32) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address.local);
    message.header.prefix_len = address.prefix_len;
    message.header.scope = address.scope;
    message.header.index = interface;
    message.header.flags = AddressHeaderFlags::from_bits_truncate(address.flags.bits().to_le_bytes()[0]);
    let attributes = &mut message.attributes;
    attributes.push(AddressAttribute::Local(address.local));
    attributes.push(AddressAttribute::Address(address.peer.unwrap_or(address.local)));
    attributes.extend(address.broadcast.map(AddressAttribute::Broadcast));
    attributes.extend(address.route_priority.map(AddressAttribute::RoutePriority));
    attributes.push(AddressAttribute::Flags(address.flags));
    request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE)
}

/// Appends a route after the routes with the same metric, so that routes keep their order.
fn add_route(route: &Route, interface: u32) -> Request {
    request(RouteNetlinkMessage::NewRoute(route.to_message(interface)), NLM_F_CREATE | NLM_F_APPEND)
}

#[cfg(test)]
mod tests;
