//! The forwarding rules in an answer of the API socket, as the control socket announces them.

use std::net::IpAddr;

use engine::forward::{Listen, PortRange, Protocol};
use serde::Deserialize;
use serde_json::Value;

use control::message::{Announced, Capabilities, Pif};

/// The tables.
///
/// # Errors
/// A message for the user: a later server may have kinds of rules that this program does not know.
pub(super) fn tables(answer: Value) -> Result<Vec<Announced>, String> {
    let unknown = |error: String| format!("can't understand the rules of the server: {error}");
    let tables: Vec<Table> = serde_json::from_value(answer).map_err(|error| unknown(error.to_string()))?;
    tables.into_iter().map(|table| table.announced().map_err(unknown)).collect()
}

#[derive(Deserialize)]
struct Table {
    name: String,
    direction: Direction,
    capabilities: Vec<String>,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Inbound,
    Outbound,
}

#[derive(Deserialize)]
struct Rule {
    protocol: Transport,
    address: Option<IpAddr>,
    interface: Option<String>,
    first: u16,
    last: u16,
    target_address: Option<IpAddr>,
    target_first: u16,
    best_effort: bool,
    auto: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    Tcp,
    Udp,
}

impl Table {
    fn announced(self) -> Result<Announced, String> {
        let pif = match self.direction {
            Direction::Inbound => Pif::HOST,
            Direction::Outbound => Pif::SPLICE,
        };
        let capabilities = self.capabilities.iter().filter_map(|name| Capabilities::named(name)).collect();
        let rules: Vec<_> = self.rules.into_iter().map(Rule::rule).collect::<Result<_, _>>()?;
        let interfaces = rules.iter().filter_map(|rule| rule.listen.interface.as_deref());
        if [&self.name[..]].into_iter().chain(interfaces).any(|name| name.contains(char::is_control)) {
            return Err("a name has control characters".into());
        }
        Ok(Announced { pif, name: self.name, capabilities, rules })
    }
}

impl Rule {
    fn rule(self) -> Result<engine::forward::Rule, String> {
        let protocol = match self.protocol {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        let interface = self.interface.map(|name| name.parse()).transpose();
        let interface = interface.map_err(|_| "the name of an interface")?;
        let ports = PortRange::new(self.first, self.last).ok_or("a range of ports")?;
        // The last target fits, too.
        if self.target_first.checked_add(self.last - self.first).is_none() {
            return Err("a range of target ports".into());
        }
        Ok(engine::forward::Rule {
            protocol,
            listen: Listen { addr: self.address, interface },
            ports,
            target_addr: self.target_address,
            target_first: self.target_first,
            best_effort: self.best_effort,
            scan: self.auto,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_of_an_answer() {
        let rule = json!({
            "protocol": "udp", "address": "2001:db8::1", "interface": "lo", "first": 80, "last": 81,
            "target_address": "192.0.2.1", "target_first": 8080, "target_last": 8081, "best_effort": true,
            "auto": false, "later": 1,
        });
        let answer = |rule: &Value| {
            json!([{
                "name": "SPLICE", "direction": "outbound", "capabilities": ["IPv6", "later", "scan"], "rules": [rule],
            }])
        };
        let found = tables(answer(&rule)).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].pif, &found[0].name[..]), (Pif::SPLICE, "SPLICE"));
        assert_eq!(found[0].capabilities, Capabilities::IPV6 | Capabilities::SCAN);
        assert_eq!(
            found[0].rules[0].to_string(),
            "UDP [2001:db8::1]%lo:80-81  =>  192.0.2.1:8080-8081  (best effort)"
        );
        for (field, value) in [
            ("protocol", json!("sctp")),
            ("interface", json!("a/b")),
            ("interface", json!("a\u{1b}b")),
            ("last", json!(79)),
            ("target_first", json!(65535)),
            ("auto", json!(null)),
        ] {
            let mut wrong = rule.clone();
            wrong[field] = value;
            let error = tables(answer(&wrong)).unwrap_err();
            assert!(error.starts_with("can't understand the rules of the server: "), "{field}: {error}");
        }
    }
}
