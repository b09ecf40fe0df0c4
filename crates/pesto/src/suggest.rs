//! Suggests rules that would allow the refused flows and questions in a log or flow log (`pesto policy suggest`,
//! docs/guard.md).

mod flow_log;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::io::{self, BufRead, Read as _};
use std::net::{IpAddr, SocketAddr};

use engine::flow::Protocol;
use engine::policy::spec::{self, MAX_RULES};
use engine::policy::{Action, Destination};

/// Maximum length of a line, in bytes. The rest of a longer line is skipped.
const MAX_LINE: u64 = 64 * 1024;
/// The words before a refusal in a line of the log.
const MARKS: [&str; 2] = ["refused: ", "ended: "];
/// The only reason for a refusal for which a new rule is suggested. All other reasons are explicit rules or limits of
/// the guard.
const DEFAULT: &str = "default deny";

/// The content of a rule that would allow a refusal. In order, specific rules come first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    place: Place,
    destination: What,
    protocol: Option<Protocol>,
    port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// The rule is about a flow: one protocol, and one port if the protocol has ports.
    Flow,
    /// The rule is about a DNS question: only a name.
    Question,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Name(String),
    Address(IpAddr),
}

/// The refusals that one rule would allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    times: u64,
    /// Further names of the address.
    others: Vec<String>,
}

/// A refusal in a line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Refusal {
    /// A rule could allow it. The list has further names of the address.
    Wanted(Wanted, Vec<String>),
    /// No rule is suggested. The text has the refused flow or question, and the reason.
    Noted(String),
}

/// All refusals in a log.
#[derive(Debug, Default)]
pub(super) struct Suggestions {
    wanted: BTreeMap<Wanted, Seen>,
    noted: BTreeMap<String, u64>,
    refusals: u64,
    /// Number of lines that the log has left out, as far as it reports this.
    left_out: u64,
    /// Number of refusals that were ignored because there were too many different refusals.
    ignored: u64,
    /// Number of lines that are neither a refusal of a log nor a line of a flow log. Empty lines do not count.
    skipped: u64,
}

/// Reads a log.
///
/// # Errors
/// The log can't be read.
pub(super) fn read(mut log: impl BufRead) -> io::Result<Suggestions> {
    let mut suggestions = Suggestions::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if log.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(suggestions);
        }
        let text = String::from_utf8_lossy(&line);
        suggestions.add(&printable(text.trim_end()));
        if line.last() != Some(&b'\n') {
            log.skip_until(b'\n')?;
        }
    }
}

/// `text` without control characters: a rule and its comment must be one line.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "?")
}

impl Suggestions {
    /// Number of lines in the log that were skipped, since they have no known form.
    pub(super) const fn skipped(&self) -> u64 {
        self.skipped
    }

    fn add(&mut self, line: &str) {
        let (text, left_out) = without_count(line);
        let refusal = match flow_log::line(line) {
            Some(None) => return,
            Some(refusal) => refusal,
            None => refusal(text),
        };
        let Some(refusal) = refusal else {
            self.skipped += u64::from(!line.trim().is_empty());
            return;
        };
        self.refusals += 1;
        self.left_out += left_out;
        let full = self.wanted.len() + self.noted.len() >= MAX_RULES;
        match refusal {
            Refusal::Wanted(wanted, _) if full && !self.wanted.contains_key(&wanted) => self.ignored += 1,
            Refusal::Noted(text) if full && !self.noted.contains_key(&text) => self.ignored += 1,
            Refusal::Wanted(wanted, others) => {
                let seen = self.wanted.entry(wanted).or_default();
                (seen.times, seen.others) = (seen.times + 1, others);
            }
            Refusal::Noted(text) => *self.noted.entry(text).or_default() += 1,
        }
    }

    /// Removes questions that need no rule of their own: a rule for a flow has the same name, or the name has an
    /// appended search domain. Rules that are not valid become notes.
    fn tidy(&mut self) {
        let named = |wanted: &Wanted| match &wanted.destination {
            What::Name(name) => Some((wanted.place, name.clone())),
            What::Address(_) => None,
        };
        let names: Vec<(Place, String)> = self.wanted.keys().filter_map(named).collect();
        let mut noted = Vec::new();
        self.wanted.retain(|wanted, seen| {
            if let Err(fault) = wanted.check() {
                noted.push((format!("{wanted} ({fault})"), seen.times));
                return false;
            }
            let (Place::Question, What::Name(name)) = (wanted.place, &wanted.destination) else {
                return true;
            };
            let searched = |other: &str| name.strip_prefix(other).is_some_and(|rest| rest.starts_with('.'));
            if let Some((_, other)) = names.iter().find(|(_, other)| other.contains('.') && searched(other)) {
                noted.push((format!("{name} (probably a search domain, appended to {other})"), seen.times));
                return false;
            }
            !names.iter().any(|(place, other)| *place == Place::Flow && other == name)
        });
        self.noted.extend(noted);
    }

