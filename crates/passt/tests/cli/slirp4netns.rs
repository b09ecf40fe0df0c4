//! Tests of the command line of slirp4netns (behaviour §13.1.1).

use std::net::Ipv4Addr;
use std::path::PathBuf;

use engine::forward::Bypass;
use passt::{
    cli::{
        Invocation,
        options::{Action, Opt, groups},
    },
    config::{Config, DNS_V6, MapHostLoopback, Mode, Target, Userns},
};

use crate::golden::{config, read, split};

fn options() -> impl Iterator<Item = &'static Opt> {
    groups(Mode::Slirp4netns).iter().flat_map(|group| group.options)
}

fn slirp(options: &str) -> Config {
    config(&format!("slirp4netns {options} 1 tap0"))
}

#[track_caller]
fn assert_refused(line: &str, reason: &str) {
    let error = read(split(line)).map(|_| line).unwrap_err().to_string();
    assert!(error.contains(reason), "{line}: {error}");
    let program = line.split(' ').next().unwrap();
    assert!(error.starts_with(&format!("{program}: ")), "{error}");
}

#[test]
fn slirp4netns_has_defaults_of_its_own() {
    let config = slirp("");
    assert_eq!((config.mode, config.foreground, config.mtu), (Mode::Slirp4netns, true, Some(1500)));
    assert_eq!((config.v4.enabled, config.v6.enabled, config.pasta.config_net), (true, false, false));
    assert_eq!((config.pasta.target.clone(), config.pasta.no_netns_quit), (Target::Pid(1), true));
    assert_eq!(config.splice, Bypass::Never);
    assert!(config.inbound.is_empty() && config.outbound.is_empty());
    let given = &config.slirp4netns;
    let addresses = [given.gateway(), given.dns(), given.offered(), given.configured()];
    assert_eq!(
        addresses.map(|address| address.to_string()),
        ["10.0.2.2", "10.0.2.3", "10.0.2.15", "10.0.2.100"]
    );
    assert_eq!((config.v4.dns_forward, config.v6.dns_forward), (Some(given.dns()), Some(DNS_V6)));
    assert!(config.warnings.iter().any(|warning| warning.contains("10.0.2.2")));
}

/// The command lines of podman and RootlessKit.
#[test]
fn command_lines_of_clients_are_accepted() {
    let podman = config(
        "/usr/bin/slirp4netns --disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp \
         --cidr=10.5.0.0/16 --enable-ipv6 -c -e 3 -r 4 --api-socket /run/a.net --netns-type=path /run/netns/x tap0",
    );
    assert_eq!(podman.pasta.target, Target::Netns(PathBuf::from("/run/netns/x")));
    assert_eq!((podman.slirp4netns.exit_fd, podman.slirp4netns.ready_fd), (Some(3), Some(4)));
    assert_eq!(podman.slirp4netns.api_socket, Some(PathBuf::from("/run/a.net")));
    assert_eq!(podman.slirp4netns.configured(), Ipv4Addr::new(10, 5, 0, 100));
    assert_eq!(podman.v4.map_host_loopback, MapHostLoopback::None);
    assert!(podman.pasta.config_net && podman.v6.enabled && podman.warnings.is_empty());

    let rootlesskit =
        config("slirp4netns --mtu 65520 -r 3 --disable-host-loopback --userns-path=/u 4711 tap0");
    assert_eq!(rootlesskit.pasta.target, Target::Pid(4711));
    assert_eq!(rootlesskit.pasta.userns, Userns::Path(PathBuf::from("/u")));
}

#[test]
fn operands_may_come_first() {
    assert_eq!(config("slirp4netns 1 tap0 -c -m 1400"), config("slirp4netns -c -m 1400 1 tap0"));
    assert_eq!(config("slirp4netns 1 -c tap0"), config("slirp4netns -c -- 1 tap0"));
    let extra = config("slirp4netns 1 tap0 more --disable-host-loopback");
    assert_eq!(extra.warnings.len(), 1);
}

