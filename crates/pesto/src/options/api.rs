//! Commands that use the API socket (docs/api.md).

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use engine::policy::Name;
use serde_json::{Map, Value, json};

use super::{Request, no_such_command, socket, text};

/// A command that uses the API socket.
#[derive(Debug, PartialEq)]
pub(crate) struct Api {
    /// Path of the API socket. `None`: that of the only instance of this user.
    pub(crate) path: Option<PathBuf>,
    /// What to show.
    pub(crate) what: Command,
    /// `--json`: print JSON.
    pub(crate) json: bool,
}

/// What to show.
#[derive(Debug, PartialEq)]
pub(crate) enum Command {
    /// The flows that meet these conditions: the arguments of the request.
    Flows(Map<String, Value>),
    /// Frames that meet these conditions, to this file or to standard output (`-`).
    Capture(PathBuf, Map<String, Value>),
    /// Events, until the server ends.
    Log,
    /// Metrics in the format of OpenMetrics.
    Metrics,
    /// Flows on the whole screen, with rates.
    Top(Top),
    /// What would happen to a flow to this address: the arguments of the request.
    Why(Map<String, Value>),
    /// What would happen to a flow to each address of this name: the arguments of the request, without the address.
    WhyName(String, Map<String, Value>),
}

/// How `pesto top` starts.
#[derive(Debug, PartialEq)]
pub(crate) struct Top {
    /// The filter, as a user types it.
    pub(crate) filter: String,
    /// The time from one list to the next.
    pub(crate) interval: Duration,
}

/// The commands that use the API socket.
const COMMANDS: [&str; 6] = ["capture", "flows", "log", "metrics", "top", "why"];

/// The command that these operands are, if it uses the API socket.
///
/// A single operand is the path of a control socket if that exists, even if it looks like a command.
pub(super) fn command(operands: &[OsString]) -> Option<(&'static str, &[OsString])> {
    let (word, rest) = operands.split_first()?;
    let name = COMMANDS.into_iter().find(|name| *word == **name)?;
    (!rest.is_empty() || !Path::new(word).exists()).then_some((name, rest))
}

/// The command `word`, which uses the API socket.
pub(super) fn parse(word: &str, operands: &[OsString], request: &Request) -> Result<Api, String> {
    if request.show || !request.changes.is_empty() || request.debug {
        return Err(format!("{word} can't be used with options for rules or with --debug"));
    }
    if request.json && word == "top" {
        return Err("top prints no JSON: use flows --json".into());
    }
    if request.interval.is_some() && word != "top" {
        return Err(format!("{word} has no --interval: only top has one"));
    }
    if request.json && word == "capture" {
        return Err("capture prints no JSON".into());
    }
    let (what, path) = match (word, operands) {
        ("capture", [file, rest @ ..]) => {
            // A condition has a "=". A path may have one after a "/".
            let (path, conditions) = match rest {
                [first, rest @ ..] if !is_condition(first) => (Some(first), rest),
                rest => (None, rest),
            };
            (Command::Capture(file.into(), arguments(conditions)?), path)
        }
        ("flows", [path, conditions @ ..]) => (Command::Flows(arguments(conditions)?), Some(path)),
        ("flows", []) => (Command::Flows(Map::new()), None),
        ("log", [] | [_]) => (Command::Log, operands.first()),
        ("metrics", [] | [_]) => (Command::Metrics, operands.first()),
        ("top", _) => {
            let words: Vec<String> =
                operands.iter().skip(1).map(|word| text(word)).collect::<Result<_, _>>()?;
            let interval = request.interval.unwrap_or(INTERVAL);
            (Command::Top(Top { filter: words.join(" "), interval }), operands.first())
        }
        ("why", [typed, rest @ ..]) if rest.len() <= 1 => (destination(&text(typed)?)?, rest.first()),
        _ => return Err(no_such_command()),
    };
    Ok(Api { path: path.map(|path| socket(path)).transpose()?, what, json: request.json })
}

fn is_condition(word: &OsString) -> bool {
    let name = word.to_str().and_then(|word| word.split_once('=')).map_or("", |(name, _)| name);
    !name.is_empty() && name.bytes().all(|letter| letter.is_ascii_lowercase())
}

/// The time from one list of `pesto top` to the next, unless `--interval` is given.
const INTERVAL: Duration = Duration::from_secs(1);

