//! The command line of `pesto`: one table of options, from which parsing and help follow.

mod api;
#[cfg(test)]
mod page;
mod table;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use control::edit::Change;

pub(super) use self::api::{Api, Command, Top, condition};
use self::table::Action;
pub use self::table::{COMMANDS, FLOW_CONDITIONS, FRAME_CONDITIONS, Operand, Opt, Syntax, all};

/// Longest path of a UNIX socket, in bytes: `sun_path` without the terminating zero.
const SOCKET_PATH_MAX: usize = 107;
/// Column at which descriptions start.
const COLUMN: usize = 28;

/// What the command line requests.
#[derive(Debug, PartialEq)]
pub(super) enum Invocation {
    /// Print this text on standard output.
    Show(String),
    /// Show or change the forwarding rules of a server.
    Run(Request),
    /// Show or replace the policy of a server, or suggest rules.
    Policy(Policy),
    /// Show something by the API socket of a server.
    Api(Api),
    /// List the instances of this user.
    List {
        /// `--json`.
        json: bool,
    },
}

/// A command about a policy: the rules about the destinations of a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// Print the rules that are in force in this server.
    Show(Target),
    /// Replace the rules by the rules in `file`, or in standard input (`-`).
    Replace {
        /// The policy file.
        file: PathBuf,
        /// The server.
        target: Target,
    },
    /// Print rules for the refusals in this log, or in standard input (`-`).
    Suggest(PathBuf),
}

/// The server of a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The path of its socket, or its process ID. `None`: the only instance of this user.
    pub(super) path: Option<PathBuf>,
    /// `--debug`.
    pub(super) debug: bool,
}

/// What to do with a server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    /// The path of its socket, or its process ID. `None`: the only instance of this user.
    pub(super) path: Option<PathBuf>,
    /// The changes, in the order of the options.
    pub(super) changes: Vec<Change>,
    /// `--show`.
    pub(super) show: bool,
    /// `--json`.
    pub(super) json: bool,
    /// `--debug`.
    pub(super) debug: bool,
    /// `--interval`.
    pub(super) interval: Option<Duration>,
}

/// Parses a command line, which starts with the name of the program.
///
/// # Errors
/// A message for the user.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, String> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |message: String| wrong(&program, &message);
    let mut parser = Parser::from_args(args);
    let (mut request, mut operands) = (Request::default(), Vec::new());
    loop {
        let (opt, typed_as) = match parser.next().map_err(|error| wrong(error.to_string()))? {
            None => break,
            Some(Arg::Value(value)) => {
                operands.push(value);
                continue;
            }
            Some(Arg::Short('d')) if operands.first().is_some_and(|word| word == "top") => {
                (find_long("interval").map_err(wrong)?, "-d".into())
            }
            Some(Arg::Short(letter)) => {
                let opt = all().find(|opt| opt.short == Some(letter));
                (opt.ok_or_else(|| wrong(format!("invalid option -- '{letter}'")))?, format!("-{letter}"))
            }
            Some(Arg::Long(name)) => {
                let opt = find_long(name).map_err(wrong)?;
                (opt, format!("--{}", opt.long))
            }
        };
        let mut value = || {
            let value =
                parser.value().map_err(|_| wrong(format!("option '{typed_as}' requires an argument")))?;
            text(&value).map_err(wrong)
        };
        match opt.action {
            Action::Flag(set) => {
                set(&mut request);
                if typed_as.starts_with("--") && parser.optional_value().is_some() {
                    return Err(wrong(format!("option '{typed_as}' doesn't allow an argument")));
                }
            }
            Action::Clear => request.changes.push(Change::Clear(value()?)),
            Action::Ports(direction, protocol) => {
                let spec = value()?;
                request.changes.push(Change::Ports { direction, protocol, spec, typed_as });
            }
            Action::Interval => request.interval = Some(api::interval(&value()?).map_err(wrong)?),
            Action::Help => return Ok(Invocation::Show(usage(&program))),
            Action::Version => return Ok(Invocation::Show(version())),
        }
    }
    invocation(&program, operands, request)
}

/// What these operands and options request.
fn invocation(program: &str, operands: Vec<OsString>, request: Request) -> Result<Invocation, String> {
    let wrong = |message: String| wrong(program, &message);
    if let Some((word, operands)) = api::command(&operands) {
        return api::parse(word, operands, &request).map_err(wrong).map(Invocation::Api);
    }
    if request.interval.is_some() {
        return Err(wrong("--interval can only be used with top".into()));
    }
    match operands.as_slice() {
        [] if request == (Request { json: request.json, ..Request::default() }) => {
            Ok(Invocation::List { json: request.json })
        }
        [] => Ok(Invocation::Run(request)),
        [path] => Ok(Invocation::Run(Request { path: Some(socket(path)?), ..request })),
        // A single operand is the path of a socket, even if it is `policy`.
        [word, command @ ..] if word == "policy" && !command.is_empty() => {
            policy(command, &request).ok_or_else(|| wrong(no_such_command()))?.map(Invocation::Policy)
        }
        _ => Err(wrong("more than one process ID or path of a socket".into())),
    }
}

