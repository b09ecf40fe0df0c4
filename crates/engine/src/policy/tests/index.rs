//! The indexed lookup gives the same result as a loop over the rules.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

/// There are few addresses and names, so that many rules match.
fn destinations() -> impl Strategy<Value = &'static str> {
    select(vec![
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/31",
        "10.0.0.1",
        "10.1.0.0/16",
        "192.0.2.0/24",
        "192.0.2.1",
        "2001:db8::/32",
        "2001:db8::/64",
        "2001:db8::1",
        "2001:db8:1::/48",
        "::/0",
        "a.example",
        "*.a.example",
        "b.a.example",
        "*.b.a.example",
        "*.example",
        "a-b.example",
        "*.example.org",
        "public",
        "private",
        "host",
        "all",
        "multicast",
        "metadata",
        "linklocal",
    ])
}

fn rules() -> impl Strategy<Value = String> {
    let rule = (
        select(vec!["allow", "deny"]),
        select(vec!["", "tcp/", "udp/", "icmp/"]),
        destinations(),
        any::<bool>(),
    );
    vec(rule, 0..24).prop_map(|rules| {
        let mut text = String::new();
        for (action, protocol, destination, with_ports) in rules {
            let destination = if with_ports && destination.contains("::") {
                std::format!("[{destination}]")
            } else {
                destination.into()
            };
            let ports = if with_ports && protocol != "icmp/" { ":1-2" } else { "" };
            let what = std::format!("{protocol}{destination}{ports}");
            if what.starts_with("tcp/multicast") {
                continue;
            }
            text += &std::format!("{action} {what}\n");
        }
        text
    })
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    select(vec![
        "10.0.0.0",
        "10.0.0.1",
        "10.0.0.2",
        "10.1.0.0",
        "10.255.0.0",
        "192.0.2.1",
        "192.0.2.2",
        "192.0.3.0",
        "9.255.255.255",
        "11.0.0.0",
        "0.0.0.0",
        "255.255.255.255",
        "169.254.169.254",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:1::1",
        "2001:db9::",
        "::",
        "ff02::1",
        "fe80::1",
        "64:ff9b::10.0.0.1",
        "2002:c000:201::1",
        "::ffff:10.1.0.0",
        "64:ff9b:1:a00:0:100::",
    ])
    .prop_map(|text| text.parse().unwrap())
}

fn names() -> impl Strategy<Value = &'static str> {
    select(vec![
        "a.example",
        "A.example.",
        "b.a.example",
        "c.b.a.example",
        "x.a.example",
        "a-b.example",
        "example",
        "org",
        "x.example.org",
        "xa.example",
        "",
        "a\0example",
        "b.a\0example",
    ])
}

/// A lookup that returns the same names for all addresses.
struct All(Vec<&'static str>);

impl Lookup for All {
    fn names(&self, _: IpAddr) -> impl Iterator<Item = &str> {
        self.0.iter().copied()
    }
}

/// The first rule that matches, found by a loop over all rules.
fn naive(policy: &Policy, question: &Question, address: IpAddr, names: &All, by_name: bool) -> Option<usize> {
    let written = question.destination.ip();
    policy.rules().iter().position(|rule| {
        let deny = rule.action == Action::Deny;
        let destination = match &rule.destination {
            Destination::Prefix(prefix) => prefix.contains(&address) || deny && prefix.contains(&written),
            Destination::Group(_) => rule.covers_group(Group::of(address), question.leads_to_host),
            _ => (by_name || deny) && names.0.iter().any(|name| rule.names(name)),
        };
        destination && rule.is_about(question.protocol, question.destination.port())
    })
}

fn naive_verdict(policy: &Policy, question: &Question, names: &All) -> Verdict {
    let written = question.destination.ip();
    let mut addresses: Vec<IpAddr> = reached(written).collect();
    if addresses.is_empty() {
        addresses.push(written);
    }
    let one = |address: IpAddr| {
        let action =
            |rule: Option<usize>| rule.map_or(policy.default_action(), |at| policy.rules()[at].action);
        let first = naive(policy, question, address, names, true);
        let reason = first.map_or(Reason::Default, Reason::Rule);
        if action(first) == Action::Deny {
            return Verdict::Deny(reason);
        }
        let named =
            first.filter(|at| policy.rules()[*at].is_by_name() && question.protocol != Protocol::Icmp);
        match named {
            Some(rule) if action(naive(policy, question, address, names, false)) == Action::Deny => {
                Verdict::AllowNamed { rule, nameless: policy.rules()[rule].ports.are_given() }
            }
            _ => Verdict::Allow(reason),
        }
    };
    addresses.into_iter().map(one).reduce(Verdict::and).unwrap()
}

proptest! {
    #[test]
    fn a_verdict_is_that_of_the_first_match(
        rules in rules(),
        questions in vec((addresses(), 0..3_usize, 1..4_u16, any::<bool>(), vec(names(), 0..3)), 1..40),
    ) {
        let policy = policy(&rules);
        for (address, protocol, port, leads_to_host, names) in questions {
            let destination = SocketAddr::new(address, port);
            let question = Question { protocol: Protocol::ALL[protocol].1, destination, leads_to_host };
            let names = All(names);
            let expected = naive_verdict(&policy, &question, &names);
            prop_assert_eq!(policy.verdict(&question, &names), expected, "{:?} by\n{}", question, rules);
        }
    }

    #[test]
    fn a_verdict_on_a_name_is_that_of_the_first_match(rules in rules(), names in vec(names(), 1..8)) {
        let policy = policy(&rules);
        for name in names {
            let decides = |rule: &Rule| {
                let by_name = rule.names(name) && (rule.action == Action::Allow || rule.is_about_all());
                by_name || decides_all_names(rule)
            };
            let first = policy.rules().iter().position(decides);
            let reason = first.map_or(Reason::Default, Reason::Rule);
            match policy.name_verdict(name) {
                NameVerdict::Allow(found) => {
                    prop_assert_eq!(found, reason);
                    prop_assert_eq!(first.map_or(policy.default_action(), |at| policy.rules()[at].action), Action::Allow);
                }
                NameVerdict::Deny { reason: found, names_below } => {
                    prop_assert_eq!(found, reason);
                    let allowed = ["x", "b", "a", "c.b", "x.example"].into_iter().any(|label| {
                        let below = if name.is_empty() { label.into() } else { std::format!("{label}.{name}") };
                        matches!(policy.name_verdict(&below), NameVerdict::Allow(_))
                    });
                    prop_assert!(names_below || !allowed, "{} by\n{}", name, rules);
                }
            }
        }
    }
}
