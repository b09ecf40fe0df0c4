//! The process itself: the user it runs as, the stages in which it gives up its rights, and what terminates it.

mod identity;
pub(crate) mod lifetime;
pub(crate) mod pid_file;
pub(crate) mod sandbox;
pub(crate) mod stage;
