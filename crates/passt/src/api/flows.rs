//! The list of flows: its arguments, its order, and its text.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use engine::flow::Protocol;
use engine::forward::spec::Direction;
use engine::listing::{Detail, Listed, State};
use engine::quota::allocation;
use engine::timer::Instant;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wire::domain::MAX_DOTTED_LEN;

use super::Limits;
use super::ask::{Answer, Ask, Place, SLOTS};
use super::filter::Filter;
use super::line::{Failure, Outcome};
use crate::flow_log::{Line, seconds};

/// Number of flows in a list, unless the client asks for another one.
const DEFAULT_LIMIT: usize = 1000;
/// Maximum number of flows in a list.
const MAX_LIMIT: usize = 10_000;

/// The arguments of `flows`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Arguments {
    flow: Option<u64>,
    protocol: Option<String>,
    direction: Option<String>,
    bypass: Option<bool>,
    address: Option<String>,
    port: Option<u16>,
    name: Option<String>,
    state: Option<String>,
    sort: Option<String>,
    ascending: bool,
    limit: Option<usize>,
    after: Option<String>,
}

/// The key by which a list is sorted.
type Key = fn(&Row) -> u64;

/// The keys, by name, and what has to be found out about each flow before the list can be sorted.
const KEYS: [(&str, (Key, Detail)); 7] = [
    ("flow", (|row| row.listed.flow.number, Detail::Known)),
    ("age", (|row| micros(row.age), Detail::Known)),
    ("idle", (|row| row.listed.idle.map_or(0, micros), Detail::Known)),
    ("bytes", (|row| row.amounts().map(|amount| amount.bytes).sum(), Detail::Sockets)),
    ("packets", (|row| row.amounts().filter_map(|amount| amount.packets).sum(), Detail::Sockets)),
    ("rtt", (|row| row.listed.path.map_or(0, |path| micros(path.rtt)), Detail::Sockets)),
    (
        "retransmissions",
        (|row| row.listed.path.map_or(0, |path| path.retransmissions.into()), Detail::Sockets),
    ),
];

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Memory of a flow in a list, in bytes, without that of the [flow](engine::events::Flow::memory): with the name of a server.
pub(crate) const ROW_BYTES: usize = size_of::<Row>() + allocation(MAX_DOTTED_LEN);

/// A flow of a list that is not sorted yet.
#[derive(Debug)]
struct Row {
    listed: Listed,
    age: Duration,
}

impl Row {
    fn amounts(&self) -> impl Iterator<Item = engine::host::Amount> {
        self.listed.totals.into_iter().flat_map(|totals| [totals.sent, totals.received])
    }
}

/// A list that is being made.
///
/// The flows of a list that is not sorted become text as they arrive. Other flows are kept and sorted first. If the key
/// does not depend on their sockets, the host is asked afterwards, only about the flows that are listed.
#[derive(Debug)]
pub(super) struct List {
    filter: Arc<Filter>,
    detail: Detail,
    sort: Option<Key>,
    ascending: bool,
    limit: usize,
    /// Length of the text at which the list stops.
    most: usize,
    /// The place of the next flows.
    place: Place,
    /// The flows of a sorted list that are not text yet.
    rows: Vec<Row>,
    /// All flows were visited, so `rows` are sorted.
    sorted: bool,
    /// Number of flows about whose sockets the host has to be asked, or was asked and has not answered yet.
    incomplete: usize,
    /// The flows that are text, and their number.
    text: String,
    count: usize,
    /// The place of the last one of them, in a list that is not sorted.
    last: Option<Place>,
    /// The place of the first flow that was left out, in a list that is not sorted.
    next: Option<Place>,
    /// Whether flows were left out.
    more: bool,
}

