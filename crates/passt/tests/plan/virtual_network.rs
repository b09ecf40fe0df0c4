//! Tests of the plan of a virtual network (behaviour §13.1.2).

use passt::{
    config::{Config, MapHostLoopback, Mode},
    plan::{self, Plan},
};

use super::{Host, notes, p, texts};

fn try_plan(host: &Host, change: impl FnOnce(&mut Config)) -> Result<Plan, plan::Error> {
    let mut config = Config::new(Mode::Slirp4netns);
    (config.pasta.config_net, config.dhcp_dns) = (true, true);
    change(&mut config);
    config.v4.dns = vec![config.slirp4netns.dns()];
    config.v4.dns_forward = Some(config.slirp4netns.dns());
    plan::plan(&config, &host.0)
}

fn plan_of(host: &Host, change: impl FnOnce(&mut Config)) -> Plan {
    try_plan(host, change).expect("a plan")
}

#[test]
fn the_addresses_do_not_depend_on_the_host() {
    for host in [Host::usual(), Host::bare()] {
        let plan = plan_of(&host, |config| config.slirp4netns.network = p("10.9.0.0/16"));
        assert_eq!((&plan.template4, &plan.template6), (&None, &None));
        let v4 = plan.settings.v4.unwrap();
        let addresses =
            [v4.assigned, v4.our_address.unwrap(), v4.map_host_loopback.unwrap(), v4.dns_forward.unwrap()];
        assert_eq!(texts(&addresses), ["10.9.0.15", "10.9.0.2", "10.9.0.2", "10.9.0.3"]);
        assert_eq!((v4.prefix_len, texts(&v4.dns)), (16, vec!["10.9.0.3".to_owned()]));
        assert_eq!(
            texts(&plan.settings.virtual_hosts),
            ["10.9.0.2", "10.9.0.3", "fe80::2", "fd00::2", "fd00::3"]
        );
        let on = plan.namespace.unwrap().interface.unwrap();
        let (v4, v6) = (on.v4.unwrap(), on.v6.unwrap());
        assert_eq!(v4.addresses[0].local.to_string(), "10.9.0.100");
        assert_eq!(v4.addresses[0].broadcast, Some(p("10.9.255.255")));
        assert_eq!(v4.routes[0].next_hops[0].gateway, Some(p("10.9.0.2")));
        assert_eq!(v6.addresses[0].local.to_string(), "fd00::64");
        assert_eq!(v6.routes[0].next_hops[0].gateway, Some(p("fe80::2")));
    }
}

#[test]
fn the_hosts_loopback_can_be_disabled() {
    let plan = plan_of(&Host::usual(), |config| {
        config.v4.map_host_loopback = MapHostLoopback::None;
        config.v6.map_host_loopback = MapHostLoopback::None;
    });
    assert_eq!(plan.settings.v4.unwrap().map_host_loopback, None);
    assert_eq!(plan.settings.v6.unwrap().map_host_loopback, None);
}

/// Without `--configure`, the namespace is left alone, also its loopback interface.
#[test]
fn without_configure_nothing_is_set_up() {
    let plan = plan_of(&Host::usual(), |config| config.pasta.config_net = false);
    let namespace = plan.namespace.unwrap();
    assert!(namespace.interface.is_none() && !namespace.loopback);
}

#[test]
fn an_interface_stands_for_its_first_usable_address() {
    let host = Host::bare()
        .link(2, "eth0")
        .link(3, "eth1")
        .address(2, "192.0.2.2/24")
        .address(2, "192.0.2.3/24")
        .address(2, "fe80::2/64")
        .address(2, "2001:db8::2/64");
    let plan = plan_of(&host, |config| {
        config.v4.outbound_if = Some(p("eth0"));
        config.v6.outbound_if = Some(p("eth0"));
    });
    assert_eq!((plan.outbound4.address, plan.outbound4.interface), (Some(p("192.0.2.2")), None));
    assert_eq!((plan.outbound6.address, plan.outbound6.interface), (Some(p("2001:db8::2")), None));
    let error = try_plan(&host, |config| config.v4.outbound_if = Some(p("eth1"))).unwrap_err();
    assert!(error.to_string().contains("--outbound-addr"), "{error}");
    let error = try_plan(&host, |config| config.v6.outbound_if = Some(p("eth2"))).unwrap_err();
    assert!(error.to_string().contains("--outbound-addr6: invalid interface name eth2"), "{error}");
}

#[test]
fn a_host_without_ipv6_gets_a_warning() {
    let mut host = Host::usual();
    host.0.ipv6 = false;
    let plan = plan_of(&host, |_| ());
    assert!(
        plan.settings.v6.is_none()
            && plan.namespace.as_ref().unwrap().interface.as_ref().unwrap().v6.is_none()
    );
    assert!(notes(&plan).iter().any(|(_, text)| text.contains("--enable-ipv6")), "{:?}", notes(&plan));
}
