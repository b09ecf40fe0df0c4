//! What goes with every step of a flow.

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
