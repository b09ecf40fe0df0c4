//! The namespaces of one session. They belong to the PID and mount namespace in which the session runs, so the kernel
//! removes all of them with the session's process.
//!
//! ```text
//! [guest] == tap == (pasta in [host]) eth0 --- eth0 [peer]
//! ```

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};

/// The host's address. The guest has the same one.
pub(crate) const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
/// The address of the peer's servers.
pub(crate) const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3));
/// The default gateway. To the guest, it is the host's loopback interface.
pub(crate) const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// The address at which the guest asks DNS questions (`--dns-forward`).
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 99));

/// A network namespace.
#[derive(Clone)]
pub(crate) struct Place(Arc<File>);

impl Place {
    /// The network namespace of this file.
    pub(crate) fn of(path: impl AsRef<Path>) -> anyhow::Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).with_context(|| format!("can't open {}", path.display()))?;
        Ok(Self(Arc::new(file)))
    }

    /// Runs `work` on a new thread in this namespace.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<anyhow::Result<T>> {
        let file = self.0.clone();
        std::thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).context("can't enter a network namespace")?;
            Ok(work())
        })
    }

    /// Runs `work` in this namespace, and waits for its result.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        self.spawn(work).join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    }
}

/// Host and peer.
#[derive(Clone)]
pub(crate) struct Net {
    /// The namespace of the program under test.
    pub(crate) host: Place,
    /// The namespace of the servers.
    pub(crate) peer: Place,
    /// A folder that any user may write to.
    pub(crate) dir: PathBuf,
}

impl Net {
    /// Sets up the network. The process must be in new network, mount and PID namespaces.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let output = Command::new("sh").args(["-ec", SETUP]).output().context("can't run a shell")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "can't set up the network: {}", text.trim());
        let (host, peer) = (Place::of("/proc/thread-self/ns/net")?, Place::of("/run/netns/peer")?);
        Ok(Self { host, peer, dir: "/run/torture".into() })
    }

    /// Writes the host's resolv.conf in place.
    pub(crate) fn set_resolvers(&self, text: &str) -> anyhow::Result<()> {
        fs::write(self.dir.join("resolv.conf"), text).context("can't write resolv.conf")
    }
}

const SETUP: &str = r"
PATH=$PATH:/usr/sbin:/sbin
mount --make-rprivate /
conf=$(readlink -f /etc/resolv.conf)
mount -t tmpfs tmpfs /run
mkdir /run/netns /run/torture
chmod 777 /run/torture
case $conf in /run/*) mkdir -p ${conf%/*}; touch $conf;; esac
echo 'nameserver 198.51.100.3' >/run/torture/resolv.conf
mount --bind /run/torture/resolv.conf $conf
settings() {
    cd /proc/sys/net
    echo 0 >ipv6/conf/default/accept_dad
    echo '0 2147483647' >ipv4/ping_group_range
    echo 0 >ipv4/icmp_ratelimit
    ip link set lo up
}
settings
ip netns add peer
nsenter --net=/run/netns/peer sh -ec 'ip link set lo up; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit'
ip link add eth0 type veth peer name eth0 netns peer
ip link set eth0 up
ip addr add 198.51.100.2/24 dev eth0
ip addr add 2001:db8:1::2/64 dev eth0 nodad
ip -n peer link set eth0 up
ip -n peer addr add 198.51.100.1/24 dev eth0
ip -n peer addr add 198.51.100.3/24 dev eth0
ip -n peer addr add 2001:db8:1::1/64 dev eth0 nodad
ip route add default via 198.51.100.1
ip -6 route add default via 2001:db8:1::1
";