/// The argument of `--interval`: seconds, from 0.1 to 3600.
pub(super) fn interval(typed: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = typed.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("--interval {typed}: seconds from 0.1 to 3600"))
}

/// Conditions for flows, `NAME=VALUE`, as arguments of the request.
fn arguments(conditions: &[OsString]) -> Result<Map<String, Value>, String> {
    conditions.iter().map(|typed| condition(&text(typed)?)).collect()
}

/// A condition for flows, `NAME=VALUE`, as an argument of the request.
///
/// # Errors
/// A message for the user.
pub(crate) fn condition(typed: &str) -> Result<(String, Value), String> {
    let (name, value) = typed
        .split_once('=')
        .ok_or_else(|| format!("'{typed}' is no condition for flows, such as protocol=tcp"))?;
    // Names, states and addresses are strings.
    let value = match name {
        "flow" | "port" | "limit" => value.parse::<u64>().map(Value::from).ok(),
        "bypass" | "ascending" => value.parse::<bool>().map(Value::from).ok(),
        _ => Some(Value::from(value)),
    };
    let value = value.ok_or_else(|| format!("'{typed}': not a valid value"))?;
    Ok((name.into(), value))
}

/// The protocols of flows.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "icmp"];

/// `HOST` or `HOST:PORT`, where `HOST` is a name, `ADDR` or `[ADDR]`, after `PROTOCOL/` if it is not TCP.
fn destination(typed: &str) -> Result<Command, String> {
    let (protocol, rest) = typed.split_once('/').unwrap_or(("tcp", typed));
    if !PROTOCOLS.contains(&protocol) {
        return Err(format!("'{typed}' is no destination: before the / is tcp, udp or icmp"));
    }
    let mut arguments = Map::from_iter([("protocol".into(), json!(protocol))]);
    let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(rest);
    let end = match (bare.parse::<IpAddr>(), rest.parse::<SocketAddr>()) {
        (Ok(address), _) => Some((address, None)),
        (_, Ok(end)) => Some((end.ip(), Some(end.port()))),
        _ => None,
    };
    if let Some((address, port)) = end {
        arguments.insert("address".into(), json!(address));
        arguments.extend(port.map(|port| ("port".into(), json!(port))));
        return Ok(Command::Why(arguments));
    }
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, port.parse::<u16>().map(Some)),
        None => (rest, Ok(None)),
    };
    match (Name::parse(name), port) {
        (Some(_), Ok(port)) => {
            arguments.insert("name".into(), json!(name));
            arguments.extend(port.map(|port| ("port".into(), json!(port))));
            Ok(Command::WhyName(name.into(), arguments))
        }
        _ => Err(format!("'{typed}' is no destination: [PROTOCOL/]ADDRESS[:PORT] or [PROTOCOL/]NAME[:PORT]")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Invocation, parse};
    use super::{Command, Duration, Map, OsString, Top, Value, json};

    fn read(args: &[&str]) -> Result<Invocation, String> {
        parse(["pesto"].iter().chain(args).map(OsString::from))
    }

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(object) => object,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn commands_for_the_api_socket() {
        let api = |args: &[&str]| match read(args) {
            Ok(Invocation::Api(api)) => {
                assert_eq!(api.path, Some("/s".into()));
                (api.what, api.json)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(api(&["log", "/s"]), (Command::Log, false));
        assert_eq!(api(&["--json", "metrics", "/s"]), (Command::Metrics, true));
        let conditions = json!({ "port": 443, "bypass": true, "state": "closing" });
        let Value::Object(conditions) = conditions else { panic!() };
        let flows = api(&["flows", "/s", "port=443", "bypass=true", "state=closing"]);
        assert_eq!(flows, (Command::Flows(conditions), false));
        for (typed, meant) in [
            ("192.0.2.1", json!({ "protocol": "tcp", "address": "192.0.2.1" })),
            ("udp/192.0.2.1:53", json!({ "protocol": "udp", "address": "192.0.2.1", "port": 53 })),
            ("2001:db8::1", json!({ "protocol": "tcp", "address": "2001:db8::1" })),
            ("icmp/[2001:db8::1]", json!({ "protocol": "icmp", "address": "2001:db8::1" })),
            ("[2001:db8::1]:443", json!({ "protocol": "tcp", "address": "2001:db8::1", "port": 443 })),
        ] {
            assert_eq!(api(&["why", typed, "/s"]).0, Command::Why(object(meant)), "{typed}");
        }
        for (typed, name, meant) in [
            ("example.com", "example.com", json!({ "protocol": "tcp", "name": "example.com" })),
            (
                "udp/Bücher.example.:53",
                "Bücher.example.",
                json!({ "protocol": "udp", "name": "Bücher.example.", "port": 53 }),
            ),
            ("icmp/localhost", "localhost", json!({ "protocol": "icmp", "name": "localhost" })),
        ] {
            let expected = Command::WhyName(name.into(), object(meant));
            assert_eq!(api(&["why", typed, "/s"]).0, expected, "{typed}");
        }
        let filter = |conditions: Value| Command::Capture("x.pcap".into(), object(conditions));
        assert_eq!(api(&["capture", "x.pcap", "/s"]).0, filter(json!({})));
        assert_eq!(api(&["capture", "x.pcap", "/s", "port=443"]).0, filter(json!({ "port": 443 })));
        for args in [
            &["capture", "--json", "x", "/s"][..],
            &["capture"],
            &["capture", "x", "/s", "443"],
            &["why"],
            &["why", "/s"],
            &["why", "443"],
            &["why", "192.0.2.256"],
            &["why", "192.0.2.1:65536", "/s"],
            &["why", "example.com:https", "/s"],
            &["why", "sctp/example.com", "/s"],
            &["why", "a b", "/s"],
            &["why", "2001:db8::1::", "/s"],
            &["log", "/s", "-d"],
            &["log", "/s", "--interval=2"],
            &["--interval=2", "/s"],
            &["top", "/s", "--json"],
            &["top", "/s", "-d0"],
            &["top", "/s", "-d", "nan"],
            &["top", "/s", "-d", "inf"],
            &["top", "/s", "-t22"],
            &["log", "/s", "x"],
            &["flows", "/s", "port"],
            &["flows", "/s", "port=x"],
            &["log", "/s", "-t", "22"],
            &["metrics", "-s", "/s"],
        ] {
            assert!(read(args).is_err(), "{args:?}");
        }
    }

    /// After the word `top`, `-d` has the meaning that it has for top(1).
    #[test]
    fn top_has_an_interval_and_a_filter() {
        let top = |args: &[&str]| match read(args) {
            Ok(Invocation::Api(api)) => (api.path, api.what),
            other => panic!("{other:?}"),
        };
        let made = |filter: &str, millis| {
            Command::Top(Top { filter: filter.into(), interval: Duration::from_millis(millis) })
        };
        assert_eq!(top(&["top", "/s"]), (Some("/s".into()), made("", 1000)));
        assert_eq!(top(&["top", "-d", "0.5", "/s"]), (Some("/s".into()), made("", 500)));
        assert_eq!(
            top(&["--interval=2", "top", "/s", "443", "tcp"]),
            (Some("/s".into()), made("443 tcp", 2000))
        );
        assert_eq!(top(&["top", "-d3"]), (None, made("", 3000)));
        assert!(matches!(read(&["-d", "/s"]), Ok(Invocation::Run(request)) if request.debug));
    }

    #[test]
    fn without_a_path_the_only_instance_is_used() {
        for (args, what) in [
            (&["flows"][..], Command::Flows(Map::new())),
            (&["log"], Command::Log),
            (&["capture", "-"], Command::Capture("-".into(), Map::new())),
            (
                &["capture", "-", "protocol=udp"],
                Command::Capture("-".into(), Map::from_iter([("protocol".into(), json!("udp"))])),
            ),
            (&["metrics"], Command::Metrics),
            (
                &["why", "192.0.2.1"],
                Command::Why(object(json!({ "protocol": "tcp", "address": "192.0.2.1" }))),
            ),
        ] {
            assert!(matches!(read(args), Ok(Invocation::Api(api)) if api.path.is_none() && api.what == what));
        }
        assert_eq!(read(&[]), Ok(Invocation::List { json: false }));
        assert_eq!(read(&["--json"]), Ok(Invocation::List { json: true }));
        for args in [&["-s"][..], &["-d"], &["-t", "80"], &["-C", "HOST", "--json"]] {
            assert!(matches!(read(args), Ok(Invocation::Run(request)) if request.path.is_none()), "{args:?}");
        }
    }
}
