//! Options about addresses, interfaces and routes.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv6Addr},
    os::unix::ffi::OsStrExt,
};

use super::{MTU_MAX, Opt, flag, value};
use crate::cli::{
    finish::Args,
    value::{addr, interface, is_broadcast, mac, number, prefix_len, store},
};

pub(super) const OPTIONS: &[Opt] = &[
    flag(&["ipv4-only"], ipv4_only, "No IPv6").short('4'),
    flag(&["ipv6-only"], ipv6_only, "No IPv4").short('6'),
    value(
        &["address"],
        "ADDR[/LEN]",
        address,
        "Guest's address, once for each of IPv4 and IPv6\ndefault: copied from the template interface",
    )
    .short('a'),
    value(
        &["netmask"],
        "MASK",
        netmask,
        "Guest's IPv4 netmask, dotted or number of bits\ndefault: that of the host's address",
    )
    .short('n'),
    value(
        &["gateway"],
        "ADDR",
        gateway,
        "Default gateway for the guest, once for each of\nIPv4 and IPv6\ndefault: that of the template interface",
    )
    .short('g'),
    value(
        &["interface"],
        "NAME",
        template,
        "Template for addresses and routes\ndefault: --outbound-if4 and --outbound-if6, else\nthat of the first default route",
    )
    .short('i'),
    value(
        &["outbound"],
        "ADDR",
        outbound,
        "Source address of outbound connections, once for\neach of IPv4 and IPv6\ndefault: chosen by the routing tables",
    )
    .short('o'),
    value(&["outbound-if4"], "NAME", outbound_if4, "Interface of outbound IPv4 connections"),
    value(&["outbound-if6"], "NAME", outbound_if6, "Interface of outbound IPv6 connections"),
    value(
        &["mtu"],
        "BYTES",
        mtu,
        "MTU of the guest's interface, 0: don't set one\ndefault: 65520",
    )
    .short('m'),
    value(
        &["mac-addr"],
        "MAC",
        mac_addr,
        "Our MAC address, as the guest sees it\ndefault: 9a:55:9a:55:9a:55",
    )
    .short('M'),
];

fn ipv4_only(args: &mut Args) {
    (args.config.v4.enabled, args.config.v6.enabled) = (true, false);
}

fn ipv6_only(args: &mut Args) {
    (args.config.v4.enabled, args.config.v6.enabled) = (false, true);
}

fn address(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let invalid = || format!("Invalid guest address: {}", value.display());
    let text = value.to_str().ok_or_else(invalid)?;
    let (text, len) = match text.split_once('/') {
        None => (text, None),
        Some((addr, len)) => (addr, Some(len)),
    };
    let typed: IpAddr = text.parse().map_err(|_| invalid())?;
    let canonical = typed.to_canonical();
    if canonical.is_unspecified()
        || canonical.is_loopback()
        || canonical.is_multicast()
        || is_broadcast(canonical)
    {
        return Err(invalid());
    }
    let len = len.map(|len| decimal(len).ok_or_else(invalid)).transpose()?;
    let len = len.map(|len| {
        let len = match (typed, canonical) {
            // The prefix length of an IPv4-mapped address may be that of the IPv6 address.
            (IpAddr::V6(_), IpAddr::V4(_)) if len > 32 => len.checked_sub(96)?,
            _ => len,
        };
        u8::try_from(len).ok().filter(|len| *len <= if canonical.is_ipv4() { 32 } else { 128 })
    });
    if len == Some(None) {
        return Err(format!("Invalid prefix length: {}", value.display()));
    }
    store(canonical, &mut args.config.v4.address, &mut args.config.v6.address);
    match canonical {
        IpAddr::V4(_) => args.v4_len = len.flatten(),
        IpAddr::V6(_) => args.v6_len = len.flatten(),
    }
    Ok(())
}

/// A number that consists of decimal digits only.
fn decimal(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn netmask(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let len = prefix_len(value).ok_or_else(|| format!("Invalid prefix length: {}", value.display()))?;
    args.netmask = Some(len);
    Ok(())
}

fn gateway(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let addr = addr(value).filter(|a| !a.is_unspecified() && !a.is_loopback() && !is_broadcast(*a));
    let addr = addr.ok_or_else(|| format!("Invalid gateway address: {}", value.display()))?;
    store(addr, &mut args.config.v4.gateway, &mut args.config.v6.gateway);
    Ok(())
}

fn template(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.interface = Some(interface(value)?);
    Ok(())
}

/// Refuses IPv6 forms of IPv4 addresses: no socket can have such an address as its source.
fn outbound(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let typed: Option<IpAddr> = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.parse().ok());
    let usable = |addr: &IpAddr| {
        let v4_in_v6 = matches!(addr, IpAddr::V6(addr) if addr.to_ipv4().is_some());
        let unusable = addr.is_unspecified() || addr.is_multicast() || is_broadcast(*addr) || v4_in_v6;
        !unusable && *addr != IpAddr::V6(Ipv6Addr::LOCALHOST)
    };
    let addr =
        typed.filter(usable).ok_or_else(|| format!("Invalid outbound address: {}", value.display()))?;
    store(addr, &mut args.config.v4.outbound, &mut args.config.v6.outbound);
    Ok(())
}

fn outbound_if4(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.v4.outbound_if = Some(interface(value)?);
    Ok(())
}

fn outbound_if6(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.v6.outbound_if = Some(interface(value)?);
    Ok(())
}

fn mtu(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let mtu = number(value).ok_or_else(|| format!("Invalid MTU: {}", value.display()))?;
    let fits = u16::try_from(mtu).ok().filter(|mtu| *mtu <= MTU_MAX);
    args.config.mtu = Some(fits.ok_or_else(|| format!("MTU {mtu} too large (max {MTU_MAX})"))?);
    Ok(())
}

fn mac_addr(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.our_mac = mac(value)?;
    Ok(())
}
