//! Tests of resolvers and search lists (behaviour §3.4).

use log::Level;
use passt::config::{Config, MapHostLoopback, Mode, Search};
use passt::plan::set_resolvers;

use super::{Host, notes, p, passt, pasta, texts};

/// The advertised servers, the address for which queries are forwarded, and the servers to which they are forwarded.
type Chosen = (Vec<String>, Option<String>, Vec<String>);

fn v4(host: &Host, change: impl FnOnce(&mut Config)) -> Chosen {
    let v4 = passt(host, change).settings.v4.unwrap();
    (texts(&v4.dns), v4.dns_forward.map(|a| a.to_string()), texts(&v4.dns_servers))
}

fn v6(host: &Host, change: impl FnOnce(&mut Config)) -> Chosen {
    let v6 = passt(host, change).settings.v6.unwrap();
    (texts(&v6.dns), v6.dns_forward.map(|a| a.to_string()), texts(&v6.dns_servers))
}

/// The expected result. Blanks separate the addresses in `servers`.
fn expected(dns: &[&str], dns_forward: &str, servers: &str) -> Chosen {
    let dns_forward = Some(dns_forward.to_owned()).filter(|text| !text.is_empty());
    let servers = servers.split_whitespace().map(str::to_owned).collect();
    (dns.iter().map(|&a| a.to_owned()).collect(), dns_forward, servers)
}

fn no_mapping(config: &mut Config) {
    config.v4.map_host_loopback = MapHostLoopback::None;
    config.v6.map_host_loopback = MapHostLoopback::None;
}

#[test]
fn external_servers_are_advertised_unchanged() {
    let host =
        Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver 192.0.2.54");
    // Queries are forwarded to all servers, in the order of the file.
    let all = "192.0.2.53 2001:db8::53 192.0.2.54";
    assert_eq!(v4(&host, |_| ()), expected(&["192.0.2.53", "192.0.2.54"], "", all));
    assert_eq!(v6(&host, |_| ()), expected(&["2001:db8::53"], "", all));
    let forward = |config: &mut Config| config.v4.dns_forward = Some(p("169.254.1.1"));
    assert_eq!(v4(&host, forward), expected(&["192.0.2.53", "192.0.2.54"], "169.254.1.1", all));
}

/// behaviour §1.5.11: a command asks one address of each family. It is never a loopback address.
#[test]
fn a_command_has_an_address_for_its_questions() {
    let asked = |host: &Host, change: fn(&mut Config)| texts(&pasta(host, change).resolvers_of_command());
    let host = Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 192.0.2.54");
    assert_eq!(asked(&host, |_| ()), ["192.0.2.53", "2001:db8:1::1"]);
    assert_eq!(asked(&host, |config| config.v4.dns_forward = Some(p("169.254.1.1")))[0], "169.254.1.1");
    assert_eq!(asked(&host, |config| config.dns_none = true), ["198.51.100.1", "2001:db8:1::1"]);
    assert_eq!(asked(&host, |config| config.v6.enabled = false), ["192.0.2.53"]);
    let loopback = Host::usual().resolv_conf("nameserver 127.0.0.53\nnameserver ::1");
    assert_eq!(asked(&loopback, |_| ()), ["198.51.100.1", "2001:db8:1::1"]);
    assert_eq!(asked(&loopback, no_mapping), ["198.51.100.1", "2001:db8:1::1"]);
    // Without a gateway, or with one of link-local scope, any address will do.
    let no_gateway = |config: &mut Config| {
        config.v4.gateway = None;
        config.v6.gateway = Some(p("fe80::1"));
    };
    assert_eq!(asked(&loopback, no_gateway)[1], "2001:db8::53");
}

