//! The configuration that a command line describes. The configuration is valid and has no contradictions (behaviour
//! §2).
//!
//! All values are plain and do not depend on the machine. `None` means that an option was not given: `plan` then
//! chooses a value that fits the host's configuration.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::RawFd,
    path::PathBuf,
    time::Duration,
};

use engine::first_bytes::Ech;
use engine::forward::{Bypass, Enabled, IfName, Table};
use engine::policy::Rule;
use engine::rate_limit::Rate;
use ipnet::Ipv4Net;
use wire::ethernet::Mac;

/// The MTU if `--mtu` is not given (behaviour §2.2): the maximum 802.3 payload length that is a multiple of four.
pub const DEFAULT_MTU: u16 = 65520;

/// The program's MAC address if `--mac-addr` is not given (behaviour §12).
pub const DEFAULT_OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// All settings of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The program that runs.
    pub mode: Mode,
    /// The messages that are logged.
    pub verbosity: Verbosity,
    /// Whether the process stays in the foreground. Also true if a command is spawned (behaviour §1.3.5).
    pub foreground: bool,
    /// `--stats`: minimum time between two tables of event counts.
    pub stats: Option<Duration>,
    /// `--log-file`.
    pub log_file: Option<PathBuf>,
    /// `--log-size`, in bytes: the limit of the log file, and of the flow log.
    pub log_size: u64,
    /// `--memory`: the budget, in bytes.
    pub memory: Option<u64>,
    /// `--flow-log`: a file with a line for each flow that begins, ends or is refused.
    pub flow_log: Option<PathBuf>,
    /// `--runas`. `None`: the default rule of behaviour §10.2 applies.
    pub runas: Option<RunAs>,
    /// `--chroot-fallback` (behaviour §10.5).
    pub chroot_fallback: bool,
    /// `--conf-path`: control socket for pesto (behaviour §8.9).
    pub conf_path: Option<PathBuf>,
    /// `--api-socket`, `--api-fd`. `None`: `--no-api`, or slirp4netns, which has an API of its own.
    pub api: Option<ApiSocket>,
    /// `--metrics`: where metrics are served by HTTP.
    pub metrics: Option<SocketAddr>,
    /// `--pcap`.
    pub pcap: Option<PathBuf>,
    /// `--pid`.
    pub pid_file: Option<PathBuf>,

    /// Template interface for both families; see also [`Family::outbound_if`].
    pub interface: Option<IfName>,
    /// The MTU to set and to advertise. `None`: the option was not given; [`DEFAULT_MTU`] is used. `Some(0)`: no MTU is
    /// set or advertised.
    pub mtu: Option<u16>,
    /// `--mac-addr`: the program's MAC address that the guest sees.
    pub our_mac: Mac,
    /// Settings of IPv4.
    pub v4: Family<Ipv4Addr>,
    /// Settings of IPv6.
    pub v6: Family<Ipv6Addr>,

    /// `--dns none`: advertise no DNS server, not even a server from resolv.conf.
    pub dns_none: bool,
    /// Domain search list.
    pub search: Search,
    /// `--hostname`: name for the guest, and for the UTS namespace of a spawned command.
    pub hostname: Option<String>,
    /// `--fqdn`: fully qualified name for DHCP clients.
    pub fqdn: Option<String>,
    /// Advertise DNS servers by DHCP, DHCPv6 and NDP.
    pub dhcp_dns: bool,
    /// Advertise the search list by DHCP, DHCPv6 and NDP.
    pub dhcp_search: bool,

    /// `--no-tcp`.
    pub no_tcp: bool,
    /// `--no-udp`.
    pub no_udp: bool,
    /// `--no-icmp`.
    pub no_icmp: bool,
    /// `--multicast`: receive the multicast groups that the guest joins.
    pub multicast: bool,
    /// `--no-dhcp`.
    pub no_dhcp: bool,
    /// `--no-dhcpv6`.
    pub no_dhcpv6: bool,
    /// `--no-ndp`, given or implied by `--no-icmp`.
    pub no_ndp: bool,
    /// `--no-ra`, given or implied by `--config-net`.
    pub no_ra: bool,

    /// `--allow` and `--deny`: rules about the destinations that the guest may reach, in order.
    pub rules: Vec<Rule>,
    /// `--policy`: a file with more rules. These rules come after [`Config::rules`].
    pub policy: Option<PathBuf>,
    /// `--policy-audit`: refuse nothing, but log each flow and question that the rules would refuse.
    pub policy_audit: bool,
    /// `--policy-names`: the checks of rules by name.
    pub policy_names: NameCheck,
    /// `--policy-ech`: how the check of first bytes treats a ClientHello with an encrypted part.
    pub policy_ech: Ech,

    /// `--limit`: maximum rates at which the guest may send and receive.
    pub limit: Limit,

    /// `--freebind`: `IP_FREEBIND` on listeners and UDP sockets.
    pub freebind: bool,
    /// Whether loopback connections bypass the link (behaviour §5.3.3).
    pub splice: Bypass,
    /// `--host-lo-to-ns-lo`: keep a loopback destination when forwarding to the namespace.
    pub host_lo_to_ns_lo: bool,
    /// `-t` and `-u`: rules from the host to the guest or namespace.
    pub inbound: Table,
    /// `-T` and `-U`: rules from the namespace's loopback to the host (pasta).
    pub outbound: Table,

    /// Settings of passt mode. In pasta mode all have their defaults, except [`Passt::link`] and [`Passt::one_off`] if
    /// `--fd` was given.
    pub passt: Passt,
    /// Settings of pasta mode, which slirp4netns mode uses as well. In passt mode all have their defaults.
    pub pasta: Pasta,
    /// Settings of slirp4netns mode. In other modes all have their defaults.
    pub slirp4netns: Slirp4netns,

    /// Warnings to log when logging has started. The parser itself prints nothing.
    pub warnings: Vec<String>,
}

