//! What we answer ourselves on the tap (behaviour §4), asked by real clients.

use crate::harness::*;
use std::net::IpAddr;

/// A `pasta` that leaves the configuration to the guest's clients. The link is down at first (behaviour §3.6).
pub(crate) fn unconfigured<'a>(net: &'a Net, options: &[&str]) -> Daemon<'a> {
    let pasta = net.attach(options);
    let link = net.guest.sh("ip -o link show eth0; ip -o addr show eth0");
    assert!(link.contains("state DOWN") && !link.contains("inet"), "{link}");
    pasta
}

/// What a dhclient told its script, as `name=value` lines.
pub(crate) fn dhclient(net: &Net, family: &str, mode: &str) -> String {
    let (script, told) = (net.path("script"), net.path("told"));
    let text = format!(
        "#!/bin/sh\n\
         case $reason in\n\
         PREINIT*) ip link set $interface up;;\n\
         BOUND) ip addr add $new_ip_address/$new_subnet_mask dev $interface\n\
                [ -z \"$new_routers\" ] || ip route add default via $new_routers;;\n\
         BOUND6) ip addr add $new_ip6_address/64 dev $interface nodad;;\n\
         esac\n\
         env | grep -E '^(reason|new_)' >{told}\n"
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = net.path("dhclient.conf");
    std::fs::write(&config, format!("timeout 50;\n{DHCLIENT_CONF}")).unwrap();
    net.guest.sh(&format!(
        "ip link set eth0 up; dhclient {family} {mode} -1 -v -cf {config} -sf {script} -lf {0} -pf {1} eth0",
        net.path("leases"),
        net.path("dhclient.pid"),
    ));
    std::fs::read_to_string(told).unwrap()
}

const DHCLIENT_CONF: &str = "
option classless-routes code 121 = array of unsigned integer 8;
also request domain-search, interface-mtu, classless-routes;
also request dhcp6.name-servers, dhcp6.domain-search;
send host-name \"guest\";
";

pub(crate) fn has(told: &str, lines: &[&str]) {
    for line in lines {
        assert!(told.lines().any(|l| l == *line), "no {line:?} in:\n{told}");
    }
}

/// behaviour §4.3: the host's address, mask, gateway, MTU and names, and after that the guest is connected.
#[test]
fn dhcp() {
    need!("dhclient");
    let resolv_conf = "search example.test corp.test\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    unconfigured(&net, &["--dhcp-dns", "--dhcp-search", "--mtu", "9000"]);
    let told = dhclient(&net, "-4", "");
    has(
        &told,
        &[
            "reason=BOUND",
            "new_ip_address=198.51.100.2",
            "new_subnet_mask=255.255.255.0",
            "new_routers=198.51.100.1",
            "new_dhcp_server_identifier=198.51.100.1",
            "new_domain_name_servers=198.51.100.3",
            "new_interface_mtu=9000",
        ],
    );
    assert!(told.contains("example.test") && told.contains("corp.test"), "{told}");
    let listener = net.peer.listen((PEER[0], 7000));
    let _client = net.guest.connect((PEER[0], 7000)).unwrap();
    accept(&listener);
}

/// The client of small systems gets the same.
#[test]
fn dhcp_by_udhcpc() {
    need!("busybox");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["--dhcp-dns"]);
    let (script, told) = (net.path("script"), net.path("told"));
    std::fs::write(&script, format!("#!/bin/sh\nenv >{told}\n")).unwrap();
    net.guest
        .sh(&format!("chmod +x {script}; ip link set eth0 up; busybox udhcpc -f -q -n -i eth0 -s {script}"));
    let lease =
        ["ip=198.51.100.2", "mask=24", "router=198.51.100.1", "dns=198.51.100.3", "serverid=198.51.100.1"];
    has(&std::fs::read_to_string(told).unwrap(), &lease);
}

/// behaviour §2.2: `-a`, `-n`, `-g` and `-D` are what is offered, and in pasta names only if they are asked for.
#[test]
fn dhcp_by_options() {
    need!("dhclient");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["-a", "198.51.100.130", "-n", "255.255.255.128", "-g", "198.51.100.129"]);
    let told = dhclient(&net, "-4", "");
    has(
        &told,
        &["new_ip_address=198.51.100.130", "new_subnet_mask=255.255.255.128", "new_routers=198.51.100.129"],
    );
    assert!(!told.contains("domain"), "{told}");
}

/// behaviour §4.4: the host's address by DHCPv6, names with it.
#[test]
fn dhcpv6() {
    need!("dhclient");
    let resolv_conf = "search example.test\nnameserver 2001:db8:1::3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    unconfigured(&net, &["--dhcp-dns", "--dhcp-search"]);
    net.guest.sh("ip link set eth0 up");
    net.guest.link_local("eth0");
    let told = dhclient(&net, "-6", "-N");
    has(
        &told,
        &[
            "reason=BOUND6",
            "new_ip6_address=2001:db8:1::2",
            "new_dhcp6_name_servers=2001:db8:1::3",
            "new_dhcp6_domain_search=example.test.",
        ],
    );
}

