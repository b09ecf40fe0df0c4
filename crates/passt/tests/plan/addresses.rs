//! Tests of addresses, prefix lengths, mappings of the host, local mode and the MTU (behaviour §3.2, §3.3, §3.5).

use engine::addr::{V4, V6};
use log::Level;
use passt::{
    config::{Config, MapHostLoopback},
    host::{AddressFlags, AddressScope},
};

use super::{Host, notes, p, pasta, try_pasta};

fn v4(host: &Host, change: impl FnOnce(&mut Config)) -> V4 {
    pasta(host, change).settings.v4.expect("IPv4")
}

fn v6(host: &Host, change: impl FnOnce(&mut Config)) -> V6 {
    pasta(host, change).settings.v6.expect("IPv6")
}

/// A host with a default route, without addresses.
fn no_addresses() -> Host {
    Host::bare().link(2, "eth0").route("0.0.0.0/0", &[(2, "198.51.100.1")]).route("::/0", &[(2, "fe80::1")])
}

#[track_caller]
fn assert_guest_gets4(host: Host, expected: &str) {
    let v4 = v4(&host, |_| ());
    assert_eq!(format!("{}/{}", v4.assigned, v4.prefix_len), expected);
}

#[track_caller]
fn assert_guest_gets6(host: Host, expected: &str) {
    let assigned = v6(&host, |_| ()).assigned;
    assert_eq!(assigned.map(|address| address.to_string()).as_deref(), Some(expected));
}

/// behaviour §3.2, Q12: how the plan selects the guest's address among several.
#[test]
fn the_best_address_is_the_guests() {
    let host = no_addresses;
    assert_guest_gets4(host().address(2, "198.51.100.2/24"), "198.51.100.2/24");
    assert_guest_gets4(
        host().address(2, "198.51.100.2/24").address(2, "198.51.100.99/32"),
        "198.51.100.2/24",
    );
    assert_guest_gets4(
        host().address(2, "198.51.100.99/32").address(2, "198.51.100.2/24"),
        "198.51.100.2/24",
    );
    assert_guest_gets4(host().address(2, "198.51.100.99/32"), "198.51.100.99/32");
    let secondary = AddressFlags::Secondary;
    assert_guest_gets4(
        host().address(2, "198.51.100.9/24").flag(secondary).address(2, "198.51.100.2/24"),
        "198.51.100.2/24",
    );
    assert_guest_gets4(host().address(2, "10.0.0.2/28").address(2, "198.51.100.2/24"), "198.51.100.2/24");
    assert_guest_gets4(
        host().address(2, "169.254.9.9/16").but(|a| a.scope = AddressScope::Link),
        "169.254.9.9/16",
    );
    assert_guest_gets4(
        host().address(2, "169.254.9.9/16").but(|a| a.scope = AddressScope::Link).address(2, "10.0.0.2/8"),
        "10.0.0.2/8",
    );
    assert_guest_gets4(
        host().link(3, "eth1").address(3, "198.51.100.3/24").address(2, "198.51.100.2/24"),
        "198.51.100.2/24",
    );
}

/// The preferred source of the host's default route is the guest's address.
#[test]
fn the_preferred_source_of_the_default_route_wins() {
    let host = Host::bare()
        .link(2, "eth0")
        .route("0.0.0.0/0", &[(2, "198.51.100.1")])
        .route_but(|route| route.preferred_source = Some(p("203.0.113.7")))
        .address(2, "198.51.100.2/24")
        .address(2, "203.0.113.7/32");
    assert_guest_gets4(host, "203.0.113.7/32");
}

/// the address with the longest prefix, if all other rules are equal.
#[test]
fn the_longest_prefix_wins_r22() {
    assert_guest_gets4(
        no_addresses().address(2, "198.51.100.2/16").address(2, "198.51.100.3/24"),
        "198.51.100.3/24",
    );
    assert_guest_gets4(
        no_addresses().address(2, "198.51.100.2/24").address(2, "198.51.100.3/24"),
        "198.51.100.2/24",
    );
}

/// behaviour §3.2: the plan ignores deprecated addresses.
#[test]
fn deprecated_addresses_are_ignored() {
    let deprecated = AddressFlags::Deprecated;
    assert_guest_gets4(
        no_addresses().address(2, "198.51.100.2/24").flag(deprecated).address(2, "10.0.0.2/8"),
        "10.0.0.2/8",
    );
    let only = no_addresses().address(2, "198.51.100.2/24").flag(deprecated);
    assert_eq!(pasta(&only, |_| ()).template4, None);
}