/// The socket of the API (docs/api.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiSocket {
    /// `--api-socket`: the path of a listening socket.
    Path(PathBuf),
    /// `--api-fd`: an inherited socket. It listens, or is connected to the only client.
    Fd(RawFd),
    /// Neither was given: a socket in the folder of the user's sockets, if there is one.
    Registry,
}

/// The rate limits of the guest. `None`: the direction is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// From the guest.
    pub outbound: Option<Rate>,
    /// To the guest.
    pub inbound: Option<Rate>,
}

/// The checks of rules by name (docs/guard.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameCheck {
    /// The address must have been in an answer for the name, and the client's first bytes must have the name.
    #[default]
    FirstBytes,
    /// The address must have been in an answer for the name.
    Address,
}

/// The limit of the log file's size if `--log-size` is not given, in bytes (behaviour §1.7.5).
pub const DEFAULT_LOG_SIZE: u64 = 1 << 20;

impl Config {
    /// The configuration of a command line without arguments.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            verbosity: Verbosity::default(),
            foreground: false,
            stats: None,
            log_file: None,
            log_size: DEFAULT_LOG_SIZE,
            memory: None,
            flow_log: None,
            runas: None,
            chroot_fallback: false,
            conf_path: None,
            api: (mode != Mode::Slirp4netns).then_some(ApiSocket::Registry),
            metrics: None,
            pcap: None,
            pid_file: None,
            interface: None,
            mtu: None,
            our_mac: DEFAULT_OUR_MAC,
            v4: Family::default(),
            v6: Family::default(),
            dns_none: false,
            search: Search::default(),
            hostname: None,
            fqdn: None,
            dhcp_dns: mode == Mode::Passt,
            dhcp_search: mode == Mode::Passt,
            no_tcp: false,
            no_udp: false,
            no_icmp: false,
            multicast: false,
            no_dhcp: false,
            no_dhcpv6: false,
            no_ndp: false,
            no_ra: false,
            rules: Vec::new(),
            policy: None,
            policy_audit: false,
            policy_names: NameCheck::default(),
            policy_ech: Ech::default(),
            limit: Limit::default(),
            freebind: false,
            splice: if mode == Mode::Pasta { Bypass::Local } else { Bypass::Never },
            host_lo_to_ns_lo: false,
            inbound: Table::new(),
            outbound: Table::new(),
            passt: Passt::default(),
            pasta: Pasta::default(),
            slirp4netns: Slirp4netns::default(),
            warnings: Vec::new(),
        }
    }

    /// Whether clients were announced that may change all rules at run time. (Those of the registry can't use rules that
    /// need preparations.)
    pub fn rules_may_change(&self) -> bool {
        self.conf_path.is_some() || self.asks_for_api()
    }

    /// Whether an option asks for the API socket.
    pub fn asks_for_api(&self) -> bool {
        self.api.as_ref().is_some_and(|api| *api != ApiSocket::Registry)
    }

    /// The families and protocols that forwarding rules may use.
    pub fn enabled(&self) -> Enabled {
        Enabled { ipv4: self.v4.enabled, ipv6: self.v6.enabled, tcp: !self.no_tcp, udp: !self.no_udp }
    }
}

