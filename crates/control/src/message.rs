//! Messages of the control socket (behaviour §8.9): encoding and decoding, for both client and server.
//!
//! The server sends a greeting, its tables and an end mark. To change the rules, a client sends an update: tables and
//! an end mark. All numbers are in network byte order.
//!
//! Each attempt to decode starts at the beginning of the message. If the message is incomplete, the attempt reports how
//! many bytes it needs, and the caller waits for them. So a peer that sends single bytes causes no more work than a
//! peer that sends the whole message at once.

use std::net::{IpAddr, Ipv6Addr};

use bitflags::bitflags;
use engine::forward::{Enabled, IfName, Listen, MAX_RULES, PortRange, Protocol, Rule};
use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of a greeting.
const MAGIC: [u8; 8] = *b"basil:s\0";
/// Version of the protocol. Version 0 was experimental.
pub const VERSION: u32 = 2;
/// Length of the field with the name of a table, in bytes.
const NAME_LEN: usize = 128;
/// Length of the field with the name of an interface, in bytes.
const IFNAME_LEN: usize = IfName::MAX_LEN + 1;
/// End mark, in place of the identifier of the next table.
const END: u8 = 0;
/// Maximum number of tables in a message. This version has two tables. A later version may have more.
const MAX_TABLES: usize = 8;

/// Length of the longest update or announcement, in bytes.
pub const MAX_LEN: usize = size_of::<Greeting>() + MAX_TABLES * (1 + TABLE_LEN + MAX_RULES * RULE_LEN) + 1;
const TABLE_LEN: usize = size_of::<TableHead>();
const RULE_LEN: usize = size_of::<RawRule>();

/// Identifier of a table on the wire: the side on which its rules listen ("passt interface").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pif(pub u8);

impl Pif {
    /// Sockets of the host (`-t`, `-u`).
    pub const HOST: Self = Self(1);
    /// Sockets on the loopback of the guest's namespace (`-T`, `-U`).
    pub const SPLICE: Self = Self(3);
}

bitflags! {
    /// The features that the rules of a table may use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// IPv4.
        const IPV4 = 1;
        /// IPv6.
        const IPV6 = 2;
        /// TCP.
        const TCP = 4;
        /// UDP.
        const UDP = 8;
        /// Rules that follow the ports in use on the other side (behaviour §8.4).
        const SCAN = 16;
        /// Rules that listen on one interface.
        const IFNAME = 32;
        /// An extension: the server supports requests about the policy ([`crate::policy`]). Either all tables have this
        /// bit, or none has it. The C implementation does not use this bit.
        const POLICY = 1 << 31;
        // Unknown bits, of later versions, are kept.
        const _ = !0;
    }
}

impl Capabilities {
    /// The families and protocols, in the form that [`engine::forward::Table::add`] checks.
    #[must_use]
    pub fn enabled(self) -> Enabled {
        Enabled {
            ipv4: self.contains(Self::IPV4),
            ipv6: self.contains(Self::IPV6),
            tcp: self.contains(Self::TCP),
            udp: self.contains(Self::UDP),
        }
    }

    /// The capabilities that have a name.
    const NAMES: [(Self, &'static str); 7] = [
        (Self::IPV4, "IPv4"),
        (Self::IPV6, "IPv6"),
        (Self::TCP, "TCP"),
        (Self::UDP, "UDP"),
        (Self::SCAN, "scan"),
        (Self::IFNAME, "ifname"),
        (Self::POLICY, "policy"),
    ];

    /// The names of the set capabilities, as `pesto` prints them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, name)| name)
    }

    /// The capability with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(bit, _)| bit)
    }

    /// The capabilities for the enabled families and protocols.
    #[must_use]
    pub fn of(enabled: Enabled) -> Self {
        let bits = [
            (enabled.ipv4, Self::IPV4),
            (enabled.ipv6, Self::IPV6),
            (enabled.tcp, Self::TCP),
            (enabled.udp, Self::UDP),
        ];
        bits.into_iter().filter(|(on, _)| *on).map(|(_, bit)| bit).collect()
    }
}

