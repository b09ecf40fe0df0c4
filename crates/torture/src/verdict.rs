//! What a session's outcome means.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::fault::Cell;
use crate::session::flow::{End, Report};
use crate::session::{Outcome, PORTS, TO_MACHINE, is_busy};
use crate::trace::UNUSED;
use crate::way::Way;
use crate::{exceptions, start};

/// How many more lines the log may have than without a fault.
const LINES: usize = 3;
/// How many more lines are due to a guest that connects again: its connection, and what addresses it uses.
const RECONNECTION: usize = 9;

/// How many descriptors of pipes more may be kept than without a fault: those of the other connections.
const PIPES: usize = 6;

/// Sessions without a fault.
#[derive(Clone, Debug, Default)]
pub(crate) struct Baseline {
    /// The largest number of descriptors of each kind, at rest.
    pub(crate) descriptors: BTreeMap<String, usize>,
    /// The largest number of log lines.
    pub(crate) lines: usize,
    /// The exit status.
    pub(crate) status: i32,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// The process ended.
    Exit,
    /// A flow ended that had nothing to do with the fault, or more than one did.
    Loss,
    /// A flow neither goes on nor ends.
    Hang,
    /// Bytes are wrong or missing.
    Corruption,
    /// Flows that begin later do not work.
    Later,
    /// Descriptors stay open.
    Leak,
    /// The process is busy at rest.
    Spin,
    /// The log has many lines.
    Flood,
    /// The exit status is another one, or the process does not end.
    Status,
    /// A start fails without a message that says why.
    Silent,
    /// A start fails, and something is left behind.
    Left,
}

/// The result of one cell.
pub(crate) struct Row {
    /// The cell.
    pub(crate) cell: Cell,
    /// The verdict. `None`: the session did not make the call.
    pub(crate) verdict: Option<Verdict>,
    /// The first verdict, if it was worse than a second one.
    pub(crate) once: Option<Verdict>,
}

/// The verdict about one cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What is wrong; empty: nothing.
    pub(crate) wrong: BTreeMap<Wrong, String>,
    /// Flows that the fault ended, as it may.
    pub(crate) ended: usize,
    /// The first SIGTERM had no effect.
    pub(crate) asked_twice: bool,
    /// Why something was lost, and nothing is wrong.
    pub(crate) excepted: Option<&'static str>,
    /// How a start ended, if that is what the cell is about.
    pub(crate) start: Option<Start>,
}

/// How a start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The program works.
    Works,
    /// Something does not work, and a warning says so.
    Warned(String),
    /// The program ended, and said why.
    Refused(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> =
            self.wrong.iter().map(|(wrong, why)| format!("{wrong:?}: {why}")).collect();
        if let Some(reason) = self.excepted {
            words.push(format!("exception: {reason}"));
        }
        if words.is_empty() {
            let result = match &self.start {
                None if self.ended == 0 => "nothing lost",
                None => "the flow ended",
                Some(Start::Works) => "it starts and works",
                Some(Start::Warned(_)) => "it starts, with a warning",
                Some(Start::Refused(_)) => "it ends with an error",
            };
            words.push(result.to_owned());
        }
        if self.asked_twice {
            words.push("ended after a second SIGTERM".to_owned());
        }
        f.write_str(&words.join("; "))
    }
}

impl Baseline {
    /// The baseline of these sessions.
    ///
    /// # Errors
    /// A session without a fault went wrong.
    pub(crate) fn of(outcomes: &[Outcome]) -> anyhow::Result<Self> {
        let mut baseline = Self::default();
        for outcome in outcomes {
            let all = outcome.flows.iter().chain(&outcome.later);
            let lost: Vec<&Report> = all.filter(|report| report.end != End::Whole).collect();
            anyhow::ensure!(
                !outcome.ended_early && lost.is_empty(),
                "without a fault: {lost:?} {:?}",
                outcome.log
            );
            let status = outcome.status.ok_or_else(|| anyhow::anyhow!("without a fault: no end"))?;
            baseline.status = status;
            baseline.lines = baseline.lines.max(outcome.log.len());
            for (kind, count) in &outcome.descriptors {
                let known = baseline.descriptors.entry(kind.clone()).or_insert(0);
                *known = (*known).max(*count);
            }
        }
        Ok(baseline)
    }

    /// Judges the outcome of a cell.
    pub(crate) fn judge(&self, cell: &Cell, outcome: &Outcome) -> Verdict {
        let verdict = self.judge_strictly(cell, outcome);
        match exceptions::reason(cell) {
            // No exception permits the end of the process.
            Some(reason) if !verdict.wrong.is_empty() && !outcome.ended_early => {
                Verdict { wrong: BTreeMap::new(), excepted: Some(reason), ..verdict }
            }
            _ => verdict,
        }
    }

