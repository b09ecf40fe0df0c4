//! Turns the options of slirp4netns into a configuration.

use std::{ffi::OsString, path::PathBuf};

use super::value::{interface, number};
use crate::config::{Config, DNS_V6, MapHostLoopback, Target};

/// MTU without `--mtu`.
const DEFAULT_MTU: u16 = 1500;

/// The options that do not set a single field of the configuration.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// `--netns-type=path`.
    pub(super) by_path: bool,
    /// `--disable-host-loopback`.
    pub(super) disable_host_loopback: bool,
    /// `--disable-dns`.
    pub(super) disable_dns: bool,
}

/// What slirp4netns mode implies, unless options change it.
pub(super) fn set_defaults(config: &mut Config) {
    config.v6.enabled = false;
    config.mtu = Some(DEFAULT_MTU);
    config.foreground = true;
    config.dhcp_dns = true;
    // The namespace may outlive the process or the path by which it was given.
    config.pasta.no_netns_quit = true;
}

/// Combines the options, and refuses contradictions. `operands` are the namespace and the name of the interface.
///
/// # Errors
/// An operand is missing or invalid, or options contradict each other.
pub(super) fn finish(config: &mut Config, given: &Given, operands: &[OsString]) -> Result<(), String> {
    let [target, name, extra @ ..] = operands else {
        return Err("two arguments are needed: PID or PATH of a network namespace, and TAPNAME".into());
    };
    if !extra.is_empty() {
        config.warnings.push(format!("{} more arguments than PID|PATH and TAPNAME: ignored", extra.len()));
    }
    config.pasta.target =
        if given.by_path {
            Target::Netns(PathBuf::from(target))
        } else {
            let pid = number(target).and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
            Target::Pid(pid.ok_or_else(|| {
                format!("Invalid PID {} (for a path, use --netns-type=path)", target.display())
            })?)
        };
    config.pasta.ns_ifname = Some(interface(name)?);
    if config.pasta.ns_mac.is_some() && !config.pasta.config_net {
        return Err("--macaddress needs --configure".into());
    }
    let fds = (config.slirp4netns.exit_fd, config.slirp4netns.ready_fd);
    if fds.0.is_some() && fds.0 == fds.1 {
        return Err("--exit-fd and --ready-fd can't be the same descriptor".into());
    }
    if !config.v6.enabled && (config.v6.outbound.is_some() || config.v6.outbound_if.is_some()) {
        return Err("--outbound-addr6 needs --enable-ipv6".into());
    }
    if given.disable_host_loopback {
        config.v4.map_host_loopback = MapHostLoopback::None;
        config.v6.map_host_loopback = MapHostLoopback::None;
    } else {
        let gateway = config.slirp4netns.gateway();
        config.warnings.push(format!(
            "The host's loopback is reachable as {gateway} (--disable-host-loopback prohibits this)"
        ));
    }
    if given.disable_dns {
        config.dns_none = true;
    } else {
        let dns = config.slirp4netns.dns();
        (config.v4.dns, config.v4.dns_forward) = (vec![dns], Some(dns));
        (config.v6.dns, config.v6.dns_forward) = (vec![DNS_V6], Some(DNS_V6));
    }
    Ok(())
}
