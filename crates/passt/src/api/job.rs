//! A request that is being answered: which questions it asks the thread that handles packets, and what it makes of the
//! answers.

use std::net::{IpAddr, SocketAddr};

use engine::flow::Protocol;
use engine::forward::spec::Direction;
use engine::listing::Detail;
use engine::policy::Name;
use serde::Deserialize;
use serde_json::json;

use super::ask::{About, Answer, Ask};
use super::capture::Sink;
use super::filter::Filter;
use super::flows::List;
use super::line::{Failure, Outcome, Request};
use super::metrics::{Format, Scrape, Shown};
use super::results;
use crate::config::Verbosity;
use crate::control::parse_policy;
use crate::logging;
use control::edit::Change;

/// The names of all requests, for messages.
const NAMES: &str = "config, stats, flows, flow.end, rules, rules.change, rules.add, rules.delete, rules.replace, \
                     policy, policy.replace, why, dns, neighbours, log.level, metrics, capture.start, capture.stop, subscribe, unsubscribe";

/// The next step of a request.
pub(super) enum Step {
    /// Ask this, and continue with the answer.
    Ask(Ask),
    /// Continue with the answer to the next ask of the list. It may have been sent ahead ([`Job::ahead`]).
    Continue,
    /// The request is answered.
    Done(Outcome),
}

/// What a job needs besides answers.
pub(super) struct Context<'a> {
    /// Facts about the program.
    pub(super) about: &'a About,
    /// The traffic in the last metrics.
    pub(super) shown: &'a mut Shown,
    /// The capture of a client.
    pub(super) capture: &'a mut Option<Sink>,
}

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) enum Job {
    /// The answer is the result.
    Plain,
    /// `flows`.
    Flows(Box<List>),
    /// `flow.end`: a list of the flow with this number, until it is found.
    End(u64, Box<List>),
    /// `policy`: the index of the first rule, and the rules so far.
    Policy(usize, Vec<String>),
    /// `why`: protocol, remote address and its name, as text.
    Why(&'static str, String, Option<String>),
    /// `dns`: the entries so far.
    Names(String),
    /// `capture.start`.
    Captures,
    /// `capture.stop`.
    Captured,
    /// `metrics`: a list of all flows, after the counts have arrived.
    Metrics(Box<List>, Option<Box<Scrape>>, Wrapping),
}

/// How the text of metrics is given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrapping {
    /// In an object.
    Json,
    /// As it is, for HTTP.
    Bare(Format),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FlowNumber {
    flow: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    rules: Vec<Ports>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    changes: Vec<RuleChange>,
}

/// A change of the forwarding rules, as an option of `pesto`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum RuleChange {
    /// The rules after it are added.
    Add,
    /// The rules after it are deleted.
    Delete,
    /// The table with this name is emptied.
    Clear(String),
    /// A rule that is added or deleted. Without one of these before it, the first one empties the table.
    Rule(Ports),
}

/// A forwarding rule, as the options `-t`, `-u`, `-T` and `-U` have it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ports {
    direction: String,
    protocol: String,
    ports: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    #[serde(default)]
    first: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destination {
    address: IpAddr,
    port: Option<u16>,
    protocol: Option<String>,
    guest: Option<IpAddr>,
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: Option<String>,
}

impl Job {
    /// Begins to collect metrics for HTTP.
    pub(super) fn scrape(format: Format) -> Result<(Self, Step), Failure> {
        metrics(Wrapping::Bare(format)).map(|(step, job)| (job, step))
    }

