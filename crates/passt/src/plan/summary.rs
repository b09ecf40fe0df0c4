//! A summary of the plan for the log (behaviour §1.8).

use std::{fmt::Display, net::Ipv4Addr};

use engine::addr::{V4, V6};

use super::{Plan, TemplateLink};

impl Plan {
    /// Lines for the log, at info level: interfaces, addresses, and the values that are advertised to the guest.
    /// Forwarding rules are not included.
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let templates: Vec<String> = [(&self.template4, "IPv4"), (&self.template6, "IPv6")]
            .into_iter()
            .filter_map(|(template, family)| {
                template.as_ref().map(|TemplateLink { name, .. }| format!("{name} ({family})"))
            })
            .collect();
        if !templates.is_empty() {
            lines.push(format!("Template interface: {}", templates.join(", ")));
        }
        let interfaces: Vec<String> =
            [(&self.outbound4.interface, "IPv4"), (&self.outbound6.interface, "IPv6")]
                .into_iter()
                .filter_map(|(name, family)| name.as_ref().map(|name| format!("{name} ({family})")))
                .collect();
        if !interfaces.is_empty() {
            lines.push(format!("Outbound interface: {}", interfaces.join(", ")));
        }
        lines.extend(self.outbound4.address.map(|address| format!("Outbound IPv4 address: {address}")));
        lines.extend(self.outbound6.address.map(|address| format!("Outbound IPv6 address: {address}")));
        lines.extend(self.namespace.as_ref().map(|plan| format!("Namespace interface: {}", plan.ifname)));
        lines.push("MAC:".into());
        lines.push(format!("    host: {}", self.settings.our_mac));
        let (v4, v6) = (self.settings.v4.as_ref(), self.settings.v6.as_ref());
        let loopback4 = v4.and_then(|v4| v4.map_host_loopback);
        let loopback6 = v6.and_then(|v6| v6.map_host_loopback);
        lines.extend(loopback4.map(|address| format!("NAT to host 127.0.0.1: {address}")));
        lines.extend(loopback6.map(|address| format!("NAT to host ::1: {address}")));
        if let Some(v4) = v4 {
            self.ipv4(v4, &mut lines);
        }
        if let Some(v6) = v6 {
            self.ipv6(v6, &mut lines);
        }
        lines
    }

    fn ipv4(&self, v4: &V4, lines: &mut Vec<String>) {
        if let Some(router) = v4.our_address.filter(|_| self.settings.services.dhcp) {
            lines.push("DHCP:".into());
            lines.push(format!("    assign: {}", v4.assigned));
            lines.push(format!("    mask: {}", netmask(v4.prefix_len)));
            lines.push(format!("    router: {router}"));
        }
        self.resolvers(&v4.dns, lines);
    }

    fn ipv6(&self, v6: &V6, lines: &mut Vec<String>) {
        let services = &self.settings.services;
        let title = match (services.ndp, services.dhcpv6 && v6.assigned.is_some()) {
            (true, true) => "NDP/DHCPv6:",
            (true, false) => "NDP:",
            (false, true) => "DHCPv6:",
            (false, false) => return,
        };
        lines.push(title.into());
        lines.extend(v6.assigned.map(|address| format!("    assign: {address}")));
        lines.extend(self.gateway6.map(|address| format!("    router: {address}")));
        lines.push(format!("    our link-local: {}", v6.our_link_local));
        self.resolvers(&v6.dns, lines);
    }

    fn resolvers(&self, servers: &[impl Display], lines: &mut Vec<String>) {
        let services = &self.settings.services;
        if services.advertise_dns && !servers.is_empty() {
            lines.push("DNS:".into());
            lines.extend(servers.iter().map(|server| format!("    {server}")));
        }
        if services.advertise_search && !services.search.is_empty() {
            lines.push("DNS search list:".into());
            lines.extend(services.search.iter().map(|domain| format!("    {domain}")));
        }
    }
}

fn netmask(prefix_len: u8) -> Ipv4Addr {
    let host_bits = 32u32.saturating_sub(u32::from(prefix_len));
    Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}
