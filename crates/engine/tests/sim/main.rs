//! Tests of the engine's TCP in virtual time, with another TCP implementation over a bad network, and with scripts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test's own helpers fail by panicking")]

use sys::failing_allocator::FailingAllocator;

/// Lets allocations fail in the test `allocations`. In all other tests, it is the system's allocator.
#[global_allocator]
static ALLOCATOR: FailingAllocator = FailingAllocator;

mod allocations;
mod application;
mod guest;
mod network;
mod script;
mod world;

mod ends;
mod from_guest;
mod handshake;
mod hostile;
mod lies;
mod limit;
mod matrix;
mod names;
mod peers;
mod questions;
mod random;
mod replacement;
mod resets;
mod resolvers;
mod stopped;
mod storms;
mod to_guest;
mod urgent;