    /// Begins a request, other than one about subscriptions.
    pub(super) fn begin(request: &Request, about: &About) -> (Self, Step) {
        let begun = match &request.name[..] {
            "config" => plain(request, Ask::Settings),
            "stats" => plain(request, Ask::Counts),
            "rules" => plain(request, Ask::Rules),
            "neighbours" => plain(request, Ask::Neighbours),
            "flows" => List::new(request, &about.limits)
                .map(|mut list| (Step::Ask(list.ask()), Self::Flows(Box::new(list)))),
            "flow.end" => end(request),
            "metrics" => request.arguments().and_then(|Nothing {}| metrics(Wrapping::Json)),
            "rules.change" => request.arguments().and_then(|Changes { changes }| change(false, changes)),
            "rules.add" => change_all(request, false, RuleChange::Add),
            "rules.delete" => change_all(request, false, RuleChange::Delete),
            "rules.replace" => change_all(request, true, RuleChange::Add),
            "policy" => request.arguments().map(|From { first }| {
                let first = first as usize;
                (Step::Ask(Ask::Policy(first)), Self::Policy(first, Vec::new()))
            }),
            "policy.replace" => replace(request),
            "why" => why(request),
            "dns" => request
                .arguments()
                .map(|From { first }| (Step::Ask(Ask::Names(first)), Self::Names(String::new()))),
            "log.level" => log_level(request, about).map(|result| (Step::Done(Ok(result)), Self::Plain)),
            name => {
                let message = format!("there is no request {name:?}; there are {NAMES}");
                Err(Failure::new("unknown-request", message))
            }
        };
        match begun {
            Ok((step, job)) => (job, step),
            Err(failure) => (Self::Plain, Step::Done(Err(failure))),
        }
    }

    /// The next ask of a list, if it has one.
    pub(super) fn ask(&mut self) -> Option<Ask> {
        match self {
            Self::Flows(list) | Self::End(_, list) | Self::Metrics(list, ..) => Some(list.ask()),
            _ => None,
        }
    }

    /// The ask that follows this answer, if it does not depend on what [`step`](Self::step) makes of the answer.
    pub(super) fn ahead(&mut self, answer: &Answer) -> Option<Ask> {
        match self {
            Self::Flows(list) => list.ahead(answer),
            _ => None,
        }
    }

    /// Continues with an answer.
    pub(super) fn step(&mut self, answer: Answer, cx: &mut Context<'_>) -> Step {
        let outcome = match (&mut *self, answer) {
            (Self::Plain, answer) => plain_result(answer, cx.about),
            (Self::Flows(list), Answer::Flows { now, flows, next }) => {
                if list.add(now, flows, next) {
                    return Step::Continue;
                }
                return Step::Done(std::mem::replace(self, Self::Plain).into_list());
            }
            (Self::Flows(list), Answer::Complete { now, flows }) => {
                if list.add_complete(now, &flows) {
                    return Step::Continue;
                }
                return Step::Done(std::mem::replace(self, Self::Plain).into_list());
            }
            (Self::End(number, list), Answer::Flows { now, flows, next }) => {
                if let Some(flow) = flows.first() {
                    return Step::Ask(Ask::End(flow.id, *number));
                }
                if list.add(now, flows, next) {
                    return Step::Continue;
                }
                no_flow(*number)
            }
            (Self::End(number, _), Answer::Ended(true)) => Ok(json!({ "flow": number }).to_string()),
            (Self::End(number, _), Answer::Ended(false)) => no_flow(*number),
            (Self::Captures, Answer::Capture(true)) => Ok("{}".into()),
            (Self::Captures, Answer::Capture(false)) => {
                *cx.capture = None;
                Err(Failure::new(
                    "refused",
                    "there is no link to capture (--splice-only, or the link is lost)",
                ))
            }
            (Self::Captured, Answer::Capture(_)) => match cx.capture.take() {
                Some(sink) => Ok(sink.finish().to_string()),
                None => Err(no_capture()),
            },
            (Self::Metrics(list, scrape, _), Answer::Counts(counts)) => {
                *scrape = Some(Box::new(Scrape::new(*counts)));
                return Step::Ask(list.ask());
            }
            (Self::Metrics(list, Some(scrape), _), Answer::Flows { now, flows, next }) => {
                scrape.add(&flows);
                if list.add(now, Vec::new(), next) {
                    return Step::Continue;
                }
                return Step::Done(std::mem::replace(self, Self::Plain).into_metrics(cx));
            }
            (Self::Policy(first, rules), Answer::Policy(part)) => {
                let before = rules.len();
                rules.extend_from_slice(&part.rules);
                let len: usize = rules.iter().map(|rule| rule.len() + 3).sum();
                if rules.len() > before
                    && len < cx.about.limits.list
                    && part.all.is_some_and(|all| *first + rules.len() < all)
                {
                    return Step::Ask(Ask::Policy(*first + rules.len()));
                }
                results::policy(&part, *first, rules)
            }
            (Self::Why(protocol, remote, name), Answer::Why(route)) => match route {
                Ok(route) => results::route(protocol, remote, name.as_deref(), &route),
                Err(reason) => Err(Failure::new("refused", reason)),
            },
            (Self::Names(text), Answer::Names(known, next)) => {
                return add_names(text, &known, next, cx.about.limits.list);
            }
            (_, _) => Err(Failure::new("internal", "the answer does not belong to the request")),
        };
        Step::Done(outcome)
    }

