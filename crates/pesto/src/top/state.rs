//! What `pesto top` shows, and how the answers of the server change it.

use serde_json::{Value, json};

use super::filter::Filter;
use super::flow::{Flow, Sort, flows};
use crate::connection::Fault;
use crate::text;

/// How many flows are listed when they are sorted by rate. Flows with less recent traffic have no rates.
const LIMIT_FOR_RATES: usize = 1000;
/// The server's greatest limit.
const LIMIT: usize = 10_000;

/// All that the screen depends on.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The program, its version, and the path of its socket.
    pub(super) title: String,
    /// The flows of the last list, sorted.
    pub(super) flows: Vec<Flow>,
    /// Whether the server has more.
    pub(super) more: bool,
    /// The counts that came with the list.
    pub(super) counts: Counts,
    /// The sort key.
    pub(super) sort: Sort,
    /// The smallest first.
    pub(super) reverse: bool,
    /// The filter.
    pub(super) filter: Filter,
    /// What the keys do.
    pub(super) mode: Mode,
    /// The list does not change.
    pub(super) frozen: bool,
    /// The selected flow.
    pub(super) selected: Option<u64>,
    /// The index of the first flow on the screen.
    pub(super) offset: usize,
    /// How many flows fit the screen.
    pub(super) rows: usize,
    /// What the user should know, until the next key.
    pub(super) message: String,
}

/// What the keys do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// They are commands.
    #[default]
    List,
    /// They change this text of a filter.
    Filter(String),
    /// They answer whether to end this flow.
    End(u64),
    /// They close the help.
    Help,
}

/// Counts of the server.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counts {
    /// TCP, TCP that bypasses the link, UDP and ping: flows that exist.
    pub(super) open: [u64; 4],
    /// Refusals of the guard.
    pub(super) refusals: u64,
    /// Seconds since the server started.
    pub(super) uptime: f64,
}

impl Counts {
    fn of(stats: &Value) -> Self {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        Self {
            open: ["tcp", "tcp_bypass", "udp", "ping"].map(|kind| number(&stats[kind]["open"])),
            refusals: number(&stats["refusals"]),
            uptime: stats["uptime"].as_f64().unwrap_or(0.0),
        }
    }
}

impl State {
    /// The arguments of the next request `flows`.
    pub(super) fn arguments(&self) -> Value {
        // The rows after those on the screen are there when the user gets to them.
        let shown = (self.offset + 2 * self.rows).clamp(1, LIMIT);
        let by_rate = self.sort == Sort::Rate;
        let mut arguments = self.filter.conditions.clone();
        arguments.insert("sort".into(), self.sort.argument().into());
        arguments.insert("ascending".into(), (by_rate || self.reverse).into());
        let limit = if by_rate { shown.max(LIMIT_FOR_RATES) } else { shown };
        arguments.insert("limit".into(), json!(limit));
        Value::Object(arguments)
    }

    /// Takes a list of flows and the counts that came with it.
    pub(super) fn update(&mut self, list: &Value, stats: &Value) {
        if self.frozen {
            return;
        }
        let counts = Counts::of(stats);
        // Before the first list, nothing is known about rates.
        let interval = if self.counts.uptime > 0.0 { counts.uptime - self.counts.uptime } else { 0.0 };
        let place = self.place();
        self.flows = flows(list, &self.flows, interval);
        self.more = list["more"] == true;
        self.counts = counts;
        self.sort_flows();
        // If the selected flow has ended, the one that took its place is selected.
        if let Some(place) = place
            && self.place().is_none()
        {
            self.selected =
                self.flows.get(place.min(self.flows.len().saturating_sub(1))).map(|flow| flow.number);
        }
        self.scroll();
    }

    /// Takes the server's refusal of a request. The server may not like the filter.
    pub(super) fn refuse(&mut self, reason: &str) {
        self.message = text::word(&reason.into());
        self.filter = Filter::default();
    }

    /// Takes the answer to the request to end a flow.
    pub(super) fn ended(&mut self, number: u64, outcome: Result<(), Fault>) {
        self.message = match outcome {
            Ok(()) => format!("flow {number} has ended"),
            Err(fault) => text::word(&fault.to_string().into()),
        };
    }

    /// Sorts the flows.
    pub(super) fn sort_flows(&mut self) {
        self.sort.sort(&mut self.flows, self.reverse);
    }

    /// The index of the selected flow.
    pub(super) fn place(&self) -> Option<usize> {
        self.flows.iter().position(|flow| Some(flow.number) == self.selected)
    }

    /// The selected flow.
    pub(super) fn selection(&self) -> Option<&Flow> {
        self.place().and_then(|place| self.flows.get(place))
    }

