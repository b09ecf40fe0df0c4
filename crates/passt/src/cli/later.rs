//! What can be asked for but is not there yet. An entry goes away with the work that makes it true.

use crate::config::{Config, GuestLink, Mode, RepairPath};

/// Refuses what this version can't do.
///
/// # Errors
/// A message that names the first thing of that kind.
pub(super) fn refuse(config: &Config) -> Result<(), String> {
    let missing = [
        ("--fd", config.mode == Mode::Pasta && matches!(config.passt.link, GuestLink::Fd(_))),
        ("--repair-path", matches!(config.passt.repair, RepairPath::Path(_))),
    ];
    match missing.iter().find(|(_, asked_for)| *asked_for) {
        Some((what, _)) => Err(format!("{what} is not supported yet")),
        None => Ok(()),
    }
}
