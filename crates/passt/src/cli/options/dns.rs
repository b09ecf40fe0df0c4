//! Options about names that are advertised to the guest: DNS servers, the search list, the guest's own name.

use std::{ffi::OsStr, net::IpAddr};

use super::{Modes, Opt, flag, value};
use crate::{
    cli::{
        finish::Args,
        value::{addr, name},
    },
    config::{Config, Search},
};

/// Maximum number of servers of one family (behaviour §12).
const DNS_MAX: usize = 3;
/// Maximum number of domains (behaviour §12).
const SEARCH_MAX: usize = 6;

pub(super) const OPTIONS: &[Opt] = &[
    value(
        &["dns"],
        "ADDR",
        dns,
        "DNS server to advertise, up to three of each of\nIPv4 and IPv6, or \"none\"\ndefault: those of /etc/resolv.conf",
    )
    .short('D'),
    value(
        &["search"],
        "LIST",
        search,
        "Domains to search, separated by blanks, up to six,\nor \"none\"\ndefault: those of /etc/resolv.conf",
    )
    .short('S'),
    value(&["hostname"], "NAME", hostname, "Host name for the guest").short('H'),
    value(&["fqdn"], "NAME", fqdn, "Fully qualified domain name for the guest"),
    flag(&["dhcp-dns"], |args| args.config.dhcp_dns = true, "Advertise DNS servers by DHCP, DHCPv6 and NDP")
        .only(Modes::Pasta),
    flag(
        &["dhcp-search"],
        |args| args.config.dhcp_search = true,
        "Advertise the search list by DHCP, DHCPv6 and NDP",
    )
    .only(Modes::Pasta),
    flag(&["no-dhcp-dns"], |args| args.config.dhcp_dns = false, "Don't advertise DNS servers")
        .only(Modes::Passt),
    flag(&["no-dhcp-search"], |args| args.config.dhcp_search = false, "Don't advertise the search list")
        .only(Modes::Passt),
];

/// Each option adds a server. When a family has three servers, further servers of this family are ignored. `none`
/// removes all earlier servers.
fn dns(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let Config { v4, v6, dns_none, .. } = &mut args.config;
    if value == "none" {
        *dns_none = true;
        v4.dns.clear();
        v6.dns.clear();
        (v4.dns_forward, v4.dns_host) = (None, None);
        (v6.dns_forward, v6.dns_host) = (None, None);
        return Ok(());
    }
    match addr(value) {
        None => return Err(format!("Cannot use DNS address {}", value.display())),
        Some(IpAddr::V4(addr)) if v4.dns.len() < DNS_MAX => v4.dns.push(addr),
        Some(IpAddr::V6(addr)) if v6.dns.len() < DNS_MAX => v6.dns.push(addr),
        Some(_) => {}
    }
    *dns_none = false;
    Ok(())
}

/// Each option adds domains. QEMU passes several domains in one argument (Q15).
fn search(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if value == "none" {
        args.config.search = Search::None;
        return Ok(());
    }
    let mut list = match std::mem::take(&mut args.config.search) {
        Search::List(list) => list,
        Search::Host | Search::None => Vec::new(),
    };
    let unusable = |domain: &OsStr| format!("Cannot use DNS search domain {}", domain.display());
    let mut domains = value.to_str().ok_or_else(|| unusable(value))?.split_whitespace().peekable();
    if domains.peek().is_none() {
        return Err(unusable(value));
    }
    for domain in domains {
        if list.len() >= SEARCH_MAX {
            return Err(format!("{}: no more than {SEARCH_MAX}", unusable(domain.as_ref())));
        }
        list.push(name(domain.as_ref(), "search domain")?);
    }
    args.config.search = Search::List(list);
    Ok(())
}

fn hostname(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.hostname = Some(name(value, "hostname")?);
    Ok(())
}

fn fqdn(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.fqdn = Some(name(value, "FQDN")?);
    Ok(())
}
