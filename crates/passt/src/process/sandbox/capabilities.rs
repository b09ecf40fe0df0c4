//! Capabilities, which belong to threads: each thread gives up its own.

use anyhow::Context;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// Reduces the permitted capabilities of the calling thread to `kept`, and the effective ones to `effective`. It can gain
/// no others, not even by exec.
///
/// # Errors
/// The kernel refuses; the thread may have lost some capabilities.
pub(crate) fn reduce_to(kept: CapabilitySet, effective: CapabilitySet) -> anyhow::Result<()> {
    drop_capabilities(kept, kept & effective).context("can't drop capabilities")?;
    set_no_new_privs(true).context("can't rule out new privileges")
}

fn drop_capabilities(permitted: CapabilitySet, effective: CapabilitySet) -> rustix::io::Result<()> {
    // An exec could regain capabilities of the bounding set. Removal fails after the last one that the kernel knows, and
    // at the first one without CAP_SETPCAP. The latter is harmless: no_new_privs prevents the gain, too.
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| remove_capability_from_bounding_set(*capability).is_ok())
        .for_each(drop);
    let _ = clear_ambient_capability_set();
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}
