//! Resolvers and search lists (behaviour §3.4).

use log::Level;
use passt::config::{Config, MapHostLoopback, Mode, Search};
use passt::plan::set_resolvers;

use super::{Host, notes, p, passt, pasta, texts};

/// Advertised servers, matched address and the servers behind it.
type Chosen = (Vec<String>, Option<String>, Vec<String>);

fn v4(host: &Host, change: impl FnOnce(&mut Config)) -> Chosen {
    let v4 = passt(host, change).settings.v4.unwrap();
    (texts(&v4.dns), v4.dns_forward.map(|a| a.to_string()), texts(&v4.dns_servers))
}

fn v6(host: &Host, change: impl FnOnce(&mut Config)) -> Chosen {
    let v6 = passt(host, change).settings.v6.unwrap();
    (texts(&v6.dns), v6.dns_forward.map(|a| a.to_string()), texts(&v6.dns_servers))
}

/// `servers` are separated by blanks.
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
fn servers_outside_are_advertised_as_they_are() {
    let host =
        Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver 192.0.2.54");
    // All of them are asked, in the order of the file.
    let all = "192.0.2.53 2001:db8::53 192.0.2.54";
    assert_eq!(v4(&host, |_| ()), expected(&["192.0.2.53", "192.0.2.54"], "", all));
    assert_eq!(v6(&host, |_| ()), expected(&["2001:db8::53"], "", all));
    let forward = |config: &mut Config| config.v4.dns_forward = Some(p("169.254.1.1"));
    assert_eq!(v4(&host, forward), expected(&["192.0.2.53", "192.0.2.54"], "169.254.1.1", all));
}

/// §3.4.5, the four cases of a resolver on the host's loopback; the last is R-35.
#[test]
fn loopback_resolver_r35() {
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

/// the gateway is the resolver; queries to it must not end at the host's loopback.
#[test]
fn gateway_is_the_resolver_r36() {
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

/// A resolver at the host's own address is the guest's own address, too.
#[test]
fn resolver_at_the_hosts_own_address() {
    let host = Host::usual().resolv_conf("nameserver 198.51.100.2");
    assert_eq!(v4(&host, |_| ()), expected(&["198.51.100.1"], "198.51.100.1", "198.51.100.2"));
    let other = |config: &mut Config| config.v4.address = Some(p("10.0.0.7"));
    assert_eq!(v4(&host, other), expected(&["198.51.100.2"], "", "198.51.100.2"));
}

/// Q23: one address once.
#[test]
fn q23_no_duplicates() {
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

/// §3.4.3.
#[test]
fn three_servers_at_most() {
    let text: String =
        (1..=9).map(|n| format!("nameserver 192.0.2.{n}\nnameserver 2001:db8::{n}\n")).collect();
    let host = Host::usual().resolv_conf(&text);
    assert_eq!(v4(&host, |_| ()).0, ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    assert_eq!(v6(&host, |_| ()).0, ["2001:db8::1", "2001:db8::2", "2001:db8::3"]);
}

/// §3.4.1, §3.4.6: given servers are advertised verbatim, and replace those of the file in their family only.
#[test]
fn given_servers() {
    let host = Host::usual().resolv_conf("nameserver 192.0.2.53\nnameserver 2001:db8::53");
    let given = |config: &mut Config| config.v4.dns = vec![p("127.0.0.1"), p("198.51.100.1")];
    assert_eq!(v4(&host, given), expected(&["127.0.0.1", "198.51.100.1"], "", "192.0.2.53 2001:db8::53"));
    assert_eq!(v6(&host, given).0, ["2001:db8::53"]);
}

/// §3.4.4: questions cross families, so servers of either family are enough, and the guest is told of the way to them.
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
    // Without IPv6 in the guest, too.
    let v4_only = |config: &mut Config| {
        forward(config);
        config.v6.enabled = false;
    };
    assert_eq!(v4(&host, v4_only), expected(&["169.254.1.1"], "169.254.1.1", "2001:db8::53"));
    assert_eq!(notes(&pasta(&host, v4_only)), []);
    // `--dns-host` of one family serves both, and is all there is.
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

/// §2.2: --dns-host wins over the file's first server, --dns none over all of it.
#[test]
fn dns_host_and_none() {
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

/// §3.4.7.
#[test]
fn warnings_about_missing_servers() {
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

/// no warning about what nobody asked for.
#[test]
fn no_spurious_warnings_r35() {
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
    // Forwarding to nowhere is worth a word.
    let forward = |config: &mut Config| config.v4.dns_forward = Some(p("169.254.1.1"));
    assert_eq!(notes(&pasta(&none, forward)), [NO_SERVER]);
}

/// §3.4.3, §2.2.
#[test]
fn search_lists() {
    let host = Host::usual().resolv_conf("search a b c d e f g");
    let search = |change: fn(&mut Config)| passt(&host, change).settings.services.search;
    assert_eq!(search(|_| ()), ["a", "b", "c", "d", "e"]);
    assert_eq!(search(|config| config.search = Search::None), [""; 0]);
    assert_eq!(search(|config| config.search = Search::List(vec!["x".into()])), ["x"]);
}

/// What changes with resolv.conf is what a plan made now would say, and nothing else.
#[test]
fn recomputed_like_planned() {
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

/// What was given by hand follows nothing, and nothing has to be watched for it.
#[test]
fn followed_only_where_it_matters() {
    let host = Host::usual().resolv_conf("nameserver 192.0.2.53");
    let follows = |change: fn(&mut Config)| {
        let mut config = Config::new(Mode::Pasta);
        config.dhcp_search = false;
        change(&mut config);
        pasta(&host, change).follows_resolvers(&config)
    };
    assert!(follows(|_| ()), "a new server may be the gateway");
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
