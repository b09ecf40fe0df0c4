//! The plan: the values for host and guest. It depends only on the configuration and on the facts about the machine
//! (behaviour §3).
//!
//! The code of this module neither reads nor changes the machine, so tests cover all decisions with plain values.
//! Messages are returned as notes, and the caller logs them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use engine::{
    addr::{Services, Settings, V4, V6},
    forward::{Bypass, Enabled, IfName},
    neighbours::Neighbours,
};
use log::Level;

use crate::{
    config::{Config, DEFAULT_MTU, Family, MapHostLoopback, Mode},
    host::Facts,
};

mod namespace;
mod resolvers;
mod summary;
mod template;
mod virtual_network;

pub use namespace::{InterfacePlan, NamespaceFamily, NamespacePlan, TX_QUEUE_LEN};

pub use resolvers::set_resolvers;
use template::Template;

/// The guest's IPv4 address in local mode (behaviour §3.5).
const LOCAL_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
/// Prefix length of the guest's IPv4 network in local mode.
const LOCAL_V4_PREFIX_LEN: u8 = 16;
/// The program's IPv4 address in local mode.
const LOCAL_V4_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
/// The program's IPv6 address in local mode.
const LOCAL_V6_GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The plan for host and guest.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Addresses and services, for the engine.
    pub settings: Settings,
    /// Template interface of IPv4. `None`: local mode is used, or IPv4 is disabled.
    pub template4: Option<TemplateLink>,
    /// Template interface of IPv6. `None`: local mode is used, or IPv6 is disabled. Link-local destinations of the
    /// guest are on this interface (behaviour §5.2).
    pub template6: Option<TemplateLink>,
    /// The guest's IPv6 gateway: the address of `--gateway`, else the host's gateway or the gateway of local mode.
    pub gateway6: Option<Ipv6Addr>,
    /// How outbound IPv4 sockets are bound.
    pub outbound4: Outbound<Ipv4Addr>,
    /// How outbound IPv6 sockets are bound.
    pub outbound6: Outbound<Ipv6Addr>,
    /// The plan for the namespace. `None` in passt mode, and with `--splice-only`, which uses no tap device.
    pub namespace: Option<NamespacePlan>,
    /// Messages for the log.
    pub notes: Vec<Note>,
}

/// An interface of the host that serves as a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateLink {
    /// Index of the interface. It is also the scope of link-local IPv6 addresses.
    pub index: u32,
    /// Name of the interface.
    pub name: String,
}

/// How outbound sockets of one family are bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound<A> {
    /// Source address. `None`: the kernel chooses the address.
    pub address: Option<A>,
    /// Interface. `None`: the kernel chooses the interface. Does not apply to loopback sources.
    pub interface: Option<IfName>,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The log level.
    pub level: Level,
    /// The message.
    pub text: String,
}

/// Why the plan can't be made: an option requires something that this machine does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An option names an interface that doesn't exist.
    #[error("{option}: invalid interface name {name}: no such device")]
    NoSuchInterface {
        /// The option's name.
        option: &'static str,
        /// The interface's name.
        name: String,
    },
    /// The interface that an option names has no address that the family can use.
    #[error("{option}: external interface not usable: {name} has no usable {family} address")]
    Unusable {
        /// The option's name.
        option: &'static str,
        /// The interface's name.
        name: String,
        /// The address family.
        family: &'static str,
    },
    /// No interface can have the MTU.
    #[error(
        "--mtu {mtu}: an interface has an MTU of at least {MIN_MTU_V4}; 0 leaves it to the kernel (--config-net)"
    )]
    MtuTooSmall {
        /// The value of the option.
        mtu: u16,
    },
    /// `--ipv6-only` was given, but the host has no IPv6.
    #[error("--ipv6-only: this host has no IPv6 (no IPv6 socket can be made)")]
    NoIpv6,
}

