//! UDP source ports that matter to peers. A warning is logged if the host can't send from the guest's port.

use std::collections::BTreeSet;

use rustix::io::Errno;

/// Ports below this number are assigned to protocols. Many of these protocols require their port as the source port.
const SYSTEM_PORTS_END: u16 = 1024;

/// Source ports of protocols that peers or firewalls may require. IANA has assigned all these ports.
const KNOWN: [(u16, &str); 21] = [
    (53, "DNS"),
    (67, "DHCP server"),
    (68, "DHCP client"),
    (69, "TFTP"),
    (123, "NTP"),
    (137, "NetBIOS name service"),
    (138, "NetBIOS datagrams"),
    (161, "SNMP"),
    (319, "PTP events"),
    (320, "PTP"),
    (500, "IKE"),
    (520, "RIP"),
    (521, "RIPng"),
    (546, "DHCPv6 client"),
    (547, "DHCPv6 server"),
    (1985, "HSRP"),
    (2427, "MGCP gateway"),
    (2727, "MGCP call agent"),
    (4500, "IKE through NAT"),
    (5060, "SIP"),
    (5353, "mDNS"),
];

/// The replaced ports that have been reported.
#[derive(Debug, Default)]
pub(super) struct ReplacedPorts(BTreeSet<u16>);

impl ReplacedPorts {
    /// Logs, once for each port, that the host sends datagrams from the guest's `port` with another source port: the
    /// kernel refused this port with `errno`.
    pub(super) fn warn(&mut self, port: u16, errno: Errno) {
        if let Some(report) = self.report(port, errno) {
            log::warn!("{report}");
        }
    }

    fn report(&mut self, port: u16, errno: Errno) -> Option<String> {
        let known = KNOWN.iter().find(|known| known.0 == port).map(|known| known.1);
        let matters = known.is_some() || (1..SYSTEM_PORTS_END).contains(&port);
        if !matters || !self.0.insert(port) {
            return None;
        }
        let protocol = known.map(|name| format!(" ({name})")).unwrap_or_default();
        let reason = match errno {
            Errno::ADDRINUSE => "that one is in use",
            Errno::ACCESS | Errno::PERM => "that one is below net.ipv4.ip_unprivileged_port_start",
            _ => "it does not permit that one",
        };
        Some(format!(
            "UDP: what the guest sends from its port {port}{protocol} leaves from another port of the host, since {reason}; \
             remotes may ignore it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_that_matters_is_reported_once() {
        let mut ports = ReplacedPorts::default();
        for (port, matters) in [(500, true), (1, true), (1023, true), (4500, true), (5353, true)]
            .into_iter()
            .chain([(0, false), (1024, false), (51820, false), (5354, false)])
        {
            assert_eq!(ports.report(port, Errno::ADDRINUSE).is_some(), matters, "{port}");
            assert_eq!(ports.report(port, Errno::ACCESS), None, "{port}, again");
        }
    }

    #[test]
    fn reports_name_the_protocol_and_the_reason() {
        let mut ports = ReplacedPorts::default();
        let mut says = |port, errno, parts: [&str; 2]| {
            let report = ports.report(port, errno).unwrap();
            assert!(parts.iter().all(|part| report.contains(part)), "{report}");
        };
        says(500, Errno::ACCESS, ["port 500 (IKE) leaves", "ip_unprivileged_port_start"]);
        says(5353, Errno::ADDRINUSE, ["port 5353 (mDNS) leaves", "in use"]);
        says(999, Errno::ADDRNOTAVAIL, ["port 999 leaves", "permit"]);
    }
}
