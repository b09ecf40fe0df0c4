//! Port forwarding rules (behaviour §2.4, §8): the ports to listen on, and the destinations that they forward to.
//!
//! [`Rule`] is one line of a direction's [`Table`]: a range of ports at a listening address, and the range of the same
//! length that it maps to. Rules come from specifiers such as `127.0.0.1/8080:80`, see [`spec`]. [`Policy::onward`]
//! decides what happens to connections and datagrams at a rule's listening socket.

pub mod announce;
mod budget;
mod ifname;
mod onward;
mod rule;
pub mod scan;
pub mod spec;
mod table;
#[cfg(test)]
mod tests;

pub use budget::{Budget, Question};
pub use ifname::{IfName, InvalidIfName};
pub use onward::{Bypass, Listener, Onward, Policy};
pub use rule::{Listen, Protocol, Rule};
pub use table::{AddError, Enabled, MAX_RULES, MAX_SOCKETS, Refusal, Table};

pub use crate::ports::PortRange;