/// Makes the plan (behaviour §3).
///
/// # Errors
/// An option requires something that the machine does not have.
pub fn plan(config: &Config, facts: &Facts) -> Result<Plan, Error> {
    if config.mode == Mode::Slirp4netns {
        return virtual_network::plan(config, facts);
    }
    let mut notes = Vec::new();
    if config.v6.enabled && !facts.ipv6 {
        if !config.v4.enabled {
            return Err(Error::NoIpv6);
        }
        notes.push(Note::debug("this host has no IPv6: not used"));
    }
    let v6_enabled = config.v6.enabled && facts.ipv6;
    check_mtu(config, v6_enabled, &mut notes)?;
    template::check_interfaces(config, facts)?;

    let tap = config.splice != Bypass::Only;
    let template4 = find_template(config, &config.v4, facts, tap && config.v4.enabled, &mut notes)?;
    let template6 = find_template(config, &config.v6, facts, tap && v6_enabled, &mut notes)?;
    if let (Some(name), true, None, None) = (&config.interface, tap, &template4, &template6) {
        notes.push(Note::warn(format!(
            "--interface {name}: it has no address for the guest, which can reach only this host's loopback"
        )));
    }
    let v4 = config.v4.enabled.then(|| ipv4(config, facts, template4.as_ref()));
    let gateway6 = if v6_enabled { gateway6(config, template6.as_ref()) } else { None };
    let v6 = v6_enabled.then(|| ipv6(config, facts, template6.as_ref(), gateway6));
    let namespace = (tap && config.mode == Mode::Pasta).then(|| {
        let links = [template4.as_ref().map(Template::link), template6.as_ref().map(Template::link)];
        let v4 = v4.as_ref().map(|v4| namespace::ipv4(config, facts, template4.as_ref(), v4));
        let v6 = v6.as_ref().map(|v6| namespace::ipv6(config, facts, template6.as_ref(), v6, gateway6));
        namespace::plan(config, facts, links, v4, v6)
    });
    let mut settings = Settings {
        our_mac: config.our_mac,
        mtu: config.mtu.unwrap_or(DEFAULT_MTU),
        v4,
        v6,
        neighbours: Neighbours::with_routers(
            template4.as_ref().and_then(|template| template.gateway),
            template6.as_ref().and_then(|template| template.gateway),
        ),
        virtual_hosts: Vec::new(),
        services: services(config, facts, tap),
    };
    set_resolvers(config, &facts.resolver, &mut settings);
    if tap {
        resolvers::check(config, facts, settings.v4.as_ref(), settings.v6.as_ref(), &mut notes);
    }
    Ok(Plan {
        settings,
        template4: template4.map(|template| template.link().clone()),
        template6: template6.map(|template| template.link().clone()),
        gateway6,
        outbound4: Outbound { address: config.v4.outbound, interface: config.v4.outbound_if.clone() },
        outbound6: Outbound { address: config.v6.outbound, interface: config.v6.outbound_if.clone() },
        namespace,
        notes,
    })
}

impl Plan {
    /// Disables the families that the guest's namespace `lacks` (IPv4, IPv6). Returns `enabled` without these families.
    /// If no family would remain, nothing is changed: local connections can still bypass the link.
    pub(crate) fn without(&mut self, lacks: [bool; 2], enabled: Enabled) -> Enabled {
        let left = Enabled { ipv4: enabled.ipv4 && !lacks[0], ipv6: enabled.ipv6 && !lacks[1], ..enabled };
        if !left.ipv4 && !left.ipv6 {
            return enabled;
        }
        if !left.ipv4 {
            (self.settings.v4, self.template4) = (None, None);
        }
        if !left.ipv6 {
            (self.settings.v6, self.template6, self.gateway6) = (None, None, None);
        }
        left
    }

    /// The servers to which a spawned command sends its questions if there are rules by name: one of each enabled
    /// family. The guard takes questions to any address, and passes them on to the host's resolvers.
    #[must_use]
    pub fn resolvers_of_command(&self) -> Vec<IpAddr> {
        resolvers::of_command(&self.settings, self.gateway6)
    }

