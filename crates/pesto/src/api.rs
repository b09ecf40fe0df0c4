//! The commands that use the API socket.

use serde_json::{Map, Value, json};

use crate::connection::{Connection, TIMEOUT};
use crate::instances::Socket;
use crate::options::{Api, Command};
use crate::output::print;
use crate::{capture, instances, text, top};

/// Runs a command.
///
/// # Errors
/// A message for the user.
pub(super) fn run(command: &Api) -> Result<(), String> {
    let (Socket::Api(path) | Socket::Given(path)) = instances::meant(command.path.as_deref())?;
    let mut connection = Connection::open(&path, TIMEOUT)?;
    let json = command.json;
    match &command.what {
        Command::Capture(file, filter) => capture::run(&mut connection, file, filter),
        Command::Top(first) => top::run(connection, first, &path),
        Command::Flows(filter) => flows(&mut connection, filter, json),
        Command::Log => log(&mut connection, json),
        Command::Metrics => {
            let metrics = connection.request("metrics", &json!({}))?;
            let text = metrics["text"].as_str().unwrap_or_default();
            if json { print(&format!("{metrics}\n")) } else { print(text) }
        }
        Command::Why(destination) => {
            let route = connection.request("why", destination)?;
            if json { print(&format!("{route}\n")) } else { print(&text::route(&route)) }
        }
    }
}

/// Lists flows. A list that is not sorted comes in parts, which are joined here.
fn flows(connection: &mut Connection, filter: &Map<String, Value>, json: bool) -> Result<(), String> {
    let (mut filter, mut all, mut more) = (filter.clone(), Vec::new(), false);
    let limit = filter.get("limit").and_then(Value::as_u64);
    loop {
        let mut part = connection.request("flows", &Value::Object(filter.clone()))?;
        more |= part["more"] == json!(true);
        if let Value::Array(flows) = part["flows"].take() {
            all.extend(flows);
        }
        match part.get("next") {
            Some(next) if limit.is_none() => drop(filter.insert("after".into(), next.clone())),
            next => {
                more &= next.is_some() || filter.contains_key("sort");
                break;
            }
        }
    }
    if json {
        return print(&format!("{}\n", json!({ "flows": all, "more": more })));
    }
    print(&text::flows(&all))?;
    if more { print("There are more flows: use conditions, or another limit.\n") } else { Ok(()) }
}

/// Prints events until the server ends, or until standard output is closed.
fn log(connection: &mut Connection, json: bool) -> Result<(), String> {
    connection.request("subscribe", &json!({}))?;
    let patient = connection.stream().set_read_timeout(None);
    patient.map_err(|error| error.to_string())?;
    while let Some(event) = connection.next()? {
        let line = if json { event.to_string() } else { text::event(&event) };
        print(&format!("{line}\n"))?;
    }
    Ok(())
}
