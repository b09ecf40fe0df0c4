//! Links to the guest: where Ethernet frames come from and go to (SPEC §9).

pub(crate) mod tap;

use engine::link::{Full, Link, Slot};
use engine::memory::Plain;
use wire::offload::Offload;

/// No link at all (`--splice-only`): nothing fits.
#[derive(Debug)]
pub(crate) struct NoLink;

impl Link for NoLink {
    type Memory = Plain;

    fn reserve(&mut self, _: usize, _: usize) -> Option<Slot<'_, Plain>> {
        None
    }

    fn commit(&mut self, _: usize, _: &Offload) -> Result<(), Full> {
        Err(Full)
    }
}
