//! The start of the process: it opens the host's side and the guest's side, and makes the event loop that serves both.

mod guest_side;
mod host_side;
mod policy;

use engine::addr::Guest;
use engine::forward::{Policy, PortRange};
use engine::rate_limit::RateLimit;
use engine::timer::Instant;

use crate::api;
use crate::budgets::{self, Budgets, Needs};
use crate::config::{Config, Limit};
use crate::flow_log::FlowLog;
use crate::forward::Rules;
use crate::host;
use crate::hostfwd::Defaults;
use crate::shard::{ApiSetup, ControlSetup, HostFwdSetup, Setup, Shard};
pub(crate) use guest_side::GuestSide;
pub(crate) use host_side::{HostSide, Network};

/// What the API thread serves.
pub(crate) struct ApiFiles {
    /// The API socket.
    pub(crate) has_entry: bool,
    /// `--metrics`.
    pub(crate) has_metrics: bool,
}

impl ApiFiles {
    /// Whether there is an API thread.
    pub(crate) const fn needed(&self) -> bool {
        self.has_entry || self.has_metrics
    }

    /// Number of its files, if `files` may be open in all.
    fn count(&self, config: &Config, files: usize) -> usize {
        let metrics = if self.has_metrics { api::METRICS_FILES } else { 0 };
        if self.needed() { metrics + api::budget(files, config.asks_for_api()) } else { 0 }
    }
}

/// Makes the event loop between the host's network and the guest.
///
/// # Errors
/// The kernel refuses to create a descriptor.
pub(crate) fn event_loop(
    config: &Config,
    mut network: Network,
    flow_log: Option<FlowLog>,
    guest: GuestSide,
    api: &ApiFiles,
) -> anyhow::Result<Shard> {
    let lacks = guest.interface.as_ref().map_or([false; 2], |on| [on.no_ipv4, on.no_ipv6]);
    let enabled = network.plan.without(lacks, config.enabled());
    let needs = Needs {
        listeners: network.listeners.len() + guest.listeners.len(),
        namespace: guest.has_namespace,
        vhost_user: config.passt.vhost_user,
        api: api.count(config, budgets::files(&network.resources)),
    };
    let budgets = Budgets::new(&network.resources, &needs).within(&network.memory);
    log::debug!("{:?} {budgets:?}", network.resources);

    let templates = [&network.plan.template6, &network.plan.template4];
    let groups = templates.map(|template| template.as_ref().map(|link| link.index));
    let mut settings = network.plan.settings;
    let (neighbourhood, neighbours) = network.neighbourhood.unzip();
    for neighbour in neighbours.into_iter().flatten() {
        settings.neighbours.note(neighbour);
    }
    let mut addressing = Guest::new(&settings, guest.interface.as_ref().map(|on| on.mac));
    let scope = guest.interface.as_ref().map_or(0, |on| on.index);
    let addresses = guest.interface.into_iter().flat_map(|on| on.addresses);
    addresses.for_each(|address| addressing.give(address));

    Shard::new(Setup {
        link: guest.link,
        settings,
        guest: addressing,
        guard: network.guard,
        rate_limit: rate_limit(config.limit),
        policy: Policy { bypass: config.splice, keeps_loopback: config.host_lo_to_ns_lo, scope },
        outbound: network.outbound,
        sources: network.sources,
        groups,
        client_errors: guest.client_errors,
        budgets,
        rules: Rules {
            inbound: config.inbound.clone(),
            listeners: network.listeners,
            outbound: config.outbound.clone(),
            outbound_listeners: guest.listeners,
            opening: network.opening,
            scanners: guest.scanners,
            restricted: (enabled != config.enabled()).then_some(enabled),
        },
        neighbourhood,
        control: network.control.map(|listener| ControlSetup { listener, enabled }),
        hostfwd: network.hostfwd.map(|listener| HostFwdSetup {
            listener,
            defaults: Defaults { enabled, target: config.slirp4netns.configured() },
        }),
        stats: config.stats,
        flow_log,
        api: api.needed().then(|| ApiSetup { enabled, ephemeral: ephemeral(), files: needs.api }),
    })
}

/// The ephemeral ports of the host, which `all` and `auto` exclude (behaviour §8.7).
fn ephemeral() -> PortRange {
    let ports = host::ephemeral_ports();
    PortRange::new(*ports.start(), *ports.end()).unwrap_or(PortRange::RFC6335_DYNAMIC)
}

/// The limits of `--limit`. The shard's clock starts at zero.
fn rate_limit(limit: Limit) -> RateLimit {
    for (direction, rate) in [("out", limit.outbound), ("in", limit.inbound)] {
        if let Some(rate) = rate {
            log::debug!("Limit: {direction} {rate} bits per second");
        }
    }
    RateLimit::new(limit.outbound, limit.inbound, Instant::from_micros(0))
}
