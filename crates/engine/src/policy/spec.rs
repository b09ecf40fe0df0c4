//! The text form of rules: the arguments of `--allow` and `--deny`, and policy files.
//!
//! ```text
//! file        = { [ line ] [ "#" comment ] newline }
//! line        = ( "allow" | "deny" ) what | "default" ( "allow" | "deny" )
//! what        = [ protocol "/" ] destination [ ":" ports ]
//! protocol    = "tcp" | "udp" | "icmp"
//! destination = address | prefix | group | name | "*." name
//! ports       = chunk { "," chunk }
//! chunk       = range | "~" range
//! range       = number [ "-" number ]
//! ```
//!
//! IPv6 addresses and prefixes are in brackets if ports follow. Ports have the form that `-t` uses (behaviour §2.4):
//! the given ranges (all ports if there is none), without the ranges after `~`.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::{
    group::{Group, carried},
    name::Name,
    rule::{Action, Destination, Ports, Rule},
};
use crate::{flow::Protocol, ports::PortRange};

/// Maximum length of a rule's text, in bytes.
pub const MAX_RULE_LEN: usize = 1024;

/// Maximum length of a policy file, in bytes.
pub const MAX_FILE_LEN: usize = 16 << 20;

/// Maximum number of rules of a policy.
pub const MAX_RULES: usize = 1 << 16;

/// Maximum number of characters of a quoted text in a message.
const MAX_SHOWN: usize = 80;

/// The reason why a rule is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid rule '{text}': {fault}")]
pub struct RuleError {
    /// The text of the rule, shortened and without control characters.
    pub text: String,
    /// The fault in the rule.
    pub fault: Fault,
}

/// The fault in a rule. The message says what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The rule is too long.
    #[error("it has more than {MAX_RULE_LEN} bytes; make several rules of it")]
    TooLong,
    /// The rule has no destination.
    #[error("no destination; give an address, a prefix, a name or a group")]
    NoDestination,
    /// The word before the `/` is not a protocol.
    #[error("unknown protocol; use tcp, udp or icmp, or none for all")]
    Protocol,
    /// The text is a URL.
    #[error("a URL is no destination; write its host and port, as in example.org:443")]
    Url,
    /// The text has several destinations.
    #[error("only ports can be a list; write a rule for each destination")]
    List,
    /// The text of the destination has no known form.
    #[error(
        "not an address, a prefix, a domain name or a group (public, private, linklocal, metadata, host, multicast, all)"
    )]
    Destination,
    /// The prefix length is longer than an address, or not a number.
    #[error("invalid prefix length; it is at most 32 for IPv4, 128 for IPv6")]
    PrefixLength,
    /// The address is not the first of its prefix.
    #[error("the address has bits beyond the prefix length; write {0}")]
    HostBits(IpNet),
    /// An IPv6 address is followed by ports, and is not in brackets.
    #[error("an IPv6 address needs brackets if ports follow, as in [2001:db8::1]:443")]
    Brackets,
    /// The address has a scope.
    #[error("an interface can't be part of a rule; leave out what follows '%'")]
    Scope,
    /// The name has a star that is not the first label.
    #[error("'*' is the first label of a name, as in *.example.org; for every destination, write all")]
    Star,
    /// The word is a valid name, but is probably meant as a group.
    #[error("'{0}' is not a group; write {1}, or '{0}.' for a host of this name")]
    NearGroup(&'static str, &'static str),
    /// The ports can't be read.
    #[error("invalid ports; use numbers, ranges and lists, as in 443, 80,8000-8010 or ~25")]
    Ports,
    /// All ports are excluded, or the only port is 0, which no flow has.
    #[error("no ports remain")]
    NoPorts,
    /// The rule has ports, but its protocol has none.
    #[error("ICMP has no ports; leave them out, or use tcp or udp")]
    IcmpPorts,
    /// The rule is about TCP to a multicast address, which is never carried.
    #[error("TCP has no multicast; use udp")]
    TcpMulticast,
    /// The rule allows IPv6 addresses that carry IPv4 addresses. For such addresses, only rules about the IPv4
    /// addresses can allow.
    #[error("these addresses carry IPv4 addresses, which decide what may be reached; allow those instead")]
    Carries,
}

/// The reason why a policy file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct FileError {
    /// The line's number, counted from 1.
    pub line: usize,
    /// The fault in the line.
    pub fault: LineFault,
}

/// The fault in a line. The message says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// The line has an invalid rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The line begins with an unknown word.
    #[error("'{0}' is not known here; use 'allow WHAT', 'deny WHAT' or 'default allow|deny'")]
    Word(String),
    /// Other text follows the rule.
    #[error("unexpected '{0}'; each rule has its own line, and comments begin with '#'")]
    Rest(String),
    /// `default` is not followed by an action.
    #[error("'default' needs 'allow' or 'deny'")]
    Default,
    /// The file has a second `default` line.
    #[error("there is a 'default' in another line already; keep one of them")]
    SecondDefault,
    /// The file has too many rules.
    #[error("too many rules (max {MAX_RULES})")]
    TooManyRules,
}

