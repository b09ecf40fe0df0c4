//! One network namespace of a test, with sockets and commands in it.

use super::opener::{Kind, Opener};
use super::{PATIENCE, wait_until};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};

/// A namespace. The command that enters it identifies it.
pub(crate) struct Ns {
    enter: Vec<String>,
    /// Opens sockets in the namespace, one request at a time. It is started when it is first used.
    opener: OnceLock<Mutex<Opener>>,
}

/// The result of a command that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// The exit status that a shell would report.
    pub(crate) fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// The standard output of a command that must have succeeded.
    pub(crate) fn ok(self) -> String {
        assert!(self.status.success(), "failed: {self:#?}");
        self.stdout
    }
}

/// A command in the background. It ends with the PID namespace of its test at the latest.
pub(crate) struct Running {
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running {
    /// Waits until the command has ended. The wait is bounded, because every command runs under `timeout`.
    pub(crate) fn wait(mut self) -> Finished {
        let status = self.child.wait().unwrap();
        let end = Finished { status, stdout: contents(&self.stdout), stderr: contents(&self.stderr) };
        assert_ne!(end.code(), 128 + 31, "killed by the seccomp filter (SIGSYS): {end:?}");
        end
    }

    /// Whether the command has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The standard output so far.
    pub(crate) fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// The standard error so far.
    pub(crate) fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits until the standard output contains `text`, and returns all of it.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let mut all = String::new();
        wait_until(&format!("output {text:?}"), || {
            all = self.stdout();
            all.contains(text) || self.child.try_wait().unwrap().is_some()
        });
        assert!(all.contains(text), "ended without {text:?}: {all:?}, {:?}", contents(&self.stderr));
        all
    }
}

