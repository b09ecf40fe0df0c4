//! Lines of the flow log (docs/flow-log.md).

use std::net::IpAddr;

use engine::flow::Protocol;
use serde::Deserialize;

use super::{DEFAULT, Place, Refusal, Wanted, What, printable};

/// The number of names of an address that a note has. The log has as many.
const MOST_SHOWN: usize = 3;

/// The fields of a line that matter here. Unknown fields are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    refused: String,
    protocol: String,
    ip_protocol: Option<u8>,
    peer: Option<IpAddr>,
    peer_port: Option<u16>,
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    names: Vec<String>,
    rule: String,
    reason: String,
}

/// The part of a line that tells whether it has a refusal.
#[derive(Debug, Deserialize)]
struct Event {
    event: String,
}

/// Parses a line of the flow log. `Some(None)`: a line without a refusal. `None`: another text, or an invalid line.
pub(super) fn line(text: &str) -> Option<Option<Refusal>> {
    if !text.starts_with('{') {
        return None;
    }
    let Event { event } = serde_json::from_str(text).ok()?;
    if event != "refusal" {
        return Some(None);
    }
    // All strings may come from the guest.
    let mut fields: Fields = serde_json::from_str(text).ok()?;
    let Fields { refused, protocol, name, kind, names, rule, reason, .. } = &mut fields;
    for text in [refused, protocol, kind, rule, reason].into_iter().chain(name).chain(names) {
        *text = printable(text);
    }
    refusal(fields).map(Some)
}

fn refusal(fields: Fields) -> Option<Refusal> {
    let Fields { refused, protocol, rule, kind, .. } = &fields;
    if let "question" | "answer" = refused.as_str() {
        let name = fields.name.as_deref()?;
        if refused == "question" && rule == DEFAULT && kind != "PTR" {
            let destination = What::Name(name.to_owned());
            let wanted = Wanted { place: Place::Question, destination, protocol: None, port: None };
            return Some(Refusal::Wanted(wanted, Vec::new()));
        }
        return Some(Refusal::Noted(format!("DNS {name} {kind} ({rule})")));
    }
    let peer = fields.peer?;
    let known = Protocol::ALL.into_iter().find(|(word, _)| word == protocol);
    let (Some((_, protocol)), "flow" | "first-bytes") = (known, refused.as_str()) else {
        return Some(Refusal::Noted(match (refused.as_str(), fields.ip_protocol) {
            ("protocol", Some(number)) => format!("IP protocol {number} to {peer} ({rule})"),
            ("membership", _) => format!("membership of {peer} ({rule})"),
            _ => format!("{refused} to {peer} ({rule})"),
        }));
    };
    let port = if protocol == Protocol::Icmp { None } else { Some(fields.peer_port?) };
    let wanted = |destination| Wanted { place: Place::Flow, destination, protocol: Some(protocol), port };
    if rule != DEFAULT {
        let about = match (&fields.name, &fields.names) {
            (Some(name), _) => format!(": asked for {name}"),
            (None, _) if !fields.reason.is_empty() => format!(": {}", fields.reason),
            (None, names) if !names.is_empty() => {
                format!(": an answer for {}", names[..names.len().min(MOST_SHOWN)].join(" and "))
            }
            (None, _) => String::new(),
        };
        return Some(Refusal::Noted(format!("{}{about} ({rule})", wanted(What::Address(peer)))));
    }
    // The name that the client has sent counts in place of all names of the address.
    let mut names = match fields.name {
        Some(name) => vec![name],
        None => fields.names,
    }
    .into_iter();
    let destination = names.next().map_or(What::Address(peer), What::Name);
    Some(Refusal::Wanted(wanted(destination), names.collect()))
}