/// The contents of a policy file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// The decision about flows that no rule matches. None if the file does not set it.
    pub default: Option<Action>,
}

/// Reads the `WHAT` part of a rule with the action `action`.
///
/// # Errors
/// If `what` does not match the grammar, or could never have an effect.
pub fn parse(action: Action, what: &str) -> Result<Rule, RuleError> {
    let what = what.trim();
    parse_rule(action, what).map_err(|fault| RuleError { text: shown(what), fault })
}

/// Reads a policy file.
///
/// # Errors
/// The first invalid line, and its fault.
pub fn parse_file(text: &str) -> Result<File, FileError> {
    let mut file = File::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, number) in text.lines().zip(1..) {
        file.add(line).map_err(|fault| FileError { line: number, fault })?;
    }
    Ok(file)
}

impl File {
    fn add(&mut self, line: &str) -> Result<(), LineFault> {
        let content = line.split('#').next().unwrap_or(line);
        let mut words = content.split_whitespace();
        let Some(word) = words.next() else { return Ok(()) };
        let argument = words.next();
        if let Some(rest) = words.next() {
            return Err(LineFault::Rest(shown(rest)));
        }
        if word == "default" {
            let action = argument.and_then(parse_action).ok_or(LineFault::Default)?;
            return match self.default.replace(action) {
                None => Ok(()),
                Some(_) => Err(LineFault::SecondDefault),
            };
        }
        let action = parse_action(word).ok_or_else(|| LineFault::Word(shown(word)))?;
        if self.rules.len() >= MAX_RULES {
            return Err(LineFault::TooManyRules);
        }
        self.rules.push(parse(action, argument.unwrap_or_default())?);
        Ok(())
    }
}

fn parse_action(word: &str) -> Option<Action> {
    match word {
        "allow" => Some(Action::Allow),
        "deny" => Some(Action::Deny),
        _ => None,
    }
}

fn parse_rule(action: Action, what: &str) -> Result<Rule, Fault> {
    if what.len() > MAX_RULE_LEN {
        return Err(Fault::TooLong);
    }
    if what.contains("://") {
        return Err(Fault::Url);
    }
    // Ports have neither dots nor colons.
    if what.split(',').skip(1).any(|part| part.contains(['.', ':'])) {
        return Err(Fault::List);
    }
    let (protocol, rest) = split_protocol(what)?;
    if rest.is_empty() {
        return Err(Fault::NoDestination);
    }
    let (destination, ports) = parse_target(rest)?;
    let ports = ports.map_or(Ok(Ports::ANY), parse_ports)?;
    let rule = Rule { action, protocol, destination, ports, text: format!("{action} {what}").into() };
    refuse_contradictions(&rule)?;
    Ok(rule)
}

/// Splits off the protocol. A `/` may also belong to a prefix. The text before the `/` shows which it is.
fn split_protocol(what: &str) -> Result<(Option<Protocol>, &str), Fault> {
    let Some((word, rest)) = what.split_once('/') else { return Ok((None, what)) };
    if let Some((_, protocol)) = Protocol::ALL.iter().find(|(own, _)| own.eq_ignore_ascii_case(word)) {
        return Ok((Some(*protocol), rest));
    }
    let letters = !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic());
    if letters { Err(Fault::Protocol) } else { Ok((None, what)) }
}

/// Parses the destination. Also returns the text of the ports.
fn parse_target(text: &str) -> Result<(Destination, Option<&str>), Fault> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or(Fault::Brackets)?;
        let (length, ports) = split_last_colon(rest);
        // The prefix length may follow the address or the bracket.
        if !length.is_empty() && !length.starts_with('/') {
            return Err(Fault::Destination);
        }
        let prefix = parse_prefix(&format!("{address}{length}"))?.ok_or(Fault::Destination)?;
        return Ok((prefix, ports));
    }
    if text.bytes().filter(|b| *b == b':').count() < 2 {
        let (destination, ports) = split_last_colon(text);
        return Ok((parse_destination(destination)?, ports));
    }
    // The text is an IPv6 address, without ports after it.
    match parse_prefix(text) {
        Ok(Some(prefix)) => Ok((prefix, None)),
        _ if text.contains('%') => Err(Fault::Scope),
        fault => {
            let (address, _) = split_last_colon(text);
            let without_ports = parse_prefix(address).is_ok_and(|found| found.is_some());
            Err(if without_ports { Fault::Brackets } else { fault.err().unwrap_or(Fault::Destination) })
        }
    }
}

fn split_last_colon(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        None => (text, None),
        Some((before, after)) => (before, Some(after)),
    }
}

