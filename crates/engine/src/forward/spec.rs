//! Port specifiers: the arguments of `-t`, `-u`, `-T` and `-U` (behaviour §2.4).
//!
//! ```text
//! spec   = "none" | [ listen "/" ] chunk { "," chunk }
//! listen = addr [ "%" ifname ] | [ "*" ] [ "%" ifname ]
//! chunk  = "all" [ ":" addr ] | "auto" | "~" range | range [ ":" ( addr "/" range | addr | range ) ]
//! range  = number [ "-" number ]
//! ```
//!
//! A specifier is parsed in two passes. The first pass reads every chunk and collects the excluded ports. The second
//! pass makes rules of the included ports, split around the excluded ports. So the order of chunks does not matter.

use alloc::{format, string::String, vec::Vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Enabled, IfName, Listen, MAX_RULES, PortRange, Protocol, Rule};

/// The settings that affect the meaning of a specifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Protocol of the option.
    pub protocol: Protocol,
    /// Direction of the option.
    pub direction: Direction,
    /// The enabled families. A wildcard listens on these families.
    pub enabled: Enabled,
    /// The host's ephemeral ports. `all`, `auto`, and a specifier that consists of exclusions leave out these ports
    /// (behaviour §8.7).
    pub ephemeral: PortRange,
}

/// The direction in which a rule forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the guest or namespace (`-t`, `-u`).
    Inbound,
    /// From the namespace to the host (`-T`, `-U`). The rules always listen on the namespace's loopback interface
    /// (behaviour §2.4.7).
    Outbound,
}

impl Direction {
    /// The opposite direction.
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }

    /// The name of the direction's table of rules, in messages and on the control socket. The name says where the
    /// rules listen (behaviour §8.9).
    #[must_use]
    pub const fn table_name(self) -> &'static str {
        match self {
            Self::Inbound => "HOST",
            Self::Outbound => "SPLICE",
        }
    }
}

/// Meaning of a specifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `none`: no rules, not even the default rules.
    None,
    /// Any specifier other than `none`.
    Forward {
        /// Whether `auto` occurred. If so, every rule has [`Rule::scan`] set.
        auto: bool,
        /// The rules, in the order of the specifier. The rules are not yet checked: [`super::Table::add`] checks them.
        rules: Vec<Rule>,
    },
}

/// The reason why a specifier is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The specifier does not match the grammar.
    #[error("Invalid port specifier '{0}'")]
    Invalid(String),
    /// The specifier does not match the grammar. The one after it, which does, is probably what was meant.
    #[error("Invalid port specifier '{0}'; did you mean '{1}'?")]
    Near(String, String),
    /// The specifier has a listening address or interface, which its direction does not allow (behaviour §2.4.7).
    #[error("Listening address not allowed in '{0}'")]
    ListenNotAllowed(String),
    /// The specifier would make more rules than a table can hold.
    #[error("Port specifier makes too many forwarding rules (max {MAX_RULES})")]
    TooManyRules,
}

/// Reads a specifier.
///
/// # Errors
/// If `spec` does not match the grammar, or is not allowed in `context`.
pub fn parse(spec: &str, context: &Context) -> Result<Spec, SpecError> {
    read(spec, context).map_err(|error| match (error, near(spec)) {
        (SpecError::Invalid(spec), Some(near)) if read(&near, context).is_ok() => SpecError::Near(spec, near),
        (error, _) => error,
    })
}

/// What may be meant by the notation of container engines, `ADDRESS:PORT:PORT`.
fn near(spec: &str) -> Option<String> {
    let colon = spec.find("]:").map_or_else(|| spec.find(':'), |bracket| Some(bracket + 1))?;
    let (address, ports) = (spec.get(..colon)?, spec.get(colon + 1..)?);
    parse_addr(address)?;
    Some(format!("{address}/{ports}"))
}

fn read(spec: &str, context: &Context) -> Result<Spec, SpecError> {
    if spec == "none" {
        return Ok(Spec::None);
    }
    let invalid = || SpecError::Invalid(String::from(spec));

    let (listen, ports) = split_listen(spec);
    if listen.is_some() && context.direction == Direction::Outbound {
        return Err(SpecError::ListenNotAllowed(String::from(spec)));
    }
    let chunks: Vec<Chunk> = ports.split(',').map(Chunk::parse).collect::<Option<_>>().ok_or_else(invalid)?;

    let maker = RuleMaker {
        protocol: context.protocol,
        listen: listen_for(listen, context),
        best_effort: !chunks.iter().any(|chunk| matches!(chunk, Chunk::Include { .. })),
        scan: chunks.contains(&Chunk::Auto),
        excluded: excluded(&chunks, context.ephemeral),
    };
    let rules = maker.rules(&chunks)?;
    Ok(Spec::Forward { auto: maker.scan, rules })
}

/// One of the comma-separated parts of a specifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// `all`, or `all:ADDR`.
    All { target: Option<IpAddr> },
    /// `auto`.
    Auto,
    /// `~RANGE`.
    Exclude(PortRange),
    /// `RANGE`, `RANGE:RANGE`, `RANGE:ADDR` or `RANGE:ADDR/RANGE`.
    Include { ports: PortRange, target: Option<IpAddr>, target_first: u16 },
}

