//! Every kind of destination with every kind of rule, by the semantics of docs/guard.md.
//!
//! [`ROWS`] says which destinations of rules hold for an address. From this, [`expected`] derives the verdict for all
//! protocols, ports, actions and defaults, and for two rules in order.

use std::{format, println};

use super::*;

/// The destinations of rules.
const WHATS: [&str; 23] = [
    "198.51.100.1",
    "198.51.100.0/24",
    "10.0.0.1",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "2001:db8::1",
    "2001:db8::/32",
    "fd00::/8",
    "::/0",
    "2002::/16",
    "64:ff9b::/96",
    "public",
    "private",
    "linklocal",
    "metadata",
    "host",
    "multicast",
    "all",
    "a.example",
    "*.a.example",
    "*.example",
    "example",
    "b.example",
];

/// Destinations of rules that can't be allowed: the carried IPv4 addresses decide.
const CARRIERS: [&str; 2] = ["2002::/16", "64:ff9b::/96"];

const NAMES: [&str; 5] = ["a.example", "*.a.example", "*.example", "example", "b.example"];

/// The addresses that were answers for a name.
const ANSWERS: [(&str, &str); 5] = [
    ("198.51.100.1", "a.example"),
    ("198.51.100.2", "b.a.example"),
    ("2001:db8::1", "a.example"),
    ("2001:db8::2", "b.a.example"),
    ("64:ff9b::198.51.100.1", "a.example"),
];

/// A destination of the guest, the rules that hold for it, and the rules that hold for it only if they deny. `(host)`:
/// the destination leads to the host.
type Row = (&'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    // IPv4, of each group, with and without a name.
    ("198.51.100.1", "198.51.100.1 198.51.100.0/24 0.0.0.0/0 public all a.example *.example", ""),
    ("198.51.100.2", "198.51.100.0/24 0.0.0.0/0 public all *.a.example *.example", ""),
    ("198.51.100.3", "198.51.100.0/24 0.0.0.0/0 public all", ""),
    ("198.51.101.1", "0.0.0.0/0 public all", ""),
    ("10.0.0.1", "10.0.0.1 10.0.0.0/8 0.0.0.0/0 private all", ""),
    ("10.255.255.255", "10.0.0.0/8 0.0.0.0/0 private all", ""),
    ("172.16.0.1", "0.0.0.0/0 private all", ""),
    ("192.168.0.1", "0.0.0.0/0 private all", ""),
    ("100.64.0.1", "0.0.0.0/0 private all", ""),
    ("169.254.1.1", "0.0.0.0/0 linklocal all", ""),
    ("169.254.169.254", "0.0.0.0/0 metadata all", ""),
    ("127.0.0.1", "0.0.0.0/0 host all", ""),
    ("224.0.0.251", "0.0.0.0/0 multicast all", ""),
    ("255.255.255.255", "0.0.0.0/0 multicast all", ""),
    // IPv4 that leads to the host: in the group of its address as well, but only for rules that deny. What is in another
    // group is not public.
    ("198.51.100.3 (host)", "198.51.100.0/24 0.0.0.0/0 host all", ""),
    ("10.0.0.1 (host)", "10.0.0.1 10.0.0.0/8 0.0.0.0/0 host all", "private"),
    ("169.254.1.1 (host)", "0.0.0.0/0 host all", "linklocal"),
    ("127.0.0.1 (host)", "0.0.0.0/0 host all", ""),
    // IPv6.
    ("2001:db8::1", "2001:db8::1 2001:db8::/32 ::/0 public all a.example *.example", ""),
    ("2001:db8::2", "2001:db8::/32 ::/0 public all *.a.example *.example", ""),
    ("2001:db8::3", "2001:db8::/32 ::/0 public all", ""),
    ("2606::1", "::/0 public all", ""),
    ("fd00::1", "fd00::/8 ::/0 private all", ""),
    ("fc00::1", "::/0 private all", ""),
    ("fe80::1", "::/0 linklocal all", ""),
    ("fd00:ec2::254", "fd00::/8 ::/0 metadata all", ""),
    ("::1", "::/0 host all", ""),
    ("ff02::fb", "::/0 multicast all", ""),
    ("2001:db8::3 (host)", "2001:db8::/32 ::/0 host all", ""),
    ("fd00::1 (host)", "fd00::/8 ::/0 host all", "private"),
    ("fe80::1 (host)", "::/0 host all", "linklocal"),
    // IPv6 that carries IPv4. A rule for a name allows only what was an answer itself.
    ("::ffff:198.51.100.1", PUBLIC_INSIDE, "::/0 a.example *.example"),
    ("::198.51.100.1", PUBLIC_INSIDE, "::/0 a.example *.example"),
    ("2002:c633:6401::1", PUBLIC_INSIDE, "::/0 2002::/16 a.example *.example"),
    ("2001:0:5ef5:79fb:0:0:39cc:9bfe", PUBLIC_INSIDE, "::/0 a.example *.example"),
    ("64:ff9b:1::198.51.100.1", PUBLIC_INSIDE, "::/0 a.example *.example"),
    (
        "64:ff9b::198.51.100.1",
        "198.51.100.1 198.51.100.0/24 0.0.0.0/0 public all a.example *.example",
        "::/0 64:ff9b::/96",
    ),
    (
        "64:ff9b::198.51.100.2",
        "198.51.100.0/24 0.0.0.0/0 public all",
        "::/0 64:ff9b::/96 *.a.example *.example",
    ),
    ("::ffff:10.0.0.1", PRIVATE_INSIDE, "::/0"),
    ("2002:a00:1::1", PRIVATE_INSIDE, "::/0 2002::/16"),
    ("2001:0:5ef5:79fb:0:0:f5ff:fffe", PRIVATE_INSIDE, "::/0"),
    ("64:ff9b::10.0.0.1", PRIVATE_INSIDE, "::/0 64:ff9b::/96"),
    ("64:ff9b:1::10.0.0.1", PRIVATE_INSIDE, "::/0"),
    ("64:ff9b::169.254.1.1", "0.0.0.0/0 linklocal all", "::/0 64:ff9b::/96"),
    ("::ffff:169.254.169.254", "0.0.0.0/0 metadata all", "::/0"),
    ("2002:a9fe:a9fe::1", "0.0.0.0/0 metadata all", "::/0 2002::/16"),
    ("64:ff9b::169.254.169.254", "0.0.0.0/0 metadata all", "::/0 64:ff9b::/96"),
    ("64:ff9b:1::169.254.169.254", "0.0.0.0/0 metadata all", "::/0"),
    ("2001:0:5ef5:79fb:0:0:5601:5601", "0.0.0.0/0 metadata all", "::/0"),
    ("::ffff:127.0.0.1", "0.0.0.0/0 host all", "::/0"),
    ("2002:7f00:1::", "0.0.0.0/0 host all", "::/0 2002::/16"),
    ("64:ff9b::127.0.0.1", "0.0.0.0/0 host all", "::/0 64:ff9b::/96"),
    ("::ffff:224.0.0.251", "0.0.0.0/0 multicast all", "::/0"),
    ("64:ff9b::10.0.0.1 (host)", "10.0.0.1 10.0.0.0/8 0.0.0.0/0 host all", "private ::/0 64:ff9b::/96"),
];

