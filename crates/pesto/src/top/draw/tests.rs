use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

use super::super::filter::Filter;
use super::super::flow::Sort;
use super::*;

/// An entry of a list: flow `number` after `seconds`. The flows 1 to 4 are in bulk.
fn entry(number: u64, seconds: u64) -> Value {
    let bulk = number <= 4;
    let mut entry = json!({
        "flow": number, "protocol": "tcp", "direction": "outbound", "guest": "192.0.2.10",
        "guest_port": 40_000 + number, "peer": format!("203.0.113.{}", number % 250), "peer_port": 443,
        "state": "established", "rule": "default allow", "age": (number * 7 + seconds) as f64,
        "bytes_sent": if bulk { 1000 * seconds * number } else { 517 },
        "bytes_received": if bulk { 31_000_000 * seconds / number } else { 4100 },
        "rtt": 0.0005 * number as f64, "retransmissions": number / 50,
    });
    let more = match number % 10 {
        3 => json!({ "names": ["a.very.long.name.of.a.mirror.in.some.zone.example.org"] }),
        5 => json!({ "names": ["www.example.org"], "name": "cdn.example.net" }),
        6 => {
            json!({ "protocol": "udp", "state": "stream", "rtt": null, "retransmissions": null, "peer_port": 53 })
        }
        7 => {
            json!({ "direction": "inbound", "guest": "2001:db8::2", "peer": "2001:db8:1:2:3:4:5:6", "guest_port": 22 })
        }
        8 => {
            json!({ "bypass": true, "state": "closing", "rtt": null, "peer": "127.0.0.1", "guest": "127.0.0.1" })
        }
        9 => {
            json!({ "protocol": "icmp", "state": "unanswered", "guest_port": null, "peer_port": null, "rtt": null,
                     "retransmissions": null, "names": ["ping.example.org"] })
        }
        _ => json!({}),
    };
    for (name, value) in more.as_object().into_iter().flatten() {
        entry[name] = value.clone();
    }
    entry
}

/// The state after two lists of this number of flows, on a screen of this height.
fn after_two_lists(flows: u64, height: u16, prepare: impl Fn(&mut State)) -> State {
    let rows = usize::from(height - OTHER_ROWS);
    let mut state =
        State { title: "pasta 0.1.0 /run/user/1000/passt/build.api".into(), rows, ..State::default() };
    prepare(&mut state);
    for seconds in [10, 12] {
        let list: Vec<Value> = (1..=flows).map(|number| entry(number, seconds)).collect();
        let stats = json!({
            "uptime": 7384 + seconds, "refusals": 3, "tcp": { "open": flows * 7 / 10 }, "udp": { "open": flows / 10 },
            "tcp_bypass": { "open": flows / 10 }, "ping": { "open": flows / 10 },
        });
        state.update(&json!({ "flows": list, "more": false }), &stats);
    }
    state
}

/// The screen of this size.
fn screen(state: &State, width: u16, height: u16) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(state, frame)).unwrap();
    terminal.backend().clone()
}

#[test]
fn no_flows() {
    insta::assert_snapshot!(screen(&after_two_lists(0, 24, |_| {}), 80, 24));
}

#[test]
fn flows_on_a_small_screen() {
    insta::assert_snapshot!(screen(&after_two_lists(200, 24, |_| {}), 80, 24));
}

#[test]
fn flows_on_a_large_screen() {
    insta::assert_snapshot!(screen(&after_two_lists(200, 40, |_| {}), 160, 40));
}

#[test]
fn totals_take_the_place_of_rates_on_a_small_screen() {
    let state = after_two_lists(9, 24, |state| (state.sort, state.reverse) = (Sort::Bytes, true));
    insta::assert_snapshot!(screen(&state, 80, 24));
}

#[test]
fn a_filter_a_selection_and_a_question() {
    let mut state =
        after_two_lists(200, 24, |state| state.filter = Filter::new("443 *.example.org").unwrap());
    state.select(usize::MAX);
    (state.mode, state.frozen, state.more) = (Mode::End(state.selected.unwrap()), true, true);
    insta::assert_snapshot!(screen(&state, 80, 24));
}

#[test]
fn a_filter_that_is_being_typed() {
    let mut state = after_two_lists(0, 24, |state| state.filter = Filter::new("tcp").unwrap());
    state.mode = Mode::Filter("tcp 44".into());
    insta::assert_snapshot!(screen(&state, 80, 24));
}

#[test]
fn the_keys_are_explained() {
    let mut state = after_two_lists(200, 24, |_| {});
    state.mode = Mode::Help;
    insta::assert_snapshot!(screen(&state, 80, 24));
}

/// No screen is too small, and no place in the list is beyond it.
#[test]
fn any_size() {
    let mut state = after_two_lists(30, 24, |_| {});
    for mode in [Mode::List, Mode::Help, Mode::Filter("x".repeat(300)), Mode::End(7)] {
        state.mode = mode;
        for (width, height) in [(1, 1), (3, 7), (20, 4), (79, 6), (300, 3), (10, 100)] {
            for offset in [0, 29, 1000] {
                state.offset = offset;
                screen(&state, width, height);
            }
        }
    }
}

/// Whatever a guest, a peer or a user puts into a name or a filter: no cell of the screen controls the terminal.
#[test]
fn nothing_controls_the_terminal() {
    let hostile = "\u{1b}]0;x\u{7}\u{9b}2J\r\n\t\u{202e}\u{200b}";
    let mut state = State { title: text::word(&hostile.into()), rows: 10, ..State::default() };
    state.filter.text = hostile.into();
    let entry = json!({
        "flow": 1, "protocol": hostile, "state": hostile, "guest": hostile, "peer": hostile, "names": [hostile],
        "name": hostile, "rule": hostile,
    });
    state.update(&json!({ "flows": [entry] }), &json!({}));
    state.select(0);
    for (mode, message) in [(Mode::List, hostile), (Mode::Filter(hostile.into()), "")] {
        (state.mode, state.message) = (mode, message.into());
        let backend = screen(&state, 160, 24);
        let cells: String = backend.buffer().content.iter().map(ratatui::buffer::Cell::symbol).collect();
        assert!(cells.contains("]0;x") && cells.contains('\u{fffd}'));
        let controls = |letter: char| letter.is_control() || matches!(letter, '\u{202e}' | '\u{200b}');
        assert!(!cells.contains(controls), "{cells:?}");
    }
}