impl List {
    /// The list that the arguments of a request describe, within these limits.
    ///
    /// # Errors
    /// An argument is invalid.
    pub(super) fn new(request: &super::line::Request, limits: &Limits) -> Result<Self, Failure> {
        let arguments: Arguments = request.arguments()?;
        let sort = arguments.sort.as_deref().map(|name| find("sort", &KEYS, name)).transpose()?;
        let limit = arguments.limit.unwrap_or(DEFAULT_LIMIT);
        if limit == 0 || limit > MAX_LIMIT {
            return Err(invalid(format!("limit: from 1 to {MAX_LIMIT}")));
        }
        let place = match &arguments.after {
            None => Place::FIRST,
            Some(_) if sort.is_some() => return Err(invalid("after can't be used with sort".into())),
            Some(text) => Place::of_text(text)
                .ok_or_else(|| invalid("after: the text of \"next\" in an answer".into()))?,
        };
        let ascending = arguments.ascending;
        if ascending && sort.is_none() {
            return Err(invalid("ascending can only be used with sort".into()));
        }
        let (sort, detail) = sort.unzip();
        let detail = detail.unwrap_or(Detail::Sockets);
        let (most, limit) = match sort {
            Some(_) => (limits.list, limit.min(limits.rows)),
            None => (limits.list, limit),
        };
        Ok(Self { sort, ascending, limit, most, place, ..Self::of(filter(arguments)?, detail) })
    }

    /// A list of flows for the program itself, which takes them from the answers.
    pub(super) fn of(filter: Filter, detail: Detail) -> Self {
        Self {
            filter: Arc::new(filter),
            detail,
            sort: None,
            ascending: false,
            limit: MAX_LIMIT,
            most: Limits::DEFAULT.list,
            place: Place::FIRST,
            rows: Vec::new(),
            sorted: false,
            incomplete: 0,
            text: String::new(),
            count: 0,
            last: None,
            next: None,
            more: false,
        }
    }

    /// The next ask.
    pub(super) fn ask(&mut self) -> Ask {
        if self.sorted {
            let part = self.rows.drain(..self.rows.len().min(SLOTS as usize));
            return Ask::Complete(part.map(|row| row.listed).collect());
        }
        Ask::Flows(self.place, self.filter.clone(), self.detail)
    }

    /// The ask after an answer that was not added yet, if the list will surely need it. So the other thread can work on
    /// it meanwhile.
    pub(super) fn ahead(&mut self, answer: &Answer) -> Option<Ask> {
        match answer {
            Answer::Flows { flows, next: Some(next), .. } => {
                let has_room = self.count + flows.len() <= self.limit && self.text.len() < self.most;
                (self.sort.is_some() || has_room).then(|| Ask::Flows(*next, self.filter.clone(), self.detail))
            }
            Answer::Complete { .. } if !self.rows.is_empty() => Some(self.ask()),
            _ => None,
        }
    }

    /// Adds the flows of an answer. Returns false if the list is complete.
    pub(super) fn add(&mut self, now: Instant, flows: Vec<Listed>, next: Option<Place>) -> bool {
        for listed in flows {
            let age = now.since(listed.flow.begun);
            if self.sort.is_some() {
                self.rows.push(Row { listed, age });
                continue;
            }
            let place = Place { slot: listed.id.index(), ..self.place };
            if !self.write(&listed, age, Some(place)) {
                self.next = Some(place);
                return false;
            }
        }
        if self.rows.len() > 2 * self.limit {
            self.cut();
        }
        match next {
            Some(next) => self.place = next,
            None => return self.sort(),
        }
        true
    }

    /// Sorts the list, after all flows were visited. Returns false if it is complete.
    fn sort(&mut self) -> bool {
        self.cut();
        self.sorted = true;
        if self.detail == Detail::Sockets {
            let rows = std::mem::take(&mut self.rows);
            // A list that is too long ends early.
            let _ = rows.iter().all(|row| self.write(&row.listed, row.age, None));
        }
        self.incomplete = self.rows.len();
        self.incomplete > 0
    }