const PUBLIC_INSIDE: &str = "198.51.100.1 198.51.100.0/24 0.0.0.0/0 public all";
const PRIVATE_INSIDE: &str = "10.0.0.1 10.0.0.0/8 0.0.0.0/0 private all";

/// The parts of a rule.
#[derive(Clone, Copy)]
struct Parts {
    action: Action,
    protocol: &'static str,
    what: &'static str,
    ports: &'static str,
}

impl Parts {
    fn text(&self) -> String {
        let Parts { action, protocol, what, ports } = self;
        let slash = if protocol.is_empty() { "" } else { "/" };
        if what.contains(':') && !ports.is_empty() {
            format!("{action} {protocol}{slash}[{what}]:{ports}")
        } else {
            let colon = if ports.is_empty() { "" } else { ":" };
            format!("{action} {protocol}{slash}{what}{colon}{ports}")
        }
    }

    /// Whether there is such a rule. The tests of the parser have the others.
    fn is_valid(&self) -> bool {
        let has_ports = self.protocol != "icmp" || self.ports.is_empty();
        let carried = self.protocol != "tcp" || self.what != "multicast";
        has_ports && carried && (self.action == Action::Deny || !CARRIERS.contains(&self.what))
    }

    fn is_by_name(&self) -> bool {
        NAMES.contains(&self.what)
    }

    /// Whether the rule is about the destination of a row.
    fn lists(&self, (_, holds, only_denies): &Row) -> bool {
        let listed = |list: &str| list.split(' ').any(|what| what == self.what);
        listed(holds) || self.action == Action::Deny && listed(only_denies)
    }

    /// Whether the rule is about a flow to the destination of a row.
    fn holds(&self, row: &Row, protocol: &str, port: u16) -> bool {
        let ports = match self.ports {
            "" => true,
            _ if protocol == "icmp" => false,
            "443" => port == 443,
            "~443" => port != 443,
            other => panic!("{other}"),
        };
        self.lists(row) && ports && (self.protocol.is_empty() || self.protocol == protocol)
    }
}

/// The address of a row, and whether it leads to the host.
fn address(row: &Row) -> (IpAddr, bool) {
    match row.0.strip_suffix(" (host)") {
        Some(address) => (address.parse().unwrap(), true),
        None => (row.0.parse().unwrap(), false),
    }
}

