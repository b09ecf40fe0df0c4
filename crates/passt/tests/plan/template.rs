//! Tests of the selection of the template interface and its gateway (behaviour §3.1, §3.3).

use engine::forward::Bypass;
use log::Level;
use passt::{
    host::LinkFlags,
    plan::{Error, Plan},
};

use super::{Host, notes, p, pasta, try_pasta};

fn names(plan: &Plan) -> [Option<&str>; 2] {
    [&plan.template4, &plan.template6].map(|template| template.as_ref().map(|template| &template.name[..]))
}

fn gateway4(plan: &Plan) -> Option<String> {
    plan.settings.v4.as_ref().unwrap().our_address.map(|address| address.to_string())
}

const LOCAL_V4: (Level, &str) = (Level::Info, "IPv4: no external interface as template, use local mode");
const LOCAL_V6: (Level, &str) = (Level::Info, "IPv6: no external interface as template, use local mode");

/// Two interfaces with addresses in both families and no routes.
fn two_interfaces() -> Host {
    Host::bare()
        .link(2, "eth0")
        .address(2, "198.51.100.2/24")
        .address(2, "2001:db8:1::2/64")
        .address(2, "fe80::2/64")
        .link(3, "eth1")
        .address(3, "203.0.113.2/24")
        .address(3, "2001:db8:2::2/64")
        .address(3, "fe80::3/64")
}

/// behaviour §3.1.2: further default routes cause a note.
#[test]
fn the_first_default_route_selects_the_template() {
    let host =
        two_interfaces().route("0.0.0.0/0", &[(3, "203.0.113.1")]).route("::/0", &[(2, "2001:db8:1::1")]);
    let plan = pasta(&host, |_| ());
    assert_eq!(names(&plan), [Some("eth1"), Some("eth0")], "each family selects its own");
    assert_eq!(notes(&plan), []);

    let plan = pasta(&host.route("0.0.0.0/0", &[(2, "198.51.100.1")]), |_| ());
    assert_eq!(names(&plan), [Some("eth1"), Some("eth0")]);
    assert_eq!(notes(&plan), [(Level::Info, "Multiple default IPv4 routes, picked first")]);
}

/// without a default route, the template is the first interface that has a route.
#[test]
fn without_a_default_route_the_first_route_selects_the_template_r19() {
    let host = two_interfaces().on_link("203.0.113.0/24", 3).on_link("2001:db8:2::/64", 3);
    let plan = pasta(&host, |_| ());
    assert_eq!(names(&plan), [Some("eth1"), Some("eth1")]);
    assert_eq!((gateway4(&plan), notes(&plan)), (None, vec![]));

    let plan = pasta(&host.on_link("198.51.100.0/24", 2), |_| ());
    assert_eq!(names(&plan)[0], Some("eth1"));
    assert_eq!(notes(&plan), [(Level::Info, "Multiple interfaces with IPv4 routes, picked first")]);
}

/// an interface with only link-local routes can't be the template.
#[test]
fn link_local_routes_are_skipped_r19() {
    let host =
        two_interfaces().on_link("169.254.0.0/16", 3).on_link("169.254.7.0/24", 3).on_link("fe80::/64", 3);
    assert_eq!(names(&pasta(&host, |_| ())), [None, None]);
    let host = host.on_link("198.51.100.0/24", 2).on_link("2001:db8:1::/64", 2);
    assert_eq!(names(&pasta(&host, |_| ())), [Some("eth0"), Some("eth0")]);
    let wider = two_interfaces().on_link("169.0.0.0/8", 3);
    assert_eq!(names(&pasta(&wider, |_| ()))[0], Some("eth1"), "a prefix wider than link-local counts");
}

/// lo may have routes to whole networks (any-IP).
#[test]
fn routes_on_lo_are_skipped_r18() {
    let host = two_interfaces()
        .on_link("10.0.0.0/8", 1)
        .on_link("2001:db8:77::/48", 1)
        .on_link("203.0.113.0/24", 3)
        .on_link("2001:db8:2::/64", 3);
    assert_eq!(names(&pasta(&host, |_| ())), [Some("eth1"), Some("eth1")]);
    let mut other = two_interfaces().link(7, "lo7").on_link("10.0.0.0/8", 7).on_link("203.0.113.0/24", 3);
    other.0.links.last_mut().unwrap().flags |= LinkFlags::Loopback;
    assert_eq!(names(&pasta(&other, |_| ()))[0], Some("eth1"));
}

