//! The topology of a test, in a new user, mount and PID namespace:
//!
//! ```text
//! [guest] == tap == (pasta in [host]) eth0 --- eth0 [peer] eth1 --- eth0 [far]
//! ```
//!
//! The peer is also the host's gateway and the router to `far`, and has two more addresses for its services.

use super::ns::Ns;
use super::{program, skipped};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use tempfile::TempDir;

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(subnet: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, host))
}

/// The host's own addresses, which the guest copies.
pub(crate) const HOST: [IpAddr; 2] = [v4(198, 51, 100, 2), v6(1, 2)];
/// Further addresses of the host, which [`ALIASES`] adds. With the options [`PINNED`], the guest does not copy them.
pub(crate) const HOST_ALIAS: [IpAddr; 2] = [v4(192, 0, 2, 22), v6(9, 22)];
/// The gateway: the peer's first addresses. In the guest, they map to the host's loopback by default.
pub(crate) const GATEWAY: [IpAddr; 2] = [v4(198, 51, 100, 1), v6(1, 1)];
/// The peer's addresses for services.
pub(crate) const PEER: [IpAddr; 2] = [v4(198, 51, 100, 3), v6(1, 3)];
/// The peer's addresses for replies that come from an address other than the destination of the request.
pub(crate) const PEER_ALIAS: [IpAddr; 2] = [v4(198, 51, 100, 4), v6(1, 4)];
/// Addresses one router hop beyond the peer.
pub(crate) const FAR: [IpAddr; 2] = [v4(203, 0, 113, 2), v6(2, 2)];
/// Addresses on the host's link for mappings. No machine has these addresses.
pub(crate) const MAPPED: [IpAddr; 2] = [v4(198, 51, 100, 99), v6(1, 0x99)];
/// Further addresses for mappings.
pub(crate) const MAPPED2: [IpAddr; 2] = [v4(198, 51, 100, 98), v6(1, 0x98)];
/// Addresses on the host's link at which no machine answers.
pub(crate) const NOBODY: [IpAddr; 2] = [v4(198, 51, 100, 200), v6(1, 0x200)];
/// Shell commands that add [`HOST_ALIAS`] to the host.
pub(crate) const ALIASES: &str =
    "ip addr add 192.0.2.22/32 dev eth0; ip addr add 2001:db8:9::16/128 dev eth0 nodad\n";
/// Options with which the guest has only the addresses [`HOST`].
pub(crate) const PINNED: [&str; 4] = ["-a", "198.51.100.2/24", "-a", "2001:db8:1::2/64"];
/// The loopback addresses.
pub(crate) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// The user that runs the program under test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// Root of a user namespace, as in a rootless container engine.
    UsernsRoot,
    /// Root without a user namespace. This is only possible if root runs the tests.
    PlainRoot,
    /// A user without any capability.
    Ordinary,
}

/// The parameters of a [`Net`].
pub(crate) struct Options {
    /// MTU of the link between host and peer.
    pub(crate) mtu: u32,
    /// The host's resolv.conf.
    pub(crate) resolv_conf: &'static str,
    /// Shell commands that prepare the host.
    pub(crate) host_setup: &'static str,
    pub(crate) user: User,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mtu: 65520,
            resolv_conf: "nameserver 198.51.100.3\nnameserver 2001:db8:1::3\n",
            host_setup: "",
            user: User::UsernsRoot,
        }
    }
}

/// The namespaces of one test. They end when this value is dropped, or when the test process ends: process 1 of the PID
/// namespace exits at the end of its standard input, and then the kernel kills all other processes in it.
pub(crate) struct Net {
    pub(crate) host: Ns,
    pub(crate) peer: Ns,
    pub(crate) far: Ns,
    /// The guest's namespace, for `--netns`. It has no interface yet.
    pub(crate) guest: Ns,
    pub(crate) dir: TempDir,
    pub(crate) user: User,
    holder: Child,
}

impl Net {
    /// The usual topology. If namespaces can't be created, reports the test as skipped and returns none.
    pub(crate) fn new() -> Option<Net> {
        Net::with(Options::default())
    }

    pub(crate) fn with_mtu(mtu: u32) -> Option<Net> {
        Net::with(Options { mtu, ..Options::default() })
    }

    pub(crate) fn with(options: Options) -> Option<Net> {
        raise_descriptor_limit();
        if let Some(missing) = ["ip", "nsenter", "unshare"].into_iter().find(|tool| !super::has_tool(tool)) {
            skipped(&format!("{missing} is not installed"));
            return None;
        }
        let root = rustix::process::geteuid().is_root();
        if options.user == User::PlainRoot && !root {
            skipped("plain root needs root");
            return None;
        }
        let userns = !root || options.user == User::UsernsRoot;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let (holder, enter) = hold(userns, &dir);
        let host = Ns::entered_by(enter);
        let probe = host.run(&["true"]);
        if !probe.status.success() {
            skipped(&format!("no namespaces here: {}", probe.stderr.trim()));
            return None;
        }
        let named = |name: &str| host.inner(&["nsenter", &format!("--net=/run/netns/{name}")]);
        let (peer, far, guest) = (named("peer"), named("far"), named("guest"));
        let net = Net { host, peer, far, guest, dir, user: options.user, holder };
        net.set_up(&options);
        Some(net)
    }

    fn set_up(&self, options: &Options) {
        std::fs::write(self.dir.path().join("resolv.conf"), options.resolv_conf).unwrap();
        let script = SETUP
            .replace("@DIR@", self.dir.path().to_str().unwrap())
            .replace("@PROGRAM@", &program::path())
            .replace("@MTU@", &options.mtu.to_string())
            + options.host_setup;
        self.host.sh(&script);
        if self.user == User::Ordinary && !rustix::process::geteuid().is_root() {
            self.host.sh(ORDINARY_USER);
        }
    }