impl Chunk {
    fn parse(text: &str) -> Option<Self> {
        if let Some(range) = text.strip_prefix('~') {
            return Some(Self::Exclude(PortRange::parse(range)?));
        }
        let (what, to) = match text.split_once(':') {
            None => (text, None),
            Some((what, to)) => (what, Some(to)),
        };
        match (what, to) {
            ("auto", None) => Some(Self::Auto),
            ("all", None) => Some(Self::All { target: None }),
            ("all", Some(to)) => Some(Self::All { target: specified(parse_addr(to)?) }),
            (range, to) => Self::include(PortRange::parse(range)?, to),
        }
    }

    fn include(ports: PortRange, to: Option<&str>) -> Option<Self> {
        let (target, target_ports) = match to {
            None => (None, ports),
            Some(to) => parse_target(to, ports)?,
        };
        // The two ranges must have the same length (behaviour §2.4.4).
        let same_length = target_ports.len() == ports.len();
        same_length.then_some(Self::Include { ports, target, target_first: target_ports.first() })
    }
}

/// Splits off the listening address, if there is one. A `/` may also belong to a target (`22:::1/22`). The text before
/// the `/` shows which it is.
fn split_listen(spec: &str) -> (Option<Listen>, &str) {
    let Some((before, ports)) = spec.split_once('/') else { return (None, spec) };
    match parse_listen(before) {
        Some(listen) => (Some(listen), ports),
        None => (None, spec),
    }
}

fn parse_listen(text: &str) -> Option<Listen> {
    let (addr, interface) = match text.split_once('%') {
        None => (text, None),
        Some((addr, name)) => (addr, Some(name.parse::<IfName>().ok()?)),
    };
    let addr = match addr {
        "" | "*" => None,
        addr => Some(parse_addr(addr)?),
    };
    Some(Listen { addr, interface })
}

/// Parses the text after the `:` of an included range. The text is parsed as an address first, then as a range of
/// ports.
fn parse_target(text: &str, ports: PortRange) -> Option<(Option<IpAddr>, PortRange)> {
    if let Some((addr, range)) = text.split_once('/') {
        return Some((specified(parse_addr(addr)?), PortRange::parse(range)?));
    }
    if let Some(addr) = parse_addr(text) {
        return Some((specified(addr), ports));
    }
    Some((None, PortRange::parse(text)?))
}

/// Parses an address, with or without brackets. An IPv4-mapped IPv6 address becomes an IPv4 address (behaviour
/// §2.4.5).
fn parse_addr(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|addr| addr.to_canonical())
}

/// An unspecified target address is treated as no target address.
fn specified(addr: IpAddr) -> Option<IpAddr> {
    (!addr.is_unspecified()).then_some(addr)
}

/// Where the rules listen: at the given address, or at the default address of the direction. A dual-stack wildcard
/// becomes the wildcard of the enabled family if only one is enabled (behaviour §2.4.5).
fn listen_for(given: Option<Listen>, context: &Context) -> Listen {
    let mut listen = given.unwrap_or(match context.direction {
        Direction::Inbound => Listen::ANY,
        Direction::Outbound => Listen { addr: None, interface: Some(IfName::loopback()) },
    });
    if listen.addr.is_none() {
        listen.addr = match (context.enabled.ipv4, context.enabled.ipv6) {
            (true, false) => Some(Ipv4Addr::UNSPECIFIED.into()),
            (false, true) => Some(Ipv6Addr::UNSPECIFIED.into()),
            _ => None,
        };
    }
    listen
}

/// The ports to exclude, in ascending order and without overlaps. If no range is included explicitly, the ephemeral
/// ports and port 0 are excluded too (behaviour §2.4.2).
fn excluded(chunks: &[Chunk], ephemeral: PortRange) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = chunks
        .iter()
        .filter_map(|chunk| match chunk {
            Chunk::Exclude(range) => Some(*range),
            _ => None,
        })
        .collect();
    if !chunks.iter().any(|chunk| matches!(chunk, Chunk::Include { .. })) {
        ranges.extend([ephemeral, PortRange::single(0)]);
    }
    PortRange::merge(ranges)
}

/// The second pass, which makes the rules.
struct RuleMaker {
    protocol: Protocol,
    listen: Listen,
    best_effort: bool,
    scan: bool,
    excluded: Vec<PortRange>,
}

impl RuleMaker {
    fn rules(&self, chunks: &[Chunk]) -> Result<Vec<Rule>, SpecError> {
        let mut rules = Vec::new();
        if self.best_effort {
            // Several `all` chunks count as one. If one of them has a target, the rules have this target.
            let target = chunks.iter().find_map(|chunk| match chunk {
                Chunk::All { target } => *target,
                _ => None,
            });
            self.add(&mut rules, PortRange::ALL, target, 0)?;
        }
        for chunk in chunks {
            if let Chunk::Include { ports, target, target_first } = *chunk {
                self.add(&mut rules, ports, target, target_first)?;
            }
        }
        Ok(rules)
    }

    /// Adds a rule for each contiguous range of `ports` between the exclusions.
    fn add(
        &self,
        rules: &mut Vec<Rule>,
        ports: PortRange,
        target_addr: Option<IpAddr>,
        target_first: u16,
    ) -> Result<(), SpecError> {
        for run in ports.without(&self.excluded) {
            // A hostile list of ranges and exclusions must not exhaust memory.
            if rules.len() >= MAX_RULES {
                return Err(SpecError::TooManyRules);
            }
            rules.push(Rule {
                protocol: self.protocol,
                listen: self.listen.clone(),
                ports: run,
                target_addr,
                target_first: target_first + (run.first() - ports.first()),
                best_effort: self.best_effort,
                scan: self.scan,
            });
        }
        Ok(())
    }
}
