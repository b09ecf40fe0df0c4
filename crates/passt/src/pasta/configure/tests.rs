//! Discovery, planning and configuration with a real kernel. Each test runs in its own network namespace. A test sets
//! up the interfaces of a "host", reads them, replaces them by an interface that represents the tap device, and
//! configures this interface.

use std::{
    fs,
    io::Write,
    net::UdpSocket,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    config::{Config, Mode},
    host::{Facts, RouteMetric},
    isolated::as_root_of_namespace,
    plan::plan,
};

/// Runs ip(8) with one command per line.
fn ip(commands: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("ip(8) of iproute2 is needed");
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{commands}");
}

/// The lines that ip(8) prints, with single blanks.
fn show(arguments: &str) -> Vec<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}

/// A host with `eth0` in both families, without duplicate address detection.
fn host() {
    sysctl("ipv6/conf/default/accept_dad", "0");
    sysctl("ipv6/conf/all/accept_dad", "0");
    ip("link add eth0 type veth peer name wire0
        link set lo up
        link set wire0 up
        link set eth0 address 02:00:00:00:00:01 up
        addr add 198.51.100.2/24 brd + dev eth0
        addr add 2001:db8:1::2/64 dev eth0
        route add default via 198.51.100.1
        route add ::/0 via 2001:db8:1::1");
    sysctl("ipv6/conf/default/accept_dad", "1");
    sysctl("ipv6/conf/all/accept_dad", "1");
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::new(Mode::Pasta);
    config.pasta.config_net = true;
    config.pasta.ns_mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    change(&mut config);
    config
}

/// Makes a plan from the present interfaces, replaces them by a new interface, and configures the new interface.
fn replace(config: &Config) -> Result<Configured, Error> {
    let plan = plan(config, &Facts::gather().unwrap()).unwrap().namespace.unwrap();
    let others: Vec<String> =
        Facts::gather().unwrap().links.into_iter().map(|l| l.name).filter(|name| name != "lo").collect();
    for name in others {
        // The deletion may fail: a veth device is deleted together with its peer.
        let _ = Command::new("ip").args(["link", "del", &name]).stderr(Stdio::null()).status();
    }
    let _ = Command::new("ip").args(["route", "flush", "table", "main"]).stderr(Stdio::null()).status();
    ip(&format!("link set lo down\nlink add {} type veth peer name us0\nlink set us0 up", plan.ifname));
    configure(&plan)
}

fn texts(configured: &Configured) -> Vec<&str> {
    configured.notes.iter().map(|note| &note.text[..]).collect()
}

/// behaviour §3.6, R-29, R-30: the namespace has the addresses and routes of the host, no route is there twice, and
/// IPv6 is usable at once.
#[test]
fn copies_both_families_r29_r30() {
    as_root_of_namespace(|| {
        host();
        ip("addr add 198.51.100.9/24 dev eth0 label eth0:x valid_lft 90 preferred_lft 80
            addr add 203.0.113.7/32 dev eth0
            addr add 169.254.7.7/16 scope link dev eth0
            route add 10.0.0.0/8 via 198.51.100.5 metric 50 mtu 1400 proto static
            route add unreachable 10.99.0.0/16
            route add 2001:db8:2::/48 via 2001:db8:1::7 metric 77");
        let configured = replace(&config(|_| ())).unwrap();
        // The kernel acknowledges an address before it is local.
        let own = UdpSocket::bind("[2001:db8:1::2]:7000").unwrap();
        own.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        own.send_to(b"to itself", own.local_addr().unwrap()).unwrap();
        assert_eq!(own.recv(&mut [0; 99]).expect("an address that is local"), 9);
        assert_eq!(texts(&configured), [""; 0]);
        assert_eq!(configured.mac, Mac([2, 0, 0, 0, 0, 9]));
        let link = show("-o link show eth0").concat();
        for part in ["UP", "mtu 65520", "qlen 10000", "02:00:00:00:00:09"] {
            assert!(link.contains(part), "{part}: {link}");
        }
        assert!(show("-o link show lo").concat().contains("<LOOPBACK,UP,LOWER_UP>"));
        let lines = show("-o addr show dev eth0");
        let addresses: Vec<&str> = lines.iter().map(|line| line.split(' ').nth(3).unwrap()).collect();
        assert_eq!(
            addresses,
            [
                "198.51.100.2/24",
                "203.0.113.7/32",
                "198.51.100.9/24",
                "2001:db8:1::2/64",
                "fe80::ff:fe00:9/64"
            ]
        );
        assert!(
            lines.iter().all(|line| line.ends_with("valid_lft forever preferred_lft forever")),
            "{lines:?}"
        );
        assert!(!lines.concat().contains("tentative"), "{lines:?}");
        assert!(!lines.concat().contains("eth0:x"), "{lines:?}");
        assert!(lines[0].contains("brd 198.51.100.255"), "{lines:?}");
        assert_eq!(
            show("route"),
            [
                "default via 198.51.100.1 dev eth0",
                "10.0.0.0/8 via 198.51.100.5 dev eth0 proto static metric 50 mtu 1400",
                "169.254.0.0/16 dev eth0 proto kernel scope link",
                "198.51.100.0/24 dev eth0 proto kernel scope link src 198.51.100.2",
            ]
        );
        assert_eq!(
            show("-6 route show dev eth0"),
            [
                "2001:db8:1::/64 proto kernel metric 256 pref medium",
                "2001:db8:2::/48 via 2001:db8:1::7 metric 77 pref medium",
                "fe80::/64 proto kernel metric 256 pref medium",
                "default via 2001:db8:1::1 metric 1024 pref medium",
            ]
        );
    });
}

/// Several IPv6 addresses keep the order in which the kernel lists and prefers them.
#[test]
fn ipv6_addresses_keep_their_order() {
    as_root_of_namespace(|| {
        host();
        ip("addr add 2001:db8:1::3/64 dev eth0\naddr add 2001:db8:7::3/64 dev eth0 nodad");
        let global = || -> Vec<IpAddr> {
            let facts = Facts::gather().unwrap();
            let eth0 = facts.link_named("eth0").unwrap().index;
            let wide =
                facts.addresses.iter().filter(|a| a.scope == AddressScope::Universe && a.local.is_ipv6());
            wide.filter(|a| a.interface == eth0).map(|a| a.local).collect()
        };
        let before = global();
        assert_eq!(before.len(), 3);
        replace(&config(|_| ())).unwrap();
        assert_eq!(global(), before);
    });
}

/// behaviour §3.6: the reference program fails if the routes exceed one batch of 64 KiB.
#[test]
fn copies_thousands_of_routes() {
    as_root_of_namespace(|| {
        host();
        let mut commands = String::new();
        for n in 0..2500 {
            commands += &format!("route add 10.{}.{}.0/24 via 198.51.100.5 metric {n}\n", n / 250, n % 250);
            commands += &format!("route add 2001:db8:{n:x}:ffff::/64 via 2001:db8:1::5\n");
        }
        ip(&commands);
        let hops: String = (100..250).map(|n| format!(" nexthop via 198.51.100.{n}")).collect();
        ip(&format!("route add 11.0.0.0/8{hops}"));
        let facts = Facts::gather().unwrap();
        assert!(facts.routes.len() > 5000, "{}", facts.routes.len());
        let configured = replace(&config(|_| ())).unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        assert_eq!(show("route").iter().filter(|line| line.starts_with("10.")).count(), 2500);
        assert_eq!(show("route").iter().filter(|line| line.contains("nexthop via")).count(), 150);
        assert_eq!(show("-6 route").iter().filter(|line| line.contains(":ffff::/64 via")).count(), 2500);
    });
}

/// routes with nexthop objects are copied, even if the kernel doesn't list their hops.:
/// multipath routes are copied.
#[test]
fn copies_multipath_and_nexthop_objects_r25_r20_r24_r26() {
    as_root_of_namespace(|| {
        host();
        ip("link add eth1 type veth peer name wire1
            link set eth1 up
            link set wire1 up
            addr add 203.0.113.2/24 dev eth1
            nexthop add id 1 via 198.51.100.3 dev eth0
            nexthop add id 2 via 198.51.100.4 dev eth0
            nexthop add id 7 group 1,3/2,9
            route add 10.1.0.0/16 nhid 1
            route add 10.2.0.0/16 nhid 7 proto ospf
            route add 10.3.0.0/16 nexthop via 198.51.100.5 weight 5 nexthop via 198.51.100.6
            route add 10.4.0.0/16 nexthop via 198.51.100.5 nexthop via 203.0.113.5
            route add 10.5.0.0/16 via 203.0.113.5
            route add 2001:db8:3::/48 nexthop via 2001:db8:1::5 nexthop via 2001:db8:1::6
            route add 10.6.0.0/16 via inet6 2001:db8:1::9 dev eth0
            route add 10.7.0.0/16 via 192.0.2.99 dev eth0 onlink");
        for compatible in ["0", "1"] {
            sysctl("ipv4/nexthop_compat_mode", compatible);
            let facts = Facts::gather().unwrap();
            let hops = |destination: &str| {
                let destination = destination.parse().unwrap();
                let route = facts.routes.iter().find(|route| route.destination == destination).unwrap();
                route
                    .next_hops
                    .iter()
                    .map(|hop| (hop.gateway.unwrap().to_string(), hop.weight))
                    .collect::<Vec<_>>()
            };
            assert_eq!(hops("10.1.0.0/16"), [("198.51.100.3".into(), 1)]);
            assert_eq!(hops("10.2.0.0/16"), [("198.51.100.3".into(), 3), ("198.51.100.4".into(), 9)]);
        }
        let configured = replace(&config(|config| config.interface = "eth0".parse().ok())).unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        let routes = show("route").join(" ");
        for part in [
            "10.1.0.0/16 via 198.51.100.3 dev eth0 ",
            "10.2.0.0/16 proto ospf nexthop via 198.51.100.3 dev eth0 weight 3 nexthop via 198.51.100.4 dev eth0 weight 9",
            "10.3.0.0/16 nexthop via 198.51.100.5 dev eth0 weight 5 nexthop via 198.51.100.6 dev eth0 weight 1",
            "10.6.0.0/16 via inet6 2001:db8:1::9 dev eth0",
            "10.7.0.0/16 via 192.0.2.99 dev eth0 onlink",
        ] {
            assert!(routes.contains(part), "{part}: {routes}");
        }
        assert!(!routes.contains("10.4.0.0/16") && !routes.contains("10.5.0.0/16"), "{routes}");
        let six = show("-6 route").join(" ");
        assert!(
            six.contains("nexthop via 2001:db8:1::5 dev eth0 weight 1 nexthop via 2001:db8:1::6"),
            "{six}"
        );
    });
}

/// next hops that are down on the host are copied without that state.
#[test]
fn state_of_next_hops_is_not_copied_r24() {
    as_root_of_namespace(|| {
        host();
        ip("route add 10.3.0.0/16 nexthop via 198.51.100.5 nexthop via 198.51.100.6
            route add 2001:db8:3::/48 nexthop via 2001:db8:1::5 nexthop via 2001:db8:1::6
            link set wire0 down");
        // The kernel handles a lost carrier asynchronously.
        let end = Instant::now() + Duration::from_secs(60);
        while !show("route").concat().contains("linkdown") {
            assert!(Instant::now() < end, "the link stays up");
            thread::sleep(Duration::from_millis(20));
        }
        let configured = replace(&config(|_| ())).unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        for routes in [show("route").join(" "), show("-6 route").join(" ")] {
            assert!(routes.contains("nexthop via") && !routes.contains("down"), "{routes}");
        }
    });
}

/// one route has a gateway that is reached only by another route, and one route has a gateway that can't be
/// reached.
#[test]
fn dependent_routes_settle_r27() {
    as_root_of_namespace(|| {
        host();
        // In the kernel's order, 10.0.0.0/8 comes before the route to its gateway. The gateway of 10.66.0.0/16 has no
        // route.
        ip("route add 192.0.2.7 dev eth0
            route add 10.0.0.0/8 via 192.0.2.7
            route add 2001:db8:9::7 dev eth0
            route add 2001:db8:2::/48 via 2001:db8:9::7
            route add 192.0.2.8 dev eth0
            route add 10.66.0.0/16 via 192.0.2.8
            route del 192.0.2.8 dev eth0");
        let configured = replace(&config(|_| ())).unwrap();
        let routes = show("route").join("\n");
        assert!(routes.contains("10.0.0.0/8 via 192.0.2.7 dev eth0"), "{routes}");
        assert!(!routes.contains("10.66.0.0/16"), "{routes}");
        let six = show("-6 route").join("\n");
        assert!(six.contains("2001:db8:2::/48 via 2001:db8:9::7"), "{six}");
        assert_eq!(configured.notes.len(), 1, "{:?}", configured.notes);
        assert!(configured.notes[0].text.starts_with("Route to 10.66.0.0/16 via 192.0.2.8 can't be copied"));
        assert_eq!(configured.notes[0].level, log::Level::Info);
    });
}

/// options for one family do not prevent copying the other family.
#[test]
fn families_are_independent_r31() {
    as_root_of_namespace(|| {
        host();
        ip("route add 10.0.0.0/8 via 198.51.100.5\naddr add 2001:db8:1::3/64 dev eth0");
        let configured = replace(&config(|config| {
            config.v4.address = Some("198.51.100.50".parse().unwrap());
            config.v4.prefix_len = Some(24);
            config.v6.gateway = Some("2001:db8:1::fe".parse().unwrap());
        }))
        .unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        assert_eq!(
            show("route"),
            [
                "default via 198.51.100.1 dev eth0",
                "10.0.0.0/8 via 198.51.100.5 dev eth0",
                "198.51.100.0/24 dev eth0 proto kernel scope link src 198.51.100.50",
            ]
        );
        assert_eq!(show("-o -4 addr show dev eth0").len(), 1);
        assert_eq!(show("-o -6 addr show dev eth0 scope global").len(), 2);
        assert_eq!(
            show("-6 route show default"),
            ["default via 2001:db8:1::fe dev eth0 metric 1024 pref medium"]
        );
    });
}

/// a namespace without IPv6 (here by sysctl) gets only IPv4, with a warning.
#[test]
fn namespace_without_ipv6_r32() {
    as_root_of_namespace(|| {
        host();
        sysctl("ipv6/conf/default/disable_ipv6", "1");
        let configured = replace(&config(|_| ())).unwrap();
        assert!(configured.no_ipv6 && !configured.no_ipv4);
        assert_eq!(configured.notes.len(), 1, "{:?}", configured.notes);
        assert_eq!(configured.notes[0].level, log::Level::Warn);
        assert!(configured.notes[0].text.starts_with("IPv6 not supported"));
        assert_eq!(show("-o -6 addr show dev eth0"), [""; 0]);
        assert_eq!(show("route show default"), ["default via 198.51.100.1 dev eth0"]);
    });
}

/// behaviour §3.5: the host has no template in either family.
#[test]
fn local_mode() {
    as_root_of_namespace(|| {
        let configured = replace(&config(|_| ())).unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        let lines = show("-o addr show dev tap0");
        let addresses: Vec<&str> = lines.iter().map(|line| line.split(' ').nth(3).unwrap()).collect();
        assert_eq!(addresses, ["169.254.2.1/16", "fe80::ff:fe00:9/64"]);
        assert_eq!(show("route show default"), ["default via 169.254.2.2 dev tap0"]);
        assert_eq!(show("-6 route show default"), ["default via fe80::1 dev tap0 metric 1024 pref medium"]);
    });
}

/// behaviour §3.6: an unreachable `--gateway` is an error, and the message names the gateway.
#[test]
fn gateway_that_is_not_on_the_link() {
    as_root_of_namespace(|| {
        host();
        let error =
            replace(&config(|config| config.v4.gateway = Some("192.0.2.1".parse().unwrap()))).unwrap_err();
        let text = error.to_string();
        for part in ["eth0", "route to 0.0.0.0/0 via 192.0.2.1", "Network is unreachable"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    });
}

/// a point-to-point interface without MAC address, and a default route without gateway.
#[test]
fn point_to_point_template_r21_r33_r34() {
    as_root_of_namespace(|| {
        ip("tuntap add dev ppp0 mode tun
            addr add 10.0.0.1 peer 10.0.0.2 dev ppp0
            link set ppp0 up
            route add default dev ppp0");
        let facts = Facts::gather().unwrap();
        assert_eq!(facts.link_named("ppp0").unwrap().mac, None);
        let plan = plan(&config(|_| ()), &facts).unwrap();
        let v4 = plan.settings.v4.unwrap();
        assert_eq!((v4.assigned, v4.our_address), ("10.0.0.1".parse().unwrap(), None));
        let configured = replace(&config(|_| ())).unwrap();
        assert_eq!(texts(&configured), [""; 0]);
        assert_eq!(
            show("route"),
            ["default dev ppp0 scope link", "10.0.0.2 dev ppp0 proto kernel scope link src 10.0.0.1"]
        );
    });
}

/// behaviour §3.6: without `--config-net` lo is up, and the interface is not configured.
#[test]
fn without_config_net() {
    as_root_of_namespace(|| {
        host();
        let configured = replace(&config(|config| config.pasta.config_net = false)).unwrap();
        assert_eq!(configured.mac, Mac([2, 0, 0, 0, 0, 9]));
        let link = show("-o link show eth0").concat();
        assert!(link.contains("state DOWN") && link.contains("mtu 1500"), "{link}");
        assert!(link.contains("02:00:00:00:00:09") && link.contains("qlen 10000"), "{link}");
        assert_eq!(show("-o addr show dev eth0"), [""; 0]);
        assert!(show("-o link show lo").concat().contains("<LOOPBACK,UP,LOWER_UP>"));
    });
}

/// behaviour §2.2: an error names the object that caused it: a MAC address that the kernel refuses, or an interface
/// that doesn't exist.
#[test]
fn errors_name_the_object() {
    as_root_of_namespace(|| {
        let error =
            replace(&config(|config| config.pasta.ns_mac = Some(Mac([1, 0, 0, 0, 0, 9])))).unwrap_err();
        assert!(
            error.to_string().contains("interface tap0 in the namespace: can't set the MAC address"),
            "{error}"
        );
        let plan = plan(&config(|_| ()), &Facts::gather().unwrap()).unwrap().namespace.unwrap();
        let error = configure(&NamespacePlan { ifname: "gone0".into(), ..plan }).unwrap_err();
        assert_eq!(error.to_string(), "there is no interface gone0 in the namespace");
    });
}

/// Metrics of routes are copied, with their lock bits.
#[test]
fn route_metrics_are_gathered() {
    as_root_of_namespace(|| {
        host();
        ip("route add 10.0.0.0/8 via 198.51.100.5 mtu lock 1400 advmss 1300");
        let facts = Facts::gather().unwrap();
        let route =
            facts.routes.iter().find(|route| route.destination == "10.0.0.0/8".parse().unwrap()).unwrap();
        assert!(
            route.metrics.contains(&RouteMetric::Mtu(1400))
                && route.metrics.contains(&RouteMetric::Advmss(1300))
        );
        replace(&config(|_| ())).unwrap();
        let routes = show("route").join("\n");
        assert!(
            routes.contains("10.0.0.0/8 via 198.51.100.5 dev eth0 mtu lock 1400 advmss 1300"),
            "{routes}"
        );
    });
}
