//! The flows and DNS questions that the guest is allowed: rules by address, group and name, and the verdict on a new
//! flow or a DNS question ([record](https://github.com/passt-rs/passt-rs/blob/main/docs/design/guard.md)).
//!
//! The first rule that matches decides. If no rule matches, the default decides. A rule by name matches an address if
//! the guest got this address in an answer for such a name. A [`Lookup`] finds the names of an address.
//!
//! For an IPv6 address that carries an IPv4 address (IPv4-mapped, 6to4, NAT64, Teredo), the IPv4 address counts. A
//! rule that allows must match the IPv4 address. A rule that denies may match either address.
//!
//! ```
//! use engine::flow::Protocol;
//! use engine::policy::{Action, NoNames, Policy, Question, Reason, Verdict, spec};
//!
//! let file = spec::parse_file("allow tcp/192.0.2.0/24:443 # the registry\nallow icmp/public")?;
//! let policy = Policy::new(file.rules, file.default)?;
//! let destination = "192.0.2.7:443".parse()?;
//! let question = Question { protocol: Protocol::Tcp, destination, leads_to_host: false };
//! assert_eq!(policy.verdict(&question, &NoNames), Verdict::Allow(Reason::Rule(0)));
//! let question = Question { protocol: Protocol::Udp, ..question };
//! assert_eq!(policy.verdict(&question, &NoNames), Verdict::Deny(Reason::Default));
//! assert_eq!(policy.text(Reason::Rule(0)), "allow tcp/192.0.2.0/24:443");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod group;
mod name;
mod rule;
pub mod spec;
#[cfg(test)]
mod tests;
mod tree;

use alloc::{boxed::Box, vec::Vec};
use core::{
    cmp::Ordering,
    iter,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

pub use self::{
    group::{Group, METADATA},
    name::Name,
    rule::{Action, Destination, Ports, Rule},
};
use self::{spec::MAX_RULES, tree::Tree};
use crate::flow::Protocol;

/// The ports of DNS, DNS over TLS and QUIC, multicast DNS, and LLMNR.
const NAME_SERVICES: [u16; 4] = [53, 853, 5353, 5355];

/// An index that means "no rule". It is greater than the index of every rule.
const NO_RULE: u32 = u32::MAX;

/// A flow that the guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The protocol.
    pub protocol: Protocol,
    /// The destination to which the guest sends. For ICMP, the port does not matter.
    pub destination: SocketAddr,
    /// Whether the destination after translation (behaviour §5.2) is a loopback address or another address of the
    /// host.
    pub leads_to_host: bool,
}

/// Finds the names of addresses.
pub trait Lookup {
    /// The names that this guest asked for and for which an answer had `address`. Case and a trailing dot do not
    /// matter.
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str>;
}

/// A [`Lookup`] that knows no names.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNames;

impl Lookup for NoNames {
    fn names(&self, _: IpAddr) -> impl Iterator<Item = &str> {
        iter::empty()
    }
}

/// The names of the lookup, if there is one.
impl<L: Lookup> Lookup for Option<L> {
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.iter().flat_map(move |lookup| lookup.names(address))
    }
}

/// A lookup that returns only those names of `names` that are equal to `name`. `name` is the name that a client asked
/// for in its first bytes.
struct Claimed<'a, L> {
    name: &'a str,
    names: &'a L,
}

impl<L: Lookup> Lookup for Claimed<'_, L> {
    fn names(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.names.names(address).filter(|name| name::same(name, self.name))
    }
}

/// The reason for a verdict. [`Policy::text`] returns its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The rule with this index decided.
    Rule(usize),
    /// The default decided, since no rule matches.
    Default,
    /// There are rules by name, and the flow would use a name service whose answers are not judged: DNS over TLS or
    /// QUIC, multicast DNS, LLMNR, or DNS of a flow that bypasses the link.
    NameService,
}

/// The decision about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The flow may begin.
    Allow(Reason),
    /// The flow may begin, but is allowed by name alone. The name in the client's first bytes must be checked with
    /// [`Policy::claim_verdict`], since many names share an address.
    AllowNamed {
        /// Index of the rule.
        rule: usize,
        /// Whether first bytes without a name are also allowed, and the server may send first. True if the rule has
        /// ports, and this flow's port is neither 80 nor 443.
        nameless: bool,
    },
    /// The flow is refused.
    Deny(Reason),
}

impl Verdict {
    /// Whether the flow is refused.
    #[must_use]
    pub const fn is_deny(self) -> bool {
        matches!(self, Self::Deny(_))
    }