/// The message, and where to read how the program is used.
fn wrong(program: &str, message: &str) -> String {
    format!("{message}\nSee '{program} --help'.")
}

/// The path of a socket.
fn socket(path: &OsStr) -> Result<PathBuf, String> {
    if path.is_empty() || path.len() > SOCKET_PATH_MAX {
        return Err(format!("Invalid socket path {path:?}: 1 to {SOCKET_PATH_MAX} bytes"));
    }
    Ok(path.into())
}

/// The command after the word `policy`. None if there is no such command, or if its operands are wrong.
fn policy(operands: &[OsString], request: &Request) -> Option<Result<Policy, String>> {
    let target = |rest: &[OsString]| {
        let path = rest.first().map(|path| socket(path)).transpose()?;
        Ok(Target { path, debug: request.debug })
    };
    let command = match operands {
        [verb, rest @ ..] if verb == "show" && rest.len() <= 1 => target(rest).map(Policy::Show),
        [verb, file, rest @ ..] if verb == "replace" && rest.len() <= 1 => {
            target(rest).map(|target| Policy::Replace { file: file.into(), target })
        }
        [verb, log] if verb == "suggest" => Ok(Policy::Suggest(log.into())),
        _ => return None,
    };
    if !request.changes.is_empty() || request.show || request.json {
        return Some(Err("Of all options, only --debug can be used with policy".into()));
    }
    Some(command)
}

/// The message about an unknown command.
fn no_such_command() -> String {
    let commands: Vec<String> =
        COMMANDS.iter().map(|command| format!("{} {}", command.words.join(" "), command.usage)).collect();
    format!("the commands are: {}", commands.join(", "))
}

fn text(value: &OsStr) -> Result<String, String> {
    value.to_str().map(str::to_owned).ok_or_else(|| format!("not valid UTF-8: {value:?}"))
}

/// The option with the name `name`, or the only option whose name starts with `name`.
fn find_long(name: &str) -> Result<&'static Opt, String> {
    let candidates: Vec<_> = all().filter(|opt| opt.long.starts_with(name)).collect();
    let exact = candidates.iter().find(|opt| opt.long == name);
    match (exact, candidates.as_slice()) {
        (Some(opt), _) | (None, [opt]) => Ok(opt),
        (None, []) => Err(format!("unrecognized option '--{name}'")),
        _ => {
            let names: String = candidates.iter().map(|opt| format!(" '--{}'", opt.long)).collect();
            Err(format!("option '--{name}' is ambiguous; possibilities:{names}"))
        }
    }
}

fn usage(program: &str) -> String {
    let mut text = format!("Usage: {program} [OPTION]... [PATH]\n");
    for command in &COMMANDS {
        // Writing to a string can't fail.
        let _ = writeln!(text, "       {program} {} {}", command.words.join(" "), command.usage);
    }
    let _ = write!(
        text,
        "       {program}\n\n\
         Show or change the forwarding rules of a running passt or pasta. Either all\n\
         changes take effect, or none. PATH is that of --conf-path or --api-socket, or a\n\
         process ID; without it, the only instance of this user is meant.\n\n\
         With policy, show the rules for what its guest may reach, or replace all of them\n\
         by those of FILE; flows that the new rules deny end. Or print rules for what a\n\
         LOG (or flow log) says was refused. FILE and LOG may be - for standard input.\n\n\
         The other commands use the API socket: the PATH of --api-socket, or a process\n\
         ID. They show the flows that meet conditions (such as protocol=tcp, port=443,\n\
         state=established, sort=bytes, limit=20; see docs/api.md), flows with their\n\
         rates on the whole screen (? lists the keys), events as they happen, metrics, or\n\
         what would happen to a flow (HOST: an address, or a name, which this host\n\
         resolves), or capture frames until Ctrl-C (conditions: protocol, address, port;\n\
         FILE: also -).\n\
         Without arguments, list the instances: those with a socket\n\
         $XDG_RUNTIME_DIR/passt/*.api.\n\n"
    );
    for opt in all() {
        let short = opt.short.map_or("    ".into(), |letter| format!("-{letter}, "));
        let argument = opt.argument().map(|name| format!(" {name}")).unwrap_or_default();
        let mut left = format!("  {short}--{}{argument}", opt.long);
        for line in opt.help.lines() {
            let _ = writeln!(text, "{left:COLUMN$}{line}");
            left.clear();
        }
    }
    text
}

