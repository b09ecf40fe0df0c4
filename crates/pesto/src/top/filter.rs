//! The filter that a user types, as conditions of the request `flows` (docs/api.md).

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::options::condition;

/// Arguments of the request that are not conditions. The list's order and length belong to `top`.
const NOT_CONDITIONS: [&str; 4] = ["sort", "ascending", "limit", "after"];

/// A filter: flows that meet all conditions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Filter {
    /// As it was typed.
    pub(super) text: String,
    /// The same as arguments of the request.
    pub(super) conditions: Map<String, Value>,
}

impl Filter {
    /// The filter that these words describe: a port, an address, a prefix, a protocol, a direction, `bypass`, a name, or
    /// NAME=VALUE.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let mut conditions = Map::new();
        for word in text.split_whitespace() {
            let (name, value) = meant(word)?;
            if NOT_CONDITIONS.contains(&&name[..]) {
                return Err(format!("'{word}' is no condition"));
            }
            if conditions.insert(name.clone(), value).is_some() {
                return Err(format!("'{word}': there can be only one condition for {name}"));
            }
        }
        Ok(Self { text: text.split_whitespace().collect::<Vec<_>>().join(" "), conditions })
    }
}

fn meant(word: &str) -> Result<(String, Value), String> {
    if word.contains('=') {
        return condition(word);
    }
    let name = match word {
        "tcp" | "udp" | "icmp" => "protocol",
        "inbound" | "outbound" => "direction",
        "bypass" => return Ok(("bypass".into(), true.into())),
        _ if word.parse::<u16>().is_ok() => return Ok(("port".into(), word.parse::<u16>().ok().into())),
        _ if word.parse::<IpAddr>().is_ok() || word.contains('/') => "address",
        _ => "name",
    };
    Ok((name.into(), word.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_conditions() {
        for (typed, meant) in [
            ("", json!({})),
            (" 443 ", json!({ "port": 443 })),
            ("192.0.2.1 tcp", json!({ "address": "192.0.2.1", "protocol": "tcp" })),
            ("2001:db8::/32", json!({ "address": "2001:db8::/32" })),
            (
                "*.example.org inbound bypass",
                json!({ "name": "*.example.org", "direction": "inbound", "bypass": true }),
            ),
            ("state=closing flow=7", json!({ "state": "closing", "flow": 7 })),
        ] {
            assert_eq!(Value::Object(Filter::new(typed).unwrap().conditions), meant, "{typed}");
        }
        assert_eq!(Filter::new(" tcp   443 ").unwrap().text, "tcp 443");
    }

    #[test]
    fn what_is_no_condition_is_refused() {
        for typed in ["80 443", "port=80 443", "sort=bytes", "limit=3", "after=x", "ascending=true", "flow=x"]
        {
            assert!(Filter::new(typed).is_err(), "{typed}");
        }
    }
}
