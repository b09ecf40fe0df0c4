//! A flow as it is shown, and the order of flows.

use std::cmp::Ordering;
use std::collections::HashMap;

use serde_json::Value;

use crate::text;

/// A flow. No text in it controls a terminal.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Flow {
    /// Its number, which no other flow has.
    pub(super) number: u64,
    /// The protocol. A `*` follows if the flow bypasses the link.
    pub(super) protocol: String,
    /// Whether the guest is its destination.
    pub(super) inbound: bool,
    /// Address and port of the guest.
    pub(super) guest: String,
    /// Address and port of the peer.
    pub(super) peer: String,
    /// The first name of the peer (or its address), and the port.
    pub(super) named: String,
    /// All names and the rule.
    pub(super) remark: String,
    /// The state.
    pub(super) state: String,
    /// Bytes from the guest and to it.
    pub(super) bytes: Option<[u64; 2]>,
    /// Bytes per second from the guest and to it, since the list before.
    pub(super) rates: Option<[f64; 2]>,
    /// Round-trip time in seconds.
    pub(super) rtt: Option<f64>,
    /// Segments that were sent again.
    pub(super) retransmissions: Option<u64>,
    /// Seconds since it began.
    pub(super) age: f64,
}

impl Flow {
    /// The flow that an entry of the list describes.
    fn of(entry: &Value) -> Self {
        let bytes = [&entry["bytes_sent"], &entry["bytes_received"]].map(Value::as_u64);
        let names = text::names(entry);
        let rule = text::word(&entry["rule"]);
        let peer = text::end(entry, "peer");
        let named = match (names.split(", ").next(), entry["peer_port"].as_u64()) {
            (None | Some(""), _) => peer.clone(),
            (Some(name), Some(port)) => format!("{name}:{port}"),
            (Some(name), None) => name.into(),
        };
        Self {
            number: entry["flow"].as_u64().unwrap_or(0),
            protocol: text::word(&entry["protocol"]) + if entry["bypass"] == true { "*" } else { "" },
            inbound: entry["direction"] == "inbound",
            guest: text::end(entry, "guest"),
            peer,
            named,
            remark: [names, rule].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; "),
            state: text::word(&entry["state"]),
            bytes: bytes[0].zip(bytes[1]).map(|(sent, received)| [sent, received]),
            rates: None,
            rtt: entry["rtt"].as_f64(),
            retransmissions: entry["retransmissions"].as_u64(),
            age: entry["age"].as_f64().unwrap_or(0.0),
        }
    }
}

/// The flows of a list, with rates from the list before, which came `interval` seconds earlier.
pub(super) fn flows(list: &Value, before: &[Flow], interval: f64) -> Vec<Flow> {
    let before: HashMap<u64, &Flow> = before.iter().map(|flow| (flow.number, flow)).collect();
    let entries = list["flows"].as_array().into_iter().flatten();
    let mut flows: Vec<Flow> = entries.map(Flow::of).collect();
    for flow in &mut flows {
        flow.rates = rates(flow, before.get(&flow.number).copied(), interval);
    }
    flows
}

/// A flow's ages are of the server's clock, so delays on the way here don't count. A flow that is younger than the
/// interval had no bytes before. The rate of a flow that was not in the list before is not known.
fn rates(flow: &Flow, before: Option<&Flow>, interval: f64) -> Option<[f64; 2]> {
    let bytes = flow.bytes?;
    let (old, seconds) = match before {
        Some(before) => (before.bytes?, flow.age - before.age),
        None if flow.age <= interval => ([0, 0], interval),
        None => return None,
    };
    let rate = |way: usize| bytes[way].saturating_sub(old[way]) as f64 / seconds;
    (seconds > 0.0).then(|| [rate(0), rate(1)])
}

/// By what the list is sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// Bytes per second in both directions.
    #[default]
    Rate,
    /// Bytes in both directions.
    Bytes,
    /// Round-trip time.
    Rtt,
    /// Segments that were sent again.
    Retransmissions,
    /// Time since the flow began.
    Age,
}