/// The verdict of docs/guard.md, in the form of [`shown`].
fn expected(rules: &[Parts], default: Action, row: &Row, protocol: &str, port: u16) -> String {
    let by_name = rules.iter().any(Parts::is_by_name);
    if by_name && protocol != "icmp" && [53, 853, 5353, 5355].contains(&port) {
        return "-!".into();
    }
    let allows_by_name = |rule: &Parts| rule.is_by_name() && rule.action == Action::Allow;
    let first = rules.iter().position(|rule| rule.holds(row, protocol, port));
    let Some(index) = first else {
        return if default == Action::Allow { "+" } else { "-" }.into();
    };
    if rules[index].action == Action::Deny {
        return format!("-{index}");
    }
    if !allows_by_name(&rules[index]) || protocol == "icmp" {
        return format!("+{index}");
    }
    // Whatever is allowed by address, too, is not checked by name.
    let other = rules.iter().find(|rule| !allows_by_name(rule) && rule.holds(row, protocol, port));
    if other.map_or(default, |rule| rule.action) == Action::Allow {
        return format!("+{index}");
    }
    let nameless = !rules[index].ports.is_empty() && port != 443 && port != 80;
    format!("{}{index}", if nameless { "N" } else { "n" })
}

/// Compares the verdicts on all rows. Returns their number.
fn compare(rules: &[Parts], default: Action, ports: &[u16], table: &Table) -> usize {
    let lines: Vec<String> = rules.iter().map(Parts::text).collect();
    let text = format!("{}; default {default}", lines.join("; "));
    let policy = policy(&text);
    let mut compared = 0;
    for row in ROWS {
        let (address, host) = address(row);
        for (word, protocol) in Protocol::ALL {
            for &port in ports {
                let destination = SocketAddr::new(address, port);
                let question = Question { protocol, destination, leads_to_host: host };
                let found = match policy.verdict(&question, table) {
                    Verdict::Deny(Reason::NameService) => "-!".into(),
                    verdict => shown(verdict),
                };
                let expected = expected(rules, default, row, word, port);
                assert_eq!(found, expected, "{word} to {}, port {port}, by: {text}", row.0);
                compared += 1;
            }
        }
    }
    compared
}

fn answers() -> Table {
    Table(ANSWERS.into_iter().map(|(address, name)| (address.parse().unwrap(), name)).collect())
}

const BOTH: [Action; 2] = [Action::Allow, Action::Deny];

#[test]
fn each_destination_by_each_rule() {
    let table = answers();
    let mut compared = 0;
    for what in WHATS {
        for (protocol, ports) in ["", "tcp", "udp", "icmp"]
            .into_iter()
            .flat_map(|word| ["", "443", "~443"].map(|ports| (word, ports)))
        {
            for (action, default) in BOTH.into_iter().flat_map(|action| BOTH.map(|default| (action, default)))
            {
                let rule = Parts { action, protocol, what, ports };
                if rule.is_valid() {
                    compared += compare(&[rule], default, &[443, 80, 22, 53], &table);
                }
            }
        }
    }
    println!("{compared} verdicts");
    assert!(compared > 300_000, "{compared}");
}

/// The first rule that matches decides.
#[test]
fn each_destination_by_each_two_rules() {
    let table = answers();
    let mut compared = 0;
    let rules: Vec<Parts> = WHATS
        .into_iter()
        .flat_map(|what| BOTH.map(|action| Parts { action, protocol: "", what, ports: "" }))
        .filter(Parts::is_valid)
        .collect();
    for first in &rules {
        for second in &rules {
            for default in BOTH {
                compared += compare(&[*first, *second], default, &[443], &table);
            }
        }
    }
    println!("{compared} verdicts");
    assert!(compared > 300_000, "{compared}");
}

/// An answer may have an address that is public, or that the guest may reach with some protocol and port. Rules by name
/// do not count.
#[test]
fn answers_with_each_destination_by_each_rule() {
    for what in WHATS {
        for (protocol, ports) in [("", ""), ("tcp", ""), ("", "443"), ("icmp", "")] {
            for (action, default) in BOTH.into_iter().flat_map(|action| BOTH.map(|default| (action, default)))
            {
                let rule = Parts { action, protocol, what, ports };
                if !rule.is_valid() {
                    continue;
                }
                let text = format!("{}; default {default}", rule.text());
                let policy = policy(&text);
                for row in ROWS {
                    let (address, host) = address(row);
                    let decides = action == Action::Allow || (protocol, ports) == ("", "");
                    let holds = !rule.is_by_name() && decides && rule.lists(row);
                    let reaches = if holds { action } else { default } == Action::Allow;
                    assert_eq!(policy.may_reach(address, host), reaches, "{} by: {text}", row.0);
                    let answers = reaches || row.1.split(' ').any(|what| what == "public");
                    assert_eq!(policy.may_answer(address, host), answers, "answer {} by: {text}", row.0);
                }
            }
        }
    }
}

/// Each row says something about each kind of rule, and each destination of a rule occurs.
#[test]
fn the_table_is_complete() {
    for (destination, holds, only_denies) in ROWS {
        for what in holds.split(' ').chain(only_denies.split(' ').filter(|what| !what.is_empty())) {
            assert!(WHATS.contains(&what), "{destination}: {what}");
        }
    }
    let never: Vec<&str> = WHATS
        .into_iter()
        .filter(|what| {
            !ROWS.iter().any(|row| format!("{} {}", row.1, row.2).split(' ').any(|own| own == *what))
        })
        .collect();
    assert_eq!(never, ["example", "b.example"], "names of no destination");
}
