//! What is kept of a connection that waits for the name that its client says.

use core::time::Duration;

use crate::{
    first_bytes::{Ech, FirstBytes},
    guard::Claim,
    timer::Instant,
};

/// How long a client may take to say a name.
const PATIENCE: Duration = Duration::from_secs(10);

/// The check of a connection, until the client has said a name; afterwards, if it is refused by an alert.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) claim: Claim,
    pub(super) first: FirstBytes,
    /// How many bytes were read.
    pub(super) fed: usize,
    /// When it ends, whatever was said. None during the handshake.
    pub(super) until: Option<Instant>,
    /// What a client that is refused gets.
    pub(super) farewell: &'static [u8],
}

impl Check {
    pub(super) const fn new(claim: Claim) -> Self {
        let first = FirstBytes::new(Ech::OuterName);
        Self { claim, first, fed: 0, until: None, farewell: &[] }
    }

    /// The handshake is done.
    pub(super) fn begin(&mut self, now: Instant) {
        self.until = Some(now + PATIENCE);
    }

    /// Whether the server may speak before the client has said a name.
    pub(super) const fn server_first(&self) -> bool {
        self.claim.server_first
    }
}