/// Q5: information without an address.
#[test]
fn dhcpv6_stateless_q5() {
    need!("dhclient");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["--dhcp-dns"]);
    net.guest.sh("ip link set eth0 up");
    net.guest.link_local("eth0");
    let told = dhclient(&net, "-6", "-S");
    has(&told, &["new_dhcp6_name_servers=2001:db8:1::3"]);
    assert!(!told.contains("new_ip6_address"), "{told}");
}

/// behaviour §4.2: a guest's kernel configures itself from router advertisements, for ever, and is connected.
#[test]
fn slaac_r44() {
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["--mtu", "1400"]);
    net.guest.sh("ip link set eth0 up");
    let mut state = String::new();
    wait_until("address and route by router advertisement", || {
        state = net.guest.sh("ip -6 addr show dev eth0 scope global -tentative; ip -6 route show default");
        state.contains("2001:db8:1:") && state.contains("default")
    });
    assert!(state.contains("valid_lft forever preferred_lft forever"), "{state}");
    let router = format!("default via {} dev eth0 proto ra", net.host.link_local("eth0"));
    assert!(state.contains(&router), "no {router:?} in {state}");
    assert_eq!(net.guest.sh("cat /proc/sys/net/ipv6/conf/eth0/mtu").trim(), "1400");
    for (ns, to) in [(&net.peer, PEER[1]), (&net.far, FAR[1])] {
        let listener = ns.listen((to, 7000));
        let _client = net.guest.connect((to, 7000)).unwrap();
        accept(&listener);
    }
}

/// `--no-ndp`, `--no-ra`: nothing is advertised.
#[test]
fn no_ra() {
    for option in ["--no-ra", "--no-ndp"] {
        let Some(net) = Net::new() else { return };
        unconfigured(&net, &[option]);
        let advertisements = net.guest.sh("ip link set eth0 up; \
             for i in 1 2 3 4 5 6 7 8 9 10; do \
                 sent=$(sed -n 's/^Icmp6OutRouterSolicits *//p' /proc/net/snmp6); \
                 [ $sent -ge 2 ] && break; sleep 1; \
             done; \
             sed -n 's/^Icmp6InRouterAdvertisements *//p' /proc/net/snmp6");
        assert_eq!(advertisements.trim(), "0", "{option}");
    }
}

/// behaviour §4.1, §4.2: every neighbour is there, and it is us.
#[test]
fn neighbours() {
    let Some(net) = Net::new() else { return };
    net.pasta(&["-M", "02:00:5e:10:00:01"]);
    for to in GATEWAY.into_iter().chain(MAPPED) {
        let probe = net.guest.udp((any(to), 0));
        probe.send_to(b"hello", (to, 9)).unwrap();
        wait_until("the neighbour's address", || {
            let neighbour = net.guest.sh(&format!("ip neigh show {to} dev eth0"));
            neighbour.contains("lladdr 02:00:5e:10:00:01")
        });
    }
}

/// behaviour §4.1.2: a guest that probes for its own address (RFC 5227) before using it is not told that it's taken.
#[test]
fn own_address_is_not_claimed() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let raw = Raw::open(&net);
    raw.send(&raw.probe_frame("198.51.100.2".parse().unwrap()));
    raw.send(&raw.probe_frame("198.51.100.77".parse().unwrap()));
    let answered = raw.expect_arp_reply();
    assert_eq!(answered.to_string(), "198.51.100.77", "the first question has no answer");
}

/// behaviour §4.1.4: the host's neighbours are at their own hardware addresses in the guest, also when these change. What
/// stands for the host, and what nobody knows, is at ours.
#[test]
fn neighbours_keep_their_hardware_addresses() {
    let host_setup = "ip neigh add 198.51.100.200 lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n\
                      ip neigh add 2001:db8:1::200 lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n";
    let Some(net) = Net::with(Options { host_setup, ..Options::default() }) else { return };
    net.pasta(&[]);
    let ours = "9a:55:9a:55:9a:55";
    let seen = |address: IpAddr, mac: &str| {
        wait_until(&format!("{address} is at {mac}"), || {
            net.guest.udp((any(address), 0)).send_to(b"hello", (address, 9)).unwrap();
            net.guest.sh(&format!("ip neigh show {address}")).contains(&format!("lladdr {mac} "))
        });
    };
    for family in [0, 1] {
        seen(NOBODY[family], "02:00:00:00:00:01");
        seen(GATEWAY[family], ours);
        seen(MAPPED[family], ours);
        net.host.sh(&format!("ip neigh change {} lladdr 02:00:00:00:00:02 dev eth0", NOBODY[family]));
        seen(NOBODY[family], "02:00:00:00:00:02");
    }
}
