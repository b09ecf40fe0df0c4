//! The life of the process, by running it: how it starts, for whom, what it leaves behind, how it ends
//! (behaviour §1.2-§1.7, §10.1-§10.3).
#![allow(clippy::unwrap_used)] // helper functions of tests are tests

mod attach;
mod forms;
mod kill;
mod logging;
mod quit;
mod sandbox;
mod spawn;
mod stage;
mod surroundings;