/// A table, as announced by the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The identifier.
    pub pif: Pif,
    /// The name, for display. At most 127 bytes. A longer name is cut.
    pub name: String,
    /// The features that its rules may use.
    pub capabilities: Capabilities,
    /// The rules in force.
    pub rules: Vec<Rule>,
}

/// The tables that a client requests. A table that is not listed becomes empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update(pub Vec<(Pif, Vec<Rule>)>);

/// Why a message is invalid. If the C implementation's client has a text for the error, the text is the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer does not use this protocol.
    #[error("Bad magic number from server")]
    Magic,
    /// A later version of the protocol.
    #[error("Unknown server protocol version {0} > {VERSION}")]
    Version(u32),
    /// Version 0.
    #[error("Unsupported experimental server protocol")]
    Experimental,
    /// The peer uses another length for the names of tables.
    #[error("Server has unexpected pif name size ({0} not {NAME_LEN})")]
    NameLength(u32),
    /// The peer uses another length for the names of interfaces.
    #[error("Server has unexpected IFNAMSIZ ({0} not {IFNAME_LEN})")]
    IfNameLength(u32),
    /// The name of a table is not terminated, not UTF-8, or has control characters.
    #[error("Table {0} has an invalid name")]
    Name(u8),
    /// The message has two tables with the same identifier.
    #[error("Received duplicate interface identifier {0}")]
    Duplicate(u8),
    /// There are too many tables.
    #[error("Too many forwarding tables (max {MAX_TABLES})")]
    TooManyTables,
    /// A table has too many rules.
    #[error("Too many forwarding rules ({0}, max {MAX_RULES})")]
    TooManyRules(u32),
    /// A rule is invalid.
    #[error("Rule {number} of table {pif}: {what}")]
    Rule {
        /// Identifier of the table.
        pif: u8,
        /// Position of the rule in the table, from 1.
        number: usize,
        /// What is wrong with the rule.
        what: &'static str,
    },
}

/// The result of decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The whole message.
    Whole(T),
    /// The message is incomplete. The next attempt needs at least this many bytes, counted from its start.
    Needs(usize),
}

/// Encodes the greeting and tables of a server.
#[must_use]
pub fn encode_announcement(tables: &[Announced]) -> Vec<u8> {
    let greeting = Greeting {
        magic: MAGIC,
        version: VERSION.into(),
        name_len: (NAME_LEN as u32).into(),
        ifname_len: (IFNAME_LEN as u32).into(),
    };
    let mut bytes = greeting.as_bytes().to_vec();
    for table in tables {
        let head = TableHead {
            name: padded(&table.name),
            capabilities: table.capabilities.bits().into(),
            count: (table.rules.len() as u32).into(),
        };
        bytes.push(table.pif.0);
        bytes.extend_from_slice(head.as_bytes());
        encode_rules(&table.rules, &mut bytes);
    }
    bytes.push(END);
    bytes
}

/// Decodes the greeting and tables of a server.
///
/// # Errors
/// The message is invalid. The caller should close the connection.
pub fn decode_announcement(bytes: &[u8]) -> Result<Decoded<Vec<Announced>>, Error> {
    let mut reader = Reader { bytes, at: 0 };
    // Version 1 has the same greeting.
    match reader.take::<Greeting>() {
        Err(Short(needs)) => return Ok(Decoded::Needs(needs)),
        Ok(greeting) => greeting.check()?,
    }
    decode_tables(reader, |reader, pif| {
        let head = reader.take::<TableHead>()?;
        let name = name(&head.name).ok_or(Stop::Wrong(Error::Name(pif.0)))?;
        let capabilities = Capabilities::from_bits_retain(head.capabilities.get());
        let rules = decode_rules(reader, pif, head.count.get())?;
        Ok(Announced { pif, name, capabilities, rules })
    })
}

/// Encodes the update of a client.
#[must_use]
pub fn encode_update(update: &Update) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (pif, rules) in &update.0 {
        bytes.push(pif.0);
        bytes.extend_from_slice(&(rules.len() as u32).to_be_bytes());
        encode_rules(rules, &mut bytes);
    }
    bytes.push(END);
    bytes
}