/// the peer's address is not used.
#[test]
fn the_local_address_of_a_point_to_point_link_is_used_r21() {
    let host = no_addresses().address(2, "10.0.0.1/32").but(|a| a.peer = Some(p("10.0.0.2")));
    assert_guest_gets4(host, "10.0.0.1/32");
}

/// a template interface may have no MAC address.
#[test]
fn a_template_needs_no_mac_address_r33() {
    let mut host = no_addresses().address(2, "10.0.0.1/24");
    host.0.links.iter_mut().for_each(|link| link.mac = None);
    assert_guest_gets4(host, "10.0.0.1/24");
}

/// behaviour §3.2, R-23: the guest's IPv6 address has a wider scope than link-local.
#[test]
fn the_best_global_ipv6_address_is_the_guests_r23() {
    let host = || no_addresses().address(2, "fe80::2/64");
    assert_guest_gets6(host().address(2, "2001:db8::2/64"), "2001:db8::2");
    assert_guest_gets6(host().address(2, "fec0::2/64").but(|a| a.scope = AddressScope::Site), "fec0::2");
    assert_guest_gets6(host().address(2, "fd00::2/64").address(2, "2001:db8::2/64"), "2001:db8::2");
    assert_guest_gets6(host().address(2, "fd00::2/64"), "fd00::2");
    assert_guest_gets6(host().address(2, "2001:db8::99/128").address(2, "2001:db8::2/64"), "2001:db8::2");
    assert_guest_gets6(host().address(2, "2001:db8::99/128"), "2001:db8::99");
    let temporary = AddressFlags::Secondary;
    assert_guest_gets6(
        host().address(2, "2001:db8::f00/64").flag(temporary).address(2, "2001:db8::2/64"),
        "2001:db8::2",
    );
    let failed = AddressFlags::Dadfailed;
    assert_guest_gets6(
        host().address(2, "2001:db8::f00/64").flag(failed).address(2, "2001:db8::2/64"),
        "2001:db8::2",
    );
}

/// behaviour §3.2: the link-local address may be the interface's own address or the gateway's.
#[test]
fn an_ipv6_template_needs_global_and_link_local_addresses() {
    let template = |host: &Host| pasta(host, |_| ()).template6.is_some();
    assert!(!template(&no_addresses().address(2, "fe80::2/64")), "only a link-local address");
    assert!(template(&no_addresses().address(2, "2001:db8::2/64")), "the gateway's link-local address");
    let global_gateway = Host::bare().link(2, "eth0").route("::/0", &[(2, "2001:db8::1")]);
    assert!(!template(&global_gateway.clone().address(2, "2001:db8::2/64")));
    assert!(template(&global_gateway.address(2, "2001:db8::2/64").address(2, "fe80::2/64")));
}

/// behaviour §3.2: the program's link-local address is the gateway's or the host's.
#[test]
fn our_link_local_address_is_the_gateways_or_the_hosts() {
    let ours = |host: &Host, change: fn(&mut Config)| v6(host, change).our_link_local.to_string();
    assert_eq!(ours(&Host::usual(), |_| ()), "fe80::2", "the host's, because the gateway has none");
    let host = no_addresses().address(2, "2001:db8::2/64").address(2, "fe80::2/64");
    assert_eq!(ours(&host, |_| ()), "fe80::1", "the gateway's");
    assert_eq!(ours(&host, |config| config.v6.gateway = Some(p("fe80::77"))), "fe80::77");
    assert_eq!(ours(&host, |config| config.v6.gateway = Some(p("2001:db8::77"))), "fe80::2");
    assert_eq!(ours(&Host::bare(), |_| ()), "fe80::1", "local mode");
}

/// behaviour §2.2, §3.2: the guest's prefix length depends on its address and the options.
#[test]
fn the_prefix_length_follows_the_address() {
    let host = Host::usual().address(2, "198.51.100.130/26");
    let length = |change: fn(&mut Config)| v4(&host, change).prefix_len;
    assert_eq!(length(|config| config.v4.prefix_len = Some(9)), 9);
    assert_eq!(length(|config| config.v4.address = Some(p("172.20.0.9"))), 16, "class B");
    assert_eq!(length(|config| config.v4.address = Some(p("10.20.0.9"))), 8);
    assert_eq!(length(|config| config.v4.address = Some(p("192.0.2.9"))), 24);
    assert_eq!(length(|config| config.v4.address = Some(p("250.0.2.9"))), 32);
    assert_eq!(length(|config| config.v4.address = Some(p("198.51.100.130"))), 26, "the host's own");
    let given = |config: &mut Config| {
        config.v4.address = Some(p("172.20.0.9"));
        config.v4.prefix_len = Some(30);
    };
    assert_eq!(length(given), 30);
}

