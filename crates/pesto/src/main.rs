//! `pesto`: shows and changes the forwarding rules of a running passt or pasta (behaviour §8.9), and its policy: the
//! rules about the destinations of the guest (docs/guard.md).
//!
//! It receives the tables of the server, edits them in the order of the options, and sends all of them back. A policy
//! is shown and replaced as a whole. Other commands show flows, events and metrics: they use the API socket
//! (docs/api.md). Without a path, it finds the sockets of this user.
#![forbid(unsafe_code)]

mod api;
mod capture;
mod client;
mod connection;
mod instances;
mod options;
mod output;
mod policy;
mod suggest;
mod tables;
mod text;
mod top;

use std::process::ExitCode;

use engine::forward::PortRange;

use self::client::Client;
use self::options::{Invocation, Request};
use self::output::{print, report};
use control::edit::Editor;
use control::message::Announced;

/// Runs `pesto` with the arguments of the process. Exit status 1 means that nothing has changed (Q16).
fn main() -> ExitCode {
    let outcome = match options::parse(std::env::args_os()) {
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
    let (mut client, tables) = Client::connect(&request.path, request.debug)?;
    if request.changes.is_empty() {
        return print(&show(request, "passt/pasta configuration", &tables));
    }
    let text = request.show && !request.json;
    if text {
        print(&show(request, "Previous configuration", &tables))?;
    }
    let mut editor = Editor::new(tables.clone(), ephemeral());
    for change in &request.changes {
        editor.apply(change)?;
    }
    editor.warnings().iter().for_each(|warning| report(warning));
    let updated = editor.finish();
    if let Some(remark) = client.update(&updated)? {
        report(&remark);
    }
    match (request.json, text) {
        (true, _) => print(&tables::changed_json(&request.path, &tables, &updated)),
        (_, true) => print(&show(request, "Updated configuration", &updated)),
        _ => Ok(()),
    }
}

fn show(request: &Request, title: &str, tables: &[Announced]) -> String {
    if request.json {
        tables::json(&request.path, tables)
    } else {
        tables::text(title, &request.path, tables)
    }
}

/// The ephemeral ports, which `all` and `auto` exclude (behaviour §8.7).
fn ephemeral() -> PortRange {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    PortRange::from_sysctl(&text).unwrap_or(PortRange::RFC6335_DYNAMIC)
}