    fn judge_strictly(&self, cell: &Cell, outcome: &Outcome) -> Verdict {
        let mut wrong = BTreeMap::new();
        if outcome.ended_early {
            let last = outcome.log.last().map_or("", |line| line.as_str());
            wrong.insert(Wrong::Exit, format!("status {:?}: {last}", outcome.status));
            return Verdict { wrong, ..Verdict::default() };
        }
        let ended = judge_flows(cell, outcome, &mut wrong);
        let later: Vec<&Report> = outcome.later.iter().filter(|report| report.end != End::Whole).collect();
        if let Some(first) = later.first() {
            wrong.insert(Wrong::Later, show(first));
        }
        let more = |(kind, count): (&String, &usize)| {
            let known = self.descriptors.get(kind).copied().unwrap_or(0);
            // How many unused sockets the opener has made depends on how many connections used one.
            // Unused pipes are kept.
            let more = match kind.as_str() {
                UNUSED => ended,
                "pipe" => PIPES,
                _ => 0,
            };
            let known = known + more;
            (*count > known).then(|| format!("{count} {kind}, not {known}"))
        };
        let leaks: Vec<String> = outcome.descriptors.iter().filter_map(more).collect();
        if !leaks.is_empty() {
            wrong.insert(Wrong::Leak, leaks.join(", "));
        }
        if is_busy(outcome) {
            wrong.insert(Wrong::Spin, format!("{} ticks, {} waits", outcome.ticks, outcome.waits));
        }
        let more = if cell.site.is_guests() { LINES + RECONNECTION } else { LINES };
        if outcome.log.len() > self.lines + more {
            let last = outcome.log.last().map_or("", |line| line.as_str());
            wrong.insert(Wrong::Flood, format!("{} lines: {last}", outcome.log.len()));
        }
        if outcome.status != Some(self.status) {
            wrong.insert(Wrong::Status, format!("{:?}", outcome.status));
        }
        Verdict { wrong, ended, asked_twice: outcome.asked_twice, excepted: None, start: None }
    }
}

/// Judges a start.
pub(crate) fn judge_start(
    cell: &Cell,
    way: Way,
    clean: &start::Outcome,
    outcome: &start::Outcome,
) -> Verdict {
    let mut wrong = BTreeMap::new();
    let message = outcome.messages.trim();
    let known: BTreeSet<&str> = clean.messages.lines().collect();
    let is_new_warning = |line: &&str| line.contains("warning: ") && !known.contains(line);
    let warnings: Vec<&str> = message.lines().filter(is_new_warning).collect();
    let start = match (outcome.ready, outcome.status) {
        (true, _) => match &outcome.broken {
            Some(_) if !warnings.is_empty() => Start::Warned(warnings.join("; ")),
            Some(broken) => {
                wrong.insert(Wrong::Later, broken.clone());
                Start::Works
            }
            None => Start::Works,
        },
        (false, None) => {
            wrong.insert(Wrong::Hang, format!("neither ready nor ended: {message}"));
            Start::Refused(message.to_owned())
        }
        (false, Some(status)) => {
            if status == 0 {
                wrong.insert(Wrong::Status, "status 0, although it failed".to_owned());
            }
            if status >= 128 || message.contains("panicked") {
                wrong.insert(Wrong::Exit, format!("status {status}: {message}"));
            } else if !explains(message, &known) {
                wrong.insert(Wrong::Silent, format!("'{message}'"));
            }
            if !outcome.left.is_empty() {
                wrong.insert(Wrong::Left, outcome.left.join(", "));
            }
            Start::Refused(message.to_owned())
        }
    };
    let verdict = Verdict { wrong, start: Some(start), ..Verdict::default() };
    let reason = exceptions::of_start(cell, way).or_else(|| exceptions::reason(cell));
    match reason {
        Some(reason) if !verdict.wrong.is_empty() && !verdict.wrong.contains_key(&Wrong::Hang) => {
            Verdict { wrong: BTreeMap::new(), excepted: Some(reason), ..verdict }
        }
        _ => verdict,
    }
}

/// Whether an error is reported by name: a new line after the program's name, which is not a warning.
fn explains(messages: &str, known: &BTreeSet<&str>) -> bool {
    messages.lines().filter(|line| !known.contains(line)).any(|line| {
        let message = line.strip_prefix("pasta: ").or_else(|| line.strip_prefix("passt: "));
        message.is_some_and(|message| !message.starts_with("warning: "))
    })
}

/// Returns how many flows ended as they may.
fn judge_flows(cell: &Cell, outcome: &Outcome, wrong: &mut BTreeMap<Wrong, String>) -> usize {
    let mut ended: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for report in &outcome.flows {
        match &report.end {
            End::Whole => {}
            End::Ended(_) => {
                ended.entry(&report.group).or_default()[usize::from(report.by_server)] += 1;
            }
            End::Hung(_) => drop(wrong.insert(Wrong::Hang, show(report))),
            End::Corrupt(_) => drop(wrong.insert(Wrong::Corruption, show(report))),
        }
    }
    let number = ended.values().map(|ends| ends[0].max(ends[1])).sum();
    let touched = touched(cell, outcome);
    // All connections to the guest that are not accepted yet end with the guest's connection.
    let limit = if cell.site.is_guests() { usize::MAX } else { 1 };
    let allowed =
        number <= limit && touched.is_some_and(|groups| ended.keys().all(|group| groups.contains(group)));
    if number > 0 && !allowed {
        let is_end = |report: &&Report| matches!(report.end, End::Ended(_));
        let first = outcome.flows.iter().find(is_end).map(show).unwrap_or_default();
        wrong.insert(Wrong::Loss, format!("{number} flows, one is {first}"));
    }
    number
}

