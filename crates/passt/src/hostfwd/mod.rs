//! The API socket of slirp4netns (`--api-socket`, behaviour §13.1.4): clients forward ports, list the forwarded ports,
//! and end the forwarding.
//!
//! A client sends one request in JSON and gets one reply. [`Server`] serves the clients, [`request`] parses their
//! requests, and [`Forwards`] has the forwarded ports.

mod forwards;
mod request;
mod server;

pub(crate) use forwards::Forwards;
pub(crate) use request::{Defaults, Forward, Request};
pub(crate) use server::{Reply, Server};
