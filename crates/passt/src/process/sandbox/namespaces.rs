//! New namespaces for the process. The process stays in its user namespace. It also stays in the host's network
//! namespace, which its sockets need.

use anyhow::Context;
use sys::spawn::{Namespaces, unshare};

/// Moves the process into new mount, IPC and UTS namespaces. If `pids` is true, the next child is process 1 of a new
/// PID namespace, and sees no other process. No thread can be started until this child is forked.
///
/// If the kernel refuses a namespace other than the mount namespace, this is logged.
///
/// # Errors
/// The kernel refuses the mount namespace. This happens in some containers.
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
