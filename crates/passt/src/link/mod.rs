//! Links to the guest: where Ethernet frames come from and go to (SPEC §9).

pub(crate) mod tap;