fn version() -> String {
    format!(
        "pesto {}\npasst-rs, free software: you may change and redistribute it under the terms of the\n\
         Apache License 2.0 or of the MIT licence, as you choose. There is no warranty, to\n\
         the extent permitted by law.\n",
        option_env!("PASST_RS_VERSION").unwrap_or(env!("CARGO_PKG_VERSION"))
    )
}

#[cfg(test)]
mod tests {
    use engine::forward::Protocol;
    use engine::forward::spec::Direction;

    use super::*;

    fn read(args: &[&str]) -> Result<Invocation, String> {
        parse(["pesto"].iter().chain(args).map(OsString::from))
    }

    fn request(args: &[&str]) -> Request {
        match read(args) {
            Ok(Invocation::Run(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    /// behaviour §8.9: options apply in order; PATH may be anywhere.
    #[test]
    fn changes_keep_the_order_of_options() {
        let typed = request(&["-A", "-t22", "/s", "--delete", "--udp-ns=9", "-sC", "HOST", "--json", "-d"]);
        let ports = |direction, protocol, spec: &str, typed_as: &str| Change::Ports {
            direction,
            protocol,
            spec: spec.into(),
            typed_as: typed_as.into(),
        };
        let changes = vec![
            Change::Add,
            ports(Direction::Inbound, Protocol::Tcp, "22", "-t"),
            Change::Delete,
            ports(Direction::Outbound, Protocol::Udp, "9", "--udp-ns"),
            Change::Clear("HOST".into()),
        ];
        assert_eq!(
            typed,
            Request { path: Some("/s".into()), changes, show: true, json: true, debug: true, interval: None }
        );
    }

    #[test]
    fn invalid_command_lines_are_refused() {
        let error = |args: &[&str]| read(args).unwrap_err();
        assert!(error(&["a", "b"]).starts_with("more than one process ID or path of a socket\n"));
        assert!(error(&["policy", "list"]).starts_with("the commands are: policy show [PATH], "));
        assert!(error(&["policy", "show", "/s", "/s"]).starts_with("the commands are: "));
        assert!(error(&["policy", "replace"]).starts_with("the commands are: "));
        assert!(error(&["policy", "replace", "file", "/s", "/s"]).starts_with("the commands are: "));
        assert!(error(&["policy", "show", &"a".repeat(108)]).starts_with("Invalid socket path"));
        assert!(error(&["policy", "show", "/s", "--json"]).starts_with("Of all options, only --debug"));
        assert!(error(&["--bogus", "a"]).ends_with("unrecognized option '--bogus'\nSee 'pesto --help'."));
        assert!(error(&["-x", "a"]).starts_with("invalid option -- 'x'\n"));
        assert!(error(&["a", "-t"]).starts_with("option '-t' requires an argument\n"));
        assert!(error(&["--show=1", "a"]).starts_with("option '--show' doesn't allow an argument\n"));
        assert!(error(&["--de", "a"]).contains("ambiguous; possibilities: '--delete' '--debug'\n"));
        assert!(error(&[""]).starts_with("Invalid socket path"));
        assert!(error(&[&"a".repeat(108)]).starts_with("Invalid socket path"));
        assert!(read(&[&"a".repeat(107)]).is_ok());
    }

    #[test]
    fn commands_about_the_policy() {
        let policy = |args: &[&str]| match read(args) {
            Ok(Invocation::Policy(policy)) => policy,
            other => panic!("{other:?}"),
        };
        let target = |path: &str, debug| Target { path: Some(path.into()), debug };
        assert_eq!(policy(&["policy", "show", "/s"]), Policy::Show(target("/s", false)));
        assert_eq!(policy(&["policy", "show", "-d", "4711"]), Policy::Show(target("4711", true)));
        let replace = |target| Policy::Replace { file: "-".into(), target };
        assert_eq!(policy(&["policy", "replace", "-", "/s"]), replace(target("/s", false)));
        let only = || Target { path: None, debug: false };
        assert_eq!(policy(&["policy", "show"]), Policy::Show(only()));
        assert_eq!(policy(&["policy", "replace", "-"]), replace(only()));
        assert_eq!(policy(&["policy", "suggest", "log"]), Policy::Suggest("log".into()));
        // The path of a socket can be any text.
        assert_eq!(request(&["policy"]).path, Some("policy".into()));
    }

    #[test]
    fn help_and_version() {
        let Ok(Invocation::Show(help)) = read(&["-h"]) else { panic!() };
        assert!(all().all(|opt| help.contains(&format!("--{}", opt.long))));
        assert!(help.lines().all(|line| line.len() <= 80 && line == line.trim_end()), "{help}");
        let Ok(Invocation::Show(version)) = read(&["--version", "-x"]) else { panic!() };
        assert!(version.starts_with("pesto "));
    }
}
