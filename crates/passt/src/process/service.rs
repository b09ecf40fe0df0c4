//! What a service manager such as systemd passes to the services that it starts: open sockets (sd_listen_fds(3)) and a socket
//! for messages (sd_notify(3)). The design is docs/design/systemd.md.

use std::env;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use engine::forward::{Protocol, Rule, Table};
use rustix::io::ioctl_fionbio;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, connect, getsockname,
    send, socket_with,
};
use rustix::process::Pid;

use super::made_files::MadeFiles;
use crate::io::unix_socket;

/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// Sockets that the service manager has opened, and that nothing uses yet.
#[derive(Debug, Default)]
pub(crate) struct PassedSockets(Vec<Passed>);

#[derive(Debug)]
struct Passed {
    socket: OwnedFd,
    bound: Bound,
}

/// Where a socket is bound.
#[derive(Debug, PartialEq, Eq)]
enum Bound {
    Port { protocol: Protocol, address: Option<IpAddr>, port: u16, interface: Option<String> },
    Path(PathBuf),
}

impl PassedSockets {
    /// The sockets that are passed to this process. Descriptors for another process are ignored: an intermediate
    /// program may have left the variables in the environment.
    ///
    /// # Errors
    /// A descriptor is not open, or is not a socket of a kind that is used here.
    pub(crate) fn inherited() -> anyhow::Result<Self> {
        let number = |name| env::var(name).ok()?.parse::<u32>().ok();
        if number("LISTEN_PID") != Some(std::process::id()) {
            return Ok(Self::default());
        }
        let count = number("LISTEN_FDS").context("LISTEN_FDS is not a number of descriptors")?;
        let count = RawFd::try_from(count).ok().and_then(|count| FIRST.checked_add(count));
        let end = count.context("LISTEN_FDS is too large")?;
        let sockets = (FIRST..end).map(|fd| {
            let socket = sys::spawn::inherited(fd).with_context(|| passed(fd, "is not open"))?;
            let bound = bound(&socket).with_context(|| passed(fd, "can't be used"))?;
            ioctl_fionbio(&socket, true).with_context(|| passed(fd, "can't be made non-blocking"))?;
            Ok(Passed { socket, bound })
        });
        Ok(Self(sockets.collect::<anyhow::Result<_>>()?))
    }

    /// The descriptors of the sockets.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|passed| passed.socket.as_raw_fd())
    }

    /// The socket for a port of a forwarding rule, if there is one, and the address to which it is bound.
    pub(crate) fn take_port(&mut self, rule: &Rule, port: u16) -> Option<(OwnedFd, Option<IpAddr>)> {
        self.take(&Bound::of(rule, port)).map(|socket| (socket, rule.listen.addr))
    }

    /// The socket that listens at a path: the service manager's, else a new one, whose file is added to `made`.
    ///
    /// # Errors
    /// See [`unix_socket::listen_at`].
    pub(crate) fn listen_at(&mut self, path: &Path, made: &mut MadeFiles) -> anyhow::Result<OwnedFd> {
        match self.take(&Bound::Path(path.to_owned())) {
            Some(socket) => Ok(socket),
            None => unix_socket::listen_at(path).inspect(|_| made.add(path)),
        }
    }

    fn take(&mut self, bound: &Bound) -> Option<OwnedFd> {
        let at = self.0.iter().position(|passed| passed.bound == *bound)?;
        Some(self.0.remove(at).socket)
    }

    /// Checks that a rule of the table names each port. This comes before the ports of rules are opened: a rule that is
    /// slightly different from what was meant would find the port in use.
    ///
    /// # Errors
    /// No rule names the port of a socket.
    pub(crate) fn check_ports(&self, table: &Table) -> anyhow::Result<()> {
        for Passed { bound, .. } in &self.0 {
            let Bound::Port { protocol, address, port, interface } = bound else { continue };
            let names =
                |rule: &Rule| !rule.scan && rule.ports.contains(*port) && Bound::of(rule, *port) == *bound;
            if table.rules().iter().any(names) {
                continue;
            }
            let option = if *protocol == Protocol::Tcp { "-t" } else { "-u" };
            let address = address.map(|address| address.to_string()).unwrap_or_default();
            let interface = interface.as_ref().map(|name| format!("%{name}")).unwrap_or_default();
            let slash = if address.is_empty() && interface.is_empty() { "" } else { "/" };
            bail!(
                "the service manager passes a {protocol} socket that no rule names: it needs \
                 {option} {address}{interface}{slash}{port}[:PORT]"
            );
        }
        Ok(())
    }

    /// Checks that every socket is in use.
    ///
    /// # Errors
    /// No option names the path of a socket, or two sockets have the same place.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self.0.first().map(|passed| &passed.bound) {
            None => Ok(()),
            Some(Bound::Path(path)) => bail!(
                "the service manager passes a socket at {}, but no option (--socket, --conf-path, --api-socket) names \
                 this path",
                path.display()
            ),
            Some(Bound::Port { protocol, port, .. }) => {
                bail!(
                    "the service manager passes more than one {protocol} socket for port {port} of the same address"
                )
            }
        }
    }
}

