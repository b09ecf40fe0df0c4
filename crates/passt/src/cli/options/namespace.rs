//! Options about the namespace that pasta connects.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use super::{Modes, Opt, flag, value};
use crate::{
    cli::{
        finish::Args,
        value::{interface, mac, path},
    },
    config::Userns,
};

pub(super) const OPTIONS: &[Opt] = &[
    value(&["netns"], "PATH|NAME", netns, "Connect this network namespace").only(Modes::Pasta),
    value(&["nsrun-dir"], "DIR", nsrun_dir, "Directory for names given to --netns\ndefault: /run/netns")
        .only(Modes::Pasta),
    value(
        &["userns"],
        "PATH",
        userns,
        "Join this user namespace\ndefault: the one that owns the network namespace",
    )
    .only(Modes::Pasta),
    flag(&["netns-only"], netns_only, "Join no user namespace").only(Modes::Pasta),
    flag(&["no-netns-quit"], no_netns_quit, "Don't quit when the namespace is removed").only(Modes::Pasta),
    flag(&["no-pidns"], no_pidns, "Don't create a PID namespace for the command").only(Modes::Pasta),
    flag(&["config-net"], config_net, "Configure addresses and routes in the namespace").only(Modes::Pasta),
    value(
        &["ns-ifname"],
        "NAME",
        ns_ifname,
        "Name of the interface in the namespace\ndefault: name of the template interface",
    )
    .short('I')
    .only(Modes::Pasta),
    value(
        &["ns-mac-addr"],
        "MAC",
        ns_mac_addr,
        "MAC address of the interface in the namespace\ndefault: random",
    )
    .only(Modes::Pasta),
    flag(&["no-copy-routes"], no_copy_routes, "Deprecated: don't copy all routes").only(Modes::Pasta),
    flag(&["no-copy-addrs"], no_copy_addrs, "Deprecated: don't copy all addresses").only(Modes::Pasta),
];

fn netns(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if value.is_empty() {
        return Err("Invalid netns: neither a path nor a name".into());
    }
    args.netns = Some(OsString::from(value));
    Ok(())
}

fn nsrun_dir(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.nsrun_dir = path(value, "directory")?;
    Ok(())
}

fn userns(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if value.is_empty() {
        return Err("Invalid userns: the path is empty".into());
    }
    args.config.pasta.userns = Userns::Path(PathBuf::from(value));
    Ok(())
}

fn netns_only(args: &mut Args) {
    args.config.pasta.userns = Userns::None;
}

fn no_netns_quit(args: &mut Args) {
    args.config.pasta.no_netns_quit = true;
}

fn no_pidns(args: &mut Args) {
    args.config.pasta.no_pidns = true;
}

fn config_net(args: &mut Args) {
    args.config.pasta.config_net = true;
}

fn ns_ifname(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.pasta.ns_ifname = Some(interface(value)?);
    Ok(())
}

fn ns_mac_addr(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.pasta.ns_mac = Some(mac(value)?);
    Ok(())
}

fn no_copy_routes(args: &mut Args) {
    args.no_copy_routes = true;
    args.config.warnings.push("--no-copy-routes will be dropped soon".into());
}

fn no_copy_addrs(args: &mut Args) {
    args.no_copy_addrs = true;
    args.config.warnings.push("--no-copy-addrs will be dropped soon".into());
}
