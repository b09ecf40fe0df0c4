//! How a spawned command resolves names if there are rules by name: by DNS over the link, and in no other way (behaviour
//! §1.5.11).
//!
//! The command sees the host's files. So its resolver library would read the host's resolv.conf, whose servers may be on
//! the host's loopback, and would ask daemons of the host over UNIX sockets. Neither passes the link: names would not
//! resolve, or would be resolved without a verdict of the guard. In the command's mount namespace, this module replaces
//! the file and hides the sockets.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

use anyhow::Context;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::host;

/// The directory on which the new file system is mounted while the other mounts are made from it. It always exists, and
/// resolv.conf is not in it.
const PLACE: &str = "/dev";
/// Directories with sockets of daemons that resolve names: nscd, systemd-resolved, Avahi, and the system bus, over which
/// the last two can be asked as well. Whole directories are hidden: a daemon that starts again makes a new socket.
const DAEMONS: [&str; 8] = [
    "/run/nscd",
    "/run/systemd/resolve",
    "/run/avahi-daemon",
    "/run/dbus",
    "/var/run/nscd",
    "/var/run/systemd/resolve",
    "/var/run/avahi-daemon",
    "/var/run/dbus",
];
/// The new resolv.conf, with the names that it has in the directory of systemd-resolved: `/etc/resolv.conf` may be a
/// symbolic link to such a name.
const FILES: [&str; 2] = ["resolv.conf", "stub-resolv.conf"];

/// Changes the mount namespace of the calling process: programs read a resolv.conf with `servers`, and do not find the
/// sockets of daemons that resolve names. Mounts must not propagate to other mount namespaces.
///
/// A path that does not exist is left out.
///
/// # Errors
/// The kernel refuses a mount. Then the command must not start: its names could be resolved without a verdict.
pub(super) fn resolve_over_link(servers: &[IpAddr]) -> anyhow::Result<()> {
    let text = resolv_conf(servers, &host::read_resolv_conf().unwrap_or_default());
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", PLACE, "tmpfs", flags, c"mode=755").context("can't mount a tmpfs")?;
    for name in FILES {
        let path = Path::new(PLACE).join(name);
        // Whatever the umask is, all users may read the file.
        fs::write(&path, &text)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
            .with_context(|| format!("can't write to {}", path.display()))?;
    }
    for directory in DAEMONS {
        cover(PLACE, directory)?;
    }
    if !cover(&format!("{PLACE}/{}", FILES[0]), host::RESOLV_CONF)? {
        log::warn!(
            "{} does not exist, so the command's programs ask their own loopback for names: create the file, empty \
             if need be",
            host::RESOLV_CONF
        );
    }
    unmount(PLACE, UnmountFlags::DETACH).with_context(|| format!("can't unmount the tmpfs at {PLACE}"))
}

/// Mounts `source` over `target`, of which symbolic links are followed. Returns false if the command can't reach the
/// target: it does not exist, or may not be searched for.
fn cover(source: &str, target: &str) -> anyhow::Result<bool> {
    match mount_bind(source, target) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(io::Error::from(errno)).with_context(|| format!("can't mount over {target}")),
    }
}

/// A resolv.conf with `servers`, and all other lines (search list, options) of the file `host`.
fn resolv_conf(servers: &[IpAddr], host: &[u8]) -> String {
    let mut text = String::from("# Made by pasta: with rules by name, the command asks over the link.\n");
    for server in servers {
        // Writing to a string does not fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    let names_server = |line: &&str| line.split_whitespace().next() == Some("nameserver");
    for line in String::from_utf8_lossy(host).lines().filter(|line| !names_server(line)) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_of_the_hosts_file_are_replaced() {
        let servers = ["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()];
        let host = b"# of the host\nnameserver 127.0.0.53\n nameserver\t::1\nsearch a.example\noptions edns0";
        let text = resolv_conf(&servers, host);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "nameserver 192.0.2.53",
                "nameserver 2001:db8::53",
                "# of the host",
                "search a.example",
                "options edns0"
            ]
        );
        assert_eq!(host::Resolver::parse(text.as_bytes()).servers, servers);
        assert_eq!(
            resolv_conf(&servers[..1], b"\xff\0nameserver").lines().nth(1),
            Some("nameserver 192.0.2.53")
        );
    }
}