/// The program that runs (behaviour §1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A virtual machine behind a UNIX socket.
    Passt,
    /// A network namespace behind a tap device.
    Pasta,
    /// A network namespace behind a tap device, on a virtual network (behaviour §13.1).
    Slirp4netns,
}

impl Mode {
    /// The name of the program in this mode.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passt => "passt",
            Self::Pasta => "pasta",
            Self::Slirp4netns => "slirp4netns",
        }
    }
}

/// Which messages are logged, from fewest to most (behaviour §1.7.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// Warnings, errors and informational messages. This is the default.
    #[default]
    Info,
    /// `--debug`: debug messages, too.
    Debug,
    /// `--trace`: a line for each frame and event, too.
    Trace,
}

/// The value of `--runas`. Names are looked up in the user database later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// User.
    pub user: Id,
    /// Group. `None`: the user's primary group, or, for a numeric user, the group with the same number.
    pub group: Option<Id>,
}

/// A user or group, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// UID or GID.
    Number(u32),
    /// Login or group name.
    Name(String),
}

/// Settings of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family<A> {
    /// Whether the family is not excluded by `-4` or `-6`. The host may still lack the family.
    pub enabled: bool,
    /// `--address`: the guest's address. The option also pins the address (behaviour §5.4), and the host's addresses
    /// are then not copied.
    pub address: Option<A>,
    /// Prefix length from `--address A/LEN` or `--netmask`. For IPv6, 64 is always used (behaviour §2.2).
    pub prefix_len: Option<u8>,
    /// `--gateway`.
    pub gateway: Option<A>,
    /// `--outbound`: source address of outbound sockets.
    pub outbound: Option<A>,
    /// `--outbound-if4`, `--outbound-if6`: interface of outbound sockets. It is also the template interface unless
    /// [`Config::interface`] is given.
    pub outbound_if: Option<IfName>,
    /// `--dns`: servers to advertise verbatim, at most three. Empty: servers from resolv.conf are advertised, unless
    /// [`Config::dns_none`] is true.
    pub dns: Vec<A>,
    /// `--dns-forward`: address at which the guest reaches the host's resolver.
    pub dns_forward: Option<A>,
    /// `--dns-host`: the host's resolver. `None`: the first server in resolv.conf.
    pub dns_host: Option<A>,
    /// `--map-host-loopback`, `--no-map-gw`.
    pub map_host_loopback: MapHostLoopback<A>,
    /// `--map-guest-addr`: address at which the guest reaches the host's own address.
    pub map_guest_addr: Option<A>,
    /// `--config-net` copies all of the template's addresses. False if `--address` is given.
    pub copy_addrs: bool,
    /// `--config-net` copies the template's routes. False if `--gateway` is given.
    pub copy_routes: bool,
}

impl<A> Default for Family<A> {
    fn default() -> Self {
        Self {
            enabled: true,
            address: None,
            prefix_len: None,
            gateway: None,
            outbound: None,
            outbound_if: None,
            dns: Vec::new(),
            dns_forward: None,
            dns_host: None,
            map_host_loopback: MapHostLoopback::Gateway,
            map_guest_addr: None,
            copy_addrs: true,
            copy_routes: true,
        }
    }
}

/// Address at which the guest reaches the host's loopback (behaviour §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapHostLoopback<A> {
    /// The gateway's address. This is the default.
    Gateway,
    /// No address: the guest can't reach the host's loopback.
    None,
    /// This address.
    Addr(A),
}

/// Domain search list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Search {
    /// The search list from resolv.conf.
    #[default]
    Host,
    /// `--search none`.
    None,
    /// `--search`, at most six domains.
    List(Vec<String>),
}

