//! Options that enable or disable protocols and services.

use super::{Opt, flag};

pub(super) const OPTIONS: &[Opt] = &[
    flag(&["no-tcp"], |args| args.config.no_tcp = true, "No TCP"),
    flag(&["no-udp"], |args| args.config.no_udp = true, "No UDP"),
    flag(&["no-icmp"], |args| args.config.no_icmp = true, "No ICMP, no ICMPv6; implies --no-ndp"),
    flag(
        &["multicast"],
        |args| args.config.multicast = true,
        "Receive multicast groups of the host's network\nthat the guest joins (mDNS, SSDP...); shares ports\nwith programs of the host",
    )
    .extension(),
    flag(&["no-dhcp"], |args| args.config.no_dhcp = true, "No DHCP server"),
    flag(&["no-dhcpv6"], |args| args.config.no_dhcpv6 = true, "No DHCPv6 server"),
    flag(&["no-ndp"], |args| args.config.no_ndp = true, "No NDP responses"),
    flag(&["no-ra"], |args| args.config.no_ra = true, "No router advertisements"),
    flag(
        &["freebind"],
        |args| args.config.freebind = true,
        "Listen on, and answer from, addresses that the\nhost does not have",
    ),
];
