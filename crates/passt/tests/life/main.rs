//! The life cycle of the process: how it starts, for which users, what it leaves behind, how it ends
//! (behaviour §1.2-§1.7, §10.1-§10.3).
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