impl Sort {
    /// The next one.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Rate => Self::Bytes,
            Self::Bytes => Self::Rtt,
            Self::Rtt => Self::Retransmissions,
            Self::Retransmissions => Self::Age,
            Self::Age => Self::Rate,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Bytes => "bytes",
            Self::Rtt => "round-trip time",
            Self::Retransmissions => "retransmissions",
            Self::Age => "age",
        }
    }

    /// The argument `sort` of the request. The server knows no rates; flows without recent traffic have none, so
    /// those with the most recent traffic are asked for.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Self::Rate => "idle",
            Self::Bytes => "bytes",
            Self::Rtt => "rtt",
            Self::Retransmissions => "retransmissions",
            Self::Age => "age",
        }
    }

    fn key(self, flow: &Flow) -> f64 {
        match self {
            Self::Rate => flow.rates.map_or(0.0, |rates| rates[0] + rates[1]),
            Self::Bytes => flow.bytes.map_or(0.0, |bytes| bytes[0] as f64 + bytes[1] as f64),
            Self::Rtt => flow.rtt.unwrap_or(0.0),
            Self::Retransmissions => flow.retransmissions.unwrap_or(0) as f64,
            Self::Age => flow.age,
        }
    }

    /// Sorts the flows: the greatest first, or with `reverse` the smallest.
    pub(super) fn sort(self, flows: &mut [Flow], reverse: bool) {
        flows.sort_by(|one, other| {
            let order = self.key(one).total_cmp(&self.key(other));
            let order = if reverse { order } else { order.reverse() };
            match order {
                Ordering::Equal => one.number.cmp(&other.number),
                order => order,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn list(entries: &[(u64, u64, u64, f64)]) -> Value {
        let entry = |&(number, sent, received, age): &(u64, u64, u64, f64)| json!({ "flow": number, "bytes_sent": sent, "bytes_received": received, "age": age });
        json!({ "flows": entries.iter().map(entry).collect::<Vec<_>>() })
    }

    #[test]
    fn rates_are_differences_by_the_clock_of_the_server() {
        let first = flows(&list(&[(1, 100, 1000, 10.0), (2, 0, 0, 0.1)]), &[], 1.0);
        assert_eq!(first[0].rates, None);
        assert_eq!(first[1].rates, Some([0.0, 0.0]));
        let entries = [(1, 300, 3000, 12.0), (2, 5, 0, 0.1), (3, 50, 500, 0.5), (4, 9, 9, 3.0)];
        let second = flows(&list(&entries), &first, 2.0);
        let rates: Vec<_> = second.iter().map(|flow| flow.rates).collect();
        // No time has passed for flow 2; flow 4 is older than the interval.
        assert_eq!(rates, [Some([100.0, 1000.0]), None, Some([25.0, 250.0]), None]);
    }

    #[test]
    fn names_from_a_guest_do_not_control_the_terminal() {
        let hostile = "\u{1b}[2J\r\n\u{9b}5m\u{202e}x";
        let entry = json!({
            "flow": 1, "protocol": hostile, "state": hostile, "guest": hostile, "peer": hostile, "peer_port": 1,
            "names": [hostile], "name": hostile, "rule": hostile,
        });
        let flow = Flow::of(&entry);
        for text in [&flow.protocol, &flow.state, &flow.guest, &flow.peer, &flow.named, &flow.remark] {
            assert!(
                !text.contains(|c: char| c.is_control() || c == '\u{202e}') && text.contains("[2J"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn each_order_has_an_opposite() {
        let flow = |number: u64, value: u64| Flow {
            number,
            bytes: Some([value, 0]),
            rates: Some([0.0, value as f64]),
            rtt: Some(value as f64),
            retransmissions: Some(value),
            age: value as f64,
            ..Flow::default()
        };
        let mut sort = Sort::default();
        for _ in 0..5 {
            let numbers = |reverse| {
                let mut flows = [flow(3, 7), flow(1, 5), flow(2, 7)];
                sort.sort(&mut flows, reverse);
                flows.map(|flow| flow.number)
            };
            assert_eq!((numbers(false), numbers(true)), ([2, 3, 1], [1, 2, 3]), "{}", sort.name());
            sort = sort.next();
        }
        assert_eq!(sort, Sort::default());
    }

    #[test]
    fn what_is_not_an_object_is_shown_as_nothing() {
        for list in [json!(null), json!({ "flows": 7 }), json!({ "flows": [null, 3, "x", {}] })] {
            assert!(flows(&list, &[], 1.0).iter().all(|flow| flow.bytes.is_none() && flow.peer.is_empty()));
        }
    }
}
