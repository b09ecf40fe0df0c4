//! The API socket (`--api-socket`, or one in the registry; docs/api.md): requests and answers in JSON, one object in each line.
//!
//! ```text
//!  clients <---> server -- job --> channel ===> shard (its file `api.rs`)
//!                  ^                  |
//!                  +--- answers, -----+
//!                       events
//! ```
//!
//! A thread of its own runs the [`server`](start()). It gets plain values from the thread that handles packets, in small
//! pieces: that thread does no JSON, and answers at most one [`Ask`] in each round of its event loop (docs/design/api.md).
//!
//! # Contract
//!
//! - **A client can only spend its own share**: the sizes of its buffers are bounded, and requests of all clients take
//!   turns. A client that does not read loses events, and gets no more answers. It is told how many events were lost.
//! - **Nothing a client sends ends the thread or blocks it.** What is not a request is answered with an error.

pub(crate) mod ask;
mod capture;
mod channel;
mod client;
mod entry;
mod filter;
mod flows;
mod http;
mod job;
mod line;
mod metrics;
mod registry;
mod results;
mod server;
mod start;

#[cfg(test)]
mod tests;

use crate::budgets::memory::Api as Limits;
pub(crate) use ask::{About, Answer, Ask};
pub(crate) use channel::{Content, Note, ShardEnd};
pub(crate) use entry::Entry;
pub(crate) use flows::ROW_BYTES;
pub(crate) use http::listen_at as listen_for_metrics;
pub(crate) use start::{Ready, Start, start};

/// Maximum number of events that wait for the API thread.
const MAX_QUEUED: usize = 4096;
/// Maximum number of descriptors that clients have handed over, and that no request has used.
const MAX_DESCRIPTORS: usize = 4;
/// Number of files that the thread needs besides those of its clients: the listening socket, its epoll set, two
/// eventfds.
const OWN_FILES: usize = 4;

/// Maximum number of clients of a socket in the registry, for which nobody has asked.
const MAX_REGISTERED: usize = 8;

/// Number of files for `--metrics`: the listening socket and its connections.
pub(crate) const METRICS_FILES: usize = 1 + http::MAX_VISITORS;

/// Number of files that the API socket may use, if `files` may be open in all. With `asked`, the socket was asked for
/// by an option.
pub(crate) fn budget(files: usize, asked: bool) -> usize {
    let (part, most) =
        if asked { (files / 8, Limits::DEFAULT.clients) } else { (files / 64, MAX_REGISTERED) };
    part.clamp(OWN_FILES + 1, OWN_FILES + most)
}
