//! Options about the connection to the guest.

use std::{ffi::OsStr, os::fd::RawFd};

use super::{Action, Modes, Opt, Show, flag, value};
use crate::{
    cli::{
        finish::Args,
        value::{number, socket_path},
    },
    config::{GuestLink, RepairPath},
};

pub(super) const OPTIONS: &[Opt] = &[
    value(
        &["socket", "socket-path"],
        "PATH",
        socket,
        "UNIX domain socket for the guest\ndefault: first free of /tmp/passt_1.socket, ...",
    )
    .short('s')
    .only(Modes::Passt),
    value(&["fd"], "FD", fd, "Use this open file descriptor, a connected\nsocket; implies --one-off")
        .short('F')
        .only(Modes::MainlyPasst),
    flag(&["one-off"], one_off, "Quit when the first guest disconnects").short('1').only(Modes::Passt),
    flag(&["vhost-user"], vhost_user, "Serve a vhost-user front-end at the socket").only(Modes::MainlyPasst),
    Opt {
        long: &["print-capabilities"],
        short: None,
        action: Action::Show(Show::Capabilities),
        modes: Modes::MainlyPasst,
        help: "Show the vhost-user back-end's capabilities, in\nJSON, and exit",
        extension: false,
    },
    value(
        &["repair-path"],
        "PATH",
        repair_path,
        "Socket for passt-repair(1), or \"none\"\ndefault: path of the guest's socket and \".repair\"",
    )
    .only(Modes::MainlyPasst),
    flag(&["migrate-exit"], migrate_exit, "Deprecated: quit after migration to another host")
        .only(Modes::VhostUser),
    flag(&["migrate-no-linger"], migrate_no_linger, "Deprecated: close connections after migration")
        .only(Modes::VhostUser),
];

fn socket(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.passt.link = GuestLink::Path(socket_path(value)?);
    Ok(())
}

/// 1 and 2 are standard output and standard error, so they can't be the connection. Standard input (0) can be the
/// connection.
fn fd(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let fd = number(value).and_then(|fd| RawFd::try_from(fd).ok()).filter(|fd| ![1, 2].contains(fd));
    let fd = fd.ok_or_else(|| format!("Invalid --fd: {}", value.display()))?;
    args.config.passt.link = GuestLink::Fd(fd);
    Ok(())
}

fn one_off(args: &mut Args) {
    args.config.passt.one_off = true;
}

fn vhost_user(args: &mut Args) {
    args.config.passt.vhost_user = true;
}

/// `none` is accepted in every mode.
fn repair_path(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.passt.repair = if value == "none" {
        RepairPath::None
    } else if args.config.passt.vhost_user {
        RepairPath::Path(socket_path(value)?)
    } else {
        return Err("a path is for vhost-user mode only".into());
    };
    Ok(())
}

fn migrate_exit(args: &mut Args) {
    args.config.passt.migrate_exit = true;
}

fn migrate_no_linger(args: &mut Args) {
    args.config.passt.migrate_no_linger = true;
}
