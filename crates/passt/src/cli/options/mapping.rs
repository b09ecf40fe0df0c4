//! Options about the translation of addresses (behaviour §5).

use std::{ffi::OsStr, net::IpAddr};

use super::{Modes, Opt, flag, value};
use crate::cli::{
    finish::Args,
    value::{addr, is_broadcast, store},
};

pub(super) const OPTIONS: &[Opt] = &[
    value(
        &["map-host-loopback"],
        "ADDR",
        map_host_loopback,
        "Address at which the guest reaches the host's\nloopback, once for each of IPv4 and IPv6, or\n\"none\"\ndefault: the gateway's",
    ),
    flag(&["no-map-gw"], no_map_gw, "Don't translate the gateway's address"),
    value(
        &["map-guest-addr"],
        "ADDR",
        map_guest_addr,
        "Address at which the guest reaches the host's own\naddress, once for each of IPv4 and IPv6\ndefault: none",
    ),
    value(
        &["dns-forward"],
        "ADDR",
        dns_forward,
        "Address at which the guest reaches the host's\nresolvers, once for each of IPv4 and IPv6\ndefault: none",
    ),
    value(
        &["dns-host"],
        "ADDR",
        dns_host,
        "The host's only resolver, once for each of IPv4\nand IPv6\ndefault: those of /etc/resolv.conf",
    ),
    flag(&["no-splice"], no_splice, "Loopback connections don't bypass the link").only(Modes::Pasta),
    flag(&["splice-only"], splice_only, "Forward loopback connections only").only(Modes::Pasta),
    flag(
        &["host-lo-to-ns-lo"],
        host_lo_to_ns_lo,
        "Forward connections to the host's loopback to the\nnamespace's loopback",
    )
    .only(Modes::Pasta),
];

fn map_host_loopback(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if value == "none" {
        (args.map_host_loopback_v4, args.map_host_loopback_v6) = (None, None);
        args.no_map_gw = true;
        return Ok(());
    }
    store(remappable(value)?, &mut args.map_host_loopback_v4, &mut args.map_host_loopback_v6);
    Ok(())
}

fn no_map_gw(args: &mut Args) {
    args.no_map_gw = true;
}

fn map_guest_addr(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let config = &mut args.config;
    if value == "none" {
        (config.v4.map_guest_addr, config.v6.map_guest_addr) = (None, None);
        return Ok(());
    }
    store(remappable(value)?, &mut config.v4.map_guest_addr, &mut config.v6.map_guest_addr);
    Ok(())
}

/// Parses an address that the guest can send to and that can represent the host.
fn remappable(value: &OsStr) -> Result<IpAddr, String> {
    let usable = |addr: &IpAddr| !addr.is_loopback() && !addr.is_unspecified() && !addr.is_multicast();
    let addr = addr(value).filter(usable);
    addr.ok_or_else(|| format!("Invalid address to remap to host: {}", value.display()))
}

fn dns_forward(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let usable = |addr: &IpAddr| !addr.is_unspecified() && !addr.is_loopback() && !is_broadcast(*addr);
    let addr = addr(value).filter(usable);
    let addr = addr.ok_or_else(|| format!("Invalid DNS forwarding address: {}", value.display()))?;
    store(addr, &mut args.config.v4.dns_forward, &mut args.config.v6.dns_forward);
    Ok(())
}

fn dns_host(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let addr = addr(value).filter(|addr| !addr.is_unspecified() && !is_broadcast(*addr));
    let addr = addr.ok_or_else(|| format!("Invalid host nameserver address: {}", value.display()))?;
    store(addr, &mut args.config.v4.dns_host, &mut args.config.v6.dns_host);
    Ok(())
}

fn no_splice(args: &mut Args) {
    args.no_splice = true;
}

fn splice_only(args: &mut Args) {
    args.splice_only = true;
}

fn host_lo_to_ns_lo(args: &mut Args) {
    args.config.host_lo_to_ns_lo = true;
}
