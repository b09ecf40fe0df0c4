//! Options about the process itself: output, files, identity.

use std::{ffi::OsStr, net::SocketAddr, os::fd::RawFd, time::Duration};

use super::{Opt, Show, flag, show, value};
use crate::{
    budgets::memory,
    cli::{
        finish::Args,
        value::{number, path, size, socket_path},
    },
    config::{ApiSocket, Id, RunAs, Verbosity},
};

/// Minimum value of the limit of the log file's size, in bytes (behaviour §1.7.5).
const LOG_SIZE_MIN: u64 = 5 * 8192;

pub(super) const OPTIONS: &[Opt] = &[
    show(&["help"], Show::Help, "Show this help and exit").short('h'),
    show(&["version"], Show::Version, "Show the version and exit"),
    flag(&["debug"], debug, "Log debug messages, too").short('d'),
    flag(&["trace"], trace, "Log each frame and event; includes --debug"),
    flag(&["quiet"], quiet, "Log only errors and warnings").short('q'),
    flag(
        &["foreground"],
        foreground,
        "Stay in the foreground\ndefault: go to the background when all is set up",
    )
    .short('f'),
    value(
        &["stats"],
        "SECONDS",
        stats,
        "Show event counts, at most once in this time;\nneeds --foreground or a command",
    ),
    value(&["log-file"], "PATH", log_file, "Log to this file instead of the system log").short('l'),
    value(
        &["log-size"],
        "BYTES",
        log_size,
        "Largest size of the log file, and of the flow log;\nthe oldest lines are removed first\ndefault: 1048576; at least 40960",
    ),
    value(
        &["flow-log"],
        "PATH",
        flow_log,
        "Write flows that begin, end or are refused to this\nfile, as a line of JSON for each",
    )
    .extension(),
    value(&["pid"], "PATH", pid_file, "Write the process ID to this file").short('P'),
    value(&["pcap"], "PATH", pcap, "Capture the guest's traffic to this file").short('p'),
    value(
        &["runas"],
        "UID[:GID]",
        runas,
        "Run as this user and group, numbers or names\ndefault: the caller, or \"nobody\" if that is root",
    ),
    flag(&["chroot-fallback"], chroot_fallback, "Where pivot_root() fails, use chroot()"),
    value(&["conf-path"], "PATH", conf_path, "Control socket for changes at run time").short('c'),
    value(
        &["api-socket"],
        "PATH",
        api_socket,
        "Serve programs at this socket: flows, counts,\nrules and events in JSON (docs/api.md)",
    )
    .extension(),
    value(
        &["api-fd"],
        "FD",
        api_fd,
        "The same, at this open file descriptor: a socket\nthat listens, or that is connected to a client",
    )
    .extension(),
    value(
        &["metrics"],
        "ADDRESS:PORT",
        metrics,
        "Serve metrics for Prometheus by HTTP, such as at\n127.0.0.1:9100, to everyone who can connect",
    )
    .extension(),
    flag(&["no-api"], no_api, "No socket by which pesto finds this process").extension(),
    value(
        &["memory"],
        "SIZE",
        memory_size,
        "Memory for everything that the guest, peers and\nclients cause: at least 16M; suffixes K, M, G\ndefault: limits by the memory of the machine",
    )
    .extension(),
    flag(&["stderr"], stderr, "Deprecated, no effect").short('e'),
];

fn debug(args: &mut Args) {
    args.config.verbosity = args.config.verbosity.max(Verbosity::Debug);
}

fn trace(args: &mut Args) {
    args.config.verbosity = Verbosity::Trace;
}

fn quiet(args: &mut Args) {
    args.config.verbosity = Verbosity::Quiet;
}

fn foreground(args: &mut Args) {
    args.config.foreground = true;
}

fn stats(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let seconds = number(value).ok_or_else(|| format!("Invalid number of seconds: {}", value.display()))?;
    args.config.stats = (seconds > 0).then_some(Duration::from_secs(seconds));
    Ok(())
}

fn log_file(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.log_file = Some(path(value, "log file")?);
    Ok(())
}

