//! The terminal.

use std::io::{self, IsTerminal};

use ratatui::DefaultTerminal;

use super::draw::{OTHER_ROWS, draw};
use super::state::State;

/// The terminal, with the whole screen for us. It is restored when this is dropped, and on a panic.
pub(super) struct Screen(DefaultTerminal);

/// Checks that there is a terminal.
///
/// # Errors
/// A message for the user.
pub(super) fn check() -> Result<(), String> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    Err("top needs a terminal as standard input and output: without one, use pesto flows".into())
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> io::Result<Self> {
        let opened = ratatui::try_init();
        if opened.is_err() {
            // A part of it may have been done.
            ratatui::restore();
        }
        opened.map(Self)
    }

    /// Draws the state, in the present size of the terminal.
    ///
    /// # Errors
    /// A message for the user.
    pub(super) fn draw(&mut self, state: &mut State) -> Result<(), String> {
        let drawn = self.0.draw(|frame| {
            let rows = frame.area().height.saturating_sub(OTHER_ROWS).into();
            if state.rows != rows {
                state.rows = rows;
                state.scroll();
            }
            draw(state, frame);
        });
        drawn.map(drop).map_err(|error| format!("can't write to the terminal: {error}"))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
