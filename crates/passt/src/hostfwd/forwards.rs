//! The ports that clients have forwarded, and the rules that they make.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use engine::forward::{Enabled, Listen, PortRange, Protocol, Rule, Table};
use serde::Serialize;

use super::request::Forward;

/// The forwarded ports, by number. A number is never used again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forwards {
    entries: BTreeMap<u64, Forward>,
    last: u64,
}

/// A forwarded port in the reply to `list_hostfwd`.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    id: u64,
    proto: &'static str,
    host_addr: IpAddr,
    host_port: u16,
    guest_addr: IpAddr,
    guest_port: u16,
}

impl Forwards {
    /// Adds a forwarded port. Returns the result, the new port's number, and the rules of all ports.
    ///
    /// # Errors
    /// Another forwarded port conflicts, or there are too many rules.
    pub(crate) fn with(&self, forward: Forward, enabled: Enabled) -> Result<(Self, u64, Table), String> {
        if self.entries.values().any(|old| rule(old).conflicts_with(&rule(&forward))) {
            return Err(format!("{} port {} is forwarded already", forward.protocol, forward.host_port));
        }
        let mut new = self.clone();
        new.last += 1;
        new.entries.insert(new.last, forward);
        let (id, table) = (new.last, table(new.entries.values(), enabled)?);
        Ok((new, id, table))
    }

    /// Removes a forwarded port. Returns the result, and the rules of all other ports.
    ///
    /// # Errors
    /// There is no port with this number, or there are too many rules: without a port, its neighbours need two.
    pub(crate) fn without(&self, id: u64, enabled: Enabled) -> Result<(Self, Table), String> {
        let mut new = self.clone();
        new.entries.remove(&id).ok_or("bad arguments.id")?;
        let table = table(new.entries.values(), enabled)?;
        Ok((new, table))
    }

    /// All forwarded ports, in the order in which they were added.
    pub(super) fn list(&self) -> Vec<Entry> {
        let entry = |(id, forward): (&u64, &Forward)| Entry {
            id: *id,
            proto: match (forward.protocol, forward.host_addr) {
                (Protocol::Tcp, IpAddr::V4(_)) => "tcp",
                (Protocol::Udp, IpAddr::V4(_)) => "udp",
                (Protocol::Tcp, IpAddr::V6(_)) => "tcp6",
                (Protocol::Udp, IpAddr::V6(_)) => "udp6",
            },
            host_addr: forward.host_addr,
            host_port: forward.host_port,
            guest_addr: forward.guest_addr.unwrap_or(Ipv6Addr::UNSPECIFIED.into()),
            guest_port: forward.guest_port,
        };
        self.entries.iter().map(entry).collect()
    }
}

/// The rules of these ports. Adjacent ports become one rule, so that a client can forward thousands of ports.
fn table<'a>(forwards: impl Iterator<Item = &'a Forward>, enabled: Enabled) -> Result<Table, String> {
    let key = |forward: &Forward| {
        let Forward { protocol, host_addr, host_port, guest_addr, guest_port } = *forward;
        (protocol == Protocol::Udp, host_addr, guest_addr, guest_port.wrapping_sub(host_port), host_port)
    };
    let mut sorted: Vec<&Forward> = forwards.collect();
    sorted.sort_unstable_by_key(|forward| key(forward));
    let mut rules: Vec<Rule> = Vec::new();
    for forward in sorted {
        match rules.last_mut().and_then(|rule| Some((extended(rule, forward)?, rule))) {
            Some((ports, rule)) => rule.ports = ports,
            None => rules.push(rule(forward)),
        }
    }
    let mut table = Table::new();
    rules
        .into_iter()
        .try_for_each(|rule| table.add(rule, enabled))
        .map_err(|error| error.reason.to_string())?;
    Ok(table)
}

/// The ports of a rule together with a port that comes directly after them. `None`: the port needs another rule.
fn extended(rule: &Rule, forward: &Forward) -> Option<PortRange> {
    let same = rule.protocol == forward.protocol
        && rule.listen.addr == Some(forward.host_addr)
        && rule.target_addr == forward.guest_addr
        && rule.ports.last().checked_add(1) == Some(forward.host_port)
        && rule.target_ports().last().checked_add(1) == Some(forward.guest_port);
    if same { PortRange::new(rule.ports.first(), forward.host_port) } else { None }
}

fn rule(forward: &Forward) -> Rule {
    Rule {
        protocol: forward.protocol,
        listen: Listen { addr: Some(forward.host_addr), interface: None },
        ports: PortRange::single(forward.host_port),
        target_addr: forward.guest_addr,
        target_first: forward.guest_port,
        best_effort: false,
        scan: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(host_port: u16, guest_port: u16) -> Forward {
        Forward {
            protocol: Protocol::Tcp,
            host_addr: IpAddr::from([0, 0, 0, 0]),
            host_port,
            guest_addr: Some(IpAddr::from([10, 0, 2, 100])),
            guest_port,
        }
    }

    fn with(forwards: &mut Forwards, forward: Forward) -> (u64, Table) {
        let (new, id, table) = forwards.with(forward, Enabled::ALL).unwrap();
        *forwards = new;
        (id, table)
    }

    #[test]
    fn adjacent_ports_share_a_rule_in_any_order() {
        let mut forwards = Forwards::default();
        for port in (9000..10000).rev() {
            with(&mut forwards, forward(port, port));
        }
        with(&mut forwards, forward(10000, 80));
        let (_, table) = with(&mut forwards, forward(8000, 80));
        assert_eq!((table.rules().len(), table.sockets()), (3, 1002));
        // A port in the middle divides the rule.
        let (_, table) = forwards.without(500, Enabled::ALL).unwrap();
        assert_eq!((table.rules().len(), table.sockets()), (4, 1001));
    }

    #[test]
    fn the_same_port_conflicts_and_another_protocol_does_not() {
        let mut forwards = Forwards::default();
        assert_eq!(with(&mut forwards, forward(80, 80)).0, 1);
        let error = forwards.with(forward(80, 81), Enabled::ALL).unwrap_err();
        assert_eq!(error, "TCP port 80 is forwarded already");
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(forwards.with(Forward { host_addr: loopback, ..forward(80, 80) }, Enabled::ALL).is_err());
        let udp = Forward { protocol: Protocol::Udp, ..forward(80, 80) };
        assert_eq!(with(&mut forwards, udp).0, 2);
    }

    #[test]
    fn numbers_are_not_used_again() {
        let mut forwards = Forwards::default();
        assert_eq!((with(&mut forwards, forward(1, 1)).0, with(&mut forwards, forward(2, 2)).0), (1, 2));
        forwards = forwards.without(2, Enabled::ALL).unwrap().0;
        assert_eq!(forwards.without(2, Enabled::ALL).unwrap_err(), "bad arguments.id");
        assert_eq!(with(&mut forwards, forward(3, 3)).0, 3);
    }
}