    /// The MAC address of the guest's interface.
    pub(crate) fn guest_mac(&self) -> [u8; 6] {
        let link = self.guest.sh("ip -o link show eth0");
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    /// A path in the test's own directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.dir.path().join("pasta.log"))
        {
            eprintln!("--- log of the program under test ---\n{log}");
        }
        let killed = killed_by_filter(&self.host);
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        assert!(killed.is_empty() || std::thread::panicking(), "killed by the seccomp filter: {killed}");
    }
}

/// The zombies in the test's PID namespace that SIGSYS has killed. Daemons stay zombies there, because process 1 does
/// not reap them.
fn killed_by_filter(host: &Ns) -> String {
    const SIGSYS: u32 = 31;
    let stats = host.run(&["sh", "-c", "cat /proc/[0-9]*/stat"]).stdout;
    let killed = stats.lines().filter(|stat| {
        let status: Option<u32> = stat.split_whitespace().last().and_then(|word| word.parse().ok());
        status.is_some_and(|status| status & 0x7f == SIGSYS)
    });
    killed.collect()
}

/// Starts the process that keeps the namespaces. Returns the process, and the command that enters the namespaces.
fn hold(userns: bool, dir: &TempDir) -> (Child, Vec<String>) {
    let mut command = Command::new("unshare");
    if userns {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let mut holder = command
        .args(["sh", "-c", "echo; exec cat >/dev/null"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare (util-linux)");
    // The namespaces are complete when the inner shell has written a line. If the shell failed, the read ends, too.
    let mut byte = [0; 1];
    let _ = std::io::Read::read(holder.stdout.as_mut().unwrap(), &mut byte);
    let proc = format!("/proc/{}/ns", holder.id());
    let mut enter = vec!["nsenter".to_owned()];
    if userns {
        enter.extend([format!("--user={proc}/user"), "--preserve-credentials".to_owned()]);
    }
    enter.extend([
        format!("--mount={proc}/mnt"),
        format!("--net={proc}/net"),
        format!("--uts={proc}/uts"),
        format!("--pid={proc}/pid_for_children"),
    ]);
    (holder, enter)
}

/// Raises the soft limit of open files: a test holds both ends of thousands of connections.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        let _ = setrlimit(Resource::Nofile, limit);
    });
}

/// Creates a user namespace with one user that is not root and has no capabilities outside this namespace.
const ORDINARY_USER: &str = "
unshare --user --map-user=1234 --map-group=1234 sh -c 'echo $$; exec sleep infinity' >/run/user.pid &
while [ ! -s /run/user.pid ]; do sleep 0.02; done
";

const SETUP: &str = r#"
mount -t tmpfs tmpfs /run
mkdir /run/netns
# The program, where an ordinary user may execute it. The test's resolv.conf hides the machine's.
touch /run/pasta; mount --bind @PROGRAM@ /run/pasta
conf=$(readlink -f /etc/resolv.conf)
case $conf in /run/*) mkdir -p "${conf%/*}"; touch "$conf";; esac
mount --bind @DIR@/resolv.conf "$conf"

hostname e2e-host
cat >@DIR@/sysctl <<'END'
cd /proc/sys/net
echo 0 >ipv6/conf/default/accept_dad
for f in ipv4/icmp_ratelimit ipv6/icmp/ratelimit; do echo 0 >$f; done
for f in ipv4/icmp_msgs_per_sec ipv4/icmp_msgs_burst; do echo 100000 2>/dev/null >$f || :; done
echo '0 2147483647' 2>/dev/null >ipv4/ping_group_range || echo '0 0' >ipv4/ping_group_range
ip link set lo up
END
sh -e @DIR@/sysctl
for ns in peer far guest; do
    ip netns add $ns
    nsenter --net=/run/netns/$ns sh -e @DIR@/sysctl
done

ip link add eth0 mtu @MTU@ type veth peer name eth0 mtu @MTU@ netns peer
ip -n peer link add eth1 mtu @MTU@ type veth peer name eth0 mtu @MTU@ netns far
ip -batch - <<'END'
link set eth0 up
addr add 198.51.100.2/24 dev eth0
addr add 2001:db8:1::2/64 dev eth0 nodad
END
nsenter --net=/run/netns/peer sh -ec 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
ip -n peer -batch - <<'END'
link set eth0 up
link set eth1 up
addr add 198.51.100.1/24 dev eth0
addr add 198.51.100.3/24 dev eth0
addr add 198.51.100.4/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
addr add 2001:db8:1::3/64 dev eth0 nodad
addr add 2001:db8:1::4/64 dev eth0 nodad
addr add 203.0.113.1/24 dev eth1
addr add 2001:db8:2::1/64 dev eth1 nodad
route add 192.0.2.0/24 via 198.51.100.2
route add 2001:db8:9::/64 via 2001:db8:1::2
END
ip -n far -batch - <<'END'
link set eth0 up
addr add 203.0.113.2/24 dev eth0
addr add 2001:db8:2::2/64 dev eth0 nodad
route add default via 203.0.113.1
route add default via 2001:db8:2::1
END
ip route add default via 198.51.100.1
ip -6 route add default via 2001:db8:1::1
# An address is acknowledged before it is local (findings/linux-ipv6-address-before-its-route.sh). This one was the last.
until ip -n far -6 route get 2001:db8:2::2 | grep -q ^local; do sleep 0.01; done
"#;
