//! New namespaces for the process. It stays in its user namespace, and in the host's network namespace, which its sockets
//! need.

use anyhow::Context;
use sys::spawn::{Namespaces, unshare};

/// Moves the process into new mount, IPC and UTS namespaces. If `pids` is true, the next child is process 1 of a new PID
/// namespace, and sees no other process; until that fork, no thread can be started.
///
/// If the kernel refuses one of the namespaces except the mount namespace, this is logged.
///
/// # Errors
/// The kernel refuses the mount namespace, as in some containers.
pub(crate) fn leave(pids: bool) -> anyhow::Result<()> {
    let others =
        [(Namespaces::IPC, "IPC", true), (Namespaces::UTS, "UTS", true), (Namespaces::PID, "PID", pids)];
    let mut refused = Vec::new();
    for (namespace, name, wanted) in others {
        if wanted && let Err(error) = unshare(namespace) {
            refused.push(format!("{name} ({error})"));
        }
    }
    if !refused.is_empty() {
        log::info!("Can't create some namespaces, continuing without: {}", refused.join(", "));
    }
    unshare(Namespaces::MOUNT).context("can't create a mount namespace")
}
