//! The columns of the list: which of them fit, and their contents.

use super::flow::{Flow, Sort};
use super::state::State;

/// What a column shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Protocol,
    Guest,
    Peer,
    State,
    RateOut,
    RateIn,
    Out,
    In,
    Rtt,
    Retransmissions,
    Age,
}

/// A column of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    kind: Kind,
    width: usize,
}

/// Width of the screen from which states are not abbreviated, and rates and totals both fit.
const WIDE: u16 = 100;
/// Smallest width of the two columns with addresses.
const ADDRESS: usize = 9;

/// The columns that fit into `width`. A narrow list has either rates or totals. The columns with addresses share what
/// the others leave.
pub(super) fn fitting(state: &State, width: u16) -> Vec<Column> {
    let wide = width >= WIDE;
    let totals = wide || state.sort == Sort::Bytes;
    let rates = wide || !totals;
    let columns = [
        (Kind::Protocol, 5, true),
        (Kind::Guest, 0, true),
        (Kind::Peer, 0, true),
        (Kind::State, if wide { 11 } else { 7 }, true),
        (Kind::RateOut, 6, rates),
        (Kind::RateIn, 6, rates),
        (Kind::Out, 5, totals),
        (Kind::In, 5, totals),
        (Kind::Rtt, 5, true),
        (Kind::Retransmissions, 4, true),
        (Kind::Age, 4, true),
    ];
    let shown = columns.into_iter().filter(|(_, _, shown)| *shown);
    let mut columns: Vec<Column> = shown.map(|(kind, width, _)| Column { kind, width }).collect();
    let used: usize = columns.iter().map(|column| column.width + 1).sum();
    let room = (usize::from(width) + 1).saturating_sub(used);
    let longest = state.flows.iter().map(|flow| flow.guest.chars().count()).max().unwrap_or(0);
    let guest = longest.max(ADDRESS).min(room.saturating_sub(ADDRESS).min(room / 2 + room % 2));
    for column in &mut columns {
        match column.kind {
            Kind::Guest => column.width = guest,
            Kind::Peer => column.width = room.saturating_sub(guest),
            _ => {}
        }
    }
    columns
}

impl Column {
    /// Its title. A star marks the order.
    pub(super) fn title(self, state: &State) -> &'static str {
        let sorted = |by: Sort, marked, plain| if state.sort == by { marked } else { plain };
        match self.kind {
            Kind::Protocol => "PROTO",
            Kind::Guest => "GUEST",
            Kind::Peer => "PEER",
            Kind::State => "STATE",
            Kind::RateOut => sorted(Sort::Rate, "*OUT/s", "OUT/s"),
            Kind::RateIn => sorted(Sort::Rate, "*IN/s", "IN/s"),
            Kind::Out => sorted(Sort::Bytes, "*OUT", "OUT"),
            Kind::In => sorted(Sort::Bytes, "*IN", "IN"),
            Kind::Rtt => sorted(Sort::Rtt, "*RTT", "RTT"),
            Kind::Retransmissions => sorted(Sort::Retransmissions, "*RTX", "RETX"),
            Kind::Age => sorted(Sort::Age, "*AGE", "AGE"),
        }
    }

    /// What it shows of a flow.
    pub(super) fn content(self, flow: &Flow) -> String {
        let rate = |way: usize| flow.rates.map_or("-".into(), |rates| amount(rates[way]));
        let bytes = |way: usize| flow.bytes.map_or("-".into(), |bytes| amount(bytes[way] as f64));
        match self.kind {
            Kind::Protocol => flow.protocol.clone(),
            Kind::Guest => flow.guest.clone(),
            Kind::Peer => format!("{}{}", if flow.inbound { "<" } else { "" }, flow.named),
            Kind::State => self.state(&flow.state).into(),
            Kind::RateOut => rate(0),
            Kind::RateIn => rate(1),
            Kind::Out => bytes(0),
            Kind::In => bytes(1),
            Kind::Rtt => flow.rtt.map_or("-".into(), short_time),
            Kind::Retransmissions => flow.retransmissions.map_or("-".into(), |count| amount(count as f64)),
            Kind::Age => age(flow.age),
        }
    }

    fn state(self, state: &str) -> &str {
        if self.width >= state.chars().count() {
            return state;
        }
        match state {
            "established" => "estab",
            "connecting" => "connect",
            "handshake" => "handshk",
            "checking" => "check",
            "unanswered" => "unansw",
            "answered" => "answ",
            other => other,
        }
    }

    /// The text in the width of the column. Of addresses the end remains, where the port is.
    pub(super) fn cell(self, text: &str) -> String {
        let width = self.width;
        match self.kind {
            Kind::Protocol | Kind::Guest | Kind::Peer | Kind::State => {
                format!("{:width$}", from_right(text, width))
            }
            _ => format!("{:>width$}", from_right(text, width)),
        }
    }
}

