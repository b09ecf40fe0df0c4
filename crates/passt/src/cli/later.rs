//! Options that the parser accepts but that are not implemented yet. A change that implements an option must remove the
//! option here.

use crate::config::{Config, GuestLink, Mode, RepairPath};

/// Refuses options that this version does not implement.
///
/// # Errors
/// A message that names the first such option.
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
