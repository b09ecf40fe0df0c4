//! Links to the guest: where Ethernet frames come from and go to (SPEC §9).

pub(crate) mod tap;

use engine::link::{Full, Link};
use wire::offload::Offload;

/// No link at all (`--splice-only`): nothing fits.
#[derive(Debug)]
pub(crate) struct NoLink;

impl Link for NoLink {
    fn reserve(&mut self, _: usize) -> Option<&mut [u8]> {
        None
    }

    fn commit(&mut self, _: usize, _: &Offload) -> Result<(), Full> {
        Err(Full)
    }
}
