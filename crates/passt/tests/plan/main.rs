//! Plans from hand-made facts: one test per rule of behaviour §3 and per regression of behaviour §14.2 that concerns it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "this is all test code, helpers included")]

mod addresses;
mod host;
mod namespace;
mod resolvers;
mod summary;
mod template;

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

/// An address or whatever else can be written down.
fn p<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Addresses as text, for comparison.
fn texts<A: Into<IpAddr> + Copy>(addresses: &[A]) -> Vec<String> {
    addresses.iter().map(|address| (*address).into().to_string()).collect()
}

/// What a user sees of the notes by default.
fn notes(plan: &Plan) -> Vec<(Level, &str)> {
    plan.notes.iter().filter(|n| n.level <= Level::Info).map(|n| (n.level, &n.text[..])).collect()
}
