//! Tests of the summary at the start (behaviour §1.8).

use super::{Host, p, passt, pasta};

#[test]
fn the_summary_shows_both_families() {
    let host = Host::usual()
        .resolv_conf("nameserver 127.0.0.53\nnameserver 2001:db8::53\nsearch a.example b.example");
    let plan = passt(&host, |config| {
        config.v4.outbound_if = Some(p("eth0"));
        config.v4.outbound = Some(p("198.51.100.2"));
    });
    assert_eq!(
        plan.summary(),
        [
            "Template interface: eth0 (IPv4), eth0 (IPv6)",
            "Outbound interface: eth0 (IPv4)",
            "Outbound IPv4 address: 198.51.100.2",
            "MAC:",
            "    host: 9a:55:9a:55:9a:55",
            "NAT to host 127.0.0.1: 198.51.100.1",
            "NAT to host ::1: 2001:db8:1::1",
            "DHCP:",
            "    assign: 198.51.100.2",
            "    mask: 255.255.255.0",
            "    router: 198.51.100.1",
            "DNS:",
            "    198.51.100.1",
            "DNS search list:",
            "    a.example",
            "    b.example",
            "NDP/DHCPv6:",
            "    assign: 2001:db8:1::2",
            "    router: 2001:db8:1::1",
            "    our link-local: fe80::2",
            "DNS:",
            "    2001:db8::53",
            "DNS search list:",
            "    a.example",
            "    b.example",
        ]
    );
}

#[test]
fn the_summary_shows_local_mode() {
    let plan = pasta(&Host::bare(), |config| config.no_dhcp = true);
    assert_eq!(
        plan.summary(),
        [
            "Namespace interface: tap0",
            "MAC:",
            "    host: 9a:55:9a:55:9a:55",
            "NAT to host 127.0.0.1: 169.254.2.2",
            "NAT to host ::1: fe80::1",
            "NDP:",
            "    router: fe80::1",
            "    our link-local: fe80::1",
        ]
    );
}

/// the summary shows the masks of every prefix length, 0 and 32 included.
#[test]
fn the_summary_shows_masks_of_every_length_r41() {
    for (length, mask) in [
        (0, "0.0.0.0"),
        (1, "128.0.0.0"),
        (24, "255.255.255.0"),
        (31, "255.255.255.254"),
        (32, "255.255.255.255"),
    ] {
        let plan = passt(&Host::usual(), |config| config.v4.prefix_len = Some(length));
        assert!(plan.summary().contains(&format!("    mask: {mask}")), "{length}");
    }
}
