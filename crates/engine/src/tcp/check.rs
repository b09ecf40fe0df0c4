//! The state of a connection whose guest must send a server name before its bytes are forwarded.

use core::time::Duration;

use crate::{
    first_bytes::{self, FirstBytes},
    guard::Claim,
    quota::{Part, Quota},
    timer::Instant,
};

/// How long a client may take to send a server name.
const PATIENCE: Duration = Duration::from_secs(10);

/// The check of a connection. It exists until the client has sent an allowed name. If the connection is refused with an
/// alert, it exists until the connection ends.
#[derive(Debug)]
pub(super) struct Check {
    pub(super) claim: Claim,
    pub(super) first: FirstBytes,
    /// How many bytes of the stream were parsed.
    pub(super) fed: usize,
    /// The memory of the parser.
    memory: Part,
    /// Deadline of the check, or of the client's close after a refusal. `None` during the handshake.
    pub(super) until: Option<Instant>,
    /// The bytes that a refused client receives before the FIN.
    pub(super) farewell: &'static [u8],
}

impl Check {
    pub(super) const fn new(claim: Claim) -> Self {
        let first = FirstBytes::new(claim.ech);
        Self { claim, first, fed: 0, memory: Part::NONE, until: None, farewell: &[] }
    }

    /// Takes memory for parsing `more` bytes. Returns false if there is none.
    pub(super) fn reserve(&mut self, more: usize, quota: &Quota) -> bool {
        if self.fed == 0 {
            self.memory = quota.part();
        }
        // A list that grows may be twice as long as needed, and is copied.
        let parsed = (self.fed + more).min(first_bytes::MAX_LEN);
        self.memory.resize(3 * parsed)
    }

    /// Sets the deadline, when the handshake is done.
    pub(super) fn begin(&mut self, now: Instant) {
        self.until = Some(now + PATIENCE);
    }

    /// Whether the server may send bytes before the client has sent a name.
    pub(super) const fn server_first(&self) -> bool {
        self.claim.server_first
    }
}