    /// Returns the stricter of two verdicts, or `self` if they are equal.
    fn and(self, other: Self) -> Self {
        let strictness = |verdict: &Self| match verdict {
            Self::Allow(_) => 0,
            Self::AllowNamed { .. } => 1,
            Self::Deny(_) => 2,
        };
        if strictness(&other) > strictness(&self) { other } else { self }
    }
}

/// The decision about a DNS question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameVerdict {
    /// The question may be forwarded to the host's resolvers.
    Allow(Reason),
    /// The question is answered at once, and is not forwarded.
    Deny {
        /// The reason for the refusal.
        reason: Reason,
        /// Whether names below this name may be allowed. If so, the answer must be NODATA: with NXDOMAIN, a cache
        /// would drop the names below as well (RFC 8020).
        names_below: bool,
    },
}

/// The reason why a list of rules can't be a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There are too many rules.
    #[error("Too many rules (max {MAX_RULES}); use prefixes and groups")]
    TooManyRules,
    /// There are rules by name, and another rule that is only about name services.
    #[error(
        "Rule '{0}' can't be honoured together with rules by name: these need every DNS question to be asked of the host's \
         resolver (see --dns-host), and no other name service; remove it"
    )]
    NameService(Box<str>),
}

/// The rules, in order, and indexes to find them fast.
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    default: Action,
    prefixes: Tree<IpNet>,
    names: Tree<Name>,
    /// The indexes of rules by group, in order.
    groups: Vec<u32>,
    /// The index of the first rule that decides for all names which no rule by name matches.
    all_names: u32,
}