    /// The rules, with comments, as a policy file.
    pub(super) fn text(mut self) -> String {
        self.tidy();
        let mut text =
            format!("# Refusals in the log: {}. Read each rule before you use it.\n", self.refusals);
        // Writing to a string can't fail, here and below.
        for (wanted, Seen { times, others }) in &self.wanted {
            let rule = format!("allow {wanted}");
            let or = if others.is_empty() { String::new() } else { format!("; or {}", others.join(", ")) };
            let _ = writeln!(text, "{rule:48}  # {times}{or}");
        }
        if !self.noted.is_empty() {
            text.push_str("# No rule is suggested for these:\n");
        }
        for (note, times) in &self.noted {
            let _ = writeln!(text, "# {times}: {note}");
        }
        for (count, what) in [
            (
                self.left_out,
                "The log left out this number of lines, at least: repeat the run with these rules",
            ),
            (
                self.ignored,
                "This number of refusals is not considered, since there are too many different ones",
            ),
        ] {
            if count > 0 {
                let _ = writeln!(text, "# {what}: {count}");
            }
        }
        text
    }
}

/// The line without a remark about left-out lines, and the number of these lines if the remark has a number.
fn without_count(line: &str) -> (&str, u64) {
    if let Some(line) = line.strip_suffix(" (and more, left out for a second)") {
        return (line, 0);
    }
    let counted = line.strip_suffix(" more before)").and_then(|line| line.rsplit_once(" ("));
    match counted.and_then(|(line, count)| Some((line, count.parse().ok()?))) {
        Some((line, count)) => (line, count),
        None => (line, 0),
    }
}

/// The refusal in a line, if there is one.
fn refusal(line: &str) -> Option<Refusal> {
    let starts = |mark: &&str| {
        let (before, after) = line.split_once(*mark)?;
        (before.is_empty() || before.ends_with(' ')).then_some(after)
    };
    let what = MARKS.iter().find_map(starts)?;
    let (what, reason) = what.strip_suffix(')')?.rsplit_once(" (")?;
    let (kind, rest) = what.split_once(' ')?;
    match kind {
        "DNS" => question(rest, reason),
        "tcp" => flow(Protocol::Tcp, rest, reason),
        "udp" => flow(Protocol::Udp, rest, reason),
        "ping" => flow(Protocol::Icmp, rest, reason),
        "membership" => Some(Refusal::Noted(format!("{what} ({reason})"))),
        _ => None,
    }
}

/// Parses the refusal of a question: `CLIENT asked for NAME TYPE` or `CLIENT was answered for NAME TYPE`.
fn question(text: &str, reason: &str) -> Option<Refusal> {
    let (client, rest) = text.split_once(' ')?;
    client.parse::<SocketAddr>().ok()?;
    let (asked, rest) = match rest.strip_prefix("asked for ") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix("was answered for ")?),
    };
    let (name, kind) = rest.rsplit_once(' ')?;
    if !asked || reason != DEFAULT || kind == "PTR" {
        return Some(Refusal::Noted(format!("DNS {name} {kind} ({reason})")));
    }
    let destination = What::Name(name.to_owned());
    let wanted = Wanted { place: Place::Question, destination, protocol: None, port: None };
    Some(Refusal::Wanted(wanted, Vec::new()))
}

/// Parses the refusal of a flow: `GUEST -> REMOTE`. The names of the remote or the name that the client has sent may
/// follow.
fn flow(protocol: Protocol, text: &str, reason: &str) -> Option<Refusal> {
    let (_, rest) = text.split_once(" -> ")?;
    let (remote, more) = match rest.find([',', ' ']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    let (remote, more) = match remote.strip_suffix(':') {
        Some(remote) => (remote, more.trim_start()),
        None => (remote, more),
    };
    let (address, port) = match protocol {
        Protocol::Icmp => (remote.parse().ok()?, None),
        Protocol::Tcp | Protocol::Udp => {
            let remote: SocketAddr = remote.parse().ok()?;
            (remote.ip(), Some(remote.port()))
        }
    };
    let wanted = |destination| Wanted { place: Place::Flow, destination, protocol: Some(protocol), port };
    let by_address = wanted(What::Address(address));
    if reason != DEFAULT {
        let more = more.trim_start_matches([',', ' ']);
        let colon = if more.is_empty() { "" } else { ": " };
        return Some(Refusal::Noted(format!("{by_address}{colon}{more} ({reason})")));
    }
    let names = more.strip_prefix(", an answer for ").or_else(|| more.strip_prefix("asked for "));
    let mut names = names.into_iter().flat_map(|names| names.split(" and ")).map(str::to_owned);
    let destination = names.next().map_or(What::Address(address), What::Name);
    Some(Refusal::Wanted(wanted(destination), names.collect()))
}

impl Wanted {
    /// Checks that the rule, as text, has the intended meaning. The guest chooses the names in the log, and a name may
    /// look like a group.
    fn check(&self) -> Result<(), String> {
        const OTHER: &str = "it is no name that a rule can have";
        if let What::Name(name) = &self.destination
            && !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        {
            return Err(OTHER.into());
        }
        let rule = spec::parse(Action::Allow, &self.to_string()).map_err(|error| error.fault.to_string())?;
        match (&self.destination, rule.destination) {
            (What::Name(_), Destination::Name(_)) | (What::Address(_), Destination::Prefix(_)) => Ok(()),
            _ => Err(OTHER.into()),
        }
    }
}

impl Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(protocol) = self.protocol {
            write!(f, "{protocol}/")?;
        }
        match (&self.destination, self.port) {
            (What::Name(name), None) => f.write_str(name),
            (What::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (What::Address(address), None) => address.fmt(f),
            (What::Address(address), Some(port)) => SocketAddr::new(*address, port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