#[test]
fn routes_of_interfaces_that_are_gone_are_skipped() {
    let host =
        two_interfaces().route("0.0.0.0/0", &[(9, "192.0.2.1")]).route("0.0.0.0/0", &[(3, "203.0.113.1")]);
    let plan = pasta(&host, |_| ());
    assert_eq!(names(&plan)[0], Some("eth1"));
    assert_eq!(gateway4(&plan).as_deref(), Some("203.0.113.1"));
}

/// the template is the interface of the first hop. The gateway is the one with the greatest weight on this
/// interface.
#[test]
fn the_gateway_of_a_multipath_route_has_the_greatest_weight_r20() {
    let hops = [(2, "198.51.100.1"), (2, "198.51.100.7"), (2, "198.51.100.8"), (3, "203.0.113.1")];
    let host = |weights: [u32; 4]| {
        two_interfaces().route("0.0.0.0/0", &hops).route_but(|route| {
            route.next_hops.iter_mut().zip(weights).for_each(|(hop, weight)| hop.weight = weight);
        })
    };
    for (weights, gateway) in [
        ([1, 1, 1, 1], "198.51.100.1"),
        ([1, 5, 5, 1], "198.51.100.7"),
        ([1, 5, 6, 1], "198.51.100.8"),
        ([1, 2, 1, 256], "198.51.100.7"),
    ] {
        let plan = pasta(&host(weights), |_| ());
        assert_eq!(names(&plan)[0], Some("eth0"));
        assert_eq!(gateway4(&plan).as_deref(), Some(gateway), "{weights:?}");
    }
}

/// behaviour §3.3: the gateway is that of the first default route that has one.
#[test]
fn a_later_default_route_can_name_the_gateway() {
    let host = two_interfaces().route("0.0.0.0/0", &[(2, "")]).route("0.0.0.0/0", &[(2, "198.51.100.1")]);
    assert_eq!(gateway4(&pasta(&host, |_| ())).as_deref(), Some("198.51.100.1"));
}

/// without a gateway, there is no DHCP server and no mapping of the host's loopback. An IPv6 gateway of an IPv4
/// route does not count, because it has no IPv4 address.
#[test]
fn without_a_gateway_the_host_is_not_mapped_r34() {
    for via in ["", "fe80::1"] {
        let plan = pasta(&two_interfaces().route("0.0.0.0/0", &[(2, via)]), |_| ());
        let v4 = plan.settings.v4.as_ref().unwrap();
        assert_eq!((v4.our_address, v4.map_host_loopback), (None, None));
        assert!(!plan.summary().iter().any(|line| line.starts_with("DHCP:") || line.contains("127.0.0.1")));
    }
}

/// A route that applies only to some sources is not a default route.
#[test]
fn source_specific_routes_are_no_default_routes() {
    let host = two_interfaces()
        .route("::/0", &[(3, "fe80::9")])
        .route_but(|route| route.source = Some(p("2001:db8:2::/64")))
        .route("::/0", &[(2, "fe80::8")]);
    assert_eq!(names(&pasta(&host, |_| ()))[1], Some("eth0"));
}

/// behaviour §3.1.1: `-i` applies to both families. In this case, `--outbound-if4` only binds sockets.
#[test]
fn the_interface_option_selects_the_template() {
    let host = Host::usual().link(3, "eth1").address(3, "203.0.113.2/24").address(3, "2001:db8:2::2/64");
    let host = host.address(3, "fe80::3/64");
    let plan = pasta(&host, |config| {
        config.interface = Some(p("eth1"));
        config.v4.outbound_if = Some(p("eth0"));
        config.v6.outbound_if = Some(p("eth0"));
    });
    assert_eq!(names(&plan), [Some("eth1"), Some("eth1")]);
    assert_eq!(gateway4(&plan), None);
    assert_eq!(plan.outbound4.interface.as_deref(), Some("eth0"));
    assert_eq!(
        plan.settings.v6.unwrap().outbound_scope,
        2,
        "the scope is the interface that sockets are bound to"
    );
}

/// behaviour §3.1.1: without `-i`, `--outbound-if4` and `--outbound-if6` name the templates of their families.
#[test]
fn the_outbound_interface_selects_the_template() {
    let host = Host::usual().link(3, "eth1").address(3, "203.0.113.2/24");
    let plan = pasta(&host, |config| config.v4.outbound_if = Some(p("eth1")));
    assert_eq!(names(&plan), [Some("eth1"), Some("eth0")]);
    assert_eq!(plan.outbound4.interface.as_deref(), Some("eth1"));
    assert_eq!(plan.outbound6.interface, None);
    assert_eq!(plan.settings.v6.unwrap().outbound_scope, 2);
}