/// behaviour §3.4.5: there are four cases with a resolver on the host's loopback. R-35 is the last case.
#[test]
fn a_loopback_resolver_is_reached_by_a_mapped_address_r35() {
    let host = Host::usual().resolv_conf("nameserver 127.0.0.53\nnameserver ::1");
    assert_eq!(v4(&host, |_| ()), expected(&["198.51.100.1"], "198.51.100.1", "127.0.0.53 ::1"));
    assert_eq!(v6(&host, |_| ()), expected(&["2001:db8:1::1"], "2001:db8:1::1", "127.0.0.53 ::1"));

    assert_eq!(v4(&host, no_mapping), expected(&[], "", "127.0.0.53 ::1"));
    assert_eq!(v6(&host, no_mapping), expected(&[], "", "127.0.0.53 ::1"));

    let forward = |config: &mut Config| {
        config.v4.dns_forward = Some(p("169.254.1.1"));
        config.v6.dns_forward = Some(p("fd00::1"));
    };
    assert_eq!(v4(&host, forward), expected(&["169.254.1.1"], "169.254.1.1", "127.0.0.53 ::1"));
    assert_eq!(v6(&host, forward), expected(&["fd00::1"], "fd00::1", "127.0.0.53 ::1"));

    let podman = |config: &mut Config| {
        forward(config);
        no_mapping(config);
    };
    assert_eq!(v4(&host, podman), expected(&["169.254.1.1"], "169.254.1.1", "127.0.0.53 ::1"));
    assert_eq!(v6(&host, podman), expected(&["fd00::1"], "fd00::1", "127.0.0.53 ::1"));
}

/// queries to a gateway that is the resolver must not go to the host's loopback.
#[test]
fn a_gateway_that_is_the_resolver_is_asked_itself_r36() {
    let host = Host::usual().resolv_conf("nameserver 198.51.100.1\nnameserver 2001:db8:1::1");
    const ALL: &str = "198.51.100.1 2001:db8:1::1";
    assert_eq!(v4(&host, |_| ()), expected(&["198.51.100.1"], "198.51.100.1", ALL));
    assert_eq!(v6(&host, |_| ()), expected(&["2001:db8:1::1"], "2001:db8:1::1", ALL));
    assert_eq!(v4(&host, no_mapping), expected(&["198.51.100.1"], "", ALL));
    let forward = |config: &mut Config| config.v4.dns_forward = Some(p("169.254.1.1"));
    assert_eq!(v4(&host, forward), expected(&["169.254.1.1"], "169.254.1.1", ALL));
    let mapped = |config: &mut Config| config.v4.map_host_loopback = MapHostLoopback::Addr(p("10.0.2.2"));
    assert_eq!(v4(&host, mapped), expected(&["198.51.100.1"], "", ALL));
}

/// The guest can't reach a resolver at the address that it shares with the host.
#[test]
fn a_resolver_at_the_hosts_own_address_is_mapped() {
    let host = Host::usual().resolv_conf("nameserver 198.51.100.2");
    assert_eq!(v4(&host, |_| ()), expected(&["198.51.100.1"], "198.51.100.1", "198.51.100.2"));
    let other = |config: &mut Config| config.v4.address = Some(p("10.0.0.7"));
    assert_eq!(v4(&host, other), expected(&["198.51.100.2"], "", "198.51.100.2"));
}

/// Q23: each address is advertised once.
#[test]
fn duplicate_servers_are_advertised_once() {
    let host = Host::usual().resolv_conf(
        "nameserver 127.0.0.53\nnameserver 198.51.100.1\nnameserver 127.0.0.1\nnameserver 192.0.2.1\nnameserver 192.0.2.1",
    );
    assert_eq!(
        v4(&host, |_| ()),
        expected(
            &["198.51.100.1", "192.0.2.1"],
            "198.51.100.1",
            "127.0.0.53 198.51.100.1 127.0.0.1 192.0.2.1"
        )
    );
}

