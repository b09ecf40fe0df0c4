//! What goes with every step of a flow.

use core::net::{IpAddr, SocketAddr};

use crate::{
    addr::{Guest, Settings},
    flow::FlowId,
    host::Host,
    link::Link,
    timer::{Instant, Timers},
};

/// What every step needs besides its own state.
pub struct Context<'a, H: Host, L: Link> {
    /// The time of this step.
    pub now: Instant,
    /// Addressing and services.
    pub settings: &'a Settings,
    /// What is known of the guest.
    pub guest: &'a Guest,
    /// Sockets of the host.
    pub host: &'a mut H,
    /// The link to the guest.
    pub link: &'a mut L,
    /// Deadlines of all flows.
    pub timers: &'a mut Timers<FlowId>,
}

impl<H: Host, L: Link> Context<'_, H, L> {
    /// The host's source address for packets of the guest's address `guest` to `destination`; none: the kernel's choice.
    ///
    /// A guest with one address has no choice, so its source says nothing: then the host's routes decide alone.
    pub(crate) fn outbound_source(&mut self, guest: IpAddr, destination: SocketAddr) -> Option<IpAddr> {
        if self.guest.has_several(guest) { self.host.outbound_source(guest, destination) } else { None }
    }
}