impl Bound {
    /// Where the socket of a port of a rule is bound.
    fn of(rule: &Rule, port: u16) -> Self {
        Self::Port {
            protocol: rule.protocol,
            address: rule.listen.addr,
            port,
            interface: rule.listen.interface.as_deref().map(Into::into),
        }
    }
}

fn passed(fd: RawFd, what: &str) -> String {
    format!("descriptor {fd}, which the service manager passes (LISTEN_FDS), {what}")
}

/// Where a socket is bound.
fn bound(socket: &OwnedFd) -> anyhow::Result<Bound> {
    let family = sockopt::socket_domain(socket).context("it is not a socket")?;
    let kind = sockopt::socket_type(socket)?;
    let listens = kind == SocketType::STREAM && sockopt::socket_acceptconn(socket)?;
    let local = getsockname(socket)?;
    if family == AddressFamily::UNIX && listens {
        let local = SocketAddrUnix::try_from(local)?;
        let path = local.path().context("it is not bound to a path")?;
        return Ok(Bound::Path(PathBuf::from(OsString::from_vec(path.to_bytes().to_vec()))));
    }
    let is_ip = family == AddressFamily::INET || family == AddressFamily::INET6;
    ensure!(
        is_ip && (listens || kind == SocketType::DGRAM),
        "it is neither a listening TCP or UNIX stream socket nor a UDP socket"
    );
    port(socket, &local, if listens { Protocol::Tcp } else { Protocol::Udp })
}

fn port(socket: &OwnedFd, local: &SocketAddrAny, protocol: Protocol) -> anyhow::Result<Bound> {
    let local = SocketAddr::try_from(local.clone())?;
    let both = local.is_ipv6() && local.ip().is_unspecified() && !sockopt::ipv6_v6only(socket)?;
    Ok(Bound::Port {
        protocol,
        address: (!both).then_some(local.ip()),
        port: local.port(),
        interface: sys::sockopt::bound_device(socket)?,
    })
}

/// The service manager that waits for the message that the service is ready.
#[derive(Debug)]
pub(crate) struct ServiceManager(OwnedFd);

impl ServiceManager {
    /// The socket of `$NOTIFY_SOCKET`, if the service manager has started this process itself. A container engine that runs
    /// as a service starts pasta, too, with the same environment, but must report itself when it is ready.
    pub(crate) fn of_this_process() -> Option<Self> {
        let started = env::var("SYSTEMD_EXEC_PID").ok()?.parse::<u32>().ok()?;
        let address = env::var_os("NOTIFY_SOCKET")?;
        if started != std::process::id() {
            return None;
        }
        Self::connect(address.as_bytes())
            .inspect_err(|error| log::warn!("can't use the socket of the service manager: {error}"))
            .ok()
    }

    fn connect(address: &[u8]) -> rustix::io::Result<Self> {
        let address = match address {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(Self(socket))
    }

    /// Reports that the network is ready, and in which process, if it is not this one.
    pub(crate) fn report_ready(&self, in_background: Option<Pid>) {
        let main = in_background.map(|pid| format!("MAINPID={}\n", pid.as_raw_nonzero())).unwrap_or_default();
        let message = format!("{main}READY=1\n");
        if let Err(error) = send(&self.0, message.as_bytes(), SendFlags::NOSIGNAL) {
            log::warn!("can't report to the service manager: {error}");
        }
    }
}
