//! Tests of the life cycle of the process: its start for each kind of user, its end, and the state that it leaves
//! behind (behaviour §1.2-§1.7, §10.1-§10.3).
#![allow(clippy::unwrap_used)] // all of this is test code

mod attach;
mod forms;
mod kill;
mod logging;
mod quit;
mod sandbox;
mod spawn;
mod stage;
mod surroundings;