/// The last characters of the text, after a mark if some do not fit.
pub(super) fn from_right(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.into();
    }
    let end = text.chars().skip(count + 1 - width.max(1));
    std::iter::once('…').chain(end).take(width).collect()
}

/// A number in at most four characters, with a suffix for a power of 1000.
pub(super) fn amount(number: f64) -> String {
    let mut value = number;
    for suffix in ["", "k", "M", "G", "T", "P"] {
        // What rounds to 1000 has the next suffix.
        if suffix.is_empty() && value.round() < 1000.0 {
            return format!("{value:.0}");
        }
        if !suffix.is_empty() && value < 9.95 {
            return format!("{value:.1}{suffix}");
        }
        if !suffix.is_empty() && value.round() < 1000.0 {
            return format!("{value:.0}{suffix}");
        }
        value /= 1000.0;
    }
    "huge".into()
}

/// A round-trip time in at most five characters.
fn short_time(seconds: f64) -> String {
    let millis = seconds * 1000.0;
    match () {
        () if millis < 0.9995 => format!("{:.0}µs", millis * 1000.0),
        () if millis < 9.95 => format!("{millis:.1}ms"),
        () if millis.round() < 1000.0 => format!("{millis:.0}ms"),
        () if seconds < 99.5 => format!("{seconds:.1}s"),
        () => format!("{seconds:.0}s"),
    }
}

/// A duration in one unit.
fn age(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_four_characters_at_most() {
        for (number, text) in [
            (0.0, "0"),
            (0.4, "0"),
            (999.4, "999"),
            (999.5, "1.0k"),
            (9949.0, "9.9k"),
            (9951.0, "10k"),
            (999_499.0, "999k"),
            (999_500.0, "1.0M"),
            (1.5e9, "1.5G"),
            (u64::MAX as f64, "huge"),
            (f64::INFINITY, "huge"),
        ] {
            assert_eq!(amount(number), text, "{number}");
            assert!(text.len() <= 4);
        }
    }

    #[test]
    fn times_are_short() {
        let times = [0.0, 0.000_999, 0.00949, 0.0123, 0.9994, 1.0, 99.4, 120.0].map(short_time);
        assert_eq!(times, ["0µs", "999µs", "9.5ms", "12ms", "999ms", "1.0s", "99.4s", "120s"]);
        let ages = [0.0, 59.9, 60.0, 3599.0, 3600.0, 86400.0 * 30.0, -1.0, f64::NAN].map(age);
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "30d", "0s", "0s"]);
    }

    #[test]
    fn texts_that_are_too_long_keep_their_end() {
        for (width, text) in [(9, "abcd:443"), (8, "abcd:443"), (5, "…:443"), (2, "…3"), (1, "…"), (0, "")]
        {
            assert_eq!(from_right("abcd:443", width), text, "{width}");
        }
    }

    #[test]
    fn columns_fill_the_width() {
        let guest = "198.51.100.2:40000".to_owned();
        let mut state = State { flows: vec![Flow { guest, ..Flow::default() }], ..State::default() };
        for sort in [Sort::Rate, Sort::Bytes] {
            state.sort = sort;
            for width in 70..250 {
                let columns = fitting(&state, width);
                let all: usize = columns.iter().map(|column| column.width + 1).sum();
                assert_eq!(all, usize::from(width) + 1);
                assert!(columns.iter().all(|column| column.width >= 4), "{columns:?}");
            }
        }
        // A screen of any size is drawn.
        (0..70).for_each(|width| drop(fitting(&state, width)));
    }
}