    fn into_list(self) -> Outcome {
        match self {
            Self::Flows(list) => list.finish(),
            _ => Err(Failure::new("internal", "not a list")),
        }
    }

    fn into_metrics(self, cx: &mut Context<'_>) -> Outcome {
        match self {
            Self::Metrics(_, Some(scrape), Wrapping::Json) => {
                let text = scrape.finish(Format::OpenMetrics, cx.about, cx.shown);
                Ok(json!({ "text": text }).to_string())
            }
            Self::Metrics(_, Some(scrape), Wrapping::Bare(format)) => {
                Ok(scrape.finish(format, cx.about, cx.shown))
            }
            _ => Err(Failure::new("internal", "not metrics")),
        }
    }
}

type Begun = Result<(Step, Job), Failure>;

fn plain(request: &Request, ask: Ask) -> Begun {
    let Nothing {} = request.arguments()?;
    Ok((Step::Ask(ask), Job::Plain))
}

fn plain_result(answer: Answer, about: &About) -> Outcome {
    match answer {
        Answer::Settings(present) => results::settings(about, &present),
        Answer::Counts(counts) => results::counts(&counts),
        Answer::Rules(tables) => results::rules(&tables),
        Answer::Neighbours(list) => results::neighbours(&list),
        Answer::Changed(Ok(changed)) => results::changed(&changed),
        Answer::Replaced(Ok(remark)) => Ok(json!({ "remark": remark }).to_string()),
        Answer::Changed(Err(reason)) | Answer::Replaced(Err(reason)) => Err(Failure::new("refused", reason)),
        _ => Err(Failure::new("internal", "the answer does not belong to the request")),
    }
}

/// The failure of a request to end a capture that is not there.
pub(super) fn no_capture() -> Failure {
    Failure::new("not-found", "this client has no capture, or it has ended: see the event")
}

fn no_flow(number: u64) -> Outcome {
    Err(Failure::new("not-found", format!("there is no flow {number}")))
}

fn end(request: &Request) -> Begun {
    let FlowNumber { flow } = request.arguments()?;
    let mut list = List::of(Filter { number: Some(flow), ..Filter::default() }, Detail::Known);
    Ok((Step::Ask(list.ask()), Job::End(flow, Box::new(list))))
}

fn metrics(wrapping: Wrapping) -> Begun {
    let list = List::of(Filter::default(), Detail::Sockets);
    Ok((Step::Ask(Ask::Counts), Job::Metrics(Box::new(list), None, wrapping)))
}

/// A change of the same kind by all rules of the request.
fn change_all(request: &Request, replaces: bool, mode: RuleChange) -> Begun {
    let Rules { rules } = request.arguments()?;
    change(replaces, [mode].into_iter().chain(rules.into_iter().map(RuleChange::Rule)))
}

fn change(replaces: bool, changes: impl IntoIterator<Item = RuleChange>) -> Begun {
    let changes = changes.into_iter().map(|change| match change {
        RuleChange::Add => Ok(Change::Add),
        RuleChange::Delete => Ok(Change::Delete),
        RuleChange::Clear(table) => Ok(Change::Clear(table)),
        RuleChange::Rule(ports) => ports.change(),
    });
    let changes = changes.collect::<Result<_, _>>()?;
    Ok((Step::Ask(Ask::Change { replaces, changes }), Job::Plain))
}

