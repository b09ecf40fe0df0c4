//! Tests of the set-up of the guest's namespace (behaviour §3.6).

use engine::forward::Bypass;
use passt::{
    config::{Config, Mode},
    host::{Address, AddressFlags, AddressScope, Route, RouteProtocol},
    plan::{InterfacePlan, NamespaceFamily, NamespacePlan, TX_QUEUE_LEN, plan},
};
use wire::ethernet::Mac;

use super::{Host, p, pasta};

fn namespace(host: &Host, change: impl FnOnce(&mut Config)) -> NamespacePlan {
    pasta(host, change).namespace.expect("a namespace")
}

fn interface(host: &Host, change: impl FnOnce(&mut Config)) -> InterfacePlan {
    namespace(host, change).interface.expect("--config-net")
}

fn addresses(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(|address| format!("{}/{}", address.local, address.prefix_len)).collect()
}

/// Routes as `destination via gateway`.
fn routes(routes: &[Route]) -> Vec<String> {
    let via = |route: &Route| route.next_hops[0].gateway.map(|a| format!(" via {a}")).unwrap_or_default();
    routes.iter().map(|route| format!("{}{}", route.destination, via(route))).collect()
}

/// behaviour §3.6, §3.5: the name of the interface.
#[test]
fn the_interface_is_named_like_its_template() {
    let name = |host: &Host, change: fn(&mut Config)| namespace(host, change).ifname;
    assert_eq!(name(&Host::usual(), |_| ()), "eth0");
    assert_eq!(name(&Host::usual(), |config| config.pasta.ns_ifname = Some(p("guest0"))), "guest0");
    assert_eq!(name(&Host::bare(), |_| ()), "tap0");
    let six = Host::bare()
        .link(3, "eth6")
        .address(3, "2001:db8::2/64")
        .address(3, "fe80::2/64")
        .route("::/0", &[(3, "fe80::1")]);
    assert_eq!(name(&six, |_| ()), "eth6");
    let both = six.link(2, "eth4").address(2, "192.0.2.2/24").route("0.0.0.0/0", &[(2, "192.0.2.1")]);
    assert_eq!(name(&both, |_| ()), "eth4");
    let on_lo = Host::bare().address(1, "10.0.0.1/32");
    assert_eq!(
        name(&on_lo, |config| config.interface = Some(p("lo"))),
        "tap0",
        "the namespace has a lo already"
    );
}