fn flow_log(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.flow_log = Some(path(value, "flow log")?);
    Ok(())
}

fn log_size(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let size = number(value).filter(|size| *size >= LOG_SIZE_MIN);
    args.config.log_size =
        size.ok_or_else(|| format!("Invalid --log-size: {} (at least {LOG_SIZE_MIN})", value.display()))?;
    Ok(())
}

fn pid_file(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.pid_file = Some(path(value, "PID file")?);
    Ok(())
}

fn pcap(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.pcap = Some(path(value, "capture file")?);
    Ok(())
}

/// Accepts UID, UID:GID, LOGIN or LOGIN:GROUP. Refuses the name "root", but not the number 0 (behaviour §2.2).
fn runas(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let invalid = || format!("Invalid --runas option: {}", value.display());
    let text = value.to_str().ok_or_else(invalid)?;
    let (user, group) = match text.split_once(':') {
        None => (text, None),
        Some((user, group)) => (user, Some(group)),
    };
    let user = id(user).ok_or_else(invalid)?;
    if user == Id::Name("root".into()) {
        return Err("root is not accepted by name; to stay root, give the number 0".into());
    }
    let group = group.map(|group| id(group).ok_or_else(invalid)).transpose()?;
    args.config.runas = Some(RunAs { user, group });
    Ok(())
}

fn id(text: &str) -> Option<Id> {
    if text.is_empty() || text.contains(':') {
        None
    } else if text.bytes().all(|b| b.is_ascii_digit()) {
        // For setresuid(2), the highest number means "no change".
        text.parse().ok().filter(|id| *id != u32::MAX).map(Id::Number)
    } else {
        Some(Id::Name(text.into()))
    }
}

fn chroot_fallback(args: &mut Args) {
    args.config.chroot_fallback = true;
}

fn conf_path(args: &mut Args, value: &OsStr) -> Result<(), String> {
    args.config.conf_path = Some(socket_path(value)?);
    Ok(())
}

fn api_socket(args: &mut Args, value: &OsStr) -> Result<(), String> {
    set_api(args, ApiSocket::Path(socket_path(value)?))
}

fn api_fd(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let fd = number(value).and_then(|fd| RawFd::try_from(fd).ok()).filter(|fd| *fd > 2);
    set_api(args, ApiSocket::Fd(fd.ok_or_else(|| format!("Invalid --api-fd: {}", value.display()))?))
}

fn set_api(args: &mut Args, socket: ApiSocket) -> Result<(), String> {
    match args.config.api.replace(socket) {
        Some(ApiSocket::Registry) => Ok(()),
        _ => Err("there is one API socket, and it was given before, by --api-socket or --api-fd".into()),
    }
}

fn no_api(args: &mut Args) {
    args.no_api = true;
}

fn metrics(args: &mut Args, value: &OsStr) -> Result<(), String> {
    let address: Option<SocketAddr> = value.to_str().and_then(|text| text.parse().ok());
    let address = address.filter(|address| address.port() != 0);
    let address = address.ok_or_else(|| {
        format!("Invalid --metrics: {} (such as 127.0.0.1:9100 or [::1]:9100)", value.display())
    })?;
    if !address.ip().is_loopback() {
        args.config.warnings.push(format!(
            "--metrics: {address} is not a loopback address: without a password, everyone who reaches it can read the metrics"
        ));
    }
    args.config.metrics = Some(address);
    Ok(())
}

fn memory_size(args: &mut Args, value: &OsStr) -> Result<(), String> {
    if args.config.memory.is_some() {
        return Err("given before".into());
    }
    let shown = value.display();
    let invalid = || format!("not a number of bytes, such as 64M (suffixes K, M, G): {shown}");
    let size = size(value).ok_or_else(invalid)?;
    if size < memory::LEAST {
        return Err(format!("{shown} is too little: at least {}M", memory::LEAST >> 20));
    }
    args.config.memory = Some(size);
    Ok(())
}

fn stderr(args: &mut Args) {
    args.config.warnings.push("--stderr will be dropped soon".into());
}
