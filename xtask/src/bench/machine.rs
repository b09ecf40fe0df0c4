//! A synthetic guest (`bridge`) behind passt, or behind a second bridge: then the link is measured alone.
//!
//! ```text
//! [guest] tap == bridge == socket == (passt in [host]) --- veth --- [peer]
//! [guest] tap == bridge == socket == bridge == tap [far]
//! ```

use std::process::Command;

use super::lab::{HOST, PEER, PORT, ROUTER, in_namespace, namespace};
use super::process::{self, Process};
use super::row::Link;

/// A guest that is configured, and what is at the other end of its link. The order of the fields is that of their ends.
pub(super) struct Machine {
    _bridge: Process,
    other: Process,
    guest: Process,
    /// The namespace and the server at the other end, if it is not passt.
    far: Option<(Process, Process)>,
    _folder: tempfile::TempDir,
}

impl Machine {
    pub(super) fn start(program: Option<&str>, link: Link, mtu: u16) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket").display().to_string();
        let mut far = None;
        let other = match program {
            Some(program) => {
                let mut command = Command::new(program);
                command.args(["--foreground", "--one-off", "--quiet", "--ipv4-only", "-t", PORT, "-u", PORT]);
                command.args(["--socket", &socket, "--mtu", &mtu.to_string()]);
                if link != Link::Stream {
                    command.arg("--vhost-user");
                }
                Process::start(&mut command)?
            }
            None => {
                let mut space = namespace()?;
                space.line()?;
                let pid = space.id();
                let mut bridge =
                    Process::start(&mut in_namespace(pid, &["bridge", "listen", &socket, "f0"])?)?;
                bridge.line()?;
                configure(pid, "f0", ROUTER, mtu)?;
                process::run("nsenter", &format!("-t {pid} -n ip addr add {PEER}/32 dev lo"))?;
                process::run("nsenter", &format!("-t {pid} -n ip link set lo up"))?;
                let mut server = Process::start(&mut in_namespace(pid, &["load", "serve", PORT])?)?;
                server.line()?;
                far = Some((server, space));
                bridge
            }
        };
        let mut guest = namespace()?;
        guest.line()?;
        let pid = guest.id();
        let mut bridge = Process::start(&mut in_namespace(pid, &["bridge", link.name(), &socket, "g0"])?)?;
        bridge.line()?;
        configure(pid, "g0", HOST, mtu)?;
        process::run("nsenter", &format!("-t {pid} -n ip route add default via {ROUTER}"))?;
        Ok(Self { _bridge: bridge, other, guest, far, _folder: folder })
    }

    /// The process whose namespace has the guest's interface.
    pub(super) fn guest(&self) -> u32 {
        self.guest.id()
    }

    /// The process whose namespace has the other end, if it is not passt.
    pub(super) fn far(&self) -> Option<u32> {
        self.far.as_ref().map(|(_, space)| space.id())
    }

    /// The process of passt.
    pub(super) fn passt(&self) -> Option<u32> {
        self.far.is_none().then(|| self.other.id())
    }
}

/// Configures a tap in the namespace of process `pid`. A tap drops frames that its queue does not hold, unlike a
/// virtio device: so the queue is long.
fn configure(pid: u32, tap: &str, address: &str, mtu: u16) -> anyhow::Result<()> {
    let ip = |arguments: &str| process::run("nsenter", &format!("-t {pid} -n ip {arguments}"));
    ip(&format!("link set {tap} mtu {mtu} txqueuelen 20000"))?;
    ip(&format!("addr add {address}/24 dev {tap}"))?;
    ip(&format!("link set {tap} up"))
}
