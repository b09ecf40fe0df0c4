//! The types with which this program instantiates the engine.

use engine::context::World;

use crate::io::Sockets;
use crate::link::Medium;
use crate::memory::Vectored;

/// Sockets of the kernel, and the link to the guest.
#[derive(Debug)]
pub(crate) enum Linux {}

impl World for Linux {
    type Memory = Vectored;
    type Host = Sockets;
    type Link = Medium;
}