#[test]
fn every_option_of_slirp4netns_is_accepted_and_shown() {
    let Ok(Invocation::Help(help)) = read(split("slirp4netns --help")) else { panic!() };
    assert!(help.lines().all(|line| line.chars().count() <= 80));
    for opt in options() {
        let argument = match opt.action {
            Action::Value(name, _) => match name {
                "FD" => "5",
                "BYTES" => "1400",
                "ADDR/LEN" => "10.0.3.0/24",
                "ADDR|NAME" => "eth0",
                "pid|path" => "path",
                "netns" => "netns",
                "MAC" => "02:00:00:00:00:01",
                _ => "/path",
            },
            _ => "",
        };
        for name in opt.long {
            assert!(help.contains(&format!("--{name}")), "{name}");
            let line = format!("slirp4netns -c -6 --{name} {argument} 1 tap0");
            assert!(read(split(&line)).is_ok(), "{line}: {:?}", read(split(&line)));
        }
        if let Some(letter) = opt.short {
            let line = format!("slirp4netns -{letter}{argument} 1 tap0");
            assert!(read(split(&line)).is_ok(), "{line}");
        }
    }
    // The options of pasta are not those of slirp4netns.
    assert_refused("slirp4netns --config-net 1 tap0", "unrecognized option '--config-net'");
    assert_refused("slirp4netns --vhost-user 1 tap0", "unrecognized option '--vhost-user'");
    assert_refused("pasta --configure 1", "unrecognized option '--configure'");
}

#[test]
fn deprecated_options_warn() {
    for (option, now) in
        [("--no-host-loopback", "--disable-host-loopback"), ("--create-sandbox", "no effect")]
    {
        let config = slirp(option);
        assert!(config.warnings.iter().any(|warning| warning.contains(option) && warning.contains(now)));
    }
    assert_eq!(slirp("--no-host-loopback").v4.map_host_loopback, MapHostLoopback::None);
}

#[test]
fn contradictions_and_missing_operands_are_refused() {
    for (line, reason) in [
        ("slirp4netns", "PID or PATH"),
        ("slirp4netns 1", "TAPNAME"),
        ("slirp4netns abc tap0", "Invalid PID abc"),
        ("slirp4netns 0 tap0", "Invalid PID 0"),
        ("slirp4netns 1 averyveryverylongname", "Invalid interface name"),
        ("slirp4netns --macaddress=02:00:00:00:00:01 1 tap0", "--macaddress needs --configure"),
        ("slirp4netns -e 5 -r 5 1 tap0", "--exit-fd and --ready-fd"),
        ("slirp4netns -e 1 1 tap0", "Invalid descriptor"),
        ("slirp4netns --outbound-addr6=eth0 1 tap0", "--outbound-addr6 needs --enable-ipv6"),
        ("slirp4netns --outbound-addr=::1 1 tap0", "--outbound-addr: "),
        ("slirp4netns --outbound-addr=0.0.0.0 1 tap0", "--outbound-addr: "),
        ("slirp4netns --outbound-addr6=::ffff:192.0.2.1 1 tap0", "--outbound-addr6: "),
        ("slirp4netns --netns-type=other 1 tap0", "--netns-type: "),
        ("slirp4netns --target-type=bess /path", "bess is not supported"),
    ] {
        assert_refused(line, reason);
    }
}

#[test]
fn networks_that_cannot_be_on_a_link_are_refused() {
    for (network, reason) in [
        ("10.0.2.0", "invalid CIDR: 10.0.2.0"),
        ("10.0.2.0/24/24", "invalid CIDR"),
        ("fd00::/64", "invalid CIDR"),
        ("10.0.2.100/24", "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24"),
        ("10.0.2.100/26", "prefix length needs to be 1-25"),
        ("0.0.0.0/0", "prefix length needs to be 1-25"),
        ("127.1.0.0/16", "overlaps 127.0.0.0/8"),
        ("126.0.0.0/7", "overlaps 127.0.0.0/8"),
        ("0.0.1.0/24", "overlaps 0.0.0.0/8"),
        ("239.0.0.0/24", "overlaps 224.0.0.0/3"),
    ] {
        assert_refused(&format!("slirp4netns --cidr={network} 1 tap0"), reason);
    }
    assert_eq!(slirp("--cidr=192.168.0.128/25").slirp4netns.configured(), Ipv4Addr::new(192, 168, 0, 228));
    assert_eq!(slirp("--cidr=10.0.0.0/8").slirp4netns.gateway(), Ipv4Addr::new(10, 0, 0, 2));
}
