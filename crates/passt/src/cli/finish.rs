//! Turns the single options into a configuration: combines them, and refuses contradictions.

use std::{
    ffi::{OsStr, OsString},
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use engine::first_bytes::Ech;
use engine::forward::{
    Bypass, PortRange, Protocol, Table,
    spec::{self, Context, Direction, Spec, SpecError},
};

use super::slirp4netns;
use crate::config::{Config, GuestLink, MapHostLoopback, Mode, NameCheck, Target, Verbosity};

/// The directory in which `ip netns` keeps its namespaces.
const NSRUN_DIR: &str = "/run/netns";

/// The options read so far. An option that sets one field of the configuration is stored in `config` at once. The other
/// options are stored here until [`Args::finish`] is called.
#[derive(Debug)]
pub struct Args {
    pub(super) config: Config,
    pub(super) netmask: Option<u8>,
    pub(super) v4_len: Option<u8>,
    pub(super) v6_len: Option<u8>,
    pub(super) no_map_gw: bool,
    pub(super) map_host_loopback_v4: Option<Ipv4Addr>,
    pub(super) map_host_loopback_v6: Option<Ipv6Addr>,
    pub(super) netns: Option<OsString>,
    pub(super) nsrun_dir: PathBuf,
    pub(super) no_copy_routes: bool,
    pub(super) no_copy_addrs: bool,
    pub(super) no_splice: bool,
    pub(super) splice_only: bool,
    pub(super) no_api: bool,
    pub(super) slirp4netns: slirp4netns::Given,
    ports: Vec<PortOption>,
}

/// One of the options `-t`, `-u`, `-T`, `-U`.
#[derive(Debug)]
struct PortOption {
    typed_as: String,
    direction: Direction,
    protocol: Protocol,
    spec: String,
}

impl Args {
    pub(super) fn new(mode: Mode, vhost_user: bool) -> Self {
        let mut config = Config::new(mode);
        config.passt.vhost_user = vhost_user;
        if mode == Mode::Slirp4netns {
            slirp4netns::set_defaults(&mut config);
        }
        Self {
            config,
            netmask: None,
            v4_len: None,
            v6_len: None,
            no_map_gw: false,
            map_host_loopback_v4: None,
            map_host_loopback_v6: None,
            netns: None,
            nsrun_dir: PathBuf::from(NSRUN_DIR),
            no_copy_routes: false,
            no_copy_addrs: false,
            no_splice: false,
            splice_only: false,
            no_api: false,
            slirp4netns: slirp4netns::Given::default(),
            ports: Vec::new(),
        }
    }

    /// Stores a port specifier. [`Args::finish`] parses the specifier when the families and protocols are known.
    pub(super) fn add_ports(
        &mut self,
        typed_as: &str,
        direction: Direction,
        protocol: Protocol,
        spec: &OsStr,
    ) -> Result<(), String> {
        let text = spec.to_str().ok_or_else(|| format!("Invalid port specifier '{}'", spec.display()))?;
        self.ports.push(PortOption { typed_as: typed_as.into(), direction, protocol, spec: text.into() });
        Ok(())
    }

    /// The configuration that results from all options and from `operands`.
    ///
    /// # Errors
    /// Some options contradict each other, or a port specifier is invalid.
    pub(super) fn finish(
        mut self,
        operands: Vec<OsString>,
        ephemeral: impl FnOnce() -> RangeInclusive<u16>,
    ) -> Result<Config, String> {
        if self.config.mode == Mode::Slirp4netns {
            slirp4netns::finish(&mut self.config, &self.slirp4netns, &operands)?;
            return Ok(self.config);
        }
        self.prefix_lengths()?;
        self.host_loopback();
        self.splice()?;
        self.copying()?;
        self.implied();
        self.api()?;
        self.guard()?;
        self.logs()?;
        match self.config.mode {
            Mode::Pasta => self.target(operands)?,
            Mode::Passt | Mode::Slirp4netns => {
                if let Some(extra) = operands.first() {
                    return Err(format!("Extra non-option argument: {}", extra.display()));
                }
            }
        }
        if self.config.stats.is_some() && !self.config.foreground {
            return Err(
                "--stats needs --foreground or a command: in the background, nobody would see it".into()
            );
        }
        self.forwarding(ephemeral)?;
        Ok(self.config)
    }

    fn api(&mut self) -> Result<(), String> {
        if self.no_api && self.config.asks_for_api() {
            return Err("--no-api can't be used with --api-socket or --api-fd".into());
        }
        self.config.api.take_if(|_| self.no_api);
        Ok(())
    }

    fn guard(&self) -> Result<(), String> {
        let Config { rules, policy, policy_audit, policy_names, policy_ech, .. } = &self.config;
        let given = [
            (*policy_audit, "--policy-audit"),
            (*policy_names != NameCheck::default(), "--policy-names"),
            (*policy_ech != Ech::default(), "--policy-ech"),
        ];
        let without_rules = rules.is_empty() && policy.is_none() && !self.config.rules_may_change();
        if let Some((_, option)) = given.iter().find(|(given, _)| *given && without_rules) {
            return Err(format!(
                "{option} needs rules: --allow, --deny or --policy, or --conf-path or --api-socket for those of clients"
            ));
        }
        if *policy_names == NameCheck::Address && *policy_ech == Ech::Refuse {
            return Err(
                "--policy-ech deny can't be used with --policy-names address, which reads no first bytes"
                    .into(),
            );
        }
        Ok(())
    }

    fn logs(&self) -> Result<(), String> {
        let Config { log_file, flow_log, .. } = &self.config;
        match flow_log {
            Some(path) if *flow_log == *log_file => {
                Err(format!("--flow-log and --log-file can't be the same file: {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Length 0 is treated as no length: a network of all addresses would be an on-link default route.
    fn prefix_lengths(&mut self) -> Result<(), String> {
        if self.netmask.is_some() && (self.v4_len.is_some() || self.v6_len.is_some()) {
            return Err("Redundant prefix length specification: --netmask and --address with a length".into());
        }
        self.config.v4.prefix_len = self.v4_len.or(self.netmask).filter(|len| *len != 0);
        self.config.v6.prefix_len = self.v6_len.filter(|len| *len != 0);
        Ok(())
    }

    /// An explicit address takes precedence over `--no-map-gw`: this option disables the default only.
    fn host_loopback(&mut self) {
        fn choose<A>(explicit: Option<A>, no_map_gw: bool) -> MapHostLoopback<A> {
            match explicit {
                Some(addr) => MapHostLoopback::Addr(addr),
                None if no_map_gw => MapHostLoopback::None,
                None => MapHostLoopback::Gateway,
            }
        }
        self.config.v4.map_host_loopback = choose(self.map_host_loopback_v4, self.no_map_gw);
        self.config.v6.map_host_loopback = choose(self.map_host_loopback_v6, self.no_map_gw);
    }

    fn splice(&mut self) -> Result<(), String> {
        let config = &mut self.config;
        config.splice = match (self.no_splice, self.splice_only) {
            (true, true) => return Err("--splice-only is incompatible with --no-splice".into()),
            (true, false) if config.host_lo_to_ns_lo => {
                return Err("--host-lo-to-ns-lo is incompatible with --no-splice".into());
            }
            (true, false) => Bypass::Never,
            (false, true) => Bypass::Only,
            // A virtual machine has no sockets on this machine, so no connection can bypass the link.
            (false, false) if config.mode != Mode::Pasta => Bypass::Never,
            (false, false) => Bypass::Local,
        };
        if config.splice == Bypass::Only {
            config.host_lo_to_ns_lo = true;
            config.no_icmp = true;
            config.dns_none = true;
        }
        Ok(())
    }

    fn copying(&mut self) -> Result<(), String> {
        for (name, given) in
            [("--no-copy-routes", self.no_copy_routes), ("--no-copy-addrs", self.no_copy_addrs)]
        {
            if given && !self.config.pasta.config_net {
                return Err(format!("{name} needs --config-net"));
            }
        }
        let (v4, v6) = (&mut self.config.v4, &mut self.config.v6);
        v4.copy_addrs = !self.no_copy_addrs && v4.address.is_none();
        v6.copy_addrs = !self.no_copy_addrs && v6.address.is_none();
        v4.copy_routes = !self.no_copy_routes && v4.gateway.is_none();
        v6.copy_routes = !self.no_copy_routes && v6.gateway.is_none();
        Ok(())
    }

    fn implied(&mut self) {
        let config = &mut self.config;
        config.no_ndp |= config.no_icmp;
        config.no_ra |= config.pasta.config_net;
        config.passt.one_off |= matches!(config.passt.link, GuestLink::Fd(_));
    }

    /// Finds the namespace to connect (behaviour §1.2), and sets the options that depend on the namespace.
    fn target(&mut self, operands: Vec<OsString>) -> Result<(), String> {
        let config = &mut self.config;
        config.pasta.target = match (self.netns.take(), operands.as_slice()) {
            (Some(_), [_, ..]) => return Err("Both --netns and PID or command given".into()),
            (Some(netns), []) => Target::Netns(netns_path(&netns, &self.nsrun_dir)),
            (None, [pid]) if pid.as_bytes().iter().all(u8::is_ascii_digit) && !pid.is_empty() => {
                let number = pid.to_str().and_then(|pid| pid.parse().ok()).filter(|pid| *pid > 0);
                Target::Pid(number.ok_or_else(|| format!("Invalid PID {}", pid.display()))?)
            }
            (None, _) => Target::Spawn { command: operands },
        };
        match config.pasta.target {
            Target::Spawn { .. } => {
                // behaviour §1.3.5
                config.foreground = true;
                if config.verbosity == Verbosity::Info {
                    config.verbosity = Verbosity::Quiet;
                }
            }
            _ if config.pasta.no_pidns => {
                return Err("--no-pidns is incompatible with PID or --netns".into());
            }
            Target::Netns(_) | Target::Pid(_) => {}
        }
        Ok(())
    }

    /// Parses the port specifiers, in order (behaviour §2.4).
    fn forwarding(&mut self, ephemeral: impl FnOnce() -> RangeInclusive<u16>) -> Result<(), String> {
        self.default_ports();
        if self.ports.is_empty() {
            return Ok(());
        }
        let ephemeral = ephemeral();
        let ephemeral =
            PortRange::new(*ephemeral.start(), *ephemeral.end()).unwrap_or(PortRange::RFC6335_DYNAMIC);
        let config = &mut self.config;
        let enabled = config.enabled();
        for option in &self.ports {
            let PortOption { direction, protocol, .. } = *option;
            let context = Context { protocol, direction, enabled, ephemeral };
            let table = match direction {
                Direction::Inbound => &mut config.inbound,
                Direction::Outbound => &mut config.outbound,
            };
            option.add_to(table, &context, config.mode)?;
        }
        Ok(())
    }

    /// Without an option for a direction and protocol, pasta forwards the ports in use on the other side (behaviour
    /// §8.4), unless the protocol is disabled (Q9).
    fn default_ports(&mut self) {
        let Config { mode, no_tcp, no_udp, .. } = self.config;
        let options = [
            ("-t", Direction::Inbound, Protocol::Tcp, no_tcp),
            ("-u", Direction::Inbound, Protocol::Udp, no_udp),
            ("-T", Direction::Outbound, Protocol::Tcp, no_tcp),
            ("-U", Direction::Outbound, Protocol::Udp, no_udp),
        ];
        for (typed_as, direction, protocol, off) in options {
            let given =
                self.ports.iter().any(|port| (port.direction, port.protocol) == (direction, protocol));
            if mode == Mode::Pasta && !off && !given {
                let (typed_as, spec) = (typed_as.to_owned(), "auto".to_owned());
                self.ports.push(PortOption { typed_as, direction, protocol, spec });
            }
        }
    }
}

impl PortOption {
    fn add_to(&self, table: &mut Table, context: &Context, mode: Mode) -> Result<(), String> {
        let Self { typed_as, protocol, spec, .. } = self;
        let parsed = spec::parse(spec, context).map_err(|error| match error {
            SpecError::ListenNotAllowed(_) => format!("Listening address not allowed for {typed_as} {spec}"),
            error => format!("{typed_as}: {error}"),
        })?;
        match parsed {
            Spec::None if table.rules().iter().any(|rule| rule.protocol == *protocol) => {
                Err(format!("{typed_as} none conflicts with previous options"))
            }
            Spec::None => Ok(()),
            Spec::Forward { auto: true, .. } if mode == Mode::Passt => {
                Err(format!("{typed_as}: 'auto' port forwarding is only allowed for pasta"))
            }
            Spec::Forward { rules, .. } => rules
                .into_iter()
                .try_for_each(|rule| table.add(rule, context.enabled))
                .map_err(|error| format!("{typed_as}: {error}")),
        }
    }
}

/// The file of a namespace. A value without `/` is a name in `nsrun_dir`.
fn netns_path(netns: &OsStr, nsrun_dir: &Path) -> PathBuf {
    match netns.as_bytes().contains(&b'/') {
        true => PathBuf::from(netns),
        false => nsrun_dir.join(netns),
    }
}
