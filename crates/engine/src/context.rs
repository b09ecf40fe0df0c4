//! The context that is passed to every step of a flow.

use core::net::{IpAddr, SocketAddr};

use crate::{
    addr::{Guest, Settings},
    flow::{Endpoints, FlowId},
    guard::{Admission, Guard, Opening},
    host::Host,
    link::Link,
    memory::Memory,
    policy::Protocol,
    timer::{Instant, Timers},
};

/// The kinds of memory, host and link that one program works with.
///
/// A program names them once, by an empty type; everything in the engine that needs them has this one parameter.
pub trait World {
    /// Where the payload of frames lies.
    type Memory: Memory;
    /// Where sockets come from.
    type Host: Host<Memory = Self::Memory>;
    /// Where frames to the guest go.
    type Link: Link<Memory = Self::Memory>;
}

/// The type of a stream socket in the world `W`.
pub type TcpOf<W> = <<W as World>::Host as Host>::Tcp;
/// A datagram socket of a world.
pub type UdpOf<W> = <<W as World>::Host as Host>::Udp;
/// A ping socket of a world.
pub type PingOf<W> = <<W as World>::Host as Host>::Ping;

/// Everything that a step needs besides the flow's own state. It is the last argument, called `cx`, everywhere.
pub struct Context<'a, W: World> {
    /// The time of this step.
    pub now: Instant,
    /// Addressing and services.
    pub settings: &'a Settings,
    /// What is known about the guest.
    pub guest: &'a Guest,
    /// Which flows it may begin.
    pub guard: &'a mut Guard,
    /// Sockets of the host.
    pub host: &'a mut W::Host,
    /// The link to the guest.
    pub link: &'a mut W::Link,
    /// Deadlines of all flows.
    pub timers: &'a mut Timers<FlowId>,
}

impl<W: World> Context<'_, W> {
    /// The host's source address for packets of the guest's address `guest` to `destination`; none: the kernel chooses.
    ///
    /// A guest with one address has not chosen it, so the host's routes alone decide.
    pub(crate) fn outbound_source(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr> {
        if self.guest.has_several(guest) { self.host.outbound_source(guest, destination) } else { None }
    }

    /// Whether the guest may begin a flow, whose destination after translation is `destination`.
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

    fn opening(&self, protocol: Protocol, ends: &Endpoints, destination: SocketAddr) -> Opening {
        let asks_resolver =
            protocol != Protocol::Icmp && self.settings.is_resolver(ends.remote, destination.ip());
        Opening { protocol, ends: *ends, destination, asks_resolver }
    }

    /// The link, and the rest: for a step that looks up a flow while a slot of the link is reserved.
    pub(crate) const fn split(&mut self) -> (&mut W::Link, Unlinked<'_, W>) {
        let Self { now, settings, guest, guard, host, link, timers } = self;
        (link, Unlinked { now: *now, settings, guest, guard, host, timers })
    }
}

/// A context without the link, which is in use.
pub(crate) struct Unlinked<'a, W: World> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) guest: &'a Guest,
    pub(crate) guard: &'a mut Guard,
    pub(crate) host: &'a mut W::Host,
    pub(crate) timers: &'a mut Timers<FlowId>,
}
