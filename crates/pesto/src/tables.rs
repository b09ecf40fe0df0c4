//! Output of tables: text and JSON.

use std::fmt::{self, Display, Write};
use std::path::Path;

use engine::forward::Rule;

use control::message::{Announced, Capabilities};

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
    format!("{{\"path\":{},\"tables\":{}}}\n", Quoted(&path.to_string_lossy()), Tables(tables))
}

/// A JSON object with the tables of `path` before and after a change.
pub(super) fn changed_json(path: &Path, previous: &[Announced], updated: &[Announced]) -> String {
    format!(
        "{{\"path\":{},\"previous\":{},\"tables\":{}}}\n",
        Quoted(&path.to_string_lossy()),
        Tables(previous),
        Tables(updated)
    )
}

/// The names of the set capabilities.
pub(super) fn capabilities(capabilities: Capabilities) -> impl Iterator<Item = &'static str> {
    let names = [
        (Capabilities::IPV4, "IPv4"),
        (Capabilities::IPV6, "IPv6"),
        (Capabilities::TCP, "TCP"),
        (Capabilities::UDP, "UDP"),
        (Capabilities::SCAN, "scan"),
        (Capabilities::IFNAME, "ifname"),
        (Capabilities::POLICY, "policy"),
    ];
    names.into_iter().filter(move |(bit, _)| capabilities.contains(*bit)).map(|(_, name)| name)
}

struct Tables<'a>(&'a [Announced]);

impl Display for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0, |f, table| {
            write!(f, "{{\"name\":{},\"capabilities\":", Quoted(&table.name))?;
            list(f, capabilities(table.capabilities), |f, name| Quoted(name).fmt(f))?;
            f.write_str(",\"rules\":")?;
            list(f, &table.rules, json_rule)?;
            f.write_char('}')
        })
    }
}

fn json_rule(f: &mut fmt::Formatter<'_>, rule: &Rule) -> fmt::Result {
    let target = rule.target_ports();
    write!(
        f,
        "{{\"protocol\":\"{}\",\"address\":{},\"interface\":{},\"first\":{},\"last\":{},\"target_address\":{},\
         \"target_first\":{},\"target_last\":{},\"best_effort\":{},\"auto\":{}}}",
        rule.protocol,
        Optional(rule.listen.addr),
        Optional(rule.listen.interface.as_ref()),
        rule.ports.first(),
        rule.ports.last(),
        Optional(rule.target_addr),
        target.first(),
        target.last(),
        rule.best_effort,
        rule.scan,
    )
}

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
    mut item: impl FnMut(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    f.write_char('[')?;
    for (index, value) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_char(',')?;
        }
        item(f, value)?;
    }
    f.write_char(']')
}

/// A JSON string, or null.
struct Optional<T>(Option<T>);

impl<T: Display> Display for Optional<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => Quoted(&value.to_string()).fmt(f),
            None => f.write_str("null"),
        }
    }
}

/// A JSON string (RFC 8259 §7).
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                control if u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}

#[cfg(test)]
mod tests {
    use engine::forward::{Listen, PortRange, Protocol};

    use super::*;
    use control::message::Pif;

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
            "{\"path\":\"/a\\\"b\\u000a\",\"tables\":[{\"name\":\"HOST\",\
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
