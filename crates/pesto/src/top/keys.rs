//! What a key does.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::filter::Filter;
use super::state::{Mode, State};

/// Maximum number of characters of a filter.
const MAX_FILTER: usize = 256;

/// What is to be done outside of the state after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Nothing,
    /// Ask for a new list.
    Refresh,
    /// End this flow.
    End(u64),
    /// Quit.
    Quit,
}

/// Takes a key.
pub(super) fn press(state: &mut State, key: KeyEvent) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::Nothing;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        // The terminal makes no signal of these keys.
        return if matches!(key.code, KeyCode::Char('c' | 'd')) { Action::Quit } else { Action::Nothing };
    }
    state.message.clear();
    match std::mem::take(&mut state.mode) {
        Mode::List => command(state, key.code),
        Mode::Filter(typed) => filter(state, typed, key.code),
        Mode::End(number) => match key.code {
            KeyCode::Char('y' | 'Y') => Action::End(number),
            _ => Action::Nothing,
        },
        Mode::Help => Action::Nothing,
    }
}

fn command(state: &mut State, key: KeyCode) -> Action {
    let (page, place) = (state.rows.max(1), state.place());
    match key {
        KeyCode::Char('q') => return Action::Quit,
        KeyCode::Char('?' | 'h') => state.mode = Mode::Help,
        KeyCode::Char('/') => state.mode = Mode::Filter(state.filter.text.clone()),
        KeyCode::Char('e') => match state.selected {
            Some(number) => state.mode = Mode::End(number),
            None => state.message = "select a flow first: arrow keys".into(),
        },
        KeyCode::Char(' ') => {
            state.frozen = !state.frozen;
            return if state.frozen { Action::Nothing } else { Action::Refresh };
        }
        KeyCode::Char('s' | 'r') => {
            if key == KeyCode::Char('s') {
                state.sort = state.sort.next();
            } else {
                state.reverse = !state.reverse;
            }
            state.sort_flows();
            state.scroll();
            return Action::Refresh;
        }
        KeyCode::Esc => {
            state.selected = None;
            state.scroll();
        }
        KeyCode::Down => state.select(place.map_or(0, |place| place + 1)),
        KeyCode::Up => state.select(place.unwrap_or(0).saturating_sub(1)),
        KeyCode::PageDown => state.select(place.map_or(page - 1, |place| place + page)),
        KeyCode::PageUp => state.select(place.unwrap_or(0).saturating_sub(page)),
        KeyCode::Home => state.select(0),
        KeyCode::End => state.select(usize::MAX),
        _ => {}
    }
    Action::Nothing
}

