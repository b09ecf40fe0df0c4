//! The resolvers that are advertised to the guest, and the resolvers to which its queries are forwarded (behaviour
//! §3.4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::addr::{Settings, V4, V6};
use engine::forward::Bypass;

use super::{Ip, Note};
use crate::{
    config::{Config, Family, Search},
    host::{Facts, Resolver},
};

/// Maximum number of servers of a family that are advertised to the guest (behaviour §3.4.3).
const MAX_SERVERS: usize = 3;
/// Maximum number of servers to which queries are forwarded. No host needs more, but a file can list any number.
const MAX_ASKED: usize = 64;
/// Maximum number of domains that are taken from resolv.conf (behaviour §3.4.3).
const MAX_HOST_DOMAINS: usize = 5;
/// A server for questions that are taken whatever their destination: an address for documentation (RFC 5737).
const ANY_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// As [`ANY_V4`] (RFC 3849).
const ANY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);

/// Sets the settings that depend on the host's resolvers: the servers for queries, the advertised servers and the
/// advertised search list. Must be called at the start and whenever resolv.conf changes.
pub fn set_resolvers(config: &Config, resolver: &Resolver, settings: &mut Settings) {
    if let Some(v4) = &mut settings.v4 {
        let chosen = choose(config, &config.v4, resolver, v4.map_host_loopback, Some(v4.assigned));
        (v4.dns, v4.dns_forward) = (chosen.advertise, chosen.dns_forward);
        v4.dns_servers =
            asked_servers(config.v4.dns_host.map(IpAddr::V4), config.v6.dns_host.map(IpAddr::V6), resolver);
    }
    if let Some(v6) = &mut settings.v6 {
        let chosen = choose(config, &config.v6, resolver, v6.map_host_loopback, v6.assigned);
        (v6.dns, v6.dns_forward) = (chosen.advertise, chosen.dns_forward);
        v6.dns_servers =
            asked_servers(config.v6.dns_host.map(IpAddr::V6), config.v4.dns_host.map(IpAddr::V4), resolver);
    }
    settings.services.search = match &config.search {
        Search::Host => resolver.search.iter().take(MAX_HOST_DOMAINS).cloned().collect(),
        Search::None => Vec::new(),
        Search::List(domains) => domains.clone(),
    };
}

/// The servers for queries to the DNS address of one family: the server of `--dns-host` for this family, else the
/// server of `--dns-host` for the other family, else all servers in resolv.conf, of both families and in the order of
/// the file.
fn asked_servers(given: Option<IpAddr>, given_for_other: Option<IpAddr>, resolver: &Resolver) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    let list = given.or(given_for_other).map_or_else(|| resolver.servers.clone(), |server| vec![server]);
    for server in list {
        if !servers.contains(&server) && servers.len() < MAX_ASKED {
            servers.push(server);
        }
    }
    servers
}

/// See [`super::Plan::resolvers_of_command`].
pub(super) fn of_command(settings: &Settings, gateway6: Option<Ipv6Addr>) -> Vec<IpAddr> {
    let v4 = settings.v4.as_ref().map(|v4| {
        let known = v4.dns_forward.or(v4.dns.first().copied()).or(v4.our_address);
        known.unwrap_or(ANY_V4).into()
    });
    let v6 = settings.v6.as_ref().map(|v6| {
        let known = v6.dns_forward.or(v6.dns.first().copied()).or(gateway6);
        // A link-local address would need the name of the interface.
        known.filter(|known| !known.is_unicast_link_local()).unwrap_or(ANY_V6).into()
    });
    v4.into_iter().chain(v6).collect()
}

/// Whether [`set_resolvers`] can change a setting that affects the guest.
pub(super) fn matter(config: &Config, settings: &Settings) -> bool {
    let search = settings.services.advertise_search && config.search == Search::Host;
    let v4 = settings.v4.as_ref().map(|v4| v4.map_host_loopback.is_some());
    let v6 = settings.v6.as_ref().map(|v6| v6.map_host_loopback.is_some());
    let no_link = config.splice == Bypass::Only;
    // With rules by name, questions to all servers go to the host's resolvers. A policy file was not read yet, and a
    // client of the control socket or of the API socket may send a policy later. Both may have rules by name.
    let names = config.policy.is_some()
        || config.rules_may_change()
        || config.rules.iter().any(engine::policy::Rule::is_by_name);
    let families = v4.is_some_and(|mapped| family_matters(config, &config.v4, mapped))
        || v6.is_some_and(|mapped| family_matters(config, &config.v6, mapped));
    !no_link && (search || names || families)
}

