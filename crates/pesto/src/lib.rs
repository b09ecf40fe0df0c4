//! `pesto`: shows and changes the forwarding rules of a running passt or pasta (behaviour §8.9), and its policy: the
//! rules about the destinations of the guest (docs/guard.md).
//!
//! By the control socket, it receives the tables of the server, edits them in the order of the options, and sends all of
//! them back. By the API socket (docs/api.md), it sends the options. A policy is shown and replaced as a whole. Other
//! commands show flows, events and metrics: they use the API socket. Without a path, it finds the sockets of this user.
//!
//! It is a library, so that the completions of shells are made of its table of options.
#![forbid(unsafe_code)]

mod announced;
mod api;
mod capture;
mod client;
mod connection;
mod instances;
pub mod options;
mod output;
mod policy;
mod server;
mod suggest;
mod tables;
mod text;
mod top;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use self::options::{Invocation, Request};
use self::output::{print, report};
use self::server::Server;
use control::message::Announced;

/// Runs `pesto` with these arguments, of which the first is the program's name. Exit status 1 means that nothing has
/// changed (Q16).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match options::parse(args) {
        Ok(Invocation::Show(text)) => print(&text),
        Ok(Invocation::Run(request)) => run(&request),
        Ok(Invocation::Policy(command)) => policy::run(&command),
        Ok(Invocation::Api(command)) => api::run(&command),
        Ok(Invocation::List { json }) => instances::list(json),
        // Messages about rules and servers are those of the C implementation, which have no prefix.
        Err(error) => Err(format!("pesto: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(request: &Request) -> Result<(), String> {
    let mut server = Server::connect(request.path.as_deref(), request.debug)?;
    if request.changes.is_empty() {
        return print(&show(request, "passt/pasta configuration", &server.path, &server.tables));
    }
    let text = request.show && !request.json;
    if text {
        print(&show(request, "Previous configuration", &server.path, &server.tables))?;
    }
    let [previous, updated] = server.change(&request.changes)?;
    match (request.json, text) {
        (true, _) => print(&tables::changed_json(&server.path, &previous, &updated)),
        (_, true) => print(&show(request, "Updated configuration", &server.path, &updated)),
        _ => Ok(()),
    }
}

fn show(request: &Request, title: &str, path: &Path, tables: &[Announced]) -> String {
    if request.json { tables::json(path, tables) } else { tables::text(title, path, tables) }
}
