//! Requests of clients, in JSON.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use engine::forward::{Enabled, Protocol};
use serde_json::{Deserializer, Value};

/// What a request may leave out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// The families and protocols that may be forwarded.
    pub(crate) enabled: Enabled,
    /// The guest's IPv4 address.
    pub(crate) target: Ipv4Addr,
}

/// A valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `add_hostfwd`.
    Add(Forward),
    /// `list_hostfwd`.
    List,
    /// `remove_hostfwd`, with the number of the forwarded port.
    Remove(u64),
}

/// A port that is to be forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) protocol: Protocol,
    /// The address to listen on. The unspecified address means all addresses of the family.
    pub(crate) host_addr: IpAddr,
    pub(crate) host_port: u16,
    /// The destination. `None`: the guest's main IPv6 address at the time of a connection.
    pub(crate) guest_addr: Option<IpAddr>,
    pub(crate) guest_port: u16,
}

/// What bytes of a client mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More bytes may complete a value.
    Incomplete,
    /// The bytes begin with a value: a request, or the reason why the request is refused.
    Whole(Result<Request, String>),
}

/// Parses the bytes that a client has sent so far. `end`: the client sends no more bytes. Bytes after the first value
/// are ignored, as the C program does.
pub(super) fn parse(bytes: &[u8], end: bool, defaults: &Defaults) -> Parsed {
    match Deserializer::from_slice(bytes).into_iter::<Value>().next() {
        Some(Ok(value)) => Parsed::Whole(request(&value, defaults)),
        Some(Err(error)) if error.is_eof() && !end => Parsed::Incomplete,
        None if !end => Parsed::Incomplete,
        Some(Err(_)) | None => Parsed::Whole(Err("cannot parse JSON".into())),
    }
}

fn request(value: &Value, defaults: &Defaults) -> Result<Request, String> {
    if !value.is_object() {
        return Err("the request is not a JSON object".into());
    }
    let command = value.get("execute").and_then(Value::as_str).ok_or("no execute found")?;
    let arguments = value.get("arguments").unwrap_or(&Value::Null);
    let request = match command {
        "add_hostfwd" => add(arguments, defaults).map(Request::Add),
        "list_hostfwd" => Ok(Request::List),
        "remove_hostfwd" => match arguments.get("id").and_then(Value::as_u64) {
            Some(id) => Ok(Request::Remove(id)),
            None => Err("bad arguments.id".to_owned()),
        },
        _ => return Err("unknown execute".into()),
    };
    request.map_err(|error| format!("{command}: {error}"))
}

fn add(arguments: &Value, defaults: &Defaults) -> Result<Forward, String> {
    let bad = |name: &str| format!("bad arguments.{name}");
    let proto = arguments.get("proto").and_then(Value::as_str);
    let (protocol, family) = match proto.ok_or_else(|| bad("proto"))? {
        "tcp" => (Protocol::Tcp, None),
        "udp" => (Protocol::Udp, None),
        "tcp4" => (Protocol::Tcp, Some(Family::V4)),
        "udp4" => (Protocol::Udp, Some(Family::V4)),
        "tcp6" => (Protocol::Tcp, Some(Family::V6)),
        "udp6" => (Protocol::Udp, Some(Family::V6)),
        _ => return Err(bad("proto")),
    };
    let host_addr = address(arguments, "host_addr")?;
    let guest_addr = address(arguments, "guest_addr")?;
    let given = host_addr.or(guest_addr).map(Family::of);
    let family = family.or(given).unwrap_or(Family::V4);
    for (name, address) in [("host_addr", host_addr), ("guest_addr", guest_addr)] {
        if address.is_some_and(|address| Family::of(address) != family) {
            return Err(format!("{} (not an {} address)", bad(name), family.name()));
        }
    }
    if family == Family::V6 && !defaults.enabled.ipv6 {
        return Err(format!("{} (IPv6 needs --enable-ipv6)", bad("proto")));
    }
    let reaches_one_host = |address: &IpAddr| {
        !address.is_loopback() && !address.is_multicast() && *address != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    if guest_addr.is_some_and(|address| !reaches_one_host(&address)) {
        return Err(bad("guest_addr"));
    }
    let guest_addr = guest_addr.filter(|address| !address.is_unspecified());
    Ok(Forward {
        protocol,
        host_addr: host_addr.unwrap_or(family.unspecified()),
        host_port: port(arguments, "host_port")?,
        guest_addr: match family {
            Family::V4 => Some(guest_addr.unwrap_or(defaults.target.into())),
            Family::V6 => guest_addr,
        },
        guest_port: port(arguments, "guest_port")?,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

/// An address that may be missing, null or empty.
fn address(arguments: &Value, name: &str) -> Result<Option<IpAddr>, String> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|_| format!("bad arguments.{name}")),
        Some(_) => Err(format!("bad arguments.{name}")),
    }
}

/// A port. A number may have a fraction of zero, since some clients write all numbers that way.
fn port(arguments: &Value, name: &str) -> Result<u16, String> {
    let number = arguments.get(name).and_then(Value::as_f64);
    let valid = number.filter(|port| port.fract() == 0.0 && (1.0..=65535.0).contains(port));
    valid.map(|port| port as u16).ok_or_else(|| format!("bad arguments.{name}"))
}

#[cfg(test)]
mod tests;
