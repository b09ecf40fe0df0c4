//! Decisions of user-mode networking, as state machines that never touch the operating system.
//!
//! Frames of the guest go into [`stack::Stack::on_frame`]; what they cause happens through two traits that the
//! caller implements: [`host::Host`] (sockets) and [`link::Link`] (frames to the guest). Time is an
//! argument ([`timer::Instant`]), randomness and addressing are given once ([`addr::Settings`]).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod addr;
mod checksums;
pub mod context;
pub mod dns;
pub mod drops;
pub mod flow;
pub mod forward;
mod fragmentation;
pub mod host;
pub mod icmp;
mod idle;
pub mod link;
pub mod local;
mod membership;
pub mod memory;
#[cfg(test)]
mod mock;
pub mod nat;
pub mod neighbours;
pub mod pressure;
pub mod reassembly;
pub mod resolvers;
pub mod share;
pub mod splice;
pub mod stack;
pub mod tcp;
pub mod timer;
pub mod udp;