/// Decodes the update of a client. Each rule in the result is valid by itself. Conflicts between rules are not checked.
///
/// # Errors
/// The message is invalid. The caller must not change any table.
pub fn decode_update(bytes: &[u8]) -> Result<Decoded<Update>, Error> {
    let tables = decode_tables(Reader { bytes, at: 0 }, |reader, pif| {
        let count = reader.take::<U32>()?.get();
        Ok((pif, decode_rules(reader, pif, count)?))
    })?;
    Ok(match tables {
        Decoded::Whole(tables) => Decoded::Whole(Update(tables)),
        Decoded::Needs(needs) => Decoded::Needs(needs),
    })
}

fn decode_tables<T>(
    mut reader: Reader<'_>,
    mut table: impl FnMut(&mut Reader<'_>, Pif) -> Result<T, Stop>,
) -> Result<Decoded<Vec<T>>, Error> {
    let mut tables: Vec<(Pif, T)> = Vec::new();
    loop {
        let next = reader.take::<u8>().map_err(Stop::from).and_then(|&pif| match Pif(pif) {
            Pif(END) => Ok(None),
            pif if tables.iter().any(|(other, _)| *other == pif) => Err(Stop::Wrong(Error::Duplicate(pif.0))),
            _ if tables.len() == MAX_TABLES => Err(Stop::Wrong(Error::TooManyTables)),
            pif => table(&mut reader, pif).map(|table| Some((pif, table))),
        });
        match next {
            Ok(None) => return Ok(Decoded::Whole(tables.into_iter().map(|(_, table)| table).collect())),
            Ok(Some(table)) => tables.push(table),
            Err(Stop::Short(needs)) => return Ok(Decoded::Needs(needs)),
            Err(Stop::Wrong(error)) => return Err(error),
        }
    }
}

fn encode_rules(rules: &[Rule], bytes: &mut Vec<u8>) {
    for rule in rules {
        bytes.extend_from_slice(RawRule::from(rule).as_bytes());
    }
}

fn decode_rules(reader: &mut Reader<'_>, pif: Pif, count: u32) -> Result<Vec<Rule>, Stop> {
    let fits = usize::try_from(count).ok().filter(|count| *count <= MAX_RULES);
    let count = fits.ok_or(Stop::Wrong(Error::TooManyRules(count)))?;
    let raw = reader.take_many::<RawRule>(count)?;
    let rule = |(index, raw): (usize, &RawRule)| {
        raw.rule().map_err(|what| Stop::Wrong(Error::Rule { pif: pif.0, number: index + 1, what }))
    };
    raw.iter().enumerate().map(rule).collect()
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Greeting {
    magic: [u8; 8],
    version: U32,
    name_len: U32,
    ifname_len: U32,
}

impl Greeting {
    fn check(&self) -> Result<(), Error> {
        if self.magic != MAGIC {
            return Err(Error::Magic);
        }
        match (self.version.get(), self.name_len.get(), self.ifname_len.get()) {
            (0, ..) => Err(Error::Experimental),
            (version, ..) if version > VERSION => Err(Error::Version(version)),
            (_, name, _) if name != NAME_LEN as u32 => Err(Error::NameLength(name)),
            (.., ifname) if ifname != IFNAME_LEN as u32 => Err(Error::IfNameLength(ifname)),
            _ => Ok(()),
        }
    }
}

/// The fields after the identifier of a table in an announcement.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct TableHead {
    name: [u8; NAME_LEN],
    capabilities: U32,
    count: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRule {
    /// Listening address. An IPv4 address is written as an IPv4-mapped one.
    listen: [u8; 16],
    /// Target address, in the form of `listen`. The unspecified address means that there is no target address.
    target: [u8; 16],
    /// Name of the interface, padded with zeros. All zeros mean that there is no interface.
    interface: [u8; IFNAME_LEN],
    first: U16,
    last: U16,
    target_first: U16,
    protocol: u8,
    flags: u8,
}

bitflags! {
    struct Flags: u8 {
        /// The rule listens on the wildcard addresses of both families.
        const DUAL_STACK = 1;
        const BEST_EFFORT = 2;
        const SCAN = 4;
    }
}

impl From<&Rule> for RawRule {
    fn from(rule: &Rule) -> Self {
        let mut flags = Flags::empty();
        flags.set(Flags::DUAL_STACK, rule.listen.addr.is_none());
        flags.set(Flags::BEST_EFFORT, rule.best_effort);
        flags.set(Flags::SCAN, rule.scan);
        Self {
            listen: octets(rule.listen.addr),
            target: octets(rule.target_addr),
            interface: padded(rule.listen.interface.as_deref().unwrap_or_default()),
            first: rule.ports.first().into(),
            last: rule.ports.last().into(),
            target_first: rule.target_first.into(),
            protocol: match rule.protocol {
                Protocol::Tcp => TCP,
                Protocol::Udp => UDP,
            },
            flags: flags.bits(),
        }
    }
}

/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

impl RawRule {
    fn rule(&self) -> Result<Rule, &'static str> {
        let flags = Flags::from_bits(self.flags).ok_or("unknown flags")?;
        let listen = Ipv6Addr::from(self.listen);
        let addr = match flags.contains(Flags::DUAL_STACK) {
            true if listen.is_unspecified() => None,
            true => return Err("an address for both families"),
            false => Some(IpAddr::V6(listen).to_canonical()),
        };
        let interface = match name(&self.interface) {
            Some(name) if name.is_empty() => None,
            name => Some(name.and_then(|name| name.parse().ok()).ok_or("invalid interface name")?),
        };
        let target = IpAddr::from(self.target).to_canonical();
        Ok(Rule {
            protocol: match self.protocol {
                TCP => Protocol::Tcp,
                UDP => Protocol::Udp,
                _ => return Err("unknown protocol"),
            },
            listen: Listen { addr, interface },
            ports: PortRange::new(self.first.get(), self.last.get()).ok_or("reversed range of ports")?,
            target_addr: (!target.is_unspecified()).then_some(target),
            target_first: self.target_first.get(),
            best_effort: flags.contains(Flags::BEST_EFFORT),
            scan: flags.contains(Flags::SCAN),
        })
    }
}

fn octets(address: Option<IpAddr>) -> [u8; 16] {
    match address {
        None => [0; 16],
        Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
        Some(IpAddr::V6(v6)) => v6.octets(),
    }
}

/// A field with a text, padded with at least one zero. A text that is too long is cut.
fn padded<const LEN: usize>(text: &str) -> [u8; LEN] {
    let mut field = [0; LEN];
    field.iter_mut().take(LEN - 1).zip(text.bytes()).for_each(|(to, from)| *to = from);
    field
}

/// The text in a field. None if it is not terminated, not UTF-8, or has control characters.
fn name(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&field[..end]).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Decoding needs at least this many bytes, counted from the start of the message.
struct Short(usize);

/// Why decoding stopped.
enum Stop {
    Short(usize),
    Wrong(Error),
}

impl From<Short> for Stop {
    fn from(Short(needs): Short) -> Self {
        Self::Short(needs)
    }
}

impl<'a> Reader<'a> {
    fn take<T: FromBytes + Immutable + KnownLayout + Unaligned>(&mut self) -> Result<&'a T, Short> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (value, _) = T::ref_from_prefix(rest).map_err(|_| Short(self.at + size_of::<T>()))?;
        self.at += size_of::<T>();
        Ok(value)
    }

    fn take_many<T: FromBytes + Immutable + KnownLayout + Unaligned>(
        &mut self,
        count: usize,
    ) -> Result<&'a [T], Short> {
        let end = self.at + count * size_of::<T>();
        let bytes = self.bytes.get(self.at..end).ok_or(Short(end))?;
        self.at = end;
        <[T]>::ref_from_bytes(bytes).map_err(|_| Short(end))
    }
}

#[cfg(test)]
mod tests;