impl Policy {
    /// Makes a policy of these rules. Without a `default`, flows that no rule matches are denied if any rule allows
    /// something, else they are allowed.
    ///
    /// # Errors
    /// There are too many rules, or they contradict each other.
    pub fn new(rules: Vec<Rule>, default: Option<Action>) -> Result<Self, PolicyError> {
        if rules.len() > MAX_RULES {
            return Err(PolicyError::TooManyRules);
        }
        if rules.iter().any(Rule::is_by_name)
            && let Some(rule) = rules.iter().find(|rule| contradicts_names(rule))
        {
            return Err(PolicyError::NameService(rule.text.clone()));
        }
        let allows = rules.iter().any(|rule| rule.action == Action::Allow);
        let default = default.unwrap_or(if allows { Action::Deny } else { Action::Allow });
        let (mut prefixes, mut names, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        for (rule, index) in rules.iter().zip(0..) {
            match &rule.destination {
                Destination::Prefix(prefix) => prefixes.push((*prefix, index)),
                Destination::Name(name) | Destination::Below(name) => names.push((name.clone(), index)),
                Destination::Group(_) => groups.push(index),
            }
        }
        Ok(Self {
            prefixes: Tree::new(prefixes, |above, below| above.contains(below)),
            names: Tree::new(names, |above, below| above.is_above(below.as_str())),
            groups,
            all_names: rules
                .iter()
                .zip(0..)
                .find(|(rule, _)| decides_all_names(rule))
                .map_or(NO_RULE, |at| at.1),
            rules,
            default,
        })
    }

    /// The rules, in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The decision about flows that no rule matches.
    #[must_use]
    pub const fn default_action(&self) -> Action {
        self.default
    }

    /// Whether there are rules by name. If so, the engine must intercept every DNS question of the guest, and get a
    /// verdict on it.
    #[must_use]
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether there are rules by group. Only rules by group depend on [`Question::leads_to_host`].
    #[must_use]
    pub const fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether verdicts depend on the addresses of the host itself. This is true if there are rules by group or by
    /// name. With rules by name, answers that lead to the host are refused.
    #[must_use]
    pub fn needs_own_addresses(&self) -> bool {
        self.has_groups() || self.has_names()
    }

    /// The text of a reason, for logs and extended DNS errors.
    #[must_use]
    pub fn text(&self, reason: Reason) -> &str {
        match (reason, self.default) {
            (Reason::Rule(index), _) => self.rules.get(index).map_or("", |rule| &rule.text),
            (Reason::Default, Action::Allow) => "default allow",
            (Reason::Default, Action::Deny) => "default deny",
            (Reason::NameService, _) => "rules by name: no other name service",
        }
    }

    /// The verdict on a flow that the guest begins. A DNS question is not a flow. `names` has the names for which this
    /// guest got addresses.
    pub fn verdict(&self, question: &Question, names: &impl Lookup) -> Verdict {
        let is_name_service =
            question.protocol != Protocol::Icmp && NAME_SERVICES.contains(&question.destination.port());
        if self.has_names() && is_name_service {
            return Verdict::Deny(Reason::NameService);
        }
        let written = question.destination.ip();
        let verdicts = reached(written).map(|address| self.judge(question, address, names));
        verdicts.reduce(Verdict::and).unwrap_or_else(|| self.judge(question, written, names))
    }

    /// The verdict on a flow of [`Verdict::AllowNamed`] after its client has sent `name` as the server's name. The
    /// flow is refused unless the rules allow `name`, and an answer for `name` had the flow's destination.
    pub fn claim_verdict(&self, question: &Question, name: &str, names: &impl Lookup) -> Verdict {
        self.verdict(question, &Claimed { name, names })
    }

    /// The verdict on a DNS question for `name`, in dotted form. Case and a trailing dot do not matter. A verdict is
    /// needed only if there are rules by name ([`Policy::has_names`]).
    ///
    /// Three kinds of rules count, and the first matching rule decides: a rule by name, a rule that allows the Internet
    /// (`all`, `public`, 0.0.0.0/0, ::/0) with any protocol or ports, and the rule `deny all`. A rule that denies a
    /// name counts only if it is about all protocols and ports.
    #[must_use]
    pub fn name_verdict(&self, name: &str) -> NameVerdict {
        let (action, reason) = self.outcome(self.first_by_name(name, self.all_names, |rule| {
            rule.names(name) && (rule.action == Action::Allow || rule.is_about_all())
        }));
        match action {
            Action::Allow => NameVerdict::Allow(reason),
            Action::Deny => NameVerdict::Deny { reason, names_below: self.may_allow_below(name) },
        }
    }

    /// Whether a DNS answer for an allowed name may have this address: a public address, or an address that no rule by
    /// address denies to the guest. Other answers are attempts to make a public name lead into private networks (DNS
    /// rebinding). `leads_to_host` has the meaning that it has in [`Question`].
    #[must_use]
    pub fn may_answer(&self, address: IpAddr, leads_to_host: bool) -> bool {
        let is_public = |reached: IpAddr| Group::of(reached) == Group::Public && !leads_to_host;
        all_reached(address, |reached| {
            is_public(reached) || self.allows_something(address, reached, leads_to_host)
        })
    }

    /// Whether a rule by address, or the default, allows the guest some protocol or port at this address.
    /// `leads_to_host` has the meaning that it has in [`Question`].
    #[must_use]
    pub fn may_reach(&self, address: IpAddr, leads_to_host: bool) -> bool {
        all_reached(address, |reached| self.allows_something(address, reached, leads_to_host))
    }

    /// Whether a rule is about this name. If no rule is, the addresses of the name need not be known.
    #[must_use]
    pub fn has_rule_about(&self, name: &str) -> bool {
        self.first_by_name(name, NO_RULE, |rule| rule.names(name)) != NO_RULE
    }

    fn allows_something(&self, address: IpAddr, reached: IpAddr, leads_to_host: bool) -> bool {
        let denies = |rule: &Rule| rule.action == Action::Deny && rule.is_about_all();
        let decides = |rule: &Rule| rule.action == Action::Allow || denies(rule);
        let first = self.first_by_address(reached, leads_to_host, decides);
        self.outcome(self.first_by_prefix(address, first, denies)).0 == Action::Allow
    }

    /// The verdict if the flow reaches `address`. `address` is the destination, or is carried in the destination.
    fn judge(&self, question: &Question, address: IpAddr, names: &impl Lookup) -> Verdict {
        let first = self.first(question, address, names, true);
        let (action, reason) = self.outcome(first);
        let rule = match (action, self.rules.get(first as usize)) {
            (Action::Deny, _) => return Verdict::Deny(reason),
            (Action::Allow, Some(rule)) if rule.is_by_name() && question.protocol != Protocol::Icmp => rule,
            (Action::Allow, _) => return Verdict::Allow(reason),
        };
        // A flow is allowed by name alone if it would be refused without the rules that allow by name.
        if self.outcome(self.first(question, address, names, false)).0 == Action::Allow {
            return Verdict::Allow(reason);
        }
        let nameless = rule.ports.are_given() && !matches!(question.destination.port(), 80 | 443);
        Verdict::AllowNamed { rule: first as usize, nameless }
    }

    /// Index of the first rule that matches. Rules that allow by name count only with `by_name`.
    fn first(&self, question: &Question, address: IpAddr, names: &impl Lookup, by_name: bool) -> u32 {
        let Question { protocol, destination, leads_to_host } = *question;
        let written = destination.ip();
        let matches = |rule: &Rule| rule.is_about(protocol, destination.port());
        let denies = |rule: &Rule| rule.action == Action::Deny && matches(rule);

        let mut first = self.first_by_address(address, leads_to_host, matches);
        if address != written {
            first = self.first_by_prefix(written, first, denies);
        }
        if self.names.is_empty() {
            return first;
        }
        for name in names.names(written) {
            first = self.first_by_name(name, first, |rule| {
                rule.names(name) && if by_name { matches(rule) } else { denies(rule) }
            });
        }
        if address != written {
            for name in names.names(address) {
                first = self.first_by_name(name, first, |rule| rule.names(name) && denies(rule));
            }
        }
        first
    }

    fn first_by_address(&self, address: IpAddr, leads_to_host: bool, matches: impl Fn(&Rule) -> bool) -> u32 {
        let first = self.first_by_prefix(address, NO_RULE, &matches);
        let group = Group::of(address);
        self.first_of(&self.groups, first, |rule| rule.covers_group(group, leads_to_host) && matches(rule))
    }

    fn first_by_prefix(&self, address: IpAddr, before: u32, matches: impl Fn(&Rule) -> bool) -> u32 {
        let whole = IpNet::from(address);
        let chain = self.prefixes.chain(|prefix| *prefix <= whole);
        chain
            .filter(|(prefix, _)| prefix.contains(&address))
            .fold(before, |first, (_, rules)| self.first_of(rules, first, &matches))
    }

    /// The index of the first matching rule among the rules of this name and of the names above it.
    fn first_by_name(&self, name: &str, before: u32, matches: impl Fn(&Rule) -> bool) -> u32 {
        let chain = self.names.chain(|own| own.order(name) != Ordering::Greater);
        chain.fold(before, |first, (_, rules)| self.first_of(rules, first, &matches))
    }

    /// The first of `rules`, which are in order, that matches. Returns `before` if no rule with a smaller index
    /// matches.
    fn first_of(&self, rules: &[u32], before: u32, matches: impl Fn(&Rule) -> bool) -> u32 {
        let mut candidates = rules.iter().copied().take_while(|index| *index < before);
        candidates.find(|index| self.rules.get(*index as usize).is_some_and(&matches)).unwrap_or(before)
    }

    fn outcome(&self, index: u32) -> (Action, Reason) {
        match self.rules.get(index as usize) {
            Some(rule) => (rule.action, Reason::Rule(index as usize)),
            None => (self.default, Reason::Default),
        }
    }

    /// Whether a name below `name` may be allowed.
    fn may_allow_below(&self, name: &str) -> bool {
        // The first case is a name below `name` that does not occur in a rule.
        let first = self.first_by_name(name, self.all_names, |rule| match &rule.destination {
            Destination::Below(own) => {
                (own.is(name) || own.is_above(name)) && (rule.action == Action::Allow || rule.is_about_all())
            }
            _ => false,
        });
        // The other case is a name in a rule, or a name below it.
        let allows =
            |rules: &[u32]| self.first_of(rules, NO_RULE, |rule| rule.action == Action::Allow) != NO_RULE;
        self.outcome(first).0 == Action::Allow
            || self
                .names
                .after(|own| own.order(name) != Ordering::Greater)
                .take_while(|(own, _)| own.is_below(name))
                .any(|(_, rules)| allows(rules))
    }
}

/// The addresses that packets to an address may reach instead.
fn reached(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let v6 = match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    };
    v6.into_iter().flat_map(group::carried).map(IpAddr::V4)
}

/// Whether `has` is true for all addresses that packets to `address` may reach instead of it. If there are no such
/// addresses, whether `has` is true for `address` itself.
fn all_reached(address: IpAddr, has: impl Fn(IpAddr) -> bool) -> bool {
    let mut reached = reached(address).peekable();
    if reached.peek().is_none() { has(address) } else { reached.all(has) }
}

/// Whether a rule contradicts rules by name. With rules by name, all DNS questions go to the host's resolver, and
/// other name services are refused. So a rule that allows another name service, or denies DNS, could not have an
/// effect.
fn contradicts_names(rule: &Rule) -> bool {
    match rule.action {
        Action::Allow => rule.ports.are_within(&NAME_SERVICES),
        Action::Deny => rule.ports.are_within(&[53]),
    }
}

/// Whether a rule by address decides for names that no rule by name matches. A rule about the Internet applies to all
/// names.
fn decides_all_names(rule: &Rule) -> bool {
    match rule.action {
        Action::Allow => rule.is_about_the_internet(),
        Action::Deny => rule.destination == Destination::Group(Group::All) && rule.is_about_all(),
    }
}