/// behaviour §5.1, §5.2: the addresses that map to the host.
#[test]
fn the_gateway_maps_to_the_host_by_default() {
    let host = Host::usual();
    let plan = v4(&host, |_| ());
    assert_eq!(
        (plan.our_address, plan.map_host_loopback),
        (Some(p("198.51.100.1")), Some(p("198.51.100.1")))
    );
    assert_eq!((plan.map_guest_address, plan.pinned), (None, false));
    assert_eq!(v6(&host, |_| ()).map_host_loopback, Some(p("2001:db8:1::1")));

    let plan = v4(&host, |config| config.v4.map_host_loopback = MapHostLoopback::None);
    assert_eq!((plan.our_address, plan.map_host_loopback), (Some(p("198.51.100.1")), None));
    let plan = v4(&host, |config| config.v4.map_host_loopback = MapHostLoopback::Addr(p("10.0.2.2")));
    assert_eq!(plan.map_host_loopback, Some(p("10.0.2.2")));
    let plan = v4(&host, |config| config.v4.gateway = Some(p("198.51.100.77")));
    assert_eq!(
        (plan.our_address, plan.map_host_loopback),
        (Some(p("198.51.100.77")), Some(p("198.51.100.77")))
    );

    let plan = v6(&host, |config| {
        config.v6.map_guest_addr = Some(p("2001:db8::5"));
        config.v6.address = Some(p("2001:db8:1::77"));
    });
    assert_eq!((plan.map_guest_address, plan.pinned), (Some(p("2001:db8::5")), true));
    assert_eq!(plan.assigned, Some(p("2001:db8:1::77")));
}

/// behaviour §3.5: the addresses of local mode are fixed.
#[test]
fn local_mode_has_fixed_addresses() {
    let plan = v4(&Host::bare(), |_| ());
    assert_eq!((plan.assigned, plan.prefix_len), (p("169.254.2.1"), 16));
    assert_eq!((plan.our_address, plan.map_host_loopback), (Some(p("169.254.2.2")), Some(p("169.254.2.2"))));
    let plan = v6(&Host::bare(), |_| ());
    assert_eq!((plan.assigned, plan.our_link_local), (None, p("fe80::1")));
    assert_eq!((plan.map_host_loopback, plan.outbound_scope), (Some(p("fe80::1")), 0));
}

/// options of one family do not change the other.
#[test]
fn families_are_independent_r31() {
    let plan = pasta(&Host::usual(), |config| {
        config.v4.address = Some(p("10.0.0.7"));
        config.v4.gateway = Some(p("10.0.0.1"));
    });
    let v6 = plan.settings.v6.unwrap();
    assert_eq!((v6.assigned, v6.pinned), (Some(p("2001:db8:1::2")), false));
    let family = plan.namespace.unwrap().interface.unwrap().v6.unwrap();
    assert!(family.copied);
}

/// behaviour §2.2, Q18: an MTU below the minimum of a family causes a warning, but 0 does not.
#[test]
fn an_mtu_that_the_kernel_refuses_is_an_error_of_the_option() {
    let refused = |config_net, mtu| {
        let outcome = try_pasta(&Host::usual(), |config| {
            (config.mtu, config.pasta.config_net) = (Some(mtu), config_net);
        });
        outcome.err().map(|error| error.to_string())
    };
    let error = refused(true, 67).unwrap();
    assert!(error.starts_with("--mtu 67: ") && error.contains("at least 68"), "{error}");
    assert_eq!(refused(true, 68), None);
    assert_eq!(refused(true, 0), None);
    assert_eq!(refused(false, 67), None, "not set, only advertised");
}

#[test]
fn an_mtu_below_the_minimum_is_reported() {
    let mtu = |mtu, change: fn(&mut Config)| {
        pasta(&Host::usual(), |config| {
            config.mtu = mtu;
            change(config);
        })
    };
    let plan = mtu(None, |_| ());
    assert_eq!((plan.settings.mtu, notes(&plan)), (65520, vec![]));
    let plan = mtu(Some(0), |_| ());
    assert_eq!((plan.settings.mtu, notes(&plan)), (0, vec![]));
    let plan = mtu(Some(1279), |_| ());
    assert_eq!(notes(&plan), [(Level::Warn, "--mtu 1279 is too small for IPv6, which needs 1280")]);
    assert_eq!(notes(&mtu(Some(1279), |config| config.v6.enabled = false)), []);
    assert_eq!(notes(&mtu(Some(1280), |_| ())), []);
    let plan = mtu(Some(67), |config| (config.v6.enabled, config.pasta.config_net) = (false, false));
    assert_eq!(notes(&plan), [(Level::Warn, "--mtu 67 is too small for IPv4, which needs 68")]);
}
