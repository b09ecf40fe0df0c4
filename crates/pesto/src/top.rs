//! `pesto top`: flows on the whole screen, with rates.
//!
//! Three threads wait for what happens: keys, signals, and answers of the server. The main thread gets all of it from
//! one channel, changes the state, and draws it.

mod columns;
mod draw;
mod filter;
mod flow;
mod keys;
mod screen;
mod state;

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::filter::Filter;
use self::keys::{Action, press};
use self::screen::Screen;
use self::state::State;
use crate::connection::{Connection, Fault};
use crate::options::Top;
use crate::text;

/// What has happened.
enum News {
    /// A key, or another size of the terminal.
    Terminal(Event),
    /// The terminal can't be read.
    NoTerminal(String),
    /// A list of flows, and counts.
    Flows(Result<[Value; 2], Fault>),
    /// The server's answer to the request to end a flow.
    Ended(u64, Result<(), Fault>),
    /// A signal that ends the process.
    Signal(i32),
}

/// A request for the thread that talks to the server.
enum Wish {
    /// A list of flows, with these arguments.
    Flows(Value),
    /// The end of a flow.
    End(u64),
}

/// How `top` ends.
enum End {
    /// The user has quit.
    Quit,
    /// A signal.
    Signal(i32),
}

/// Shows the flows until the user quits.
///
/// # Errors
/// A message for the user.
pub(super) fn run(mut connection: Connection, first: &Top, path: &Path) -> Result<(), String> {
    let filter = Filter::new(&first.filter)?;
    screen::check()?;
    // A refusal of the filter is an error now, but a message on the screen later.
    let mut state = State { filter, title: title(&mut connection, path)?, ..State::default() };
    let [list, stats] = flows(&mut connection, &state.arguments())?;
    state.update(&list, &stats);
    let (news, incoming) = channel();
    let wishes = serve(connection, news.clone())?;
    watch_signals(news.clone())?;
    let end = {
        let screen = Screen::open().map_err(|error| format!("can't use the terminal: {error}"))?;
        watch_terminal(news)?;
        let mut view = View { state, screen, wishes, interval: first.interval, waiting: false, again: false };
        view.run(&incoming)
    };
    // The terminal is restored.
    if let End::Signal(signal) = end? {
        drop(signal_hook::low_level::emulate_default_handler(signal));
    }
    Ok(())
}

/// The program, its version, and the path of its socket.
fn title(connection: &mut Connection, path: &Path) -> Result<String, String> {
    let config = connection.request("config", &json!({}))?;
    let path = Value::from(path.to_string_lossy());
    Ok([&config["program"], &config["version"], &path].map(text::word).join(" "))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|error| format!("can't start a thread: {error}"))
}

/// A list of flows, and the counts of the server.
fn flows(connection: &mut Connection, arguments: &Value) -> Result<[Value; 2], Fault> {
    let list = connection.request("flows", arguments)?;
    Ok([list, connection.request("stats", &json!({}))?])
}

/// Starts the thread that talks to the server. It ends when the connection is lost.
fn serve(mut connection: Connection, news: Sender<News>) -> Result<Sender<Wish>, String> {
    let (wishes, incoming) = channel();
    spawn("server", move || {
        for wish in incoming {
            let answer = match wish {
                Wish::Flows(arguments) => {
                    News::Flows(connection.request("flows", &arguments).and_then(|list| {
                        let stats = connection.request("stats", &json!({}))?;
                        Ok([list, stats])
                    }))
                }
                Wish::End(number) => {
                    let answer = connection.request("flow.end", &json!({ "flow": number }));
                    News::Ended(number, answer.map(drop))
                }
            };
            if news.send(answer).is_err() {
                return;
            }
        }
    })?;
    Ok(wishes)
}

fn watch_signals(news: Sender<News>) -> Result<(), String> {
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]);
    let mut signals = signals.map_err(|error| format!("can't handle signals: {error}"))?;
    spawn("signals", move || {
        for signal in signals.forever() {
            if news.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    })
}

fn watch_terminal(news: Sender<News>) -> Result<(), String> {
    spawn("terminal", move || {
        loop {
            let read = event::read();
            let failed = read.is_err();
            let read = read.map_or_else(|error| News::NoTerminal(error.to_string()), News::Terminal);
            if news.send(read).is_err() || failed {
                return;
            }
        }
    })
}

/// The state, and what it is connected to.
struct View {
    state: State,
    screen: Screen,
    wishes: Sender<Wish>,
    interval: Duration,
    /// A list was asked for, and has not come.
    waiting: bool,
    /// Another list is to be asked for as soon as this one has come.
    again: bool,
}

impl View {
    fn run(&mut self, incoming: &Receiver<News>) -> Result<End, String> {
        let mut due = Instant::now() + self.interval;
        loop {
            if Instant::now() >= due {
                due = Instant::now() + self.interval;
                self.refresh();
            }
            self.screen.draw(&mut self.state)?;
            match incoming.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(news) => {
                    if let Some(end) = self.take(news)? {
                        return Ok(end);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("all threads have ended".into()),
            }
        }
    }

    /// Asks for a list, unless one has been asked for. A list comes even if it is frozen, which shows that the server
    /// exists.
    fn refresh(&mut self) {
        if !self.waiting {
            self.waiting = true;
            self.wish(Wish::Flows(self.state.arguments()));
        }
    }

    fn wish(&self, wish: Wish) {
        // If the thread has ended, the reason is on its way here.
        drop(self.wishes.send(wish));
    }

    fn take(&mut self, news: News) -> Result<Option<End>, String> {
        match news {
            News::Terminal(Event::Key(key)) => match press(&mut self.state, key) {
                Action::Nothing => {}
                Action::Refresh => {
                    self.again = self.waiting;
                    self.refresh();
                }
                Action::End(number) => self.wish(Wish::End(number)),
                Action::Quit => return Ok(Some(End::Quit)),
            },
            News::Terminal(_) => {}
            News::NoTerminal(error) => return Err(format!("can't read from the terminal: {error}")),
            News::Flows(answer) => {
                self.waiting = false;
                match answer {
                    // A list that was asked for with another filter or order is not shown.
                    Ok(_) if self.again => {}
                    Ok([list, stats]) => self.state.update(&list, &stats),
                    Err(Fault::Refused(reason)) => self.state.refuse(&reason),
                    Err(Fault::Lost(reason)) => return Err(reason),
                }
                if std::mem::take(&mut self.again) {
                    self.refresh();
                }
            }
            News::Ended(_, Err(Fault::Lost(reason))) => return Err(reason),
            News::Ended(number, outcome) => {
                self.state.ended(number, outcome);
                self.again = self.waiting;
                self.refresh();
            }
            News::Signal(signal) => return Ok(Some(End::Signal(signal))),
        }
        Ok(None)
    }
}