/// behaviour §3.4.3: at most three servers are advertised.
#[test]
fn at_most_three_servers_are_advertised() {
    let text: String =
        (1..=9).map(|n| format!("nameserver 192.0.2.{n}\nnameserver 2001:db8::{n}\n")).collect();
    let host = Host::usual().resolv_conf(&text);
    assert_eq!(v4(&host, |_| ()).0, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    assert_eq!(v6(&host, |_| ()).0, ["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
}

/// behaviour §3.4.1, §3.4.6: the servers of `--dns` are advertised verbatim, and replace the servers in the file only
/// for their own family.
#[test]
fn servers_given_by_option_replace_those_of_the_file() {
    let host = Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53");
    let given = |config: &mut Config| config.v4.dns = vec![p("127.0.0.1"), p("198.51.100.1")];
    assert_eq!(v4(&host, given), expected(&["127.0.0.1", "198.51.100.1"], "", "192.0.2.53 2001:db8::53"));
    assert_eq!(v6(&host, given).0, ["2001:db8::53"]);
}

/// behaviour §3.4.4: servers of one family also answer queries over the other family. If the host has no server of a
/// family, the forwarding address of this family is advertised.
#[test]
fn servers_of_one_family_serve_both() {
    let host = Host::usual().resolv_conf("nameserver 2001:db8::53");
    let forward = |config: &mut Config| {
        config.v4.dns_forward = Some(p("169.254.1.1"));
        config.v6.dns_forward = Some(p("fd00::1"));
    };
    assert_eq!(v4(&host, forward), expected(&["169.254.1.1"], "169.254.1.1", "2001:db8::53"));
    assert_eq!(v6(&host, forward), expected(&["2001:db8::53"], "fd00::1", "2001:db8::53"));
    assert_eq!(v4(&host, |_| ()), expected(&[], "", "2001:db8::53"));
    // This also applies if the guest has no IPv6.
    let v4_only = |config: &mut Config| {
        forward(config);
        config.v6.enabled = false;
    };
    assert_eq!(v4(&host, v4_only), expected(&["169.254.1.1"], "169.254.1.1", "2001:db8::53"));
    assert_eq!(notes(&pasta(&host, v4_only)), []);
    // A `--dns-host` of one family serves both families, and replaces the servers in the file.
    let given = |config: &mut Config| {
        forward(config);
        config.v6.dns_host = Some(p("2001:db8::99"));
    };
    assert_eq!(v4(&host, given).2, ["2001:db8::99"]);
    assert_eq!(v6(&host, given).2, ["2001:db8::99"]);
    let both = |config: &mut Config| {
        given(config);
        config.v4.dns_host = Some(p("192.0.2.99"));
    };
    assert_eq!(
        (v4(&host, both).2, v6(&host, both).2),
        (vec!["192.0.2.99".into()], vec!["2001:db8::99".into()])
    );
}

/// behaviour §2.2: `--dns-host` replaces the file's servers for forwarding. With `--dns none`, no server is advertised.
#[test]
fn dns_host_and_dns_none_override_the_file() {
    let host = Host::usual().resolv_conf("nameserver 127.0.0.53");
    let dns_host = |config: &mut Config| {
        config.v4.dns_forward = Some(p("169.254.1.1"));
        config.v4.dns_host = Some(p("127.0.0.2"));
    };
    assert_eq!(v4(&host, dns_host), expected(&["169.254.1.1"], "169.254.1.1", "127.0.0.2"));
    let none = |config: &mut Config| config.dns_none = true;
    assert_eq!(v4(&host, none), expected(&[], "", "127.0.0.53"));
    let plan = passt(&host, none);
    assert!(!plan.settings.services.advertise_dns);
    assert_eq!(notes(&plan), []);
}

const NO_SERVER: (Level, &str) = (Level::Warn, "Couldn't get any nameserver address");
const NO_DHCP: (Level, &str) = (Level::Warn, "No IPv4 nameserver available for DHCP");
const NO_NDP: (Level, &str) = (Level::Warn, "No IPv6 nameserver available for NDP/DHCPv6");

/// behaviour §3.4.7: missing servers are reported.
#[test]
fn missing_servers_are_reported() {
    let none = Host::usual();
    let both = Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53");
    assert_eq!(notes(&passt(&none, |_| ())), [NO_SERVER, NO_DHCP, NO_NDP]);
    assert_eq!(notes(&pasta(&none, |config| config.dhcp_dns = true)), [NO_SERVER, NO_DHCP, NO_NDP]);
    assert_eq!(notes(&passt(&both, |_| ())), []);
    let four = Host::usual().resolv_conf("nameserver 192.0.2.53");
    assert_eq!(notes(&passt(&four, |_| ())), [NO_NDP]);
    assert_eq!(notes(&passt(&four, |config| config.v6.enabled = false)), []);
    let loopback = Host::usual().resolv_conf("nameserver 127.0.0.53");
    assert_eq!(notes(&passt(&loopback, no_mapping)), [NO_DHCP, NO_NDP]);
}

/// no warning about servers that would not be advertised anyway.
#[test]
fn unused_servers_are_not_reported_r35() {
    let none = Host::usual();
    assert_eq!(notes(&pasta(&none, |_| ())), [], "pasta advertises nothing by default");
    let quiet = |config: &mut Config| {
        config.no_dhcp = true;
        config.no_dhcpv6 = true;
        config.no_ndp = true;
    };
    assert_eq!(notes(&passt(&none.clone().resolv_conf("nameserver 127.0.0.1"), quiet)), []);
    let given = |config: &mut Config| {
        config.v4.dns = vec![p("192.0.2.1")];
        config.v6.dns = vec![p("2001:db8::53")];
    };
    assert_eq!(notes(&passt(&none, given)), []);
    // If there is a forwarding address but no server, this is reported.
    let forward = |config: &mut Config| config.v4.dns_forward = Some(p("169.254.1.1"));
    assert_eq!(notes(&pasta(&none, forward)), [NO_SERVER]);
}

/// behaviour §3.4.3, §2.2: the search list from the file is limited. The option replaces it.
#[test]
fn search_lists_are_limited_or_replaced() {
    let host = Host::usual().resolv_conf("search a b c d e f g");
    let search = |change: fn(&mut Config)| passt(&host, change).settings.services.search;
    assert_eq!(search(|_| ()), ["a", "b", "c", "d", "e"]);
    assert_eq!(search(|config| config.search = Search::None), [""; 0]);
    assert_eq!(search(|config| config.search = Search::List(vec!["x".into()])), ["x"]);
}

/// After a change of resolv.conf, the settings equal those of a new plan.
#[test]
fn a_changed_resolv_conf_gives_the_settings_of_a_new_plan() {
    let files = [
        "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a b c d e f",
        "nameserver 127.0.0.53\nnameserver ::1",
        "nameserver 198.51.100.1\nnameserver 2001:db8:1::1\ndomain x",
        "nameserver 2001:db8::53",
        "",
    ];
    let changes: [fn(&mut Config); 6] = [
        |_| (),
        no_mapping,
        |config| config.v4.dns_forward = Some(p("169.254.1.1")),
        |config| config.v4.dns_host = Some(p("127.0.0.2")),
        |config| config.v6.dns = vec![p("2001:db8::1")],
        |config| (config.dns_none, config.search) = (true, Search::List(vec!["y".into()])),
    ];
    let text = |settings: &engine::addr::Settings| format!("{settings:?}");
    for change in changes {
        for (before, after) in files.iter().flat_map(|a| files.iter().map(move |b| (a, b))) {
            let (before, after) = (Host::usual().resolv_conf(before), Host::usual().resolv_conf(after));
            let mut config = Config::new(Mode::Passt);
            change(&mut config);
            let mut settings = passt(&before, change).settings;
            set_resolvers(&config, &after.0.resolver, &mut settings);
            assert_eq!(text(&settings), text(&passt(&after, change).settings));
        }
    }
}

/// resolv.conf need not be watched if its servers are not used.
#[test]
fn resolv_conf_is_watched_only_if_it_is_used() {
    let host = Host::usual().resolv_conf("nameserver 192.0.2.53");
    let follows = |change: fn(&mut Config)| {
        let mut config = Config::new(Mode::Pasta);
        config.dhcp_search = false;
        change(&mut config);
        pasta(&host, change).follows_resolvers(&config)
    };
    assert!(follows(|_| ()), "a new server may equal the gateway");
    assert!(!follows(no_mapping));
    let forward = |config: &mut Config| {
        no_mapping(config);
        config.v4.dns_forward = Some(p("169.254.1.1"));
    };
    assert!(follows(forward));
    assert!(!follows(|config| {
        no_mapping(config);
        config.v4.dns_forward = Some(p("169.254.1.1"));
        config.v4.dns_host = Some(p("192.0.2.1"));
    }));
    assert!(follows(|config| {
        no_mapping(config);
        config.dhcp_dns = true;
    }));
    assert!(!follows(|config| (config.dhcp_dns, config.dns_none) = (true, true)));
}
