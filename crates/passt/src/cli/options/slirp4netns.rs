//! The options of slirp4netns (behaviour §13.1).

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr},
    os::fd::RawFd,
};

use ipnet::Ipv4Net;

use super::{Group, MTU_MAX, Opt, Show, flag, show, value};
use crate::{
    cli::{
        finish::Args,
        value::{SOCKET_PATH_MAX, interface, is_broadcast, mac, number, path, socket_path},
    },
    config::{MAX_PREFIX_LEN, Userns},
};

/// All options, by group.
pub(super) static GROUPS: [Group; 4] = [
    Group { title: "Process", options: PROCESS },
    Group { title: "Namespace", options: NAMESPACE },
    Group { title: "Network", options: NETWORK },
    Group { title: "Deprecated", options: DEPRECATED },
];

const PROCESS: &[Opt] = &[
    show(&["help"], Show::Help, "Show this help and exit").short('h'),
    show(&["version"], Show::Version, "Show the version and exit").short('v'),
    value(
        &["exit-fd"],
        "FD",
        exit_fd,
        "Exit when this descriptor is readable, or when its\nother end is closed",
    )
    .short('e'),
    value(
        &["ready-fd"],
        "FD",
        ready_fd,
        "Write \"1\" to this descriptor, and close it, when\nthe network is ready",
    )
    .short('r'),
    value(&["api-socket"], "PATH", api_socket, "Socket for requests to forward ports").short('a'),
    flag(&["enable-sandbox"], |_| (), "No effect: the sandbox is always enabled"),
    flag(&["enable-seccomp"], |_| (), "No effect: system calls are always filtered"),
];

const NAMESPACE: &[Opt] = &[
    flag(
        &["configure"],
        |args| args.config.pasta.config_net = true,
        "Bring up the loopback interface and TAPNAME, with\nan address and a default route",
    )
    .short('c'),
    value(
        &["netns-type"],
        "pid|path",
        netns_type,
        "Whether the first argument is a process ID or the\npath of a network namespace\ndefault: pid",
    ),
    value(
        &["userns-path"],
        "PATH",
        userns_path,
        "Join this user namespace\ndefault: the one that owns the network namespace",
    ),
    value(&["macaddress"], "MAC", macaddress, "MAC address of TAPNAME; needs --configure\ndefault: random"),
    value(&["target-type"], "netns", target_type, "What to connect: only a network namespace is\nsupported"),
];

const NETWORK: &[Opt] = &[
    value(&["mtu"], "BYTES", mtu, "MTU of the virtual network, at most 65521\ndefault: 1500").short('m'),
    flag(&["enable-ipv6"], |args| args.config.v6.enabled = true, "Enable IPv6: fd00::/64").short('6'),
    value(&["cidr"], "ADDR/LEN", cidr, "IPv4 network, with 1 to 25 bits of prefix\ndefault: 10.0.2.0/24"),
    flag(
        &["disable-host-loopback"],
        disable_host_loopback,
        "Don't forward connections to the gateway to the\nhost's loopback",
    ),
    flag(
        &["disable-dns"],
        |args| args.slirp4netns.disable_dns = true,
        "Don't forward DNS queries to the host's servers",
    ),
    value(
        &["outbound-addr"],
        "ADDR|NAME",
        outbound_addr,
        "Source address of outbound IPv4 connections, or\nthe interface that has it\ndefault: chosen by the routing tables",
    ),
    value(&["outbound-addr6"], "ADDR|NAME", outbound_addr6, "The same for IPv6"),
];

const DEPRECATED: &[Opt] = &[
    flag(&["no-host-loopback"], no_host_loopback, "Use --disable-host-loopback"),
    flag(&["create-sandbox"], create_sandbox, "No effect, see --enable-sandbox"),
];

fn exit_fd(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.slirp4netns.exit_fd = Some(descriptor(value)?);
    Ok(())
}

fn ready_fd(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.slirp4netns.ready_fd = Some(descriptor(value)?);
    Ok(())
}

/// 1 and 2 are for messages, so they can't have another purpose.
fn descriptor(value: &OsStr) -> Result<RawFd, String> {
    let fd = number(value).and_then(|fd| RawFd::try_from(fd).ok()).filter(|fd| ![1, 2].contains(fd));
    fd.ok_or_else(|| {
        format!("Invalid descriptor: {} (must be an open descriptor other than 1 and 2)", value.display())
    })
}