fn filter(state: &mut State, mut typed: String, key: KeyCode) -> Action {
    match key {
        KeyCode::Enter => match Filter::new(&typed) {
            Ok(filter) => {
                (state.filter, state.frozen, state.selected) = (filter, false, None);
                return Action::Refresh;
            }
            Err(message) => state.message = message,
        },
        KeyCode::Esc => return Action::Nothing,
        KeyCode::Backspace => drop(typed.pop()),
        KeyCode::Char(letter) if !letter.is_control() && typed.chars().count() < MAX_FILTER => {
            typed.push(letter)
        }
        _ => {}
    }
    state.mode = Mode::Filter(typed);
    Action::Nothing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::flow::{Flow, Sort};
    use super::*;

    /// A state with flows 1 to 9, of which three fit the screen.
    fn state() -> State {
        let flows = (1..=9).map(|number| Flow { number, age: 99.0 - number as f64, ..Flow::default() });
        State { flows: flows.collect(), rows: 3, ..State::default() }
    }

    /// Presses keys one after the other. `|` separates names of keys and texts. Returns the last action.
    fn typed(state: &mut State, keys: &str) -> Action {
        let mut action = Action::Nothing;
        for word in keys.split('|').filter(|word| !word.is_empty()) {
            let codes: Vec<KeyCode> = match word {
                "down" => vec![KeyCode::Down],
                "up" => vec![KeyCode::Up],
                "pgdn" => vec![KeyCode::PageDown],
                "pgup" => vec![KeyCode::PageUp],
                "home" => vec![KeyCode::Home],
                "end" => vec![KeyCode::End],
                "esc" => vec![KeyCode::Esc],
                "enter" => vec![KeyCode::Enter],
                "back" => vec![KeyCode::Backspace],
                letters => letters.chars().map(KeyCode::Char).collect(),
            };
            for code in codes {
                action = press(state, code.into());
            }
        }
        action
    }

    #[test]
    fn movements_select_a_flow_and_keep_it_on_the_screen() {
        for (keys, selected, offset) in [
            ("", None, 0),
            ("down", Some(1), 0),
            ("up", Some(1), 0),
            ("down|down|down|down", Some(4), 1),
            ("pgdn", Some(3), 0),
            ("pgdn|pgdn", Some(6), 3),
            ("end", Some(9), 6),
            ("end|down|pgdn", Some(9), 6),
            ("end|up|up|up", Some(6), 5),
            ("end|pgup", Some(6), 5),
            ("end|home", Some(1), 0),
            ("pgup", Some(1), 0),
            ("end|esc", None, 0),
        ] {
            let mut state = state();
            assert_eq!(typed(&mut state, keys), Action::Nothing, "{keys}");
            assert_eq!((state.selected, state.offset), (selected, offset), "{keys}");
        }
    }

    #[test]
    fn actions() {
        for (keys, action) in [
            ("q", Action::Quit),
            ("s", Action::Refresh),
            ("r", Action::Refresh),
            (" ", Action::Nothing),
            ("  ", Action::Refresh),
            ("e", Action::Nothing),
            ("ey", Action::Nothing),
            ("down|e", Action::Nothing),
            ("down|ey", Action::End(1)),
            ("end|eY", Action::End(9)),
            ("down|en", Action::Nothing),
            ("down|eny", Action::Nothing),
            ("down|e|enter", Action::Nothing),
            ("?q", Action::Nothing),
            ("?qq", Action::Quit),
            ("/q", Action::Nothing),
            ("/|esc|q", Action::Quit),
            ("/443|enter", Action::Refresh),
            ("/80 443|enter", Action::Nothing),
            ("x", Action::Nothing),
        ] {
            assert_eq!(typed(&mut state(), keys), action, "{keys}");
        }
        let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
        for (mode, letter, action) in [
            (Mode::List, 'c', Action::Quit),
            (Mode::Filter("q".into()), 'c', Action::Quit),
            (Mode::End(1), 'y', Action::Nothing),
            (Mode::Filter("q".into()), 'z', Action::Nothing),
        ] {
            let mut state = State { mode: mode.clone(), ..state() };
            assert_eq!(press(&mut state, control(letter)), action);
            assert_eq!(state.mode, mode);
        }
    }

    #[test]
    fn a_release_is_no_press() {
        let mut key = KeyEvent::from(KeyCode::Char('q'));
        key.kind = KeyEventKind::Release;
        assert_eq!(press(&mut state(), key), Action::Nothing);
    }

    #[test]
    fn the_filter_is_edited_and_taken() {
        for (keys, text, mode) in [
            ("/tcp|enter", "tcp", Mode::List),
            ("/tcpx|back|enter", "tcp", Mode::List),
            ("/tcp|esc", "", Mode::List),
            ("/tcp|enter|/| 443|enter", "tcp 443", Mode::List),
            ("/1 2|enter", "", Mode::Filter("1 2".into())),
            ("/\u{7f}\u{1b}a|left", "", Mode::Filter("aleft".into())),
            ("/|back|back|enter", "", Mode::List),
        ] {
            let mut state = state();
            typed(&mut state, keys);
            assert_eq!((&state.filter.text[..], &state.mode), (text, &mode), "{keys}");
        }
        let mut state = state();
        typed(&mut state, &format!("/{}", "a".repeat(1000)));
        assert_eq!(state.mode, Mode::Filter("a".repeat(MAX_FILTER)));
        // A message of the parser is shown until the next key.
        typed(&mut state, "|esc|/1 2|enter");
        assert!(state.message.contains("only one condition"));
        typed(&mut state, "back");
        assert_eq!(state.message, "");
    }

    #[test]
    fn a_filter_unfreezes() {
        let mut state = state();
        typed(&mut state, " ");
        assert!(state.frozen);
        typed(&mut state, "/udp|enter");
        assert!(!state.frozen);
        assert_eq!(state.arguments()["protocol"], json!("udp"));
    }

    #[test]
    fn the_order_changes_at_once() {
        let mut state = state();
        typed(&mut state, "ssss");
        assert_eq!((state.sort, state.flows[0].number), (Sort::Age, 1));
        typed(&mut state, "r");
        assert_eq!((state.reverse, state.flows[0].number), (true, 9));
        typed(&mut state, "s");
        assert_eq!(state.sort, Sort::Rate);
    }
}
