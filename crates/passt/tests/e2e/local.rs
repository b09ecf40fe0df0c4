//! Tests of the program's services on the tap device (behaviour §4), with real clients.

use crate::harness::*;
use std::net::IpAddr;

/// Starts a `pasta` without `--config-net`. Clients in the guest configure the interface, which is down at first
/// (behaviour §3.6).
pub(crate) fn unconfigured<'a>(net: &'a Net, options: &[&str]) -> Daemon<'a> {
    let pasta = net.attach(options);
    let link = net.guest.sh("ip -o link show eth0; ip -o addr show eth0");
    assert!(link.contains("state DOWN") && !link.contains("inet"), "{link}");
    pasta
}

/// Runs dhclient. Returns the variables that it passed to its script, as `name=value` lines.
pub(crate) fn dhclient(net: &Net, family: &str, mode: &str) -> String {
    let (script, variables) = (net.path("script"), net.path("variables"));
    let text = format!(
        "#!/bin/sh\n\
         case $reason in\n\
         PREINIT*) ip link set $interface up;;\n\
         BOUND) ip addr add $new_ip_address/$new_subnet_mask dev $interface\n\
                [ -z \"$new_routers\" ] || ip route add default via $new_routers;;\n\
         BOUND6) ip addr add $new_ip6_address/64 dev $interface nodad;;\n\
         esac\n\
         env | grep -E '^(reason|new_)' >{variables}\n"
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
    std::fs::read_to_string(variables).unwrap()
}

const DHCLIENT_CONF: &str = "
option classless-routes code 121 = array of unsigned integer 8;
also request domain-search, interface-mtu, classless-routes;
also request dhcp6.name-servers, dhcp6.domain-search;
send host-name \"guest\";
";

pub(crate) fn assert_has(variables: &str, lines: &[&str]) {
    for line in lines {
        assert!(variables.lines().any(|l| l == *line), "no {line:?} in:\n{variables}");
    }
}

/// behaviour §4.3: the client gets address, mask, gateway, MTU, resolvers and search list of the host. Then the guest
/// can connect.
#[test]
fn dhcp_configures_dhclient() {
    need!("dhclient");
    let resolv_conf = "search example.test corp.test\nnameserver 198.51.100.3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    unconfigured(&net, &["--dhcp-dns", "--dhcp-search", "--mtu", "9000"]);
    let variables = dhclient(&net, "-4", "");
    assert_has(
        &variables,
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
    assert!(variables.contains("example.test") && variables.contains("corp.test"), "{variables}");
    let listener = net.peer.listen((PEER[0], 7000));
    let _client = net.guest.connect((PEER[0], 7000)).unwrap();
    accept(&listener);
}

/// The DHCP client of BusyBox gets the same configuration.
#[test]
fn dhcp_configures_udhcpc() {
    need!("busybox");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["--dhcp-dns"]);
    let (script, variables) = (net.path("script"), net.path("variables"));
    std::fs::write(&script, format!("#!/bin/sh\nenv >{variables}\n")).unwrap();
    net.guest
        .sh(&format!("chmod +x {script}; ip link set eth0 up; busybox udhcpc -f -q -n -i eth0 -s {script}"));
    let lease =
        ["ip=198.51.100.2", "mask=24", "router=198.51.100.1", "dns=198.51.100.3", "serverid=198.51.100.1"];
    assert_has(&std::fs::read_to_string(variables).unwrap(), &lease);
}

/// behaviour §2.2: the offer has the values of `-a`, `-n` and `-g`. pasta advertises resolvers and search lists only if
/// an option requests this.
#[test]
fn dhcp_offers_the_addresses_of_the_options() {
    need!("dhclient");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["-a", "198.51.100.130", "-n", "255.255.255.128", "-g", "198.51.100.129"]);
    let variables = dhclient(&net, "-4", "");
    assert_has(
        &variables,
        &["new_ip_address=198.51.100.130", "new_subnet_mask=255.255.255.128", "new_routers=198.51.100.129"],
    );
    assert!(!variables.contains("domain"), "{variables}");
}

/// behaviour §4.4: the client gets address, resolvers and search list of the host.
#[test]
fn dhcpv6_configures_dhclient() {
    need!("dhclient");
    let resolv_conf = "search example.test\nnameserver 2001:db8:1::3\n";
    let Some(net) = Net::with(Options { resolv_conf, ..Options::default() }) else { return };
    unconfigured(&net, &["--dhcp-dns", "--dhcp-search"]);
    net.guest.sh("ip link set eth0 up");
    net.guest.link_local("eth0");
    let variables = dhclient(&net, "-6", "-N");
    assert_has(
        &variables,
        &[
            "reason=BOUND6",
            "new_ip6_address=2001:db8:1::2",
            "new_dhcp6_name_servers=2001:db8:1::3",
            "new_dhcp6_domain_search=example.test.",
        ],
    );
}

/// Q5: an Information-request gets options without an address.
#[test]
fn stateless_dhcpv6_is_answered_q5() {
    need!("dhclient");
    let Some(net) = Net::new() else { return };
    unconfigured(&net, &["--dhcp-dns"]);
    net.guest.sh("ip link set eth0 up");
    net.guest.link_local("eth0");
    let variables = dhclient(&net, "-6", "-S");
    assert_has(&variables, &["new_dhcp6_name_servers=2001:db8:1::3"]);
    assert!(!variables.contains("new_ip6_address"), "{variables}");
}

/// behaviour §4.2: the guest's kernel gets an address and a route. R-44: the lifetimes are infinite.
#[test]
fn router_advertisements_configure_the_kernel_r44() {
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

/// `--no-ndp` disables router advertisements, too.
#[test]
fn no_ra_disables_router_advertisements() {
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

/// behaviour §4.1, §4.2: the program answers ARP requests and neighbour solicitations for every address, with the MAC
/// address of `-M`.
#[test]
fn every_neighbour_is_at_our_mac_address() {
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

/// behaviour §4.1.2: a guest can probe for its own address (RFC 5227) before it uses it.
#[test]
fn the_guests_own_address_is_not_claimed() {
    need!("socat");
    let Some(net) = Net::new() else { return };
    net.pasta(&[]);
    let raw = Raw::open(&net);
    raw.send(&raw.probe_frame("198.51.100.2".parse().unwrap()));
    raw.send(&raw.probe_frame("198.51.100.77".parse().unwrap()));
    let answered = raw.expect_arp_reply();
    assert_eq!(answered.to_string(), "198.51.100.77", "the probe for the own address must have no answer");
}

/// behaviour §4.1.4: the guest sees the MAC addresses of the host's neighbours, even after they change. Addresses that
/// map to the host, and unknown addresses, are at the program's MAC address.
#[test]
fn neighbours_of_the_host_keep_their_mac_addresses() {
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