fn api_socket(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if value.len() > SOCKET_PATH_MAX {
        let limit = SOCKET_PATH_MAX + 1;
        return Err(format!("the API socket path is too long (>= {limit}): {}", value.display()));
    }
    args.config.slirp4netns.api_socket = Some(socket_path(value)?);
    Ok(())
}

fn netns_type(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.slirp4netns.by_path = match value.as_encoded_bytes() {
        b"pid" => false,
        b"path" => true,
        _ => return Err(format!("Invalid type: {} (must be \"pid\" or \"path\")", value.display())),
    };
    Ok(())
}

fn userns_path(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.pasta.userns = Userns::Path(path(value, "user namespace")?);
    Ok(())
}

fn macaddress(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let mac = mac(value)?;
    if !mac.is_unicast() {
        return Err(format!("Invalid MAC address: {} (must be unicast)", value.display()));
    }
    args.config.pasta.ns_mac = Some(mac);
    Ok(())
}

fn target_type(_: &mut Args, value: &OsStr) -> Result<(), String> {
    match value.as_encoded_bytes() {
        b"netns" => Ok(()),
        b"bess" => Err("bess is not supported: for a virtual machine, use passt".into()),
        _ => Err(format!("Invalid type: {} (must be \"netns\")", value.display())),
    }
}

fn mtu(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let mtu = number(value).and_then(|mtu| u16::try_from(mtu).ok()).filter(|mtu| (1..=MTU_MAX).contains(mtu));
    let invalid = || format!("Invalid MTU: {} (must be 1 to {MTU_MAX})", value.display());
    args.config.mtu = Some(mtu.ok_or_else(invalid)?);
    Ok(())
}

/// Refuses networks whose addresses can't be on a link. Scripts match on the first three messages.
fn cidr(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let shown = value.display();
    let network: Ipv4Net =
        value.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("invalid CIDR: {shown}"))?;
    if !(1..=MAX_PREFIX_LEN).contains(&network.prefix_len()) {
        return Err(format!("prefix length needs to be 1-{MAX_PREFIX_LEN}: {shown}"));
    }
    if network.addr() != network.network() {
        return Err(format!("CIDR needs to be a network address like {}, not like {shown}", network.trunc()));
    }
    for (reserved, what) in [
        (Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8), "addresses of \"this\" network"),
        (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback addresses"),
        (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3), "multicast and reserved addresses"),
    ] {
        if network.contains(&reserved) || reserved.contains(&network) {
            return Err(format!("{shown} overlaps {reserved}, the {what}"));
        }
    }
    args.config.slirp4netns.network = network;
    Ok(())
}

fn disable_host_loopback(args: &mut Args) {
    args.slirp4netns.disable_host_loopback = true;
}

fn no_host_loopback(args: &mut Args) {
    disable_host_loopback(args);
    args.config.warnings.push("--no-host-loopback is deprecated, use --disable-host-loopback".into());
}

fn create_sandbox(args: &mut Args) {
    args.config.warnings.push("--create-sandbox is deprecated and has no effect".into());
}

fn outbound_addr(args: &mut Args, value: &OsStr) -> Result<(), String> {
    match source(value, "IPv4")? {
        Source::Interface(name) => args.config.v4.outbound_if = Some(name),
        Source::Address(IpAddr::V4(address)) => args.config.v4.outbound = Some(address),
        Source::Address(IpAddr::V6(_)) => return Err(unusable(value, "IPv4")),
    }
    Ok(())
}

fn outbound_addr6(args: &mut Args, value: &OsStr) -> Result<(), String> {
    match source(value, "IPv6")? {
        Source::Interface(name) => args.config.v6.outbound_if = Some(name),
        Source::Address(IpAddr::V6(address)) => args.config.v6.outbound = Some(address),
        Source::Address(IpAddr::V4(_)) => return Err(unusable(value, "IPv6")),
    }
    Ok(())
}

/// The source of outbound connections.
enum Source {
    Address(IpAddr),
    Interface(engine::forward::IfName),
}

fn source(value: &OsStr, family: &str) -> Result<Source, String> {
    let Some(address) = value.to_str().and_then(|text| text.parse::<IpAddr>().ok()) else {
        return interface(value).map(Source::Interface).map_err(|_| unusable(value, family));
    };
    let v4_in_v6 = matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if address.is_unspecified() || address.is_multicast() || is_broadcast(address) || v4_in_v6 {
        return Err(unusable(value, family));
    }
    Ok(Source::Address(address))
}

fn unusable(value: &OsStr, family: &str) -> String {
    format!("Invalid source: {} (must be an {family} address or an interface)", value.display())
}
