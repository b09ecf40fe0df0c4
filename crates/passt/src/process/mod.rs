//! The process itself: its user, the stages in which it gives up its rights, and the events that terminate it.

mod identity;
pub(crate) mod lifetime;
pub(crate) mod made_files;
pub(crate) mod pid_file;
pub(crate) mod sandbox;
pub(crate) mod service;
pub(crate) mod stage;
