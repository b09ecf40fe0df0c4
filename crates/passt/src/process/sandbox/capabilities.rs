//! Capabilities. They belong to threads, so each thread gives up its own capabilities.

use anyhow::Context;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// Reduces the permitted capabilities of the calling thread to `kept`, and the effective capabilities to `effective`.
/// The thread can gain no other capabilities, not even by exec.
///
/// # Errors
/// The kernel refuses the change. The thread may already have lost some capabilities.
pub(crate) fn reduce_to(kept: CapabilitySet, effective: CapabilitySet) -> anyhow::Result<()> {
    drop_capabilities(kept, kept & effective).context("can't drop capabilities")?;
    set_no_new_privs(true).context("can't rule out new privileges")
}

fn drop_capabilities(permitted: CapabilitySet, effective: CapabilitySet) -> rustix::io::Result<()> {
    // An exec could regain capabilities of the bounding set, so they are removed. The removal fails after the last
    // capability that the kernel supports. Without CAP_SETPCAP, it fails at the first capability. This is harmless:
    // no_new_privs also prevents regaining.
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| remove_capability_from_bounding_set(*capability).is_ok())
        .for_each(drop);
    let _ = clear_ambient_capability_set();
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}