    /// Adds the flows of an answer to [`Ask::Complete`]. Returns false if the list is complete.
    pub(super) fn add_complete(&mut self, now: Instant, flows: &[Listed]) -> bool {
        self.incomplete = self.incomplete.saturating_sub(flows.len());
        flows.iter().all(|listed| self.write(listed, now.since(listed.flow.begun), None))
            && self.incomplete > 0
    }

    /// Sorts the flows so far, and removes those beyond the limit.
    fn cut(&mut self) {
        let Some(key) = self.sort else { return };
        // Flows with equal keys are in the order of their numbers.
        let ascending = self.ascending;
        let place = |value| if ascending { value } else { u64::MAX - value };
        self.rows.sort_unstable_by_key(|row| (place(key(row)), row.listed.flow.number));
        self.more |= self.rows.len() > self.limit;
        self.rows.truncate(self.limit);
    }

    /// Adds the text of a flow. Returns false if the list is full. Flows in the same place (pings to several
    /// destinations) are not separated: the place of the next part is a slot.
    fn write(&mut self, listed: &Listed, age: Duration, place: Option<Place>) -> bool {
        let is_full = self.count >= self.limit || self.text.len() >= self.most;
        if is_full && (place.is_none() || place != self.last) {
            self.more = true;
            return false;
        }
        if self.count > 0 {
            self.text.push(',');
        }
        self.text.push_str(&serde_json::to_string(&Entry::of(listed, age)).unwrap_or_default());
        (self.count, self.last) = (self.count + 1, place);
        true
    }

    /// The list as JSON.
    pub(super) fn finish(self) -> Outcome {
        let next = self.next.map(|next| format!(",\"next\":\"{}\"", next.to_text())).unwrap_or_default();
        Ok(format!("{{\"flows\":[{}],\"more\":{}{next}}}", self.text, self.more))
    }
}

fn invalid(message: String) -> Failure {
    Failure::new("invalid-arguments", message)
}

fn filter(arguments: Arguments) -> Result<Filter, Failure> {
    let Arguments { flow, protocol, direction, bypass, address, port, name, state, .. } = arguments;
    const DIRECTIONS: [(&str, Direction); 2] =
        [("outbound", Direction::Outbound), ("inbound", Direction::Inbound)];
    Ok(Filter {
        number: flow,
        protocol: protocol.map(|name| find("protocol", &Protocol::ALL, &name)).transpose()?,
        direction: direction.map(|name| find("direction", &DIRECTIONS, &name)).transpose()?,
        bypasses: bypass,
        address: address.map(|text| network(&text)).transpose()?,
        port,
        name: name.map(|name| name.to_ascii_lowercase()),
        state: state.map(|name| find("state", &State::ALL, &name)).transpose()?,
    })
}

/// The value of a name in a table.
///
/// # Errors
/// The table does not have the name.
pub(super) fn find<T: Copy>(argument: &str, table: &[(&str, T)], name: &str) -> Result<T, Failure> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        invalid(format!("{argument}: one of {}", names.join(", ")))
    })
}

/// A network, or the network of a single address.
///
/// # Errors
/// It is neither.
pub(super) fn network(text: &str) -> Result<IpNet, Failure> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| invalid("address: an IP address or a prefix".into()))
}

/// A flow in the list. The fields of [`Line`] have the meaning that they have in the flow log.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    line: Line<'a>,
    state: &'static str,
    age: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmissions: Option<u32>,
}

impl<'a> Entry<'a> {
    fn of(listed: &'a Listed, age: Duration) -> Self {
        let local = listed.local.as_ref();
        Self {
            line: Line::of_flow(&listed.flow).having(listed.name.as_deref(), listed.totals),
            state: listed.state.name(),
            age: seconds(age),
            idle: listed.idle.map(seconds),
            host: local.map(SocketAddr::ip),
            host_port: local.map(SocketAddr::port),
            rtt: listed.path.map(|path| seconds(path.rtt)),
            retransmissions: listed.path.map(|path| path.retransmissions),
        }
    }
}
