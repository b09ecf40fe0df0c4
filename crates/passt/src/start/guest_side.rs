//! The guest's side: the guest's link, and the sockets in its network namespace.

use anyhow::Context;
use engine::forward::Table;
use sys::tap::{Offloads, TapDevice};

use super::host_side::Network;
use crate::config::{Config, Target};
use crate::forward::Scanners;
use crate::forward::listen::Listener;
use crate::forward::scan::Scanner;
use crate::host::missing;
use crate::io::client_errors::ClientErrors;
use crate::link::Medium;
use crate::link::door::GuestSocket;
use crate::link::stream::StreamLink;
use crate::link::tap::TapLink;
use crate::link::vhost_user::VhostUserLink;
use crate::pasta::configure::{Configured, bring_loopback_up, configure};
use crate::pasta::netns::Namespace;
use crate::plan::{NamespacePlan, Plan};

/// The objects that are open on the guest's side.
pub(crate) struct GuestSide {
    /// The link.
    pub(crate) link: Medium,
    /// The interface that was set up in the guest's namespace.
    pub(crate) interface: Option<Configured>,
    /// Listening sockets of the outbound rules, in the guest's namespace.
    pub(crate) listeners: Vec<Listener>,
    /// Send errors to clients in the guest's namespace that the guard refuses.
    pub(crate) client_errors: ClientErrors,
    /// The scanners of ports in use.
    pub(crate) scanners: Scanners,
    /// The guest has a network namespace of this machine.
    pub(crate) has_namespace: bool,
}

impl GuestSide {
    /// Sets up the guest's namespace, or serves the socket of a virtual machine. `has_api` is whether the API may change
    /// rules later.
    ///
    /// # Errors
    /// The namespace can't be entered or set up, or a port can't be bound in it.
    pub(crate) fn open(
        config: &Config,
        network: &mut Network,
        namespace: Option<&Namespace>,
        has_api: bool,
    ) -> anyhow::Result<Self> {
        match (namespace, network.guest_socket.take()) {
            (Some(namespace), _) => Self::in_namespace(config, network, namespace, has_api),
            (None, Some(socket)) => Ok(Self::behind_socket(config, network, socket)),
            (None, None) => anyhow::bail!("there is neither a namespace nor a socket for the guest"),
        }
    }

    fn in_namespace(
        config: &Config,
        network: &mut Network,
        namespace: &Namespace,
        has_api: bool,
    ) -> anyhow::Result<Self> {
        let (plan, opening) = (&network.plan, network.opening.outbound());
        // A client of the control socket may send rules later.
        let may_refuse = network.guard.policy().is_some() || network.control.is_some();
        let rules_may_change = network.control.is_some() || has_api;
        let follows = |table: &Table| rules_may_change || table.rules().iter().any(|rule| rule.scan);
        let (tap, (listeners, notes), client_errors, guest) = namespace.within(|| {
            let tap = make_tap(plan, matches!(config.pasta.target, Target::Spawn { .. }))?;
            let errors = if may_refuse { ClientErrors::open() } else { ClientErrors::default() };
            let scanner = follows(&config.inbound).then(Scanner::open);
            Ok((tap, opening.rules(&config.outbound, |_, _| false)?, errors, scanner))
        })?;
        notes.iter().for_each(|note| log::warn!("{note}"));
        let scanners = Scanners { guest, host: follows(&config.outbound).then(Scanner::open) };
        let (device, interface) = tap.unzip();
        // Without --config-net, the interface is still down.
        let up = plan.namespace.as_ref().is_some_and(|plan| plan.interface.is_some());
        let link = match device {
            Some(device) => Medium::Tap(TapLink::new(device, up, network.capture.take())),
            None => Medium::none(),
        };
        Ok(Self { link, interface, listeners, client_errors, scanners, has_namespace: true })
    }

    fn behind_socket(config: &Config, network: &mut Network, socket: GuestSocket) -> Self {
        let capture = network.capture.take();
        let link = if config.passt.vhost_user {
            let mtu = network.plan.settings.mtu;
            Medium::VhostUser(Box::new(VhostUserLink::new(socket, mtu, capture)))
        } else {
            Medium::Stream(StreamLink::new(socket, capture))
        };
        Self {
            link,
            interface: None,
            listeners: Vec::new(),
            client_errors: ClientErrors::default(),
            scanners: Scanners::default(),
            has_namespace: false,
        }
    }
}

/// Makes and configures the tap device in the network namespace of the calling thread. Returns `None` if no link is
/// needed (`--splice-only`). `own` is whether the namespace was made for the command, and ends with it.
fn make_tap(plan: &Plan, own: bool) -> anyhow::Result<Option<(TapDevice, Configured)>> {
    let Some(plan) = &plan.namespace else {
        bring_loopback_up()?;
        return Ok(None);
    };
    let wanted = if missing::is_missing(missing::TAP_OFFLOADS) { Offloads::empty() } else { Offloads::all() };
    let device =
        TapDevice::create(&plan.ifname, wanted).context("can't set up a tap device in the namespace")?;
    log::debug!("tap device {}: {:?}", device.name, device.offloads);
    if own && let Err(error) = device.leave_to_namespace() {
        log::debug!("tap device {}: it can't be left to the namespace: {error}", device.name);
    }
    // The kernel may have replaced a name pattern such as tap%d.
    let configured = configure(&NamespacePlan { ifname: device.name.clone(), ..plan.clone() })?;
    configured.notes.iter().for_each(|note| log::log!(note.level, "{}", note.text));
    Ok(Some((device, configured)))
}