    /// Selects the flow with this index, or the last one.
    pub(super) fn select(&mut self, place: usize) {
        let last = self.flows.len().saturating_sub(1);
        self.selected = self.flows.get(place.min(last)).map(|flow| flow.number);
        self.scroll();
    }

    /// Makes the rows on the screen include the selected flow. Without one, they are the first ones.
    pub(super) fn scroll(&mut self) {
        let Some(place) = self.place() else {
            self.offset = 0;
            return;
        };
        let rows = self.rows.max(1);
        let first_offset = (place + 1).saturating_sub(rows);
        let last_offset = self.flows.len().saturating_sub(rows);
        self.offset = self.offset.clamp(first_offset, place).min(last_offset.max(first_offset));
    }

    /// Bytes per second of all listed flows, from the guest and to it.
    pub(super) fn rates(&self) -> [f64; 2] {
        let known = self.flows.iter().filter_map(|flow| flow.rates);
        known.fold([0.0, 0.0], |[sent, received], rates| [sent + rates[0], received + rates[1]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(numbers: &[u64]) -> Value {
        let flows: Vec<Value> = numbers.iter().map(|number| json!({ "flow": number, "age": 5.0 })).collect();
        json!({ "flows": flows, "more": false })
    }

    fn showing(numbers: &[u64]) -> State {
        let mut state = State { rows: 3, ..State::default() };
        state.update(&list(numbers), &json!({}));
        state
    }

    #[test]
    fn the_request_asks_for_what_fits() {
        let mut state = State { rows: 20, sort: Sort::Bytes, ..State::default() };
        let asked = json!({ "sort": "bytes", "ascending": false, "limit": 40 });
        assert_eq!(state.arguments(), asked);
        state.filter = Filter::new("tcp").unwrap();
        state.sort = Sort::Rate;
        let asked = json!({ "sort": "idle", "ascending": true, "limit": 1000, "protocol": "tcp" });
        assert_eq!(state.arguments(), asked);
        (state.sort, state.reverse, state.rows, state.offset) = (Sort::Age, true, 0, 20_000);
        assert_eq!(state.arguments()["limit"], 10_000);
        assert_eq!(state.arguments()["ascending"], true);
    }

    #[test]
    fn the_selection_stays_with_its_flow() {
        let mut state = showing(&[1, 2, 3, 4, 5]);
        state.select(3);
        assert_eq!((state.selected, state.offset), (Some(4), 1));
        state.update(&list(&[3, 4, 5, 6]), &json!({}));
        assert_eq!((state.selected, state.place()), (Some(4), Some(1)));
        // It has ended: the next one takes its place, or the last one.
        state.update(&list(&[3, 5, 6]), &json!({}));
        assert_eq!(state.selected, Some(5));
        state.select(9);
        state.update(&list(&[3]), &json!({}));
        assert_eq!((state.selected, state.offset), (Some(3), 0));
        state.update(&list(&[]), &json!({}));
        assert_eq!((state.selected, state.offset), (None, 0));
    }

    /// A flow of the first list may be older than any list.
    #[test]
    fn the_first_list_has_no_rates() {
        let mut state = State::default();
        let list = |bytes: u64, age: f64| json!({ "flows": [{ "flow": 1, "bytes_sent": bytes, "bytes_received": 0, "age": age }] });
        state.update(&list(1000, 2.0), &json!({ "uptime": 50.0 }));
        assert_eq!((state.flows[0].rates, state.rates()), (None, [0.0, 0.0]));
        state.update(&list(1500, 3.0), &json!({ "uptime": 51.0 }));
        assert_eq!((state.flows[0].rates, state.rates()), (Some([500.0, 0.0]), [500.0, 0.0]));
    }

    #[test]
    fn a_frozen_list_does_not_change() {
        let mut state = showing(&[1]);
        state.frozen = true;
        state.update(&list(&[2]), &json!({ "refusals": 3 }));
        assert_eq!((state.flows[0].number, state.counts.refusals), (1, 0));
    }

    #[test]
    fn a_refused_filter_is_removed_and_the_reason_is_shown() {
        let mut state = State { filter: Filter::new("state=x").unwrap(), ..State::default() };
        state.refuse("no such state\u{1b}");
        assert_eq!((&state.filter, &state.message[..]), (&Filter::default(), "no such state\u{fffd}"));
        state.ended(7, Err(Fault::Refused("there is no flow 7".into())));
        assert_eq!(state.message, "there is no flow 7");
        state.ended(7, Ok(()));
        assert_eq!(state.message, "flow 7 has ended");
    }
}