/// behaviour §2.2, Q11: a name that no interface has is an error, even if the option has no effect.
#[test]
fn unknown_interfaces_are_errors() {
    let host = Host::usual();
    let error = |option, plan: Result<Plan, Error>| {
        let error = plan.unwrap_err();
        assert_eq!(error, Error::NoSuchInterface { option, name: "eth7".into() });
        assert_eq!(error.to_string(), format!("{option}: invalid interface name eth7: no such device"));
    };
    error("--interface", try_pasta(&host, |config| config.interface = Some(p("eth7"))));
    error("--outbound-if4", try_pasta(&host, |config| config.v4.outbound_if = Some(p("eth7"))));
    error(
        "--outbound-if6",
        try_pasta(&host, |config| {
            config.interface = Some(p("eth0"));
            config.v6.outbound_if = Some(p("eth7"));
        }),
    );
}

/// behaviour §2.2: an outbound interface without a usable address is an error, unless the address is given.
#[test]
fn an_outbound_interface_needs_a_usable_address() {
    let host = Host::usual().link(3, "eth1");
    let error = try_pasta(&host, |config| config.v4.outbound_if = Some(p("eth1"))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--outbound-if4: external interface not usable: eth1 has no usable IPv4 address"
    );
    let plan = pasta(&host, |config| {
        config.v4.outbound_if = Some(p("eth1"));
        config.v4.address = Some(p("203.0.113.9"));
    });
    assert_eq!(names(&plan)[0], Some("eth1"));
}

/// behaviour §3.1.3: if the template has no usable address, local mode is used.
#[test]
fn an_interface_without_addresses_gives_local_mode() {
    let plan = pasta(&Host::usual().link(3, "eth1"), |config| config.interface = Some(p("eth1")));
    assert_eq!(names(&plan), [None, None]);
    let warning = |name: &str| {
        format!(
            "--interface {name}: it has no address for the guest, which can reach only this host's loopback"
        )
    };
    assert_eq!(notes(&plan), [LOCAL_V4, LOCAL_V6, (Level::Warn, &warning("eth1"))]);
    let plan = pasta(&Host::usual(), |config| config.interface = Some(p("lo")));
    assert_eq!(names(&plan), [None, None]);
    assert_eq!(notes(&plan)[2], (Level::Warn, &warning("lo")[..]));
    let four = Host::usual().link(3, "eth1").address(3, "192.0.2.2/24");
    let plan = pasta(&four, |config| config.interface = Some(p("eth1")));
    assert_eq!(notes(&plan), [LOCAL_V6], "one family is enough");
}

/// behaviour §3.5: disabled families are not mentioned.
#[test]
fn a_host_without_interfaces_gives_local_mode() {
    let plan = pasta(&Host::bare(), |_| ());
    assert_eq!((names(&plan), notes(&plan)), ([None, None], vec![LOCAL_V4, LOCAL_V6]));
    let plan = pasta(&Host::bare(), |config| config.v6.enabled = false);
    assert_eq!(notes(&plan), [LOCAL_V4]);
    assert!(plan.settings.v4.is_some() && plan.settings.v6.is_none());
    let plan = pasta(&Host::bare(), |config| config.v4.enabled = false);
    assert_eq!(notes(&plan), [LOCAL_V6]);
    assert!(plan.settings.v4.is_none() && plan.settings.v6.is_some());
    let plan = pasta(&Host::usual(), |config| config.v4.enabled = false);
    assert_eq!((names(&plan), notes(&plan)), ([None, Some("eth0")], vec![]));
}

/// behaviour §3.1.4, R-32: a host without IPv6 disables the family silently. It is an error only with `-6`.
#[test]
fn a_host_without_ipv6_disables_it_silently_r32() {
    let host = Host::usual().without_ipv6();
    let plan = pasta(&host, |_| ());
    assert_eq!((names(&plan), notes(&plan)), ([Some("eth0"), None], vec![]));
    assert!(plan.settings.v6.is_none());
    assert!(plan.namespace.unwrap().interface.unwrap().v6.is_none());

    let plan = pasta(&Host::bare().without_ipv6(), |_| ());
    assert!(plan.settings.v6.is_none(), "not in local mode either");

    let error = try_pasta(&host, |config| config.v4.enabled = false).unwrap_err();
    assert_eq!(error, Error::NoIpv6);
}

/// behaviour §2.2: `--splice-only` needs no interface.
#[test]
fn splice_only_has_no_template() {
    let plan = pasta(&Host::usual(), |config| config.splice = Bypass::Only);
    assert_eq!((names(&plan), notes(&plan)), ([None, None], vec![]));
    assert!(plan.namespace.is_none() && !plan.settings.services.icmp);
}