fn family_matters<A>(config: &Config, asked: &Family<A>, loopback_is_mapped: bool) -> bool {
    let given = config.v4.dns_host.is_some() || config.v6.dns_host.is_some();
    let forwards = asked.dns_forward.is_some() && !given;
    // `choose` may make the host-loopback address the DNS address, too.
    let file_is_used = !config.dns_none && asked.dns.is_empty();
    forwards || file_is_used && (config.dhcp_dns || loopback_is_mapped && asked.dns_forward.is_none())
}

/// The resolvers of one family.
struct Resolvers<A> {
    /// Servers to advertise.
    advertise: Vec<A>,
    /// Queries of the guest to this address are forwarded to the host's resolvers.
    dns_forward: Option<A>,
}

/// Chooses the resolvers of one family. `assigned` is the guest's address. It is usually also the host's address.
fn choose<A: Ip>(
    config: &Config,
    asked: &Family<A>,
    resolver: &Resolver,
    map_host_loopback: Option<A>,
    assigned: Option<A>,
) -> Resolvers<A> {
    let servers: Vec<A> = resolver.servers.iter().copied().filter_map(A::from_ip).collect();
    let mut chosen = Resolvers { advertise: asked.dns.clone(), dns_forward: asked.dns_forward };
    if config.dns_none || !asked.dns.is_empty() {
        return chosen;
    }
    for server in servers {
        // In the guest, these addresses lead to the guest itself, or to the host's loopback.
        let out_of_reach = IpAddr::is_loopback(&server.into())
            || Some(server) == map_host_loopback
            || Some(server) == assigned;
        let advertised = if !out_of_reach {
            server
        } else if let Some(forward) = asked.dns_forward {
            forward
        } else if let Some(mapped) = map_host_loopback {
            chosen.dns_forward = Some(mapped);
            mapped
        } else {
            continue;
        };
        // The same address may represent several servers (Q23).
        if !chosen.advertise.contains(&advertised) && chosen.advertise.len() < MAX_SERVERS {
            chosen.advertise.push(advertised);
        }
    }
    if let (Some(forward), true) = (asked.dns_forward, chosen.advertise.is_empty()) {
        // The host has servers of the other family only. The guest reaches them by the DNS address.
        if !resolver.servers.is_empty() {
            chosen.advertise.push(forward);
        }
    }
    chosen
}

/// Warns if the guest gets no resolver (behaviour §3.4.7). Does not warn if no resolver was requested.
pub(super) fn check(config: &Config, facts: &Facts, v4: Option<&V4>, v6: Option<&V6>, notes: &mut Vec<Note>) {
    let v4_lacks = v4.is_some_and(|v4| v4.dns_forward.is_some() && v4.dns_servers.is_empty());
    let v6_lacks = v6.is_some_and(|v6| v6.dns_forward.is_some() && v6.dns_servers.is_empty());
    let advertise = config.dhcp_dns && !config.dns_none;
    let nothing_given = config.v4.dns.is_empty() && config.v6.dns.is_empty();
    if facts.resolver.servers.is_empty() && ((advertise && nothing_given) || v4_lacks || v6_lacks) {
        notes.push(Note::warn("Couldn't get any nameserver address"));
    }
    if !advertise {
        return;
    }
    let dhcp = !config.no_dhcp && v4.is_some_and(|v4| v4.our_address.is_some());
    if dhcp && v4.is_some_and(|v4| v4.dns.is_empty()) {
        notes.push(Note::warn("No IPv4 nameserver available for DHCP"));
    }
    let ndp_or_dhcpv6 = !(config.no_ndp && config.no_dhcpv6);
    if ndp_or_dhcpv6 && v6.is_some_and(|v6| v6.dns.is_empty()) {
        notes.push(Note::warn("No IPv6 nameserver available for NDP/DHCPv6"));
    }
}
