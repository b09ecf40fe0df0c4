//! Tests of plans from hand-made facts: one test for each rule of behaviour §3, and for each regression of behaviour
//! §14.2 about such a rule.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "all of this is test code")]

mod addresses;
mod host;
mod namespace;
mod resolvers;
mod summary;
mod template;
mod virtual_network;

use std::net::IpAddr;

use log::Level;
use passt::{
    config::{Config, Mode},
    plan::{self, Plan},
};

use host::Host;

/// The plan of `pasta --config-net`, with changes.
fn pasta(host: &Host, change: impl FnOnce(&mut Config)) -> Plan {
    try_pasta(host, change).expect("a plan")
}

fn try_pasta(host: &Host, change: impl FnOnce(&mut Config)) -> Result<Plan, plan::Error> {
    let mut config = Config::new(Mode::Pasta);
    config.pasta.config_net = true;
    config.no_ra = true;
    change(&mut config);
    plan::plan(&config, &host.0)
}

/// The plan of `passt`, with changes.
fn passt(host: &Host, change: impl FnOnce(&mut Config)) -> Plan {
    let mut config = Config::new(Mode::Passt);
    change(&mut config);
    plan::plan(&config, &host.0).expect("a plan")
}

/// Parses a value, usually an address.
fn p<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Addresses as text, for comparison.
fn texts<A: Into<IpAddr> + Copy>(addresses: &[A]) -> Vec<String> {
    addresses.iter().map(|address| (*address).into().to_string()).collect()
}

/// The notes that the user sees at the default log level.
fn notes(plan: &Plan) -> Vec<(Level, &str)> {
    plan.notes.iter().filter(|n| n.level <= Level::Info).map(|n| (n.level, &n.text[..])).collect()
}
