//! A server, and its forwarding rules and policy: by the control socket, or by the API socket.

use std::path::{Path, PathBuf};

use engine::forward::spec::Direction;
use engine::forward::{PortRange, Protocol};
use serde_json::{Value, json};

use crate::client::{self, Client, Greeting};
use crate::connection::{Connection, Fault, TIMEOUT};
use crate::instances::{self, Socket};
use crate::output::report;
use crate::{announced, text};
use control::edit::{Change, Editor};
use control::message::Announced;
use control::policy;

/// Longest line of a request at the API socket, in bytes (docs/api.md).
const LINE_MAX: usize = 64 * 1024;

/// A connection to a server.
pub(super) struct Server {
    /// The path of its socket.
    pub(super) path: PathBuf,
    /// The rules in force when the connection was made.
    pub(super) tables: Vec<Announced>,
    way: Way,
}

enum Way {
    Control(Client),
    Api(Connection),
}

impl Server {
    /// Connects to the server that the user means: a process ID, a path, or the only instance. With `debug`, prints its
    /// tables to standard error.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn connect(given: Option<&Path>, debug: bool) -> Result<Self, String> {
        let server = match instances::meant(given)? {
            Socket::Api(path) => {
                let api = Connection::open(&path, TIMEOUT)?;
                Self::by_api(path, api)?
            }
            Socket::Given(path) => match client::connect(&path, || is_api(&path))? {
                Greeting::Tables(client, tables) => Self { path, tables, way: Way::Control(client) },
                Greeting::Other(api) => Self::by_api(path, api)?,
            },
        };
        if debug {
            let kind = match server.way {
                Way::Control(_) => "passt/pasta control socket",
                Way::Api(_) => "API socket",
            };
            report(&format!("Connected to {kind}"));
            server.tables.iter().for_each(|table| report(&client::summary(table)));
        }
        Ok(server)
    }

    fn by_api(path: PathBuf, mut api: Connection) -> Result<Self, String> {
        let tables = announced::tables(api.request("rules", &json!({}))?["tables"].take())?;
        Ok(Self { path, tables, way: Way::Api(api) })
    }

    /// Changes the forwarding rules, all in this order or none. Reports remarks about it. Returns the rules before and
    /// after.
    ///
    /// # Errors
    /// A message for the user. Nothing has changed.
    pub(super) fn change(&mut self, changes: &[Change]) -> Result<[Vec<Announced>; 2], String> {
        match &mut self.way {
            Way::Control(client) => {
                let mut editor = Editor::new(self.tables.clone(), ephemeral());
                changes.iter().try_for_each(|change| editor.apply(change))?;
                editor.warnings().iter().for_each(|warning| report(warning));
                let updated = editor.finish();
                if let Some(remark) = client.update(&updated)? {
                    report(&remark);
                }
                Ok([self.tables.clone(), updated])
            }
            Way::Api(api) => {
                let changes: Vec<Value> = changes.iter().map(argument).collect();
                let mut changed = request(api, "rules.change", &json!({ "changes": changes }))?;
                let [previous, updated] = ["previous", "tables"].map(|which| changed[which].take());
                remark(&changed).lines().for_each(|line| report(&printable(line)));
                Ok([announced::tables(previous)?, announced::tables(updated)?])
            }
        }
    }

    /// The policy in force, as a policy file.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn policy(&mut self) -> Result<String, String> {
        match &mut self.way {
            Way::Control(client) => client.request(&self.tables, &policy::Request::Show),
            Way::Api(api) => all_rules(api),
        }
    }

    /// Replaces the policy by that of a policy file. Returns the server's report.
    ///
    /// # Errors
    /// A message for the user. Nothing has changed.
    pub(super) fn replace_policy(&mut self, text: &str) -> Result<String, String> {
        match &mut self.way {
            Way::Control(client) => client.request(&self.tables, &policy::Request::Replace(text)),
            Way::Api(api) => {
                let arguments = json!({ "text": text });
                if Connection::len("policy.replace", &arguments) > LINE_MAX {
                    return Err(format!(
                        "it is too long for the API socket ({} KiB with its request): start the server with --conf-path \
                         PATH, and give that path",
                        LINE_MAX / 1024
                    ));
                }
                request(api, "policy.replace", &arguments).map(|changed| printable(remark(&changed)))
            }
        }
    }
}

/// The API socket at `path`, if this is one. It is asked by a connection of its own. To a control socket, the request is
/// an invalid update, which changes nothing.
fn is_api(path: &Path) -> Option<Connection> {
    let mut asked = Connection::open(path, client::PATIENCE).ok()?;
    match asked.request("rules", &json!({})) {
        Ok(_) | Err(Fault::Refused(_)) => Connection::open(path, TIMEOUT).ok(),
        Err(Fault::Lost(_)) => None,
    }
}

/// Requests a change.
fn request(api: &mut Connection, name: &str, arguments: &Value) -> Result<Value, String> {
    api.request(name, arguments).map_err(|fault| match fault {
        Fault::Refused(reason) => reason.lines().map(printable).collect::<Vec<_>>().join("\n"),
        Fault::Lost(reason) => format!("{reason}\nThe change may have been made: look at what is in force"),
    })
}

fn remark(changed: &Value) -> &str {
    changed["remark"].as_str().unwrap_or_default()
}

/// A line of the server, without characters that control a terminal.
fn printable(line: &str) -> String {
    text::word(&line.into())
}

/// A change as an argument of the request `rules.change`.
fn argument(change: &Change) -> Value {
    match change {
        Change::Add => json!("add"),
        Change::Delete => json!("delete"),
        Change::Clear(table) => json!({ "clear": table }),
        Change::Ports { direction, protocol, spec, .. } => {
            let direction = match direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            };
            let protocol = match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            json!({ "rule": { "direction": direction, "protocol": protocol, "ports": spec } })
        }
    }
}

/// The policy in force, as the control socket shows it.
fn all_rules(api: &mut Connection) -> Result<String, String> {
    let mut lines = Vec::new();
    loop {
        let part = api.request("policy", &json!({ "first": lines.len() }))?;
        let rules = part["rules"].as_array().into_iter().flatten();
        let before = lines.len();
        lines.extend(rules.map(text::word));
        // A part without rules would not come to an end.
        if part["next"].is_u64() && lines.len() > before {
            continue;
        }
        let title = match (part["exists"].as_bool(), part["audit"].as_bool()) {
            (Some(false), _) => "# There are no rules.",
            (_, Some(true)) => "# --policy-audit: nothing is refused, and the log has what would be.",
            _ => "# The rules in force.",
        };
        lines.insert(0, title.into());
        lines.push(format!("default {}", text::word(&part["default"])));
        return Ok(lines.join("\n") + "\n");
    }
}

/// The ephemeral ports, which `all` and `auto` exclude (behaviour §8.7).
fn ephemeral() -> PortRange {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    PortRange::from_sysctl(&text).unwrap_or(PortRange::RFC6335_DYNAMIC)
}