/// Settings of passt mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passt {
    /// How the guest connects.
    pub link: GuestLink,
    /// `--vhost-user`.
    pub vhost_user: bool,
    /// `--repair-path`.
    pub repair: RepairPath,
    /// `--migrate-exit`.
    pub migrate_exit: bool,
    /// `--migrate-no-linger`.
    pub migrate_no_linger: bool,
    /// `--one-off`, given or implied by `--fd` (behaviour §1.9).
    pub one_off: bool,
}

/// How the guest connects, in passt mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GuestLink {
    /// The first default socket path that is not in use (behaviour §9.2).
    #[default]
    Probe,
    /// `--socket`.
    Path(PathBuf),
    /// `--fd`: an inherited, connected socket.
    Fd(RawFd),
}

/// Socket of passt-repair (behaviour §11.5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RepairPath {
    /// The path of the guest's socket, with `.repair` appended.
    #[default]
    BesideSocket,
    /// No socket of passt-repair.
    None,
    /// The socket at this path.
    Path(PathBuf),
}

/// Settings of pasta mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pasta {
    /// The namespace to connect.
    pub target: Target,
    /// The user namespace to work in.
    pub userns: Userns,
    /// `--config-net`: configure the interface in the namespace (behaviour §3.6).
    pub config_net: bool,
    /// `--ns-ifname`.
    pub ns_ifname: Option<IfName>,
    /// `--ns-mac-addr`.
    pub ns_mac: Option<Mac>,
    /// `--no-netns-quit`: continue when the namespace is removed (behaviour §1.6).
    pub no_netns_quit: bool,
    /// `--no-pidns`: spawn the command without a PID namespace.
    pub no_pidns: bool,
}

impl Default for Pasta {
    fn default() -> Self {
        Self {
            target: Target::Spawn { command: Vec::new() },
            userns: Userns::Default,
            config_net: false,
            ns_ifname: None,
            ns_mac: None,
            no_netns_quit: false,
            no_pidns: false,
        }
    }
}

/// Settings of slirp4netns mode (behaviour §13.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slirp4netns {
    /// `--cidr`: the virtual IPv4 network. Its prefix length is at most [`MAX_PREFIX_LEN`].
    pub network: Ipv4Net,
    /// `--ready-fd`: an inherited descriptor, to which `1` is written when the network is ready.
    pub ready_fd: Option<RawFd>,
    /// `--exit-fd`: an inherited descriptor. The process ends when the descriptor is readable or is closed by its peer.
    pub exit_fd: Option<RawFd>,
    /// `--api-socket`.
    pub api_socket: Option<PathBuf>,
}

/// The IPv6 address at which the host's resolvers are reached on a virtual network.
pub const DNS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);

/// Maximum prefix length of the virtual network: the network has the address [`Slirp4netns::configured`].
pub const MAX_PREFIX_LEN: u8 = 25;

impl Slirp4netns {
    /// The gateway, which leads to the host's loopback.
    pub fn gateway(&self) -> Ipv4Addr {
        self.host(2)
    }

    /// The address at which the host's resolvers are reached.
    pub fn dns(&self) -> Ipv4Addr {
        self.host(3)
    }

    /// The address that DHCP offers.
    pub fn offered(&self) -> Ipv4Addr {
        self.host(15)
    }

    /// The address of the interface with `--configure`. It is the default target of forwarded ports.
    pub fn configured(&self) -> Ipv4Addr {
        self.host(100)
    }

    fn host(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.network().to_bits() | number)
    }
}

impl Default for Slirp4netns {
    fn default() -> Self {
        let network = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
        Self { network, ready_fd: None, exit_fd: None, api_socket: None }
    }
}

/// The namespace that pasta connects (behaviour §1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A new namespace, for this command and its arguments. If `command` is empty, the login shell is spawned
    /// (behaviour §1.5.7).
    Spawn {
        /// Command and arguments.
        command: Vec<OsString>,
    },
    /// The namespace of a process.
    Pid(i32),
    /// The namespace that this file represents. A name given to `--netns` has been resolved to a path.
    Netns(PathBuf),
}

/// Which user namespace pasta works in (behaviour §10.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Userns {
    /// For [`Target::Spawn`], a new user namespace. For other targets, the user namespace that owns the network
    /// namespace.
    #[default]
    Default,
    /// The user namespace that this file represents.
    Path(PathBuf),
    /// `--netns-only`: the caller's user namespace.
    None,
}