/// The groups of which one flow may end.
fn touched<'a>(cell: &Cell, outcome: &Outcome) -> Option<BTreeSet<&'a str>> {
    if cell.is_harmless() {
        return None;
    }
    let words: Vec<&str> = cell.site.object.split(' ').collect();
    let has = |kind: &str| words.contains(&kind);
    let mut groups: BTreeSet<&str> = BTreeSet::new();
    if has("tcp") {
        let by_port = PORTS.iter().filter(|(_, port)| outcome.ports.contains(port));
        groups.extend(by_port.map(|(group, _)| *group));
        if outcome.ports.contains(&53) {
            groups.insert("dns-tcp");
        }
        // A new socket. Sockets of new rules are among them: the client of the control socket gets an error.
        if groups.is_empty() {
            groups.extend(PORTS.map(|(group, _)| group));
            groups.extend(["dns-tcp", "pesto"]);
        }
    }
    // The client of the control socket gets an error.
    if cell.site.call == "listen" {
        groups.insert("pesto");
    }
    // The client of the control socket gets a remark.
    if cell.site.call == "epoll_ctl" && has("tcp-listener") {
        groups.insert("new-rule");
    }
    if has("guest") || has("guest-listener") {
        groups.extend(TO_MACHINE);
    }
    if has("unix") {
        groups.extend(["api", "pesto"]);
    }
    // A new socket or pipe, for some flow.
    if has("stream") || cell.site.call == "pipe2" {
        groups.extend(PORTS.map(|(group, _)| group));
        groups.extend(["dns-tcp", "pesto"]);
    }
    Some(groups)
}

fn show(report: &Report) -> String {
    let side = if report.by_server { "server" } else { "client" };
    format!("{} ({side}): {:?}", report.group, report.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Site};

    fn judged(thread: &str, call: &str, outcome: &start::Outcome) -> Verdict {
        let site = Site { thread: thread.into(), call: call.into(), object: String::new() };
        let cell = Cell { site, number: 1, fault: Fault::Errno(libc::ENOMEM) };
        let clean = start::Outcome { messages: "MAC: 1\npasta: warning: old".into(), ..Default::default() };
        judge_start(&cell, Way::Joining, &clean, outcome)
    }

    fn failed(status: i32, messages: &str) -> start::Outcome {
        start::Outcome { status: Some(status), messages: messages.into(), ..Default::default() }
    }

    #[test]
    fn a_start_that_fails_says_why_and_leaves_nothing() {
        let wrong = |outcome: &start::Outcome| -> Vec<Wrong> {
            judged("pasta", "socket", outcome).wrong.into_keys().collect()
        };
        assert_eq!(wrong(&failed(1, "MAC: 1\npasta: can't make a socket")), []);
        assert_eq!(wrong(&failed(1, "MAC: 1\npasta: warning: old")), [Wrong::Silent]);
        assert_eq!(wrong(&failed(1, "pasta: warning: new")), [Wrong::Silent]);
        assert_eq!(wrong(&failed(0, "pasta: can't")), [Wrong::Status]);
        assert_eq!(wrong(&failed(101, "thread 'main' panicked")), [Wrong::Exit]);
        assert_eq!(wrong(&failed(159, "")), [Wrong::Exit]);
        let left = start::Outcome { left: vec!["/run/pid".into()], ..failed(1, "pasta: can't") };
        assert_eq!(wrong(&left), [Wrong::Left]);
        assert_eq!(wrong(&start::Outcome::default()), [Wrong::Hang]);
    }

    #[test]
    fn what_does_not_work_needs_a_new_warning() {
        let ready = |messages: &str| start::Outcome {
            ready: true,
            broken: Some("no ping socket".into()),
            messages: messages.into(),
            ..Default::default()
        };
        let silent = judged("pasta", "openat", &ready("pasta: warning: old"));
        assert_eq!(silent.wrong.into_keys().collect::<Vec<_>>(), [Wrong::Later]);
        let warned = judged("pasta", "openat", &ready("pasta: warning: no pings"));
        assert_eq!(warned.start, Some(Start::Warned("pasta: warning: no pings".into())));
        assert!(warned.wrong.is_empty());
    }

    /// The loader may end the process, but nothing may hang.
    #[test]
    fn exceptions_permit_an_end_and_no_hang() {
        assert!(judged("before main", "mmap", &failed(127, "")).excepted.is_some());
        assert!(judged("before main", "mmap", &start::Outcome::default()).excepted.is_none());
    }
}
