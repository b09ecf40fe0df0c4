//! What is left of privileges: they belong to threads, and each gives up its own.

use anyhow::Context;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

/// Has the calling thread keep no capability but those `kept`, of which only those of `effective` have effect before
/// they are asked for.
pub(crate) fn renounce(kept: CapabilitySet, effective: CapabilitySet) -> anyhow::Result<()> {
    drop_capabilities(kept, kept & effective).context("can't drop capabilities")?;
    set_no_new_privs(true).context("can't rule out new privileges")
}

fn drop_capabilities(permitted: CapabilitySet, effective: CapabilitySet) -> rustix::io::Result<()> {
    // An exec could give these back. It fails behind the last that the kernel knows; and with the first for who
    // has no right to drop them, which is no matter, as then new privileges are ruled out still.
    (0..u64::BITS)
        .map(|bit| CapabilitySet::from_bits_retain(1 << bit))
        .take_while(|capability| remove_capability_from_bounding_set(*capability).is_ok())
        .for_each(drop);
    let _ = clear_ambient_capability_set();
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() })
}