/// Words that other tools have for groups, and the names of the groups here. Taken for the name of a host, they would
/// deny or allow almost nothing, silently.
const NEAR_GROUPS: [(&str, &str); 14] = [
    ("any", "all"),
    ("anywhere", "all"),
    ("everything", "all"),
    ("none", "'default deny' in a file, or deny all"),
    ("world", "public"),
    ("internet", "public"),
    ("lan", "private"),
    ("local", "private, linklocal or host"),
    ("localhost", "host"),
    ("loopback", "host"),
    ("self", "host"),
    ("link-local", "linklocal"),
    ("link_local", "linklocal"),
    ("broadcast", "multicast"),
];

fn parse_destination(text: &str) -> Result<Destination, Fault> {
    if text.is_empty() {
        return Err(Fault::NoDestination);
    }
    if let Some(prefix) = parse_prefix(text)? {
        return Ok(prefix);
    }
    if let Some((_, group)) = Group::ALL.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
        return Ok(Destination::Group(*group));
    }
    if let Some((word, group)) = NEAR_GROUPS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
        return Err(Fault::NearGroup(word, group));
    }
    if let Some(name) = text.strip_prefix("*.").filter(|name| !name.contains('*')) {
        return Name::parse(name).map(Destination::Below).ok_or(Fault::Destination);
    }
    if text.contains('*') {
        return Err(Fault::Star);
    }
    Name::parse(text).map(Destination::Name).ok_or(Fault::Destination)
}

/// An address or a prefix. None if the text is neither.
fn parse_prefix(text: &str) -> Result<Option<Destination>, Fault> {
    let (address, length) = match text.split_once('/') {
        None => (text, None),
        Some((address, length)) => (address, Some(length)),
    };
    let address: IpAddr = match address.parse() {
        Ok(address) => address,
        Err(_) if address.contains('%') => return Err(Fault::Scope),
        Err(_) => return Ok(None),
    };
    let prefix = match length {
        None => IpNet::from(address),
        Some(length) => {
            let length = PortRange::parse(length).filter(|range| range.len() == 1).map(PortRange::first);
            let length = length.and_then(|length| u8::try_from(length).ok()).ok_or(Fault::PrefixLength)?;
            IpNet::new(address, length).map_err(|_| Fault::PrefixLength)?
        }
    };
    let first = prefix.trunc();
    if first != prefix {
        return Err(Fault::HostBits(first));
    }
    Ok(Some(Destination::Prefix(canonical(first))))
}

/// An IPv4-mapped IPv6 prefix becomes an IPv4 prefix, as in forwarding rules (behaviour §2.4.5).
fn canonical(prefix: IpNet) -> IpNet {
    let IpNet::V6(v6) = prefix else { return prefix };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(prefix, IpNet::V4)
}

fn parse_ports(text: &str) -> Result<Ports, Fault> {
    let (mut included, mut excluded) = (Vec::new(), Vec::new());
    for chunk in text.split(',') {
        let (list, range) = match chunk.strip_prefix('~') {
            Some(range) => (&mut excluded, range),
            None => (&mut included, chunk),
        };
        list.push(PortRange::parse(range).ok_or(Fault::Ports)?);
    }
    if included.is_empty() {
        included.push(PortRange::ALL);
    }
    let excluded = PortRange::merge(excluded);
    let ranges: Vec<PortRange> =
        PortRange::merge(included).into_iter().flat_map(|range| range.without(&excluded)).collect();
    if ranges.iter().all(|range| range.last() == 0) {
        return Err(Fault::NoPorts);
    }
    Ok(Ports::given(ranges))
}

/// Refuses rules that match the grammar, but can never have an effect.
fn refuse_contradictions(rule: &Rule) -> Result<(), Fault> {
    if rule.protocol == Some(Protocol::Icmp) && rule.ports.are_given() {
        return Err(Fault::IcmpPorts);
    }
    let multicast = match &rule.destination {
        Destination::Group(group) => *group == Group::Multicast,
        Destination::Prefix(prefix) => {
            [prefix.network(), prefix.broadcast()].into_iter().all(|a| Group::of(a) == Group::Multicast)
        }
        Destination::Name(_) | Destination::Below(_) => false,
    };
    if rule.protocol == Some(Protocol::Tcp) && multicast {
        return Err(Fault::TcpMulticast);
    }
    if let (Action::Allow, Destination::Prefix(IpNet::V6(prefix))) = (rule.action, &rule.destination) {
        let carries = |address| carried(address).next().is_some();
        if carries(prefix.network()) && carries(prefix.broadcast()) {
            return Err(Fault::Carries);
        }
    }
    Ok(())
}

/// Text for a message: shortened, and without characters that a terminal could interpret.
fn shown(text: &str) -> String {
    let visible =
        |c: char| if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { c.escape_debug().to_string() };
    let mut shown: String = text.chars().take(MAX_SHOWN).map(visible).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}