    /// Whether the settings depend on resolv.conf.
    #[must_use]
    pub fn follows_resolvers(&self, config: &Config) -> bool {
        resolvers::matter(config, &self.settings)
    }
}

/// Finds the template of a family, if the family is `wanted`. Adds a note if there is no template.
fn find_template<A: Ip>(
    config: &Config,
    asked: &Family<A>,
    facts: &Facts,
    wanted: bool,
    notes: &mut Vec<Note>,
) -> Result<Option<Template<A>>, Error> {
    if !wanted {
        return Ok(None);
    }
    let template = template::find(config, asked, facts, notes)?;
    if template.is_none() {
        notes.push(Note::info(format!("{}: no external interface as template, use local mode", A::FAMILY)));
    }
    Ok(template)
}

/// IPv4 addressing (behaviour §3.2, §3.3, §3.5), without resolvers.
fn ipv4(config: &Config, facts: &Facts, template: Option<&Template<Ipv4Addr>>) -> V4 {
    let asked = &config.v4;
    let (found, found_len, found_gateway) = match template {
        Some(template) => (template.address, template.prefix_len, template.gateway),
        None => (Some(LOCAL_V4), LOCAL_V4_PREFIX_LEN, Some(LOCAL_V4_GATEWAY)),
    };
    let assigned = asked.address.or(found).unwrap_or(LOCAL_V4);
    let default_len = match asked.address {
        Some(address) => host_prefix_len(facts, address).unwrap_or_else(|| classful_prefix_len(address)),
        None => found_len,
    };
    let our_address = asked.gateway.or(found_gateway);
    V4 {
        assigned,
        prefix_len: asked.prefix_len.unwrap_or(default_len),
        our_address,
        map_host_loopback: map_host_loopback(asked, our_address),
        map_guest_address: asked.map_guest_addr,
        dns_forward: None,
        dns_servers: Vec::new(),
        pinned: asked.address.is_some(),
        dns: Vec::new(),
    }
}

/// The IPv6 gateway (behaviour §3.3, §3.5).
fn gateway6(config: &Config, template: Option<&Template<Ipv6Addr>>) -> Option<Ipv6Addr> {
    config.v6.gateway.or(match template {
        Some(template) => template.gateway,
        None => Some(LOCAL_V6_GATEWAY),
    })
}

/// IPv6 addressing (behaviour §3.2, §3.5), without resolvers.
fn ipv6(
    config: &Config,
    facts: &Facts,
    template: Option<&Template<Ipv6Addr>>,
    gateway: Option<Ipv6Addr>,
) -> V6 {
    let asked = &config.v6;
    let our_link_local = gateway
        .filter(Ipv6Addr::is_unicast_link_local)
        .or(template.and_then(|template| template.link_local))
        .unwrap_or(LOCAL_V6_GATEWAY);
    let assigned = asked.address.or(template.and_then(|template| template.address));
    let bound_to = asked.outbound_if.as_ref().and_then(|name| facts.link_named(name));
    let outbound_scope = bound_to
        .map(|link| link.index)
        .or(template.map(|template| template.link().index))
        .unwrap_or_default();
    V6 {
        assigned,
        our_link_local,
        outbound_scope,
        map_host_loopback: map_host_loopback(asked, gateway),
        map_guest_address: asked.map_guest_addr,
        dns_forward: None,
        dns_servers: Vec::new(),
        pinned: asked.address.is_some(),
        dns: Vec::new(),
    }
}

/// The address at which the guest reaches the host's loopback (behaviour §5.2).
fn map_host_loopback<A: Copy>(asked: &Family<A>, gateway: Option<A>) -> Option<A> {
    match asked.map_host_loopback {
        MapHostLoopback::Gateway => gateway,
        MapHostLoopback::None => None,
        MapHostLoopback::Addr(address) => Some(address),
    }
}