#[test]
fn options_set_mac_mtu_and_queue_length() {
    let plan = namespace(&Host::usual(), |_| ());
    assert_eq!((plan.mac, plan.tx_queue_len), (None, TX_QUEUE_LEN));
    let mac = Some(Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(namespace(&Host::usual(), |config| config.pasta.ns_mac = mac).mac, mac);
    assert_eq!(interface(&Host::usual(), |_| ()).mtu, Some(65520));
    assert_eq!(interface(&Host::usual(), |config| config.mtu = Some(1500)).mtu, Some(1500));
    assert_eq!(interface(&Host::usual(), |config| config.mtu = Some(0)).mtu, None);
}

/// The kernel disables IPv6 on interfaces with an MTU below 1280.
#[test]
fn an_mtu_too_small_for_ipv6_disables_it() {
    let plan = interface(&Host::usual(), |config| config.mtu = Some(1000));
    assert!(plan.v4.is_some() && plan.v6.is_none());
    assert!(interface(&Host::usual(), |config| config.mtu = Some(0)).v6.is_some());
}

#[test]
fn options_disable_parts_of_the_set_up() {
    assert_eq!(namespace(&Host::usual(), |config| config.pasta.config_net = false).interface, None);
    assert!(pasta(&Host::usual(), |config| config.splice = Bypass::Only).namespace.is_none());
    assert!(plan(&Config::new(Mode::Passt), &Host::usual().0).unwrap().namespace.is_none());
    assert!(interface(&Host::usual(), |config| config.v6.enabled = false).v6.is_none());
    assert!(interface(&Host::usual(), |config| config.v4.enabled = false).v4.is_none());
}

/// behaviour §3.6: scope and flags determine which addresses are copied, and with which flags.
#[test]
fn addresses_are_copied_by_scope_and_flags() {
    let host = Host::usual()
        .address(2, "198.51.100.9/24")
        .flag(AddressFlags::Secondary)
        .address(2, "198.51.100.10/32")
        .address(2, "198.51.100.11/24")
        .flag(AddressFlags::Deprecated)
        .address(2, "169.254.9.9/16")
        .but(|address| address.scope = AddressScope::Link)
        .address(2, "198.51.100.12/24")
        .flag(AddressFlags::Noprefixroute)
        .address(2, "10.0.0.1/24")
        .but(|address| address.peer = Some(p("10.0.0.2")))
        .link(3, "eth1")
        .address(3, "203.0.113.2/24")
        .address(2, "2001:db8:1::3/64");
    let plan = interface(&host, |_| ());
    let v4 = plan.v4.unwrap().addresses;
    assert_eq!(
        addresses(&v4),
        ["198.51.100.2/24", "198.51.100.9/24", "198.51.100.10/32", "198.51.100.12/24", "10.0.0.1/24"]
    );
    assert_eq!(v4[1].flags, AddressFlags::empty());
    assert_eq!(v4[3].flags, AddressFlags::Noprefixroute);
    assert_eq!(v4[4].peer, Some(p("10.0.0.2")));
    let v6 = plan.v6.unwrap().addresses;
    assert_eq!(
        addresses(&v6),
        ["2001:db8:1::3/64", "2001:db8:1::2/64"],
        "the kernel lists the last one first"
    );
    assert!(v6.iter().all(|address| address.flags == AddressFlags::Nodad), "R-30");
}

/// behaviour §3.6: with `-a` or `--no-copy-addrs`, the guest has a single address.
#[test]
fn options_reduce_the_addresses_to_one() {
    let host = Host::usual().address(2, "198.51.100.9/24").address(2, "2001:db8:1::3/64");
    let plan = interface(&host, |config| {
        config.v4.address = Some(p("172.20.0.9"));
        config.v6.address = Some(p("2001:db8:7::9"));
        config.v6.prefix_len = Some(48);
    });
    assert_eq!(addresses(&plan.v4.unwrap().addresses), ["172.20.0.9/16"]);
    assert_eq!(addresses(&plan.v6.unwrap().addresses), ["2001:db8:7::9/64"], "always /64");
    let plan = interface(&host, |config| {
        config.v4.copy_addrs = false;
        config.v6.copy_addrs = false;
    });
    assert_eq!(addresses(&plan.v4.unwrap().addresses), ["198.51.100.2/24"]);
    assert_eq!(addresses(&plan.v6.unwrap().addresses), ["2001:db8:1::2/64"]);
    let plan = interface(&host, |config| config.v6.address = Some(p("fe80::7")));
    let v6 = plan.v6.unwrap().addresses;
    assert_eq!((addresses(&v6), v6[0].scope), (vec!["fe80::7/64".into()], AddressScope::Link));
}

/// An address that the rules would skip is copied if the interface has no other address.
#[test]
fn a_link_scope_address_is_copied_if_it_is_the_only_one() {
    let host = Host::bare()
        .link(2, "eth0")
        .address(2, "169.254.9.9/16")
        .but(|address| address.scope = AddressScope::Link)
        .route("0.0.0.0/0", &[(2, "")]);
    assert_eq!(addresses(&interface(&host, |_| ()).v4.unwrap().addresses), ["169.254.9.9/16"]);
}

/// behaviour §3.6, R-26: routes are copied, except those that the kernel itself makes for the addresses.
#[test]
fn routes_of_the_template_are_copied_r26() {
    let host = Host::usual()
        .route("10.0.0.0/8", &[(2, "198.51.100.5")])
        .route("10.1.0.0/16", &[(3, "203.0.113.5")])
        .route("10.2.0.0/16", &[(2, "198.51.100.5"), (3, "203.0.113.5")])
        .route("10.3.0.0/16", &[(2, "198.51.100.5"), (2, "198.51.100.6")])
        .route("10.4.0.0/16", &[(2, "198.51.100.5")])
        .route_but(|route| route.encapsulates = true)
        .route("2001:db8:9::/48", &[(2, "fe80::9")])
        .on_link("192.0.2.0/24", 2)
        .link(3, "eth1");
    let plan = interface(&host, |_| ());
    let (v4, v6) = (plan.v4.unwrap(), plan.v6.unwrap());
    assert!(v4.copied && v6.copied);
    assert_eq!(
        routes(&v4.routes),
        [
            "0.0.0.0/0 via 198.51.100.1",
            "10.0.0.0/8 via 198.51.100.5",
            "10.3.0.0/16 via 198.51.100.5",
            "192.0.2.0/24"
        ]
    );
    assert_eq!(v4.routes[2].next_hops.len(), 2);
    assert_eq!(routes(&v6.routes), ["::/0 via 2001:db8:1::1", "2001:db8:9::/48 via fe80::9"]);
}

/// behaviour §3.6: a copied route keeps its preferred source if the guest has that address.
#[test]
fn preferred_sources_are_kept_if_the_guest_has_them() {
    let host = Host::usual()
        .address(2, "203.0.113.9/24")
        .address(2, "2001:db8:1::9/64")
        .route("10.0.0.0/8", &[(2, "198.51.100.5")])
        .route_but(|route| route.preferred_source = Some(p("203.0.113.9")))
        .route("2001:db8:9::/48", &[(2, "fe80::9")])
        .route_but(|route| route.preferred_source = Some(p("2001:db8:1::9")));
    let sources = |plan: InterfacePlan| {
        let of = |family: Option<NamespaceFamily>| family.unwrap().routes.pop().unwrap();
        [of(plan.v4).preferred_source, of(plan.v6).preferred_source]
    };
    let copied = sources(interface(&host, |_| ()));
    assert_eq!(copied, [Some(p("203.0.113.9")), Some(p("2001:db8:1::9"))]);
    let other = sources(interface(&host, |config| {
        config.v4.address = Some(p("172.20.0.9"));
        config.v6.copy_addrs = false;
    }));
    assert_eq!(other, [None, None]);
}

/// behaviour §3.6: a connected route is copied if and only if the kernel does not make it for an address.
#[test]
fn connected_routes_are_copied_once() {
    let connected = |host: Host| {
        let plan = interface(&host, |_| ());
        let mut all = routes(&plan.v4.unwrap().routes);
        all.extend(routes(&plan.v6.unwrap().routes));
        all.retain(|route| !route.contains("via"));
        all
    };
    let base = || Host::usual();
    assert_eq!(connected(base()), [""; 0]);
    // Network managers add addresses without routes, and routes with a metric.
    let managed = base().address(2, "203.0.113.2/24").flag(AddressFlags::Noprefixroute);
    assert_eq!(connected(managed.on_link("203.0.113.0/24", 2)), ["203.0.113.0/24"]);
    let metric = base().address(2, "203.0.113.2/24").on_link("203.0.113.0/24", 2);
    assert_eq!(connected(metric.clone().route_but(|route| route.priority = Some(100))), ["203.0.113.0/24"]);
    let same = |route: &mut Route| route.priority = Some(100);
    assert_eq!(connected(metric.but(|address| address.route_priority = Some(100)).route_but(same)), [""; 0]);
    let peer = base().address(2, "10.0.0.1/32").but(|address| address.peer = Some(p("10.0.0.2")));
    assert_eq!(connected(peer.on_link("10.0.0.2/32", 2)), [""; 0]);
    let by_ra = base().on_link("2001:db8:2::/64", 2).route_but(|route| route.protocol = RouteProtocol::Ra);
    assert_eq!(connected(by_ra), ["2001:db8:2::/64"]);
}

/// If the guest's address differs from the host's, the kernel does not make the route to the host's network.
#[test]
fn the_hosts_network_is_reachable_from_another_address() {
    let plan = interface(&Host::usual(), |config| config.v4.address = Some(p("172.20.0.9")));
    assert_eq!(routes(&plan.v4.unwrap().routes), ["0.0.0.0/0 via 198.51.100.1", "198.51.100.0/24"]);
}

/// behaviour §3.6: with `-g` or `--no-copy-routes`, the guest has only a default route.
#[test]
fn options_reduce_the_routes_to_a_default_route() {
    let host = Host::usual().route("10.0.0.0/8", &[(2, "198.51.100.5")]);
    let plan = interface(&host, |config| config.v4.gateway = Some(p("198.51.100.77")));
    let v4 = plan.v4.unwrap();
    assert_eq!((routes(&v4.routes), v4.copied), (vec!["0.0.0.0/0 via 198.51.100.77".into()], false));
    assert_eq!(v4.routes[0].protocol, RouteProtocol::Boot);
    assert!(!v4.routes[0].next_hops[0].onlink, "the kernel must be able to refuse a wrong gateway");
    assert!(plan.v6.unwrap().copied, "R-31");

    let plan = interface(&host, |config| config.v6.copy_routes = false);
    let v6 = plan.v6.unwrap();
    assert_eq!((routes(&v6.routes), v6.copied), (vec!["::/0 via 2001:db8:1::1".into()], false));

    let none = Host::bare().link(2, "eth0").address(2, "198.51.100.2/24").on_link("198.51.100.0/24", 2);
    let plan = interface(&none, |config| config.v4.copy_routes = false);
    assert_eq!(routes(&plan.v4.unwrap().routes), [""; 0]);
}

/// behaviour §3.5: in local mode, the default route leads to the program.
#[test]
fn local_mode_has_a_default_route_to_us() {
    let plan = interface(&Host::bare(), |_| ());
    let (v4, v6) = (plan.v4.unwrap(), plan.v6.unwrap());
    assert_eq!(addresses(&v4.addresses), ["169.254.2.1/16"]);
    assert_eq!(routes(&v4.routes), ["0.0.0.0/0 via 169.254.2.2"]);
    assert!(!v4.copied && !v4.routes[0].next_hops[0].onlink);
    assert_eq!(addresses(&v6.addresses), [""; 0]);
    assert_eq!(routes(&v6.routes), ["::/0 via fe80::1"]);

    let plan = interface(&Host::bare(), |config| config.v4.address = Some(p("10.0.0.7")));
    let v4 = plan.v4.unwrap();
    assert_eq!(addresses(&v4.addresses), ["10.0.0.7/8"]);
    assert!(v4.routes[0].next_hops[0].onlink, "our address is on the link, whatever the guest's is");
}
