//! Output of tables: text and JSON.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use control::message::Announced;

/// A title, and tables in the format of the C implementation.
pub(super) fn text(title: &str, path: &Path, tables: &[Announced]) -> String {
    let mut text = format!("{title} ({})\n", path.display());
    for table in tables {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(text, "  {}", table.name);
        for rule in &table.rules {
            let _ = writeln!(text, "    {rule}");
        }
    }
    text
}

/// A JSON object with the tables of `path`.
pub(super) fn json(path: &Path, tables: &[Announced]) -> String {
    Configuration { path: path.to_string_lossy(), previous: None, tables: shown(tables) }.line()
}

/// A JSON object with the tables of `path` before and after a change.
pub(super) fn changed_json(path: &Path, previous: &[Announced], updated: &[Announced]) -> String {
    let previous = Some(shown(previous));
    Configuration { path: path.to_string_lossy(), previous, tables: shown(updated) }.line()
}

fn shown(tables: &[Announced]) -> Vec<Table<'_>> {
    tables.iter().map(Table::of).collect()
}

/// What is printed. The order of the fields is that of the output.
#[derive(Serialize)]
struct Configuration<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Vec<Table<'a>>>,
    tables: Vec<Table<'a>>,
}

#[derive(Serialize)]
struct Table<'a> {
    name: &'a str,
    capabilities: Vec<&'static str>,
    rules: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    protocol: String,
    address: Option<IpAddr>,
    interface: Option<&'a str>,
    first: u16,
    last: u16,
    target_address: Option<IpAddr>,
    target_first: u16,
    target_last: u16,
    best_effort: bool,
    auto: bool,
}

impl Configuration<'_> {
    fn line(&self) -> String {
        // Strings, numbers and lists always have a representation.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

impl<'a> Table<'a> {
    fn of(table: &'a Announced) -> Self {
        Self {
            name: &table.name,
            capabilities: table.capabilities.names().collect(),
            rules: table.rules.iter().map(Rule::of).collect(),
        }
    }
}

impl<'a> Rule<'a> {
    fn of(rule: &'a engine::forward::Rule) -> Self {
        let target = rule.target_ports();
        Self {
            protocol: rule.protocol.to_string(),
            address: rule.listen.addr,
            interface: rule.listen.interface.as_deref(),
            first: rule.ports.first(),
            last: rule.ports.last(),
            target_address: rule.target_addr,
            target_first: target.first(),
            target_last: target.last(),
            best_effort: rule.best_effort,
            auto: rule.scan,
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::forward::{Listen, PortRange, Protocol, Rule};

    use super::{Announced, Path, changed_json, json, text};
    use control::message::{Capabilities, Pif};

    fn table() -> Announced {
        let rule = Rule {
            protocol: Protocol::Tcp,
            listen: Listen { addr: "127.0.0.1".parse().ok(), interface: "lo".parse().ok() },
            ports: PortRange::new(80, 81).unwrap(),
            target_addr: None,
            target_first: 8080,
            best_effort: false,
            scan: true,
        };
        let capabilities = Capabilities::IPV4 | Capabilities::TCP | Capabilities::SCAN;
        Announced { pif: Pif::HOST, name: "HOST".into(), capabilities, rules: vec![rule] }
    }

    /// behaviour §8.9.
    #[test]
    fn text_of_a_table() {
        assert_eq!(
            text("Previous configuration", Path::new("/s"), &[table()]),
            "Previous configuration (/s)\n  HOST\n    TCP [127.0.0.1]%lo:80-81  =>  8080-8081  (auto-scan)\n"
        );
    }

    #[test]
    fn json_of_tables() {
        assert_eq!(
            json(Path::new("/a\"b\n"), &[table()]),
            "{\"path\":\"/a\\\"b\\n\",\"tables\":[{\"name\":\"HOST\",\
             \"capabilities\":[\"IPv4\",\"TCP\",\"scan\"],\"rules\":[{\"protocol\":\"TCP\",\
             \"address\":\"127.0.0.1\",\"interface\":\"lo\",\"first\":80,\"last\":81,\"target_address\":null,\
             \"target_first\":8080,\"target_last\":8081,\"best_effort\":false,\"auto\":true}]}]}\n"
        );
        assert_eq!(
            changed_json(Path::new("s"), &[], &[]),
            "{\"path\":\"s\",\"previous\":[],\"tables\":[]}\n"
        );
    }
}