impl Ports {
    fn change(self) -> Result<Change, Failure> {
        let direction = match &self.direction[..] {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return Err(Failure::new("invalid-arguments", "direction: inbound or outbound")),
        };
        let protocol = match &self.protocol[..] {
            "tcp" => engine::forward::Protocol::Tcp,
            "udp" => engine::forward::Protocol::Udp,
            _ => return Err(Failure::new("invalid-arguments", "protocol: tcp or udp")),
        };
        // Messages name the option.
        let typed_as = match (direction, protocol) {
            (Direction::Inbound, engine::forward::Protocol::Tcp) => "-t",
            (Direction::Inbound, engine::forward::Protocol::Udp) => "-u",
            (Direction::Outbound, engine::forward::Protocol::Tcp) => "-T",
            (Direction::Outbound, engine::forward::Protocol::Udp) => "-U",
        };
        Ok(Change::Ports { direction, protocol, spec: self.ports, typed_as: typed_as.into() })
    }
}

fn replace(request: &Request) -> Begun {
    let PolicyText { text } = request.arguments()?;
    let policy = parse_policy(&text).map_err(|error| Failure::new("refused", error))?;
    Ok((Step::Ask(Ask::Replace(Box::new(policy))), Job::Plain))
}

fn why(request: &Request) -> Begun {
    let Destination { address, port, protocol, guest, name } = request.arguments()?;
    let word = protocol.as_deref().unwrap_or("tcp");
    let known = Protocol::ALL.iter().find(|(name, _)| *name == word);
    let invalid = |message: &str| Failure::new("invalid-arguments", format!("why: {message}"));
    let &(word, protocol) = known.ok_or_else(|| invalid("protocol: tcp, udp or icmp"))?;
    let port = match (protocol, port) {
        (Protocol::Icmp, Some(_)) => return Err(invalid("icmp has no port")),
        (Protocol::Icmp, None) => 0,
        (_, port) => port.unwrap_or(443),
    };
    let name = name
        .map(|name| Name::parse(&name).ok_or_else(|| invalid(&format!("name: {name:?} is no domain name"))));
    let name = name.transpose()?;
    let shown = name.as_ref().map(|name| name.as_str().to_owned());
    let remote = SocketAddr::new(address, port);
    let job = Job::Why(word, address.to_string(), shown);
    Ok((Step::Ask(Ask::Why { protocol, guest, remote, name }), job))
}

fn add_names(text: &mut String, known: &[engine::names::Known], next: Option<u32>, most: usize) -> Step {
    known.iter().for_each(|known| results::add_names(text, known));
    let has_room = text.len() < most;
    match next {
        Some(next) if has_room => Step::Ask(Ask::Names(next)),
        next => {
            let next = next.map(|next| format!(",\"next\":{next}")).unwrap_or_default();
            Step::Done(Ok(format!("{{\"addresses\":[{text}]{next}}}")))
        }
    }
}

fn log_level(request: &Request, about: &About) -> Result<String, Failure> {
    const LEVELS: [(&str, Verbosity); 4] = [
        ("quiet", Verbosity::Quiet),
        ("info", Verbosity::Info),
        ("debug", Verbosity::Debug),
        ("trace", Verbosity::Trace),
    ];
    let LogLevel { level } = request.arguments()?;
    if let Some(level) = level {
        let known = LEVELS.iter().find(|(name, _)| *name == level);
        let (_, verbosity) = known.ok_or_else(|| {
            Failure::new("invalid-arguments", "log.level: one of quiet, info, debug, trace")
        })?;
        logging::set_verbosity(*verbosity);
        log::info!("{}: the log level is {level} now, set at the API socket", about.program);
    }
    let present = logging::verbosity();
    let name = LEVELS.iter().find(|(_, verbosity)| *verbosity == present).map_or("", |(name, _)| name);
    Ok(json!({ "level": name }).to_string())
}