/// The prefix length of `address` on the host, if the host has it.
fn host_prefix_len(facts: &Facts, address: Ipv4Addr) -> Option<u8> {
    facts.addresses.iter().find(|known| known.local == address).map(|known| known.prefix_len)
}

/// Prefix length of the address's class A, B or C (behaviour §3.2).
fn classful_prefix_len(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        192..=223 => 24,
        224.. => 32,
    }
}

/// The enabled services (behaviour §4), without the search list.
fn services(config: &Config, facts: &Facts, tap: bool) -> Services {
    Services {
        tcp: !config.no_tcp,
        udp: !config.no_udp,
        icmp: !config.no_icmp && tap,
        multicast: config.multicast && !config.no_udp && tap,
        dhcp: !config.no_dhcp,
        dhcpv6: !config.no_dhcpv6,
        ndp: !config.no_ndp,
        ra: !config.no_ra,
        advertise_dns: config.dhcp_dns && !config.dns_none,
        advertise_search: config.dhcp_search,
        search: Vec::new(),
        hostname: config.hostname.clone(),
        fqdn: config.fqdn.clone(),
        start_since_2000: seconds_since_2000(facts.time),
    }
}

fn seconds_since_2000(time: SystemTime) -> u32 {
    const YEAR_2000: Duration = Duration::from_secs(946_684_800);
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH + YEAR_2000).unwrap_or_default().as_secs();
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Minimum MTU of IPv4 (RFC 791).
const MIN_MTU_V4: u16 = 68;
/// Minimum MTU of IPv6 (RFC 8200).
const MIN_MTU_V6: u16 = 1280;

/// Warns if the MTU is too small for a family. The MTU is used nevertheless (behaviour §2.2), unless pasta would have to
/// set it: the kernel refuses an MTU below that of IPv4. Zero means that no MTU is set (Q18).
fn check_mtu(config: &Config, v6_enabled: bool, notes: &mut Vec<Note>) -> Result<(), Error> {
    let Some(mtu) = config.mtu.filter(|mtu| *mtu != 0) else { return Ok(()) };
    if mtu < MIN_MTU_V4 && config.mode == Mode::Pasta && config.pasta.config_net {
        return Err(Error::MtuTooSmall { mtu });
    }
    for (family, enabled, least) in
        [("IPv4", config.v4.enabled, MIN_MTU_V4), ("IPv6", v6_enabled, MIN_MTU_V6)]
    {
        if enabled && mtu < least {
            notes.push(Note::warn(format!("--mtu {mtu} is too small for {family}, which needs {least}")));
        }
    }
    Ok(())
}

impl Note {
    pub(crate) fn debug(text: impl Into<String>) -> Self {
        Self { level: Level::Debug, text: text.into() }
    }

    pub(crate) fn info(text: impl Into<String>) -> Self {
        Self { level: Level::Info, text: text.into() }
    }

    pub(crate) fn warn(text: impl Into<String>) -> Self {
        Self { level: Level::Warn, text: text.into() }
    }
}

/// An IPv4 or IPv6 address.
trait Ip: Copy + Eq + Into<IpAddr> {
    /// Name of the family.
    const FAMILY: &'static str;
    /// Length of an address in bits.
    const BITS: u8;
    /// The option that binds outbound sockets of the family to an interface.
    const OUTBOUND_IF: &'static str;

    /// Returns `address` if it belongs to this family.
    fn from_ip(address: IpAddr) -> Option<Self>;
}

impl Ip for Ipv4Addr {
    const FAMILY: &'static str = "IPv4";
    const BITS: u8 = 32;
    const OUTBOUND_IF: &'static str = "--outbound-if4";

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}

impl Ip for Ipv6Addr {
    const FAMILY: &'static str = "IPv6";
    const BITS: u8 = 128;
    const OUTBOUND_IF: &'static str = "--outbound-if6";

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }
}
