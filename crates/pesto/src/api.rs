//! The commands that use the API socket.

use std::net::{IpAddr, ToSocketAddrs};

use engine::policy::Name;
use serde_json::{Map, Value, json};

use crate::connection::{Connection, Fault, TIMEOUT};
use crate::instances::Socket;
use crate::options::{Api, Command};
use crate::output::{print, report};
use crate::{capture, instances, text, top};

/// How many addresses of a name are asked about.
const MOST_ADDRESSES: usize = 16;

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
            let route = connection.request("why", &json!(destination))?;
            if json { print(&format!("{route}\n")) } else { print(&text::route(&route)) }
        }
        Command::WhyName(name, arguments) => why(&mut connection, name, arguments, json),
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

/// Prints what would happen to a flow to each address of a name.
fn why(
    connection: &mut Connection,
    name: &str,
    arguments: &Map<String, Value>,
    json: bool,
) -> Result<(), String> {
    let (mut routes, mut refused) = (Vec::new(), Vec::new());
    for address in addresses(name)? {
        let mut arguments = arguments.clone();
        arguments.insert("address".into(), json!(address));
        match connection.request("why", &json!(arguments)) {
            Ok(route) => routes.push(route),
            // Such as for a family of which the guest has no address.
            Err(Fault::Refused(reason)) => {
                refused.push(format!("{address}: {reason}"));
                routes.push(json!({ "peer": address, "error": reason }));
            }
            Err(lost) => return Err(lost.into()),
        }
    }
    if refused.len() == routes.len() {
        return Err(format!("{name}: {}", refused.join("; ")));
    }
    if json {
        return print(&format!("{}\n", json!({ "name": name, "addresses": routes })));
    }
    print(&routes.iter().map(text::route).collect::<String>())
}

/// The addresses that the host knows for a name, without duplicates. Of more than [`MOST_ADDRESSES`], the first ones.
fn addresses(name: &str) -> Result<Vec<IpAddr>, String> {
    // The C library does not translate Unicode. The dot at the end, which it needs, would get lost.
    let ascii = Name::parse(name).ok_or_else(|| format!("'{name}' is no name"))?;
    let dot = if name.ends_with('.') { "." } else { "" };
    let found = (format!("{ascii}{dot}"), 0).to_socket_addrs();
    let found = found.map_err(|error| format!("the host finds no address of {name}: {error}"))?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|end| end.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let all = addresses.len();
    if all > MOST_ADDRESSES {
        report(&format!("{name} has {all} addresses: the first {MOST_ADDRESSES} follow"));
        addresses.truncate(MOST_ADDRESSES);
    }
    Ok(addresses)
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
