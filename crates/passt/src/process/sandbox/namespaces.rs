//! Namespaces of our own, beside the user namespace that we are in and the host's network namespace, where our sockets
//! have to be.

use anyhow::Context;
use sys::spawn::{Namespaces, unshare};

/// Moves into new namespaces of mounts, System V IPC and host names, and, if `pids` is true, has the next child be
/// process 1 of a PID namespace: it sees no process but itself. From then on no thread can be started before a fork.
///
/// To do without the others is no reason to fail, which is told.
///
/// # Errors
/// There is to be no mount namespace: some containers forbid it.
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
        log::info!("Namespaces that can't be our own: {}", refused.join(", "));
    }
    unshare(Namespaces::MOUNT).context("no mount namespace of our own")
}
