//! The test kit of the engine: a host, a link, frames of a guest, and a network.
//!
//! ```text
//!   guest               link::VirtualLink             engine             host::VirtualHost
//!   builds and parses   gives each frame to a         under test         stream::Stream
//!   frames              Receiver: link::Kept, or                         datagram::Datagrams
//!                       one of the test's own
//! ```
//!
//! `message` builds the DNS messages of a server.
//!
//! A host returns the results that the test has set ([`host::VirtualHost::default`]), or random results that a kernel
//! could return ([`host::VirtualHost::random`]). Both hosts check every call of the engine, and every byte that the
//! engine sends.
//!
//! The engine's unit tests compile this source as a module of the engine. All other tests use it as a crate. So this
//! source uses only public items of the engine, with paths that begin with `engine::`, and refers to its own items by
//! `super::`. It imports the parts of `std` that it needs.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

pub mod datagram;
pub mod exempt;
pub mod fixture;
pub mod guest;
pub mod hello;
pub mod host;
pub mod journal;
pub mod link;
pub mod message;
pub mod network;
pub mod quic;
pub mod random;
pub mod settings;
pub mod stream;
pub mod streams;
