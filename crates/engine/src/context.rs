//! The context that is passed to every step of a flow.

use alloc::string::String;
use core::net::{IpAddr, SocketAddr};

use crate::{
    addr::{Guest, Settings},
    events::{Account, Basis},
    first_bytes::HostName,
    flow::{Endpoints, FlowId, Protocol},
    guard::{Admission, Guard, Opening, Outlook},
    host::Host,
    link::Link,
    memory::Memory,
    policy::Name,
    rate_limit::RateLimit,
    timer::{Instant, Timers},
};

/// The types of memory, host and link that one program uses.
///
/// A program defines an empty type that implements this trait. All generic code of the engine has this type as its only
/// parameter.
pub trait World {
    /// The memory that holds the payload of frames.
    type Memory: Memory;
    /// The host that opens sockets.
    type Host: Host<Memory = Self::Memory>;
    /// The link that takes frames to the guest.
    type Link: Link<Memory = Self::Memory>;
}

/// The type of a stream socket in the world `W`.
pub type TcpOf<W> = <<W as World>::Host as Host>::Tcp;
/// The type of a datagram socket in the world `W`.
pub type UdpOf<W> = <<W as World>::Host as Host>::Udp;
/// The type of a ping socket in the world `W`.
pub type PingOf<W> = <<W as World>::Host as Host>::Ping;

/// The objects that a step needs in addition to the flow's own state. In every function, the context is the last
/// argument and is called `cx`.
pub struct Context<'a, W: World> {
    /// The time of this step.
    pub now: Instant,
    /// Addressing and services.
    pub settings: &'a Settings,
    /// What is known about the guest.
    pub guest: &'a Guest,
    /// Decides which flows the guest may begin.
    pub guard: &'a mut Guard,
    /// The rate limits of the guest.
    pub rate_limit: &'a mut RateLimit,
    /// Sockets of the host.
    pub host: &'a mut W::Host,
    /// The link to the guest.
    pub link: &'a mut W::Link,
    /// The deadlines of all flows.
    pub timers: &'a mut Timers<FlowId>,
}

impl<W: World> Context<'_, W> {
    /// The host's source address for packets of the guest's address `guest` to `destination`. None: the kernel chooses
    /// the source address.
    ///
    /// A guest with only one address had no choice, so the host's routes alone decide.
    pub(crate) fn outbound_source(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr> {
        if self.guest.has_several(guest) { self.host.outbound_source(guest, destination) } else { None }
    }

    /// Whether the guest may begin a flow. `destination` is the flow's destination after translation.
    pub(crate) fn admits(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        destination: SocketAddr,
    ) -> Admission {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.admits(&flow, *now, |destination| host.is_own(destination))
    }

    /// Whether the guest may begin a flow whose first bytes are not read.
    pub(crate) fn admits_unread(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        destination: SocketAddr,
    ) -> bool {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.admits_unread(&flow, *now, |destination| host.is_own(destination))
    }

    /// Notes a flow that can't begin under any rules, since its source or destination is invalid.
    pub(crate) fn note_invalid(&mut self, protocol: Protocol, ends: &Endpoints) {
        match self.settings.to_host(protocol, ends.remote) {
            Ok(_) => self.guard.note_invalid(protocol, ends, &"invalid source"),
            Err(why) => self.guard.note_invalid(protocol, ends, &why),
        }
    }

    /// Whether an existing flow may continue under the new rules. See [`Guard::still_admits`].
    pub(crate) fn still_admits(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        destination: SocketAddr,
        said: Option<&HostName>,
    ) -> Admission {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.still_admits(&flow, said, *now, |destination| host.is_own(destination))
    }

    /// Whether an existing flow whose first bytes were not read may continue under the new rules.
    pub(crate) fn still_admits_unread(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        destination: SocketAddr,
    ) -> bool {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.still_admits_unread(&flow, *now, |destination| host.is_own(destination))
    }

    /// Reports the beginning of an admitted flow of the guest.
    pub(crate) fn begin(&mut self, protocol: Protocol, ends: &Endpoints, destination: SocketAddr) -> Account {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.begin(&flow, *now, |destination| host.is_own(destination))
    }

    /// Whether the guest might begin a flow, and the rule that decides. See [`Guard::explain`].
    pub(crate) fn explain(
        &mut self,
        protocol: Protocol,
        ends: &Endpoints,
        told: Option<&Name>,
        destination: SocketAddr,
    ) -> (Outlook, Basis) {
        let flow = self.opening(protocol, ends, destination);
        let Self { now, guard, host, .. } = self;
        guard.explain(&flow, told, *now, |destination| host.is_own(destination))
    }

    /// Why the guest would not be given an address for a name. See [`Guard::withholds`].
    pub(crate) fn withholds(&mut self, name: &Name, address: IpAddr) -> Option<String> {
        let Self { now, settings, guard, host, .. } = self;
        guard.withholds(name, address, |address| leads_to_host(settings, *host, address), *now)
    }

    fn opening(&self, protocol: Protocol, ends: &Endpoints, destination: SocketAddr) -> Opening {
        let asks_resolver =
            protocol != Protocol::Icmp && self.settings.is_resolver(ends.remote, destination.ip());
        Opening { protocol, ends: *ends, destination, asks_resolver }
    }

    /// Splits the context into the link and all other parts. A step that looks up a flow while a slot of the link is
    /// reserved needs this.
    pub(crate) const fn split(&mut self) -> (&mut W::Link, Unlinked<'_, W>) {
        let Self { now, settings, guest, guard, rate_limit, host, link, timers } = self;
        (link, Unlinked { now: *now, settings, guest, guard, rate_limit, host, timers })
    }
}

/// Whether packets of the guest to `address` reach the host itself.
pub(crate) fn leads_to_host(settings: &Settings, host: &mut impl Host, address: IpAddr) -> bool {
    // Any port will do, since translation is the same for all ports.
    let translated = settings.to_host(Protocol::Udp, SocketAddr::new(address, 1));
    translated.is_ok_and(|destination| destination.ip().is_loopback() || host.is_own(destination))
}

/// A context without the link, while another reference uses the link.
pub(crate) struct Unlinked<'a, W: World> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) guest: &'a Guest,
    pub(crate) guard: &'a mut Guard,
    pub(crate) rate_limit: &'a mut RateLimit,
    pub(crate) host: &'a mut W::Host,
    pub(crate) timers: &'a mut Timers<FlowId>,
}