/// What was written to a file so far. The command writes at the file's offset, which must not be moved.
fn contents(file: &File) -> String {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Ns {
    pub(crate) fn entered_by(enter: Vec<String>) -> Self {
        Ns { enter, opener: OnceLock::new() }
    }

    /// A namespace entered from this one.
    pub(crate) fn inner(&self, enter: &[&str]) -> Ns {
        Ns::entered_by(self.enter.iter().cloned().chain(enter.iter().map(|s| (*s).to_owned())).collect())
    }

    /// A command `argv` inside the namespace, without a time limit.
    pub(crate) fn bare_command(&self, argv: &[&str]) -> Command {
        // A shell's background job ignores SIGINT. The programs would inherit this, and nsenter could not end as the
        // program under test has ended.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,QUIT,HUP,TERM").args(&self.enter).args(argv);
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
        // Without this folder, the program under test makes no socket by which pesto of the machine would find it.
        command.env("PATH", path).env("LC_ALL", "C").env_remove("XDG_RUNTIME_DIR");
        command
    }

    /// Starts `argv` inside the namespace.
    pub(crate) fn start(&self, argv: &[&str]) -> Running {
        let seconds = (PATIENCE.as_secs() * 2).to_string();
        let bounded: Vec<&str> = ["timeout", "-k", "1", &seconds].iter().chain(argv).copied().collect();
        // Files, not pipes: a daemon that keeps a pipe open would block the reader.
        let stdout = tempfile::tempfile().unwrap();
        let stderr = tempfile::tempfile().unwrap();
        let mut command = self.bare_command(&bounded);
        command.stdin(Stdio::null());
        command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        Running { child: command.spawn().unwrap(), stdout, stderr }
    }

    /// Runs `argv` to its end.
    pub(crate) fn run(&self, argv: &[&str]) -> Finished {
        self.start(argv).wait()
    }

    /// Runs a shell script, which must succeed, and returns its output.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.run(&["sh", "-ec", script]).ok()
    }

    fn open(&self, kind: Kind) -> OwnedFd {
        let opener = self.opener.get_or_init(|| Mutex::new(Opener::start(self)));
        let socket = opener.lock().unwrap().open(kind);
        bound_waits(&socket);
        socket
    }

    fn tcp(&self, like: SocketAddr) -> OwnedFd {
        self.open(if like.is_ipv4() { Kind::Tcp4 } else { Kind::Tcp6 })
    }

    /// A listener. At `::`, it is dual-stack, like most servers.
    pub(crate) fn listen(&self, at: impl Into<SocketAddr>) -> TcpListener {
        let at = at.into();
        let socket = self.tcp(at);
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, at);
        net::listen(&socket, 4096).unwrap();
        TcpListener::from(socket)
    }

    /// An outgoing connection.
    pub(crate) fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        let socket = self.tcp(to);
        net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    }

    /// An outgoing connection from a given address (port 0: any).
    pub(crate) fn connect_from(
        &self,
        from: impl Into<SocketAddr>,
        to: impl Into<SocketAddr>,
    ) -> io::Result<TcpStream> {
        let (from, to) = (from.into(), to.into());
        let socket = self.tcp(to);
        bind(&socket, from);
        net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    }

    /// An outgoing connection with a socket that `prepare` has changed.
    pub(crate) fn connect_by(&self, to: impl Into<SocketAddr>, prepare: impl FnOnce(&OwnedFd)) -> TcpStream {
        let to = to.into();
        let socket = self.tcp(to);
        prepare(&socket);
        net::connect(&socket, &to).unwrap_or_else(|e| panic!("connect {to}: {e}"));
        TcpStream::from(socket)
    }

    /// Starts a connection: the socket is non-blocking, and may still be connecting.
    pub(crate) fn start_connect(&self, to: impl Into<SocketAddr>) -> TcpStream {
        let to = to.into();
        let socket = self.tcp(to);
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        match net::connect(&socket, &to) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => TcpStream::from(socket),
            Err(e) => panic!("connect {to}: {e}"),
        }
    }

    /// A UDP socket bound to an address (port 0: any).
    pub(crate) fn udp(&self, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self.open(if at.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 });
        bind(&socket, at);
        UdpSocket::from(socket)
    }

    /// A UDP socket with SO_REUSEADDR, bound to an address. Sockets with this option can share a port.
    pub(crate) fn udp_shared(&self, at: impl Into<SocketAddr>) -> UdpSocket {
        let at = at.into();
        let socket = self.open(if at.is_ipv4() { Kind::Udp4 } else { Kind::Udp6 });
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        bind(&socket, at);
        UdpSocket::from(socket)
    }

    /// A socket that sends raw frames on `eth0`. A virtio-net header comes before each frame (see [`sys::packet`]).
    pub(crate) fn frames(&self) -> OwnedFd {
        self.open(Kind::Frames)
    }

    /// A new tap device `eth0` without offloads, non-blocking.
    pub(crate) fn tap(&self) -> OwnedFd {
        let opener = self.opener.get_or_init(|| Mutex::new(Opener::start(self)));
        opener.lock().unwrap().open(Kind::Tap)
    }

    /// Index of an interface.
    pub(crate) fn ifindex(&self, interface: &str) -> u32 {
        self.sh(&format!("ip -o link show dev {interface}"))
            .split(':')
            .next()
            .and_then(|n| n.trim().parse().ok())
            .unwrap()
    }

    /// The first link-local address of an interface.
    pub(crate) fn link_local(&self, interface: &str) -> Ipv6Addr {
        let mut found = None;
        wait_until("a link-local address", || {
            let list = self.sh(&format!("ip -6 -o addr show dev {interface} scope link -tentative"));
            found = list.split_whitespace().find_map(|w| w.split_once('/')?.0.parse().ok());
            found.is_some()
        });
        found.unwrap()
    }
}

/// Accepts one connection, within [`PATIENCE`].
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, from) = listener.accept().unwrap_or_else(|e| panic!("accept: {e}"));
    bound_waits(&stream);
    (stream, canonical(from))
}

/// Receives one datagram, within [`PATIENCE`].
pub(crate) fn recv_from(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = vec![0; 65536];
    let (n, from) = socket.recv_from(&mut buf).unwrap_or_else(|e| panic!("no datagram: {e}"));
    buf.truncate(n);
    (buf, canonical(from))
}

/// Converts an IPv4-mapped address, which dual-stack sockets report, to an IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Binds a socket. An address can stay in use for a short time after its socket was closed: a process that another test
/// starts has copies of all descriptors until it executes its program.
fn bind(socket: &impl AsFd, at: SocketAddr) {
    wait_until(&format!("bind to {at}"), || match net::bind(socket, &at) {
        Ok(()) => true,
        Err(rustix::io::Errno::ADDRINUSE) => false,
        Err(e) => panic!("bind {at}: {e}"),
    });
}

/// Limits every wait on the socket to [`PATIENCE`].
fn bound_waits(socket: &impl AsFd) {
    for id in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(socket, id, Some(PATIENCE)).unwrap();
    }
}

/// The port of a socket that was bound to port 0.
pub(crate) fn port(socket: &impl AsFd) -> u16 {
    SocketAddr::try_from(net::getsockname(socket).unwrap()).unwrap().port()
}

/// The unspecified address of the family of `like`.
pub(crate) fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
